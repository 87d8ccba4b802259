"""Speed of a loop and of a DistillationTrainer, over that of kdscale's own training.

    python benchmarks/api.py [--quick] [--assets FOLDER] [--turns 5]

The student has three layers of SmolLM2-135M's shape over its 49,152 ids. Three variants train it
from one cache on the local disk, a few steps each in turn, with two threads, the same sequences,
batch and learning rate, AdamW and clipping:

    run      the training loop of `kdscale run`, as the distill stage calls it on a worker
    loop     `Cache.loader`, `kdscale.model_inputs` and `kdscale.distillation_loss`, as in
             docs/python.md
    trainer  `kdscale.integrations.transformers.DistillationTrainer`

Each has a thread in which it waits for its turns, so that what a training does once is not timed.
All log every tenth step. Records are made up (benchmarks/peers/synthetic.py), as their content does
not matter to the time. Ratios are of neighbouring turns, and their median is the value. The last
line is one JSON object, also kept in results/api.json; --quick takes one step a turn and keeps
nothing.
"""

import statistics
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import typer
from transformers import TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).parents[1]))

import kdscale
from benchmarks.common import (
    ASSETS,
    TEACHER,
    Assets,
    Quick,
    Turns,
    goal,
    ratios,
    report,
    take_turns,
)
from benchmarks.peers import kdscale_cache, synthetic
from benchmarks.step_cost import BATCH_ROWS, LAYERS, RATE, ROW_LENGTH, ROWS, THREADS, make_config
from kdscale.cache.read.reader import CacheReader
from kdscale.distill.curriculum import make_sampler
from kdscale.distill.objective import DistillationLoss
from kdscale.distill.steps import read_steps
from kdscale.distributed.rank import Rank
from kdscale.integrations.transformers import DistillationTrainer
from kdscale.models.head import ModelWithHead
from kdscale.models.load import build_model, load_config_of
from kdscale.store import open_store
from kdscale.train.backends.base import make_backend
from kdscale.train.loop import Callbacks, Progress, train

WEIGHT, LOG_EVERY = 0.5, 10
GOALS = {"loop": ">=0.95", "trainer": ">=0.9"}


def main(quick: Quick = False, assets: Assets = ASSETS, turns: Turns = 5) -> None:
    """Measure, print and keep."""
    torch.set_num_threads(THREADS)
    turns, steps = (1, 1) if quick else (turns, 4)
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch) / "cache"
        rows = BATCH_ROWS * 16 if quick else ROWS
        kdscale_cache.write(synthetic.make_records(rows, ROW_LENGTH), cache)
        setting = Setting(str(cache), assets / TEACHER, steps * (turns + 1), scratch)
        ways = {"run": setting.run, "loop": setting.loop, "trainer": setting.trainer}
        variants = {name: Training(way, steps) for name, way in ways.items()}
        found = take_turns({name: each.turn for name, each in variants.items()}, turns)
        for each in variants.values():
            each.join()
    rows_found, tokens = [], BATCH_ROWS * ROW_LENGTH * steps
    for name in variants:
        speeds = [tokens / turn[name] for turn in found]
        row = {"arm": name, "tokens_a_second": statistics.median(speeds)}
        rows_found.append(row | {"least": min(speeds), "most": max(speeds)})
    # A speed over another is the other time over the one.
    over_run = {f"{name}_over_run": ratios(found, "run", name) for name in GOALS}
    report(
        "api",
        rows_found,
        [
            goal(f"{name}_over_run", statistics.median(over_run[f"{name}_over_run"]), bound)
            for name, bound in GOALS.items()
        ],
        keep=not quick,
        tokens_a_step=BATCH_ROWS * ROW_LENGTH,
        spread=over_run,
    )


class Training:
    """A training in a thread of its own, which waits between its turns."""

    def __init__(self, way: Callable[[Callable[[], None]], None], steps: int) -> None:
        """`way` trains, and calls what it is given after every step."""
        self._way = way
        self._steps_a_turn = steps
        self._done = 0
        self._go, self._finished = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._train, daemon=True)

    def turn(self) -> None:
        """Take the steps of a turn."""
        if not self._thread.is_alive():
            self._thread.start()
        self._go.release()
        self._finished.acquire()
        if self._error is not None:
            raise self._error

    def join(self) -> None:
        """Let the training end."""
        self._go.release()
        self._thread.join()

    def _train(self) -> None:
        self._go.acquire()
        try:
            self._way(self._after_step)
        except BaseException as error:
            self._error = error
            self._finished.release()

    def _after_step(self) -> None:
        self._done += 1
        if self._done % self._steps_a_turn == 0:
            self._finished.release()
            self._go.acquire()


class Setting:
    """The three ways to train, each with a student that starts from the same weights."""

    def __init__(self, cache: str, teacher: Path, steps: int, scratch: str) -> None:
        self._cache, self._steps, self._scratch = cache, steps, scratch
        self._shape = load_config_of(teacher)
        self._shape.num_hidden_layers = LAYERS

    def _student(self) -> Any:
        return build_model(self._shape, 0)

    def run(self, after_step: Callable[[], None]) -> None:
        """Train as the distill stage does."""
        config = make_config(self._cache, self._steps)
        distill, worker = config.distill, Rank(0, 1, torch.device("cpu"))
        reader = CacheReader(open_store(self._cache))
        sampler = make_sampler(distill, reader, worker, synthetic.VOCAB, seed=0)
        wrap = partial(ModelWithHead, vocab_size=synthetic.VOCAB)
        train(
            backend=make_backend(self._student, wrap, distill.training, 1, worker),
            training=distill.training,
            worker=worker,
            start=Progress(),
            steps=read_steps(distill, worker, reader, sampler, range(self._steps)),
            compute_loss=DistillationLoss(config, reader.codec, None),
            callbacks=Callbacks(
                validate=lambda: {"loss": 0.0}, progress=lambda done, tokens: after_step()
            ),
        )

    def loop(self, after_step: Callable[[], None]) -> None:
        """Train as docs/python.md does."""
        cache = kdscale.open_cache(self._cache)
        model = self._student().train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
        loader = cache.loader(BATCH_ROWS, seed=0, endless=True)
        for step, batch in enumerate(islice(loader, self._steps)):
            hidden = model.model(**kdscale.model_inputs(model, batch)).last_hidden_state
            loss = kdscale.distillation_loss(hidden, model.lm_head, batch, kd_weight=WEIGHT)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            if step % LOG_EVERY == 0:
                loss.item()
            after_step()

    def trainer(self, after_step: Callable[[], None]) -> None:
        """Train with a DistillationTrainer."""

        class Pause(TrainerCallback):
            """Waiter after every step."""

            def on_step_end(self, *_: Any, **__: Any) -> None:
                """Wait for the next turn."""
                after_step()

        args = TrainingArguments(
            f"{self._scratch}/trainer",
            max_steps=self._steps,
            per_device_train_batch_size=BATCH_ROWS,
            learning_rate=RATE,
            logging_steps=LOG_EVERY,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=0,
        )
        cache = kdscale.open_cache(self._cache)
        trainer = DistillationTrainer(
            self._student(), args, cache, kd_weight=WEIGHT, callbacks=[Pause()]
        )
        trainer.train()


if __name__ == "__main__":
    typer.run(main)
