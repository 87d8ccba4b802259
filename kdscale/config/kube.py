"""Config of a Kubernetes cluster for `kdscale submit`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdscale.config.base import Config

# The forms of a Kubernetes quantity that make sense for memory.
Memory = Annotated[str, Field(pattern=r"^[1-9][0-9]*(Mi|Gi|Ti)$")]
# Names of Kubernetes objects: RFC 1123 subdomains.
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$")]


def mebibytes(memory: str) -> int:
    """MiB of a quantity such as 16Gi."""
    return int(memory[:-2]) * {"Mi": 1, "Gi": 1024, "Ti": 1024**2}[memory[-2:]]


class Toleration(Config):
    """A Kubernetes toleration."""

    key: str
    """The taint's key, such as `nvidia.com/gpu`."""

    operator: Literal["Exists", "Equal"] = "Exists"
    """`Equal` also compares `value`."""

    value: str | None = None
    """The taint's value."""

    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; any one when not given."""


class PlacementOptions(Config):
    """Nodes that pods may run on."""

    node_selector: dict[str, str] = {}
    """Labels that a node must have."""

    tolerations: tuple[Toleration, ...] = ()
    """Taints that a node may have."""


class HeadOptions(PlacementOptions):
    """The head's pod: Ray's control and the drivers of jobs, no workers."""

    cpus: int = Field(default=2, ge=1)
    """CPUs of the pod."""

    memory: Memory = "8Gi"
    """Memory of the pod."""


class GroupOptions(PlacementOptions):
    """The pods of a group of workers. Their CPUs and GPUs follow from the run's config."""

    workers_per_pod: int = Field(default=1, ge=1)
    """Workers that share a pod: as many as a node has GPUs makes one pod of each node."""

    memory: Memory = "16Gi"
    """Memory of the pod."""

    shared_memory: Memory = "4Gi"
    """Part of it that /dev/shm may take: Ray's objects, and NCCL's buffers between GPUs."""

    @model_validator(mode="after")
    def _shared_within_memory(self) -> "GroupOptions":
        shared, memory = mebibytes(self.shared_memory), mebibytes(self.memory)
        if not 512 <= shared <= memory // 2:
            raise ValueError(
                f"shared_memory {self.shared_memory} is not from 512Mi to half of the pod's memory "
                f"{self.memory}"
            )
        return self


class SecretVariable(Config):
    """An environment variable of all pods whose value is in a Kubernetes secret."""

    variable: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the variable."""

    secret: Name
    """Name of the secret, in the run's namespace."""

    key: str = Field(pattern=r"^[-._A-Za-z0-9]+$")
    """Key in the secret."""


class KubeOptions(Config):
    """A Kubernetes cluster with the KubeRay operator, as runs use it."""

    image: str = Field(min_length=1)
    """Image of workers, made from cluster/Dockerfile."""

    head_image: str | None = None
    """Image of the head, which needs no CUDA; `image` when not given."""

    pull_secret: Name | None = None
    """Secret with which images are pulled."""

    namespace: Name = "default"
    """Namespace of the job and its pods."""

    service_account: Name | None = None
    """Service account of all pods: how a cloud grants them its object store without a key (IRSA on
    EKS, workload identity on GKE and AKS). The operator gives the head's the right to scale."""

    secrets: tuple[SecretVariable, ...] = ()
    """Variables from secrets: keys of the object store where there is no service account, the W&B
    key, a Hugging Face token."""

    token_secret: Name | None = None
    """Secret whose key `auth_token` is Ray's token; needs an operator from 1.6 on. The operator
    makes a token for each cluster when not given."""

    head: HeadOptions = HeadOptions()
    teacher: GroupOptions = GroupOptions()
    student: GroupOptions = GroupOptions()

    idle_timeout_seconds: int = Field(default=600, ge=60)
    """A worker pod without work is removed after this time. Loading a large teacher takes
    minutes."""

    ttl_seconds: int = Field(default=3600, ge=0)
    """The head of an ended job stays for this time, for its log; then the cluster is deleted."""

    retries: int = Field(default=1, ge=0)
    """Restarts of a failed job, each in a new cluster: a head that is lost takes the
    job's driver along."""

    deadline_seconds: int | None = Field(default=None, gt=0)
    """A job that is older is ended; by default there is no limit."""

    @model_validator(mode="after")
    def _each_variable_once(self) -> "KubeOptions":
        names = [secret.variable for secret in self.secrets]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"secrets give {name} twice")
            if name.startswith(("RAY_AUTH_", "KDSCALE_")):
                raise ValueError(
                    f"{name} is set by the manifest; a token of your own: token_secret"
                )
        return self
