"""What chips are known to do: memory, peak FLOP/s, links. Vendors' figures, each with its source."""

from typing import NamedTuple

from flipkit.planning.units import GIB


class Chip(NamedTuple):
    """A kind of accelerator.

    Attributes:
        name: as libtpu knows it, "v5e", or as people do, "h100".
        platform: "tpu" or "gpu", or "cpu" for devices that JAX simulates.
        memory: bytes of a chip.
        flops: peak bf16 FLOP/s of a chip.
        links: bytes per second that a chip sends to its neighbours, over all of its links together.
        devices: how many JAX devices a chip is: v2 and v3 show each of their two cores.
        sides: axes of a pod's torus, 2 or 3; 0 has none.
        largest: chips of the largest slice.
        source: where the figures are from.
        kinds: what JAX's `Device.device_kind` is, or begins with.
    """

    name: str
    platform: str
    memory: float
    flops: float
    links: float
    devices: int = 1
    sides: int = 0
    largest: int = 0
    source: str = ""
    kinds: tuple[str, ...] = ()

    @property
    def device_flops(self) -> float:
        """Peak bf16 FLOP/s of one JAX device."""
        return self.flops / self.devices

    @property
    def device_links(self) -> float:
        """Bytes per second that one JAX device sends."""
        return self.links / self.devices

    @property
    def device_memory(self) -> float:
        """Bytes of memory of one JAX device."""
        return self.memory / self.devices


# Since v5e Google prints both directions of a link together; a ring sends in one, at half of it. That is
# what the pages call all-reduce bandwidth, divided by the chips of a pod. For v4 they print only that one.
_TPUS = (
    Chip(
        "v2", "tpu", 16 * GIB, 46e12, 248e9, 2, 2, 256,
        'Google Cloud, "TPU v2"; 4 x 496 Gbit/s', ("TPU v2",),
    ),
    Chip(
        "v3", "tpu", 32 * GIB, 123e12, 328e9, 2, 2, 1024,
        'Google Cloud, "TPU v3"; 4 x 656 Gbit/s', ("TPU v3",),
    ),
    Chip("v4", "tpu", 32 * GIB, 275e12, 268e9, 1, 3, 4096, 'Google Cloud, "TPU v4"', ("TPU v4",)),
    Chip(
        "v5e", "tpu", 16 * GIB, 197e12, 200e9, 1, 2, 256,
        'Google Cloud, "TPU v5e"', ("TPU v5 lite", "TPU v5e"),
    ),
    Chip(
        "v5p", "tpu", 95 * GIB, 459e12, 600e9, 1, 3, 6144,
        'Google Cloud, "TPU v5p"', ("TPU v5", "TPU v5p"),
    ),
    Chip(
        "v6e", "tpu", 32 * GIB, 918e12, 400e9, 1, 2, 256,
        'Google Cloud, "TPU v6e"', ("TPU v6 lite", "TPU v6e"),
    ),
)  # fmt: skip
# NVLink in one direction; dense bf16, not the sparse figure that comes first in the data sheets. SXM cards:
# an H100 on PCIe is slower, and has another name.
_GPUS = (
    Chip(
        "a100", "gpu", 80e9, 312e12, 300e9, source='NVIDIA, "A100 80GB" (SXM)', kinds=("NVIDIA A100",)
    ),
    Chip(
        "h100", "gpu", 80e9, 989e12, 450e9, source='NVIDIA, "H100" (SXM)',
        kinds=("NVIDIA H100 80GB HBM3",),
    ),
    Chip("h200", "gpu", 141e9, 989e12, 450e9, source='NVIDIA, "H200" (SXM)', kinds=("NVIDIA H200",)),
    Chip("b200", "gpu", 180e9, 2250e12, 900e9, source='NVIDIA, "DGX B200"', kinds=("NVIDIA B200",)),
)  # fmt: skip
TPUS = {chip.name: chip for chip in _TPUS}
GPUS = {chip.name: chip for chip in _GPUS}


def of_kind(kind: str) -> Chip | None:
    """The chip of a device, or None where no table has it.

    Args:
        kind: `jax.Device.device_kind`, such as "TPU v5 lite".
    """
    known = {begin: chip for chip in (*_TPUS, *_GPUS) for begin in chip.kinds}
    begins = [begin for begin in known if kind.startswith(begin)]
    return known[max(begins, key=len)] if begins else None
