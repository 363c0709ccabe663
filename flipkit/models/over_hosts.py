"""A model's outputs over several hosts, whose devices have a part of the rows each, unlike `predict`."""

import weakref

import jax  # arrays whose parts lie on several hosts
import keras
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

_PROGRAMS = weakref.WeakKeyDictionary()  # {model: {output: jitted function}}


def rows(model, batch, output, size) -> np.ndarray:
    """The model's `output` for each row of `batch`, in all processes; each of them has the whole batch.

    Args:
        batch: a dict of arrays, with a multiple of `size` rows.
        output: a name in what the model returns.
        size: rows at a time, a multiple of the parts of a batch.
    """
    spread = keras.distribution.distribution()
    mesh = spread.device_mesh.backend_mesh
    programs = _PROGRAMS.setdefault(model, {})
    if output not in programs:

        def call(learned, others, x):
            outputs, _ = model.stateless_call(learned, others, x, training=False)
            return outputs[output]

        programs[output] = jax.jit(call, out_shardings=NamedSharding(mesh, PartitionSpec()))
    learned = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]
    sharding = NamedSharding(mesh, PartitionSpec(spread.batch_dim_name))
    found = []
    for begin in range(0, len(next(iter(batch.values()))), size):
        part = {name: x[begin : begin + size] for name, x in batch.items()}
        spread_out = {
            name: jax.make_array_from_callback(x.shape, sharding, x.__getitem__)
            for name, x in part.items()
        }
        found.append(np.asarray(programs[output](learned, others, spread_out)))
    return np.concatenate(found)
