"""Evaluators against what plain NumPy says, on a model whose embeddings are written down."""

import json

import numpy as np
import pytest

import flipkit
from flipkit import errors, evaluation
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
    monkeypatch.setattr(evaluation, "CHUNK", 7)
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
