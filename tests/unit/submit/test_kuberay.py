"""KubeRay manifests: valid by KubeRay's own schemas, and what a run needs of the cluster."""

import re
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import ValidationError

from kdscale.config import KubeOptions, RunConfig, load_config, load_kube_options, parse_config
from kdscale.config.kube import GroupOptions
from kdscale.config.places import map_places
from kdscale.config.training import WorkersConfig
from kdscale.errors import KdscaleError
from kdscale.submit import kuberay, plan_job
from tests import crd

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "cluster" / "kuberay.yaml"
CONFIGS = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))
QUICKSTART = ROOT / "jobs" / "configs" / "quickstart.yaml"
PLAIN = KubeOptions(image="kdscale")


def make_config(*overrides: str, path: Path = QUICKSTART) -> RunConfig:
    config = load_config(path, ["output=s3://bucket/run", *overrides])
    # Pods have no folders of this machine.
    return map_places(config, lambda _, place, __: place.replace("assets/", "s3://bucket/"))


def make_job(config: RunConfig, options: KubeOptions = PLAIN, **plan: Any) -> dict[str, Any]:
    return kuberay.rayjob_manifest(plan_job(config, **plan), config, options)


def make_groups(config: RunConfig, options: KubeOptions = PLAIN) -> dict[str, dict[str, Any]]:
    spec = make_job(config, options)["spec"]["rayClusterSpec"]
    return {group["groupName"]: group for group in spec["workerGroupSpecs"]}


def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    pods = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [pod["template"]["spec"]["containers"][0] for pod in pods]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("options", [PLAIN, load_kube_options(SHIPPED)], ids=["plain", "shipped"])
def test_kuberays_schemas_accept_them(path: Path, options: KubeOptions) -> None:
    config = make_config("distill.workers.gpus=1", path=path)
    crd.check(make_job(config, options))


def test_kuberays_schemas_accept_every_option() -> None:
    options = load_kube_options(
        SHIPPED,
        [
            "pull_secret=registry",
            "service_account=kdscale",
            "token_secret=ray-token",
            "deadline_seconds=86400",
            "head.node_selector={pool: cpu}",
        ],
    )
    manifest = make_job(make_config(), options)
    crd.check(manifest)
    assert manifest["spec"]["activeDeadlineSeconds"] == 86400
    assert manifest["spec"]["rayClusterSpec"]["authOptions"]["secretName"] == "ray-token"


