"""A student beside its teacher: nothing to learn where they are equal, and less and less otherwise."""

import jax
import keras
import numpy as np
import pytest
from keras import ops

import flipkit
from flipkit.errors import ConfigurationError
from flipkit.losses import pairs


@pytest.fixture(scope="module")
def teacher(tiny):
    model = tiny(image={"dim": 24, "heads": 2}, mask_ratio=0.0, seed=7)
    model.build()
    return model


def terms(model, batch, **settings):
    """The loss without and with what the teacher adds."""
    found = []
    for loss in ("contrastive", flipkit.Distillation(**settings)):
        model.compile("sgd", loss=loss)
        found.append(model.evaluate(batch, verbose=0, return_dict=True)["loss"])
    return found


def test_divergence_is_that_of_two_softmaxes():
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(2, 2, 5, 8)).astype("float32")
    found = pairs.divergences(images, texts, (1.0, 0.5))
    student, teacher = (s * (a @ b.T) for a, b, s in zip(images, texts, (1.0, 0.5), strict=True))
    for axis, rows in zip((1, 0), found, strict=True):
        p, q = (np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True) for x in (teacher, student))
        np.testing.assert_allclose(rows, np.sum(p * np.log(p / q), axis=axis), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [None, 0.05])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_it(teacher, pairs, temperature):
    student = type(teacher).from_config(teacher.get_config())
    student.build()
    for variable, value in zip(student.variables, teacher.variables, strict=True):
        variable.assign(np.array(value))  # a copy: programs are given both, and to keep
    settings = {"teacher": teacher, "temperature": temperature, "feature_weight": 1.0}
    plain, distilled = terms(student, pairs(), **settings)
    assert distilled == pytest.approx(plain, rel=1e-6)  # two programs, which round alike at best
    student.image_projection.kernel.assign(-student.image_projection.kernel)
    plain, distilled = terms(student, pairs(), **settings)
    assert distilled > plain + 0.01


def test_the_term_is_what_numpy_makes_of_the_embeddings(tiny, teacher, pairs):
    student, batch = tiny(mask_ratio=0.0), pairs()
    settings = {"teacher": teacher, "weight": 2.0, "temperature": 0.1, "feature_weight": 3.0}
    plain, distilled = terms(student, batch, **settings)
    mine, theirs = (
        {name: np.asarray(x) for name, x in model(batch).items()} for model in (student, teacher)
    )
    kl = 0
    for axis in (0, 1):
        p, q = (10 * e["image"] @ e["text"].T for e in (theirs, mine))
        p, q = (np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True) for x in (p, q))
        kl += np.sum(p * np.log(p / q)) / 8 / 2
    apart = sum(np.sum((mine[n] - theirs[n]) ** 2) / 8 for n in ("image", "text")) / 2
    assert distilled - plain == pytest.approx(2 * kl + 3 * apart, rel=1e-4)


def test_training_lowers_the_term_and_leaves_the_teacher_alone(tiny, teacher, pairs):
    batch, before = pairs(), [np.array(v) for v in teacher.variables]
    student = tiny(mask_ratio=0.5)
    settings = {"teacher": teacher, "weight": 10.0}

    def term():
        plain, distilled = terms(student, batch, **settings)
        return distilled - plain

    first = term()
    student.compile(flipkit.AdamW(3e-3), loss=flipkit.Distillation(**settings))
    learned = {v.path for v in student.trainable_variables}
    student.fit(batch, batch_size=8, epochs=20, verbose=0)
    assert len(student.optimizer.variables) == 2 + 2 * len(learned)
    assert term() < 0.5 * first
    for variable, value in zip(teacher.variables, before, strict=True):
        np.testing.assert_array_equal(np.asarray(variable), value, err_msg=variable.path)


