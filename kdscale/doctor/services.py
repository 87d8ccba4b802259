"""Where a run goes, and whom it tells: Ray's address and W&B, as the environment says."""

import os
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from kdscale.doctor.check import Check
from kdscale.tracking.wandb_run import wandb_target

_ANSWER_SECONDS = 5


def ray_address() -> Check:
    """Where `kdscale run` and `kdscale submit` will go."""
    set_names = [name for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if os.environ.get(name)]
    if not set_names:
        return Check("ok", "Ray address", "not set: `run` starts Ray on this machine")
    values = [f"{name}={os.environ[name]}" for name in set_names]
    if len({value.partition("=")[2] for value in values}) == 1:
        return Check("ok", "Ray address", ", ".join(values))
    return Check(
        "warning",
        "Ray address",
        ", ".join(values),
        "`submit` obeys the first, `run` the second: unset one of them.",
    )


def wandb() -> Check:
    """What `tracking.wandb: auto` comes to here, and whether its server answers."""
    mode, server = wandb_target()
    if mode != "online":
        why = f"WANDB_MODE={os.environ['WANDB_MODE']}" if "WANDB_MODE" in os.environ else "no key"
        return Check("ok", "W&B", f"{mode} ({why})")
    fix = "Let HTTPS through to it, or set WANDB_MODE=offline: a run waits half a minute otherwise."
    try:
        urlopen(server, timeout=_ANSWER_SECONDS).close()
    except HTTPError:
        pass  # It answers: what it thinks of the question does not matter.
    except (URLError, OSError) as error:
        cause = getattr(error, "reason", error)
        return Check("warning", "W&B", f"online, but {server} does not answer: {cause}", fix)
    return Check("ok", "W&B", f"online, {server} answers")
