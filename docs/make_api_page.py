"""Writes docs/api.md: every route, and every parameter with its limits, read off the code that checks them.

Run `make docs` after a change to a route or a body; a test compares the page with what this would write.
"""

import re
from pathlib import Path

from pydantic import BaseModel

from diptych.frontend.openai import unsupported
from diptych.frontend.openai.chat import ChatCompletionRequest
from diptych.frontend.openai.completions import CompletionRequest
from diptych.frontend.openai.generation import GenerationBody, StreamOptions, StructuredOutputs
from diptych.frontend.openai.responses import ResponseRequest
from diptych.frontend.openai.tokenize import DetokenizeRequest, TokenizeRequest

PAGE = Path(__file__).with_name("api.md")

INTRODUCTION = """# The API

Written by `make docs` from the code; do not edit. `GET /docs` of a running server shows the same with all types, and
`GET /openapi.json` is the schema.

Whatever a client of OpenAI's API, or of vLLM's, sends to a text model is served or refused with OpenAI's error object
and a reason; nothing is silently ignored. Types are strict, unknown fields are errors, null means the default.

| route | what |
|---|---|
| `POST /v1/chat/completions` | answers a conversation, whole or streamed |
| `POST /v1/completions` | continues a text, or several |
| `POST /v1/responses` | OpenAI's newer route: the same conversation in other words |
| `GET, DELETE /v1/responses/{id}` | a response that was stored: the newest 1,000, in memory |
| `GET /v1/models`, `GET /v1/models/{name}` | the one model that is served |
| `POST /tokenize`, `POST /detokenize` | text or conversation to tokens, and back, as with vLLM |
| `GET /version` | version of this server |
| `GET /health`, `GET /ready` | 200 while the process lives; 200 while requests can be served, else 503 |
| `GET /diptych/status` | every worker: role, process, cores, state, blocks, queues (admin keys) |
| `GET /diptych/requests` | the last 1,000 requests: sizes and when each step happened, no text (admin keys) |
| `GET /diptych/events` | all there is to see, four times a second ([watching.md](watching.md); admin keys) |
| `GET /dashboard`, `GET /dashboard/{name}` | a page that shows it, and the page's files |
| `GET /metrics` | everything that is counted, for Prometheus (admin keys); [what each metric means](operations.md) |
| `POST /diptych/nodes/{node}/drain` | have a machine leave, as `diptych cluster drain` does (admin keys) |
| `POST /diptych/workers/{worker_id}/drain` | take a worker out of service, as `diptych drain` does (admin keys) |
| `POST /diptych/workers/{worker_id}/start` | start a worker that is down (admin keys) |
| `POST /diptych/workers/{worker_id}/profile` | where a worker's time goes, as `diptych profile` shows it (admin keys) |

Where the server has API keys, every request brings one as `Authorization: Bearer KEY`, except to `/health`, `/ready`,
`/version`, `/docs`, `/openapi.json` and `/dashboard`. Without a valid one it gets 401; a key that has used up what it
may gets 429 and `Retry-After`. A key sees its own stored responses only, and shares cached prefixes with no other key
unless both were put into one cache group.

## How answers are made

- **Order**: grammar, allowed tokens, bad words, `min_tokens`, `logit_bias`, penalties, `temperature`, `min_p`, `top_k`,
  `top_p`, as in vLLM. Log-probabilities are the model's own, before any of these.
- **Seeds**: a seed, the choice and the position of a token decide its random numbers: the same request gives the same
  answer, streamed or whole, alone or in company, handed over or not. Choices of a request differ from each other.
- **`n`** answers share the KV of the prompt: it is read once, and only its last, partly filled block is copied.
- **Structured output** is enforced while tokens are drawn (llguidance), so an answer that ends by itself matches. JSON
  comes on one line. A schema or grammar that cannot be used is a 400, as is one that takes more than two seconds to
  compile or does not fit 1 GB; one that takes too long to follow ends its own answer with an error. Schemas may be 100
  levels deep and have 100,000 characters, grammars in GBNF 20,000.
- **Tools**: where the model's chat template knows them they are given to it, otherwise the system message describes
  them. Calls are held to the schema of their arguments, with `tool_choice: auto` as soon as the model begins one.
- **Stop strings** end an answer at their first character, wherever tokens end; what could become one is held back.
- **Ends**: `finish_reason` is `stop`, `length` or `tool_calls`; `stop_reason` names the stop string or token.
- **Errors**: 400 change the request, 401 no valid API key, 403 not with this one, 404 no such model, 408 the head or
  the body was too slow, 413 the body too long, 431 the head, 429 come back after `Retry-After`, 503 nobody can take it
  now, or could in time (mostly with `Retry-After`), 504 its deadline has passed. After the first event of a stream an
  error is an event, and the stream ends without `[DONE]`.
- **Around it**: `--root-path` for a proxy that has the server under a path (whether it takes the path away or not),
  `--cors-origins` for web pages (off by default), `--chat-template` in place of the model's own. Answers are never
  compressed. `X-Request-Id` names the request.
"""

SECTIONS: list[tuple[str, str, type[BaseModel], type[BaseModel] | None]] = [
    ("Chat and completions", "Both take these.", GenerationBody, None),
    ("Chat alone", "", ChatCompletionRequest, GenerationBody),
    ("Completions alone", "", CompletionRequest, GenerationBody),
    ("structured_outputs", "Exactly one of the first six.", StructuredOutputs, None),
    ("stream_options", "", StreamOptions, None),
    (
        "Responses",
        "Items of `input` are messages, function calls and what they returned; `previous_response_id` goes on after a "
        "stored response.",
        ResponseRequest,
        None,
    ),
    ("Tokenize", "", TokenizeRequest, None),
    ("Detokenize", "", DetokenizeRequest, None),
]
REFUSED = [
    ("Chat", unsupported.OF_CHAT),
    ("Completions", unsupported.OF_COMPLETION),
    ("Messages", unsupported.OF_MESSAGE),
    ("stream_options", unsupported.OF_STREAM_OPTIONS),
    ("Responses", unsupported.OF_RESPONSE),
]


def render() -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    for title, text, body, base in SECTIONS:
        parts.append(f"\n## {title}\n" + (f"\n{text}\n" if text else ""))
        parts.append("\n| parameter | limits | what |\n|---|---|---|\n")
        parts.extend(_rows(body, base))
    parts.append("\n## Refused\n\nUnless they are off (null, false, empty), with a 400 that says why.\n")
    parts.append("\n| where | parameter | why |\n|---|---|---|\n")
    for where, table in REFUSED:
        parts.extend(f"| {where} | `{name}` | {table[name].reason} |\n" for name in sorted(table))
    return "".join(parts)


def _rows(body: type[BaseModel], base: type[BaseModel] | None) -> list[str]:
    known = {} if base is None else base.model_fields
    return [
        f"| `{field.alias or name}` | {_limits(field.metadata)} | {field.description or ''} |\n"
        for name, field in body.model_fields.items()
        if name not in known
    ]


def _limits(metadata: list[object]) -> str:
    """Write pydantic's constraints as a person would."""
    words = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}", "max_length": "at most {} long"}
    found = [
        words[name].format(value)
        for constraint in metadata
        for name in words
        if isinstance(value := getattr(constraint, name, None), int | float) and abs(value) < 2**62
    ]
    return re.sub(r"\b(\d+)\.0\b", r"\1", " ".join(found))


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
