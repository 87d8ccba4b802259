"""Compiled layers give the losses of layers that are not, and keep the names of parameters."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch._inductor.utils import fresh_cache

from kdscale.distributed.rank import current_rank
from kdscale.errors import KdscaleError
from kdscale.models import compilation
from kdscale.models.compilation import check_compiler, compile_layers
from kdscale.store import open_store
from kdscale.teacher.train import TeacherJob
from tests.architectures import tiny_model
from tests.ranks import run_ranks
from tests.unit.train.overfitting import lines, make_prepared, session

STAGES = (0, 2)
SHORT: dict[str, Any] = {"steps": 4, "early_stopping": None, "keep": "last"}

Trained = tuple[dict[int, dict[str, float]], dict[str, np.ndarray], int]
"""Logged lines by step, published weights, and compiled frames."""


def trained(folder: str, stage: int, is_compiled: bool) -> Trained | None:
    """Train as the teacher stage does; rank 0 returns what came of it."""
    job = session(
        Path(folder) / f"{stage}-{is_compiled}", zero={"stage": stage}, compile=is_compiled, **SHORT
    )
    torch._dynamo.reset()  # what was compiled before would fit
    counters.clear()
    TeacherJob(job, open_store(f"{folder}/store")).run()
    if current_rank().rank:
        return None
    weights = load_file(Path(job.folder.url.removeprefix("file://")) / "model.safetensors")
    return lines(job), weights, counters["frames"]["ok"]


def all_of_it(folder: str) -> dict[tuple[int, bool], Trained | None]:
    """One group of ranks: starting processes is the slow part."""
    # Inductor takes half a minute for each graph; what stands before it is the same.
    with mock.patch.object(compilation, "_BACKEND", "aot_eager"):
        return {
            (stage, is_compiled): trained(folder, stage, is_compiled)
            for stage in STAGES
            for is_compiled in (False, True)
        }


def assert_equal(compiled: Trained | None, eager: Trained | None) -> None:
    assert compiled is not None
    assert eager is not None
    for step, line in eager[0].items():
        for name in ("train/loss", "train/gradient_norm", "validation/loss"):
            if name in line:
                assert compiled[0][step][name] == pytest.approx(line[name], rel=1e-4)
    assert list(compiled[1]) == list(eager[1])
    for name, weight in eager[1].items():
        np.testing.assert_allclose(compiled[1][name], weight, atol=1e-4, rtol=1e-3)
    assert compiled[2] > 0
    assert eager[2] == 0


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, bool], Trained | None]:
    folder = tmp_path_factory.mktemp("compiled")
    make_prepared(folder)
    result: dict[tuple[int, bool], Trained | None] = run_ranks(all_of_it, 2, str(folder))[0]
    return result


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("stage", STAGES)
def test_a_compiled_training_has_the_losses_of_the_eager_one(
    found: dict[tuple[int, bool], Trained | None], stage: int
) -> None:
    assert_equal(found[stage, True], found[stage, False])


def test_one_layer_is_compiled_for_all() -> None:
    model = tiny_model("llama")
    names = [name for name, _ in model.named_parameters()]
    ids = torch.arange(16)[None]
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
    counters.clear()
    with mock.patch.object(compilation, "_BACKEND", "aot_eager"):
        compile_layers(model)
        with torch.no_grad():
            found = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, expected)
    assert [name for name, _ in model.named_parameters()] == names
    assert model.config.num_hidden_layers == 4
    assert counters["frames"]["ok"] == 1


def test_a_compiler_that_fails_is_named() -> None:
    with (
        mock.patch.object(compilation, "_BACKEND", "no-such-backend"),
        pytest.raises(KdscaleError, match=r"torch\.compile does not work on this cpu: .*no-such"),
    ):
        check_compiler(torch.device("cpu"))


@pytest.mark.slow
def test_inductor_compiles_a_training_and_needs_a_compiler(tmp_path: Path) -> None:
    make_prepared(tmp_path)
    eager, compiled = (trained(str(tmp_path), 0, is_compiled) for is_compiled in (False, True))
    assert_equal(compiled, eager)
    torch._dynamo.reset()  # the trial has been compiled before
    missing = inductor.patch({"cpp.cxx": (None, "no-such-compiler")})
    with fresh_cache(), missing, pytest.raises(KdscaleError, match="no-such-compiler"):
        check_compiler(torch.device("cpu"))
