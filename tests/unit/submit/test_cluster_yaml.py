"""The files for `ray up` against Ray's own schema and checks, and where they must say the same."""

import json
import re
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

from kdscale.doctor.gpus import LEAST_DRIVERS

ROOT = Path(__file__).parents[3]
CLOUDS = {"aws": ROOT / "ray_cluster.yaml", "gcp": ROOT / "cluster" / "gcp.yaml"}
FILES = CLOUDS | {"on_premise": ROOT / "cluster" / "on_premise.yaml"}
CUDA = "cu130"
# Of PyPI's builds for Linux: the nvidia-* or cuda-* packages that they require.
CUDA_OF_TORCH = {"2.13": "cu130"}
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load(FILES[name].read_text(encoding="utf-8"))


def spot(node: dict[str, Any]) -> bool:
    text = json.dumps(node)
    return "spot" in text.lower()


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_it(name: str) -> None:
    jsonschema.validate(load(name), SCHEMA)
    prepared = prepare_config(load(name))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


@pytest.mark.parametrize("name", CLOUDS)
def test_a_misspelt_key_would_be_refused(name: str) -> None:
    # Guards the test above: a schema that accepts anything would prove nothing.
    cluster = load(name)
    cluster["available_node_types"]["teacher"]["min_worker"] = 1
    with pytest.raises(Exception, match="min_worker"):
        validate_config(prepare_config(cluster))


@pytest.mark.parametrize("name", CLOUDS)
def test_groups_scale_from_zero_and_students_are_on_spot(name: str) -> None:
    cluster = load(name)
    types = cluster["available_node_types"]
    assert set(types) == {"head", "teacher", "student"}
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert types["teacher"]["min_workers"] == types["student"]["min_workers"] == 0
    assert spot(types["student"]["node_config"])
    assert not spot(types["teacher"]["node_config"])
    workers = types["teacher"]["max_workers"] + types["student"]["max_workers"]
    assert cluster["max_workers"] == workers


def test_resources_that_ray_cannot_look_up_are_named() -> None:
    # On AWS it asks for the instance type's, on Google Cloud it does not.
    types = load("gcp")["available_node_types"]
    machines = {"g2-standard-8": {"CPU": 8, "GPU": 1}, "g2-standard-48": {"CPU": 48, "GPU": 4}}
    for group in (types["teacher"], types["student"]):
        assert group["resources"] == machines[group["node_config"]["machineType"]]


def test_machines_of_ones_own_all_take_part_but_the_head() -> None:
    prepared = prepare_config(load("on_premise"))
    (node,) = prepared["available_node_types"].values()
    assert node["min_workers"] == len(prepared["provider"]["worker_ips"]) > 1
    assert prepared["provider"]["head_ip"] not in prepared["provider"]["worker_ips"]
    assert "--num-cpus=0 --num-gpus=0" in " ".join(prepared["head_start_ray_commands"])


@pytest.mark.parametrize("name", FILES)
def test_token_authentication_is_on_and_the_dashboard_private(name: str) -> None:
    cluster = load(name)
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    head = " ".join(cluster["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head


@pytest.mark.parametrize("name", FILES)
def test_the_header_names_what_to_change_and_how_to_start(name: str) -> None:
    text = FILES[name].read_text(encoding="utf-8")
    header = text[: text.index("\ncluster_name:")]
    path = FILES[name].relative_to(ROOT).as_posix()
    assert "Change before the first use:" in header
    for command in ("ray up", "ray dashboard", "ray down"):
        assert f"{command} {path}" in header


def test_what_all_files_must_agree_on() -> None:
    clusters = [load(name) for name in FILES]
    for shared in (
        *("cluster_name", "idle_timeout_minutes", "docker", "file_mounts", "setup_commands"),
        *("rsync_exclude", "rsync_filter", "worker_setup_commands", "worker_start_ray_commands"),
    ):
        assert all(cluster[shared] == clusters[0][shared] for cluster in clusters), shared
    # The heads differ in the cloud's own client only.
    installs = [cluster["head_setup_commands"][:3] for cluster in clusters]
    assert all(install == installs[0] for install in installs)


def test_images_have_the_ray_that_is_installed() -> None:
    docker = load("aws")["docker"]
    for image, platform in (("head_image", "cpu"), ("worker_image", CUDA)):
        assert docker[image] == f"rayproject/ray:{version('ray')}-py311-{platform}"
    kdscale = next(r for r in map(Requirement, requires("kdscale") or ()) if r.name == "ray")
    assert kdscale.specifier.contains(version("ray"))


def test_the_drivers_are_new_enough_for_the_cuda_of_torch() -> None:
    lock = (ROOT / "cluster" / "requirements.lock").read_text(encoding="utf-8")
    (torch,) = re.findall(r"^torch==(\d+\.\d+)", lock, re.MULTILINE)
    assert CUDA_OF_TORCH[torch] == CUDA
    least = LEAST_DRIVERS[int(CUDA[2:-1])]
    types = load("gcp")["available_node_types"]
    for group in ("teacher", "student"):
        image = types[group]["node_config"]["disks"][0]["initializeParams"]["sourceImage"]
        driver = re.search(r"-nvidia-(\d+)$", image)
        assert driver is not None
        assert int(driver[1]) >= least
    # Ray's own choice on AWS has an older one, so that no group is left to it.
    images = [
        node["node_config"]["ImageId"] for node in load("aws")["available_node_types"].values()
    ]
    assert len(set(images)) == 1
    for file in (
        *FILES.values(),
        ROOT / "cluster" / "kuberay.yaml",
        ROOT / "cluster" / "Dockerfile",
    ):
        assert f"driver {least} or later" in file.read_text(encoding="utf-8"), file


def test_kubernetes_waits_as_long_before_it_shrinks() -> None:
    kube = yaml.safe_load((ROOT / "cluster" / "kuberay.yaml").read_text(encoding="utf-8"))
    assert kube["idle_timeout_seconds"] == 60 * load("aws")["idle_timeout_minutes"]


def test_dockerfile_is_on_the_same_ray() -> None:
    text = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
    assert f"ARG RAY_VERSION={version('ray')}\n" in text
    assert set(re.findall(r"kdscale:([\d.]+)-", text)) == {version("ray")}
    assert f"ARG PLATFORM={CUDA}\n" in text
