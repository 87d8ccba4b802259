"""A model as hidden states and a head, for losses that never see all logits.

Most architectures end in a linear map, some with a bias, a factor or a soft cap; masked language
models have a transform before it. The head that the config describes is compared with the model's
own logits once; a model that does something else keeps its logits whole, which costs their
memory, and their time at positions that no loss asks for. So does a classifier, whose logits are
few.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from kdscale.models.documents import Documents, packing_known
from kdscale.models.forward import (
    RowTensors,
    broadcast_logits,
    compute_logits,
    intercept_lm_head,
    model_inputs,
    model_task,
    target_logits,
)
from kdscale.models.modes import evaluation_mode
from kdscale.models.sequence_check import SequenceSpec, check_sequences
from kdscale.types import Head

PREFIX = "model."
"""Of the names of the model's parameters in a ModelWithHead."""

_POSITIONS = 8
# Of the largest logit. In bfloat16 a number is rounded by up to 1/256 of itself, and there are some
# roundings between two ways to compute one.
_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3}
_TOLERANCE_ELSE = 1e-3

log = logging.getLogger(__name__)

HeadInput = Literal["body", "projection", "logits"]
"""Input of a head: the last hidden states of the model's body, those that the model itself gives
its last linear map, or its logits, as they are."""

LayerOutput = Literal["hidden", "attention"]
"""Output of a layer: its hidden states [B, T, D], the last one's behind the final norm, or its
attention weights [B, T, T], a row for each query, as the mean over heads."""

_FLAGS = {"hidden": "output_hidden_states", "attention": "output_attentions"}


def output_head(output: Any, vocab_size: int, config: Any | None = None) -> Head:
    """Return the head of a linear module, with the scale and cap of a transformers `config`."""
    text = None if config is None else config.get_text_config()
    scale = getattr(text, "logit_scale", None) or 1 / getattr(text, "logits_scaling", 1)
    softcap = getattr(text, "final_logit_softcapping", None)
    return Head(output.weight, getattr(output, "bias", None), vocab_size, scale, softcap)


def is_plain(output: Any) -> bool:
    """Return whether a module is its weight and bias alone: no adapter is in it or around it."""
    names = {name for name, _ in output.named_parameters()}
    return "weight" in names and names <= {"weight", "bias"}


