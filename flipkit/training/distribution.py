"""Layouts of a run over devices, as data and as keras.distribution objects."""

import dataclasses

import keras

from flipkit.errors import UnknownName, nearest


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh of devices for a run: every device has all weights.

    Attributes:
        axes: names of the mesh's axes, the batch's first; all devices go to the first.
    """

    axes: tuple[str, ...] = ("batch",)


LAYOUTS = {"data_parallel": Layout()}


def get(identifier) -> Layout | None:
    """The layout that a name or object describes; None is one device."""
    if identifier is None or isinstance(identifier, Layout):
        return identifier
    if identifier not in LAYOUTS:
        raise UnknownName(f"Unknown distribution: {identifier!r}. {nearest(identifier, LAYOUTS)}")
    return LAYOUTS[identifier]


def realise(layout: Layout | None):
    """Makes `layout` the distribution of every Keras object made from now on; None clears it.

    It starts the JAX backend: call it after flags and process initialisation, and before any object.
    """
    if layout is None:
        keras.distribution.set_distribution(None)
        return
    devices = keras.distribution.list_devices()
    shape = (len(devices),) + (1,) * (len(layout.axes) - 1)
    mesh = keras.distribution.DeviceMesh(shape, layout.axes, devices)
    # Keras can split only a tf.data.Dataset; a run is one process, whose feed makes whole batches.
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(device_mesh=mesh, auto_shard_dataset=False)
    )
