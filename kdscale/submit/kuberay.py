"""A run as KubeRay's RayJob or RayCluster, rendered from its config: what Kubernetes is asked for.

Both have a head that runs no workers and two groups that start empty and grow when a stage asks:
`teacher` for training and capture, `student` for distillation and evaluation. A pod's CPUs and GPUs
and the most pods of a group follow from the config's workers.

HTTPMode, because the operator then starts the job itself. The other modes do it in a pod that
follows the log, and a log that breaks off has ended healthy jobs there (kuberay 4285 and 4921).
Nothing but the RayJob is made: the config travels as an annotation of the head's pod, which the
pod has as a file, so there is no ConfigMap that outlives the job. The code is the image's.
Fields: ray-operator/apis/ray/v1 in ray-project/kuberay.
"""

import hashlib
import json
import math
import re
import shlex
from importlib.metadata import version
from typing import Any

import yaml

from kdscale.config import KubeOptions, RunConfig
from kdscale.config.kube import GroupOptions, PlacementOptions, mebibytes
from kdscale.config.training import WorkersConfig
from kdscale.errors import KdscaleError
from kdscale.submit.job_plan import JobPlan
from kdscale.submit.package import CONFIG_PATH

API_VERSION = "ray.io/v1"
LABELS = {"app.kubernetes.io/name": "kdscale", "app.kubernetes.io/managed-by": "kdscale"}
DIGEST = "kdscale/digest"
"""Annotation that tells whether a job that is there is the one to be submitted."""

# Where cluster/Dockerfile puts the job scripts, and where the config is mounted.
_JOBS = "/home/ray/kdscale/jobs"
# A node that is silent for half a minute counts as lost (docs/faults.md).
_HEALTH_CHECKS = {
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "4",
}
_CONFIG_FOLDER = "/home/ray/job"
_CONFIG = "kdscale/config"
# Kubernetes takes 256 KiB of annotations, and `kubectl apply` keeps a copy in one.
_MOST_CONFIG_BYTES = 100 * 1024
_LONGEST_NAME = 47  # KubeRay adds to it, and a label's value ends at 63 characters.


def rayjob_manifest(plan: JobPlan, config: RunConfig, options: KubeOptions) -> dict[str, Any]:
    """The RayJob that runs `plan` in a cluster of its own, which ends after the job.

    KdscaleError where the output is a local folder, or the config is too large to travel.
    """
    if "://" not in config.output:
        raise KdscaleError(
            f"The output {config.output!r} is a folder of this machine, which pods do not have.",
            "Give a URL of an object store: --set output=s3://bucket/run.",
        )
    if relative := [place for place in plan.places if place.is_relative]:
        raise KdscaleError(
            f"{relative[0].field} {relative[0].given!r} is a path of this machine, which pods do "
            "not have.",
            "Give a URL of an object store, or an absolute path inside the image.",
        )
    size = len(plan.config_text.encode())
    if size > _MOST_CONFIG_BYTES:
        raise KdscaleError(
            f"The config has {size:,} bytes, and at most {_MOST_CONFIG_BYTES:,} travel to a pod.",
            "Put long lists of sources into a file of the object store.",
        )
    spec: dict[str, Any] = {
        "submissionMode": "HTTPMode",
        "jobId": plan.submission_id,
        "entrypoint": _entrypoint(plan),
        "runtimeEnvYAML": _yaml({"env_vars": plan.environment}),
        "metadata": dict(plan.metadata),
        # A new cluster for each retry. What the run had finished is in the object store.
        "backoffLimit": options.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": options.ttl_seconds,
        "rayClusterSpec": _cluster(config, options),
    }
    if options.deadline_seconds is not None:
        spec["activeDeadlineSeconds"] = options.deadline_seconds
    _give_config(spec["rayClusterSpec"]["headGroupSpec"]["template"], plan.config_text)
    return _object("RayJob", object_name(plan.submission_id), spec, options)


