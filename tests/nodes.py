"""Several real nodes on one machine: a Ray cluster whose nodes have namespaces of their own.

Every node has its own network (an address on a bridge), processes, host name, /tmp and /dev/shm, so
that nodes reach each other over the bridge alone. The head offers no CPU: it has the jobs' drivers.
Workers offer one each. The S3 server listens on the bridge's address, which stands for the world
outside, as does whoever submits. Nothing is routed any further.

    folder/node-1 ...   each node's /tmp, and its log beside it
"""

import fcntl
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self

import psutil

from tests.s3 import S3Server, die_with_parent

PATIENCE_SECONDS = 120
# As cluster/local.sh has them: a node that is silent for half a minute counts as lost.
HEALTH_CHECKS = {
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "4",
}
_PROGRAMS = Path(sys.executable).parent
# A node's setup before Ray: a host name that the others can resolve, and private folders.
# $1 its name, $2 the folder of all nodes, $3 the folder that they share; then the command.
_ENTER = """
set -e
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
case "$3" in
/tmp/*) mkdir -p "$2/$1${3#/tmp}" && mount --bind "$3" "$2/$1${3#/tmp}" ;;
esac
mount --rbind "$2/$1" /tmp
mount -t tmpfs -o size=512m tmpfs /dev/shm
shift 3
"$@"
"""


