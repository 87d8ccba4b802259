"""t over a training: what it follows, and what is kept of it."""

import json

from kdscale.config.online import TaidConfig
from kdscale.distill.taid import Taid, TaidState

CONFIG = TaidConfig(start=0.2, alpha=0.3, beta=0.5)


def test_t_follows_the_loss_on_its_own_targets() -> None:
    taid, state = Taid(CONFIG, 9), TaidState(0.2)
    assert taid.t == 0.2
    for step, loss in enumerate((4.0, 3.5, 3.7, 2.0)):
        kept = taid.after(step, {"loss": 100.0, "kl": 50.0, "taid_loss": loss})
        state = state.after(CONFIG, loss, step, 9)
        assert taid.t == kept["t"] == state.t


def test_what_is_kept_goes_through_json_and_comes_back_to_the_bit() -> None:
    taid = Taid(CONFIG, 9)
    kept = [taid.after(step, {"taid_loss": 1 / (step + 3)}) for step in range(5)]
    for step in range(4):
        other = Taid(CONFIG, 9)
        other.restore(json.loads(json.dumps(kept[step])))
        assert other.t == kept[step]["t"]
        assert other.after(step + 1, {"taid_loss": 1 / (step + 4)}) == kept[step + 1]
    taid.restore({})
    assert taid.t == 0.2
