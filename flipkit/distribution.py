"""How a batch and a model's weights lie on devices: one object for training, planning and plain `fit`."""

import math
from typing import Any, NamedTuple

import keras
from absl import logging

from flipkit import paths
from flipkit.errors import ConfigurationError, UnknownName, nearest

if keras.backend.backend() == "jax":
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

LAYOUTS = {
    "data_parallel": "every device has all weights, and a part of each batch",
    "fully_sharded": "every device has a part of each weight, its moments and averages, and of each batch",
    "tensor_parallel": "every device has a part of each block's weights and all of each batch",
}
AXES: tuple[str, str] = ("batch", "model")
LEAST = 1 << 14  # numbers of a variable that is worth a gathering before each use


class Rows(NamedTuple):
    """How the rows of a batch are spread.

    Attributes:
        mesh: JAX's mesh of devices; None where one device has all rows.
        axis: the name of the mesh's axis along which the rows lie.
        count: how many parts of the rows there are.
    """

    mesh: Any = None
    axis: str | None = None
    count: int = 1


def rows(number: int | None) -> Rows:
    """How `number` rows are spread by the distribution in force. Without JAX, one device has them."""
    distribution = keras.distribution.distribution() if keras.backend.backend() == "jax" else None
    if distribution is None:
        return Rows()
    mesh, axis = distribution.device_mesh, distribution.batch_dim_name
    count = dict(zip(mesh.axis_names, mesh.shape, strict=True))[axis]
    if count == 1 or number is None or number % count:
        return Rows()
    return Rows(mesh.backend_mesh, axis, count)


def constrained(x, spread: Rows | None = None, dimension: int = 0):
    """`x` with its rows, along a dimension, on the devices that `spread` names; None: those in force.

    It is whole along its other axes. Keep XLA from splitting activations otherwise: at the borders of
    blocks a tower says so.
    """
    spread = rows(x.shape[dimension]) if spread is None else spread
    if spread.mesh is None:
        return x
    spec = PartitionSpec(*[None] * dimension, spread.axis)
    return jax.lax.with_sharding_constraint(x, NamedSharding(spread.mesh, spec))


def mesh_shape(layout: str, mesh, count: int) -> tuple[int, int]:
    """(parts of the batch, parts of each block) of a mesh of `count` devices.

    Args:
        layout: one of `LAYOUTS`.
        mesh: "64x4", a pair, or None: all devices share the batch, or, tensor parallel, each block.

    Raises:
        UnknownName, ConfigurationError: no such layout, or not a mesh of as many devices.
    """
    if layout not in LAYOUTS:
        raise UnknownName(f"Unknown distribution: {layout!r}. {nearest(str(layout), LAYOUTS)}")
    if mesh is None:
        return (1, count) if layout == "tensor_parallel" else (count, 1)
    sides = mesh.lower().split("x") if isinstance(mesh, str) else mesh
    try:
        shape = tuple(int(side) for side in sides)
    except (TypeError, ValueError):
        shape = ()
    if len(shape) != 2 or min(shape) < 1 or math.prod(shape) != count:
        known = ", ".join(f"{count // n}x{n}" for n in range(1, count + 1) if count % n == 0)
        raise ConfigurationError(
            f"Expected a mesh of {count} devices, parts of the batch x parts of each block: {known}. "
            f"Received: mesh={mesh!r}"
        )
    if layout == "tensor_parallel" and shape[1] == 1:
        raise ConfigurationError(
            "A tensor parallel mesh splits each block: expected 2 or more parts of it. Received: "
            f"mesh={mesh!r}. Set distribution=data_parallel, or fully_sharded, for this mesh"
        )
    return shape


