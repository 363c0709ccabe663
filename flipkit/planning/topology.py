"""Where a run is planned to train: "v3:8x16" and its like, as devices that need not be there."""

import importlib.util
import math
from typing import Any, NamedTuple

import jax  # compiles for devices that Keras cannot name
from jax.experimental import topologies

from flipkit import failures
from flipkit.errors import ConfigurationError, UnknownName, closest
from flipkit.planning import chips
from flipkit.planning.chips import Chip

EXPECTED = "v3:8x16, v4:2x2x4, v5e:16x16, v5p:2x2x2, v6e:4x4, gpu:h100x8 or cpu:8"
_NOTHING_IS_AS_LARGE = 1 << 37  # numbers; half a TiB


class Topology(NamedTuple):
    """Chips of a kind in a shape.

    Attributes:
        chip: `Chip`.
        shape: how many along each axis of their network; one number without a network.
    """

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As the command line has it."""
        if self.chip.platform == "gpu":
            return f"gpu:{self.chip.name}x{self.shape[0]}"
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """How many chips it has."""
        return math.prod(self.shape)

    @property
    def count(self) -> int:
        """How many JAX devices it has."""
        return self.chips * self.chip.devices

    def devices(self) -> list:
        """JAX's device objects; of a TPU, described ones to compile for.

        Raises:
            ConfigurationError: JAX has started with fewer CPU devices, libtpu is missing, or it knows no
                such slice.
        """
        if self.chip.platform == "cpu":
            found = jax.devices("cpu")
            if len(found) < self.count:
                raise ConfigurationError(
                    f"JAX has started with {len(found)} of {self.count} CPU devices in this process. Plan "
                    "for cpu:N in a process of its own, as `flipkit plan` does"
                )
            return found[: self.count]
        if self.chip.platform != "tpu":
            raise ConfigurationError(f"No compiler for {self.name} without its devices")
        if importlib.util.find_spec("libtpu") is None:
            raise ConfigurationError(
                f"Planning for {self.name} compiles with libtpu, which is not installed: "
                "pip install 'flipkit[tpu]'"
            )
        # A host has 2 x 2 chips; a smaller slice is a part of one.
        host = [2 - side % 2 for side in (*self.shape, 1, 1)[:3]]
        options: dict[str, Any] = {"chips_per_host_bounds": [*host[:2], 1]}
        if self.chip.name == "v4":
            options["chip_config_name"] = "megacore"  # both cores are one device, as in the cloud
        try:
            return topologies.get_topology_desc(self.name, "tpu", **options).devices
        except jax.errors.JaxRuntimeError as problem:
            raise ConfigurationError(
                f"libtpu knows no slice {self.name}: {failures.first_line(problem)}"
            ) from problem

    def limit(self) -> float | None:
        """Bytes that a program may take on a device, which its compiler tells; None where nothing does."""
        if self.chip.platform == "gpu":
            return self.chip.device_memory
        if self.chip.platform == "cpu":
            return None
        place = jax.sharding.SingleDeviceSharding(self.devices()[0])
        huge = jax.ShapeDtypeStruct((_NOTHING_IS_AS_LARGE,), "float32", sharding=place)
        try:
            jax.jit(lambda x: x + 1).lower(huge).compile()
        except jax.errors.JaxRuntimeError as problem:
            found = failures.memory(problem)
            return found and found.limit
        return None


def parse(text: str) -> Topology:
    """Returns the topology of a name such as "v3:8x16", "gpu:h100x8" or "cpu:8".

    Raises:
        ConfigurationError, UnknownName: no topology, no such chip, or no slice of that shape.
    """
    kind, colon, sides = text.strip().lower().partition(":")
    if not colon:
        raise ConfigurationError(f"Expected {EXPECTED}. Received: topology={text!r}")
    if kind == "gpu":
        kind, _, sides = sides.rpartition("x")
        chip = _chip(kind, chips.GPUS, text)
    elif kind == "cpu":
        chip = Chip("cpu", "cpu", 0, 0, 0)
    else:
        chip = _chip(kind, chips.TPUS, text)
    numbers = sides.split("x")
    if not all(number.isdigit() and int(number) for number in numbers):
        raise ConfigurationError(f"Expected {EXPECTED}. Received: topology={text!r}")
    shape = tuple(map(int, numbers))
    axes = chip.sides or 1
    if len(shape) != axes:
        raise ConfigurationError(
            f"Expected {chip.name} in a shape of {axes} number{'s' * (axes != 1)}, as in {EXPECTED}. "
            f"Received: topology={text!r}"
        )
    if chip.largest and math.prod(shape) > chip.largest:
        raise ConfigurationError(
            f"A {chip.name} slice has {chip.largest:,} chips at most. Received: topology={text!r}, "
            f"{math.prod(shape):,} chips"
        )
    if chip.platform == "tpu" and not all(_is_side(side, axes) for side in shape):
        known = "1, 2, 4, 8 and so on" if axes == 2 else "1, 2 or a multiple of 4"
        raise ConfigurationError(
            f"No {chip.name} slice has this shape: expected sides of {known}. Received: topology={text!r}"
        )
    return Topology(chip, shape)


def _is_side(side, axes):
    """Whether slices of chips with so many axes have a side of so many chips."""
    return side in (1, 2) or (side % 4 == 0 if axes == 3 else side & (side - 1) == 0)


def _chip(kind, known, text):
    if kind not in known:
        near = closest(kind, known, cutoff=0.3)
        hint = f" Did you mean {near!r}?" if near else ""
        raise UnknownName(
            f"Unknown chip {kind!r}.{hint} Expected {EXPECTED}. Received: topology={text!r}"
        )
    return known[kind]
