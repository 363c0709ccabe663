"""Trains the first steps of a run under jax.profiler, and puts their numbers together."""

import jax  # its profiler, and shapes for counting
import keras

from flipkit import keras_inside, planning
from flipkit.errors import ConfigurationError
from flipkit.layers import Attention
from flipkit.planning import chips
from flipkit.profiling import trace
from flipkit.profiling.shares import SCOPES, shares
from flipkit.records.journal import Journal
from flipkit.training.loop import Loop, anew


def profile(description, folder, first=10, last=15, peak=None) -> dict:
    """Trains a run's first steps, traces some of them, and returns what they took, as a dict for JSON.

    Nothing of the training is kept. The trace is in `folder`, as TensorBoard and xprof look for it.

    Args:
        description: `flipkit.Run`.
        folder: where to write the trace.
        first, last: steps to trace, from 0: `first` and those up to `last`, without `last`. Step 0 compiles
            the program, so that `first` is at least 1.
        peak: FLOP/s of a device at most; None takes what its maker states, where that is known.

    Returns:
        `steps`, [first, last]; `batch_size`; `devices`, their `count` and `kind`; `step_seconds`;
        `images_per_second`; `flops`, of a step; `flops_per_second`, of a device; `peak`, of a device, or
        None; `mfu`, their ratio, or None; what `flipkit.profiling.shares.shares` returns, `count` a step
        and device; `trace`, the file.

    Raises:
        ConfigurationError: another backend than JAX, or the run's first phase has fewer than `last` steps.
    """
    with anew(description) as run:
        if last > run.phases[0].steps:
            raise ConfigurationError(
                f"Expected steps of the run's first phase, which has {run.phases[0].steps:,}. Received: "
                f"steps {first} to {last}. Set other steps, or phases.0.pairs."
            )
        loop = Loop(run, Journal(None, {}))
        loop.prepare()
        loop.enter(0)
        model, batch_size = run.model, run.phases[0].batch_size
        data, tracer = loop.batches(0).from_step(), _Tracer(folder, first, last)
        inputs = _Annotated(data)
        try:
            model.fit(inputs, steps_per_epoch=last, callbacks=[tracer], verbose=0)
        finally:
            tracer.stop()
            data.close()
        flops = flops_of_step(model, inputs.shapes)
        # Keras opens a scope of a layer's name where it is called: a model of a plugin has no others.
        towers = {tower.name: f"{role} tower" for role, tower in model.encoders().items()}
    file = trace.newest(folder)
    found = trace.read(file)
    seconds = (found.end - found.begin) / (last - first) / 1e9
    count, kind = len(found.devices), jax.devices()[0].device_kind
    rate, chip = flops / seconds / count, chips.of_kind(kind)
    peak = peak or (chip and chip.device_flops)
    measured = shares(found, towers | SCOPES)
    for operation in measured["operations"]:
        operation["count"] /= (last - first) * count
    return {
        "steps": [first, last],
        "batch_size": batch_size,
        "devices": {"count": count, "kind": kind},
        "step_seconds": seconds,
        "images_per_second": batch_size / seconds,
        "flops": flops,
        "flops_per_second": rate,
        "peak": peak,
        "mfu": peak and rate / peak,
        **measured,
        "trace": str(file),
    }


class _Annotated:
    """An iterator of batches that writes into the trace when a step waited for one.

    Attributes:
        shapes: of the arrays of the latest batch.
    """

    def __init__(self, batches):
        self.batches, self.shapes = batches, None

    def __iter__(self):
        return self

    def __next__(self):
        with jax.profiler.TraceAnnotation(trace.INPUT):
            batch = next(self.batches)
        self.shapes = jax.tree.map(_shape, batch)
        return batch


class _Tracer(keras.callbacks.Callback):
    """Traces some steps of `fit`, from the end of the step before them to the end of their own."""

    def __init__(self, folder, first, last):
        super().__init__()
        self.folder, self.first, self.last = folder, first, last
        self.window = None

    def on_train_batch_begin(self, batch, logs=None):
        self.step = jax.profiler.StepTraceAnnotation("train", step_num=batch)  # for xprof
        self.step.__enter__()

    def on_train_batch_end(self, batch, logs=None):
        done = batch + 1
        if done == self.first:
            float(logs["loss"])  # waits for the steps still running on the device
            self.start()
        if done == self.last:
            float(logs["loss"])
            self.stop()
        self.step.__exit__(None, None, None)

    def start(self):
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # each call of a function: slow, and no part of the answer
        jax.profiler.start_trace(self.folder, profiler_options=options)
        self.window = jax.profiler.TraceAnnotation(trace.WINDOW)
        self.window.__enter__()

    def stop(self):
        """Ends the trace, if one has begun."""
        if self.window is not None:
            self.window.__exit__(None, None, None)
            self.window = None
            jax.profiler.stop_trace()


def flops_of_step(model, batch) -> int:
    """The FLOPs of a model's training step, counted as `flipkit plan` counts them, for the whole batch.

    Args:
        model: compiled `flipkit.models.Trainable`, whose optimizer is built.
        batch: `jax.ShapeDtypeStruct` of what `fit` takes, in a tuple.
    """
    layers = [x for x in keras_inside.layers_of(model) if isinstance(x, Attention)]
    own = [layer.impl for layer in layers]
    for layer in layers:
        layer.impl = "einsum"  # the same products as the fused kernels, which cannot be counted
    state = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    try:
        return planning.flops(model.train_step, [[*map(_shape, part)] for part in state], batch)
    finally:
        for layer, impl in zip(layers, own, strict=True):
            layer.impl = impl


def _shape(array):
    return jax.ShapeDtypeStruct(array.shape, array.dtype)
