"""Hubs on this machine, in place of the Hugging Face hub: one sends files, one takes uploads."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

COMMIT = "0" * 40


@contextmanager
def _listening(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Serve every request by `answer` while the block runs; the endpoint."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            answer(self)

        do_GET = do_POST = do_HEAD = _answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class FilesHub:
    """Facts about a hub that serves one model."""

    endpoint: str = ""  # where it listens
    sent: dict[str, int] = field(default_factory=dict)  # bytes of each file that went out
    revisions: set[str] = field(default_factory=set)  # asked for by name


def use_hub(patch: pytest.MonkeyPatch, hub: FilesHub, cache: Path) -> None:
    """Let this process's client of the hub ask this one, and keep what it gets in `cache`."""
    constants = "huggingface_hub.constants"
    patch.setattr(f"{constants}.ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))


@contextmanager
def files_hub(name: str, folder: Path) -> Iterator[FilesHub]:
    """Serve `folder` as the hub's model `name`, ranges too."""
    hub = FilesHub()

    def answer(request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0].strip("/")
        if path.startswith((f"api/models/{name}/revision/", f"api/models/{name}/tree/")):
            is_tree = "/tree/" in path
            if not is_tree:
                hub.revisions.add(path.rpartition("/")[2])
            _describe(request, name, folder, is_tree=is_tree)
            return
        prefix, _, file = path.partition("/resolve/")
        asked = folder / file.partition("/")[2]
        if prefix != name or not asked.is_file():
            known = prefix.removeprefix("api/models/").startswith(name)
            request.send_response(404)
            request.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        data = asked.read_bytes()
        start, end = 0, len(data)
        if wanted := request.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, len(data))
        request.send_response(206 if wanted else 200)
        request.send_header("Content-Length", str(end - start))
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        request.end_headers()
        if request.command == "GET":
            # Before it is sent: the client may check at once.
            hub.sent[asked.name] = hub.sent.get(asked.name, 0) + end - start
            request.wfile.write(data[start:end])

    with _listening(answer) as hub.endpoint:
        yield hub


def _describe(request: BaseHTTPRequestHandler, name: str, folder: Path, is_tree: bool) -> None:
    """Answer with the model's commit, or with its files (`is_tree`)."""
    files = [
        {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
        for file in sorted(folder.iterdir())
    ]
    data = json.dumps(files if is_tree else {"id": name, "sha": COMMIT}).encode()
    request.send_response(200)
    request.send_header("Content-Length", str(len(data)))
    request.send_header("Content-Type", "application/json")
    request.end_headers()
    request.wfile.write(data)


@dataclass
class UploadHub:
    """Requests of an upload. `public` is whether its repositories are."""

    endpoint: str = ""
    public: bool = False
    requests: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    created: list[tuple[str, bool]] = field(default_factory=list)  # name, whether private
    committed: set[str] = field(default_factory=set)

    def answer(self, method: str, path: str, body: bytes) -> dict[str, Any] | None:
        """Return the answer's JSON, None for an unknown request."""
        if path == "/api/repos/create":
            asked = json.loads(body)
            # The first major version of the client said it otherwise.
            private = asked.get("visibility") == "private" or asked.get("private") is True
            self.created.append((asked["name"], private))
            return {"url": f"{self.endpoint}/me/tiny"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            # "regular": the file's bytes are in the commit itself.
            files = [{**file, "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return {"files": [{**file, "shouldIgnore": False} for file in files]}
        if "/commit/" in path:
            lines = [json.loads(line) for line in body.splitlines()]
            self.committed |= {line["value"]["path"] for line in lines if line["key"] == "file"}
            url = f"{self.endpoint}/me/tiny/commit/1"
            return {"success": True, "commitOid": "1", "commitUrl": url, "hookOutput": ""}
        if method == "GET" and path.startswith("/api/models/me/tiny"):
            return {"id": "me/tiny", "private": not self.public, "sha": "0", "siblings": []}
        return None


@contextmanager
def upload_hub(**settings: Any) -> Iterator[UploadHub]:
    """Serve the part of the hub's API that an upload needs."""
    hub = UploadHub(**settings)

    def answer(request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = request.path.partition("?")[0]
        hub.requests.append((request.command, path))
        hub.tokens.add(request.headers.get("Authorization"))
        found = hub.answer(request.command, path, body)
        text = json.dumps(found if found is not None else {"error": "unknown"}).encode()
        request.send_response(404 if found is None else 200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(text)))
        request.end_headers()
        request.wfile.write(text)

    with _listening(answer) as hub.endpoint:
        yield hub
