"""What flipkit's models have in common: the training step, its meter, and `fit`."""
# A mixin of keras.Model, whose methods are here once for each backend.
# pyright: reportAttributeAccessIssue=false, reportRedeclaration=false

import inspect
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from flipkit import inputs, registry
from flipkit.callbacks import Throughput
from flipkit.errors import ConfigurationError

if keras.backend.backend() == "jax":
    import jax  # value_and_grad: Keras's JAX trainer has no hook between gradient and update

MODES = ("int8", "int4", "float8")  # of `quantize`: a file tells them by name


class TrainStep:
    """What `flipkit.FLIP` and `flipkit.Classifier` share: mixed in before `keras.Model`.

    The model has an int32 variable `step`, which each step counts up; its outputs are a dict, in which
    `compute_metrics` finds the gradient's global L2 norm, before clipping, as `gradient_norm`, and the
    model's `readings` (JAX backend). A `flipkit.Run` and a `flipkit.Feed` ask further:

    Attributes:
        reads: what a batch holds beside `image`: "text" or "label".
        default_loss: the loss that a run takes if it is told none.
        expected_inputs: `(training) -> {name: flipkit.inputs.Pixels or Ids}`: what a batch may hold.
        meter: of the train function that `fit` has made last; None before.
        quantized: the Keras config that `quantize` went by; None before.
    """

    reads: str
    default_loss: str | None
    meter: "Meter | None" = None
    quantized: Any = None

    def readings(self) -> dict:
        """What `compute_metrics` wants to know of the weights, by its name in the outputs."""
        return {}

    if keras.backend.backend() == "jax":

        def compute_loss_and_updates(self, trainable, non_trainable, *args, **kwargs):
            loss, (unscaled, y_pred, *updates) = super().compute_loss_and_updates(
                trainable, non_trainable, *args, **kwargs
            )
            # The metrics are updated where weights have no values any more: hand over what they need.
            weights = zip(self.trainable_variables, trainable, strict=True)
            with keras.StatelessScope(state_mapping=list(weights)):
                y_pred = {**y_pred, **self.readings()}
            return loss, (unscaled, y_pred, *updates)

        def train_step(self, state, data):
            if self.meter is not None:
                self.meter.programs += 1  # what is jitted runs only to be compiled
            trainable, non_trainable, optimizer, metrics = state
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            loss_and_gradient = jax.value_and_grad(self.compute_loss_and_updates, has_aux=True)
            (_, aux), gradient = loss_and_gradient(
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
            y_pred = {**y_pred, "gradient_norm": self._gradient_norm(gradient, optimizer)}
            trainable, optimizer = self.optimizer.stateless_apply(optimizer, gradient, trainable)
            non_trainable = [
                value + 1 if variable is self.step else value
                for variable, value in zip(self.non_trainable_variables, non_trainable, strict=True)
            ]
            logs, metrics = self._update_metrics_variables(
                metrics, loss, x, y, y_pred, sample_weight
            )
            return logs, (trainable, non_trainable, optimizer, metrics)

        def _gradient_norm(self, gradient, optimizer):
            """Of the gradient of the loss itself, whatever the optimizer has scaled it by."""
            known = zip(self.optimizer.variables, optimizer, strict=True)
            with keras.StatelessScope(state_mapping=list(known)):
                return global_norm(gradient, self.optimizer.scale_loss(1.0))

    else:

        def train_step(self, *args):
            logs = super().train_step(*args)
            self.step.assign_add(1)
            return logs

    # What is fed ---------------------------------------------------------------------------------

    def expected_inputs(self, training) -> dict:
        """{name: `flipkit.inputs.Pixels` or `Ids`} of what a batch may hold."""
        raise NotImplementedError

    def needed_inputs(self, use) -> tuple[tuple[str, ...], ...]:
        """Groups of names: a batch has to hold one of each group; without a loss, of any."""
        raise NotImplementedError

    @property
    def _fed(self):
        """The check of what is on its way, for each use, and the validation data that was checked."""
        if "_fed_now" not in vars(self):
            self._fed_now = types.SimpleNamespace(fit=None, evaluate=None, predict=None, known=None)
        return self._fed_now

    def _check(self, use):
        """A new check of what `use`, such as "fit", is fed. Builds the model first."""
        if not self.built:
            self.build()
        expected, needed = self.expected_inputs(use == "fit"), self.needed_inputs(use)
        check = inputs.Check(expected, needed, targets=use != "predict")
        setattr(self._fed, use, check)
        return check

    def _checked(self, use, function):
        """A train, test or predict function of Keras's JAX trainer whose input is checked.

        The trainer has taken the variables' values away when it is called: what is refused, by this
        check or while the program is made, gives them back.
        """

        def watched(state, iterator):
            check = getattr(self._fed, use) or self._check(use)
            try:
                return function(state, inputs.Watched(iterator, check))
            except Exception as problem:
                if not isinstance(problem, StopIteration):
                    self._take_back(use, state)
                raise

        return watched

    def _take_back(self, use, state):
        parts = [self.trainable_variables, self.non_trainable_variables]
        parts += [self.optimizer.variables] if use == "fit" else []
        parts += [self.metrics_variables] if use != "predict" else []
        for variables, values in zip(parts, state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                if not value.is_deleted():  # a step that has begun owns what it was given
                    variable.assign(value)

    def make_train_function(self, force=False):
        stale = self.train_function is None or force
        super().make_train_function(force)
        if stale and keras.backend.backend() == "jax":
            self.meter = Meter()
            self.train_function = self.meter.measured(self._checked("fit", self.train_function))

    def make_test_function(self, force=False):
        stale = self.test_function is None or force
        super().make_test_function(force)
        if stale and keras.backend.backend() == "jax":
            self.test_function = self._checked("evaluate", self.test_function)

    def make_predict_function(self, force=False):
        stale = self.predict_function is None or force
        made = super().make_predict_function(force)
        if stale and keras.backend.backend() == "jax":
            self.predict_function = self._checked("predict", self.predict_function)
        return made

    def fit(self, x=None, *args, callbacks=None, **kwargs):
        """As `keras.Model.fit`; logs also `pairs_per_second` and `data_wait`, the share of time spent
        waiting for data (JAX backend). A Keras `CallbackList` is used as it is, without them.

        `x` is a dict of arrays, or gives one dict after another: a generator or another iterator, a
        `keras.utils.PyDataset`, a `tf.data.Dataset`, a Grain data set or loader, a torch `DataLoader`.
        What the model can't be fed is refused before a program is made of it.
        """
        bound = inspect.signature(super().fit).bind(x, *args, callbacks=callbacks, **kwargs)
        given = bound.arguments
        steps, epochs = given.get("steps_per_epoch"), given.get("epochs", 1)
        inputs.check_epochs(x, epochs, steps)
        targets = (given.get(name) for name in ("y", "sample_weight", "class_weight"))
        self._check("fit").arguments(x, *targets)
        given["x"] = inputs.opened(x)
        if inputs.is_ordered(x):
            given.setdefault("shuffle", False)  # Keras warns that it can't
        if given.get("validation_data") is not None:
            judged, *targets = keras.utils.unpack_x_y_sample_weight(given["validation_data"])
            inputs.check_epochs(judged, epochs, given.get("validation_steps"))
            self._check("evaluate").arguments(judged, *targets)
            judged = inputs.opened(judged)
            given["validation_data"], self._fed.known = (judged, *targets), judged
        ready = isinstance(callbacks, keras.callbacks.CallbackList)
        _refuse_backups(callbacks.callbacks if ready else keras.tree.flatten(callbacks))
        if keras.backend.backend() == "jax" and not ready:
            given["callbacks"] = [Throughput(), *keras.tree.flatten(callbacks or [])]
        try:
            with inputs.until_exhausted(x, steps):
                history = super().fit(*bound.args, **bound.kwargs)
        finally:
            self._fed.known = None
        if getattr(self.optimizer, "use_ema", False):
            # Keras 3.15 has put the averages' own arrays into the weights, and the next step would
            # give each away twice.
            for variable in self.trainable_variables:
                variable.assign(ops.copy(variable))
        return history

    def evaluate(self, x=None, *args, **kwargs):
        """As `keras.Model.evaluate`; takes what `fit` takes."""
        bound = inspect.signature(super().evaluate).bind(x, *args, **kwargs)
        given = bound.arguments
        if x is None or x is not self._fed.known:  # `fit` has looked at it already
            self._check("evaluate").arguments(x, given.get("y"), given.get("sample_weight"))
        given["x"] = inputs.opened(x)
        with inputs.until_exhausted(x, given.get("steps")):
            return super().evaluate(*bound.args, **bound.kwargs)

    def predict(self, x, *args, **kwargs):
        """As `keras.Model.predict`; takes what `fit` takes, with pictures or texts alone too."""
        bound = inspect.signature(super().predict).bind(x, *args, **kwargs)
        self._check("predict").arguments(x)
        bound.arguments["x"] = inputs.opened(x)
        with inputs.until_exhausted(x, bound.arguments.get("steps")):
            return super().predict(*bound.args, **bound.kwargs)

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, **kwargs):
        """As `keras.Model.train_on_batch`."""
        self._check("fit").arguments(x, y, sample_weight, class_weight)
        return super().train_on_batch(x, **kwargs)

    def test_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        """As `keras.Model.test_on_batch`."""
        self._check("evaluate").arguments(x, y, sample_weight)
        return super().test_on_batch(x, **kwargs)

    def predict_on_batch(self, x):
        """As `keras.Model.predict_on_batch`."""
        self._check("predict").arguments(x)
        return super().predict_on_batch(x)

    # Saving --------------------------------------------------------------------------------------

    def export(self, filepath, format="tf_saved_model", *args, input_signature=None, **kwargs):
        """As `keras.Model.export`; builds the model first.

        Args:
            input_signature: a list of one dict of `keras.InputSpec`; its names are what the exported
                model asks for. None is what `predict` takes, with any number of rows.
        """
        if not self.built:
            self.build()
        if input_signature is None:
            input_signature = [self.signature()]
        return super().export(filepath, format, *args, input_signature=input_signature, **kwargs)

    def signature(self) -> dict[str, keras.InputSpec]:
        """{name: shape and type} of what an exported model asks for."""
        raise NotImplementedError

    def quantize(self, mode=None, config=None, filters=None, **kwargs):
        """As `keras.Model.quantize`, for use, not for training. A file that is saved then is loaded so."""
        with warnings.catch_warnings():  # norms and dropout have nothing to quantize
            warnings.filterwarnings("ignore", ".*does not have a `quantize` method", UserWarning)
            super().quantize(mode, config=config, filters=filters, **kwargs)
        self.quantized = config  # Keras has made one of the mode
        self._whole = filters is None

    def _quantized_config(self):
        """What a config says of it: nothing, for numbers as they were trained."""
        if self.quantized is None:
            return {}
        if not self._whole or self.quantized.mode not in MODES:
            raise ConfigurationError(
                "What was quantized in part, or with data, can't be written down. Expected "
                f"quantize(mode) with one of {MODES}. Received: mode={self.quantized.mode!r}"
                f"{'' if self._whole else ' and filters'}"
            )
        return {"quantized": registry.serialize(self.quantized)}

    @classmethod
    def from_config(cls, config):
        settings = registry.deserialize(config)
        quantized = settings.pop("quantized", None)
        model = cls(**settings)
        if quantized is not None:
            model.build()
            model.quantize(config=quantized)
        return model

    def load_weights(self, filepath, *args, **kwargs):
        """As `keras.Model.load_weights`; builds the model first."""
        if not self.built:
            self.build()
        return super().load_weights(filepath, *args, **kwargs)

    def compile_from_config(self, config):
        config = registry.deserialize(config)
        self.compile(**config)
        self.optimizer.build(self.trainable_variables)

    def get_build_config(self):
        return {"input_shape": None} if self.built else None

    def build_from_config(self, config):
        if not self.built:
            self.build()


def _refuse_backups(callbacks):
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore) and callback.save_freq != "epoch":
            raise ConfigurationError(
                "BackupAndRestore forgets where in an epoch it was, and goes on with the epoch's first "
                'batch. Expected save_freq="epoch", or the checkpoints of flipkit.Run(...).start('
                f"workdir=FOLDER). Received: save_freq={callback.save_freq!r}"
            )


