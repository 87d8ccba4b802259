"""Writes requirements.lock: the exact versions that clusters install on Ray's own image.

python cluster/lock.py, in the environment whose versions are to be kept

pip resolves kdscale with all its stores, as if nothing were installed, but to the versions of this
environment, so that a cluster runs what the tests ran with. What torch brings along for CUDA is
left out: torch pins it by itself, and which it is depends on the machine.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "cluster" / "requirements.lock"
# DeepSpeed builds its operators with ninja.
REQUIREMENTS = (f"{ROOT}[s3,gcs,azure]", "ninja")
HEADER = "# Written by cluster/lock.py: `python cluster/lock.py` writes it again.\n"
_CUDA = ("nvidia-", "cuda-", "triton")


def main() -> None:
    """Write the lock file."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.writelines(f"{name}=={version}\n" for name, version in installed().items())
        constraints.flush()
        pins = resolve(constraints.name)
    lines = sorted(f"{name}=={version}\n" for name, version in pins.items())
    LOCK.write_text(HEADER + "".join(lines), encoding="utf-8")
    print(f"{LOCK}: {len(lines)} packages")


def installed() -> dict[str, str]:
    """Return what is installed here, without kdscale; of `2.13.0+cpu` the public part."""
    found = {canonical(item.name): public(item.version) for item in distributions()}
    return {name: version for name, version in found.items() if name != "kdscale"}


def resolve(constraints: str) -> dict[str, str]:
    """Return the packages that pip would install into an empty environment, by name."""
    command = [
        *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"),
        *("--disable-pip-version-check", "--report", "-", "--constraint", constraints),
        *REQUIREMENTS,
    ]
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    found = [item["metadata"] for item in report["install"]]
    pins = {canonical(item["name"]): public(item["version"]) for item in found}
    return {n: v for n, v in pins.items() if n != "kdscale" and not n.startswith(_CUDA)}


def canonical(name: str) -> str:
    """Return a package's name as requirements compare it."""
    return name.lower().replace("_", "-").replace(".", "-")


def public(version: str) -> str:
    """Return a version without its local part."""
    return version.partition("+")[0]


if __name__ == "__main__":
    main()