class ModelWithHead(torch.nn.Module):
    """A transformers model in the form that a back end wraps; every use is one call of this module.

    Data parallelism and ZeRO act around the calls of the module that they wrap: a loss that read
    the head's weight outside of such a call would get gradients that are not reduced, or an empty
    shard. So the code that needs the model is passed to it as a function, with its arguments:

        engine = DistributedDataParallel(ModelWithHead(model, vocab_size))
        loss = engine(compute_loss, batch, step)         # returns compute_loss(model, batch, step)
        engine(ModelWithHead.detect_head, device)        # methods are such functions, too
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocab_size: int,
        projections: Sequence[torch.nn.Module] = (),
        *,
        gives_attention: bool = False,
    ) -> None:
        """Wrap `model`, of which the first `vocab_size` logits count.

        `projections` are trained with the model and belong to the loss. With `gives_attention` the
        model computes attention in the way that has the weights.
        """
        super().__init__()
        self.gives_attention = gives_attention
        if gives_attention:
            model.set_attn_implementation("eager")
        self.model = model
        self.vocab_size = vocab_size
        self.projections = torch.nn.ModuleList(projections)
        self._head_input: HeadInput = "body"

    def forward(self, fn: Callable[..., Any], *arguments: Any) -> Any:
        """Return `fn(self, *arguments)`: the one way in, see the class."""
        return fn(self, *arguments)

    def hidden(
        self,
        input_ids: torch.Tensor,
        segments: torch.Tensor,
        documents: Documents | None = None,
    ) -> torch.Tensor:
        """Return the input of `head`, [B, T, D], for `input_ids` [B, T] and `segments` [B, T]."""
        return self.hidden_and_layers(input_ids, segments, documents=documents)[0]

    def hidden_at(self, rows: RowTensors) -> torch.Tensor:
        """Return the input of `head`, [P, D], at the P positions of `rows` that count."""
        return rows.pick(self.hidden(rows.ids, rows.segments, rows.documents))

    def hidden_and_layers(
        self,
        input_ids: torch.Tensor,
        segments: torch.Tensor,
        outputs: Collection[LayerOutput] = (),
        documents: Documents | None = None,
    ) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
        """Return `hidden`, and the `outputs` of all layers by name.

        `documents` are those in `segments`; their device is asked where they are not given.
        """
        documents = documents or Documents.ask(segments)
        flags = {_FLAGS[name]: True for name in outputs}
        inputs = model_inputs(self.model, input_ids, segments, documents) | flags
        with packing_known(documents):
            hidden, found = self._run(inputs)
        layers = {}
        if "hidden" in outputs:
            layers["hidden"] = list(found.hidden_states[1:])
        if "attention" in outputs:
            layers["attention"] = [weights.mean(dim=1) for weights in found.attentions]
        return hidden, layers

    def _run(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        """Return the input of `head`, [B, T, D], and what the model or its body returns."""
        if self._head_input == "body":
            found = self._body(inputs)
            return found.last_hidden_state, found
        if self._head_input == "projection":
            return self._before_projection(inputs)
        found = self.model(**inputs)
        length = inputs["input_ids"].shape[1]
        return broadcast_logits(self.model, found.logits, length), found

    def _body(self, inputs: dict[str, Any]) -> Any:
        """Run the model below its head. Raises LookupError where it has no such part."""
        found = self.model.base_model(**inputs)
        if not hasattr(found, "last_hidden_state"):
            raise LookupError(f"the body of a {self.model.config.model_type} has a head")
        return found

    def _before_projection(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        """Return the input of the last linear map, [B, T, D], and the model's outputs.

        Their logits are empty: the loss makes those that it needs. Raises LookupError where the map
        did not get hidden states of all positions.
        """
        rows = inputs["input_ids"].shape
        with intercept_lm_head(self.model, rows, lambda hidden: hidden[:, :0]) as given:
            found = self.model(**inputs)
        if len(given) != 1:
            raise LookupError(f"the last linear map was called {len(given)} times")
        return given[0], found

    def states_at(self, rows: RowTensors) -> torch.Tensor:
        """Return the input of `head`, [P, D], at the P positions of `rows` that count, in order."""
        if self._head_input == "logits":
            return target_logits(self.model, rows, self.vocab_size)
        return self.hidden_at(rows)

    def logits_at(self, rows: RowTensors) -> torch.Tensor:
        """Return logits [P, V] at the P positions of `rows` that count, as a loss makes them."""
        return self.head.logits(self.states_at(rows))

    def check_sequences(self, spec: SequenceSpec) -> None:
        """Refuse a model that misreads such sequences, see sequence_check.py.

        Call it as `model(ModelWithHead.check_sequences, spec)`.
        """
        with evaluation_mode(self):
            check_sequences(self.model, self.logits_at, spec)

    @property
    def head(self) -> Head:
        """The map from hidden states to logits, to be used inside of a call of this module only.

        Its weight may be sharded, and DeepSpeed gathers what is read during its engine's forward.
        """
        if self._head_input == "logits":
            return Head(None, None, self.vocab_size)
        return output_head(self.model.get_output_embeddings(), self.vocab_size, self.model.config)

    @torch.no_grad()
    def detect_head(self, device: torch.device) -> None:
        """Find out what the head takes. Call it as `model(ModelWithHead.detect_head, device)`.

        A language model whose logits are none of the head's is named in a warning, on rank 0: its
        logits of all positions are kept, which mostly is the largest array of a training.
        """
        self._head_input = "logits"
        output = self.model.get_output_embeddings()
        if output is not None and is_plain(output):
            self._compare_heads(device)
        is_first = not dist.is_initialized() or dist.get_rank() == 0
        classifies = model_task(self.model) == "sequence-classification"
        if self._head_input == "logits" and is_first and not classifies:
            log.warning(
                "The logits of this %s are not those of its last linear map on its hidden states: "
                "they are kept whole, for all positions of a micro-batch.",
                self.model.config.model_type,
            )

    def _compare_heads(self, device: torch.device) -> None:
        """Take the first input of the head that gives the model's own logits."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.vocab_size, (1, _POSITIONS), generator=generator).to(device)
        sources: tuple[HeadInput, ...] = ("body", "projection", "logits")
        with evaluation_mode(self):
            own = compute_logits(self.model, ids, torch.ones_like(ids), self.vocab_size)
            for source in sources:
                self._head_input = source
                if self._gives(ids, own):
                    break

    def _gives(self, ids: torch.Tensor, own: torch.Tensor) -> bool:
        """Return whether hidden states and head make the model's `own` logits [1, T, V]."""
        try:
            hidden = self.hidden(ids, torch.ones_like(ids))
        except LookupError:
            return False
        weight = self.head.weight
        if weight is not None and hidden.shape[-1] != weight.shape[-1]:
            return False
        found = self.head.logits(hidden.flatten(0, 1)).view_as(own)
        tolerance = _TOLERANCE.get(own.dtype, _TOLERANCE_ELSE)
        expected, error = own.float(), found - own.float()
        if error.abs().max() > tolerance * expected.abs().max():
            return False
        # Rounding has no direction. A factor or a cap that the head does not know follows the
        # logits, and may be small in these.
        along = (error * expected).sum().abs() / expected.square().sum()
        return bool(along <= _TOLERANCE_ELSE)
