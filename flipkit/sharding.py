"""How the rows of a batch lie on devices, under the `keras.distribution` in force."""

from typing import Any, NamedTuple

import keras

if keras.backend.backend() == "jax":
    import jax
    from jax.sharding import NamedSharding, PartitionSpec


class Rows(NamedTuple):
    """How rows are spread.

    Attributes:
        mesh: JAX's mesh of devices; None where one device has all rows.
        axis: the name of the mesh's axis along which the rows lie.
        count: how many parts of the rows there are.
    """

    mesh: Any = None
    axis: str | None = None
    count: int = 1


def rows(number: int) -> Rows:
    """How `number` rows of a batch are spread over devices. Without JAX, one device has them."""
    distribution = keras.distribution.distribution() if keras.backend.backend() == "jax" else None
    if distribution is None:
        return Rows()
    mesh, axis = distribution.device_mesh, distribution.batch_dim_name
    count = dict(zip(mesh.axis_names, mesh.shape, strict=True))[axis]
    return Rows(mesh.backend_mesh, axis, count) if count > 1 and number % count == 0 else Rows()


def constrained(x, spread: Rows, dimension: int = 0):
    """`x` with its rows, along a dimension, on the devices that `spread` names."""
    if spread.mesh is None:
        return x
    spec = PartitionSpec(*[None] * dimension, spread.axis)
    return jax.lax.with_sharding_constraint(x, NamedSharding(spread.mesh, spec))
