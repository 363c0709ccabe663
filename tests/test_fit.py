"""Plain `model.fit`, as a Keras user writes it: no recipe, no run, at most 25 lines."""

import gc
import inspect
import textwrap
import weakref

import keras
import pytest


def from_a_feed():
    import flipkit

    image = flipkit.ViT(image_size=32, patch_size=8, dim=16, depth=1, heads=2)
    text = flipkit.TextTransformer(vocab=259, length=16, dim=16, depth=1, heads=2)
    model = flipkit.FLIP(image, text, mask_ratio=0.5, dim=16, tokenizer="bytes")
    model.compile(flipkit.AdamW(1e-3))
    data = flipkit.CaptionedShapes(size=64, image_size=32)
    batches = flipkit.Feed(crop=None, flip=False).open(data, model, batch_size=16)
    history = model.fit(batches.from_step(0), steps_per_epoch=2, epochs=2, verbose=0)
    return model, history


def from_tf_data():
    import numpy as np
    import tensorflow as tf

    import flipkit

    image = flipkit.ViT(image_size=32, patch_size=8, dim=16, depth=1, heads=2)
    text = flipkit.TextTransformer(vocab=64, length=8, dim=16, depth=1, heads=2)
    model = flipkit.FLIP(image, text, mask_ratio=0.5, dim=16)
    model.compile(flipkit.AdamW(1e-3))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (32, 32, 32, 3), "uint8"),
        "text": rng.integers(1, 64, (32, 8), "int32"),
    }
    data = tf.data.Dataset.from_tensor_slices(batch).batch(16)
    return model, model.fit(data, epochs=2, shuffle=False, verbose=0)


def on_eight_devices():
    import keras

    import flipkit

    keras.distribution.set_distribution(keras.distribution.DataParallel())
    image = flipkit.ViT(image_size=32, patch_size=8, dim=16, depth=1, heads=2, dropout=0.1)
    text = flipkit.TextTransformer(vocab=259, length=16, dim=16, depth=1, heads=2)
    model = flipkit.FLIP(image, text, mask_ratio=0.5, dim=16, tokenizer="bytes")
    model.compile(flipkit.AdamW(1e-3))
    data = flipkit.CaptionedShapes(size=64, image_size=32)
    batches = flipkit.Feed(crop=None, flip=False).open(data, model, batch_size=16)
    history = model.fit(batches.from_step(0), steps_per_epoch=2, epochs=2, verbose=0)
    return model, history


def with_two_workers():
    import flipkit

    image = flipkit.ViT(image_size=32, patch_size=8, dim=16, depth=1, heads=2)
    text = flipkit.TextTransformer(vocab=259, length=16, dim=16, depth=1, heads=2)
    model = flipkit.FLIP(image, text, mask_ratio=0.5, dim=16, tokenizer="bytes")
    model.compile(flipkit.AdamW(1e-3))
    data = flipkit.CaptionedShapes(size=64, image_size=32)
    feed = flipkit.Feed(crop=None, flip=False, workers=2)
    batches = feed.open(data, model, batch_size=16).from_step(0)
    history = model.fit(batches, steps_per_epoch=2, epochs=2, verbose=0)
    batches.close()
    return model, history


def program(function, end):
    """`function` as a script of its own, followed by `end`."""
    source = textwrap.dedent(inspect.getsource(function))
    return f"{source}\nif __name__ == '__main__':\n    model, history = {function.__name__}()\n    {end}"


SNIPPETS = (from_a_feed, from_tf_data, on_eight_devices, with_two_workers)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.__name__)
def test_no_snippet_takes_more_than_25_lines(snippet):
    lines = inspect.getsource(snippet).splitlines()
    assert len([line for line in lines if line.strip()]) <= 25


@pytest.fixture(scope="module")
def fitted():
    return from_a_feed()


def test_fit_from_a_feed_logs_what_a_contrastive_run_needs(fitted):
    _, history = fitted
    names = {"loss", "image_to_text_accuracy", "text_to_image_accuracy", "logit_scale"}
    names |= {"gradient_norm", "pairs_per_second", "data_wait"}
    assert names <= history.history.keys()
    assert len(history.history["loss"]) == 2


def test_fit_goes_on_with_another_mask_ratio_in_another_program(fitted):
    import flipkit

    model, _ = fitted
    kept = []
    choose = model.masker.call

    def record(x, keep, **more):
        kept.append(keep)  # called while a program is traced
        return choose(x, keep, **more)

    model.masker.call = record
    data = flipkit.CaptionedShapes(size=64, image_size=32)
    batches = flipkit.Feed(crop=None, flip=False).open(data, model, batch_size=16)
    for ratio in (0.75, 0.25):
        model.mask_ratio = ratio
        model.fit(batches.from_step(0), steps_per_epoch=1, verbose=0)
    assert set(kept) == {4, 12}  # of 16 patches


def test_fit_takes_several_steps_per_execution(tiny, pairs):
    model = tiny()
    model.compile("adamw", steps_per_execution=4)
    model.fit(pairs(64), batch_size=8, verbose=0)
    assert int(model.step) == 8


@pytest.mark.parametrize("use", ["fit", "evaluate", "predict"])
def test_what_was_fed_is_let_go(tiny, pairs, use):
    def batches():
        yield pairs()
        yield pairs()
        yield pairs()  # which nobody asks for

    model, given = tiny(), batches()
    model.compile("adamw")
    steps = {"steps_per_epoch" if use == "fit" else "steps": 2}
    gc.disable()  # a cycle would keep the user's data until some collection
    try:
        getattr(model, use)(given, verbose=0, **steps)
        freed = weakref.ref(given)
        del given
        assert freed() is None
    finally:
        gc.enable()


def test_fit_from_tf_data():
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed: pip install flipkit[tf]")
    model, history = from_tf_data()
    assert int(model.step) == 4
    assert all(loss > 0 for loss in history.history["loss"])


def test_fit_on_eight_devices_equals_one(fresh):
    end = "print(history.history['loss'])"
    code = program(on_eight_devices, f"import jax; assert jax.device_count() == 8; {end}")
    eight = fresh(code, devices=8)
    try:
        _, one = on_eight_devices()  # of which this process has one
    finally:
        keras.distribution.set_distribution(None)
    assert eval(eight) == pytest.approx(one.history["loss"], rel=1e-5)


@pytest.mark.slow  # test_feed has workers beside none
def test_fit_with_two_workers_needs_no_parsed_flags(fresh, tmp_path):
    # A script, since worker processes import their parent's main module.
    script = tmp_path / "script.py"
    end = "import absl.flags; print(int(model.step), history.history['loss'])"
    script.write_text(program(with_two_workers, end))
    run = f"subprocess.check_output([sys.executable, {str(script)!r}], text=True)"
    workers = fresh(f"import subprocess, sys; print({run})")
    step, losses = workers.strip().split(" ", 1)
    assert step == "4"
    _, history = from_a_feed()  # no workers: the same batches
    assert eval(losses) == pytest.approx(history.history["loss"], rel=1e-6)


def test_training_needs_no_tensorflow_and_no_keras_nlp(fresh):
    block = textwrap.dedent(
        """
        import sys

        BLOCKED = ("tensorflow", "tensorflow_text", "keras_nlp", "keras_hub")

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in BLOCKED:
                    raise ModuleNotFoundError(f"{name} is blocked", name=name)

        sys.meta_path.insert(0, Blocked())
        """
    )
    end = "print(int(model.step))"
    assert fresh(block + program(from_a_feed, end)).strip() == "4"
