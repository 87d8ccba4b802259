"""Samples of text: continuations of held-out documents by the models, beside the documents'."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel

from kdscale.config.evaluate import SamplesConfig
from kdscale.data.rows.prepared import Prepared, RowTable
from kdscale.distributed.rank import Rank
from kdscale.evaluate.schema import Samples
from kdscale.evaluate.single_device import write_text

_ROWS_LOOKED_AT = 512


def write_samples(
    models: Mapping[str, PreTrainedModel],
    data: Mapping[str, Prepared],
    config: SamplesConfig,
    worker: Rank,
    seed: int,
) -> Samples:
    """Write with causal language models on the first evaluation set, greedily and drawn.

    `data` is what each model, and the teacher, reads. The same sequences, models and seed give the
    same texts on the same kind of device.
    """
    prepared = data["teacher"]
    domain = prepared.evaluation_sets[0]
    prompts, truths = choose_prompts(prepared.split(domain), config)
    tokenizer = _tokenizer(prepared)
    drawn_at = 1.0 if config.temperature is None else config.temperature
    written: dict[str, list[str]] = {}
    drawn: dict[str, list[str]] = {}
    for name, model in models.items():
        own = data[name]
        if own is prepared:
            groups = [prompts]
        else:
            groups = _in_other_tokens(prompts, prepared, tokenizer, own)
        for texts, temperature in ((written, None), (drawn, drawn_at)):
            texts[name] = [
                text
                for group in groups
                for text in _write(
                    model, group, own, config.new_tokens, worker, temperature=temperature, seed=seed
                )
            ]
        worker.beat(f"samples of the {name}")
    return {
        "domain": domain,
        "temperature": None,
        "drawn_temperature": drawn_at,
        "prompt_tokens": prompts.shape[1],
        "new_tokens": config.new_tokens,
        "texts": [
            {
                "prompt": _text(tokenizer, prompt),
                "truth": _text(tokenizer, truth),
                "models": {name: texts[number] for name, texts in written.items()},
                "drawn": {name: texts[number] for name, texts in drawn.items()},
            }
            for number, (prompt, truth) in enumerate(zip(prompts, truths, strict=True))
        ],
    }


def _write(
    model: PreTrainedModel,
    prompts: np.ndarray,
    prepared: Prepared,
    new_tokens: int,
    worker: Rank,
    *,
    temperature: float | None,
    seed: int,
) -> list[str]:
    """Return the continuations of `prompts` [N, P] in the model's own tokens."""
    if not len(prompts):
        return []
    new = write_text(
        model,
        torch.from_numpy(prompts).to(worker.device, torch.int64),
        new_tokens,
        prepared.special_ids,
        prepared.vocab_size,
        temperature=temperature,
        seed=seed,
    )
    tokenizer = _tokenizer(prepared)
    return [_text(tokenizer, tokens) for tokens in new.cpu().numpy()]


def _in_other_tokens(
    prompts: np.ndarray, prepared: Prepared, tokenizer: Any, own: Prepared
) -> list[np.ndarray]:
    """Return each of the `prompts` [N, P] of `prepared` in the tokens of `own`: [1, P'] each."""
    other = _tokenizer(own)
    found = []
    for prompt in prompts:
        ids = other.encode(_text(tokenizer, prompt), add_special_tokens=False)
        starts = prompt[0] == prepared.special_ids["bos_token_id"]
        found.append(np.array([[own.special_ids["bos_token_id"]] * bool(starts) + ids], np.int32))
    return found


def _tokenizer(prepared: Prepared) -> Any:
    return AutoTokenizer.from_pretrained(prepared.tokenizer_folder(), trust_remote_code=False)


def choose_prompts(table: RowTable, config: SamplesConfig) -> tuple[np.ndarray, list[np.ndarray]]:
    """Choose beginnings of documents, evenly over the sequences, and their true continuations.

    Beginnings are [N, P] int32, N at most config.prompts; continuations end with their sequence.
    Documents that are long enough come first.
    """
    looked_at = np.unique(
        np.linspace(0, len(table) - 1, min(len(table), _ROWS_LOOKED_AT)).astype(np.int64)
    )
    rows = table.take(looked_at)
    length = min(config.prompt_tokens, rows.input_ids.shape[1] // 2)
    parts = [
        ids[segments == number]
        for ids, segments in zip(rows.input_ids, rows.segment_ids, strict=True)
        for number in range(1, int(segments.max()) + 1)
    ]
    wanted = length + min(config.new_tokens, rows.input_ids.shape[1] - length)
    long = [part for part in parts if len(part) >= wanted]
    usable = long or [part for part in parts if len(part) > length]
    places = np.linspace(0, len(usable) - 1, min(config.prompts, len(usable))).astype(int)
    chosen = [usable[place] for place in places]
    prompts = [part[:length] for part in chosen]
    return (
        np.array(prompts, np.int32).reshape(len(chosen), length),
        [part[length : length + config.new_tokens] for part in chosen],
    )


def _text(tokenizer: Any, tokens: np.ndarray) -> str:
    text: str = tokenizer.decode(
        tokens.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text