def global_norm(tensors, factor=1.0):
    """Float32 L2 norm over all of `tensors`, each divided by `factor` before a square can overflow."""
    known = (ops.cast(t, "float32") for t in tensors if t is not None)
    if not isinstance(factor, float) or factor != 1:
        known = (t / factor for t in known)
    return ops.sqrt(sum(ops.sum(ops.square(t)) for t in known))


class Meter:
    """Counts, over the life of a train function, what its steps were fed and how long they waited.

    Attributes:
        pairs: rows fed so far.
        waited: seconds spent waiting for the next batch.
        programs: how many were compiled: one, if all batches had the same shapes.
        fresh: whether the program has yet to be compiled.
        compiled: what is called when it was, and has run once; nothing of the time counts.
    """

    def __init__(self):
        self.pairs, self.waited, self.programs, self.fresh = 0, 0.0, 0, True
        self.compiled: Callable[[], None] = lambda: None

    def measured(self, train_function):
        """`train_function` with its input watched."""

        def function(state, iterator):
            return train_function(state, _Metered(iterator, self))

        return function


class _Metered:
    """An iterator of batches that `meter` counts; a class, as `flipkit.inputs.Watched` is one."""

    def __init__(self, iterator, meter):
        self.iterator, self.meter = iterator, meter

    def __next__(self):
        start = time.perf_counter()
        try:
            batch = next(self.iterator)
        finally:
            self.meter.waited += time.perf_counter() - start
        self.meter.pairs += len(keras.tree.flatten(batch)[0])
        return batch
