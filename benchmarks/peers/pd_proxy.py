"""Program: stands in front of two vLLM servers, of which one reads each prompt and the other writes its answer.

Each completion first goes to the prefill server, with one token to write and `do_remote_decode`. The
`kv_transfer_params` of that answer, put into the client's own request, tell the decode server where to pull the KV
from. The decode server's bytes then go to the client as they come: no event is parsed.

See: vLLM, NixlConnector Usage Guide (docs.vllm.ai/en/stable/features/nixl_connector_usage), whose toy proxy does the
same with httpx and FastAPI; this one shares two cores with what it stands in front of, so it costs less.
"""

import argparse
import asyncio
import json
import logging
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from typing import Any

import uvicorn

from diptych.bench.http_client import Address, HttpError, exchange, fetch

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
COMPLETIONS = ("/v1/completions", "/v1/chat/completions")
ASK_PREFILL = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
NOT_FOR_PREFILL = frozenset({"stream_options", "min_tokens", "max_completion_tokens"})
PREFILL_TIMEOUT_S = 600.0
HTTP_OK, BAD_REQUEST, NOT_ALLOWED, BAD_GATEWAY, UNAVAILABLE = 200, 400, 405, 502, 503

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ProxyError(Exception):
    """The client gets `status` and a body instead of an answer."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.status = status
        self.body = body

    @classmethod
    def saying(cls, status: int, text: str) -> "ProxyError":
        """Return an error in OpenAI's form."""
        return cls(status, {"error": {"message": text, "type": "proxy_error", "code": status}})


class Proxy:
    """An ASGI application. Holds nothing between requests."""

    def __init__(self, prefill: Address, decode: Address) -> None:
        self._prefill = prefill
        self._decode = decode

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request; give it up everywhere when the client hangs up."""
        content = await _body_of(receive)
        answer = asyncio.ensure_future(self._answer(scope["method"], scope["path"], content, send))
        hang_up = asyncio.ensure_future(_hang_up(receive))
        try:
            await asyncio.wait({answer, hang_up}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hang_up.cancel()
            answer.cancel()  # closes its connections, by which vLLM learns of it
        if not answer.cancelled() and answer.done():
            answer.result()

    async def _answer(self, method: str, path: str, content: bytes, send: Send) -> None:
        is_started = False

        async def tell(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            if path in COMPLETIONS and method == "POST":
                await self._complete(path, content, tell)
            elif method == "GET":
                await _pass_on(self._decode, "GET", path, None, tell)
            else:
                raise ProxyError.saying(NOT_ALLOWED, f"{method} {path} is not passed on")
        except (HttpError, ProxyError) as error:
            if is_started:
                log.warning("an answer broke off: %s", error)
                return  # too late to tell the client: uvicorn cuts the connection
            refusal = error if isinstance(error, ProxyError) else ProxyError.saying(UNAVAILABLE, f"vLLM: {error}")
            await _send_start(send, refusal.status, "application/json")
            await send({"type": "http.response.body", "body": json.dumps(refusal.body).encode()})

    async def _complete(self, path: str, content: bytes, send: Send) -> None:
        try:
            body = json.loads(content)
        except ValueError as error:
            raise ProxyError.saying(BAD_REQUEST, f"the body is no JSON: {error}") from None
        if not isinstance(body, dict):
            raise ProxyError.saying(BAD_REQUEST, "the body must be a JSON object")
        name = (("X-Request-Id", uuid.uuid4().hex),)
        prefill, decode = replace(self._prefill, headers=name), replace(self._decode, headers=name)
        body["kv_transfer_params"] = await _read_prompt(prefill, path, body)
        await _pass_on(decode, "POST", path, body, send)


async def _read_prompt(prefill: Address, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Have a prompt read; return what tells the decode server where its KV is.

    Raises: ProxyError with the server's own refusal; HttpError if it is gone.
    """
    prompt = {key: value for key, value in body.items() if key not in NOT_FOR_PREFILL}
    prompt |= {"stream": False, "max_tokens": 1, "kv_transfer_params": ASK_PREFILL}
    status, answer = await fetch(prefill, path, PREFILL_TIMEOUT_S, prompt)
    if status != HTTP_OK:
        raise ProxyError(status, answer)
    params = answer.get("kv_transfer_params")
    if not isinstance(params, dict):
        raise ProxyError.saying(BAD_GATEWAY, "the prefill server returned no kv_transfer_params")
    return params


async def _pass_on(address: Address, method: str, path: str, body: dict[str, Any] | None, send: Send) -> None:
    """Send a server's answer to the client as it comes. Raises: HttpError if it breaks off."""
    pieces: asyncio.Queue[bytes] = asyncio.Queue()
    content_type = "text/event-stream" if body and body.get("stream") else "application/json"
    async with exchange(address, method, path, body, pieces.put_nowait) as opened:
        end = asyncio.ensure_future(opened.wait_for_end())
        end.add_done_callback(lambda _: pieces.put_nowait(b""))
        is_started = False
        while piece := await pieces.get():
            if not is_started:
                is_started = True
                await _send_start(send, opened.status, content_type)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await end
        if not is_started:
            await _send_start(send, opened.status, content_type)
        await send({"type": "http.response.body", "body": b""})


async def _send_start(send: Send, status: int, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _body_of(receive: Receive) -> bytes:
    pieces = []
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True, help="where to listen, on 127.0.0.1")
    parser.add_argument("--prefill", required=True, help="URL of the server that reads prompts")
    parser.add_argument("--decode", required=True, help="URL of the server that writes answers")
    options = parser.parse_args()
    proxy = Proxy(Address.parse(options.prefill), Address.parse(options.decode))
    uvicorn.run(proxy, host=LOOPBACK, port=options.port, lifespan="off", access_log=False, log_level="warning")


if __name__ == "__main__":
    _main()
