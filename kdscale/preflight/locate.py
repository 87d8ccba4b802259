"""Location of the models that a config names, without their weights."""

import socket
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies

from huggingface_hub import constants, try_to_load_from_cache

from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import loadable, source_identity
from kdscale.preflight.context import Context

_HUB_SECONDS = 3.0


def locate(context: Context, field: str, source: str) -> str | None:
    """Return what `from_pretrained` takes here for config and tokenizer of the model `source`.

    `field` is the config's; the result is a folder or a hub name. None, and a note, where the run
    starts elsewhere and the model cannot be reached from here. Raises KdscaleError where it is
    missing.
    """
    if "://" not in source and not Path(source).expanduser().is_dir():
        if not source.startswith((".", "/", "~")):
            return _hub_name(context, field, source)
        if not context.options.runs_elsewhere:
            source_identity(source, None)  # says what is wrong with the path
        context.findings.unseen(field, source)
        return None
    if "://" not in source:
        return str(Path(source).expanduser())
    try:
        return loadable(source, weights=False)
    except (KdscaleError, OSError) as error:
        if not context.options.runs_elsewhere or not is_out_of_reach(error):
            raise
        context.findings.unseen(field, source)
        return None


def _hub_name(context: Context, field: str, name: str) -> str | None:
    """Return a hub name; elsewhere the hub may be reachable where it is not from here."""
    if isinstance(cached := try_to_load_from_cache(name, "config.json"), str):
        # Without this the hub's client asks for newer files, and tries again for half a minute.
        return name if hub_answers() else str(Path(cached).parent)
    if hub_answers():
        return name
    if context.options.runs_elsewhere:
        context.findings.unseen(field, name)
        return None
    raise KdscaleError(
        f"{field} {name!r} is no folder here, it is not in the hub's cache on this machine, and "
        f"{constants.ENDPOINT} does not answer.",
        "Correct the path or the name, or check the network, HF_ENDPOINT and the proxy.",
    )


def hub_answers() -> bool:
    """Tell whether the Hugging Face hub can be reached; behind a proxy it may be."""
    if getproxies():
        return True
    address = urlparse(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=_HUB_SECONDS):
            return True
    except OSError:
        return False


def is_out_of_reach(error: BaseException | None) -> bool:
    """Tell whether `error` comes from a store or a hub that could not be read."""
    while error is not None:
        if isinstance(error, OSError):
            return True
        error = error.__cause__ or error.__context__
    return False
