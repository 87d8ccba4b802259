"""The part of a hub's API that an upload needs, on this machine, in place of the real one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class Hub:
    """What was asked of it. `public` is whether its repositories are."""

    endpoint: str = ""
    public: bool = False
    requests: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    created: list[tuple[str, bool]] = field(default_factory=list)  # name, whether private
    committed: set[str] = field(default_factory=set)

    def answer(self, method: str, path: str, body: bytes) -> dict[str, Any] | None:
        """The answer's JSON, None for what this hub does not know."""
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
def local_hub(**settings: Any) -> Iterator[Hub]:
    """A hub that listens while the block runs."""
    hub = Hub(**settings)

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            hub.requests.append((self.command, path))
            hub.tokens.add(self.headers.get("Authorization"))
            found = hub.answer(self.command, path, body)
            text = json.dumps(found if found is not None else {"error": "unknown"}).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_HEAD = _answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
