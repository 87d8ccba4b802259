"""Endpoint and credentials of S3: from the environment, and from botocore for the rest.

Both clients of S3 take it from here, so that a run behaves the same through either.
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from kdscale.errors import KdscaleError
from kdscale.store.redact import redact

CONNECT_TIMEOUT = 5.0  # seconds
# botocore renews what expires well before it does, so it is asked again this often.
_CREDENTIALS_LIVE = timedelta(minutes=5)
# Settings of a profile that change where requests go and that only botocore understands.
_ONLY_BOTOCORE = {"s3", "services", "endpoint_url"}


_ENDPOINT_NAMES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def endpoint() -> str | None:
    """Return the S3 endpoint that the environment names; None for Amazon's own."""
    return next(filter(None, map(os.environ.get, _ENDPOINT_NAMES)), None)


def check_endpoint() -> None:
    """KdscaleError where the endpoint is no URL: obstore crashes on it, in a page of Rust."""
    value = endpoint()
    if value is None:
        return
    name = next(filter(os.environ.get, _ENDPOINT_NAMES))
    bare = value.strip()
    try:
        parts = urlsplit(bare)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url or bare != value or not bare.isascii():
        example = f"http://{bare.rpartition('/')[2]}" if "://" not in bare else "http://HOST:PORT"
        raise KdscaleError(
            f"{name} is {redact(value)!r}, which is no URL of a server.",
            f"Write it with its protocol, host and port, such as {example}.",
        )


def s3fs_options(read_timeout: float) -> dict[str, Any]:
    """Arguments of s3fs. Endpoint and credentials are botocore's to find in the environment."""
    config: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT,
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


@dataclass(frozen=True, repr=False)
class Credentials:
    """Gives obstore the credentials that botocore found, whatever kind they are."""

    found: Any

    def __call__(self) -> dict[str, Any]:
        """Return what obstore expects of a credential provider."""
        frozen = self.found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_LIVE,
        }


def obstore_s3_options(bucket: str) -> dict[str, Any] | None:
    """Arguments of obstore's S3Store; None where only s3fs can do what the settings ask for.

    Environment variables, profiles, SSO, roles of the machine: botocore looks them all up, as it
    does for s3fs. Without an endpoint the region must be known, because obstore does not follow
    Amazon to a bucket's own region.
    """
    try:
        from botocore.session import get_session
    except ImportError:
        return None
    session = get_session()
    if not _ONLY_BOTOCORE.isdisjoint(session.get_scoped_config()):
        return None
    region = os.environ.get("AWS_REGION") or session.get_config_variable("region")
    found = session.get_credentials()
    if found is None or not (region or endpoint()):
        return None
    credentials = Credentials(found)
    credentials()  # What cannot be had (an expired login) fails here, in botocore's own words.
    options: dict[str, Any] = {
        "credential_provider": credentials,
        "region": region or "us-east-1",
        # Names with dots do not match Amazon's certificate.
        "virtual_hosted_style_request": endpoint() is None and "." not in bucket,
        # Only one key is deleted at a time, and many S3 clones lack the bulk request.
        "disable_bulk_delete": True,
    }
    if endpoint():
        options["endpoint"] = endpoint()
    return options
