"""`transformers.Trainer` that distils: a cache takes the place of its training data."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, get_last_checkpoint

from kdscale.api.cache import Cache
from kdscale.api.loss import check_loss
from kdscale.config.curriculum import CurriculumConfig, Schedule
from kdscale.config.load import parse_settings
from kdscale.curriculum.schedule import value_at
from kdscale.distill.batches import Batch
from kdscale.errors import KdscaleError
from kdscale.integrations.arguments import check_arguments
from kdscale.integrations.batches import EpochNumbers, EvaluationBatches, NumberedBatches
from kdscale.integrations.inside import Call, Sums, losses, take_functions
from kdscale.models.head import ModelWithHead
from kdscale.train.label_loss import known_cross_entropy
from kdscale.types import Rows

STREAM_KEY = "kdscale.json"
"""Of a checkpoint: where in which order of sequences the training is."""

EvaluationData = Cache | Rows | Mapping[str, Cache | Rows]


class DistillationTrainer(Trainer):
    """Trainer of a student from a cache.

        cache = kdscale.open_cache("runs/first")
        args = TrainingArguments("student", max_steps=1000, per_device_train_batch_size=16)
        trainer = DistillationTrainer(model, args, cache, eval_dataset=cache.validation())
        trainer.train()

    Everything that a `Trainer` does around the loss stays its own: optimiser, schedule, mixed
    precision, gradient accumulation, DDP under torchrun, DeepSpeed by `args.deepspeed`, callbacks,
    logging, checkpoints. The loss is that of `kdscale run`, over all targets of a step's
    micro-batches and ranks alike, whatever `args.average_tokens_across_devices` says. Logged beside
    it are `ce_loss` and `kl`, or `divergence`, in nats a target.

    Batches are those of `kdscale run` with the seed `args.data_seed`, or else `args.seed`, step by
    step. A checkpoint continues with the batch behind its last one, at any number of ranks that
    gives the same sequences a step. Epochs follow each other without a break: one is the fewest
    steps that take all sequences.
    """

    # The loss of a micro-batch is its share of the whole step's.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: torch.nn.Module,
        args: TrainingArguments,
        cache: Cache,
        *,
        eval_dataset: EvaluationData | None = None,
        kd_weight: float | Mapping[str, Any] = 1.0,
        divergence: str | Mapping[str, Any] = "forward_kl",
        curriculum: Mapping[str, Any] | CurriculumConfig | None = None,
        processing_class: Any | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: Any | None = None,
    ) -> None:
        """Take a student, a transformers model or one that peft has wrapped, and its cache.

        Args:
            model: Student, of the cache's task and tokenizer.
            args: Arguments of the training.
            cache: Opened by `kdscale.open_cache`.
            eval_dataset: Sequences, such as `cache.validation()`, or another cache, or several of
                these by name. `eval_loss` is the mean loss on the labels, as `kdscale run`
                validates; of a cache there is `eval_kl` too.
            kd_weight: Weight of the distillation loss, or the fields of a schedule over the steps
                ({"kind": "linear", "start": 1.0, "end": 0.5}).
            divergence: See `kdscale.distillation_loss`.
            curriculum: See `Cache.loader`.
            processing_class: As of Trainer.
            callbacks: As of Trainer.
            optimizers: As of Trainer.
            optimizer_cls_and_kwargs: As of Trainer.

        Raises:
            KdscaleError: The student does not fit the cache, the loss is not defined on its
                targets, or `args` asks for what is not supported.
        """
        check_arguments(args)
        cache.check_shape(model)
        fields = kd_weight if isinstance(kd_weight, Mapping) else {"start": kd_weight}
        self._kd_weight: Schedule = parse_settings(Schedule, fields, "kd_weight")
        for weight in self._kd_weight.corners:
            check_loss(weight, divergence, cache.identity["codec"]["kind"])
        super().__init__(
            model=model,
            args=args,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=[_SaveStream(self), *(callbacks or [])],
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        self.cache = cache
        self._divergence = divergence
        self._curriculum = curriculum
        self._trained = take_functions(self.model, cache.vocab_size)
        self._is_checked = False
        self._resumed: Path | None = None
        self._batches: NumberedBatches | None = None
        self._logged = Sums()
        self._steps_logged = 0
        self._evaluated = Sums()

    # batches

    @property
    def step_sequences(self) -> int:
        """Sequences of a step, over all micro-batches and ranks."""
        args = self.args
        ranks = args.per_device_train_batch_size * args.world_size
        return int(ranks * args.gradient_accumulation_steps)

    def train(self, resume_from_checkpoint: str | bool | None = None, **options: Any) -> Any:
        """See Trainer. KdscaleError where a checkpoint is of another order of sequences."""
        found = resume_from_checkpoint
        if found is True:
            found = get_last_checkpoint(self.args.output_dir)
        self._resumed = Path(found) if found else None
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **options)
        finally:
            if self._batches is not None:
                self._batches.close()

    def get_train_dataloader(self) -> Any:
        """Return the training's batches by number; see Trainer."""
        args = self.args
        steps_an_epoch = math.ceil(len(self.cache) / self.step_sequences)
        steps = args.max_steps if args.max_steps > 0 else args.num_train_epochs * steps_an_epoch
        paced = {"steps": math.ceil(steps), "global_batch_size": self.step_sequences}
        self._stream = self.cache.loader(
            args.per_device_train_batch_size,
            seed=args.seed if args.data_seed is None else args.data_seed,
            rank=args.process_index,
            world_size=args.world_size,
            device=args.device,
            endless=self._curriculum is None,
            curriculum=self._curriculum,
            **(paced if self._curriculum is not None else {}),
        )
        if self._resumed is not None:
            self._check_resumed(self._resumed)
        self._batches = NumberedBatches(
            self._stream, args.per_device_train_batch_size * args.world_size, len(self.cache)
        )
        numbers = EpochNumbers(steps_an_epoch * args.gradient_accumulation_steps)
        return torch.utils.data.DataLoader(self._batches, batch_sampler=numbers, collate_fn=_only)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """Return the micro-batches of a step, and its targets over all ranks; see Trainer."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        targets = sum(inputs["batch"].num_targets for inputs in samples)
        self._steps_logged += 1
        total = self.accelerator.reduce(torch.tensor(targets, device=device), reduction="sum")
        return samples, total.clamp(min=1)

    def stream_state(self) -> dict[str, Any]:
        """Return where in which order the training is, after the present step."""
        position = self.state.global_step * self.step_sequences
        return self._stream.state_dict() | {"position": position}

    def _check_resumed(self, checkpoint: Path) -> None:
        path = checkpoint / STREAM_KEY
        if not path.is_file():
            raise KdscaleError(
                f"{checkpoint} has no {STREAM_KEY}: it is no checkpoint of a DistillationTrainer.",
                "Load its weights by from_pretrained, and train without resume_from_checkpoint.",
            )
        state = json.loads(path.read_text())
        self._stream.load_state_dict(state)
        step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
        if state["position"] != step * self.step_sequences:
            before = state["position"] // max(1, step)
            raise KdscaleError(
                f"{checkpoint} is of a training with {before} sequences a step, now there are "
                f"{self.step_sequences}.",
                "Keep the product of per_device_train_batch_size, gradient_accumulation_steps and "
                "the number of ranks.",
            )

    # loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Return the micro-batch's share of the mean loss over all targets of the step.

        Times the number of ranks, over which gradients are averaged afterwards.
        """
        batch: Batch = inputs["batch"]
        self._check_once(model, batch.input_ids)
        weight = value_at(self._kd_weight, self.state.global_step, self.state.max_steps)
        objective, parts = self._call(model, losses, batch, weight, self._divergence)
        targets = batch.num_targets if num_items_in_batch is None else num_items_in_batch
        if model.training:
            self._logged.add({name: value / targets for name, value in parts.items()})
        loss = objective * (self.args.world_size / targets)
        return (loss, parts) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, beside the training's loss, what it is made of; see Trainer."""
        if "loss" in logs and self._steps_logged:
            means = self._logged.drain(self.accelerator)
            logs |= {name: value / self._steps_logged for name, value in means.items()}
            self._steps_logged = 0
        super().log(logs, start_time)

    def _check_once(self, model: torch.nn.Module, ids: torch.Tensor) -> None:
        """Find the student's head, and refuse a student that misreads the cache's sequences."""
        if self._is_checked:
            return
        # Without gradients from the outside on: data parallelism would wait for a backward.
        with torch.no_grad():
            self._call(model, ModelWithHead.detect_head, ids.device)
            spec = self.cache.sequence_spec(self.model, len(ids))
            self._call(model, ModelWithHead.check_sequences, spec)
        self._is_checked = True

    def _call(self, model: torch.nn.Module, fn: Callable[..., Any], *arguments: Any) -> Any:
        """Return `fn(trained, *arguments)`, inside of a forward of `model`; see ModelWithHead."""
        if self.is_deepspeed_enabled:
            # Trainer evaluates the module inside of the engine, which alone gathers a sharded head.
            model = self.model_wrapped
        return model(Call(self._trained, fn, arguments))

    # evaluation

    def get_eval_dataloader(self, eval_dataset: Any | None = None) -> Any:
        """Return the batches of sequences or of a cache; see Trainer."""
        found = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(found, str):
            found = cast(dict[str, Any], self.eval_dataset)[found]
        if not isinstance(found, Cache | Rows):
            raise KdscaleError(
                f"eval_dataset is a {type(found).__name__}.",
                "Give cache.validation(), a cache, or several of these by name.",
            )
        args = self.args
        return EvaluationBatches(
            found, args.eval_batch_size, args.process_index, args.world_size, args.device
        )

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, None, None]:
        """Add a batch to the sums of the evaluation; see Trainer."""
        batch, rows = inputs["batch"], inputs["rows"]
        with torch.no_grad():
            self._check_once(model, rows.ids)
            if batch is None:
                parts = {"ce_loss": self._call(model, known_cross_entropy, rows)}
            else:
                _, parts = self._call(model, losses, batch, 1.0, self._divergence)
                parts["targets"] = rows.mask.sum()
        self._evaluated.add({"loss": parts.pop("ce_loss"), "labels": rows.known.sum(), **parts})
        return None, None, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Return the means over all labels, and over all targets; see Trainer."""
        self._evaluated = Sums()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        sums = self._evaluated.drain(self.accelerator)
        labels, targets = sums.pop("labels"), sums.pop("targets", 0.0)
        for name, value in sums.items():
            count = labels if name == "loss" else targets
            output.metrics[f"{metric_key_prefix}_{name}"] = value / max(1.0, count)
        return output


class _SaveStream(TrainerCallback):
    """Keeper of the place in the data, beside each checkpoint."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self._trainer = trainer

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Write the state of the stream into the checkpoint that was just saved."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / STREAM_KEY).write_text(json.dumps(self._trainer.stream_state()))


def _only(items: list[dict[str, Any]]) -> dict[str, Any]:
    (item,) = items
    return item
