"""Jobs through the real kubectl, against an API server that checks by KubeRay's schemas."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdscale.config import KubeOptions, load_config
from kdscale.errors import KdscaleError
from kdscale.submit import kubectl, kuberay, plan_job
from kdscale.submit.job import UnknownJobError, UnreachableError
from tests.kube import Kubernetes

ROOT = Path(__file__).parents[3]
SPACE = "runs"
ID = "Run.1"
NAME = kuberay.object_name(ID)

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    with Kubernetes(tmp_path, (SPACE, "empty")) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        monkeypatch.setenv("HOME", str(tmp_path))
        yield server


def make_job(submission_id: str = ID, **plan: Any) -> dict[str, Any]:
    config = load_config(ROOT / "jobs/configs/quickstart.yaml", ["output=s3://bucket/run"])
    options = KubeOptions(image="kdscale", namespace=SPACE)
    return kuberay.rayjob_manifest(
        plan_job(config, submission_id=submission_id, **plan), config, options
    )


def test_submitting_twice_is_harmless_and_another_job_of_that_id_is_refused(
    cluster: Kubernetes,
) -> None:
    assert kubectl.apply(make_job()) == NAME
    assert kubectl.apply(make_job()) == NAME
    assert list(cluster.objects) == [("rayjobs", SPACE, NAME)]
    with pytest.raises(KdscaleError, match="another RayJob"):
        kubectl.apply(make_job(only="distill"))


def test_what_the_schema_refuses_is_refused(cluster: Kubernetes) -> None:
    manifest = make_job()
    manifest["spec"]["ttlSeconds"] = 3
    with pytest.raises(KdscaleError, match="ttlSeconds"):
        kubectl.apply(manifest)
    assert not cluster.objects


@pytest.mark.parametrize(
    ("ray", "deployment", "status"),
    [
        ("", "", "PENDING"),
        ("", "Initializing", "PENDING"),
        ("RUNNING", "Running", "RUNNING"),
        ("SUCCEEDED", "Complete", "SUCCEEDED"),
        ("STOPPED", "Complete", "STOPPED"),
        ("FAILED", "Failed", "FAILED"),
        # The operator has given up on a job that Ray still runs, and on one that never began.
        ("RUNNING", "Failed", "FAILED"),
        ("", "ValidationFailed", "FAILED"),
        # A new cluster comes up for it.
        ("FAILED", "Retrying", "PENDING"),
    ],
)
def test_both_states_are_shown_and_make_one_verdict(ray: str, deployment: str, status: str) -> None:
    item = {"spec": {"jobId": ID}, "status": {"jobStatus": ray, "jobDeploymentStatus": deployment}}
    job = kubectl._job(item)
    assert job.status == status
    assert job.is_over == (status in ("STOPPED", "SUCCEEDED", "FAILED"))
    assert job.message.startswith(
        f"job {ray or 'not started'}, cluster {deployment or 'not begun'}."
    )


def test_details_and_list(cluster: Kubernetes) -> None:
    for name in (ID, "other"):
        kubectl.apply(make_job(name))
    assert kubectl.details(ID, SPACE).status == "PENDING"
    cluster.set_status(
        *(NAME, SPACE),
        jobStatus="RUNNING",
        jobDeploymentStatus="Failed",
        reason="DeadlineExceeded",
        message="too long",
        startTime="2026-11-26T20:00:00Z",
        endTime="2026-11-26T21:00:30Z",
    )
    job = kubectl.details(ID, SPACE)
    assert (job.is_over, job.reason) == (True, "DeadlineExceeded")
    assert job.message == "job RUNNING, cluster Failed. too long"
    assert job.started is not None
    assert job.ended == job.started + 3630
    assert job.metadata["output"] == "s3://bucket/run"
    assert [job.id for job in kubectl.list_jobs(SPACE)] == [ID, "other"]
    assert kubectl.list_jobs("empty") == []
    with pytest.raises(UnknownJobError, match="no job 'absent'"):
        kubectl.details("absent", SPACE)


def test_a_log_is_read_from_where_it_was_left(
    cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kubectl, "LOGS", str(tmp_path))
    kubectl.apply(make_job())
    assert kubectl.log(ID, SPACE) == b""
    cluster.set_status(NAME, SPACE, rayClusterName="c", jobStatus="RUNNING")
    cluster.add_head("c", SPACE)
    assert kubectl.log(ID, SPACE) == b""
    text = "".join(f"line {number}: ü\n" for number in range(9000)).encode()
    (tmp_path / f"job-driver-{ID}.log").write_bytes(text)
    assert kubectl.log(ID, SPACE) == text
    assert kubectl.log(ID, SPACE, start=len(text) - 5) == text[-5:]
    assert kubectl.log(ID, SPACE, start=len(text)) == b""
    cluster.pods.clear()
    cluster.set_status(NAME, SPACE, jobStatus="SUCCEEDED", jobDeploymentStatus="Complete")
    with pytest.raises(KdscaleError, match=r"head of Run\.1 is gone"):
        kubectl.log(ID, SPACE)


def test_stop_interrupts_a_job_and_deletes_one_that_has_not_begun(
    cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    ray.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    kubectl.apply(make_job())
    cluster.set_status(NAME, SPACE, rayClusterName="c", jobStatus="RUNNING")
    cluster.add_head("c", SPACE)
    assert kubectl.stop(ID, SPACE)
    assert (tmp_path / "asked").read_text() == f"job stop --no-wait {ID}\n"
    cluster.set_status(NAME, SPACE, jobStatus="STOPPED")
    assert not kubectl.stop(ID, SPACE)
    kubectl.apply(make_job("young"))
    assert kubectl.stop("young", SPACE)
    assert list(cluster.objects) == [("rayjobs", SPACE, NAME)]


def test_a_cluster_without_the_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Kubernetes(tmp_path, (SPACE,), operator=False) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        monkeypatch.setenv("HOME", str(tmp_path))
        for ask in (lambda: kubectl.apply(make_job()), lambda: kubectl.details(ID, SPACE)):
            with pytest.raises(KdscaleError, match="no KubeRay operator") as caught:
                ask()
            assert "helm install kuberay-operator" in caught.value.fix
    with pytest.raises(UnreachableError, match="does not answer"):
        kubectl.list_jobs(SPACE)


def test_a_namespace_that_is_not_there(cluster: Kubernetes) -> None:
    manifest = make_job()
    manifest["metadata"]["namespace"] = "nowhere"
    for ask in (lambda: kubectl.apply(manifest), lambda: kubectl.details(ID, "nowhere")):
        with pytest.raises(KdscaleError, match="no namespace 'nowhere'") as caught:
            ask()
        assert "kubectl create namespace nowhere" in caught.value.fix


def test_a_machine_without_kubectl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KdscaleError, match="kubectl is not installed"):
        kubectl.list_jobs(SPACE)
