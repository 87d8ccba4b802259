"""obstore's clients, made from the same environment variables that the fsspec file systems read."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from obstore.store import AzureStore, GCSStore, S3Store

from kdscale.store.aws import CONNECT_TIMEOUT, native_s3_options

Client = S3Store | GCSStore | AzureStore
# read_timeout in seconds -> client. It is how long the next bytes of an answer may take, and the
# time from a request's first byte to the first of its answer.
Maker = Callable[[float], Client]

_NO_RETRIES: Any = {"max_retries": 0}
_GCS_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"


def client_maker(url: str) -> Maker | None:
    """What makes clients of the bucket of `url`; None where fsspec has to do it."""
    protocol, _, rest = url.partition("://")
    find = _PROVIDERS.get(protocol)
    return find(rest.partition("/")[0]) if find else None


def _s3(bucket: str) -> Maker | None:
    options = native_s3_options(bucket)
    if options is None:
        return None
    return lambda read_timeout: S3Store(
        bucket,
        client_options=_http(read_timeout, options.get("endpoint")),
        retry_config=_NO_RETRIES,
        **options,
    )


def _gcs(bucket: str) -> Maker | None:
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return None
    try:
        import google.auth
        from google.auth.exceptions import DefaultCredentialsError
        from obstore.auth.google import GoogleCredentialProvider
    except ImportError:
        return None
    try:
        credentials, _ = google.auth.default(scopes=[_GCS_SCOPE])
    except DefaultCredentialsError:
        return None
    return lambda read_timeout: GCSStore(
        bucket,
        client_options=_http(read_timeout, os.environ.get("GOOGLE_BASE_URL")),
        retry_config=_NO_RETRIES,
        credential_provider=GoogleCredentialProvider(credentials),
    )


def _azure(container: str) -> Maker | None:
    """From container[@account.host], with the credentials that are whole in the environment."""
    name, _, host = container.partition("@")
    account = host.partition(".")[0] or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    options = _azure_credentials()
    if not account or options is None or os.environ.get("AZURE_STORAGE_CONNECTION_STRING"):
        return None
    return lambda read_timeout: AzureStore(
        name,
        account_name=account,
        client_options=_http(read_timeout, os.environ.get("AZURE_STORAGE_ENDPOINT")),
        retry_config=_NO_RETRIES,
        **options,
    )


def _azure_credentials() -> Any:
    """Arguments of AzureStore, in adlfs's order; None where it has to look further itself."""
    value = {
        argument: os.environ.get(f"AZURE_STORAGE_{argument.upper()}")
        for argument in ("account_key", "sas_token", "client_id", "client_secret", "tenant_id")
    }
    if value["account_key"]:
        return {"account_key": value["account_key"]}
    if value["sas_token"]:
        return {"sas_key": value["sas_token"]}
    service = {name: value[name] for name in ("client_id", "client_secret", "tenant_id")}
    return service if all(service.values()) else None


def _http(read_timeout: float, endpoint: str | None) -> Any:
    return {
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT),
        "read_timeout": timedelta(seconds=read_timeout),
        # 30 s by default, for the whole of a request however much it carries.
        "timeout": timedelta(days=1),
        "allow_http": bool(endpoint and endpoint.startswith("http://")),
    }


_PROVIDERS: dict[str, Callable[[str], Maker | None]] = {
    "s3": _s3,
    "s3a": _s3,
    "gs": _gcs,
    "gcs": _gcs,
    "abfs": _azure,
    "abfss": _azure,
    "az": _azure,
}
