from typing import Any

import flipkit_attentive_masker as plugin
import keras
import numpy as np
import pytest
from flipkit_attentive_masker import AttentiveMasker

import flipkit
from flipkit import testing

TOWER: dict[str, Any] = {"image_size": 16, "patch_size": 4, "dim": 16, "depth": 1, "heads": 2}


def checks():
    for check in testing.check_masker(AttentiveMasker):
        marks = pytest.mark.slow if check.slow else ()
        yield pytest.param(check, id=str(check), marks=marks)


@pytest.mark.parametrize("check", list(checks()))
def test_it_does_what_a_masker_must(check):
    check()


def model_with(masker=None, **changes):
    """A FLIP that masks half of 16 patches, built."""
    image = flipkit.ViT(**{**TOWER, **changes})
    text = flipkit.TextTransformer(vocab=32, length=6, dim=16, depth=1, heads=2)
    masker = AttentiveMasker() if masker is None else masker
    model = flipkit.FLIP(image, text, masker=masker, mask_ratio=0.5, dim=8, seed=3)
    model.build()
    return model


def pairs(batch=8, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (batch, 16, 16, 3)).astype("uint8")
    return {"image": images, "text": rng.integers(1, 32, (batch, 6)).astype("int32")}


def brightness_tower(pool="class"):
    """A tower whose class token pays attention by brightness alone: it asks for what patches show.

    The patch embedding hands the mean of a patch to one coordinate, positions are nothing, and keys are
    that coordinate: brighter patches get more, in a known order.
    """
    model = model_with(pool=pool, positions="learned", patch_bias=True)
    for variable in model.image.variables:
        variable.assign(np.zeros(variable.shape))
    image, attention = model.image, model.image.blocks[0].attention
    image.blocks[0].attention_norm.gamma.assign(np.ones(16))
    kernel = np.zeros((48, 16), "float32")
    kernel[:, 0], kernel[:, 1] = 1, -1  # of opposite sign: a layer norm leaves their order alone
    image.patch_embed.kernel.assign(kernel)
    image.patch_embed.bias.assign(np.linspace(1, 2, 16))
    attention.query.bias.assign(np.ones(16))
    key = np.zeros((16, 16), "float32")
    key[0] = 1
    attention.key.kernel.assign(key)
    return model


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_exactly_the_patches_paid_the_most_attention_are_kept(pool):
    model = brightness_tower(pool)
    levels = np.random.default_rng(1).permuted(np.tile(np.arange(16) * 16, (5, 1)), axis=1)
    patches = np.repeat(levels[:, :, None], 48, axis=2).astype("uint8")
    ids = model.masker(patches, keep=6, grid=(4, 4), seed=flipkit.Seed(0))
    brightest = np.sort(np.argsort(-levels, axis=1)[:, :6], axis=1)
    np.testing.assert_array_equal(np.asarray(ids), brightest)


def test_scores_are_the_shares_of_attention_in_numpy():
    """Softmax(q k / sqrt(d)) of the class token over all tokens, the mean of both heads."""
    model = model_with(pool="class")
    image, x = model.image, np.random.default_rng(2).normal(size=(3, 16, 48)).astype("float32")
    block = image.blocks[0]
    tokens = np.asarray(x) @ np.asarray(image.patch_embed.kernel)
    tokens = tokens + np.asarray(image.position)[-16:]
    first = np.broadcast_to(np.asarray(image.token).reshape(1, 1, 16), (3, 1, 16))
    tokens = np.concatenate([first, tokens], axis=1)
    seen = np.asarray(block.attention_norm(tokens))
    query, key = (
        np.asarray(layer(seen)).reshape(3, 17, 2, 8).transpose(0, 2, 1, 3)
        for layer in (block.attention.query, block.attention.key)
    )
    logits = query[:, :, :1] @ key.transpose(0, 1, 3, 2) / np.sqrt(8)
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    expected = shares.mean(axis=(1, 2))[:, 1:]
    np.testing.assert_allclose(np.asarray(image.scores(x)), expected, rtol=1e-4)


def test_shrunk_it_scores_smaller_pictures_and_interpolates_between_patches():
    model = model_with(AttentiveMasker(shrink=2), image_size=(16, 24), pool="mean")
    images = np.random.default_rng(5).integers(0, 256, (6, 16, 24, 3)).astype("uint8")
    halved = images.reshape(6, 8, 2, 12, 2, 3).mean(axis=(2, 4))
    x = model.preprocessing.normalise(flipkit.layers.patchify(halved, 4))
    scores = np.asarray(model.image.scores(x, grid=(2, 3))).reshape(6, 2, 3)
    between = np.einsum("rR,bRC,cC->brc", twice(2), scores, twice(3)).reshape(6, 24)
    patches = flipkit.layers.patchify(images, 4)
    ids = model.masker(patches, keep=9, grid=(4, 6), seed=flipkit.Seed(0))
    highest = np.sort(np.argsort(-between, axis=1)[:, :9], axis=1)
    np.testing.assert_array_equal(np.asarray(ids), highest)


