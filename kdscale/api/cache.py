"""A cache as a program of one's own sees it: what it holds, its loader, its validation data."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from kdscale.cache.read.concat import ConcatReader
from kdscale.cache.read.opening import open_reader
from kdscale.cache.read.reader import CacheReader, CacheSource
from kdscale.cache.rows import RowStats
from kdscale.cache.spec import Identity
from kdscale.config.curriculum import CurriculumConfig
from kdscale.config.load import parse_settings
from kdscale.config.student import DistillConfig
from kdscale.curriculum.difficulty import combine, needs
from kdscale.curriculum.sampler import CurriculumSampler
from kdscale.data.rows.order import spread
from kdscale.distill.loader import Loader
from kdscale.distributed.rank import current_rank
from kdscale.errors import KdscaleError
from kdscale.models.forward import model_task
from kdscale.models.head import ModelWithHead
from kdscale.models.load import check_vocabulary
from kdscale.models.modes import evaluation_mode
from kdscale.models.positions import check_positions
from kdscale.models.sequence_check import SequenceSpec
from kdscale.models.tasks import describe_task
from kdscale.run.finished_run import FinishedRun, find_cache
from kdscale.store import open_store
from kdscale.types import Rows

_FIELDS = DistillConfig.model_fields
# What the index objects know without a model and without reading every sequence.
_MEASURED = ("entropy", "nll", "length")
# Sequences that tell whether a cache's are packed.
_LOOKED_AT = 64


class Cache:
    """Opened cache; see `open_cache`."""

    def __init__(self, reader: CacheReader | ConcatReader, run: FinishedRun | None) -> None:
        self.reader = reader
        self._run = run

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.reader)

    @property
    def identity(self) -> Identity:
        """Facts that the targets depend on: task, teacher, tokenizer, codec, temperature, ..."""
        return self.reader.identity

    @property
    def task(self) -> str:
        """`causal-lm`, `masked-lm` or `sequence-classification`."""
        return str(self.identity.get("task", "causal-lm"))

    @property
    def seq_len(self) -> int:
        """T, the positions of a sequence."""
        return self.reader.seq_len

    @property
    def vocab_size(self) -> int:
        """V, the ids of the tokenizer (or classes) that a distribution is over."""
        return int(self.identity["vocab_size"])

    @property
    def statistics(self) -> RowStats:
        """Mean teacher entropy, nll and number of targets of every sequence, [R] each."""
        return self.reader.statistics

    @property
    def run(self) -> FinishedRun:
        """Run whose output was opened. Raises KdscaleError where a cache's folder was."""
        if self._run is None:
            raise KdscaleError(
                "This cache was opened by its own folder, which has no validation data, tokenizer "
                "or models.",
                "Open the output of its run: kdscale.open_cache(<output>).",
            )
        return self._run

    def loader(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        device: torch.device | str = "cpu",
        endless: bool = False,
        curriculum: Mapping[str, Any] | CurriculumConfig | None = None,
        steps: int | None = None,
        global_batch_size: int | None = None,
        prefetch: int | None = None,
    ) -> Loader:
        """Return a loader of this rank's batches, in the order of `kdscale run` with that seed.

        Args:
            batch_size: Sequences of a batch on one rank. G sequences of `kdscale run` are the
                batches of all ranks in a row until there are G.
            seed: `seed` of the run; the same on every rank.
            rank: Number of this rank; that of torch.distributed, or 0, if not given.
            world_size: Number of ranks; that of torch.distributed, or 1, if not given.
            device: Device of the tensors.
            endless: Let epochs follow each other without an end, as `kdscale run` does: a batch may
                have the end of one and the start of the next. Otherwise an iteration is an epoch.
            curriculum: Fields of `distill.curriculum`, for a training of `steps` steps of
                `global_batch_size` sequences, which an iteration then is. Lengths and the
                difficulties `rarity` and `gap` are those of `kdscale run` alone.
            steps: See `curriculum`.
            global_batch_size: See `curriculum`.
            prefetch: Batches read ahead; as many as 256 MiB hold, if not given.

        Raises:
            KdscaleError: For numbers that do not fit each other.
        """
        here = current_rank()
        rank = here.rank if rank is None else rank
        world_size = here.world_size if world_size is None else world_size
        _check_numbers(batch_size, rank, world_size)
        config, steps, size = _curriculum(curriculum, steps, global_batch_size)
        sampler = CurriculumSampler(
            config,
            len(self),
            global_batch_size=size,
            steps=steps,
            seed=seed,
            sequences_per_chunk=self.reader.sequences_per_chunk,
        )
        settings: dict[str, Any] = {"seed": seed}
        if curriculum is not None:
            stats = self.statistics
            tables = {name: getattr(stats, name) for name in _MEASURED}
            sampler.set_difficulty(0, combine(config.difficulty, tables))
            settings |= {"curriculum": config.model_dump(mode="json"), "steps": steps, "size": size}
        return Loader(
            self.reader,
            sampler,
            batch_size,
            rank=rank,
            world_size=world_size,
            device=torch.device(device),
            span=_span(curriculum is not None, endless, steps * size, len(self)),
            step_sequences=size if curriculum is not None else None,
            prefetch=prefetch,
            settings=settings,
        )

    def validation(self, sequences: int | None = None) -> Rows:
        """Return the sequences that the run's trainings are validated on, evenly spread.

        `sequences` is `distill.training.validation_sequences` of the run, if not given. Raises
        KdscaleError where the cache was not opened by a run's output.
        """
        table = self.run.prepared().split("validation")
        if sequences is None:
            sequences = self.run.config.distill.training.validation_sequences
        return table.take(spread(sequences, len(table)))

    def check(self, model: torch.nn.Module, micro_batch_size: int = 1) -> None:
        """Refuse a transformers model that this cache cannot train, or that misreads its sequences.

        A few forwards over random tokens compare packed documents with each document alone. Raises
        KdscaleError.
        """
        self.check_shape(model)
        device = next(model.parameters()).device
        wrapped = ModelWithHead(model, self.vocab_size)
        with torch.no_grad(), evaluation_mode(model):
            wrapped(ModelWithHead.detect_head, device)
            wrapped(ModelWithHead.check_sequences, self.sequence_spec(model, micro_batch_size))

    def check_shape(self, model: Any) -> None:
        """Refuse a model of another task, with too few ids or positions. Raises KdscaleError."""
        task = model_task(model)
        if task != self.task:
            raise KdscaleError(
                f"The cache is of the task {self.task!r}, the model is a {describe_task(task)}.",
                "Load the model by the class of transformers for the cache's task.",
            )
        if task != "sequence-classification":
            check_vocabulary(model.config, self.vocab_size, "model")
            check_positions(model.config, self.seq_len, "model")

    def sequence_spec(self, model: Any, micro_batch_size: int) -> SequenceSpec:
        """Return the cache's sequences, for the check of `model`."""
        classifies = self.task == "sequence-classification"
        ids = model.config.get_text_config().vocab_size if classifies else self.vocab_size
        return SequenceSpec(ids, self.vocab_size, self.seq_len, self.packs, micro_batch_size)

    @cached_property
    def packs(self) -> bool:
        """True if one of a few sequences, spread over the cache, holds several documents."""
        some = self.reader.read(spread(_LOOKED_AT, len(self)))
        return bool((some.rows.segment_ids > 1).any())


