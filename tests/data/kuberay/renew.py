"""Writes the schemas beside this file again, from a git checkout (or bare clone) of KubeRay.

python tests/data/kuberay/renew.py CLONE [COMMIT]
"""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent


def main(clone: str, commit: str = "HEAD") -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", clone, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    full = git("rev-parse", commit).strip()
    for kind in ("rayjobs", "rayclusters"):
        crd = yaml.safe_load(
            git("show", f"{full}:ray-operator/config/crd/bases/ray.io_{kind}.yaml")
        )
        version = next(item for item in crd["spec"]["versions"] if item["name"] == "v1")
        text = json.dumps(version["schema"]["openAPIV3Schema"], separators=(",", ":"))
        # Without a time in it, so that equal schemas are equal files.
        (HERE / f"{kind}.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    readme = HERE / "README.md"
    lines = readme.read_text(encoding="utf-8").splitlines()
    lines = [f"Commit: {full}" if line.startswith("Commit: ") else line for line in lines]
    readme.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
