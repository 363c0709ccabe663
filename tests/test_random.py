import contextlib
import itertools

import jax
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flipkit
from flipkit import random


def mix(x):
    """lowbias32 (Chris Wellons) on uint32."""
    x = np.asarray(x).astype("int64").astype("uint32")
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return (x ^ (x >> 16)).view("int32")


def unmix(x):
    """The inverse of lowbias32: each of its steps is a bijection."""
    x = np.asarray(x, "int32").view("uint32")
    x = (x ^ (x >> 16)) * np.uint32(0x43021123)
    x = (x ^ (x >> 15) ^ (x >> 30)) * np.uint32(0x1D69E2A5)
    return (x ^ (x >> 16)).view("int32")


def draw(shape, seed=0, step=0, name=None, rows=None):
    found = random.Seed(seed, step, None if rows is None else np.asarray(rows, "int32"))
    found = found if name is None else found.named(name)
    return np.asarray(found.uniform(shape))


INTEGERS = np.array([0, 1, -1, 2, 255, 2**31 - 1, -(2**31), 0x7FEB352D, -12_345], "int32")


def test_mix_is_the_published_hash():
    x = np.concatenate([INTEGERS, np.random.default_rng(0).integers(-(2**31), 2**31, 991)])
    np.testing.assert_array_equal(random.mix(x.astype("int32")), mix(x))
    assert int(random.mix(np.int32(0))) == 0
    np.testing.assert_array_equal(jax.jit(random.mix)(x.astype("int32")), mix(x))


def test_mix_can_be_undone_so_no_two_numbers_become_one():
    x = np.random.default_rng(1).integers(-(2**31), 2**31, 1_000).astype("int32")
    np.testing.assert_array_equal(unmix(random.mix(x)), x)


def test_each_bit_of_mix_depends_on_each_bit_of_its_input():
    x = np.random.default_rng(2).integers(-(2**31), 2**31, 1_000).astype("int32")
    for bit in range(32):
        flipped = x ^ np.left_shift(np.uint32(1), np.uint32(bit)).view("int32")
        changed = (mix(x) ^ mix(flipped)).view("uint8")
        shares = np.unpackbits(changed.reshape(-1, 4), axis=1).mean(axis=0)
        assert np.all(abs(shares - 0.5) < 0.1)


def test_the_key_of_a_name_is_an_int32():
    names = ["", "masker", "image/block_00/attention_dropout", "α", *map(str, range(1_000))]
    keys = [random.name_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert np.array(keys, "int64").min() >= -(2**31)
    assert np.array(keys, "int64").max() < 2**31


def test_uniform_is_uniform():
    x = draw((64, 2_000), seed=3).astype("float64")
    assert x.dtype == np.float64
    assert x.min() >= 0
    assert x.max() < 1
    for power in range(1, 5):  # E[x ** n] = 1 / (n + 1)
        assert np.mean(x**power) == pytest.approx(1 / (power + 1), abs=0.004)
    counts = np.histogram(x, 100, (0, 1))[0]
    assert np.all(abs(counts / 1_280 - 1) < 0.15)


def test_neither_neighbouring_places_nor_rows_nor_steps_are_correlated():
    x = draw((100, 1_000))
    later = draw((100, 1_000), step=1)
    for a, b in [(x[:, 1:], x[:, :-1]), (x[1:], x[:-1]), (x, later)]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.01


def test_uniform_keeps_its_shape():
    assert draw((4, 3, 2)).shape == (4, 3, 2)
    assert draw((4,)).shape == (4,)
    assert draw((4, 1, 1)).dtype == np.float32


def test_a_row_draws_the_same_in_any_batch():
    whole = draw((8, 3, 5))
    for rows in ([5], [2, 3], [7, 0, 4]):
        np.testing.assert_array_equal(draw((len(rows), 3, 5), rows=rows), whole[rows])
    np.testing.assert_array_equal(draw((4, 3, 5)), whole[:4])


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 1}, {"name": "a"}, {"rows": [4, 5]}])
def test_another_seed_step_name_or_row_gives_other_numbers(change):
    base = draw((2, 50))
    other = draw((2, 50), **change)
    assert not np.intersect1d(base, other).size


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**31, 2**40])
def test_steps_and_rows_are_not_interchangeable(seed):
    draws = [draw((16, 8), seed, step) for step in range(16)]
    assert len(np.unique(draws)) > 16 * 16 * 8 - 4  # float32 leaves 2 ** 24 numbers


