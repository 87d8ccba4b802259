"""A checkpoint of another version's order of rows is gone on from, and the user is told."""

import json
from pathlib import Path

import pytest

from kdscale.config.training import TrainingConfig
from kdscale.distributed.rank import current_rank
from kdscale.store import open_store
from kdscale.train.checkpoint import load_checkpoint, save_checkpoint
from kdscale.train.loop import Progress


class Stateless:
    """A back end that has nothing to keep."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


@pytest.mark.parametrize("version", [None, 1, 2])
def test_who_resumes_in_another_order_is_told(
    tmp_path: Path, version: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    store, worker = open_store(str(tmp_path)), current_rank()
    training = TrainingConfig(steps=10, global_batch_size=2)
    backend = Stateless()
    save_checkpoint(store, Progress(7, 70), backend, worker, training)  # type: ignore[arg-type]  # of a back end's, what is used
    (key,) = [key for key in store.list() if key.endswith("complete.json")]
    marker = json.loads(store.get(key))
    assert marker.pop("order") == 2
    if version is not None:
        marker["order"] = version
    (tmp_path / key).write_text(json.dumps(marker))
    found = load_checkpoint(store, backend, worker, training)  # type: ignore[arg-type]  # as above
    assert found == Progress(7, 70)
    assert ("orders sequences differently" in capsys.readouterr().out) == (version != 2)
