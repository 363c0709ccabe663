"""The highest rate of floating-point operations of devices, as their makers state it."""

# {start of `jax.Device.device_kind`: dense bfloat16 FLOP/s of one JAX device}, from Google's pages on TPU
# versions and NVIDIA's data sheets. A chip of TPU v2 or v3 is two JAX devices.
PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def peak(kind: str) -> float | None:
    """The peak of a kind of device, or None where no table has one.

    Args:
        kind: `jax.Device.device_kind`, such as "TPU v5 lite".
    """
    known = [start for start in PEAKS if kind.startswith(start)]
    return PEAKS[max(known, key=len)] if known else None