def test_names_are_independent_and_nest():
    seed = random.Seed(1)
    a, b = seed.named("a"), seed.named("b")
    draws = [a, b, a.named("b"), b.named("a"), a.named("a")]
    assert len({np.asarray(s.uniform((1, 4))).tobytes() for s in draws}) == 5
    np.testing.assert_array_equal(a.uniform((2, 4)), random.Seed(1).named("a").uniform((2, 4)))


def test_naming_keeps_the_rows():
    rows = np.array([5, 6], "int32")
    named = random.Seed(1, 2, rows).named("a").uniform((2, 4))
    np.testing.assert_array_equal(named, random.Seed(1, 2).named("a").uniform((8, 4))[5:7])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=2, unique=True))
def test_two_seeds_of_64_bits_are_two_streams(seeds):
    first, second = (draw((2, 8), seed=seed) for seed in seeds)
    assert np.isfinite([first, second]).all()
    assert (first != second).any()


def test_seeds_that_differ_in_their_upper_half_alone_share_nothing():
    seeds = [0, 2**32, 2**33, 2**63, 2**63 + 2**32, 2**31, 2**64 - 1]
    draws = [draw((4, 500), seed=seed) for seed in seeds]
    for a, b in itertools.combinations(draws, 2):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.1
        assert np.mean(a == b) < 0.01
    # What keras.random draws from, and a name's own stream, know the upper half too.
    for derived in (lambda s: s.next(), lambda s: s.named("a").uniform((1, 8))):
        found = {np.asarray(derived(random.Seed(seed))).tobytes() for seed in seeds}
        assert len(found) == len(seeds)
    keys = {random._initial_key("image/norm/gamma", seed) for seed in seeds}
    assert len(keys) == len(seeds)


def test_seeds_below_2_to_the_32_keep_their_numbers():
    """Written out as it was before seeds had an upper half."""
    for seed in (0, 1, 2**31, 2**32 - 1):
        number = np.int64([seed ^ (random.name_key("seed") % 2**32)]).astype("int32")
        key = mix(mix(number) ^ np.int32(5))
        bits = mix((mix(mix(np.arange(2)) ^ key))[:, None] ^ mix(np.arange(3))[None])
        expected = (bits.view("uint32") >> 8).astype("float32") * np.float32(2**-24)
        np.testing.assert_array_equal(draw((2, 3), seed=seed, step=5), expected)
        pair = np.asarray(random.Seed(seed, 5).next())
        np.testing.assert_array_equal(pair, [*key.view("uint32"), 0])


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, "0", True, None])
def test_what_is_no_seed_is_refused(seed, tiny):
    told = rf"seed as a whole number from 0 to 2\*\*64 - 1\. Received: seed={seed!r}"
    with pytest.raises(flipkit.ConfigurationError, match=told):
        random.Seed(seed)
    if seed is not None:  # of a model: that of its run
        with pytest.raises(flipkit.ConfigurationError, match=told):
            tiny(seed=seed)


def test_a_seed_keeps_no_state():
    seed = random.Seed(4)
    np.testing.assert_array_equal(seed.uniform((2, 3)), seed.uniform((2, 3)))
    first = keras.random.uniform((2, 3), seed=seed)
    np.testing.assert_array_equal(first, keras.random.uniform((2, 3), seed=seed))


def test_keras_random_takes_a_seed_with_a_traced_step():
    @jax.jit
    def drawn(step):
        seed = random.Seed(4, step)
        own = seed.named("own")
        numbers = keras.random.uniform((500,), seed=seed), keras.random.normal((500,), seed=own)
        return *numbers, seed.uniform((2, 50))

    first, normal, own = drawn(7)
    again = drawn(np.int32(7))
    later = drawn(8)
    for a, b, c in zip((first, normal, own), again, later, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.intersect1d(a, c).size
    np.testing.assert_array_equal(first, keras.random.uniform((500,), seed=random.Seed(4, 7)))
    np.testing.assert_array_equal(own, draw((2, 50), 4, 7))
    assert np.mean(first) == pytest.approx(0.5, abs=0.1)
    assert np.std(normal) == pytest.approx(1, abs=0.15)


def test_a_seed_scope_ends_and_nests():
    outer, inner = random.Seed(1), random.Seed(2)
    assert random.current_seed() is None
    with random.seed_scope(outer):
        with contextlib.suppress(KeyError), random.seed_scope(inner):
            assert random.current_seed() is inner
            raise KeyError
        assert random.current_seed() is outer
        with random.seed_scope(None):
            assert random.current_seed() is None
    assert random.current_seed() is None


def values(model):
    return {variable.path: np.asarray(variable) for variable in model.variables}


@pytest.fixture(scope="module")
def built(tiny):
    model = tiny(image={"dropout": 0.1}, seed=5)
    model.build()
    return values(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"mask_ratio": 0.75},
        {"masker": None},
        {"text": {"depth": 2, "pool": "mean"}},
        {"text": {"vocab": 40}},
        {"dim": 12},
        {"temperature": 0.01},
    ],
)
def test_a_variable_starts_the_same_whatever_else_the_model_holds(tiny, built, changes):
    model = tiny(**{"image": {"dropout": 0.1}, "seed": 5, **changes})
    keras.utils.set_random_seed(99)
    model.build()
    found = values(model)
    same = [p for p in found if p in built and found[p].shape == built[p].shape]
    assert len(same) >= 40
    for path in set(same) - {"flip/logit_scale"}:
        np.testing.assert_array_equal(found[path], built[path], err_msg=path)


