"""Blocks one after another: what the backward pass keeps of them, and one program for all of them."""

import keras
import numpy as np
from keras import ops

from flipkit import keras_inside
from flipkit.errors import ConfigurationError, nearest
from flipkit.layers.dropout import Dropout, dropping_as
from flipkit.random import current_seed, seed_scope

if keras.backend.backend() == "jax":
    import jax  # scan, and checkpoint with a policy: Keras has no word for them

REMATS = ("none", "dots", "block")


def checked_remat(remat) -> str:
    """`remat` as one of `REMATS`; True is "block", False and None are "none", as configs have held them.

    On a command line `none` is None.
    """
    if remat is None or isinstance(remat, bool):
        return "block" if remat else "none"
    if remat not in REMATS:
        raise ConfigurationError(f"Unknown {remat=}. {nearest(str(remat), REMATS)}")
    return remat


def checked_scan(scan) -> bool:
    """`scan`, if it is a bool that the backend can follow."""
    if not isinstance(scan, bool):
        raise ConfigurationError(f"Expected true or false. Received: {scan=}")
    backend = keras.backend.backend()
    if scan and backend != "jax":
        raise ConfigurationError(
            f"scan=True needs Keras's JAX backend; this process uses {backend!r}. Set scan=False."
        )
    return scan


def apply_in_turn(blocks, step, x, *, training=False, remat="none", scan=False):
    """`step` with each of `blocks` in turn: the last x, and a list or array of what each step saw.

    Args:
        blocks: layers, built.
        step: (block, x) -> (x, seen); `x` keeps its shape, and `seen` is an array or None.
        x: the first block's input.
        training: whether a backward pass may follow, for which `remat` says what is kept.
        remat: "none": the backward pass keeps what it needs. "dots": it keeps products with weights, and
            computes the rest again. "block": it keeps the input of each block.
        scan: whether one `jax.lax.scan` runs all blocks, so that one block is compiled. They need equal
            structures, and must not change their variables.
    """
    if not training:
        remat = "none"
    if scan:
        return _scanned(blocks, step, x, training, remat)
    seen = []
    for block in blocks:
        if remat == "none":
            x, saw = step(block, x)
        else:
            # With the same seed in both passes, drawn outside, since no state may change inside.
            seed = current_seed() or block.seed()

            def again(x, block=block, seed=seed):
                with seed_scope(seed):
                    return step(block, x)

            x, saw = kept(again, remat)(x)
        seen.append(saw)
    return x, seen


def kept(function, remat, **options):
    """`function`, of which the backward pass keeps only what `remat` says."""
    if remat == "none":
        return function
    if keras.backend.backend() != "jax":
        if remat == "dots":
            raise ConfigurationError(
                'Training with remat="dots" needs Keras\'s JAX backend; this process uses '
                f'{keras.backend.backend()!r}. Set remat="block" or "none".'
            )
        return keras.remat(function)
    # Products with weights have no batch axes. Those that have, of queries with keys and of shares with
    # values, are computed again: their logits, (batch, heads, length, length), are not kept.
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(function, policy=dots if remat == "dots" else None, **options)


def _scanned(blocks, step, x, training, remat):
    """`apply_in_turn` as one scan: the last block is called with each block's values in turn.

    Variables stay the blocks' own: their values are stacked inside the program. What a `Dropout` draws
    depends on its name, and how much on its rate: both are inputs of the scan, so that each block drops
    what it would drop outside of one.
    """
    _check_alike(blocks)
    last = blocks[-1]  # where stochastic depth is highest: it has every Dropout that a block has
    values, (drops, names, rates) = _stacked(blocks), _dropouts(blocks)
    seed = (current_seed() or last.seed()) if training and drops else None

    def body(x, inputs):
        values, names, rates = inputs
        weights = list(zip(last.weights, values, strict=True))
        others = {drop.path: (names[i], rates[i]) for i, drop in enumerate(drops)}
        with keras.StatelessScope(weights, initialize_variables=False) as scope:
            before = [scope.get_current_value(variable) for variable in last.variables]
            with seed_scope(seed), dropping_as(others):
                found = step(last, x)
            for variable, value in zip(last.variables, before, strict=True):
                if scope.get_current_value(variable) is not value:
                    raise _cannot(f"a block changes its {_place(variable, last)}")
        return found

    x = ops.cast(x, last.compute_dtype)  # as its call would: a scan takes what it returns
    # An iteration can't be merged with another, which prevent_cse prevents elsewhere.
    return jax.lax.scan(kept(body, remat, prevent_cse=False), x, (values, names, rates))


def _stacked(blocks):
    """The values of each weight in all blocks, (depth, ...), in the order of a block's `weights`."""
    # In the dtype in which the layers compute, where it is one: half of the memory in bfloat16.
    dtypes = {layer.compute_dtype for layer in keras_inside.layers_of(blocks[-1])}
    with keras_inside.reading_in(dtypes.pop() if len(dtypes) == 1 else None):
        values = [[variable.value for variable in block.weights] for block in blocks]
    return [ops.stack(like) for like in zip(*values, strict=True)]


def _dropouts(blocks):
    """The last block's Dropouts; int32 keys of their names and float32 rates in all blocks, (depth, drops).

    A block that lacks one, as its rate is 0, has the rate 0.
    """
    found = [
        {
            _place(layer, block): layer
            for layer in keras_inside.layers_of(block)
            if isinstance(layer, Dropout) and layer.rate
        }
        for block in blocks
    ]
    for block, own in zip(blocks, found, strict=True):
        if lacking := own.keys() - found[-1].keys():
            raise _cannot(f"the last block lacks {min(lacking)}, which {block.name} has")
    drops = [[own.get(place) for place in found[-1]] for own in found]
    names = [[drop.key if drop else 0 for drop in row] for row in drops]
    rates = [[drop.rate if drop else 0 for drop in row] for row in drops]
    return list(found[-1].values()), np.array(names, "int32"), np.array(rates, "float32")


def _check_alike(blocks):
    """Raises unless all blocks are of one class, and differ in names, rates and what is frozen alone."""
    first, *others = blocks
    for block in others:
        if _structure(block) != _structure(first):
            raise _cannot(f"{block.name} differs from {first.name}")


def _structure(block):
    with keras_inside.without_tensorflow():
        config = block.get_config()
    free = ("name", "trainable", "dropout", "drop_path")
    weights = [(_place(v, block), tuple(v.shape), v.dtype) for v in block.weights]
    return type(block), {k: v for k, v in config.items() if k not in free}, weights


def _place(part, block):
    """The path of a variable or a layer within its block: `mlp/up/kernel`."""
    return part.path.removeprefix(f"{block.path}/")


def _cannot(why):
    return ConfigurationError(
        "scan=True needs blocks of one structure that don't change their variables. Set scan=False. "
        f"Received: {why}."
    )
