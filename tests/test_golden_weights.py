"""The same numbers as open_clip and transformers, recorded in ../shared/golden, out of their own files."""

import contextlib
import gzip
import pathlib
import shutil

import jax
import keras
import numpy as np
import pytest

import flipkit
from flipkit import losses, weights
from flipkit.weights import huggingface, open_clip, tensors

GOLDEN = pathlib.Path(__file__).parents[2] / "shared" / "golden"
OPEN_CLIP = ["base", "quickgelu_patchdropout", "clipa_like", "customtext_siglip"]
HUGGING_FACE = ["hf_clip/quick_gelu_legacy_eos", "hf_clip/gelu_eos98", "hf_siglip/base"]
FOLDERS = [f"open_clip/{name}" for name in OPEN_CLIP] + HUGGING_FACE

pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason=f"no reference outputs in {GOLDEN}")


@pytest.fixture(scope="module")
def load():
    """The model in a golden folder; it takes pixels that are normalised already."""
    models = {}

    def load(folder):
        if folder not in models:
            models[folder] = flipkit.load_pretrained(GOLDEN / folder)
            models[folder].preprocessing = flipkit.Preprocessing((0, 0, 0), (1 / 255,) * 3)
        return models[folder]

    return load


def entries(folder, model):
    if not folder.startswith("open_clip"):
        return huggingface.entries(model)
    return open_clip.entries(model, "text." if "customtext" in folder else "")


@contextlib.contextmanager
def recorded(model):
    """Inside it, {"image_pooled", "image_features", ...}: what the towers and their heads give."""
    seen, parts = {}, {}
    for tower in ("image", "text"):
        parts[f"{tower}_pooled"] = getattr(model, tower)
        parts[f"{tower}_features"] = getattr(model, f"{tower}_projection")

    def watch(name, call):
        def watched(*args, **kwargs):
            seen[name] = call(*args, **kwargs)
            return seen[name]

        return watched

    parts = {name: part for name, part in parts.items() if part is not None}
    for name, part in parts.items():
        part.call = watch(name, part.call)
    yield seen
    for part in parts.values():
        del part.call
    for tower in ("image", "text"):  # without a head
        seen.setdefault(f"{tower}_features", seen[f"{tower}_pooled"])