def twice(n):
    """The weights (2 * n, n) of linear interpolation from n centres of pixels to twice as many."""
    places = np.clip((np.arange(2 * n) - 0.5) / 2, 0, n - 1)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(n)), 0)


def test_pictures_that_cannot_be_shrunk_are_refused():
    told = r"shrink=3, a grid \(4, 4\) and patches of 4"
    with pytest.raises(flipkit.ConfigurationError, match=told):
        model_with(AttentiveMasker(shrink=3))(pairs(), training=True)
    with pytest.raises(flipkit.ConfigurationError, match=r"Received: shrink=0\.5"):
        AttentiveMasker(shrink=0.5)  # pyright: ignore[reportArgumentType]


def average(model):
    return [np.asarray(weight) for weight in model.masker.average.weights]


def tower(model):
    return [np.asarray(weight) for weight in model.image.weights]


def test_the_average_begins_as_the_tower_and_moves_by_its_decay():
    model = model_with(AttentiveMasker(decay=0.75))
    model.compile(keras.optimizers.SGD(0.5))
    begin = tower(model)
    model.fit(pairs(), batch_size=8, epochs=1, verbose=0)
    for mean, weight in zip(average(model), begin, strict=True):
        np.testing.assert_allclose(mean, weight, rtol=1e-6)
    one = tower(model)
    model.fit(pairs(seed=1), batch_size=8, epochs=1, verbose=0)
    moved = 0
    for mean, before, after in zip(average(model), begin, one, strict=True):
        np.testing.assert_allclose(mean, 0.75 * before + 0.25 * after, rtol=1e-5, atol=1e-7)
        moved += np.abs(mean - before).max() > 0
    assert moved > 5


def test_the_average_gets_no_gradient_and_no_moments():
    model = model_with()
    model.compile("adam")
    model.fit(pairs(), batch_size=8, verbose=0)
    learned = {variable.path for variable in model.trainable_variables}
    assert not any("average" in path for path in learned)
    assert any("average" in variable.path for variable in model.variables)
    assert not any("average" in variable.path for variable in model.optimizer.variables)


@pytest.mark.slow
def test_the_average_is_in_a_runs_checkpoint_and_goes_on_from_there(tmp_path):
    """Killed after two of four steps: the same weights, the average's too, as without the kill."""

    def run():
        return flipkit.Run(
            flipkit.FLIP(
                flipkit.ViT(**{**TOWER, "image_size": 32, "patch_size": 8}),
                flipkit.TextTransformer(vocab=259, length=8, dim=16, depth=1, heads=2),
                masker=AttentiveMasker(decay=0.5),
                mask_ratio=0.5,
                dim=8,
                tokenizer="bytes",
            ),
            data=flipkit.CaptionedShapes(size=24, image_size=32),
            feed=flipkit.Feed(crop=None, flip=False, threads=1),
            phases=[flipkit.Phase(32, 8, flipkit.WarmupCosine(1e-2))],
            log_every=1,
            checkpoint_every=1,
        )

    class Killed(Exception):
        pass

    def until_the_second_step(line):
        if line.startswith("step 3/"):
            raise Killed

    whole = run().start(tmp_path / "whole")
    with pytest.raises(Killed):
        run().start(tmp_path / "cut", say=until_the_second_step)
    said = []
    resumed = run().start(tmp_path / "cut", say=said.append)
    assert any(line.startswith("Resuming at step") for line in said)
    for one, other in zip(whole.variables, resumed.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=one.path)
    assert int(resumed.masker.updates) == 4


def test_looking_at_its_masks_moves_nothing():
    model = model_with()
    before = average(model)
    masks = model.draw_masks(pairs()["image"], range(2))
    assert masks.shape == (8, 2, 16)
    assert (masks.sum(axis=2) == 8).all()
    for one, other in zip(before, average(model), strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(model.masker.updates) == 0


def test_a_picture_of_another_size_is_scored_with_resampled_positions():
    model = model_with()
    model.image_size = 8
    model.compile("adam")
    model.fit({**pairs(), "image": pairs()["image"][:, :8, :8]}, batch_size=8, verbose=0)
    assert model.kept_patches == 2


def test_a_tower_that_tells_no_scores_is_refused():
    class Blind(flipkit.ViT):
        scores: Any = None  # pyright: ignore[reportIncompatibleMethodOverride]

    with pytest.raises(flipkit.ConfigurationError, match=r"scores\(x\).*Received: Blind"):
        flipkit.FLIP(
            Blind(**TOWER),
            flipkit.TextTransformer(vocab=32, length=6, dim=16, depth=1, heads=2),
            masker=AttentiveMasker(),
        ).build()


def test_alone_it_says_where_it_works():
    with pytest.raises(flipkit.ConfigurationError, match="works only in a model"):
        AttentiveMasker().build((None, 16, 16, 3))


@pytest.mark.parametrize("decay", [1.0, -0.1, "much"])
def test_a_decay_that_is_no_share_is_refused(decay):
    with pytest.raises(flipkit.ConfigurationError, match="Received: decay="):
        AttentiveMasker(decay)


def test_the_name_is_offered():
    assert plugin.flipkit_maskers().keys() == {"attentive"}
