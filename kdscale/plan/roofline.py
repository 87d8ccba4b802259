"""Least time of GPU kernels: the larger of arithmetic and memory, and no less than a launch.

Data sheets give peaks. A large bfloat16 product of cuBLAS reaches about 700 of an H100's 989
TFLOP/s at its limit of 700 W, as its clock falls; a float32 one about three quarters of what the
units have; a kernel that streams through memory about 85 % of the bandwidth. A kernel that a stream
of Python starts takes about 5 microseconds of the host, so that smaller ones wait for it. These
are assumptions of a model, not measurements; other devices are put at the same shares.
"""

from dataclasses import dataclass

from kdscale.config.hardware import Hardware
from kdscale.errors import KdscaleError

_PRODUCT_SHARE = 700 / 989
_FLOAT32_SHARE = 0.75
_BANDWIDTH_SHARE = 0.85
_LAUNCH_SECONDS = 5e-6


@dataclass(frozen=True)
class Rates:
    """Rates that kernels reach on a device."""

    products: float  # FLOPs a second of bfloat16 matrix products
    float32: float  # the same in float32, without TF32
    bandwidth: float  # bytes a second
    launch: float = _LAUNCH_SECONDS

    @classmethod
    def of(cls, hardware: Hardware) -> "Rates":
        """Return those of a GPU. Raises KdscaleError where its float32 peak is not known."""
        if hardware.kind != "gpu" or hardware.float32_flops is None:
            raise KdscaleError(
                f"The kernels of {hardware.name} cannot be modelled.",
                "Give a GPU of the built-in table, or float32_flops in the hardware file.",
            )
        return cls(
            _PRODUCT_SHARE * hardware.flops,
            _FLOAT32_SHARE * hardware.float32_flops,
            _BANDWIDTH_SHARE * hardware.bandwidth_gb_s * 1e9,
        )

    def seconds(
        self, moved: float, flops: float = 0, *, kernels: int = 1, halves: bool = True
    ) -> float:
        """Return the least time of kernels that move bytes and multiply.

        `halves` says whether products are in bfloat16.
        """
        rate = self.products if halves else self.float32
        return max(moved / self.bandwidth, flops / rate, kernels * self.launch)
