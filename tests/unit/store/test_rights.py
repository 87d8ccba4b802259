"""docs/security.md asks for the rights that the store's requests need: no fewer and no more."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kdscale.store import Store, obstore_backend, open_store
from tests.proxy import FaultProxy
from tests.s3 import S3Server

pytestmark = pytest.mark.s3

DOCS = Path(__file__).parents[3] / "docs" / "security.md"


def policies() -> list[dict[str, Any]]:
    text = DOCS.read_text(encoding="utf-8")
    blocks = re.findall(r"^```json\n(.*?)^```", text, re.M | re.S)
    return [json.loads(block) for block in blocks]


def actions(policy: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for statement in policy["Statement"]:
        action = statement["Action"]
        found |= {action} if isinstance(action, str) else set(action)
    return found


def needed(method: str, target: str) -> str:
    """Return the right that a request needs, by Amazon's documentation of S3's operations."""
    path, _, query = target.partition("?")
    on_bucket = path.strip("/").count("/") == 0
    if method == "GET" and on_bucket:
        assert "list-type=2" in query, target
        return "s3:ListBucket"
    if method in ("GET", "HEAD"):
        return "s3:GetObject"
    if method == "DELETE":
        return "s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject"
    if method == "POST" and "delete" in query:
        return "s3:DeleteObject"
    assert method in ("PUT", "POST"), method
    return "s3:PutObject"


def use(store: Store, folder: Path) -> None:
    """Every call of the contract."""
    store.check()
    store.put("a/b", b"data")
    assert not store.put_if_absent("a/b", b"other")
    assert store.get("a/b") == b"data"
    assert store.get_ranges("a/b", [(0, 1), (2, 2)]) == [b"d", b"ta"]
    assert store.exists("a/b")
    assert not store.exists("a/c")
    assert store.list("a/") == ["a/b"]
    (folder / "large").write_bytes(bytes(11 << 20))
    store.put_file("large", folder / "large")
    store.get_file("large", folder / "back")
    for key in store.list():
        store.delete(key)


@pytest.mark.parametrize("client", ["", "fsspec"], ids=["obstore", "fsspec"])
def test_a_run_may_do_what_its_store_does(
    client: str, s3_env: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDSCALE_STORE", client)
    monkeypatch.setattr(obstore_backend, "_MULTIPART", 6 << 20)
    monkeypatch.setattr(obstore_backend, "_PART", 5 << 20)
    upstream = s3_env.env["AWS_ENDPOINT_URL"].removeprefix("http://")
    with FaultProxy(upstream, "PUT", []) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        use(open_store(f"{s3_env.url}/rights-{client or 'obstore'}"), tmp_path)
    used = {needed(method, target) for method, target in proxy.targets}
    allowed = actions(policies()[0])
    assert used <= allowed
    # An upload is taken back when a part of it fails for good.
    assert allowed - used == {"s3:AbortMultipartUpload"}
    if not client:
        assert any("partNumber" in target for _, target in proxy.targets)


def test_a_reader_only_reads() -> None:
    run, reader, _ = policies()
    assert actions(reader) == {"s3:GetObject", "s3:ListBucket"} < actions(run)


@pytest.mark.parametrize("number", [0, 1])
def test_rights_end_at_a_prefix(number: int) -> None:
    for statement in policies()[number]["Statement"]:
        on_bucket = statement["Action"] == "s3:ListBucket"
        assert statement["Resource"].endswith(":BUCKET") == on_bucket
        assert ("s3:prefix" in json.dumps(statement)) == on_bucket
