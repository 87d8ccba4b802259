"""Real S3 server for tests: SeaweedFS, one process, on free ports of one address."""

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import botocore.config
import botocore.session
from botocore.exceptions import BotoCoreError, ClientError

START_SECONDS = 60
STARTS = 4
BUCKET = "kdscale"


class S3Server:
    """SeaweedFS in `directory`, with one random identity and one bucket. A context manager.

    It listens on `host`, the loopback by default, and nowhere else.

    `start` after `stop` brings the same data back on the same ports. `env` holds the AWS_*
    variables that reach it.
    """

    def __init__(self, directory: Path, host: str = "127.0.0.1") -> None:
        self.directory = directory
        self._host = host
        self.process: subprocess.Popen[bytes] | None = None
        self.env = {
            "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
            "AWS_REGION": "us-east-1",
            # Otherwise a client without credentials asks the metadata service of a cloud machine.
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._take_ports()
        self.url = f"s3://{BUCKET}"

    def start(self) -> None:
        """Start the server and wait until the bucket takes and gives an object."""
        self.directory.mkdir(parents=True, exist_ok=True)
        # With AWS_* variables in its environment weed would make an identity of them.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        with (self.directory / "weed.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command(), stdout=log, stderr=log, env=clean, preexec_fn=die_with_parent
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._probe()
                return
            except (BotoCoreError, ClientError) as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    text = (self.directory / "weed.log").read_text(errors="replace")
                    raise RuntimeError(f"weed does not answer: {error}\n{text[-2000:]}") from error
                time.sleep(0.1)

    def stop(self) -> None:
        """End the server by its pid; the data stays.

        It is killed, as a failing machine would do it: on SIGTERM weed waits for its open streams.
        """
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        self.process = None
        for port in self.ports.values():
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_file.unlink()

    def __enter__(self) -> Self:
        for _ in range(STARTS - 1):
            try:
                self.start()
                return self
            except RuntimeError as error:
                if "address already in use" not in str(error):
                    raise
            # Another process has taken one of the ports since they were found free.
            shutil.rmtree(self.directory)
            self._take_ports()
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def client(self) -> Any:
        """Return a plain botocore client, for changes behind the store's back."""
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.env["AWS_ENDPOINT_URL"],
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
            region_name=self.env["AWS_REGION"],
            config=botocore.config.Config(retries={"total_max_attempts": 1}, connect_timeout=2),
        )

    def _take_ports(self) -> None:
        names = (
            "s3",
            "s3.grpc",
            "master",
            "master.grpc",
            "volume",
            "volume.grpc",
            "filer",
            "filer.grpc",
        )
        self.ports = dict(zip(names, free_ports(len(names), self._host), strict=True))
        self.env["AWS_ENDPOINT_URL"] = f"http://{self._host}:{self.ports['s3']}"

    def _probe(self) -> None:
        client = self.client()
        if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key="started", Body=b"yes")
        client.get_object(Bucket=BUCKET, Key="started")["Body"].read()
        client.delete_object(Bucket=BUCKET, Key="started")

    def _command(self) -> list[str]:
        identity = {
            "name": "tests",
            "credentials": [
                {
                    "accessKey": self.env["AWS_ACCESS_KEY_ID"],
                    "secretKey": self.env["AWS_SECRET_ACCESS_KEY"],
                }
            ],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        config = self.directory / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        options = {
            "dir": self.directory,
            "ip": self._host,
            "ip.bind": self._host,
            "s3": "true",
            "filer": "true",
            "s3.config": config,
            "s3.port": self.ports["s3"],
            "s3.port.grpc": self.ports["s3.grpc"],
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            # As on Amazon, a bucket must be created.
            "s3.autoCreateBucket": "false",
            "master.port": self.ports["master"],
            "master.port.grpc": self.ports["master.grpc"],
            # Ten seconds by default, which a restart would have to wait.
            "master.electionTimeout": "1s",
            "master.heartbeatInterval": "100ms",
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 256,
            "volume.port": self.ports["volume"],
            "volume.port.grpc": self.ports["volume.grpc"],
            "volume.max": 100,
            "volume.preStopSeconds": 0,
            "filer.port": self.ports["filer"],
            "filer.port.grpc": self.ports["filer.grpc"],
        }
        program = Path(sys.executable).parent / "weed"
        return [str(program), "server", *(f"-{name}={value}" for name, value in options.items())]


def die_with_parent() -> None:
    """Have Linux end this process when its parent dies, so that no server is left behind."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return free ports of `host`, all different."""
    sockets = [socket.create_server((host, 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