def outputs(model, image, text, ids=None, bias=None):
    """What the model makes of pixels (batch, 3, height, width) and ids, and each loss's gradient."""
    batch = {"image": image.transpose(0, 2, 3, 1), "text": text}
    if ids is not None:
        batch["image_ids"] = np.sort(ids, axis=1).astype("int32")

    def forward(values):
        mapping = list(zip(model.trainable_variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping), recorded(model) as found:
            found |= model(batch)
            pair = found["image"], found["text"], model.scale
            own = model.logit_bias
            sigmoid = losses.SigmoidLoss()(*pair, bias if own is None else own)
            found["scale"] = model.scale
            found["logits"] = losses.similarity(*pair) + (0.0 if own is None else own)
        return [losses.ContrastiveLoss()(*pair), sigmoid], found

    @jax.jit
    def run(values):
        both, pull, found = jax.vjp(forward, values, has_aux=True)
        slopes = [pull([np.float32(i == j) for i in range(2)])[0] for j in range(2)]
        return both, slopes, found

    both, slopes, found = run([variable.value for variable in model.trainable_variables])
    found = {key: np.asarray(value) for key, value in found.items()}
    paths = [variable.path.split("/", 1)[1] for variable in model.trainable_variables]
    for loss, value, slope in zip(("contrastive", "sigmoid"), both, slopes, strict=True):
        found[loss] = np.asarray(value)
        found[f"{loss}_gradient"] = dict(zip(paths, map(np.asarray, slope), strict=True))
    return found


def close(found, expected, name, **tolerance):
    np.testing.assert_allclose(found, expected, rtol=0, **tolerance, err_msg=name)


def close_to_its_size(found, expected, name):
    """Two blocks round some hundred sums one after the other: what is allowed is 1e-5 of the largest."""
    close(found, expected, name, atol=1e-5 * np.abs(expected).max())


def check_gradients(model, folder, gradient, expected):
    """Every recorded gradient within 3e-5 of the tensor's largest, as the READMEs suggest."""
    theirs = {
        entry.name: entry.encode([gradient[path] for path in entry.paths])
        for entry in entries(folder, model)
    }
    assert expected.keys() <= theirs.keys()
    for name, value in expected.items():
        # A key's bias moves no softmax, and a logit bias no cross-entropy: rounding alone is recorded.
        zero = name.endswith("k_proj.bias") or np.abs(value).max() < 1e-15
        atol = 1e-6 if zero else 3e-5 * np.abs(value).max()
        close(theirs[name], value, name, atol=atol)


def below(prefix, archive):
    """What lies under `prefix` in an npz, by the rest of its name."""
    return {key[len(prefix) :]: archive[key] for key in archive if key.startswith(prefix)}


@pytest.mark.parametrize(
    ("variant", "mode"),
    [*((name, "eval") for name in OPEN_CLIP), ("quickgelu_patchdropout", "train")],
)
def test_open_clips_features_logits_losses_and_gradients(load, variant, mode):
    folder = GOLDEN / "open_clip" / variant
    model, inputs = load(f"open_clip/{variant}"), np.load(GOLDEN / "open_clip" / "inputs.npz")
    expected = below(f"{mode}/", np.load(folder / "outputs_f64.npz"))
    ids = np.load(folder / "patch_dropout.npz")["ids_keep"] if mode == "train" else None
    found = outputs(
        model,
        inputs["image_nchw"],
        inputs["text"].astype("int32"),
        ids,
        expected["siglip_logit_bias_used"],
    )
    for tower in ("image", "text"):
        close(found[tower], expected[f"{tower}_features_norm"], tower, atol=2e-6)
        close_to_its_size(found[f"{tower}_features"], expected[f"{tower}_features"], tower)
    close(found["scale"], expected["logit_scale_exp"], "scale", atol=2e-6 * found["scale"])
    close(found["logits"], expected["logits_per_image"], "logits", atol=4e-6 * found["scale"])
    grads = np.load(folder / "grads.npz")
    for loss, name in (("contrastive", "clip_loss"), ("sigmoid", "siglip_loss")):
        close(found[loss], expected[name], name, atol=1e-5)
        slopes = below(f"{mode}/{name}/", grads)
        assert len(slopes) > 5
        check_gradients(model, f"open_clip/{variant}", found[f"{loss}_gradient"], slopes)


@pytest.mark.parametrize("folder", HUGGING_FACE)
def test_transformers_features_logits_loss_and_gradients(load, folder):
    model, inputs = load(folder), np.load(GOLDEN / folder / "inputs.npz")
    expected = np.load(GOLDEN / folder / "outputs_f64.npz")
    found = outputs(model, inputs["pixel_values"], inputs["input_ids"].astype("int32"), bias=0.0)
    for ours, theirs in (("image", "vision"), ("text", "text")):
        close(found[ours], expected[f"{ours}_embeds"], ours, atol=2e-6)
        close_to_its_size(found[f"{ours}_features"], expected[f"{ours}_features"], ours)
        if "clip" in folder:  # with SigLIP's pooling head and its text head, the features again
            pooled = expected[f"{theirs}_pooled"]
            key = f"{ours}_features" if "siglip" in folder else f"{ours}_pooled"
            close_to_its_size(found[key], pooled, theirs)
    close(found["logits"], expected["logits_per_image"], "logits", atol=4e-6 * found["scale"])
    loss = "sigmoid" if "siglip" in folder else "contrastive"
    close(found[loss], expected["loss"], "loss", atol=1e-5)
    slopes = dict(np.load(GOLDEN / folder / "grads.npz"))
    assert slopes.keys() == {entry.name for entry in entries(folder, model)}
    check_gradients(model, folder, found[f"{loss}_gradient"], slopes)


def test_padding_that_is_masked_does_not_change_clips_text(load):
    """With a causal mask the end never sees padding (`masked/` in the recorded outputs)."""
    for folder in HUGGING_FACE[:2]:
        expected = np.load(GOLDEN / folder / "outputs_f64.npz")
        ids = np.load(GOLDEN / folder / "inputs.npz")["input_ids"].astype("int32")
        found = load(folder)({"text": ids})["text"]
        close(found, expected["masked/text_embeds"], folder, atol=2e-6)


def same_weights(first, second):
    ours, theirs = tensors.weights(first), tensors.weights(second)
    assert ours.keys() == theirs.keys()
    for path, variable in ours.items():
        np.testing.assert_array_equal(variable, theirs[path], err_msg=path)


@pytest.mark.parametrize("folder", FOLDERS)
def test_there_and_back_is_bit_equal(folder, tmp_path):
    model = flipkit.load_pretrained(GOLDEN / folder)
    format = "open_clip" if folder.startswith("open_clip") else "huggingface"
    flipkit.save_as(model, format, tmp_path / "there", verify=True)
    back = flipkit.load_pretrained(tmp_path / "there")
    same_weights(model, back)
    assert back.get_config() == model.get_config()
    theirs = tensors.read_safetensors(next((GOLDEN / folder).glob("*.safetensors")))
    ours = tensors.read_safetensors(next((tmp_path / "there").glob("*.safetensors")))
    renamed = {name.removeprefix("text."): value for name, value in theirs.items()}
    if "customtext" not in folder:
        renamed = theirs
    assert renamed.keys() == ours.keys()
    for name, value in renamed.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("folder", "format"),
    [
        ("open_clip/base", "huggingface"),
        ("open_clip/quickgelu_patchdropout", "huggingface"),
        ("hf_clip/quick_gelu_legacy_eos", "open_clip"),
        ("hf_clip/gelu_eos98", "open_clip"),
    ],
)
def test_clips_go_from_one_library_to_the_other(folder, format, tmp_path):
    model = flipkit.load_pretrained(GOLDEN / folder)
    flipkit.save_as(model, format, tmp_path / "there", verify=True)
    same_weights(model, flipkit.load_pretrained(tmp_path / "there"))