@pytest.mark.parametrize(
    "break_it",
    [
        lambda m: m["spec"].update(ttlSecondsAfterFinish=1),
        lambda m: m["spec"].update(submissionMode=3),
        lambda m: m["spec"].update(ttlSecondsAfterFinished="60"),
        lambda m: m["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(minReplica=0),
        lambda m: m["spec"]["rayClusterSpec"]["headGroupSpec"].pop("template"),
        lambda m: m["spec"]["rayClusterSpec"]["authOptions"].update(mode="open"),
        lambda m: containers(m)[1].update(resource={}),
        lambda m: containers(m)[1]["resources"]["limits"].update(memory="lots"),
        lambda m: containers(m)[1]["livenessProbe"]["httpGet"].pop("port"),
        lambda m: containers(m)[0]["env"].append({"name": "RAY_AUTH_MODE", "value": "disabled"}),
        lambda m: m["metadata"].update(name="Run_1"),
    ],
)
def test_a_wrong_field_would_be_refused(break_it: Any) -> None:
    # Guards the tests above: a schema that accepts anything would prove nothing.
    manifest = make_job(make_config())
    break_it(manifest)
    with pytest.raises(ValidationError):
        crd.check(manifest)


@pytest.mark.parametrize(
    "override",
    ["evaluate.models={mine: ./models/mine}", "distill.cache_folder=blocks", "base=runs/other"],
)
def test_a_path_of_this_machine_is_refused(override: str) -> None:
    field, _, _ = override.partition("=")
    with pytest.raises(KdscaleError, match=rf"^{field}.* is a path of this machine") as caught:
        make_job(make_config(override))
    assert "an absolute path inside the " in caught.value.fix


def test_texts_arrive_as_they_are() -> None:
    given = {"QUOTES": """it's "so": {{ x }} & <b> \u00fc\n# no comment""", "NUMBER": "1"}
    spec = make_job(make_config(), environment=given)["spec"]
    assert given.items() <= yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"].items()


def test_the_config_is_a_file_where_the_entrypoint_looks_for_it() -> None:
    config = make_config()
    manifest = make_job(config, only="distill")
    head = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    (volume,) = head["spec"]["volumes"]
    (item,) = volume["downwardAPI"]["items"]
    (mount,) = head["spec"]["containers"][0]["volumeMounts"]
    key = re.fullmatch(r"metadata\.annotations\['(.+)'\]", item["fieldRef"]["fieldPath"])
    assert key is not None
    assert volume["name"] == mount["name"]
    assert parse_config(head["metadata"]["annotations"][key[1]]).distill == config.distill
    assert shlex.split(manifest["spec"]["entrypoint"]) == [
        *("python", "/home/ray/kdscale/jobs/run.py", f"{mount['mountPath']}/{item['path']}"),
        *("--only", "distill"),
    ]


def test_the_image_has_the_scripts_where_the_entrypoint_looks_for_them() -> None:
    text = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^COPY .* jobs /home/ray/kdscale/jobs$", text, re.M)


def test_the_job_is_the_plan() -> None:
    plan = plan_job(make_config(), submission_id="Run.1", environment={"WANDB_MODE": "offline"})
    spec = kuberay.rayjob_manifest(plan, make_config(), PLAIN)["spec"]
    assert spec["jobId"] == "Run.1"
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"env_vars": plan.environment}
    assert spec["metadata"] == plan.metadata
    # A TTL counts only with the first.
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] == PLAIN.ttl_seconds


def test_secrets_are_references_in_all_pods_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-value")
    manifest = make_job(make_config(), load_kube_options(SHIPPED))
    reference = {
        "name": "AWS_SECRET_ACCESS_KEY",
        "valueFrom": {"secretKeyRef": {"name": "kdscale-store", "key": "secret-key"}},
    }
    assert len(containers(manifest)) == 3
    assert all(reference in container["env"] for container in containers(manifest))
    assert "the-value" not in yaml.safe_dump(manifest)
    assert "AWS" not in manifest["spec"]["runtimeEnvYAML"]


def test_tokens_are_on_also_where_the_operator_does_not_know_them() -> None:
    manifest = make_job(make_config())
    assert manifest["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    for container in containers(manifest):
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False}


