"""Schema of `results.json`: a set of TypedDicts, so that a result is a plain dict that mypy knows.

Nothing here imports torch: the report must open on a laptop that has none.
"""

from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, with_config

# pydantic refuses the TypedDict of Python 3.11's own typing.
from typing_extensions import TypedDict

Interval = list[float] | None
"""[lower, upper]; None where it has no number."""


class CalibrationBin(TypedDict):
    """One non-empty confidence bin; empty bins are left out."""

    confidence: float  # mean top-1 probability of its positions
    accuracy: float  # share of them where the top-1 id is the label
    count: int


class DomainMetrics(TypedDict):
    """Scores of one model on one evaluation domain."""

    loss: float  # cross-entropy, nats per token
    perplexity: float
    bits_per_byte: float | None  # None where the bytes of the text are not known
    ece: float  # expected calibration error: 15 equal-width bins, L1, top-1 confidence
    tokens: int
    calibration: list[CalibrationBin]
    agreement_top1: NotRequired[float]  # share of positions with the teacher's top-1 id
    overlap_top10: NotRequired[float]  # share of the 10 likeliest ids that are the teacher's too
    kl_teacher_student: NotRequired[float]  # KL(teacher || model), nats per token, temperature 1
    kl_student_teacher: NotRequired[float]  # KL(model || teacher), the same
    intervals: NotRequired[dict[str, Interval]]  # 95 %, by the name of the figure
    temperature: NotRequired[float]  # that makes the validation labels likeliest
    ece_scaled: NotRequired[float]  # with logits divided by it
    # Of classifiers; precision, recall and f1 are those of `AVERAGES`.
    accuracy: NotRequired[float]
    precision_macro: NotRequired[float]
    precision_micro: NotRequired[float]
    precision_weighted: NotRequired[float]
    recall_macro: NotRequired[float]
    recall_micro: NotRequired[float]
    recall_weighted: NotRequired[float]
    f1_macro: NotRequired[float]
    f1_micro: NotRequired[float]
    f1_weighted: NotRequired[float]
    mcc: NotRequired[float]  # Matthews correlation
    auroc: NotRequired[float | None]  # one class against the others, macro
    confusion: NotRequired[list[list[int]]]  # label, then prediction


class ModelResults(TypedDict):
    """One model on all domains."""

    parameters: int
    domains: dict[str, DomainMetrics]


@with_config(ConfigDict(extra="allow"))
class CacheFacts(TypedDict):
    """The cache the student was trained from; further facts may stand beside these."""

    bytes_per_token: float  # payload at rest / positions
    bytes: int  # all of the cache's objects
    rows: int
    targets: int  # positions with a target
    codec: dict[str, Any] | str


class HarnessScore(TypedDict):
    """One figure of lm-eval."""

    value: float
    stderr: float | None  # None where lm-eval has none


class HarnessTask(TypedDict):
    """One task of lm-eval, or group of tasks."""

    lm_eval: str  # version
    task_version: str
    task_hash: str  # lm-eval's, over documents, prompts and targets
    few_shot: int
    documents: int
    limit: int | None  # documents asked for, where not all were
    higher_is_better: dict[str, bool]  # by metric
    scores: dict[str, dict[str, HarnessScore]]  # by model, then by metric


class ModelSpeed(TypedDict):
    """Speed and size of one model: medians, and 90th percentiles."""

    bytes: int | None  # of its weights' files; None where these are a hub's
    tokens_per_second: float  # of a batched forward
    row_seconds: float  # forward of a single row
    row_seconds_p90: float
    text_seconds: NotRequired[float]  # of `new_tokens` written after a short prompt, with KV cache
    text_seconds_p90: NotRequired[float]
    times_teacher: NotRequired[float]  # as many tokens per second as the teacher: median over turns
    times_teacher_interval: NotRequired[Interval]  # 95 %; None of too few turns


class Speed(TypedDict):
    """Speed of models measured in turns on one device."""

    device: str
    dtype: str
    threads: int
    rows: int  # of a batched forward
    seq_len: int
    new_tokens: int
    turns: int  # of batched forwards
    latency_turns: NotRequired[int]  # of single rows and texts
    models: dict[str, ModelSpeed]


class Sample(TypedDict):
    """One prompt and its continuations."""

    prompt: str
    truth: str
    models: dict[str, str]
    drawn: NotRequired[dict[str, str]]  # at `drawn_temperature`


class Samples(TypedDict):
    """Continuations written by the models."""

    domain: str
    temperature: float | None  # of `models`; None: always the likeliest token
    drawn_temperature: NotRequired[float]
    prompt_tokens: int
    new_tokens: int
    texts: list[Sample]