def test_the_gradient_reaches_the_student_alone(tiny, teacher, pairs):
    student, batch = tiny(mask_ratio=0.0), pairs()
    loss = flipkit.Distillation(teacher, loss="contrastive")
    loss.prepare(student)
    student.build()

    def value(student_weights, teacher_weights):
        mapping = zip(student.variables, student_weights, strict=True)
        other = zip(teacher.variables, teacher_weights, strict=True)
        with keras.StatelessScope(state_mapping=[*mapping, *other]):
            out = student(batch)
            return loss(out["image"], out["text"], student.scale, targets=loss.targets(batch))

    weights = [[v.value for v in m.variables] for m in (student, teacher)]
    mine, theirs = jax.jit(jax.grad(value, argnums=(0, 1), allow_int=True))(*weights)
    norms = {
        v.path: float(ops.max(ops.abs(g)))
        for v, g in zip(student.variables, mine, strict=True)
        if v.trainable
    }
    assert max(norms.values()) > 1e-3
    assert all(not np.any(np.asarray(g)) for g in theirs if g.dtype == "float32")


def test_a_teacher_is_an_input_of_the_program_and_no_part_of_the_student(
    tiny, teacher, pairs, tmp_path
):
    student = tiny()
    teacher.save(tmp_path / "teacher.keras")
    student.compile("sgd", loss=flipkit.Distillation(tmp_path / "teacher.keras"))
    given = len(student.non_trainable_variables)
    assert given == len(teacher.variables) + 1  # and the step
    assert len(student.variables) == len(tiny().build() or student.weights)
    student.fit(pairs(), batch_size=8, verbose=0)
    student.save(tmp_path / "student.keras")
    again = flipkit.load_model(tmp_path / "student.keras", compile=True)
    assert again.pair_loss.teacher == str(tmp_path / "teacher.keras")
    one, other = (
        model.evaluate(pairs(seed=1), verbose=0, return_dict=True)["loss"]
        for model in (student, again)
    )
    assert one == other


def test_a_sigmoid_loss_can_have_a_teacher(tiny, teacher, pairs):
    student = tiny(init_logit_bias=-2.0)
    student.compile("sgd", loss=flipkit.Distillation(teacher, loss="sigmoid"))
    assert np.isfinite(student.evaluate(pairs(), verbose=0, return_dict=True)["loss"])


@pytest.mark.parametrize(
    ("settings", "student", "told"),
    [
        ({}, {"image": {"image_size": 24}}, r"\(24, 24\) pixels and 6 tokens.*\(16, 16\) and 6"),
        ({}, {"text": {"length": 5}}, "5 tokens.*and 6"),
        ({"feature_weight": 1.0}, {"dim": 12}, "dim=12, and 8 in the teacher"),
        ({"temperature": 0}, {}, "above 0.*temperature=0"),
        ({"teacher": None}, {}, "needs a teacher"),
        ({"teacher": "nowhere.keras"}, {}, r"No such file.*nowhere\.keras"),
        ({"loss": "contrast"}, {}, "Did you mean 'contrastive'"),
    ],
)
def test_what_cant_teach_is_refused(tiny, teacher, settings, student, told):
    with pytest.raises(ConfigurationError, match=told):
        tiny(**student).compile(
            "sgd", loss=flipkit.Distillation(**{"teacher": teacher, **settings})
        )


def test_a_teacher_that_reads_other_ids_is_refused(tiny):
    student, teacher = (
        tiny(text={"vocab": 300, "length": 8}, tokenizer=t) for t in ("bytes", WORDS)
    )
    with pytest.raises(ConfigurationError, match=r"read the same ids.*Bytes"):
        student.compile("sgd", loss=flipkit.Distillation(teacher))


def test_a_teacher_that_is_an_object_cant_be_written_down(teacher):
    loss = flipkit.Distillation(teacher)
    assert repr(loss) == "Distillation('an object')"
    with pytest.raises(ConfigurationError, match="give its path"):
        loss.get_config()
    config = flipkit.registry.serialize(flipkit.Distillation("a.keras", temperature=0.1))
    again = flipkit.losses.get(config)
    assert (again.teacher, again.temperature, again.weight) == ("a.keras", 0.1, 1.0)


WORDS = flipkit.WordPiece()
WORDS.train(["a red circle", "two stars"] * 3, vocab=60)
