"""The RayJob of a run on Kubernetes: rayjob.yaml.j2, filled in from the run's config.

Its cluster has two groups of worker pods: `teacher` for training and capture, `student` for
distillation and evaluation. A pod's CPUs and GPUs and the most pods of a group follow from the
config's workers.
"""

import hashlib
import json
import math
import re
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from kdscale.config import KubeOptions, RunConfig
from kdscale.config.kube import GroupOptions, mebibytes
from kdscale.config.training import WorkersConfig
from kdscale.errors import KdscaleError
from kdscale.submit.job_plan import JobPlan
from kdscale.submit.package import CONFIG_PATH

LABELS = {"app.kubernetes.io/name": "kdscale", "app.kubernetes.io/managed-by": "kdscale"}
DIGEST = "kdscale/digest"
"""Annotation that tells whether a job that is there is the one to be submitted."""

# Where cluster/Dockerfile puts the job scripts, and where the config is mounted.
_JOBS = "/home/ray/kdscale/jobs"
_CONFIG_FOLDER = "/home/ray/job"
# Kubernetes takes 256 KiB of annotations, and `kubectl apply` keeps a copy in one.
_MOST_CONFIG_BYTES = 100 * 1024
_LONGEST_NAME = 47  # KubeRay adds to it, and a label's value ends at 63 characters.


@dataclass(frozen=True)
class Group:
    """A group of worker pods, each for several workers of any of its stages."""

    name: str
    options: GroupOptions
    cpus: int
    """CPUs of a pod."""

    gpus: int
    pods: int
    """So many that each stage fits."""

    @property
    def object_store_bytes(self) -> int:
        """Memory of Ray's object store in a pod."""
        return mebibytes(self.options.shared_memory) * 2**20 // 2


def rayjob_manifest(plan: JobPlan, config: RunConfig, options: KubeOptions) -> dict[str, Any]:
    """Return the RayJob that runs `plan` in its own cluster, which ends after the job.

    Raises KdscaleError where a path is of this machine, or the config is too large to travel.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    _check(plan, config)
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=False
    )
    # YAML takes JSON as it is, but for jinja2's escapes of HTML.
    templates.filters["tojson"] = json.dumps
    text = templates.get_template("rayjob.yaml.j2").render(
        name=object_name(plan.submission_id),
        plan=plan,
        options=options,
        entrypoint=_entrypoint(plan),
        ray_version=version("ray"),
        config_folder=_CONFIG_FOLDER,
        groups=make_groups(config, options),
    )
    manifest: dict[str, Any] = yaml.safe_load(text)
    digest = hashlib.sha256(json.dumps(manifest["spec"], sort_keys=True).encode()).hexdigest()
    manifest["metadata"]["annotations"] = {DIGEST: digest}
    return manifest


def make_groups(config: RunConfig, options: KubeOptions) -> list[Group]:
    """Return the groups of worker pods; without a teacher's where teacher and cache exist."""
    trained = [config.teacher.workers] if config.teacher.training is not None else []
    captured = [config.cache.capture.workers] if config.cache.reuse is None else []
    student = [config.distill.workers, config.evaluate.workers]
    groups = [make_group("student", options.student, student)]
    if trained or captured:
        groups.insert(0, make_group("teacher", options.teacher, trained + captured))
    return groups


def make_group(name: str, options: GroupOptions, stages: list[WorkersConfig]) -> Group:
    """Return a group whose pods have `workers_per_pod` workers of any of the stages."""
    together = min(options.workers_per_pod, max(stage.count for stage in stages))
    cpus = math.ceil(max(stage.cpus for stage in stages) * together)
    gpus = math.ceil(max(stage.gpus for stage in stages) * together)
    return Group(name, options, cpus, gpus, max(_pods(stage, cpus, gpus) for stage in stages))


def object_name(text: str) -> str:
    """Return the Kubernetes name (DNS label) of a job's id; another one for each."""
    slug = re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")
    if not slug[:1].isalpha():
        slug = f"run-{slug}"
    if slug == text and len(slug) <= _LONGEST_NAME:
        return slug
    tail = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{slug[: _LONGEST_NAME - len(tail) - 1].rstrip('-')}-{tail}"


def _check(plan: JobPlan, config: RunConfig) -> None:
    if "://" not in config.output:
        raise KdscaleError(
            f"The output {config.output!r} is a folder of this machine, which pods do not have.",
            "Give a URL of an object store: --set output=s3://bucket/run.",
        )
    if relative := [place for place in plan.places if place.is_relative]:
        raise KdscaleError(
            f"{relative[0].field} {relative[0].given!r} is a path of this machine, which pods do "
            "not have.",
            "Give an absolute path inside the pods, or leave it out."
            if relative[0].form == "node"
            else "Give a URL of an object store, or an absolute path inside the image.",
        )
    size = len(plan.config_text.encode())
    if size > _MOST_CONFIG_BYTES:
        raise KdscaleError(
            f"The config has {size:,} bytes, and at most {_MOST_CONFIG_BYTES:,} travel to a pod.",
            "Put long lists of sources into a file of the object store.",
        )


def _entrypoint(plan: JobPlan) -> str:
    """Return the plan's command with the paths that it has in a pod."""
    paths = {"jobs/run.py": f"{_JOBS}/run.py", CONFIG_PATH: f"{_CONFIG_FOLDER}/config.yaml"}
    words = shlex.split(plan.entrypoint)
    assert paths.keys() <= set(words), plan.entrypoint
    return shlex.join(paths.get(word, word) for word in words)


def _pods(stage: WorkersConfig, cpus: int, gpus: int) -> int:
    """Return how many pods of so many CPUs and GPUs the stage's workers fill: none is split."""
    fit = math.floor(cpus / stage.cpus)
    if stage.gpus:
        fit = min(fit, math.floor(gpus / stage.gpus))
    return math.ceil(stage.count / fit)
