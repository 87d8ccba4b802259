"""A sharded teacher on two ranks fills the cache with transformers' logits of each document."""

from functools import partial
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from kdscale.teacher.capture import CaptureJob
from tests.architectures import tiny_model
from tests.ranks import run_ranks
from tests.unit.teacher.test_capture import Subject, differing_bytes, make_subject, worst_target

# Dropout in the config; sliding windows and chunks; masks and positions made in other ways.
KINDS = (
    *("gpt2", "opt", "gemma2", "gemma3_text", "mistral", "gpt_oss", "phi3", "olmo3"),
    *("llama4_text", "qwen3_moe"),
)


def make_model(kind: str, vocab_size: int) -> PreTrainedModel:
    return tiny_model(kind, vocab_size=vocab_size + 3)


def capture_all(jobs: list[CaptureJob]) -> None:
    """One capture after the other: starting processes is the slow part."""
    for job in jobs:
        job.run()


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    """Capture by two ranks at stage 3, sequences longer than every window."""
    made = {
        kind: make_subject(
            tmp_path_factory.mktemp(kind), partial(make_model, kind), length=64, count=8, stage=3
        )
        for kind in KINDS
    }
    run_ranks(capture_all, 2, [subject.job for subject in made.values()])
    return made


@pytest.mark.dist
@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_holds_what_the_teacher_says_of_a_document_alone(
    captured: dict[str, Subject], kind: str
) -> None:
    assert worst_target(captured[kind]) < 1e-2


@pytest.mark.dist
@pytest.mark.parametrize("kind", KINDS)
def test_its_bytes_are_those_of_the_whole_teachers_own_logits(
    captured: dict[str, Subject], kind: str
) -> None:
    assert differing_bytes(captured[kind]) == 0


@pytest.mark.dist
@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text"])
def test_one_whole_teacher_fills_the_same_cache(
    captured: dict[str, Subject], kind: str, tmp_path: Path
) -> None:
    alone = make_subject(tmp_path, partial(make_model, kind), length=64, count=8)
    alone.run()
    assert worst_target(alone) < 1e-2