class CacheAudit(TypedDict):
    """The cache's targets beside the teacher's whole distributions, at a few of its positions.

    Of the gradient of the loss with respect to the logits; see `kdscale.cache.fidelity.measure`.
    """

    sequences: int
    positions: int
    draws: int  # of each target; 1 of a codec that does not sample
    squared_bias: float  # summed over the vocabulary; unbiased, and so also below 0
    squared_bias_error: float  # its standard error
    variance: float  # summed over the vocabulary
    kept_mass: float  # the teacher's probability of the ids listed
    distinct_ids: float
    loss_bias: float  # nats per target
    loss_bias_error: float
    kl: float | None  # KL(teacher || target); None of targets that give ids 0
    mean_positions: int  # over which the next two take the mean gradient
    mean_error: float  # of the mean gradient, relative to the true one
    mean_cosine: float  # between the two
    ids_in_common: float  # share of the ids that come out the same when encoded again
    seconds: float  # that the audit took


class Prediction(TypedDict):
    """One outcome and the probability that a model gives it."""

    text: str
    probability: float


class Disagreement(TypedDict):
    """A position where the student's distribution is far from the teacher's."""

    domain: str
    sequence: int  # its number in the evaluation set
    position: int  # in the sequence
    before: str  # the document's text up to what is predicted; of a classifier, its beginning
    label: str
    kl: float  # KL(teacher || student), nats
    teacher: list[Prediction]  # the likeliest, in falling order
    student: list[Prediction]


class Evaluated(TypedDict):
    """Data and teacher behind the figures: runs are comparable where they are the same."""

    tokenizer: str  # SHA-256
    teacher: str | None  # digest of its weights
    sets: dict[str, str]  # checksum of the sequences of each evaluation set


class Foreseen(TypedDict):
    """A stage as `kdscale plan` foresees it."""

    seconds: float
    device_hours: float


class Devices(TypedDict):
    """The devices that the run had, and what `kdscale plan` foresees for it there.

    A device is a GPU, or a core of a CPU. Prices are US dollars.
    """

    name: str | None  # in plan's table; None: not in it
    kind: Literal["cpu", "gpu"]
    devices: dict[str, float]  # how many each stage has
    price_hour: float | None  # on demand, of a device; None: it has none
    price_source: str | None
    watts: float | None  # thermal design power of a device
    watts_source: str | None
    planned: dict[str, Foreseen]  # empty where nothing can be planned
    assumptions: list[str]  # of the plan; or why there is none


class AlignedSet(TypedDict):
    """A set of sequences in the tokens of a student with another tokenizer."""

    positions: int  # that count
    share: float  # of them with a target of the teacher's; the others have the label alone
    cut: float  # share of the text's bytes that the student's sequences have no room for
    kinds: dict[str, float]  # the same share by the label's kind of text


class Alignment(TypedDict):
    """Two tokenizers, and how many of the student's positions have a target of the teacher's."""

    teacher_ids: int
    student_ids: int
    classes: int  # of tokens that both tell apart
    seq_len: int  # of the student's sequences
    sets: dict[str, AlignedSet]  # `train`, a sample of it, then the evaluation sets


class Results(TypedDict):
    """The whole file.

    `models` holds teacher, student, baseline and `before`, a loaded student before training, as far
    as they exist, and the other models of the config.
    """

    schema_version: Literal[2]
    run: str
    output: str
    created: str  # ISO 8601, UTC
    task: str
    models: dict[str, ModelResults]
    gap_recovered: dict[str, float | None]
    gap_intervals: NotRequired[dict[str, Interval]]  # 95 %
    classes: NotRequired[list[str]]  # of a classifier, in the order of its outputs
    chat: NotRequired[str]  # how conversations were rendered, where documents are conversations
    context: NotRequired[int]  # tokens before each target, or all of its document: causal-lm
    alignment: NotRequired[Alignment]  # of a student with its own tokenizer
    speed: NotRequired[Speed]
    samples: NotRequired[Samples]
    cache_audit: NotRequired[CacheAudit]
    disagreements: NotRequired[list[Disagreement]]  # the greatest KL first
    evaluated: NotRequired[Evaluated]
    devices: NotRequired[Devices]
    lm_eval: NotRequired[dict[str, HarnessTask]]  # by task; of `kdscale lm-eval`
    cache: CacheFacts | None
    seconds: dict[str, float]  # wall time of each stage
    seed: int
    versions: dict[str, str]
    hardware: dict[str, Any]  # cpu, cores, memory_bytes, gpus
    config_fingerprint: str