def open_cache(
    place: str | Mapping[str, float],
    *,
    generations: int | None = None,
    memory_mib: int = _FIELDS["cache_memory_mib"].default,
    disk_gib: float = _FIELDS["cache_disk_gib"].default,
    disk_folder: str | None = None,
) -> Cache:
    """Open a cache to train from.

        cache = kdscale.open_cache("s3://bucket/run")
        print(len(cache), "sequences of", cache.seq_len)

    Args:
        place: Output of a run, or a cache's folder, each a path or an fsspec URL; or several caches
            with weights, read as one: {"s3://one": 1.0, "s3://other": 0.5}.
        generations: Leave out what was appended after so many generations. All are read if not
            given; of a run's output those that its student read.
        memory_mib: Memory for decoded chunks, in this process.
        disk_gib: Disk for decoded chunks, shared by the processes of this machine; 0 for none.
        disk_folder: Folder of these; in the folder for temporary files, if not given.

    Raises:
        KdscaleError: There is no finished cache at `place`, it is of another version, or several do
            not belong together.
    """
    run = None
    if isinstance(place, str):
        sources, run = _sources(place)
    else:
        sources = [CacheSource(find_cache(one), None, weight) for one, weight in place.items()]
    if generations is not None:
        sources = [replace(source, generations=generations) for source in sources]
    reader = open_reader(sources, memory_mib=memory_mib, disk_gib=disk_gib, folder=disk_folder)
    return Cache(reader, run)


def _sources(place: str) -> tuple[list[CacheSource], FinishedRun | None]:
    """Return the caches at `place` as the run there reads them, and the run, if it is one's."""
    found = FinishedRun(open_store(place))
    if not found.config_text:
        return [CacheSource(find_cache(place), None)], None
    stores = found.mixed_caches() or [(find_cache(place), 1.0)]
    sources = [CacheSource(store, None, weight) for store, weight in stores]
    pinned = found.pinned_generations()
    if pinned is not None and len(pinned) == len(sources):
        sources = [
            replace(source, generations=count)
            for source, count in zip(sources, pinned, strict=True)
        ]
    return sources, found


def _check_numbers(batch_size: int, rank: int, world_size: int) -> None:
    if batch_size < 1:
        raise KdscaleError(f"batch_size is {batch_size}.", "Give at least 1 sequence a batch.")
    if not 0 <= rank < world_size:
        raise KdscaleError(
            f"rank {rank} of {world_size} ranks.",
            "Number the ranks from 0 to world_size - 1, or leave both out under torchrun.",
        )


def _curriculum(
    given: Mapping[str, Any] | CurriculumConfig | None,
    steps: int | None,
    global_batch_size: int | None,
) -> tuple[CurriculumConfig, int, int]:
    """Return the curriculum, its steps, and the sequences of a step; see `Cache.loader`."""
    if given is None:
        if steps is not None or global_batch_size is not None:
            raise KdscaleError(
                "steps and global_batch_size are the clock of a curriculum, and there is none.",
                "Give curriculum too, or leave them out: itertools.islice ends an endless loader.",
            )
        return CurriculumConfig(), 1, 1
    if steps is None or global_batch_size is None:
        raise KdscaleError(
            "A curriculum needs the steps of its training and the sequences of each.",
            "Give steps and global_batch_size.",
        )
    config = parse_settings(CurriculumConfig, given, "curriculum")
    others = sorted(set(needs(config.difficulty)) - set(_MEASURED))
    if others or config.length is not None:
        what = f"the difficulty {others[0]!r}" if others else "`length`"
        raise KdscaleError(
            f"The loader has no {what} of a curriculum: kdscale run measures it in its workers.",
            f"Use the difficulties {', '.join(_MEASURED)}, or `kdscale run`.",
        )
    return config, steps, global_batch_size


def _span(paced: bool, endless: bool, training: int, epoch: int) -> int | None:
    """Return the sequences of an iteration over all ranks, None for no end."""
    if paced:
        return training
    return None if endless else epoch
