"""Temperature scaling of language models: the divisor of logits that makes the labels likeliest.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

The loss is convex in b = 1 / T, with the slope E_q[z] - z_label and the curvature Var_q[z] under q
= softmax(b z). Both are summed over positions at a few b, which needs no logits of other batches
and adds up over ranks; between two of them the slope is a cubic Hermite spline, and T where that is
zero. A scalar needs few positions: it is fitted on some thousands, evenly over the validation set.
"""

from collections.abc import Mapping

import numpy as np
import torch
from scipy.interpolate import CubicHermiteSpline
from scipy.optimize import brentq

from kdscale.data.rows.prepared import Prepared
from kdscale.distributed.rank import Rank
from kdscale.evaluate.metrics import CHUNK_ELEMENTS
from kdscale.models.forward import row_tensors, target_logits
from kdscale.train.batches import split_micro_batches

# Whose labels it is fitted on: the models were not trained on them.
FITTED_ON = "validation"
POSITIONS = 2048
# Temperatures from 4 down to 1/4.
_BETAS = np.geomspace(1 / 4, 4, 9)


class TemperatureSums:
    """Sums over positions of the slope and the curvature of the loss at each b."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._state = torch.zeros(2, len(_BETAS), dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add P positions: logits [P, V] float32, -inf at padding ids; labels [P] int64."""
        step = max(1, CHUNK_ELEMENTS // logits.shape[1])
        for start in range(0, len(logits), step):
            z = logits[start : start + step]
            # Softmax and slope are the same for logits moved by a constant, sums more exact.
            z = z - z.max(dim=-1, keepdim=True).values
            at_label = z.gather(-1, labels[start : start + step, None]).squeeze(-1)
            finite = z.masked_fill(z == -torch.inf, 0.0)
            squares = finite.square()
            for number, beta in enumerate(_BETAS.tolist()):
                probs = torch.softmax(beta * z, dim=-1)
                mean = torch.einsum("pv,pv->p", probs, finite).double()
                square = torch.einsum("pv,pv->p", probs, squares).double()
                self._state[0, number] += (mean - at_label).sum()
                self._state[1, number] += (square - mean.square()).clamp(min=0).sum()

    def state(self) -> torch.Tensor:
        """Return a copy of the sums, [2, 9] float64; those of ranks add up."""
        return self._state.clone()

    def load(self, state: torch.Tensor) -> None:
        """Replace the sums by `state`."""
        self._state = state.to(self._state.device, torch.float64, copy=True)

    def temperature(self) -> float:
        """Return the best temperature from 1/4 to 4; 1 where logits are not finite."""
        slope, curvature = self._state.cpu().numpy()
        if not (np.isfinite(slope).all() and np.isfinite(curvature).all()):
            return 1.0
        if slope[0] >= 0 or slope[-1] <= 0:
            return float(1 / (_BETAS[0] if slope[0] >= 0 else _BETAS[-1]))
        right = int(np.argmax(slope > 0))
        between = slice(right - 1, right + 1)
        spline = CubicHermiteSpline(_BETAS[between], slope[between], curvature[between])
        return float(1 / brentq(spline, *_BETAS[between]))


@torch.no_grad()
def fit_temperatures(
    models: Mapping[str, torch.nn.Module],
    prepared: Prepared,
    worker: Rank,
    micro_batch_size: int,
) -> dict[str, float]:
    """Return the temperature of each model, the same on all ranks. Collective.

    `prepared` is the data in the tokens of all these models.
    """
    table = prepared.split(FITTED_ON)
    counts = prepared.manifest["splits"][FITTED_ON]["counts"]
    rows = -(-POSITIONS * len(table) // max(1, counts["targets_written"]))
    chosen = np.unique(np.linspace(0, len(table) - 1, min(rows, len(table))).astype(np.int64))
    sums = {name: TemperatureSums(worker.device) for name in models}
    for part, valid in split_micro_batches(
        chosen, micro_batch_size, worker.rank, worker.world_size
    ):
        batch = row_tensors(table.take(part), worker.device, valid)
        for name, model in models.items():
            logits = target_logits(model, batch, prepared.outputs).float()
            sums[name].update(logits, batch.pick(batch.labels))
        worker.beat("a batch for the temperatures")
    for total in sums.values():
        total.load(worker.all_reduce_sum(total.state()))
    return {name: total.temperature() for name, total in sums.items()}