class Distribution(keras.distribution.ModelParallel):
    """A batch and a model's weights over a mesh of devices; `keras.distribution` takes it.

        keras.distribution.set_distribution(flipkit.Distribution("fully_sharded", mesh="4x2"))

    The mesh has two axes. Its first one splits each batch, and with "fully_sharded" also each variable of
    2^14 numbers or more, with its moments and averages. Its second one splits the blocks of the towers as
    their `layout()` declares (tensor parallelism). A model declares its towers' rules when it is built.

    Args:
        layout: "data_parallel", "fully_sharded" or "tensor_parallel".
        mesh: parts of the batch x parts of each block, "64x4" or (64, 4); None splits the batch alone,
            or, tensor parallel, the blocks alone.
        devices: `keras.distribution.list_devices()`, or JAX's device objects, which may be described ones
            of a machine that is not there; None is all devices of all processes.
    """

    def __init__(self, layout="data_parallel", mesh=None, *, devices=None):
        devices = keras.distribution.list_devices() if devices is None else devices
        self.layout, self.rules = layout, []
        shape = mesh_shape(layout, mesh, len(devices))
        mesh = keras.distribution.DeviceMesh(shape, AXES, devices)
        # Keras can split only a tf.data.Dataset over processes; flipkit's feed makes a process's own rows.
        super().__init__(
            layout_map=keras.distribution.LayoutMap(mesh),
            batch_dim_name=AXES[0],
            auto_shard_dataset=False,
        )

    @property
    def parts(self) -> tuple[int, int]:
        """Parts of the batch, parts of each block."""
        return tuple(self.device_mesh.shape)

    def declare(self, role: str, encoder):
        """Adds the rules of a tower, `role/...`, before its variables have values.

        Raises:
            ConfigurationError: its heads can't be split.
        """
        blocks = self.parts[1]
        if blocks == 1:
            return
        heads = getattr(encoder, "heads", None)
        if heads is not None and heads % blocks:
            raise ConfigurationError(
                f"A mesh of {self.parts[0]}x{blocks} splits the heads of a tower into {blocks} parts. "
                f"Received: {heads} heads in {role}"
            )
        rules = getattr(encoder, "layout", tuple)()
        if not rules:
            name = type(encoder).__name__
            logging.warning("%s declares no layout(): each device has all of its weights.", name)
        self.rules = [rule for rule in self.rules if rule[0] != role]
        self.rules += [(role, pattern, axes) for pattern, axes in rules]

    def check(self, variables):
        """Raises if a declared rule matches none of a model's variables."""
        known = [paths.canonical(variable.path) for variable in variables]
        for role, pattern, _ in self.rules:
            if not any(_matches(role, pattern, path) for path in known):
                paths.select([f"{role}/{pattern}"], known, role="layout()")

    def held(self, variables) -> dict[str, int]:
        """Bytes of variables: in `all`, on one `device`, and `replicated`, which every device has."""
        found = {"all": 0, "device": 0, "replicated": 0}
        for value in (variable.value for variable in variables):
            part = math.prod(value.sharding.shard_shape(value.shape)) * value.dtype.itemsize
            found["all"] += value.nbytes
            found["device"] += part
            found["replicated"] += part if part == value.nbytes else 0
        return found

    def share(self) -> tuple[int, int]:
        """Which part of each batch this process reads, (number, of how many).

        Processes whose devices have the same rows read the same part.

        Raises:
            ConfigurationError: its devices have rows that are not neighbours.
        """
        if jax.process_count() == 1:
            return 0, 1
        owners = [{d.process_index for d in row} for row in self.device_mesh.backend_mesh.devices]
        own = [place for place, processes in enumerate(owners) if jax.process_index() in processes]
        number, rest = divmod(own[0], len(own))
        if rest or len(owners) % len(own) or own != list(range(own[0], own[0] + len(own))):
            raise ConfigurationError(
                "Expected a mesh in which each process has neighbouring parts of the batch. Received: "
                f"process {jax.process_index()} with parts {own} of {len(owners)}. List the devices of "
                "a process one after another"
            )
        return number, len(owners) // len(own)

    def check_batch(self, rows: int):
        """Raises ConfigurationError if a batch can't be split equally."""
        parts = self.parts[0]
        if rows % parts:
            raise ConfigurationError(
                f"Expected batches of a multiple of {parts} rows, one part for each of {parts} devices. "
                f"Received: a batch of {rows}"
            )

    def get_data_layout(self, data_shape):
        """The batch's rows over the first axis of the mesh.

        Args:
            data_shape: of an array of a batch, or, on several hosts, of the part that this one reads.

        Raises:
            ConfigurationError: the rows can't be split equally.
        """
        if data_shape[0] is not None:
            self.check_batch(data_shape[0] * self.share()[1])
        return super().get_data_layout(data_shape)

    def get_variable_layout(self, variable):
        """The axes of the mesh along which a variable lies. An optimizer's slots have their variable's.

        Raises:
            ConfigurationError: a rule has another number of axes, or one can't be split equally.
        """
        known = getattr(variable, "_layout", None)
        if known is not None:
            return known
        path, shape = paths.canonical(variable.path), tuple(variable.shape)
        axes: list[str | None] = [None] * len(shape)
        for role, pattern, wanted in self.rules:
            if not _matches(role, pattern, path):
                continue
            axes = [axis if axis in AXES else None for axis in wanted]
            parts = dict(zip(AXES, self.parts, strict=True))
            fits = (
                axis is None or size % parts[axis] == 0
                for size, axis in zip(shape, axes, strict=False)
            )
            if len(axes) != len(shape) or not all(fits):
                raise ConfigurationError(
                    f"layout() splits {path} along {tuple(wanted)}, on a mesh of {self.parts[0]}x"
                    f"{self.parts[1]}. Received: a variable of shape {shape}, which has other axes or "
                    "can't be split equally"
                )
        if self.layout == "fully_sharded" and math.prod(shape) >= LEAST:
            free = [i for i, a in enumerate(axes) if a is None and shape[i] % self.parts[0] == 0]
            if free:
                axes[max(free, key=lambda i: shape[i])] = AXES[0]
        return keras.distribution.TensorLayout(axes, self.device_mesh)


def _matches(role, pattern, path):
    head, _, rest = path.partition("/")
    return head == role and paths.matches(pattern, rest)


def make(layout, mesh=None) -> Distribution | None:
    """The distribution of a run's settings; None is one device, without a mesh."""
    if layout is None:
        if mesh is not None:
            raise ConfigurationError(
                f"A mesh needs a distribution: {', '.join(LAYOUTS)}. Received: distribution=None, {mesh=}"
            )
        return None
    return Distribution(layout, mesh)
