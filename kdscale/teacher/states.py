"""Way from hidden states to encoded positions: logits exist for a chunk of positions only.

A position of hidden states is a few kilobytes, one of logits a few hundred. So the queue before the
encoder holds the former, and the head, which is whole on every rank, is applied here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdscale.cache.codecs import Codec
from kdscale.cache.codecs.base import Encoded
from kdscale.config.training import ZeroConfig
from kdscale.distributed.groups import RankGroup
from kdscale.distributed.rank import Rank
from kdscale.models.forward import RowTensors
from kdscale.models.head import ModelWithHead
from kdscale.models.load import check_vocabulary
from kdscale.models.sharded import place_teacher
from kdscale.train.throughput import DeviceTimer
from kdscale.types import Head

# Elements of a chunk's logits. On a CPU as many as make the head's product efficient; on a GPU
# those of the encoder's own chunks.
LOGITS = {"cpu": 1 << 25, "cuda": 1 << 28}


class Outputs(Protocol):
    """Numbers of prepared data that a teacher's logits hang on."""

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer."""

    @property
    def outputs(self) -> int:
        """Logits of a position: the ids, or the classes."""


@dataclass(frozen=True)
class EncodedStates:
    """P encoded positions, and the teacher's losses there."""

    encoded: Encoded
    nll: Tensor  # [P] float32, of the labels at the encoder's temperature; NaN without a label


@torch.no_grad()
def place_captured(
    load: Callable[[], PreTrainedModel],
    worker: Rank,
    zero: ZeroConfig,
    data: Outputs,
    group: RankGroup | None = None,
) -> torch.nn.Module:
    """Return the teacher that `load` gives, as `states_of` and `whole_head` take it. Collective.

    A ModelWithHead, inside of an engine where `zero` shards it: over `group`, or all ranks. Raises
    KdscaleError where it has fewer ids than `data`.
    """

    def wrap(model: PreTrainedModel) -> ModelWithHead:
        check_vocabulary(model.config, data.vocab_size, "teacher")
        return ModelWithHead(model, data.outputs)

    model = place_teacher(load, worker, zero, group=group, wrap=wrap)
    model(ModelWithHead.detect_head, worker.device)
    return model


@torch.no_grad()
def whole_head(model: torch.nn.Module) -> Head:
    """Return the teacher's head, whole on every rank: a copy where it is sharded.

    Collective in the group that holds the teacher.
    """
    head: Head = model(_whole_head)
    return head


@torch.no_grad()
def states_of(model: torch.nn.Module, rows: RowTensors) -> Tensor:
    """Return what the head takes, [P, D], at the P positions of `rows` that count, in order.

    Of a model that makes its logits in its own way these, [P, V], see Head. Collective in the group
    that holds the model, where it is sharded.
    """
    states: Tensor = model(ModelWithHead.states_at, rows)
    return states


@torch.no_grad()
def encode_states(
    codec: Codec,
    head: Head,
    states: Tensor,
    labels: Tensor,
    noise: Tensor,
    temperature: float,
    timer: DeviceTimer,
) -> EncodedStates:
    """Encode P positions, chunk by chunk.

    states: [P, D], see `states_of`. labels: [P] int64, negative where there is none. noise: see
    `Codec.encode`. The head's products run in `timer`. Raises KdscaleError for logits without a
    distribution.
    """
    parts = []
    size = max(1, LOGITS[states.device.type] // head.vocab_size)
    for some, own, uniforms in zip(
        states.split(size), labels.split(size), noise.split(size), strict=True
    ):
        with timer.running():
            # Bfloat16 products are cast where they are read: a pass over memory less.
            logits = head.raw_logits(some)
        encoded = codec.encode(logits, uniforms, temperature=temperature)
        at_label = logits.gather(1, own.clamp(min=0)[:, None])[:, 0].float()
        nll = encoded.log_norm - at_label / temperature
        parts.append((encoded, nll.masked_fill(own < 0, torch.nan)))
        del logits
    return EncodedStates(
        Encoded(
            torch.cat([encoded.payload for encoded, _ in parts]),
            torch.cat([encoded.entropy for encoded, _ in parts]),
            torch.cat([encoded.log_norm for encoded, _ in parts]),
        ),
        torch.cat([nll for _, nll in parts]),
    )


def _whole_head(model: ModelWithHead) -> Head:
    head = model.head
    return head.copy() if hasattr(head.weight, "ds_id") else head
