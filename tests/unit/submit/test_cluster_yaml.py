"""`ray_cluster.yaml` against Ray's own schema and checks, as `ray up` does before it calls AWS."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[3]
FILE = ROOT / "ray_cluster.yaml"


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["head_node_type"] == "head"


def test_a_misspelt_key_would_be_refused(cluster: dict[str, Any]) -> None:
    # Guards the test above: a schema that accepts anything would prove nothing.
    cluster["available_node_types"]["teacher"]["min_worker"] = 1
    with pytest.raises(Exception, match="min_worker"):
        validate_config(prepare_config(cluster))


def test_groups(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert set(types) == {"head", "teacher", "student"}
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert types["teacher"]["min_workers"] == types["student"]["min_workers"] == 0
    assert types["student"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["teacher"]["node_config"]
    workers = types["teacher"]["max_workers"] + types["student"]["max_workers"]
    assert cluster["max_workers"] == workers


def test_token_authentication_is_on_and_the_dashboard_private(cluster: dict[str, Any]) -> None:
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    head = " ".join(cluster["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head


def test_image_has_the_ray_that_we_support(cluster: dict[str, Any]) -> None:
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    ray = next(r for r in map(Requirement, requires("kdscale") or ()) if r.name == "ray")
    images = {cluster["docker"]["head_image"], cluster["docker"]["worker_image"]}
    versions = {image.split(":")[1].split("-")[0] for image in images}
    assert len(versions) == 1
    assert ray.specifier.contains(versions.pop())
    assert all("-py311-" in image for image in images)


def test_dockerfile_pins_the_same_ray(cluster: dict[str, Any]) -> None:
    text = (ROOT / "cluster" / "Dockerfile").read_text()
    version = cluster["docker"]["head_image"].split(":")[1].split("-")[0]
    assert f"ARG RAY_VERSION={version}\n" in text