def test_a_variable_starts_the_same_whoever_is_built_first(tiny, built):
    model = tiny(image={"dropout": 0.1}, seed=5)

    class Backwards(type(model)):
        def build(self, input_shape=None):
            with random.initial_values(self, self.seed):
                self.text_projection.build((None, 16))
                self.text.build()
            super().build()

    model.__class__ = Backwards
    model.build()
    for path, value in values(model).items():
        np.testing.assert_array_equal(value, built[path], err_msg=path)


def test_the_name_of_the_model_changes_no_initial_value(tiny, built):
    model = tiny(image={"dropout": 0.1}, seed=5, name="clip")
    model.build()
    for path, value in values(model).items():
        np.testing.assert_array_equal(value, built[path.replace("clip/", "flip/")])


def test_another_seed_gives_other_initial_values_of_all_that_is_random(tiny, built):
    model = tiny(image={"dropout": 0.1}, seed=6)
    model.build()
    for path, value in values(model).items():
        fixed = path.endswith(("bias", "gamma", "beta", "logit_scale", "step"))
        same = np.array_equal(value, built[path])
        assert same == fixed, path


def test_two_variables_of_one_shape_start_differently(built):
    kernels = [v for p, v in built.items() if v.shape == (16, 16)]
    assert len(kernels) == 8
    assert len({kernel.tobytes() for kernel in kernels}) == 8


def test_variables_with_a_value_keep_it(tiny):
    model = tiny()
    model.text.build()
    before = [np.asarray(v) for v in model.text.variables]
    model.build()
    for variable, value in zip(model.text.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_initialisers_of_every_kind_are_keyed_by_path():
    class Layer(keras.layers.Layer):
        def build(self, shape):
            with random.initial_values(self, 1):
                for name in ("glorot_uniform", "he_normal", "orthogonal", "zeros", "identity"):
                    self.add_weight(shape=(4, 4), initializer=name, name=name)
                self.add_weight(shape=(4, 4), initializer=lambda s, dtype=None: 3.0, name="const")
                self.generator = keras.random.SeedGenerator(None, name="generator")

    first, second = Layer(name="a"), Layer(name="a")
    for layer in (first, second):
        layer.build(())
    for a, b in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    assert len(first.variables) == 7
    assert flipkit.Seed is random.Seed


class Loaded(keras.layers.Layer):
    """A layer whose weight is read from somewhere, and how often that happened."""

    reads = 0

    def read(self):
        self.reads += 1
        return np.arange(3.0)

    def build(self, shape=None):
        self.weight = self.add_weight(shape=(3,), initializer="normal", name="weight")
        self.other = self.add_weight(shape=(3,), initializer="normal", name="other")
        random.start_with(self.weight, self.read)


def test_a_variable_starts_with_what_it_is_given_also_while_a_model_is_built():
    plain, scoped, counted = Loaded(), Loaded(), Loaded()
    plain.build()
    with random.initial_values(scoped, 1):
        scoped.build()
    with keras.StatelessScope(initialize_variables=False):
        counted.build()
    assert (plain.reads, scoped.reads, counted.reads) == (1, 1, 0)
    for layer in (plain, scoped):
        np.testing.assert_array_equal(layer.weight, np.arange(3.0))
        assert np.abs(np.asarray(layer.other)).max() < 1


def test_a_first_value_of_another_shape_is_refused():
    layer = Loaded()
    layer.read = lambda: np.zeros((2, 3))
    with pytest.raises(flipkit.ConfigurationError, match=r"\(3,\) for .*weight.*\(2, 3\)"):
        with random.initial_values(layer, 1):
            layer.build()
    keras.utils.clear_session(free_memory=False)  # Keras still waits for the layer's values