def raycluster_manifest(config: RunConfig, options: KubeOptions) -> dict[str, Any]:
    """A RayCluster that fits `config` and stays: for jobs submitted to its dashboard."""
    return _object("RayCluster", object_name(config.name), _cluster(config, options), options)


def render(manifest: dict[str, Any]) -> str:
    """The manifest as YAML, which `kubectl apply -f -` takes."""
    return _yaml(manifest)


def object_name(text: str) -> str:
    """The Kubernetes name (DNS label) for a job's id or a run's name; another one for each."""
    slug = re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")
    if not slug[:1].isalpha():
        slug = f"run-{slug}"
    if slug == text and len(slug) <= _LONGEST_NAME:
        return slug
    tail = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{slug[: _LONGEST_NAME - len(tail) - 1].rstrip('-')}-{tail}"


def _object(kind: str, name: str, spec: dict[str, Any], options: KubeOptions) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": options.namespace,
            "labels": dict(LABELS),
            "annotations": {DIGEST: digest},
        },
        "spec": spec,
    }


def _entrypoint(plan: JobPlan) -> str:
    """The plan's command with the paths that it has in a pod: there is no folder of the job's."""
    paths = {"jobs/run.py": f"{_JOBS}/run.py", CONFIG_PATH: f"{_CONFIG_FOLDER}/config.yaml"}
    words = shlex.split(plan.entrypoint)
    assert paths.keys() <= set(words), plan.entrypoint
    return shlex.join(paths.get(word, word) for word in words)


def _give_config(template: dict[str, Any], text: str) -> None:
    """Let the pod have the config as a file."""
    template["metadata"] = {"annotations": {_CONFIG: text}}
    field = {"fieldPath": f"metadata.annotations['{_CONFIG}']"}
    items = [{"path": "config.yaml", "fieldRef": field}]
    template["spec"]["volumes"] = [{"name": "config", "downwardAPI": {"items": items}}]
    mount = {"name": "config", "mountPath": _CONFIG_FOLDER, "readOnly": True}
    template["spec"]["containers"][0]["volumeMounts"] = [mount]


def _cluster(config: RunConfig, options: KubeOptions) -> dict[str, Any]:
    """The RayClusterSpec that both kinds have."""
    groups = {
        "teacher": (options.teacher, _teacher_workers(config)),
        "student": (options.student, [config.distill.workers, config.evaluate.workers]),
    }
    auth = {"mode": "token"}
    if options.token_secret is not None:
        auth["secretName"] = options.token_secret
    return {
        # The operator chooses commands and probes by it: it has to be the image's.
        "rayVersion": version("ray"),
        "authOptions": auth,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": options.idle_timeout_seconds,
        },
        "headGroupSpec": _head(options),
        "workerGroupSpecs": [
            _group(name, group, workers, options)
            for name, (group, workers) in groups.items()
            if workers
        ],
    }


def _teacher_workers(config: RunConfig) -> list[WorkersConfig]:
    """Of the stages that run the teacher alone; none where both teacher and cache exist."""
    trained = [config.teacher.workers] if config.teacher.training is not None else []
    captured = [config.cache.capture.workers] if config.cache.reuse is None else []
    return trained + captured


def _head(options: KubeOptions) -> dict[str, Any]:
    head = options.head
    container = _container(
        "ray-head", options.head_image or options.image, head.cpus, 0, head.memory, options
    )
    container["ports"] = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
    ]
    return {
        # A busy head loses its nodes. Drivers of jobs run here all the same.
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
        "template": {"spec": _pod(container, head, options)},
    }