def test_groups_start_empty_and_grow() -> None:
    spec = make_job(make_config())["spec"]["rayClusterSpec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
        # The autoscaler sets it, and the operator refuses another one.
        assert "restartPolicy" not in group["template"]["spec"]
    assert {"name": "KDSCALE_AUTOSCALES", "value": "1"} in containers({"spec": spec})[0]["env"]


def test_rays_own_autoscaler_reads_the_groups_from_it() -> None:
    from ray.autoscaler._private.kuberay import autoscaling_config

    config = make_config(
        "cache.capture.workers={count: 8, cpus: 8, gpus: 1}",
        "distill.workers={count: 4, cpus: 6, gpus: 1}",
    )
    manifest = {"spec": make_job(config, load_kube_options(SHIPPED))["spec"]["rayClusterSpec"]}
    manifest["metadata"] = {"name": "c", "namespace": "default"}
    found = autoscaling_config._derive_autoscaling_config_from_ray_cr(manifest)
    types = {
        name: (node["min_workers"], node["max_workers"], node["resources"])
        for name, node in found["available_node_types"].items()
    }
    assert types == {
        "headgroup": (0, 0, {"CPU": 0, "GPU": 0, "memory": 16 << 30}),
        "teacher": (0, 2, {"CPU": 32, "GPU": 4, "memory": 160 << 30}),
        "student": (0, 4, {"CPU": 6, "GPU": 1, "memory": 24 << 30}),
    }
    assert found["idle_timeout_minutes"] == 10


def test_pods_have_what_the_config_asks_for() -> None:
    config = make_config(
        "teacher.workers={count: 2, cpus: 6}",
        "cache.capture.workers={count: 6, cpus: 4, gpus: 1}",
        "distill.workers={count: 3, cpus: 2.5, gpus: 1}",
        "evaluate.workers={count: 1, cpus: 1}",
    )
    teacher, student = make_groups(
        config, KubeOptions(image="kdscale", teacher=GroupOptions(workers_per_pod=4))
    ).values()
    for group, cpus, gpus, pods in ((teacher, "24", "4", 2), (student, "3", "1", 3)):
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"]["cpu"] == group["rayStartParams"]["num-cpus"] == cpus
        assert resources["limits"]["nvidia.com/gpu"] == gpus
        assert group["maxReplicas"] == pods


def test_a_config_without_gpus_asks_for_none() -> None:
    for container in containers(make_job(make_config())):
        assert "gpu" not in str(container["resources"])


def test_a_cache_that_exists_needs_no_teacher_group() -> None:
    changes = ("teacher={load: org/model}", "data.tokenizer={kind: teacher}")
    assert set(make_groups(make_config(*changes))) == {"teacher", "student"}
    assert set(make_groups(make_config(*changes, "cache.reuse=s3://b/cache/1"))) == {"student"}


workers = st.builds(
    WorkersConfig,
    count=st.integers(1, 40),
    cpus=st.sampled_from([0.1, 0.3, 0.5, 1.0, 1.5, 7.0]),
    gpus=st.sampled_from([0.0, 1.0]),
) | st.builds(WorkersConfig, count=st.just(1), gpus=st.sampled_from([0.1, 0.3, 0.5]))


@settings(deadline=None)
@given(st.lists(workers, min_size=1, max_size=3), st.integers(1, 8))
def test_every_stage_fits_its_group(stages: list[WorkersConfig], together: int) -> None:
    group = kuberay.make_group("g", GroupOptions(workers_per_pod=together), stages)
    for stage in stages:
        # As Ray counts: in units of 1/10,000.
        def units(amount: float) -> int:
            return round(amount * 10_000)

        fit = units(group.cpus) // units(stage.cpus)
        if stage.gpus:
            fit = min(fit, units(group.gpus) // units(stage.gpus))
        assert fit * group.pods >= stage.count


def test_names_are_dns_labels_and_differ() -> None:
    ids = ["run", "Run", "run.1", "run_1", "run-1", "1", "x" * 47, "x" * 48, "x" * 128, "a-", "A."]
    names = [kuberay.object_name(text) for text in ids]
    assert all(re.fullmatch("[a-z]([-a-z0-9]{0,45}[a-z0-9])?", name) for name in names)
    assert len(set(names)) == len(ids)
    assert names[0] == "run"
    assert names[6] == "x" * 47


def test_an_output_that_pods_do_not_have_is_refused() -> None:
    config = load_config(QUICKSTART)
    with pytest.raises(KdscaleError, match="pods do not have"):
        make_job(config)


def test_a_config_that_cannot_travel_is_refused() -> None:
    config = make_config("data.train={kind: text, path: s3://" + "x" * 110_000 + "}")
    with pytest.raises(KdscaleError, match="travel to a pod"):
        make_job(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("secrets=[{variable: A, secret: s, key: k}, {variable: A, secret: t, key: k}]", "twice"),
        ("secrets=[{variable: RAY_AUTH_TOKEN, secret: s, key: k}]", "token_secret"),
        ("student.memory=16GB", "memory"),
        ("student.shared_memory=13Gi", "half of the pod's memory"),
        ("namespace=Mine", "namespace"),
        ("replicas=3", "unknown key"),
    ],
)
def test_wrong_options_are_refused(change: str, message: str) -> None:
    with pytest.raises(KdscaleError, match=message):
        load_kube_options(SHIPPED, [change])


def test_the_version_of_ray_is_the_one_here() -> None:
    spec = make_job(make_config())["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == version("ray")
    options = load_kube_options(SHIPPED)
    for image in (options.image, options.head_image):
        assert image is not None
        assert f":{version('ray')}-" in image
