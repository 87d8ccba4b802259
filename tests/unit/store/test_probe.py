"""The probe tells stores whose conditional put works from those whose does not."""

import uuid
from pathlib import Path

import pytest

from kdscale.store import Verdict, conditional_put, open_store, probe
from kdscale.store.local import LocalStore
from tests.proxy import UnconditionalProxy
from tests.s3 import S3Server


def test_a_folder_passes_and_stays_as_it_was(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert probe(store, writers=8, rounds=3) == Verdict(
        True, 8, 3, (1, 1, 1), "one winner of 8 in each of 3 rounds"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.s3
@pytest.mark.parametrize("backend", ["fsspec", "obstore"])
def test_a_server_with_conditional_put_passes(
    s3_env: S3Server, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDSCALE_STORE", backend)
    store = open_store(f"{s3_env.url}/{uuid.uuid4().hex}")
    verdict = probe(store, writers=6, rounds=2)
    assert (verdict.conditional_put, verdict.winners) == (True, (1, 1))
    assert store.list() == []


@pytest.mark.s3
@pytest.mark.parametrize("backend", ["fsspec", "obstore"])
def test_a_server_without_conditional_put_fails(
    s3_env: S3Server, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDSCALE_STORE", backend)
    with UnconditionalProxy(s3_env.env) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = open_store(f"{s3_env.url}/{uuid.uuid4().hex}")
        verdict = probe(store, writers=6, rounds=2)
        assert verdict.conditional_put is False
        assert len(verdict.winners) == 2
        assert max(verdict.winners) > 1
        assert "of 6 simultaneous writers won" in verdict.detail
        assert store.list() == []
        assert conditional_put(store) is False
    # What is kept is believed: the server behind the proxy would pass.
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_env.env["AWS_ENDPOINT_URL"])
    behind = open_store(store.url)
    assert Verdict.read(behind.get("store-probe.json")).conditional_put is False
    assert conditional_put(behind) is False


class LastWins(LocalStore):
    """A folder that overwrites and, as a server would, tells every writer that all is well."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True


class LooksFirst(LocalStore):
    """A folder that decides between writers but takes a later one too."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if data == b"later":
            self.put(key, data)
            return True
        return super().put_if_absent(key, data)


class LosesBytes(LocalStore):
    """A folder that tells one writer that it won and keeps the bytes of another."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        won = super().put_if_absent(key, data)
        if won:
            self.put(key, b"somebody else's")
        return won


@pytest.mark.parametrize(
    ("kind", "winners", "detail"),
    [
        (LastWins, (4, 4), "round 0: 4 of 4 simultaneous writers won; round 1: 4 of 4"),
        (LooksFirst, (1, 1), "round 0: a later create of the same key went through"),
        (LosesBytes, (1, 1), 'but b"somebody else\'s" is stored'),
    ],
)
def test_each_way_to_fail(
    kind: type[LocalStore], winners: tuple[int, ...], detail: str, tmp_path: Path
) -> None:
    verdict = probe(kind(str(tmp_path)), writers=4, rounds=2)
    assert verdict.conditional_put is False
    assert verdict.winners == winners
    assert detail in verdict.detail


def test_a_protocol_without_conditional_put_fails_untouched() -> None:
    # No server stands there: a request would fail.
    verdict = probe(open_store("ftp://127.0.0.1:1/folder"))
    assert verdict == Verdict(False, 16, 0, (), "the protocol has no conditional put")


def test_the_verdict_is_kept_and_read_again(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert conditional_put(store) is True
    assert store.list() == ["store-probe.json"]
    kept = Verdict.read(store.get("store-probe.json"))
    assert (kept.writers, kept.rounds, kept.winners) == (16, 4, (1, 1, 1, 1))
    assert Verdict.read(bytes(kept)) == kept
    store.put("store-probe.json", bytes(Verdict(False, 16, 4, (2, 1, 1, 1), "told so")))
    assert conditional_put(store) is False


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe", b'{"conditional_put": "yes"}'),
        bytes(Verdict(True, 1, 1, (1,), "")).replace(b"true", b'"no"'),
    ],
)
def test_an_unreadable_verdict_is_probed_again(tmp_path: Path, text: bytes) -> None:
    store = open_store(str(tmp_path))
    store.put("store-probe.json", text)
    assert conditional_put(store) is True
    assert Verdict.read(store.get("store-probe.json")).conditional_put is True
