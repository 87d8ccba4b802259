"""cluster/requirements.lock: all that kdscale needs, in versions that it allows."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[3]
PINS = {
    canonicalize_name(name): Version(version)
    for name, version in (
        line.split("==")
        for line in (ROOT / "cluster" / "requirements.lock").read_text().splitlines()
        if not line.startswith("#")
    )
}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *extras["s3"], *extras["gcs"], *extras["azure"]]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_requirement_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    pin = PINS.get(canonicalize_name(requirement.name))
    assert pin is not None, "python cluster/lock.py"
    assert requirement.specifier.contains(pin)


def test_ray_is_the_one_that_the_image_has() -> None:
    text = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
    found = re.search(r"^ARG RAY_VERSION=(.+)$", text, re.M)
    assert found is not None
    assert str(PINS["ray"]) == found[1]


def test_no_pin_is_bound_to_a_machine() -> None:
    assert not [name for name in PINS if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert not [version for version in PINS.values() if version.local]


def test_the_image_has_what_the_lock_and_the_code_need() -> None:
    text = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
    ignored = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    for sources in re.findall(r"^COPY --chown=ray:users (.+) /home/\S+$", text, re.M):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert f"!{source}\n" in ignored
    assert "pip install --no-cache-dir --no-deps /home/ray/kdscale" in text
