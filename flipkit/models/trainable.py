"""The base of every model: a keras.Model with a step, a seed, frozen paths and a gradient norm."""
# Keras's trainers define these methods, once for each backend.
# pyright: reportAttributeAccessIssue=false, reportRedeclaration=false

import contextlib
import functools
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from flipkit import hosts, keras_inside, optimizers, paths
from flipkit.checks import sides
from flipkit.distribution import Distribution
from flipkit.errors import ConfigurationError
from flipkit.models import caching, inputs
from flipkit.models.fitting import Fitting
from flipkit.models.metrics import Means
from flipkit.models.saving import Saving
from flipkit.random import Seed, current_rows, initial_values

if keras.backend.backend() == "jax":
    import jax  # value_and_grad: Keras's JAX trainer has no hook between gradient and update

    from flipkit.models import over_hosts


class Trainable(Fitting, Saving):
    """A model that `flipkit.Run` trains, plans, checkpoints and evaluates; `flipkit.FLIP` is one.

    A subclass calls `super().__init__(**kwargs)`, keeps its constructor's arguments in attributes of their
    names, has an image encoder `image` and a `flipkit.Preprocessing` `preprocessing`, and
    writes `call` and `compute_loss`. `call` takes a batch, a dict, and returns a dict. docs/your_model.md
    makes one.

    Attributes:
        reads: the second input of a batch, beside `image`: "text" (then the model has a text encoder `text`
            and a `tokenizer`), "label" (then `classes`, how many), "view", another crop of the same
            picture, or None.
        towers: {name of an encoder: names of the inputs that pass through it}, for planning.
        logged: names of the means that `measure` returns.
        default_loss: the loss of a run that names none; None for a loss of the model's own.
        seed: int in [0, 2^64), of which random numbers are a function; None takes the seed of the
            `flipkit.Run`, and 0 outside a run.
        step: int32 variable, counted up by each training step; made by `build`.
        microbatch: rows that pass the towers at a time, as `compile` was given them; None is all.
        meter: `flipkit.models.meter.Meter` of the latest train function of `fit`; None before.
    """

    reads: str | None = None
    towers: dict[str, tuple[str, ...]] = {"image": ("image",)}
    logged: tuple[str, ...] = ()
    default_loss: str | None = None
    seed: int | None = None
    means: Means | None = None
    microbatch: int | None = None
    _frozen: tuple[str, ...] = ()
    _held: tuple[str, ...] = ()  # paths of the variables that `frozen` has taken out of training

    def __init__(self, *, name=None, **kwargs):
        # Keras would number the name, and a run's record would differ when a notebook starts it again.
        super().__init__(name=name or type(self).__name__.lower(), **kwargs)

    # Building -----------------------------------------------------------------------------------

    def build(self, input_shape=None):
        """Creates every variable, once; needs no data, since encoders have fixed input shapes."""
        if self.built:
            return
        spread = keras.distribution.distribution()
        if isinstance(spread, Distribution):
            for role, tower in self.encoders().items():
                spread.declare(role, tower)
        with initial_values(self, self.seed or 0):
            self.step = self.add_weight(
                shape=(), dtype="int32", initializer="zeros", trainable=False, name="step"
            )
            self.build_parts()
        for tower in self.encoders().values():
            if not tower.trainable:
                tower.trainable = (
                    False  # Keras checks only layers made since; this sets all of them
                )
        self._freeze(self._frozen)
        if isinstance(spread, Distribution):
            spread.check(self.variables)

    def build_parts(self):
        """Creates the variables of the parts; a subclass with more than encoders extends it."""
        for role in self.towers:
            self.build_part(role, self._shape_of(role))

    def build_part(self, role: str, *shapes):
        """Builds the layer in the attribute `role`, if there is one that is not built.

        Its variables are named `role/...`, whatever the layer's own name is.
        """
        part = getattr(self, role)
        if part is not None and not part.built:
            with _called(part, role):
                part.build(*shapes)

    def _shape_of(self, role):
        encoder = getattr(self, role)
        if role == "text":
            return (None, encoder.length)
        return (None, *sides(encoder.image_size), 3)

    def encoders(self) -> dict[str, Any]:
        """The encoders by name, as `towers` has them.

        No property: Keras would save a property's value under its name.
        """
        return {role: getattr(self, role) for role in self.towers}

    # Freezing -----------------------------------------------------------------------------------

    @property
    def frozen(self) -> list[str]:
        """Patterns of variables that training does not change: no gradient, no moments.

        If setting it changes what is trained, compile the model again.
        """
        return list(self._frozen)

    @frozen.setter
    def frozen(self, patterns):
        patterns = paths.checked_patterns("frozen", patterns)
        if self.built:
            self._freeze(patterns)
        self._frozen = tuple(patterns)

    def _freeze(self, patterns):
        known = {paths.canonical(variable.path): variable for variable in self.variables}
        chosen = paths.select(patterns, known, role="frozen")
        before = set(self._held)
        for path in self._held:
            known[path].trainable = True
        self._held = tuple(path for path in chosen if known[path].trainable)
        for path in self._held:
            known[path].trainable = False
        if set(self._held) != before:
            self.compiled, self.train_function = False, None  # made for other variables

    def learning_summary(self) -> str:
        """One line: how many numbers training changes, of how many, and the frozen patterns."""
        learned, known = (
            sum(math.prod(v.shape) for v in variables if v is not self.step)
            for variables in (self.trainable_weights, self.weights)
        )
        kept = f" Frozen: {', '.join(self._frozen)}." if self._frozen else ""
        return f"Training changes {learned:,} of {known:,} numbers.{kept}"

    def facts(self) -> dict[str, str]:
        """Facts of this model before it trains: rows of the table that a run begins with."""
        return {}

    def summary(self, *args, print_fn=None, **kwargs):
        """Keras's summary, then the `facts`, and how many numbers training changes."""
        if not self.built:
            self.build()
        super().summary(*args, print_fn=print_fn, **kwargs)
        for line in (*self.facts().values(), self.learning_summary()):
            (print_fn or print)(line)

    # The training step --------------------------------------------------------------------------

    def compile(self, optimizer="adamw", loss=None, *, microbatch=None, **kwargs):
        """As `keras.Model.compile`; builds the model first.

        Args:
            optimizer: a name of flipkit's or Keras's, or an object.
            loss: None: `compute_loss` is the loss. `flipkit.FLIP` takes others.
            microbatch: rows that pass the towers at a time: memory for their activations, and the gradient
                of the whole batch, for one more forward pass (`flipkit.models.caching`). A batch has to
                have whole micro-batches. None takes the batch at once.
        """
        if loss is not None:
            raise ConfigurationError(
                f"A {type(self).__name__} has a loss of its own. Expected loss=None. "
                f"Received: {loss!r}"
            )
        if not self.built:
            self.build()
        if microbatch is not None:
            caching.check(self, microbatch)
        self.microbatch = microbatch
        optimizer = optimizers.get(optimizer)
        left = (v for v in self.variables if not v.trainable)
        inner = optimizers.unscaled(optimizer)
        inner.frozen = tuple(paths.canonical(variable.path) for variable in left)
        super().compile(optimizer=optimizer, loss=None, **kwargs)
        self.means = Means(self.logged, self.optimizer)

    @property
    def metrics(self):
        """The loss, the means of `logged`, the gradient's norm, and what `compile(metrics=...)` added."""
        mine = self.means.metrics.values() if self.compiled and self.means else ()
        return [*super().metrics, *mine]

    def step_seed(self, training: bool) -> Seed | None:
        """The seed of this step's random numbers, in training; else None."""
        return Seed(self.seed or 0, self.step, current_rows()) if training else None

    def mixing(self) -> list[str]:
        """Names of what mixes the rows of a batch before the loss: without any, `microbatch` is exact."""
        layers, kind = keras_inside.layers_of(self), keras.layers.BatchNormalization
        return [
            f"{type(layer).__name__} {layer.name}" for layer in layers if isinstance(layer, kind)
        ]

    def targets(self, x) -> dict[str, Any]:
        """What `compute_loss` compares outputs with, beside what the batch holds: arrays (rows, ...).

        They are computed of a micro-batch at a time, without a gradient, and passed on as
        `y_pred["targets"]`; without micro-batches `compute_loss` calls this itself.

        Args:
            x: a batch, or a micro-batch.
        """
        return {}

    def measure(self, y_pred) -> dict[str, Any]:
        """`{name in logged: values of the batch}`; a name that is left out is not logged.

        Args:
            y_pred: what `call` returned, with the `readings`.
        """
        return {}

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        updated = self.means.update(self.measure(y_pred), y_pred.get("gradient_norm"))
        results = self.get_metrics_result()
        return {n: v for n, v in results.items() if n in updated or n not in self.means.metrics}

    def readings(self) -> dict:
        """The values of weights that `measure` needs, by their names in `y_pred`."""
        return {}

    if keras.backend.backend() == "jax":

        def stateless_compute_loss(self, *args, **kwargs):
            with keras.name_scope("loss"):  # `flipkit profile` finds a part's operations by it
                return super().stateless_compute_loss(*args, **kwargs)

        def compute_loss_and_updates(self, trainable, non_trainable, *args, **kwargs):
            loss, (unscaled, y_pred, *updates) = super().compute_loss_and_updates(
                trainable, non_trainable, *args, **kwargs
            )
            return loss, (unscaled, self.with_readings(y_pred, trainable), *updates)

        def with_readings(self, y_pred, trainable) -> dict:
            """`y_pred` with the `readings` of weights of these values.

            Weights have no values any more where Keras updates the metrics: it passes what they need.
            """
            weights = zip(self.trainable_variables, trainable, strict=True)
            with keras.StatelessScope(state_mapping=list(weights)):
                return {**y_pred, **self.readings()}

        def train_step(self, state, data):
            if self.meter is not None:
                self.meter.programs += 1  # a jitted function runs only to be compiled
            trainable, non_trainable, optimizer, metrics = state
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            (_, aux), gradient = self.loss_and_gradient()(
                trainable,
                non_trainable,
                metrics,
                x,
                y,
                sample_weight,
                training=True,
                optimizer_variables=optimizer,
            )
            loss, y_pred, non_trainable, metrics = aux
            with keras.name_scope("optimizer"):
                y_pred = {**y_pred, "gradient_norm": self._gradient_norm(gradient, optimizer)}
                trainable, optimizer = self.optimizer.stateless_apply(
                    optimizer, gradient, trainable
                )
            non_trainable = [
                value + 1 if variable is self.step else value
                for variable, value in zip(self.non_trainable_variables, non_trainable, strict=True)
            ]
            with keras.name_scope("metrics"):
                logs, metrics = keras_inside.update_metrics(
                    self, metrics, loss, x, y, y_pred, sample_weight
                )
            return logs, (trainable, non_trainable, optimizer, metrics)

        def loss_and_gradient(self):
            """`jax.value_and_grad` of `compute_loss_and_updates`, or its like in micro-batches."""
            if self.microbatch is not None:
                return functools.partial(caching.loss_and_gradient, self)
            return jax.value_and_grad(self.compute_loss_and_updates, has_aux=True)

        def _gradient_norm(self, gradient, optimizer):
            """The norm of the loss's own gradient, without the optimizer's scale."""
            known = zip(self.optimizer.variables, optimizer, strict=True)
            with keras.StatelessScope(state_mapping=list(known)):
                return global_norm(gradient, self.optimizer.scale_loss(1.0))

    else:

        def train_step(self, *args):
            logs = super().train_step(*args)
            self.step.assign_add(1)
            return logs

    # Inputs --------------------------------------------------------------------------------------

    def expected_inputs(self, training) -> dict:
        """{name: `flipkit.models.inputs.Pixels` or `Ids`} of what a batch may hold.

        Args:
            training: whether `fit` gets the batch.
        """
        size = sides(self.image.image_size)
        # Without a grid an encoder may see other sizes too.
        sizes = (size,) if getattr(self.image, "grid", None) else ()
        remedy = "Resize them, or take a tower of that image_size."
        pictures = inputs.Pixels(sizes, remedy=remedy)
        found: dict[str, Any] = {"image": pictures}
        if self.reads == "view":
            found["view"] = pictures
        if self.reads == "label":
            reason = f"the model has {self.classes:,} classes"
            found["label"] = inputs.Ids(self.classes, reason, 0)
        if self.reads == "text":
            reason = f"the text tower's vocab is {self.text.vocab:,}"
            found["text"] = inputs.Ids(self.text.vocab, reason, self.text.length)
        return found

    def needed_inputs(self, use) -> tuple[tuple[str, ...], ...]:
        """Groups of names: a batch has to hold one of each group.

        Args:
            use: "fit", "evaluate" or "predict".
        """
        beside = ((self.reads,),) if self.reads is not None and use != "predict" else ()
        return (("image",), *beside)

    # Using it -----------------------------------------------------------------------------------

    def rows(self, batch, output: str, batch_size: int) -> np.ndarray:
        """What the model's `output` is for each row of `batch`: float32 (rows, ...).

        Computed in batches of few sizes, a power of two below `batch_size`, so that few programs are
        compiled; the last is filled up.

        Args:
            batch: a dict of arrays with as many rows each, as `call` takes it.
            output: a name in what `call` returns.
            batch_size: rows at a time, at most.
        """
        if not self.built:
            self.build()
        count = len(next(iter(batch.values())))
        size = min(batch_size, max(8, 1 << max(count - 1, 0).bit_length()))
        spread = keras.distribution.distribution()
        parts = spread.device_mesh.shape[0] if spread else 1
        size += -size % parts
        missing = -count % size if count else size
        filled = {name: _filled(x, missing) for name, x in batch.items()}
        if hosts.count() > 1:
            return over_hosts.rows(self, filled, output, size)[:count]
        return np.asarray(self.predict(filled, batch_size=size, verbose=0)[output][:count])


@contextlib.contextmanager
def _called(layer, name):
    """Inside it `layer` has another name, which the paths of its variables begin with."""
    own = layer.name
    layer.name = name
    try:
        yield
    finally:
        layer.name = own


def _filled(x, missing):
    """`x` with its last row, or zeros where it has none, `missing` times more."""
    last = x[-1:] if len(x) else np.zeros((1, *x.shape[1:]), x.dtype)
    return np.concatenate([x, np.repeat(last, missing, axis=0)])


def global_norm(tensors, factor=1.0):
    """Float32 L2 norm over all of `tensors`, each divided by `factor` before a square can overflow."""
    known = (ops.cast(t, "float32") for t in tensors if t is not None)
    if not isinstance(factor, float) or factor != 1:
        known = (t / factor for t in known)
    return ops.sqrt(sum(ops.sum(ops.square(t)) for t in known))
