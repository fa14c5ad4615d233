"""Why figures are far from what was published, by the beginning of their names; the first that fits counts."""

_NO_LOSS = (
    "the simulated colocated engine loses nothing between steps, as vLLM of that time did (65.5 % within the SLO at "
    "1.5 requests/s, in DistServe's own table)"
)
REMARKS: dict[str, str] = {
    "motivation: goodput of a GPU": (
        "the limits of that figure are not in what we have read, ours are a guess; all three are off alike, so that "
        "the gain above is not"
    ),
    "rate gain: chat, opt-13b": (
        f"{_NO_LOSS}, and within 0.1 s a token a prompt may come in between: nothing is left for phases apart to gain"
    ),
    "SLO gain: chat, opt-13b": "the same; at that rate phases apart are beyond what they carry",
    "rate gain: chat": _NO_LOSS,
    "SLO gain: chat": _NO_LOSS,
    "rate gain: code": (
        f"{_NO_LOSS}; prompts of 171 tokens are a step of 50 ms, which a limit of 0.2 s a token does not notice"
    ),
    "SLO gain: code": (
        "the same; the first token's limit binds both sides, and a prefill worker of four GPUs reads for eight"
    ),
    "rate gain: summarise": _NO_LOSS,
    "SLO gain: summarise": _NO_LOSS,
    "throughput, long contexts, over 4 colocated, one by one: most": (
        "one request at a time is the worst that colocation can do; the paper does not say how its vLLM was set"
    ),
    "mean TTFT, random over KV-aware": (
        "what their requests shared is not published, and 1,500 requests do not fill the cluster for long; the picture "
        "has all rates"
    ),
    "mean TTFT, random over": (
        "our random routing waits as long as theirs (19.0 s), all others about half as long or less: 16 workers, each "
        "with a cache of 1 TB, at twice the recorded rate, in place of their cluster and load, which are not published"
    ),
    "overload: share lost": (
        "the share depends on how far beyond its capacity the cluster is driven, and here on what is late, too; theirs "
        "counts refusals alone"
    ),
    "overload: lost with none": (
        "their baseline refuses after the prefill; ours refuses nothing, so that nearly everything is late"
    ),
    "mean latency, random over KV-aware": (
        "the same; most of a latency here is the answer's 800 tokens, whose pace no routing changes before it is full"
    ),
}