@pytest.mark.parametrize(
    ("folder", "format", "options"),
    [
        ("open_clip/clipa_like", "huggingface", ["image.pool", "image.pre_norm", "text.causal"]),
        ("open_clip/customtext_siglip", "huggingface", ["image.class_token", "image_head"]),
        ("hf_siglip/base", "open_clip", ["image.pool"]),
    ],
)
def test_a_format_that_lacks_the_words_names_the_options(folder, format, options, tmp_path):
    model = flipkit.load_pretrained(GOLDEN / folder)
    with pytest.raises(flipkit.ConfigurationError) as problem:
        flipkit.save_as(model, format, tmp_path / "there")
    for option in options:
        assert f"{option}=" in str(problem.value)
    assert not list(tmp_path.iterdir())


def test_pictures_are_prepared_as_the_files_say():
    clip = flipkit.load_pretrained(GOLDEN / "open_clip/base").preprocessing
    assert (clip.mean, clip.interpolation, clip.resize_mode) == ("clip", "bicubic", "shortest")
    siglip = flipkit.load_pretrained(GOLDEN / "hf_siglip/base").preprocessing
    assert (siglip.mean, siglip.interpolation, siglip.resize_mode) == ("half", "bicubic", "squash")


def test_another_image_size_resamples_the_positions(load):
    small, large = load("open_clip/base"), None
    large = flipkit.load_pretrained(GOLDEN / "open_clip/base", image_size=48)
    assert (small.image.grid, large.image.grid) == ((4, 4), (6, 6))
    ours, theirs = tensors.weights(small), tensors.weights(large)
    for path, variable in theirs.items():
        if path != "image/position":
            np.testing.assert_array_equal(variable, ours[path], err_msg=path)
    np.testing.assert_array_equal(theirs["image/position"][0], ours["image/position"][0])
    again = tensors.resample_positions(np.asarray(theirs["image/position"]), (6, 6), (4, 4))
    assert np.corrcoef(again.ravel(), np.asarray(ours["image/position"]).ravel())[0, 1] > 0.9


