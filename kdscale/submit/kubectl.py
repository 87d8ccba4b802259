"""Jobs on Kubernetes through `kubectl`: submit, look up, log, stop, list.

The job's own state and the operator's can disagree: a job continues in Ray after the operator has
abandoned it (kuberay 2314), and a job that has ended may leave its cluster (kuberay 3553). Both
are shown, and a job has failed when either says so.
"""

import json
import shlex
import subprocess
from datetime import datetime
from typing import Any, cast

from kdscale.errors import KdscaleError
from kdscale.submit.job import Job, Status, UnknownJobError, UnreachableError
from kdscale.submit.kuberay import DIGEST, LABELS, object_name

_SELECTOR = ",".join(f"{name}={value}" for name, value in LABELS.items())
LOGS = "/tmp/ray/session_latest/logs"
"""Folder on the head with the logs of drivers."""

_SECONDS = 60  # of one call; a log that is followed is asked for again and again

# What kubectl says, and what it means.
_NO_KIND = ("doesn't have a resource type", "no matches for kind", "could not find the requested")
_UNREACHABLE = (
    "Unable to connect",
    "connection refused",
    "was refused",
    "i/o timeout",
    "no such host",
)


def apply(manifest: dict[str, Any]) -> str:
    """Create the object and return its name. The same object twice is harmless.

    Raises KdscaleError where another one has the name, UnreachableError.
    """
    kind, meta = manifest["kind"].lower(), manifest["metadata"]
    name, namespace = meta["name"], meta["namespace"]
    try:
        _kubectl(namespace, "create", "--filename", "-", text=json.dumps(manifest))
    except _ExistsError as error:
        found = json.loads(_kubectl(namespace, "get", kind, name, "--output", "json"))
        digest = found["metadata"].get("annotations", {}).get(DIGEST)
        if digest != meta["annotations"][DIGEST]:
            raise KdscaleError(
                f"The namespace {namespace} has another {manifest['kind']} {name!r} already.",
                f"Choose another id, or remove it: `kubectl -n {namespace} delete {kind} {name}`.",
            ) from error
    return str(name)


def details(job_id: str, namespace: str) -> Job:
    """Return the job as it is now. Raises UnknownJobError, UnreachableError."""
    return _job(_rayjob(job_id, namespace))


def _rayjob(job_id: str, namespace: str) -> dict[str, Any]:
    name = object_name(job_id)
    try:
        found = json.loads(_kubectl(namespace, "get", "rayjob", name, "--output", "json"))
        return cast(dict[str, Any], found)
    except _AbsentError as error:
        raise UnknownJobError(
            f"The namespace {namespace} has no job {job_id!r} (RayJob {name}).",
            "`kdscale list` shows the jobs that are there; one that has ended stays until its "
            "RayJob is deleted.",
        ) from error


def list_jobs(namespace: str) -> list[Job]:
    """Return the jobs that kdscale submitted and that still exist, oldest first."""
    output = _kubectl(namespace, "get", "rayjobs", "--selector", _SELECTOR, "--output", "json")
    items = json.loads(output)["items"]
    return [_job(item) for item in sorted(items, key=lambda i: i["metadata"]["creationTimestamp"])]


def log(job_id: str, namespace: str, start: int = 0) -> bytes:
    """Return the job's log from byte `start` on. Empty before its head runs.

    KdscaleError where the head is gone, and the log with it.
    """
    item = _rayjob(job_id, namespace)
    path = shlex.quote(f"{LOGS}/job-driver-{job_id}.log")
    # No pod and no file yet is an empty log; `tail` counts bytes from 1.
    script = f"test ! -e {path} || tail --bytes=+{start + 1} {path}"
    pod = _head_pod(item, namespace)
    if pod is not None:
        return _run(namespace, "exec", pod, "--container", "ray-head", "--", "sh", "-c", script)
    if _job(item).is_over:
        raise KdscaleError(
            f"The head of {job_id} is gone, and its log with it.",
            "Give the head more time in the cluster's options: ttl_seconds. Metrics and results "
            "are in the run's output.",
        )
    return b""


def stop(job_id: str, namespace: str) -> bool:
    """Ask the job to end; return whether it was going.

    Its driver gets an interrupt and its grace period; a job without a head is deleted.
    """
    item = _rayjob(job_id, namespace)
    if _job(item).is_over:
        return False
    pod = _head_pod(item, namespace)
    if pod is None or not item["status"].get("jobStatus"):
        _kubectl(namespace, "delete", "rayjob", object_name(job_id), "--wait=false")
    else:
        command = ("ray", "job", "stop", "--no-wait", job_id)
        _kubectl(namespace, "exec", pod, "--container", "ray-head", "--", *command)
    return True


