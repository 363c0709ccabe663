"""Evaluators against plain NumPy, on a model whose embeddings are written down."""

import json
import types

import numpy as np
import pytest

import flipkit
from flipkit import errors, evaluation
from flipkit.callbacks import Evaluate, evaluate_all
from flipkit.evaluation import scores
from flipkit.models.metrics import class_accuracy, pair_accuracies
from flipkit.preprocessing import Preprocessing


class Known:
    """A model: a picture's red is the place of its vector, a text's vector is looked up."""

    preprocessing = Preprocessing()

    class image:
        image_size = 4

    def __init__(self, texts):
        self.texts = texts

    def encode_images(self, pixels, batch_size):
        vectors = [self.texts[int(p[0, 0, 0])] for p in pixels]
        return unit(vectors)

    def encode_texts(self, texts):
        return unit([self.texts[text] for text in texts])


def unit(vectors):
    vectors = np.asarray(vectors, "float32")
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def picture(value):
    return np.full((4, 4, 3), value, "uint8")


class Samples(flipkit.Dataset):
    """Samples from a list; None is a bad one."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        if self.samples[i] is None:
            raise flipkit.BadSample(f"sample {i}: no picture")
        return {"id": str(i), "texts": [], **self.samples[i]}


@pytest.fixture
def classifier():
    """Pictures 0, 1, 2 of classes a, b, c, the third nearer to b than to its own."""
    texts = {0: [1, 0, 0], 1: [0.1, 1, 0], 2: [0, 1, 0.5]}
    texts |= {"a": [1, 0, 0], "b": [0, 1, 0], "c": [0, 0, 1]}
    samples = [{"image": picture(i), "label": i} for i in range(3)]
    return Known(texts), Samples(samples)


def test_zero_shot_ranks_the_right_class(classifier):
    model, data = classifier
    found = flipkit.ZeroShot(data, ["a", "b", "c"])(model)
    assert found == {
        "top1": 2 / 3,
        "top5": 1.0,
        "mrr": pytest.approx((1 + 1 + 1 / 2) / 3),
        "count": 3,
    }


def test_zero_shot_tells_groups_of_classes_apart(classifier, tmp_path):
    model, data = classifier
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"names": ["a", "b", "c"], "concept_split": ["old", "old", "new"]}))
    found = flipkit.ZeroShot(data, str(path))(model)
    assert (found["old/top1"], found["new/top1"]) == (1.0, 0.0)
    assert (found["old/count"], found["new/count"]) == (2, 1)
    assert found["new/mrr"] == 0.5  # ranked among all classes


@pytest.mark.parametrize(("name", "text"), [("c.txt", "a\nb\nc\n"), ("c.json", '["a", "b", "c"]')])
def test_class_names_come_from_text_or_json(classifier, tmp_path, name, text):
    model, data = classifier
    (tmp_path / name).write_text(text)
    assert flipkit.ZeroShot(data, tmp_path / name)(model)["top1"] == 2 / 3


def test_templates_are_averaged_as_unit_vectors(classifier):
    model, _ = classifier
    model.texts |= {"x a": [3, 0, 0], "y a": [0, 0, 2]}  # lengths must not count
    found = evaluation.class_vectors(model, ["a"], ["x {}", "y {}"])
    np.testing.assert_allclose(found, unit([[1, 0, 1]]), atol=1e-6)


def test_a_model_that_says_the_same_of_everything_gains_nothing():
    labels = np.arange(4)
    found = evaluation.rank_metrics(np.ones((4, 2)), np.ones((4, 2)), labels)
    assert found["top1"] == 0
    assert found["mrr"] == 0.25


def test_ranks_agree_with_sorting():
    rng = np.random.default_rng(0)
    images, classes = unit(rng.normal(size=(50, 8))), unit(rng.normal(size=(20, 8)))
    labels = rng.integers(0, 20, 50)
    order = np.argsort(-(images @ classes.T), axis=1)
    ranks = 1 + np.argmax(order == labels[:, None], axis=1)
    found = evaluation.rank_metrics(images, classes, labels)
    assert found["top1"] == pytest.approx(np.mean(ranks == 1))
    assert found["top5"] == pytest.approx(np.mean(ranks <= 5))
    assert found["mrr"] == pytest.approx(np.mean(1 / ranks))


def test_bad_samples_are_left_out(classifier):
    model, data = classifier
    data.samples.insert(1, None)
    assert flipkit.ZeroShot(data, ["a", "b", "c"])(model)["count"] == 3


def test_nothing_but_bad_samples_is_an_error(classifier):
    with pytest.raises(errors.DataError, match="Nothing to evaluate"):
        flipkit.ZeroShot(Samples([None]), ["a"])(classifier[0])


def test_a_label_without_a_name_is_an_error(classifier):
    model, data = classifier
    with pytest.raises(errors.DataError, match="A label is 2, but there are 2 classes"):
        flipkit.ZeroShot(data, ["a", "b"])(model)


def test_pictures_without_labels_are_an_error(classifier):
    model, data = classifier
    del data.samples[0]["label"]
    with pytest.raises(errors.DataError, match="label"):
        flipkit.ZeroShot(data, ["a", "b", "c"])(model)


def test_class_names_that_are_missing_are_asked_for(classifier, tmp_path):
    model, data = classifier
    with pytest.raises(errors.ConfigurationError, match=r"classnames=FILE\.json"):
        flipkit.ZeroShot(data)(model)
    with pytest.raises(errors.ConfigurationError, match="Expected a file of class names"):
        flipkit.ZeroShot(data, str(tmp_path / "none.json"))(model)


def test_retrieval_counts_every_text_of_a_picture_and_every_picture_of_a_text():
    # Pictures 0 and 1 share the text "same"; picture 2 has two texts, of which one is far off.
    texts = {0: [1, 0, 0, 0], 1: [0.9, 0.1, 0, 0], 2: [0, 0, 1, 0]}
    texts |= {"same": [1, 0.05, 0, 0], "two": [0, 0, 1, 0], "too": [1, 0, 0.2, 0]}
    samples = [
        {"image": picture(0), "texts": ["same"]},
        {"image": picture(1), "texts": ["same"]},
        {"image": picture(2), "texts": ["two", "too"]},
    ]
    found = flipkit.Retrieval(Samples(samples))(Known(texts))
    assert (found["images"], found["texts"]) == (3, 3)
    assert found["image_to_text/recall@1"] == 1
    assert found["text_to_image/recall@1"] == pytest.approx(2 / 3)  # "too" finds another picture
    assert found["text_to_image/recall@5"] == 1


def test_retrieval_agrees_with_sorting():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(30, 6))
    texts = dict(enumerate(vectors + 0.8 * rng.normal(size=(30, 6))))
    texts |= {f"t{i}": vector for i, vector in enumerate(vectors)}
    samples = [{"image": picture(i), "texts": [f"t{i}"]} for i in range(30)]
    found = flipkit.Retrieval(Samples(samples))(Known(texts))
    scores = unit([texts[i] for i in range(30)]) @ unit(vectors).T
    for name, s in (("image_to_text", scores), ("text_to_image", scores.T)):
        ranks = np.argmax(np.argsort(-s, axis=1) == np.arange(30)[:, None], axis=1)
        for k in (1, 5, 10):
            assert found[f"{name}/recall@{k}"] == pytest.approx(np.mean(ranks < k))


def test_caption_choice_is_right_where_the_true_text_is_nearer():
    texts = {0: [1, 0], 1: [0, 1], "x": [1, 0.1], "y": [0.1, 1]}
    samples = [{"image": picture(i), "texts": ["x", "y"]} for i in range(2)]
    assert flipkit.CaptionChoice(Samples(samples))(Known(texts)) == {"accuracy": 0.5, "count": 2}


def test_unknown_evaluators_and_arguments_answer_with_the_nearest():
    with pytest.raises(errors.UnknownName, match="'zero_shot'"):
        evaluation.make("zeroshot", {"data": "captioned_shapes"})
    with pytest.raises(errors.UnknownName, match="'classnames'"):
        evaluation.make("zero_shot", {"data": "captioned_shapes", "clasnames": "x"})
    with pytest.raises(errors.ConfigurationError, match="needs data"):
        evaluation.make("retrieval", {})


def test_the_built_in_data_brings_its_class_names():
    names, groups = evaluation.load_classnames(None, flipkit.CaptionedShapes("test"))
    assert len(names) == len(groups) >= 400
    assert sum(group != "seen" for group in groups) >= 80


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "holds no JSON"),
        ("{}", "Expected class names"),
        ("[]", "Expected class names"),
        ("[1, 2]", "Expected class names"),
        ('[""]', "Expected class names"),
        ('{"names": "abc"}', "Expected class names"),
        ('{"names": ["a", "b"], "split": ["seen"]}', "1 groups, 2 names"),
    ],
)
def test_class_names_of_another_form_are_refused(tmp_path, content, told):
    path = tmp_path / "names.json"
    path.write_text(content)
    with pytest.raises(errors.ConfigurationError, match=told):
        evaluation.load_classnames(path)


def test_an_empty_class_name_keeps_its_place(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("a\n\nc\n\n")
    assert evaluation.load_classnames(path) == (["a", "", "c"], None)


def test_a_negative_label_is_an_error(classifier):
    model, _ = classifier
    data = Samples([{"image": picture(0), "label": -1}])
    with pytest.raises(errors.DataError, match="A label is -1"):
        evaluation.ZeroShot(data, ["a", "b", "c"])(model)


def test_a_choice_needs_two_texts():
    model = Known({0: [1, 0], "a": [1, 0]})
    with pytest.raises(errors.DataError, match="two texts"):
        evaluation.CaptionChoice(Samples([{"image": picture(0), "texts": ["a"]}]))(model)


# Masked views


@pytest.fixture(scope="module")
def seen(tiny):
    """A model, and twenty pictures of noise as a dataset."""
    model = tiny(seed=3, tokenizer="bytes", text={"vocab": 259})
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 16, 16, 3)).astype("uint8")
    samples = [{"image": image, "label": i % 2} for i, image in enumerate(images)]
    return model, images, Samples(samples)


def test_a_mask_of_0_is_the_plain_embedding(seen):
    model, images, data = seen
    plain, _ = evaluation.encode(model, data)
    np.testing.assert_array_equal(plain, model.encode_images(images, 256))
    for views in (evaluation.Views(), evaluation.Views(0.0, ensemble=True)):
        np.testing.assert_array_equal(evaluation.encode(model, data, views=views)[0], plain)


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 2), (0.75, 4)])
def test_an_ensemble_is_the_unit_mean_of_views_that_hold_every_patch(seen, ratio, count):
    model, images, data = seen
    views = evaluation.Views(ratio, ensemble=True)
    ids = views(model, 0, 20)
    assert ids.shape == (20, count, 16 // count)
    np.testing.assert_array_equal(np.sort(ids.reshape(20, -1)), np.tile(np.arange(16), (20, 1)))
    found, _ = evaluation.encode(model, data, views=views)
    each = [
        np.asarray(model({"image": images, "image_ids": ids[:, v]})["image"]) for v in range(count)
    ]
    np.testing.assert_allclose(found, unit(np.mean(each, axis=0)), atol=1e-6)
    alone, _ = evaluation.encode(model, data, views=evaluation.Views(ratio))
    np.testing.assert_allclose(alone, each[0], atol=1e-6)
    assert np.abs(found - evaluation.encode(model, data)[0]).max() > 1e-3


def test_views_are_a_function_of_the_seed_and_the_pictures_place(seen, monkeypatch):
    model, _, data = seen
    views = evaluation.Views(0.5, seed=1)
    whole, _ = evaluation.encode(model, data, views=views)
    monkeypatch.setattr(evaluation.embedding, "CHUNK", 7)
    np.testing.assert_allclose(evaluation.encode(model, data, views=views)[0], whole, atol=1e-6)
    ids = [evaluation.Views(0.5, seed=seed)(model, 0, 20) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(ids[0], ids[1])
    assert (ids[0] != ids[2]).any()


def test_evaluators_take_a_mask(seen):
    model, _, data = seen
    masked = flipkit.ZeroShot(data, ["a", "b"], mask_ratio=0.5, ensemble=True, seed=4)
    images, _ = evaluation.encode(model, data, views=evaluation.Views(0.5, True, 4))
    classes = evaluation.class_vectors(model, ["a", "b"])
    labels = np.arange(20) % 2
    assert masked(model) == evaluation.rank_metrics(images, classes, labels)
    again = flipkit.Retrieval.from_config(flipkit.Retrieval("x", mask_ratio=0.75).get_config())
    assert (again.mask_ratio, again.ensemble) == (0.75, False)
    with pytest.raises(errors.ConfigurationError, match=r"\[0, 1\). Received: mask_ratio=1"):
        flipkit.Retrieval(data, mask_ratio=1)


def test_a_mask_for_a_model_that_cannot_skip_patches_is_refused(classifier):
    model, data = classifier
    with pytest.raises(errors.ConfigurationError, match="cannot skip patches"):
        flipkit.ZeroShot(data, ["a", "b", "c"], mask_ratio=0.5)(model)


def test_image_ids_of_another_number_of_pictures_are_refused(seen):
    model, images, _ = seen
    with pytest.raises(errors.ConfigurationError, match=r"\(20, kept\).*Received: \(3, 8\)"):
        model.encode_images(images, image_ids=np.zeros((3, 8), "int32"))


# What is not finite


class Broken(Known):
    """Knows vectors, and has nan or inf in those of one tower, for the first so many rows."""

    def __init__(self, texts, tower, value, rows=None):
        super().__init__(texts)
        self.tower, self.value, self.rows = tower, value, rows

    def encode_images(self, pixels, batch_size):
        return self._spoil("image", super().encode_images(pixels, batch_size))

    def encode_texts(self, texts):
        return self._spoil("text", super().encode_texts(texts))

    def classify(self, pixels, batch_size):
        return self.encode_images(pixels, batch_size)

    def _spoil(self, tower, vectors):
        if tower == self.tower:
            vectors[: self.rows, 0] = self.value
        return vectors


@pytest.fixture
def logged(monkeypatch):
    """The warnings that evaluations write."""
    lines = []
    monkeypatch.setattr(
        "absl.logging.warning", lambda message, *values: lines.append(message % values)
    )
    return lines


BASIS = {i: np.eye(3)[i] for i in range(3)} | {name: np.eye(3)[i] for i, name in enumerate("abc")}
LABELLED = [{"image": picture(i), "label": i, "texts": ["abc"[i]]} for i in range(3)]
CHOICES = [{"image": picture(i), "texts": ["abc"[i], "bca"[i]]} for i in range(3)]
EVALUATORS = {
    "zero_shot": flipkit.ZeroShot(Samples(LABELLED), ["a", "b", "c"]),
    "retrieval": flipkit.Retrieval(Samples(LABELLED)),
    "caption_choice": flipkit.CaptionChoice(Samples(CHOICES)),
    "accuracy": flipkit.Accuracy(Samples(LABELLED)),
}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "tower"),
    [
        ("zero_shot", "image"),
        ("zero_shot", "text"),
        ("retrieval", "image"),
        ("retrieval", "text"),
        ("caption_choice", "image"),
        ("caption_choice", "text"),
        ("accuracy", "image"),
    ],
)
def test_a_tower_that_is_not_finite_is_right_of_nothing_and_the_evaluation_says_so(
    logged, name, tower, value
):
    found = EVALUATORS[name](Broken(BASIS, tower, value))
    counts = {"count", "images", "texts", "non_finite"}
    assert {metric for metric, share in found.items() if share} <= counts
    assert found["non_finite"] >= 3
    assert len(logged) == 1
    assert "3 of 3" in logged[0]
    assert "not finite" in logged[0]
    sound = EVALUATORS[name](Known(BASIS) if name != "accuracy" else Broken(BASIS, "image", 1, 0))
    assert "non_finite" not in sound
    assert all(share == 1 for metric, share in sound.items() if metric not in counts)
    assert len(logged) == 1


@pytest.mark.parametrize("tower", ["image", "text"])
def test_one_vector_that_is_not_finite_spoils_its_own_pictures_alone(logged, tower):
    model = Broken(BASIS, tower, np.nan, rows=1)
    found = EVALUATORS["zero_shot"](model)
    assert (found["top1"], found["top5"], found["mrr"]) == (2 / 3,) * 3
    assert found["non_finite"] == 1
    found = EVALUATORS["retrieval"](model)
    assert found["image_to_text/recall@10"] == found["text_to_image/recall@1"] == 2 / 3
    assert ("1 of 3 pictures" if tower == "image" else "1 of 3 classes") in logged[0]


def test_ranks_count_ties_and_what_is_not_finite_against_a_row():
    right = np.array([[True, False, False]])
    for row, rank in (
        ([2, 1, 0], 1),
        ([1, 1, 0], 2),
        ([0, 1, 1], 3),
        ([np.nan, 0, 0], np.inf),
        ([np.inf, 0, 0], np.inf),
        ([-1, np.nan, np.inf], 1),  # they come last
    ):
        assert scores.ranks(np.array([row], "float32"), right) == [rank]
    assert scores.ranks(np.array([[np.nan, 5.0, 3.0]]), np.array([[True, False, True]])) == [2]


def test_metrics_of_training_are_0_where_nothing_is_finite():
    nan = np.full((4, 4), np.nan, "float32")
    found = pair_accuracies(nan, np.eye(4, dtype="float32"), 1.0)
    found |= class_accuracy(nan, np.eye(4, dtype="float32")[[0, 0, 1, 2]])
    assert found.keys() == {"image_to_text_accuracy", "text_to_image_accuracy", "accuracy"}
    assert not any(np.any(right) for right in found.values())


def test_a_number_that_is_not_finite_is_no_result_of_an_evaluator(logged):
    model = types.SimpleNamespace(trainable_variables=[])
    mine = {"best": np.inf, "count": 3, "top1": 0.5}
    found = evaluate_all(model, {"mine": lambda model: mine})
    assert np.isnan(found.pop("mine/best"))
    assert found == {"mine/count": 3, "mine/top1": 0.5}
    assert logged == ["Not finite, and so no result: mine/best"]


# Names that several classes have


def test_classes_of_one_name_are_one_class_and_a_warning_names_them(classifier, logged):
    model, data = classifier
    model.texts |= {3: [0, 0, 1]}
    data.samples.append({"image": picture(3), "label": 3})
    evaluator = flipkit.ZeroShot(data, {"names": ["a", "b", "b", "c"], "split": list("xxyy")})
    evaluator.check(model)
    assert logged == [
        "1 of 3 names belong to several classes, such as 'b' (classes 1, 2). These count as one class. "
        "Give each class a name of its own to tell them apart."
    ]
    found = evaluator(model)
    assert (found["top1"], found["count"]) == (1.0, 4)
    assert (found["x/count"], found["y/count"], found["y/top1"]) == (2, 2, 1.0)
    assert len(logged) == 1  # once, for all evaluations of a run


# What can be known before a run


class Uncalled(Known):
    """Embeds nothing."""

    tokenizer = "some"

    def encode_images(self, pixels, batch_size):
        pytest.fail("a check embeds pictures")

    def encode_texts(self, texts):
        pytest.fail("a check embeds texts")


TEXTLESS = Samples([{"image": picture(0), "texts": []}])


@pytest.mark.parametrize(
    ("evaluator", "told"),
    [
        (flipkit.ZeroShot(Samples(LABELLED), ["a", "b"]), "A label is 2"),
        (flipkit.ZeroShot(Samples([{"image": picture(0)}]), ["a"]), "`label`"),
        (flipkit.ZeroShot(Samples(LABELLED)), "classnames"),
        (flipkit.ZeroShot(Samples(LABELLED), "nowhere.json"), "nowhere.json"),
        (flipkit.ZeroShot(Samples(LABELLED), list("abc"), "openai_81"), "'openai_80'"),
        (flipkit.ZeroShot(Samples(LABELLED), list("abc"), ["a"]), "one place for the class name"),
        (flipkit.ZeroShot(Samples(LABELLED), list("abc"), mask_ratio=0.5), "cannot skip patches"),
        (flipkit.ZeroShot(Samples([]), ["a"]), "no samples"),
        (flipkit.Retrieval(None), "needs data"),
        (flipkit.Retrieval("nowhere/*.tar"), "No file matches"),
        (flipkit.Retrieval(TEXTLESS), "samples with texts. Received: 0"),
        (flipkit.CaptionChoice(Samples(LABELLED)), "two texts"),
        (flipkit.Accuracy(Samples(LABELLED)), "Expected a classifier"),
    ],
)
def test_a_check_refuses_what_a_call_would_without_embedding_anything(evaluator, told):
    for ask in (evaluator.check, evaluator):
        with pytest.raises(errors.FlipkitError, match=told):
            ask(Uncalled(BASIS))


def test_a_check_lets_pass_what_can_be_evaluated():
    for name, evaluator in EVALUATORS.items():
        model = Uncalled(BASIS)
        if name == "accuracy":
            model.classify, model.classes = None, 3
        evaluator.check(model)
    bad_first = flipkit.ZeroShot(Samples([None, *LABELLED]), list("abc"))
    bad_first.check(Uncalled(BASIS))


def test_a_model_without_a_tokenizer_is_refused_in_time():
    model = Uncalled(BASIS)
    model.tokenizer = None
    with pytest.raises(errors.ConfigurationError, match="tokenizer=None"):
        EVALUATORS["retrieval"].check(model)


def test_plain_fit_asks_evaluators_as_it_begins():
    callback = Evaluate({"late": flipkit.Retrieval(None)})
    callback.set_model(Uncalled(BASIS))
    with pytest.raises(
        errors.ConfigurationError, match="Evaluator 'late': An evaluation needs data"
    ):
        callback.on_train_begin()
    callback = Evaluate({"plain": lambda model: {}, "late": flipkit.Retrieval(None)}, checked=True)
    callback.on_train_begin()