def changed(folder, target, edit):
    """A copy of a golden folder whose tensors `edit` has changed."""
    shutil.copytree(GOLDEN / folder, target)
    file = next(target.glob("*.safetensors"))
    held = {name: np.array(value) for name, value in tensors.read_safetensors(file).items()}
    edit(held)
    tensors.write_safetensors(held, {"format": "pt"}, file)
    return target


@pytest.mark.parametrize("folder", ["open_clip/base", "hf_clip/gelu_eos98", "hf_siglip/base"])
def test_what_is_missing_extra_or_reshaped_is_listed_by_its_name_in_the_file(folder, tmp_path):
    names = sorted(tensors.read_safetensors(next((GOLDEN / folder).glob("*.safetensors"))))

    def edit(held):
        del held[names[3]]
        held["surprise"] = np.zeros(3, "float32")
        held[names[5]] = np.zeros((2, 2, 2), "float32")

    path = changed(folder, tmp_path / "changed", edit)
    with pytest.raises(flipkit.ConfigurationError) as problem:
        flipkit.load_pretrained(path)
    for line in (f"missing: {names[3]}", "unexpected: surprise (3,)", f"reshaped: {names[5]}"):
        assert line in str(problem.value)


@pytest.mark.parametrize(
    ("folder", "file", "section", "key", "value"),
    [
        ("open_clip/base", "open_clip_config.json", ("model_cfg", "vision_cfg"), "qk_norm", True),
        ("open_clip/base", "open_clip_config.json", ("model_cfg", "text_cfg"), "rotary", True),
        ("open_clip/base", "open_clip_config.json", ("model_cfg",), "multimodal_cfg", {}),
        (
            "open_clip/base",
            "open_clip_config.json",
            ("model_cfg", "vision_cfg"),
            "timm_model_name",
            "vit_base_patch16_224",
        ),
        ("open_clip/base", "open_clip_config.json", ("preprocess_cfg",), "resize_mode", "longest"),
        ("hf_clip/gelu_eos98", "config.json", ("vision_config",), "hidden_act", "silu"),
        ("hf_siglip/base", "config.json", ("vision_config",), "vision_use_head", False),
        ("hf_siglip/base", "config.json", (), "num_register_tokens", 4),
    ],
)
def test_a_setting_that_flipkit_has_no_word_for_is_refused_by_name(
    folder, file, section, key, value, tmp_path
):
    target = tmp_path / "changed"
    shutil.copytree(GOLDEN / folder, target)
    config = weights.foreign.read_json(target / file)
    place = config
    for name in section:
        place = place[name]
    place[key] = value
    weights.foreign.write_json(config, target / file)
    with pytest.raises(flipkit.ConfigurationError, match=key):
        flipkit.load_pretrained(target)


def test_clips_byte_pairs_come_along_with_a_folder_that_has_them(tmp_path):
    merges = GOLDEN / "tokenizers" / "vocab" / "bpe_simple_vocab_16e6.txt.gz"
    if not merges.exists():
        pytest.skip(f"no vocabulary in {merges}")
    tower = {"dim": 8, "depth": 1, "heads": 1, "norm_epsilon": 1e-5, "activation": "gelu"}
    clip = {"positions": "learned", "patch_bias": False, "pre_norm": True, "pool": "class"}
    model = flipkit.FLIP(
        flipkit.ViT(16, 8, **tower, **clip),
        flipkit.TextTransformer(49_408, 8, **tower, causal=True, pool="eos", eos=49_407),
        dim=4,
    )
    flipkit.save_as(model, "huggingface", tmp_path / "clip")
    with gzip.open(merges, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 49_152 - 256 - 2 + 1]
    # As transformers has them: its own first line, and the merges in use alone.
    (tmp_path / "clip" / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]))
    loaded = flipkit.load_pretrained(tmp_path / "clip")
    expected = [49_406, 320, 1125, 539, 320, 2368, 49_407, 0]
    np.testing.assert_array_equal(loaded.tokenizer(["a photo of a cat"], 8)[0], expected)
    flipkit.save_as(loaded, "keras", tmp_path / "clip.keras")
    shutil.rmtree(tmp_path / "clip")
    again = flipkit.load_pretrained(tmp_path / "clip.keras")
    np.testing.assert_array_equal(again.tokenizer(["a photo of a cat"], 8)[0], expected)
