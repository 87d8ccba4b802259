"""TCP proxies: one before an S3 server injects faults, one cuts its connections."""

import re
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, Self

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

# lose_answer: the request is served, and the connection cut before its answer.
# drop:        the connection is cut before the request is passed on.
# slow_down:   the proxy answers 503 SlowDown itself.
# half_body:   the answer's head and half its body arrive, then the connection is cut.
Fault = Literal["lose_answer", "drop", "slow_down", "half_body"]

_SLOW_DOWN_BODY = (
    b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
)
_SLOW_DOWN = b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
    len(_SLOW_DOWN_BODY),
    _SLOW_DOWN_BODY,
)


class FaultProxy:
    """Proxy from `endpoint` to `upstream` ("host:port"), one request a connection.

    `faults` are used up in order, one by each request whose method is `method`; None is no fault,
    and after the last all is passed on as it is. `requests` lists the methods seen, `targets` with
    their paths and queries. A context manager.
    """

    def __init__(self, upstream: str, method: str, faults: Sequence[Fault | None]) -> None:
        host, port = upstream.rsplit(":", 1)
        self.upstream = (host, int(port))
        self.method = method
        self.faults: list[Fault | None] = list(faults)
        self.requests: list[str] = []
        self.targets: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        _close(self._listener)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            client.settimeout(30)
            head, body = _read_head(client)
            if not head:
                return
            method, target = head.decode("latin-1").split(" ", 2)[:2]
            self.targets.append((method, target))
            fault = self._next_fault(method)
            if fault == "drop":
                return
            wanted = _content_length(head)
            if b"100-continue" in head.lower():
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            body += _read_exactly(client, wanted - len(body))
            if fault == "slow_down":
                client.sendall(_SLOW_DOWN)
                return
            request = _one_request(self._changed(head, body)) + body
            answer_head, answer_body = self._ask(request, method)
            if fault == "lose_answer":
                return
            if fault == "half_body":
                answer_body = answer_body[: len(answer_body) // 2]
            client.sendall(answer_head + answer_body)

    def _next_fault(self, method: str) -> Fault | None:
        with self._lock:
            self.requests.append(method)
            return self.faults.pop(0) if self.faults and method == self.method else None

    def _changed(self, head: bytes, body: bytes) -> bytes:
        """Return the head to pass on."""
        return head

    def _ask(self, request: bytes, method: str) -> tuple[bytes, bytes]:
        """Return the upstream's answer to one request: its head, and its body up to the end."""
        with socket.create_connection(self.upstream, timeout=30) as server:
            server.sendall(request)
            head, body = _read_head(server)
            while head.startswith(b"HTTP/1.1 100"):
                head, body = _read_head(server, body)
            while chunk := server.recv(1 << 16):
                body += chunk
        return head, body


class UnconditionalProxy(FaultProxy):
    """Proxy that hides conditional put: `If-None-Match` never reaches the S3 server.

    The client has signed that header with the rest, so the request is signed again, with the
    server's own credentials (`env` of S3Server).
    """

    def __init__(self, env: dict[str, str]) -> None:
        super().__init__(env["AWS_ENDPOINT_URL"].removeprefix("http://"), "PUT", [])
        keys = Credentials(env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"])
        self._signer = S3SigV4Auth(keys, "s3", env["AWS_REGION"])

    def _changed(self, head: bytes, body: bytes) -> bytes:
        first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        if headers.pop("if-none-match", None) is None:
            return head
        # Those that are not the signer's to sign, or that it writes anew.
        for name in ("authorization", "x-amz-date", "x-amz-content-sha256", "connection", "expect"):
            headers.pop(name, None)
        method, path, _ = first.split(" ")
        request = AWSRequest(method, f"http://{headers['host']}{path}", headers, body)
        self._signer.add_auth(request)
        signed = [f"{name}: {value}" for name, value in request.headers.items()]
        return "\r\n".join([first, *signed, "", ""]).encode("latin-1")


def _close(listener: socket.socket) -> None:
    """Close the socket and end the thread that waits in its `accept`."""
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def _read_head(connection: socket.socket, data: bytes = b"") -> tuple[bytes, bytes]:
    """Return the bytes up to the empty line and those after; an empty head at the end of stream."""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(1 << 16)
        if not chunk:
            return b"", b""
        data += chunk
    head, _, rest = data.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def _read_exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = connection.recv(count - len(data))
        if not chunk:
            raise ConnectionError(f"the client sent {len(data)} of {count} bytes")
        data += chunk
    return data


def _content_length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(found.group(1)) if found else 0


def _one_request(head: bytes) -> bytes:
    """Return the head with the request to close the connection after the answer."""
    kept = re.sub(rb"(?i)\r\nconnection:[^\r\n]*", b"", head)
    return kept.removesuffix(b"\r\n\r\n") + b"\r\nConnection: close\r\n\r\n"


class CuttableProxy:
    """TCP proxy before any server, whose connections can all be cut at a chosen moment.

    It passes bytes on as they come, so that web sockets work too. A context manager.
    """

    def __init__(self, upstream: str) -> None:
        host, port = upstream.rsplit(":", 1)
        self.upstream = (host, int(port))
        self.accepted = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        _close(self._listener)
        self.cut()

    def cut(self) -> None:
        """Reset every connection that is open."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.upstream)
            self.accepted += 1
            self._pairs.append((client, server))
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
