"""Attention of heads, (batch, tokens, heads, head_dim): by its scores, or by a kernel without them."""

import contextlib
import contextvars

import keras
from keras import ops

NOT_ALLOWED = -1e30

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "flipkit_platform", default=None
)


@contextlib.contextmanager
def platform_scope(name: str):
    """Inside it programs are traced for another platform than this process computes on: "tpu", "cpu"."""
    token = _platform.set(name)
    try:
        yield name
    finally:
        _platform.reset(token)


def on_gpu() -> bool:
    """Whether a program that is traced now will run on a GPU."""
    platform = _platform.get() or keras.distribution.list_devices()[0]
    return platform.startswith(("gpu", "cuda"))


def shares(query, key, allowed=None):
    """The attention of each query, float32 (batch, heads, queries, keys), with sums of 1.

    Args:
        allowed: bool, broadcast to the result's shape; None is all.
    """
    # Explicit (batch, heads, length, head_dim): about 1.5 times as fast on XLA:CPU.
    head_dim = query.shape[-1]
    query, key = ops.transpose(query, (0, 2, 1, 3)), ops.transpose(key, (0, 2, 3, 1))
    scores = ops.matmul(query * head_dim**-0.5, key)
    scores = ops.cast(scores, "float32")  # bfloat16 softmax loses three digits
    if allowed is not None:
        scores = ops.where(allowed, scores, NOT_ALLOWED)
    return ops.softmax(scores, axis=-1)


def explicit(query, key, value, allowed=None):
    """The attention's output by its scores, (batch, queries, heads, head_dim); `allowed` as in `shares`."""
    weights = ops.cast(shares(query, key, allowed), value.dtype)
    return ops.transpose(ops.matmul(weights, ops.transpose(value, (0, 2, 1, 3))), (0, 2, 1, 3))


def fused(query, key, value, lengths=None, causal=False, kernel=True):
    """The same by `jax.nn.dot_product_attention`, in arguments that cuDNN takes in training too.

    Its kernel rejects odd numbers of tokens and, beside them, masks. So the function pads them to even
    numbers, and passes lengths in place of masks.

    Args:
        lengths: int32 (batch,), how many of a row's first keys are visible, 1 or more; None is
            all.
        causal: whether a query sees only keys up to its own place.
        kernel: whether cuDNN computes it, elsewhere XLA: see `has_kernel`.
    """
    import jax

    batch, asking, length = query.shape[0], query.shape[1], key.shape[1]
    options = {}
    if lengths is not None or asking % 2 or length % 2:
        lengths = ops.full((batch,), length, "int32") if lengths is None else lengths
        options["query_seq_lengths"] = ops.full((batch,), asking, "int32")
        options["key_value_seq_lengths"] = ops.cast(lengths, "int32")
    query, key, value = (
        ops.pad(x, [[0, 0], [0, x.shape[1] % 2], [0, 0], [0, 0]]) if x.shape[1] % 2 else x
        for x in (query, key, value)
    )
    implementation = "cudnn" if kernel else "xla"
    found = jax.nn.dot_product_attention(
        query, key, value, is_causal=causal, implementation=implementation, **options
    )
    return found[:, :asking] if asking % 2 else found


def has_kernel(dtype, head_dim: int) -> bool:
    """Whether cuDNN's flash attention is there and takes such heads; called before a program is traced.

    It takes bfloat16 and float16, head_dim in multiples of 8 up to 128, or 256 since Hopper, on Ampere
    (compute capability 8.0) and later. JAX checks whether there is a cuDNN, and which: the function passes
    it two tokens' shapes, since of what `fused` passes nothing else depends on the sizes.
    """
    if keras.backend.backend() != "jax" or str(dtype) not in ("bfloat16", "float16"):
        return False
    if head_dim % 8 or head_dim > 256:
        return False
    import jax

    tokens = jax.ShapeDtypeStruct((1, 2, 1, head_dim), dtype)
    try:
        jax.eval_shape(lambda x: fused(x, x, x), tokens)
    except (
        RuntimeError
    ):  # JAX's answer: no cuDNN, one that is too old, or heads too wide for the device
        return False
    capability = getattr(jax.devices()[0], "compute_capability", None)
    return capability is None or float(capability) >= 8