def _job(item: dict[str, Any]) -> Job:
    spec, status = item["spec"], item.get("status", {})
    ray, deployment = status.get("jobStatus", ""), status.get("jobDeploymentStatus", "")
    states = f"job {ray or 'not started'}, cluster {deployment or 'not begun'}"
    return Job(
        id=spec["jobId"],
        status=_combined(ray, deployment),
        started=_seconds(status.get("startTime")),
        ended=_seconds(status.get("endTime")),
        reason=status.get("reason", ""),
        message=f"{states}. {status.get('message', '')}".strip(),
        metadata=spec.get("metadata", {}),
    )


def _seconds(time: str | None) -> float | None:
    """Return the Unix seconds of a time as Kubernetes writes it."""
    return None if time is None else datetime.fromisoformat(time).timestamp()


def _combined(ray: str, deployment: str) -> Status:
    """Return one status of two. While the operator restarts a failed job, it has not failed."""
    if deployment in ("Failed", "ValidationFailed"):
        return "FAILED"
    if deployment in ("Retrying", "Suspending", "Suspended"):
        return "PENDING"
    return cast(Status, ray or "PENDING")


def _head_pod(item: dict[str, Any], namespace: str) -> str | None:
    """Return the name of the running head of the job's cluster; None where there is none."""
    cluster = item.get("status", {}).get("rayClusterName")
    if not cluster:
        return None
    output = _kubectl(
        *(namespace, "get", "pods", "--field-selector", "status.phase=Running"),
        *("--selector", f"ray.io/cluster={cluster},ray.io/node-type=head"),
        *("--output", "json"),
    )
    items = json.loads(output)["items"]
    return items[0]["metadata"]["name"] if items else None


class _ExistsError(Exception):
    """The name is taken."""


class _AbsentError(Exception):
    """There is no such object."""


def _kubectl(namespace: str, *arguments: str, text: str | None = None) -> str:
    return _run(namespace, *arguments, text=text).decode()


def _run(namespace: str, *arguments: str, text: str | None = None) -> bytes:
    """Return what kubectl prints. Raises its refusals as errors with a fix."""
    command = ["kubectl", "--namespace", namespace, f"--request-timeout={_SECONDS}s", *arguments]
    try:
        done = subprocess.run(
            command, input=None if text is None else text.encode(), capture_output=True, check=False
        )
    except FileNotFoundError as error:
        raise KdscaleError(
            "kubectl is not installed here, and Kubernetes is reached through it.",
            "Install it (https://kubernetes.io/docs/tasks/tools/) and log in to the cluster.",
        ) from error
    if done.returncode:
        raise _refusal(done.stderr.decode(errors="replace").strip(), namespace)
    return done.stdout


def _refusal(text: str, namespace: str) -> Exception:
    last = text.splitlines()[-1] if text else "kubectl says nothing"
    if "(AlreadyExists)" in text:
        return _ExistsError(last)
    if "(NotFound)" in text and "rayjobs.ray.io" in text:
        return _AbsentError(last)
    if "(NotFound)" in text and f'namespaces "{namespace}"' in text:
        return KdscaleError(
            f"The Kubernetes cluster has no namespace {namespace!r}.",
            f"Create it, `kubectl create namespace {namespace}`, with the secrets that jobs need.",
        )
    if any(words in text for words in _NO_KIND):
        return KdscaleError(
            f"The cluster has no KubeRay operator: {last}",
            "Install it: `helm install kuberay-operator kuberay-operator "
            "--repo https://ray-project.github.io/kuberay-helm/` (1.5.1 or later).",
        )
    if any(words in text for words in _UNREACHABLE):
        return UnreachableError(
            f"The Kubernetes cluster does not answer: {last}",
            "Check `kubectl cluster-info` and `kubectl config current-context`.",
        )
    if "(Forbidden)" in text:
        return KdscaleError(
            f"Kubernetes refuses us: {last}",
            f"Ask for the rights in the namespace {namespace} that docs/clusters.md names.",
        )
    return KdscaleError(
        f"kubectl failed: {text or last}",
        f"Try the same by hand: kubectl -n {namespace} get rayjobs.",
    )
