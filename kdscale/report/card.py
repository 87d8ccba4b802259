"""The model card: the README.md beside a model's weights, here and on the hub.

The front matter is what the hub reads (base model, tags, results); the body is for people.
Everything is written offline; huggingface_hub checks the front matter. Whether `teacher.load` names
a hub repository or a local folder cannot be asked offline, so a base model is given only where no
such folder exists here, or where the folder is one of the hub's own cache. Licences are those of
the config: nothing else knows them.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from kdscale.errors import KdscaleError
from kdscale.evaluate.schema import Alignment, Results
from kdscale.report import facts, tables
from kdscale.report import formatting as units
from kdscale.report.facts import classifies, task_labels
from kdscale.report.load import setting
from kdscale.report.markdown import plain, table

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_CACHE = re.compile(r"models--([\w.-]+)/snapshots/")
UNKNOWN = "unknown"
TEMPLATE = Path(__file__).with_name("templates") / "card.md.j2"
METRICS = {
    "loss": "Loss (nats)",
    "perplexity": "Perplexity",
    "bits_per_byte": "Bits/byte",
    "accuracy": "Accuracy",
    "f1_macro": "F1 (macro)",
}


def model_card(
    results: Results,
    which: Literal["student", "baseline", "teacher"] = "student",
    config: Mapping[str, Any] | None = None,
    *,
    adapter_base: str | None = None,
) -> str:
    """Return the README.md of the model `which`; `config` is the resolved config's tree, or None.

    Beside adapters (LoRA) that are not merged, `adapter_base` is the place of their base: "base", a
    folder among theirs, or what the config names. Raises KdscaleError where the run has no such
    model.
    """
    if which not in results["models"]:
        raise KdscaleError(
            f"Run {results['run']!r} has no {which} in its results: it holds "
            f"{', '.join(facts.models(results)) or 'no models'}.",
            "Train and evaluate it with `kdscale run CONFIG --from distill`.",
        )
    config = config or {}
    domains = facts.domains(results)
    card = ModelCard.from_template(
        _data(results, which, config, adapter_base),
        template_path=str(TEMPLATE),
        name=plain(f"{results['run']} {which}"),
        auto_class=task_labels(results).auto_class,
        adapter_base=None if adapter_base is None else _python(adapter_base),
        legend=tables.legend(results),
        what=_what(results, which, config),
        training=_training(results, which, config),
        figures="" if which == "baseline" else _key_figures(results),
        tables="\n\n".join(
            f"**{plain(content.caption)}**\n\n{table(content)}"
            for content in (*tables.result_tables(results), *_confusions(results, which))
        ),
        task=results["task"],
        chats="chat" in results,
        limits=_limits(domains, *_licences(config)),
    )
    return str(card)


def _python(base: str) -> str:
    """Return an expression for the place of the base, beside a variable `folder`."""
    return 'f"{folder}/base"' if base == "base" else json.dumps(base)


def _data(
    results: Results, which: str, config: Mapping[str, Any], adapter_base: str | None
) -> ModelCardData:
    teacher = setting(config, "teacher.load")
    train = setting(config, "data.train") or {}
    sources = train if isinstance(train, list) else [train]
    datasets = [each["path"] for each in sources if each.get("kind") == "huggingface"] or None
    return ModelCardData(
        license=_licence(*_licences(config)),
        base_model=_base_model(which, teacher, setting(config, "distill.student.load")),
        datasets=datasets,
        library_name="transformers" if adapter_base is None else "peft",
        pipeline_tag=task_labels(results).pipeline_tag,
        tags=["knowledge-distillation", "kdscale"] if which == "student" else ["kdscale"],
        model_name=f"{results['run']}-{which}",
        eval_results=_eval_results(results, which),
    )


def _base_model(which: str, teacher: Any, start: Any) -> str | None:
    """Return the model on the hub that `which` was made from: its start, else its teacher."""
    if which != "teacher" and start is not None:
        return _hub_name(start)
    return _hub_name(teacher) if which != "baseline" else None


def _hub_name(name: Any) -> str | None:
    """Return the hub's name of a model: of a hub name itself, or of a folder of the hub's cache."""
    if not isinstance(name, str):
        return None
    if cached := HUB_CACHE.search(name):
        return cached[1].replace("--", "/", 1)
    return name if HUB_NAME.fullmatch(name) and not Path(name).exists() else None


def _licences(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the licences of teacher and data that the config gives, or "unknown"."""
    teacher, data = (setting(config, f"card.{name}_licence") for name in ("teacher", "data"))
    return str(teacher or UNKNOWN), str(data or UNKNOWN)


def _licence(teacher: str, data: str) -> str:
    """Return the front matter's licence: that of both, `other` of two, `unknown` if one is."""
    if UNKNOWN in (teacher, data):
        return UNKNOWN
    return teacher if teacher == data else "other"


