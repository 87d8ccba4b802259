"""Jobs on Kubernetes through `kubectl`: submit, look up, log, stop, list.

The job's own state and the operator's can disagree: a job runs on in Ray after the operator has
given up on it (kuberay 2314), and a job that has ended may leave its cluster (kuberay 3553). Both
are kept, and a job has failed when either says so.
"""

import json
import shlex
import subprocess
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kdscale.errors import KdscaleError
from kdscale.submit.job import UnknownJobError, UnreachableError
from kdscale.submit.kuberay import DIGEST, LABELS, object_name

_SELECTOR = ",".join(f"{name}={value}" for name, value in LABELS.items())
LOGS = "/tmp/ray/session_latest/logs"
"""Where the head has the logs of drivers."""

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


@dataclass(frozen=True)
class KubeJob:
    """A job as Kubernetes knows it. Times are Unix seconds, None where a thing has not happened."""

    id: str
    status: str
    """In Ray's words: PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED."""

    ray: str
    """jobStatus: what Ray said last, "" before it was asked."""

    deployment: str
    """jobDeploymentStatus: how far the operator is."""

    reason: str
    message: str
    cluster: str
    """Name of the RayCluster, "" before there is one."""

    started: float | None
    ended: float | None
    metadata: dict[str, str]
    """What the submission said of itself."""

    @property
    def is_over(self) -> bool:
        """Whether the status is final."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")

    @property
    def states(self) -> str:
        """Both states, for a person."""
        return f"job {self.ray or 'not started'}, cluster {self.deployment or 'not begun'}"


def apply(manifest: dict[str, Any]) -> str:
    """Create the object and return its name. The same object twice is harmless.

    KdscaleError where another one has the name, UnreachableError.
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


def details(job_id: str, namespace: str) -> KubeJob:
    """The job's states. Raises UnknownJobError, UnreachableError."""
    name = object_name(job_id)
    try:
        return _job(json.loads(_kubectl(namespace, "get", "rayjob", name, "--output", "json")))
    except _AbsentError as error:
        raise UnknownJobError(
            f"The namespace {namespace} has no job {job_id!r} (RayJob {name}).",
            "`kdscale list` shows the jobs that are there; one that has ended stays until its "
            "RayJob is deleted.",
        ) from error


def list_jobs(namespace: str) -> list[KubeJob]:
    """The jobs that kdscale submitted and that are still there, oldest first."""
    output = _kubectl(namespace, "get", "rayjobs", "--selector", _SELECTOR, "--output", "json")
    items = json.loads(output)["items"]
    return [_job(item) for item in sorted(items, key=lambda i: i["metadata"]["creationTimestamp"])]


def log(job_id: str, namespace: str, start: int = 0) -> bytes:
    """What the job has written, from byte `start` on. Empty before its head runs.

    KdscaleError where the head is gone, and the log with it.
    """
    job = details(job_id, namespace)
    path = shlex.quote(f"{LOGS}/job-driver-{job.id}.log")
    # No pod and no file yet is an empty log; `tail` counts bytes from 1.
    script = f"test ! -e {path} || tail --bytes=+{start + 1} {path}"
    pod = _head_pod(job, namespace)
    if pod is not None:
        return _run(namespace, "exec", pod, "--container", "ray-head", "--", "sh", "-c", script)
    if job.is_over:
        raise KdscaleError(
            f"The head of {job_id} is gone, and its log with it.",
            "Give the head more time in the cluster's options: ttl_seconds. Metrics and results "
            "are in the run's output.",
        )
    return b""


def stop(job_id: str, namespace: str) -> bool:
    """Ask the job to end; True when it was going.

    Its driver gets an interrupt and its time, as everywhere; a job without a head is deleted.
    """
    job = details(job_id, namespace)
    if job.is_over:
        return False
    pod = _head_pod(job, namespace)
    if pod is None or not job.ray:
        _kubectl(namespace, "delete", "rayjob", object_name(job_id), "--wait=false")
    else:
        command = ("ray", "job", "stop", "--no-wait", job_id)
        _kubectl(namespace, "exec", pod, "--container", "ray-head", "--", *command)
    return True


def _job(item: dict[str, Any]) -> KubeJob:
    spec, status = item["spec"], item.get("status", {})
    ray, deployment = status.get("jobStatus", ""), status.get("jobDeploymentStatus", "")
    return KubeJob(
        id=spec["jobId"],
        status=_verdict(ray, deployment),
        ray=ray,
        deployment=deployment,
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        cluster=status.get("rayClusterName", ""),
        started=_seconds(status.get("startTime")),
        ended=_seconds(status.get("endTime")),
        metadata=spec.get("metadata", {}),
    )


def _seconds(time: str | None) -> float | None:
    """Unix seconds of a time as Kubernetes writes it."""
    return None if time is None else datetime.fromisoformat(time).timestamp()


def _verdict(ray: str, deployment: str) -> str:
    """One status of two. While the operator starts a failed job again, it has not failed."""
    if deployment in ("Failed", "ValidationFailed"):
        return "FAILED"
    if deployment in ("Retrying", "Suspending", "Suspended"):
        return "PENDING"
    return ray or "PENDING"


def _head_pod(job: KubeJob, namespace: str) -> str | None:
    """Name of the running head of the job's cluster; None where there is none."""
    if not job.cluster:
        return None
    output = _kubectl(
        *(namespace, "get", "pods", "--field-selector", "status.phase=Running"),
        *("--selector", f"ray.io/cluster={job.cluster},ray.io/node-type=head"),
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
    """What kubectl prints. Its refusals as errors that a person can act on."""
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
