"""The hub's client against a small hub on this machine, which speaks what the client asks for."""

import hashlib
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from tests.small_disk import small_disk

from diptych.core.errors import ModelError
from diptych.models.resolution import resolve

COMMIT = "c" * 40
API = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<revision>[^/]+))?")
FILE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


@dataclass
class Hub:
    """What the test's hub holds and has been asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Repository to the HTTP status and error code that it is refused with."""
    refused_files: set[str] = field(default_factory=set)
    told_bytes: int | None = None
    """How large it says that each file is; None: as large as it is."""
    breaks_once_after_bytes: int | None = None
    """Where the next transfer of a file breaks off."""
    requests: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def downloads(self) -> list[str]:
        return [line.rpartition("/")[2] for line in self.requests if line.startswith("GET") and "/resolve/" in line]


class Handler(BaseHTTPRequestHandler):
    """One request to the hub."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        match = API.fullmatch(path) or FILE.fullmatch(path)
        if match is None:
            self._answer(404, b"", {})
        elif match["repository"] in self.hub.statuses:
            status, code = self.hub.statuses[match["repository"]]
            self._answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "refused\nin two lines"})
        elif match["revision"] not in {None, "main", COMMIT}:
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif "name" in match.re.groupindex and match["name"] in self.hub.refused_files:
            self._answer(403, b"{}", {})
        elif "name" in match.re.groupindex:
            self._send_file(match["name"])
        else:
            self._answer(200, json.dumps(self._tree() if match["what"] == "tree" else self._info()).encode(), {})

    def _info(self) -> dict[str, object]:
        told_bytes = self.hub.told_bytes
        siblings = [
            {"rfilename": name, "size": len(content) if told_bytes is None else told_bytes}
            for name, content in self.hub.files.items()
        ]
        return {"id": "org/name", "sha": COMMIT, "siblings": siblings, "tags": ["license:mit"], "private": False}

    def _tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}  # noqa: S324
            for name, content in self.hub.files.items()
        ]

    def _send_file(self, name: str) -> None:
        content = self.hub.files.get(name)
        if content is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}  # noqa: S324
        self._answer(200, content, headers)

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and status == 200:
            start, status = int(asked[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value.replace("\n", " "))
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        end = None
        if "/resolve/" in self.path:
            end, self.hub.breaks_once_after_bytes = self.hub.breaks_once_after_bytes, None
        self.wfile.write(content[start:end])
        if end is not None:
            self.close_connection = True


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING")) or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def ir_files(tiny_ir: Path) -> dict[str, bytes]:
    config = json.dumps({"max_position_embeddings": 128, "model_type": "llama"}).encode()
    return {path.name: path.read_bytes() for path in tiny_ir.iterdir()} | {"config.json": config, "README.md": b"no"}


def test_an_ir_repository_is_fetched_once(hub: Hub, ir_files: dict[str, bytes], cache: Path) -> None:
    hub.files = ir_files
    folder = resolve("org/name")
    assert (folder.name, folder.context_length, folder.license) == ("org/name", 128, "mit")
    assert {path.name for path in folder.path.iterdir()} == {*ir_files, "diptych.json"} - {"README.md"}
    assert all((folder.path / name).read_bytes() == ir_files[name] for name in ir_files if name != "README.md")
    num_requests = len(hub.requests)
    assert resolve("org/name") == folder
    assert len(hub.requests) == num_requests


def test_a_refresh_fetches_what_the_branch_is_now(hub: Hub, ir_files: dict[str, bytes], cache: Path) -> None:
    hub.files = ir_files
    resolve("org/name")
    hub.files = ir_files | {"config.json": b'{"max_position_embeddings": 64}'}
    assert resolve("org/name").context_length == 128
    assert resolve("org/name", refresh=True).context_length == 64
    assert resolve("org/name").context_length == 64


def test_a_gguf_repository_is_fetched_and_converted(hub: Hub, tiny_gguf_bytes: bytes, cache: Path) -> None:
    hub.files = {"sub/m-Q8_0.gguf": tiny_gguf_bytes, "m-Q5_0.gguf": b"not this"}
    folder = resolve("org/name@main:Q8_0")
    assert (folder.name, folder.context_length) == ("org/name", 256)
    assert folder.eos_token_ids == {2}
    assert folder.license == "mit"
    assert hub.downloads() == ["m-Q8_0.gguf"]
    assert not list(cache.rglob("*.gguf"))


def test_a_disk_that_is_full_before_all_has_come_is_one_line(
    hub: Hub, ir_files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.files = ir_files | {"openvino_model.bin": bytes(3_000_000)}
    hub.told_bytes = 1  # else there would be no try
    with small_disk(tmp_path / "disk", "size=2m") as disk:
        with pytest.raises(ModelError, match=rf"^no space left in {disk}[^\n]*$"):
            resolve("org/name", cache=disk)
        assert [path for path in (disk / "models").iterdir() if not path.name.startswith(".")] == []
        subprocess.run(["/bin/mount", "-o", "remount,size=20m", str(disk)], check=True, timeout=10)
        hub.told_bytes = None
        folder = resolve("org/name", cache=disk)
        assert (folder.path / "openvino_model.bin").read_bytes() == bytes(3_000_000), "no half file was taken for whole"


def test_a_token_is_sent(hub: Hub, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    with pytest.raises(ModelError, match="neither OpenVINO IR nor GGUF"):
        resolve("org/name")
    assert hub.tokens == {"Bearer hf_abc"}


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (404, "RepoNotFound", "no repository org/name on {url}; check its name"),
        (401, "", "no repository org/name on {url}.*HF_TOKEN|does not accept the token"),
        (401, "GatedRepo", "org/name is gated; accept its terms on {url}/org/name and set HF_TOKEN"),
        (403, "", "{url} forbids access to org/name"),
        (418, "", "cannot fetch org/name from {url}: "),
    ],
)
def test_a_refusal_is_one_line(hub: Hub, cache: Path, status: int, code: str, error: str) -> None:
    hub.statuses["org/name"] = (status, code)
    with pytest.raises(ModelError, match=error.format(url=hub.url)) as caught:
        resolve("org/name")
    assert "\n" not in str(caught.value)


def test_an_unknown_revision_is_one_line(hub: Hub, ir_files: dict[str, bytes], cache: Path) -> None:
    hub.files = ir_files
    with pytest.raises(ModelError, match=r"org/name has no revision v9 on http"):
        resolve("org/name@v9")


def test_no_network_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match=r"cannot reach http://127\.0\.0\.1:9 for org/name; check network"):
        resolve("org/name")


def test_offline_mode_is_one_line(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="not in the cache, and HF_HUB_OFFLINE forbids"):
        resolve("org/name")
    assert hub.requests == []


def test_a_damaged_file_is_fetched_again_the_next_time(hub: Hub, tiny_gguf_bytes: bytes, cache: Path) -> None:
    hub.files = {"m.gguf": tiny_gguf_bytes[:-1]}
    with pytest.raises(ModelError, match=r"m\.gguf is truncated"):
        resolve("org/name")
    hub.files = {"m.gguf": tiny_gguf_bytes}
    assert resolve("org/name").context_length == 256


def test_an_incomplete_repository_is_one_line(hub: Hub, ir_files: dict[str, bytes], cache: Path) -> None:
    hub.files = {name: content for name, content in ir_files.items() if name != "openvino_model.bin"}
    with pytest.raises(ModelError, match=r"openvino_model\.bin is missing"):
        resolve("org/name")


def test_a_broken_transfer_is_tried_again(hub: Hub, tiny_gguf_bytes: bytes, cache: Path) -> None:
    hub.files = {"m.gguf": tiny_gguf_bytes}
    hub.breaks_once_after_bytes = 50_000
    assert resolve("org/name").context_length == 256
    assert hub.downloads() == ["m.gguf"] * 2


def test_a_second_try_fetches_only_what_is_missing(hub: Hub, ir_files: dict[str, bytes], cache: Path) -> None:
    hub.files = ir_files
    hub.refused_files = {"openvino_model.bin"}
    with pytest.raises(ModelError, match="forbids access to org/name"):
        resolve("org/name")
    whole = {path.name for path in cache.glob("models/*.work/download/*")}  # connections are parallel: any of them
    hub.requests.clear()
    hub.refused_files = set()
    assert resolve("org/name").context_length == 128
    assert set(hub.downloads()) == set(ir_files) - whole - {"README.md"}
    assert "openvino_model.bin" in hub.downloads()
    assert not list(cache.rglob("*.work"))
