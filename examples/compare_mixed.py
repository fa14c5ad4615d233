"""What a long prompt does to running answers: one prefill and one decode worker, then one worker that does both.

    python examples/compare_mixed.py

Both servers get the same load on the same cores, one after another. Some answers are being streamed when a long prompt
arrives; printed are the gaps between the tokens of those answers before it and while it is read. It takes less than a
minute. One run on a busy machine proves nothing: benchmarks/interference.py is the measurement.
"""

import argparse
import asyncio
import json
import random
import time
from dataclasses import dataclass, field

import httpx

import diptych

NUM_ANSWERS = 4
QUIET_TOKENS = 24
"""Tokens that every answer gets before the long prompt is sent."""
TIMEOUT_S = 120.0


@dataclass
class TokenTimes:
    """When the tokens of one answer came, in seconds of the monotonic clock."""

    times_s: list[float] = field(default_factory=list)
    has_warmed_up: asyncio.Event = field(default_factory=asyncio.Event)

    def gaps_s(self, begin_s: float, end_s: float) -> list[float]:
        """Return the gaps that ended between two moments."""
        pairs = zip(self.times_s, self.times_s[1:], strict=False)
        return [later - earlier for earlier, later in pairs if begin_s < later <= end_s]


async def stream_answer(client: httpx.AsyncClient, model: str, max_tokens: int, times: TokenTimes) -> None:
    """Stream one answer and note when each token comes."""
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["text"]:
                times.times_s.append(time.monotonic())
                if len(times.times_s) == QUIET_TOKENS:
                    times.has_warmed_up.set()


async def measure(server: diptych.Server, num_prompt_tokens: int, max_tokens: int) -> list[str]:
    """Run the load against one server; return the cells of its row."""
    prompt = [random.Random(num_prompt_tokens).randrange(1_000, 40_000) for _ in range(num_prompt_tokens)]  # noqa: S311
    answers = [TokenTimes() for _ in range(NUM_ANSWERS)]
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT_S) as client, asyncio.TaskGroup() as tasks:
        for times in answers:
            tasks.create_task(stream_answer(client, server.model_name, max_tokens, times))
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(times.has_warmed_up.wait() for times in answers))
        begin_s = time.monotonic()
        body = {"model": server.model_name, "prompt": prompt, "max_tokens": 1}
        (await client.post("/v1/completions", json=body)).raise_for_status()
        end_s = time.monotonic()
    quiet = [gap for times in answers for gap in times.gaps_s(times.times_s[4], begin_s)]
    beside = [gap for times in answers for gap in times.gaps_s(begin_s, end_s)]
    return [_milliseconds(quiet), _milliseconds(beside), f"{end_s - begin_s:.2f} s"]


def _milliseconds(gaps_s: list[float]) -> str:
    """Return median and maximum."""
    if not gaps_s:
        return "no token"
    return f"{sorted(gaps_s)[len(gaps_s) // 2] * 1e3:.0f} / {max(gaps_s) * 1e3:.0f} ms"


def main() -> None:
    """Measure both set-ups and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-tokens", type=int, default=800, help="length of the long prompt")
    parser.add_argument("--max-tokens", type=int, default=140, help="length of the running answers")
    parser.add_argument("--engine", choices=["openvino", "modeled"], default="openvino", help="modeled: no weights")
    arguments = parser.parse_args()

    print(f"{NUM_ANSWERS} running answers, then a prompt of {arguments.prompt_tokens} tokens\n")
    print(f"{'':22}{'gap, quiet':>16}{'gap, beside it':>18}{'its first token':>18}   (gaps: median / longest)")
    common = diptych.ServeConfig(engine=arguments.engine, port=0, kv_bytes=400_000_000)
    set_ups = {"1 prefill + 1 decode": {"prefill": 1, "decode": 1}, "1 mixed": {"mixed": 1}}
    for name, workers in set_ups.items():
        with diptych.serve(common.model_copy(update=workers)) as server:
            quiet, beside, ttft = asyncio.run(measure(server, arguments.prompt_tokens, arguments.max_tokens))
        print(f"{name:22}{quiet:>16}{beside:>18}{ttft:>18}", flush=True)


if __name__ == "__main__":
    main()
