"""Start a server from Python, talk to it, look at its workers, stop it.

    python examples/library.py

`diptych.serve` returns when requests can be sent; leaving the `with` block finishes running answers and ends every
process that was started.
"""

import argparse

import httpx

import diptych

QUESTIONS = ("What is a diptych?", "What is a hinge?")
ANSWER_TIMEOUT_S = 120.0


def main() -> None:
    """Ask two questions, then print what each worker did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="as for `diptych serve --model`")
    config = diptych.ServeConfig(model=parser.parse_args().model, prefill=1, decode=1, port=0, kv_bytes=400_000_000)

    with diptych.serve(config, on_stage=print) as server, httpx.Client(base_url=server.url) as client:
        print(f"ready at {server.url} after {server.started.ready_after_s:.1f} s")
        for question in QUESTIONS:
            body = {
                "model": server.model_name,
                "messages": [{"role": "user", "content": question}],
                "max_tokens": 40,
                "temperature": 0,
            }
            answer = client.post("/v1/chat/completions", json=body, timeout=ANSWER_TIMEOUT_S).raise_for_status()
            print(f"\n{question}\n{answer.json()['choices'][0]['message']['content']}")
        print()
        for worker_id, worker in server.status()["workers"].items():
            status = worker["status"]
            print(f"{worker_id}: {status['num_steps']} steps on cores {status['cores']}, {status['engine']}")


if __name__ == "__main__":
    main()