def _eval_results(results: Results, which: str) -> list[EvalResult]:
    found = []
    for domain, metrics in results["models"][which]["domains"].items():
        values = {name: metrics.get(name) for name in METRICS}
        if classifies(results):
            values["perplexity"] = None
        found += [
            EvalResult(
                task_type=task_labels(results).pipeline_tag,
                dataset_type=domain,
                dataset_name=domain,
                metric_type=key,
                metric_name=METRICS[key],
                metric_value=round(value, 6),
            )
            for key, value in values.items()
            if isinstance(value, float) and math.isfinite(value)
        ]
    return found


def _what(results: Results, which: str, config: Mapping[str, Any]) -> str:
    size = units.count(results["models"][which]["parameters"])
    start = setting(config, "distill.student.load")
    origin = f" It started from `{plain(start)}`." if start and which != "teacher" else ""
    if which == "baseline":
        return (
            f"A {task_labels(results).model} of {size} parameters, trained on the labels alone as "
            "the baseline of a distillation run: same architecture, steps, data order and seed as "
            f"its student, no teacher.{origin}"
        )
    teacher = setting(config, "teacher.load")
    if which == "teacher":
        source = f", from `{plain(teacher)}`" if teacher else ""
        return (
            f"A {task_labels(results).model} of {size} parameters{source}: the teacher of a "
            "distillation run."
        )
    name = f"`{plain(teacher)}`" if teacher else "a teacher trained in the same run"
    if "teacher" not in results["models"]:
        name = f"the cache `{plain(str(setting(config, 'cache.reuse')))}`, its teacher not at hand,"
    return (
        f"A {task_labels(results).model} of {size} parameters, distilled from {name} with kdscale."
        f"{origin} {plain(facts.headline(results))}"
    )


def _confusions(results: Results, which: str) -> list[tables.Table]:
    found = (tables.confusion_table(results, which, d) for d in facts.domains(results))
    return [each for each in found if each is not None]


def _key_figures(results: Results) -> str:
    """Return the report's tiles as a list."""
    found = facts.key_figures(results)
    return "\n".join(f"- **{plain(each.value)}** {plain(each.meaning)}" for each in found)


def _training(results: Results, which: str, config: Mapping[str, Any]) -> str:
    items = []
    if which == "student" and results["cache"] is not None:
        cache = results["cache"]
        items += [
            f"Targets: forward KL to cached teacher distributions, codec "
            f"{plain(facts.codec_text(cache['codec']))}, "
            f"{units.number(cache['bytes_per_token'], 2)} bytes per {task_labels(results).target}, "
            "stored.",
            f"Cache: {cache['rows']:,} sequences, {cache['targets']:,} target positions.",
        ]
    training = "teacher.training" if which == "teacher" else "distill.training"
    steps = setting(config, f"{training}.steps")
    batch = setting(config, f"{training}.global_batch_size")
    length = setting(config, "data.seq_len")
    if which != "teacher" and "alignment" in results:
        length = results["alignment"]["seq_len"]
        items.append(_tokenizer(results["alignment"], which))
    if steps is not None:
        items.append(f"Steps: {steps:,}, each of {batch} sequences of {length} tokens.")
    lora = setting(config, "distill.student.lora")
    if which != "teacher" and lora is not None:
        items.append(_lora(lora))
    items.append(f"Seed: {results['seed']}.")
    items.append(f"Config fingerprint: `{results['config_fingerprint']}`.")
    return "\n".join(f"- {item}" for item in items)


def _tokenizer(alignment: Alignment, which: str) -> str:
    text = f"Tokenizer: its own, of {alignment['student_ids']:,} ids"
    if which != "student":
        return f"{text}; the teacher's has {alignment['teacher_ids']:,}."
    share = alignment["sets"]["train"]["share"]
    return (
        f"{text}; the teacher's has {alignment['teacher_ids']:,}. {units.percent(share)} of the "
        "positions have a target of the teacher's, the others the label alone."
    )


def _lora(lora: Mapping[str, Any]) -> str:
    modules = lora["target_modules"]
    if isinstance(modules, str):
        modules = {"all-linear": "all linear maps but the head"}.get(modules, "some linear maps")
    else:
        modules = ", ".join(f"`{plain(name)}`" for name in modules)
    return (
        f"LoRA: adapters of rank {lora['r']}, alpha {lora['alpha']:g}, on {modules}; all other "
        "weights are those of the start."
    )


def _limits(domains: list[str], teacher: str, data: str) -> str:
    names = ", ".join(plain(domain) for domain in domains) or "no domain at all"
    return (
        f"- Evaluated on {names} only; nothing is known about other text.\n"
        "- One seed: differences of the size of seed noise mean nothing.\n"
        "- Not tuned to follow instructions and not checked for safety; what the teacher and the "
        "training text get wrong, this model may get wrong too.\n"
        f"- Licence of the teacher: {teacher}. Licence of the training text: {data}. Both decide "
        "what this model may be used for."
    )
