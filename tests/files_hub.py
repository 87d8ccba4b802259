"""A hub that hands out the files of one folder, ranges too, and counts what it sent."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

COMMIT = "0" * 40


@dataclass
class FilesHub:
    """`endpoint` is where it listens; `sent` the bytes of each file that went out."""

    endpoint: str = ""
    sent: dict[str, int] = field(default_factory=dict)


def use_hub(patch: pytest.MonkeyPatch, hub: FilesHub, cache: Path) -> None:
    """Let this process's client of the hub ask this one, and keep what it gets in `cache`."""
    constants = "huggingface_hub.constants"
    patch.setattr(f"{constants}.ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))


@contextmanager
def files_hub(name: str, folder: Path) -> Iterator[FilesHub]:
    """The model `name` of a hub is `folder`, while the block runs."""
    hub = FilesHub()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            path = self.path.partition("?")[0].strip("/")
            prefix, _, file = path.partition("/resolve/")
            asked = folder / file.partition("/")[2]
            if prefix != name or not asked.is_file():
                known = prefix.removeprefix("api/models/").startswith(name)
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = asked.read_bytes()
            start, end = 0, len(data)
            if wanted := self.headers.get("Range"):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, end = int(first), min(int(last) + 1, len(data))
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(end - start))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{asked.stat().st_mtime_ns:x}"')
            self.end_headers()
            if self.command == "GET":
                # Before it is sent: who has it may look at once.
                hub.sent[asked.name] = hub.sent.get(asked.name, 0) + end - start
                self.wfile.write(data[start:end])

        do_GET = do_HEAD = _answer  # noqa: N815

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
