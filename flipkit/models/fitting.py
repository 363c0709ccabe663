"""`fit`, `evaluate` and `predict` that check their input before Keras makes a program of it."""
# Keras's trainers define these methods, once for each backend.
# pyright: reportAttributeAccessIssue=false

import inspect
import types

import keras

from flipkit import optimizers
from flipkit.callbacks import Throughput
from flipkit.errors import ConfigurationError
from flipkit.models import inputs
from flipkit.models.meter import Meter


class Fitting(keras.Model):
    """A keras.Model whose input is checked, and whose steps are counted and timed.

    Attributes:
        meter: `flipkit.models.meter.Meter` of the latest train function of `fit`; None before.
    """

    meter: Meter | None = None

    def expected_inputs(self, training) -> dict:
        """{name: `flipkit.models.inputs.Pixels` or `Ids`} of what a batch may hold.

        Args:
            training: whether `fit` gets the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no expected_inputs(training)")

    def needed_inputs(self, use) -> tuple[tuple[str, ...], ...]:
        """Groups of names: a batch has to hold one of each group.

        Args:
            use: "fit", "evaluate" or "predict".
        """
        raise NotImplementedError(f"{type(self).__name__} defines no needed_inputs(use)")

    @property
    def _fed(self):
        """The check of the current input, for each use, and the checked validation data."""
        if "_fed_now" not in vars(self):
            self._fed_now = types.SimpleNamespace(fit=None, evaluate=None, predict=None, known=None)
        return self._fed_now

    def _check(self, use):
        """A new check of the input of `use`, such as "fit". Builds the model first."""
        if not self.built:
            self.build()
        expected, needed = self.expected_inputs(use == "fit"), self.needed_inputs(use)
        check = inputs.Check(expected, needed, targets=use != "predict")
        setattr(self._fed, use, check)
        return check

    def _checked(self, use, function):
        """A train, test or predict function of Keras's JAX trainer whose input is checked.

        The trainer has taken the variables' values away when it calls the function. An error, of this check
        or while the program is made, gives them back.
        """

        def watched(state, iterator):
            check = getattr(self._fed, use) or self._check(use)
            try:
                return function(state, inputs.Watched(iterator, check, self.steps_per_execution))
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
                if not value.is_deleted():  # a step that has begun owns its inputs
                    variable.assign(value)

    def make_train_function(self, force=False):
        stale = self.train_function is None or force
        super().make_train_function(force)
        if stale and keras.backend.backend() == "jax":
            self.meter = Meter()
            self.train_function = self.meter.measured(
                self._checked("fit", self.train_function), self.steps_per_execution
            )

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

        `x` is a dict of arrays, or yields one dict after another: a generator or another iterator, a
        `keras.utils.PyDataset`, a `tf.data.Dataset`, a Grain data set or loader, a torch `DataLoader`.
        Input that the model can't take raises before Keras makes a program of it.
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
        optimizers.own_arrays(self)
        return history

    def evaluate(self, x=None, *args, **kwargs):
        """As `keras.Model.evaluate`; takes what `fit` takes."""
        bound = inspect.signature(super().evaluate).bind(x, *args, **kwargs)
        given = bound.arguments
        if x is None or x is not self._fed.known:  # `fit` has checked it already
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


def _refuse_backups(callbacks):
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore) and callback.save_freq != "epoch":
            raise ConfigurationError(
                "BackupAndRestore does not store the place in an epoch, and resumes at the epoch's first "
                'batch. Expected save_freq="epoch", or the checkpoints of flipkit.Run(...).start('
                f"workdir=FOLDER). Received: save_freq={callback.save_freq!r}"
            )