def _group(
    name: str, group: GroupOptions, stages: list[WorkersConfig], options: KubeOptions
) -> dict[str, Any]:
    """A group of pods, each for `workers_per_pod` workers of any of the stages, and at most so many
    of them that each stage fits.
    """
    together = min(group.workers_per_pod, max(stage.count for stage in stages))
    cpus = math.ceil(max(stage.cpus for stage in stages) * together)
    gpus = math.ceil(max(stage.gpus for stage in stages) * together)
    container = _container("ray-worker", options.image, cpus, gpus, group.memory, options)
    container["volumeMounts"] = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    pod = _pod(container, group, options)
    # Kubernetes gives a container 64 MiB of /dev/shm.
    memory = {"medium": "Memory", "sizeLimit": group.shared_memory}
    pod["volumes"] = [{"name": "shared-memory", "emptyDir": memory}]
    # Only the autoscaler, on the head, has to speak to Kubernetes.
    pod["automountServiceAccountToken"] = False
    return {
        "groupName": name,
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": max(_pods(stage, cpus, gpus) for stage in stages),
        "rayStartParams": {
            "num-cpus": str(cpus),
            # The other half is NCCL's.
            "object-store-memory": str(mebibytes(group.shared_memory) * 2**20 // 2),
        },
        "template": {"spec": pod},
    }


def _pods(stage: WorkersConfig, cpus: int, gpus: int) -> int:
    """Pods of so many CPUs and GPUs that the stage's workers fill. Ray splits no worker."""
    fit = math.floor(cpus / stage.cpus)
    if stage.gpus:
        fit = min(fit, math.floor(gpus / stage.gpus))
    return math.ceil(stage.count / fit)


def _container(
    name: str, image: str, cpus: int, gpus: int, memory: str, options: KubeOptions
) -> dict[str, Any]:
    # No limit on CPUs: it would throttle a pod whose node has idle ones.
    fixed: dict[str, str] = {"memory": memory}
    if gpus:
        fixed["nvidia.com/gpu"] = str(gpus)
    return {
        "name": name,
        "image": image,
        "env": _environment(options),
        "resources": {"requests": {"cpu": str(cpus), **fixed}, "limits": dict(fixed)},
        "readinessProbe": _probe(period=5, failures=12),
        # Ten minutes: a worker that computes on all its cores answers late, but is alive.
        "livenessProbe": _probe(period=10, failures=60),
        "securityContext": {"allowPrivilegeEscalation": False},
    }


def _environment(options: KubeOptions) -> list[dict[str, Any]]:
    """Variables of a Ray container. Values of secrets stay in Kubernetes."""
    return [
        # An operator that does not know authOptions drops it: Ray then misses its token and ends,
        # where it would otherwise be open.
        {"name": "RAY_AUTH_MODE", "value": "token"},
        # Stages may ask for more than is there: the cluster grows.
        {"name": "KDSCALE_AUTOSCALES", "value": "1"},
        *({"name": name, "value": value} for name, value in _HEALTH_CHECKS.items()),
        *(
            {
                "name": secret.variable,
                "valueFrom": {"secretKeyRef": {"name": secret.secret, "key": secret.key}},
            }
            for secret in options.secrets
        ),
    ]


def _probe(period: int, failures: int) -> dict[str, Any]:
    """Ray's own answer about a node, for which it asks no token."""
    return {
        "httpGet": {"path": "/api/healthz", "port": 52365},
        "periodSeconds": period,
        "timeoutSeconds": 10,
        "failureThreshold": failures,
    }


def _pod(
    container: dict[str, Any], placement: PlacementOptions, options: KubeOptions
) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "containers": [container],
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
    }
    if placement.node_selector:
        pod["nodeSelector"] = dict(placement.node_selector)
    if placement.tolerations:
        pod["tolerations"] = [t.model_dump(exclude_none=True) for t in placement.tolerations]
    if options.service_account is not None:
        pod["serviceAccountName"] = options.service_account
    if options.pull_secret is not None:
        pod["imagePullSecrets"] = [{"name": options.pull_secret}]
    return pod


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, so that a config in a manifest can be read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _yaml(tree: dict[str, Any]) -> str:
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)
