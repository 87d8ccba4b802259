"""Config fields that have no effect beside others."""

from collections.abc import Iterator

from kdscale.config import RunConfig
from kdscale.config.cache import CacheConfig
from kdscale.config.curriculum import CurriculumConfig
from kdscale.config.data import DataConfig, TokenizerConfig
from kdscale.config.evaluate import EvaluateConfig
from kdscale.config.teacher import ModelConfig
from kdscale.config.training import OptimiserConfig, WorkersConfig
from kdscale.models.hf_folder import is_folder
from kdscale.preflight.context import Findings

# Options of every architecture that the run decides.
_DECIDED = {
    **dict.fromkeys(("dtype", "torch_dtype"), "workers.gpus decides it: bfloat16 on GPUs"),
    **dict.fromkeys(("architectures", "model_type"), "task and architecture decide it"),
    **dict.fromkeys(("num_labels", "id2label", "label2id"), "the classes of the data decide it"),
    "use_cache": "it is off in training, and on where text is written",
}


def note_ignored(config: RunConfig, findings: Findings) -> None:
    """Note every field that is set and will be ignored."""
    for field, why in _ignored(config):
        findings.note(f"{field} is ignored: {why}.")


def _ignored(config: RunConfig) -> Iterator[tuple[str, str]]:
    data, teacher, cache, distill = config.data, config.teacher, config.cache, config.distill
    if cache.reuse is not None:
        for name in _changed(cache, CacheConfig(), "codec", "sequences", "capture", "pack"):
            yield f"cache.{name}", "nothing is captured where cache.reuse names a finished cache"
    if data.tokenizer.kind == "teacher":
        for name in _changed(data.tokenizer, TokenizerConfig(), "vocab_size", "sample_documents"):
            yield f"data.tokenizer.{name}", "the tokenizer is the teacher's own"
    if config.task != "masked-lm" and data.masking != DataConfig().masking:
        yield "data.masking", f"the task is {config.task}"
    if config.task != "causal-lm" and config.evaluate.samples != EvaluateConfig().samples:
        yield "evaluate.samples", "only causal language models write text"
    if teacher.revision is not None and teacher.load is not None and is_folder(teacher.load):
        yield "teacher.revision", "teacher.load is a folder"
    student = distill.student
    if student.revision is not None and student.load is not None and is_folder(student.load):
        yield "distill.student.revision", "distill.student.load is a folder"
    if teacher.training is None and teacher.workers != WorkersConfig():
        yield "teacher.workers", "the teacher is not trained, and cache.capture has its own workers"
    for model, name in (
        (teacher.model, "teacher.model"),
        (distill.student.model, "distill.student.model"),
    ):
        if model is not None:
            for field, why in _of_model(model):
                yield f"{name}.{field}", why
    for training, name in (
        (teacher.training, "teacher.training"),
        (distill.training, "distill.training"),
    ):
        if training is not None:
            for field, why in _of_optimiser(training.optimiser):
                yield f"{name}.optimiser.{field}", why
    yield from _of_curriculum(distill.curriculum)
    yield from _of_attention(config)


def _of_attention(config: RunConfig) -> Iterator[tuple[str, str]]:
    distill = config.distill
    stages = (config.teacher, config.cache.capture, distill, config.evaluate)
    on_gpus = any(stage.workers.gpus for stage in stages)
    for name, choice in (
        ("teacher", config.teacher.attention),
        ("distill.student", distill.student.attention),
    ):
        if choice in ("flash_attention_2", "flex_attention") and not on_gpus:
            yield f"{name}.attention", "it is a kernel for GPUs, and no worker has one"
        elif choice != "auto" and distill.online.attention is not None:
            yield f"{name}.attention", "distill.online.attention needs the attention weights"


def _of_model(model: ModelConfig) -> Iterator[tuple[str, str]]:
    if model.pad_vocab_to_multiple_of != 1 and "vocab_size" in model.options:
        yield "pad_vocab_to_multiple_of", "options.vocab_size is given"
    for name in model.options:
        if name in _DECIDED:
            yield f"options.{name}", _DECIDED[name]


def _of_optimiser(optimiser: OptimiserConfig) -> Iterator[tuple[str, str]]:
    default, schedule = OptimiserConfig(), optimiser.schedule
    if schedule != "wsd":
        for name in _changed(optimiser, default, "decay_share", "decay_shape"):
            yield name, f"the schedule is {schedule}, and only wsd has it"
    if schedule == "constant":
        for name in _changed(optimiser, default, "final_learning_rate_share"):
            yield name, "the schedule is constant"


def _of_curriculum(curriculum: CurriculumConfig) -> Iterator[tuple[str, str]]:
    default, pacing = CurriculumConfig(), curriculum.pacing
    if curriculum.warmup_share == 0:
        names = ("difficulty", "order", "pacing", "root", "stages", "start_share")
        for name in _changed(curriculum, default, *names):
            yield f"distill.curriculum.{name}", "warmup_share 0 turns the curriculum off"
        return
    if pacing != "root":
        for name in _changed(curriculum, default, "root"):
            yield f"distill.curriculum.{name}", f"the pacing is {pacing}"
    if pacing == "baby_step":
        for name in _changed(curriculum, default, "start_share"):
            yield f"distill.curriculum.{name}", "baby_step starts with one of its buckets"


def _changed(config: object, default: object, *names: str) -> list[str]:
    return [name for name in names if getattr(config, name) != getattr(default, name)]