def why_not() -> str | None:
    """Return why nodes cannot be made here, None if they can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    name = f"kd{secrets.token_hex(4)}"
    try:
        _run("ip", "netns", "add", name)
        _run("ip", "netns", "exec", name, "unshare", "--pid", "--fork", "--mount-proc", "true")
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        return f"network namespaces cannot be made: {getattr(error, 'stderr', error)}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None


class Node:
    """One node: its namespace, its address and, while it runs, its processes."""

    def __init__(self, name: str, id_: str, number: int, network: str) -> None:
        self.name = name
        self.address = f"{network}.{number + 1}"
        self.namespace = f"kd{id_}-{number}"
        self.link = f"kdv{id_}{number}"
        self.process: subprocess.Popen[bytes] | None = None

    def pids(self) -> list[int]:
        """Its processes, as the host numbers them."""
        return [int(pid) for pid in _run("ip", "netns", "pids", self.namespace).split()]

    def find(self, title: str) -> list[int]:
        """Its processes whose command line matches the regular expression `title`."""
        return [pid for pid in self.pids() if re.search(title, _command_line(pid))]

    def kill(self) -> None:
        """All its processes at once, as a loss of power would do it."""
        if self.process is None:
            return
        # The end of the first process of a namespace of pids is that of all of them.
        self.process.kill()
        self.process.wait()
        self.process = None
        wait_until(lambda: not self.pids(), f"{self.name}'s processes to be gone")

    def cut(self) -> None:
        """Take it off the network: nothing gets in or out, without notice."""
        _run("ip", "link", "set", self.link, "down")

    def reconnect(self) -> None:
        """Put it back."""
        _run("ip", "link", "set", self.link, "up")


class Nodes:
    """A head and `workers` nodes with one CPU each, and an S3 server beside them.

    A context manager; `shared` is a folder that is at the same path on every node, as with NFS.

    `env` is what reaches the cluster and the server from outside.
    """

    def __init__(self, folder: Path, shared: Path, workers: int = 3) -> None:
        self.folder, self.shared = folder, shared
        self._id = secrets.token_hex(3)
        self._bridge = f"kdb{self._id}"
        self._token = secrets.token_hex(16)
        network = self._make_bridge()
        self.server = S3Server(folder / "s3", host=f"{network}.1")
        names = ["head", *(f"node-{number}" for number in range(1, workers + 1))]
        self.nodes = [
            Node(name, self._id, number, network) for number, name in enumerate(names, start=1)
        ]
        self.url = f"http://{self.head.address}:8265"
        self.env = {**self.server.env, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token}

    @property
    def head(self) -> Node:
        return self.nodes[0]

    @property
    def workers(self) -> list[Node]:
        return self.nodes[1:]

    def start(self, *nodes: Node) -> None:
        """Start Ray on nodes that have no processes, and wait until they belong to the cluster."""
        for node in nodes:
            self._launch(node)
        for node in nodes:
            wait_until(partial(self._has_started, node), f"{node.name} to start")

    def _launch(self, node: Node) -> None:
        command = [str(_PROGRAMS / "ray"), "start", "--block", "--disable-usage-stats"]
        command += ["--node-ip-address", node.address, "--object-store-memory", str(150 << 20)]
        if node is self.head:
            command += ["--head", "--port", "6379", "--num-cpus", "0"]
            command += ["--dashboard-host", node.address, "--dashboard-port", "8265"]
        else:
            command += ["--address", f"{self.head.address}:6379", "--num-cpus", "1"]
        # Its first process ends with `unshare`, and that with this process.
        enter = ["ip", "netns", "exec", node.namespace, "unshare", "--uts", "--ipc", "--mount"]
        enter += ["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", _ENTER, "sh"]
        enter += [node.name, str(self.folder), str(self.shared)]
        (self.folder / node.name).mkdir(exist_ok=True)
        with self._log(node).open("wb") as output:
            node.process = subprocess.Popen(
                [*enter, *command],
                env=self._environment(),
                stdout=output,
                stderr=output,
                preexec_fn=die_with_parent,
            )

    def _has_started(self, node: Node) -> bool:
        text = self._log(node).read_text(errors="replace")
        assert node.process is not None
        assert node.process.poll() is None, f"{node.name} ended:\n{text[-3000:]}"
        return "Ray runtime started" in text

    def _log(self, node: Node) -> Path:
        return self.folder / f"{node.name}.log"

    def restart(self, node: Node) -> None:
        """Start a node again, as a supervisor or an autoscaler would, whatever is left of it."""
        node.reconnect()
        node.kill()
        self.start(node)

    def running(self, title: str) -> list[Node]:
        """Return the nodes with a process whose command line matches `title`."""
        return [node for node in self.nodes if node.find(title)]

    def __enter__(self) -> Self:
        try:
            hosts = [f"{node.address} {node.name}" for node in self.nodes]
            (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
            for node in self.nodes:
                self._connect(node)
            self.server.start()
            self.start(self.head)
            self.start(*self.workers)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes and take the network away."""
        for node in reversed(self.nodes):
            if node.process is not None:
                node.process.kill()
                node.process.wait()
        self.server.stop()
        # The links go with their namespaces.
        for node in self.nodes:
            subprocess.run(["ip", "netns", "del", node.namespace], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)

    def _environment(self) -> dict[str, str]:
        """Return Ray's environment on a node, which has the key to the bucket."""
        foreign = ("RAY_", "AWS_", "WANDB_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {
            **kept,
            **self.env,
            **HEALTH_CHECKS,
            "PATH": f"{_PROGRAMS}{os.pathsep}{os.environ['PATH']}",
            "TMPDIR": "/tmp",
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "offline",
            # On a busy machine Ray's own 15 would leave workers no time beside anything else.
            "RAY_worker_niceness": "0",
            # It looks at the whole machine's memory, and would kill for what others take.
            "RAY_memory_monitor_refresh_ms": "0",
        }

    def _make_bridge(self) -> str:
        """Make a bridge in a free network; return the network's first three numbers."""
        with (Path(tempfile.gettempdir()) / "kdscale-nodes.lock").open("w") as lock:
            # Two sessions at once must not choose the same.
            fcntl.flock(lock, fcntl.LOCK_EX)
            taken = _run("ip", "-4", "-oneline", "address")
            free = (f"10.77.{n}" for n in range(256) if f" 10.77.{n}." not in taken)
            network = next(free)
            _run("ip", "link", "add", self._bridge, "type", "bridge")
            _run("ip", "address", "add", f"{network}.1/24", "dev", self._bridge)
            _run("ip", "link", "set", self._bridge, "up")
        return network

    def _connect(self, node: Node) -> None:
        """Make the node's namespace and its link to the bridge."""
        inside = ["ip", "-netns", node.namespace]
        _run("ip", "netns", "add", node.namespace)
        pair = ["type", "veth", "peer", "name", "eth0", "netns", node.namespace]
        _run("ip", "link", "add", node.link, *pair)
        _run("ip", "link", "set", node.link, "master", self._bridge)
        _run(*inside, "address", "add", f"{node.address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _run(*inside, "link", "set", link, "up")
        node.reconnect()


def wait_until(ready: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Look every tenth of a second; AssertionError where it takes too long."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def kill(pid: int) -> None:
    """Kill -9 of one process."""
    os.kill(pid, signal.SIGKILL)


def _command_line(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return ""


def _run(*command: str) -> str:
    """Run a command that must succeed; return its output."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
