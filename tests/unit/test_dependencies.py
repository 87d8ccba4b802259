"""The bounds of pyproject.toml that have to be in step with those of other packages."""

import tomllib
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))


def test_boto3_is_bounded_as_the_botocore_that_s3fs_stands_on() -> None:
    extra = PROJECT["project"]["optional-dependencies"]["s3"]
    ours = {found.name: found.specifier for found in map(Requirement, extra)}
    theirs = {found.name: found for found in map(Requirement, requires("aiobotocore") or [])}
    assert version("aiobotocore") in ours["aiobotocore"]
    assert ours["boto3"] == theirs["botocore"].specifier
