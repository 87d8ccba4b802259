"""An open fsspec file system, one for each process.

File systems hold sockets and an event-loop thread, which survive neither a fork nor a pickle. So a
store carries only what is needed to open one, and each process opens its own at the first call.
"""

import os
from dataclasses import dataclass, field
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

from kdscale.errors import KdscaleError
from kdscale.store.redact import redact

_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "azure",
    "abfss": "azure",
    "az": "azure",
}
_CONNECT_TIMEOUT = 5.0
_SLOWEST_UPLOAD = 2**20  # bytes a second


@dataclass(frozen=True)
class Connection:
    """What it takes to open the file system of `url`; `read_timeout` is in seconds of silence."""

    url: str
    read_timeout: float = 60.0
    # By process id. A forked child leaves its parent's entry alone: closing it there would cut the
    # connections that both share.
    _opened: dict[int, Any] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> tuple[type["Connection"], tuple[str, float]]:
        return Connection, (self.url, self.read_timeout)

    def ask(self, method: str, *arguments: Any, sends: int | None = None, **options: Any) -> Any:
        """The answer of the file system's `method`. KdscaleError where its package is missing.

        A call that `sends` so many bytes gets a time limit and then raises TimeoutError: aiohttp
        times a server's silence only once the body is out, and would wait for ever until then.
        """
        filesystem = self._filesystem()
        if sends is None or not isinstance(filesystem, AsyncFileSystem):
            return getattr(filesystem, method)(*arguments, **options)
        limit = self.read_timeout + sends / _SLOWEST_UPLOAD
        coroutine = getattr(filesystem, f"_{method}")
        return sync(filesystem.loop, coroutine, *arguments, timeout=limit, **options)

    def path(self, url: str) -> str:
        """The file system's own name of `url`: without protocol, user and host as it needs it."""
        path: str = self._filesystem()._strip_protocol(url)
        return path

    def _filesystem(self) -> Any:
        """The fsspec file system of this process."""
        found = self._opened.get(os.getpid())
        # Threads that meet here first may each open one; the first stored stays.
        return found or self._opened.setdefault(os.getpid(), self._open())

    def _open(self) -> Any:
        protocol = self.url.partition("://")[0]
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if protocol in ("s3", "s3a"):
            options |= s3_options(self.read_timeout)
        try:
            filesystem, _ = fsspec.core.url_to_fs(self.url, **options)
        except ImportError as error:
            extra = _EXTRAS.get(protocol)
            raise KdscaleError(
                f"The store {redact(self.url)} needs a package that is not installed: {error}.",
                f"pip install 'kdscale[{extra}]'" if extra else "Install the package named.",
            ) from error
        if protocol in ("s3", "s3a"):
            filesystem.retries = 1  # An attribute of s3fs, not an argument; our policy is above it.
        return filesystem


def s3_options(read_timeout: float) -> dict[str, Any]:
    """Arguments of s3fs. Endpoint and credentials are botocore's to find in the environment."""
    config: dict[str, Any] = {
        "connect_timeout": _CONNECT_TIMEOUT,
        "read_timeout": read_timeout,
        "max_pool_connections": 32,
        "retries": {"total_max_attempts": 1},
    }
    if endpoint():
        # Since boto3 1.36 checksums go with every request by default; many S3 clones refuse them.
        config |= {
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
    # botocore itself reads only the older AWS_DEFAULT_REGION.
    region = os.environ.get("AWS_REGION")
    return {"config_kwargs": config, "client_kwargs": {"region_name": region} if region else {}}


def endpoint() -> str | None:
    """The S3 endpoint that the environment names; None for Amazon's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
