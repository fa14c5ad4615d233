"""Ask a running server and print the answer while it is written, with the `openai` package.

    diptych serve
    pip install openai
    python examples/chat.py "What is a diptych?"

Nothing here is special to Diptych: any OpenAI client works the same way.
"""

import argparse

import openai


def main() -> None:
    """Stream one answer to stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", default="What is a diptych?")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the server listens")
    parser.add_argument("--max-tokens", type=int, default=200, help="most tokens of the answer")
    arguments = parser.parse_args()

    client = openai.OpenAI(base_url=f"{arguments.url}/v1", api_key="not used")
    model = client.models.list().data[0].id
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": arguments.question}],
        max_tokens=arguments.max_tokens,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage is not None:
            print(f"\n\n{chunk.usage.prompt_tokens} prompt tokens, {chunk.usage.completion_tokens} answer tokens")


if __name__ == "__main__":
    main()
