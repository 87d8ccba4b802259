"""Table of hardware that plans know, and this machine.

FLOPs are the data sheets' (`kdscale.train.throughput`), memory, bandwidth and links NVIDIA's and
AWS's. Prices are AWS's list prices in us-east-1, Linux, since the cut of June 2025, for each GPU;
those of H200 and B200 are assumed. Spot prices move by the hour and are put at 40 % of those.
`--hardware FILE` replaces a row. What of these figures a kernel reaches is in `roofline.py`.
"""

from pathlib import Path

from kdscale.config.hardware import Hardware, load_hardware
from kdscale.errors import KdscaleError
from kdscale.evaluate.results import environment
from kdscale.train.throughput import peak_flops

_SPOT_SHARE = 0.40
# Float32 operations a second of a core with AVX2, two units of 8 multiply-adds at 3 GHz, and the
# share of them that the quickstart's models reach.
_CORE_FLOPS = 96e9
_CORE_UTILISATION = 0.5
# A server processor's thermal design power by its cores: AMD EPYC 7763 280 W and 64, 9654 360 and
# 96, Intel Xeon 8480+ 350 and 56.
_CORE_WATTS = 5.0
# Thermal design power, W, from NVIDIA's data sheets; of A10G the limit that its driver states.
_WATTS = {"B200": 1000, "H200": 700, "H100": 700, "A100": 400, "L40S": 350, "A10G": 300, "L4": 72}
_ASSUMED = "a price that is assumed, not read from a list"


def _gpu(
    name: str,
    instance: str,
    price: float,
    per_node: int,
    memory: float,
    host: float,
    bandwidth: float,
    float32: float,
    link: float,
    network: float,
    price_from: str = "list price of June 2025",
) -> Hardware:
    flops = peak_flops(name.split("-")[0])
    assert flops is not None
    return Hardware(
        name=name,
        flops=flops,
        memory_gib=memory,
        host_memory_gib=host,
        bandwidth_gb_s=bandwidth,
        float32_flops=float32 * 1e12,
        devices_per_node=per_node,
        link_gb_s=link,
        network_gb_s=network,
        on_demand=price,
        spot=round(_SPOT_SHARE * price, 2),
        source=f"AWS {instance}, us-east-1, {price_from}; spot put at 40 % of it",
        watts=_WATTS[name.split("-")[0]],
        watts_source="NVIDIA's data sheet",
    )


# Name, instance, $/h, GPUs a machine, GiB of GPU and host, GB/s of memory, float32 TFLOP/s outside
# of the matrix units, GB/s of link and network.
TABLE = (
    # NVLink 5, 1,800 GB/s both ways; EFA, 3,200 Gb/s a machine.
    _gpu("B200", "p6-b200.48xlarge", 14.24, 8, 179, 256, 7700, 80, 900, 50, _ASSUMED),
    # NVLink 4, 900 GB/s both ways; EFA, 3,200 Gb/s a machine.
    _gpu("H200", "p5en.48xlarge", 7.91, 8, 140, 256, 4800, 67, 450, 50, _ASSUMED),
    _gpu("H100", "p5.48xlarge", 6.88, 8, 80, 256, 3350, 67, 450, 50),
    # NVLink 3, 600 GB/s both ways; EFA, 400 Gb/s a machine.
    _gpu("A100-80", "p4de.24xlarge", 3.43, 8, 80, 144, 2039, 19.5, 300, 6.25),
    _gpu("A100-40", "p4d.24xlarge", 2.74, 8, 40, 144, 1555, 19.5, 300, 6.25),
    # Machines with one GPU, at 20, 10 and 10 Gb/s at most; without the memory that ECC takes.
    _gpu("L40S", "g6e.xlarge", 1.86, 1, 44, 32, 864, 91.6, 32, 2.5),
    _gpu("A10G", "g5.xlarge", 1.01, 1, 22, 16, 600, 31.5, 32, 1.25),
    _gpu("L4", "g6.xlarge", 0.80, 1, 22, 16, 300, 30.3, 32, 1.25),
)


def this_machine() -> Hardware:
    """Return `cpu`: the cores and the memory of this machine, at no price."""
    _, machine = environment()
    memory = (machine["memory_bytes"] or 8 << 30) / 2**30
    return Hardware(
        name="cpu",
        kind="cpu",
        flops=_CORE_FLOPS,
        memory_gib=memory,
        host_memory_gib=memory,
        bandwidth_gb_s=20,
        devices_per_node=machine["cores"],
        link_gb_s=2,
        network_gb_s=1.25,
        on_demand=0,
        spot=0,
        interruptions=0,
        source=f"{machine['cores']} cores of {machine['cpu']}, at no price",
        forward_utilisation=_CORE_UTILISATION,
        training_utilisation=_CORE_UTILISATION,
        watts=_CORE_WATTS,
        watts_source="a server processor's by its cores, assumed",
    )


def gpu_hardware(device: str) -> Hardware | None:
    """Return the row of a GPU by the name that torch gives it; None of one that has no row.

    The memory in the name tells the two A100 apart.
    """
    words = device.replace("-", " ").split()
    for row in TABLE:
        model, _, memory = row.name.partition("-")
        if model in words and "MIG" not in words and (not memory or f"{memory}GB" in words):
            return row
    return None


def find_hardware(name: str) -> Hardware:
    """Return a row of the table by its name, `cpu`, or the hardware of a YAML file.

    Raises KdscaleError for a name that is neither.
    """
    if name.lower() == "cpu":
        return this_machine()
    for row in TABLE:
        if row.name.lower() == name.lower():
            return row
    if Path(name).suffix in (".yaml", ".yml"):
        return load_hardware(name)
    known = ", ".join(["cpu", *(row.name for row in TABLE)])
    raise KdscaleError(
        f"There is no hardware {name!r} in the table.",
        f"Give one of {known}, or a YAML file (docs/plan.md).",
    )
