"""Files that are no modules and travel in the wheel: job script, example configs, cluster files.

In a checkout they are links to the folders of the same names; a wheel has the files themselves.
"""

from pathlib import Path

ROOT = Path(__file__).parent

EXAMPLES = {path.stem: path for path in sorted((ROOT / "jobs" / "configs").glob("*.yaml"))}
"""Example configs by name."""

CLUSTERS = {
    "aws": ROOT / "ray_cluster.yaml",
    "gcp": ROOT / "cluster" / "gcp.yaml",
    "kuberay": ROOT / "cluster" / "kuberay.yaml",
    "local": ROOT / "cluster" / "local.sh",
    "on_premise": ROOT / "cluster" / "on_premise.yaml",
}
"""Files that describe or start a cluster, by where it is."""
