"""Bytes and requests of a cache, against ones that were really written."""

import json
from pathlib import Path

import pytest

from kdscale.cache.codecs import make_codec
from kdscale.config.cache import FullCodec, SampleCodec, TopkCodec, VaroptCodec
from kdscale.plan.cache_size import cache_bytes, compared, passes, requests, stored_payload
from tests.unit.plan.settings import setting
from tests.unit.plan.test_timing import MEASURED

FIDELITY = Path(__file__).parents[3] / "benchmarks" / "results" / "codec_fidelity.json"
CODECS = {"varopt": VaroptCodec, "sample": SampleCodec, "topk": TopkCodec}


def rows_measured() -> list[tuple[str, float]]:
    rows = json.loads(FIDELITY.read_text())["rows"]
    return [(r["name"], r["bytes_at_rest"]) for r in rows if r["family"] in CODECS]


@pytest.mark.parametrize(("name", "stored"), rows_measured())
def test_payload_at_rest_is_near_what_was_measured(name: str, stored: float) -> None:
    kind, *fields = name.split()
    values = {key: float(value) for key, value in (field.split("=") for field in fields)}
    codec = CODECS[kind].model_validate(values)
    assert stored_payload(codec, 49152) == pytest.approx(stored, rel=0.10)


def test_decoded_bytes_are_the_codecs_own() -> None:
    found = setting()
    for codec in (VaroptCodec(), SampleCodec(draws=9), TopkCodec(k=7), FullCodec()):
        own = make_codec(codec, 512).bytes_per_position
        assert cache_bytes(found.config.cache, codec, found).in_memory_position == own


def test_a_measured_payload_counts_for_its_own_codec() -> None:
    found = setting("cpu")
    own = found.config.cache.codec
    known = MEASURED.model_copy(update={"codec": own, "stored_payload": 99.0})
    measured = found.with_measured(known)
    config = found.config.cache
    more = cache_bytes(config, own, measured).stored - cache_bytes(config, own, found).stored
    targets = found.tokens.captured * 0.99
    assert more == pytest.approx(targets * (99 - stored_payload(own, 512)), abs=2)
    other = TopkCodec(k=7)
    assert cache_bytes(config, other, measured) == cache_bytes(config, other, found)


@pytest.mark.parametrize(("vocab_size", "used"), [(2048, 24), (49_152, 34), (128_256, 36)])
def test_only_the_bits_that_ids_need_are_stored(vocab_size: int, used: int) -> None:
    """Two head values of a byte and 16 ids of 11, 16 and 17 bits."""
    assert stored_payload(VaroptCodec(), vocab_size) == pytest.approx(0.58 * used)
    assert stored_payload(VaroptCodec(), vocab_size, pack=False) == pytest.approx(0.97 * used)


def test_what_is_not_packed_stays_as_it_is() -> None:
    packed = stored_payload(VaroptCodec(), 49152)
    assert stored_payload(VaroptCodec(), 49152, pack=False) == pytest.approx(0.97 * 34)
    assert packed < 20


def test_the_configs_codec_comes_first_and_codecs_that_cannot_be_are_left_out() -> None:
    found = setting(cache__codec={"kind": "topk", "k": 9})
    assert compared(found)[0].codec == TopkCodec(k=9)
    tiny = setting(data__tokenizer={"kind": "train", "vocab_size": 300})
    assert all(getattr(each.codec, "k", 1) <= 300 for each in compared(tiny))


def test_requests_of_a_capture_and_a_student() -> None:
    # 640 rows: 40 shards of 16 in 80 chunks of 8; 160 rows are met, a quarter of a pass.
    found = setting("cpu", distill__workers={"count": 2}, distill__baseline=False)
    assert passes(found) == 0.25
    asked = requests(found)
    assert (asked.puts, asked.heads) == (3 * 40 + 4, 4 * 40)
    assert asked.lists == 2
    # Every commit for the manifest, every index for both ranks, a quarter of the chunks.
    assert asked.gets == 40 + 2 * 40 + 20


def test_a_disk_that_holds_the_cache_reads_it_once() -> None:
    many = {"steps": 400, "global_batch_size": 8, "micro_batch_size": 4}
    kept = requests(setting("cpu", distill__training=many))
    fetched = requests(setting("cpu", distill__training=many, distill__cache_disk_gib=0))
    size = compared(setting("cpu"))[0].stored
    assert kept.read_bytes == size
    assert fetched.read_bytes == 2 * 5 * size  # student and baseline, five passes each


def test_a_reused_cache_is_not_written() -> None:
    asked = requests(setting(cache__reuse="s3://bucket/cache"))
    assert (asked.puts, asked.heads, asked.written_bytes) == (0, 0, 0)
