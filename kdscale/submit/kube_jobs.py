"""Jobs on Kubernetes, each a RayJob with its own cluster: the back end over kubectl.py."""

import asyncio
import codecs
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from kdscale.config import load_kube_options, parse_config
from kdscale.errors import KdscaleError
from kdscale.share import CLUSTERS
from kdscale.submit import kubectl
from kdscale.submit.job import Job
from kdscale.submit.job_plan import JobPlan
from kdscale.submit.kuberay import rayjob_manifest
from kdscale.submit.records import Place

_POLL_SECONDS = 2.0


class KubeJobs:
    """The jobs in the namespace that the options of the Kubernetes cluster name.

    `file` has the options, by default those of cluster/kuberay.yaml.
    """

    def __init__(self, file: str | None = None) -> None:
        self.place = Place("kuberay", kube=None if file is None else str(Path(file).absolute()))
        self.file = file or str(CLUSTERS["kuberay"])
        self.cluster = load_kube_options(self.file)

    def render(self, plan: JobPlan) -> dict[str, Any]:
        """Return the RayJob. Contacts nothing."""
        known = {secret.variable for secret in self.cluster.secrets}
        if missing := [name for name in plan.secrets if name not in known]:
            raise KdscaleError(
                f"The secrets {', '.join(missing)} are in no Kubernetes secret that {self.file} "
                "names.",
                f"Create one (`kubectl -n {self.cluster.namespace} create secret generic ...`) and "
                "name it under `secrets`: values never travel with a job.",
            )
        return rayjob_manifest(plan, parse_config(plan.config_text), self.cluster)

    def submit(self, plan: JobPlan, folder: Path) -> None:
        """Create the RayJob; its code is the image's."""
        kubectl.apply(self.render(plan))

    def details(self, job_id: str) -> Job:
        """Return the job as it is now."""
        return kubectl.details(job_id, self.cluster.namespace)

    def log(self, job_id: str) -> str:
        """Return the job's log so far."""
        return kubectl.log(job_id, self.cluster.namespace).decode(errors="replace")

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        """Yield the log from its beginning, as it grows."""
        seen, decode = 0, codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        while True:
            # In this order: what was written before the end is read after it.
            job = await asyncio.to_thread(self.details, job_id)
            data = await asyncio.to_thread(kubectl.log, job_id, self.cluster.namespace, seen)
            seen += len(data)
            yield decode(data)
            if job.is_over:
                return
            await asyncio.sleep(_POLL_SECONDS)

    def list(self) -> list[Job]:
        """Return the jobs of the namespace, oldest first."""
        return kubectl.list_jobs(self.cluster.namespace)

    def stop(self, job_id: str, grace_seconds: int | None = None) -> bool:
        """Ask the job to stop; return whether it was going."""
        if grace_seconds is not None:
            raise KdscaleError(
                "On Kubernetes a job's time to leave is set when it is submitted.",
                "Leave out --grace here, and give it to `kdscale submit`.",
            )
        return kubectl.stop(job_id, self.cluster.namespace)

    def clean(self, job: Job) -> None:
        """Nothing to do: the operator takes the cluster away, and secrets are Kubernetes' own."""
