"""The checks of a model that `flipkit.Run` trains."""

import contextlib
import tempfile

import numpy as np

from flipkit import datasets, planning, training
from flipkit.feed import Feed
from flipkit.models.trainable import Trainable
from flipkit.paths import canonical
from flipkit.testing.check import Check, Checks, expect, expect_close, expect_equal, slow
from flipkit.testing.holding import quickly_compiled, reloaded

STEPS, BATCH = 3, 4


def check_model(make, *, expected_failures=None) -> list[Check]:
    """Returns the checks of a `flipkit.models.Trainable`, whose `example()` must be quick to train."""
    return _ModelChecks(make).checks(expected_failures)


class _Stopped(Exception):
    pass


class _ModelChecks(Checks):
    kind = Trainable

    def builds_without_data(self):
        model = self._built()
        expect(model.built, "a model that is built", "one that is not")
        expect(
            "step" in _values(model), "a variable `step` that counts steps", sorted(_values(model))
        )

    def names_its_variables_alike_each_time(self):
        """A checkpoint finds a variable by its path."""
        first, second = ([canonical(v.path) for v in self._built().variables] for _ in range(2))
        expect(len({*first}) == len(first), "a path of its own for each variable", sorted(first))
        expected = "the same paths in each model that is made: give each layer a name"
        expect(first == second, expected, f"{sorted({*first} ^ {*second})[:6]} in one alone")

    def begins_as_its_seed_says(self):
        first, again, other = (_values(self._built(seed)) for seed in (1, 1, 2))
        for path, value in first.items():
            expect_equal(again[path], value, f"equal first values of {path} for equal seeds")
        same = all(np.array_equal(other[path], value) for path, value in first.items())
        expect(not same, "other first values for another seed", "the same values")

    def reads_what_a_feed_gives(self):
        batch = self._run().feed.open(self._data(), self._ready(), BATCH).batch(0)
        inputs, needed = self._ready().expected_inputs(True), self._ready().needed_inputs("fit")
        for group in needed:
            expected = f"`reads` that makes a batch hold {' or '.join(group)}"
            expect({*group} & batch.keys(), expected, sorted(batch))
        for name, value in batch.items():
            expect(name in inputs, f"{name} among the expected inputs", sorted(inputs))
            inputs[name].check_form(name, value)

    def is_planned(self):
        towers = planning.Towers(self._make())
        costs = towers.training()
        expect(costs.keys() == towers.encoders.keys(), "FLOPs of each encoder", costs)
        expect(all(cost > 0 for cost in costs.values()), "FLOPs above 0 in training", costs)

    @slow
    def trains(self):
        """Each step has a finite loss and gradient and increases `step`; all trainable variables change."""
        model, rows = self._trained
        for name in ("loss", "gradient_norm", *model.logged):
            expected = f"a finite {name} at every step"
            values = [row.get(name, np.nan) for row in rows]
            expect(bool(np.isfinite(values).all()), expected, values)
        expect(int(model.step) == STEPS, f"step to be {STEPS} after as many", int(model.step))
        before, after = _values(self._built(0)), _values(model)
        still = [canonical(v.path) for v in model.trainable_variables]
        still = [path for path in still if np.array_equal(before[path], after[path])]
        # A key's bias adds the same to all scores of a query, which softmax cancels.
        still = [path for path in still if not path.endswith("key/bias")]
        expect(not still, "every trainable variable to change", f"no change of {still[:6]}")

    @slow
    def resumes_to_the_same_end(self):
        """A run that stops after a step and resumes ends with the same weights as an unbroken one."""

        def stop(step):
            if step >= 1:
                raise _Stopped

        with tempfile.TemporaryDirectory() as folder, quickly_compiled():
            run = self._run().with_override("checkpoint_every", 1)
            with contextlib.suppress(_Stopped):
                run.start(folder, pause=stop)
            resumed = _values(run.start(folder))
        for path, value in _values(self._trained[0]).items():
            expect_equal(resumed[path], value, f"equal weights {path} after a stop")

    @slow
    def survives_a_file(self):
        model = self._trained[0]
        again = reloaded(model)
        batch = self._run().feed.open(self._data(), model, BATCH).batch(0)
        for name, value in model(batch).items():
            expected = f"the same {name} from a .keras file"
            expect_close(np.asarray(again(batch)[name]), np.asarray(value), expected, 1e-6)

    # The model, its data and its run

    def _built(self, seed=0):
        model = self._make()
        model.seed = seed
        model.build()
        return model

    def _ready(self):
        """Returns a model whose tokenizer, if it has one, is trained."""
        model = self._make()
        if model.reads == "text":
            training.train_tokenizer(model, self._data())
        return model

    def _data(self):
        count = min(getattr(self._make(), "classes", 16), 16)
        return datasets.CaptionedShapes("test", max(count, BATCH), image_size=32)

    def _run(self):
        return training.Run(
            self._make(),
            data=self._data(),
            feed=Feed(threads=1),
            optimizer="adamw",
            phases=[training.Phase(STEPS * BATCH, BATCH)],
            log_every=1,
            checkpoint_every=0,
        )

    @property
    def _trained(self):
        """The model after STEPS steps, and the rows of metrics."""
        if not hasattr(self, "_ended"):
            with tempfile.TemporaryDirectory() as folder, quickly_compiled():
                model = self._run().start(folder)
                self._ended = model, training.read_metrics(folder)
        return self._ended


def _values(model):
    """Returns {canonical path: value} of a built model's variables."""
    return {canonical(v.path): np.array(v) for v in model.variables}
