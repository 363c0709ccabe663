"""Weights in files: what is read is checked first, what is written is all there or not at all."""

import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from keras import ops

import flipkit
from flipkit import weights
from flipkit.commands import shell
from flipkit.errors import ConfigurationError, UnknownName
from flipkit.weights import tensors, timm_class, tokenizer_files
from flipkit.weights.torch_layout import own_tensors

SMALL = {"dim": 16, "depth": 1, "heads": 2}
CLIP = {
    "positions": "learned",
    "class_position": True,
    "patch_bias": False,
    "pre_norm": True,
    "pool": "class",
    "activation": "gelu",
}
FLIP_GAP = {"pool": "mean_patches"}


def model(image=(), text=(), **options):
    """A small FLIP, every weight of it drawn anew: biases and norms matter too."""
    made = flipkit.FLIP(
        flipkit.ViT(16, 4, **{**SMALL, **dict(image)}),
        flipkit.TextTransformer(32, 6, **{**SMALL, **dict(text)}),
        **{"dim": 8, "preprocessing": "clip", **options},
    )
    made.build()
    rng = np.random.default_rng(0)
    for path, variable in tensors.weights(made).items():
        if path != "logit_scale":
            variable.assign(rng.normal(size=variable.shape) * 0.4)
    return made


@pytest.fixture(scope="module")
def clip():
    return model(CLIP, {"causal": True, "pool": "eos", "activation": "gelu"})


@pytest.fixture
def stored(tmp_path):
    """A safetensors file of two tensors."""
    path = tmp_path / "two.safetensors"
    held = {"a": np.arange(6, dtype="float32").reshape(2, 3), "b": np.array(5, "int64")}
    tensors.write_safetensors(held, {"format": "pt"}, path)
    return path


# Safetensors ----------------------------------------------------------------------------------


def test_tensors_come_back_as_they_were(stored):
    found = tensors.read_safetensors(stored)
    assert {name: (str(t.dtype), t.shape) for name, t in found.items()} == {
        "a": ("float32", (2, 3)),
        "b": ("int64", ()),
    }
    np.testing.assert_array_equal(found["a"], np.arange(6).reshape(2, 3))
    assert found["b"] == 5
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]


def test_bfloat16_is_read(tmp_path):
    path = tmp_path / "half.safetensors"
    values = np.array([1.5, -2.0], tensors.DTYPES["BF16"])
    header = {"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    write_raw(path, header, values.tobytes())
    np.testing.assert_array_equal(tensors.read_safetensors(path)["x"].astype("float32"), [1.5, -2])


def write_raw(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(first=0, last=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


@pytest.mark.parametrize(
    ("header", "size", "told"),
    [
        ({"a": entry()}, 7, "a: ends at byte 8, the data have 7"),
        ({"a": entry()}, 9, "1 bytes belong to no tensor"),
        ({"a": entry(), "b": entry(4, 12)}, 12, "b: begins at byte 4"),
        ({"a": entry(), "b": entry(12, 20)}, 20, "b: begins at byte 12"),
        ({"a": entry(shape=(3,))}, 8, "needs 12 bytes, the header gives it 8"),
        ({"a": entry(shape=(-2,))}, 8, "are no sizes"),
        ({"a": entry(shape=(2**62, 4))}, 8, "needs"),
        ({"a": entry(8, 0)}, 8, "the header gives it -8"),
        ({"a": entry(dtype="F128")}, 8, "dtype 'F128' is not one of"),
        ({"a": entry(dtype=["F32"])}, 8, "dtype"),
        ({"a": {"dtype": "F32"}}, 8, "expected dtype, shape and data_offsets"),
        (b"[1]", 0, "no table of tensors"),
        (b'{"a": ', 0, "can't be read"),
        (b"\xff\xfe", 0, "can't be read"),
        (b'{"a": 1, "a": 2}', 0, "a name comes twice"),
    ],
)
def test_a_header_that_lies_is_refused(header, size, told, tmp_path):
    path = tmp_path / "bad.safetensors"
    write_raw(path, header, bytes(size))
    with pytest.raises(ConfigurationError, match=told.replace("(", r"\(")):
        tensors.read_safetensors(path)


def test_a_file_cut_short_anywhere_is_refused(stored):
    whole = stored.read_bytes()
    for length in range(len(whole)):
        stored.write_bytes(whole[:length])
        with pytest.raises(ConfigurationError):
            tensors.read_safetensors(stored)


def test_every_problem_is_listed_up_to_twenty(tmp_path):
    path = tmp_path / "bad.safetensors"
    write_raw(path, {f"t{i}": entry(dtype="X") for i in range(25)}, b"")
    with pytest.raises(ConfigurationError) as problem:
        tensors.read_safetensors(path)
    lines = str(problem.value).split("\n")
    assert len(lines) == 22
    assert lines[-1].strip() == "and 5 more"


class Trap:
    """Unpickling it would be noticed."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize("name", ["model.pt", "model.BIN", "model.safetensors", "model"])
def test_pickles_are_refused_whatever_they_are_called(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"weight": Trap()}))
    with pytest.raises(ConfigurationError, match=r"(?s)pickle.*save_file"):
        flipkit.load_pretrained(path)
    with pytest.raises(ConfigurationError, match="pickle"):
        tensors.read_safetensors(path)


def test_what_torch_save_writes_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap()))
    with pytest.raises(ConfigurationError, match="pickle"):
        tensors.read_safetensors(path)


@pytest.mark.parametrize("config", ["open_clip_config.json", "config.json", "README.md"])
def test_a_folder_that_holds_a_pickle_alone_says_so(config, tmp_path):
    told = {"model_type": "clip", "model_cfg": {}}
    (tmp_path / config).write_text(json.dumps(told))
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ConfigurationError, match=r"pytorch_model\.bin, a pickle"):
        flipkit.load_pretrained(tmp_path)


# Into a model -----------------------------------------------------------------------------------


def test_assign_lists_all_that_does_not_fit_and_assigns_nothing(clip):
    before = {path: np.array(v) for path, v in tensors.weights(clip).items()}
    values = {path: value + 1 for path, value in before.items()}
    del values["image/norm/gamma"]
    values["image/norm/gama"] = np.zeros(16)
    values["text/position"] = np.zeros((7, 16))
    with pytest.raises(ConfigurationError) as problem:
        tensors.assign(clip, values, "a file")
    assert "missing: image/norm/gamma (16,)" in str(problem.value)
    assert "unexpected: image/norm/gama (16,)" in str(problem.value)
    assert "reshaped: text/position is (7, 16), expected (6, 16)" in str(problem.value)
    for path, variable in tensors.weights(clip).items():
        np.testing.assert_array_equal(variable, before[path])


def test_resampled_positions_keep_constants_and_the_first_row():
    table = np.concatenate([np.full((1, 2), 9.0), np.tile([[1.0, -2.0]], (16, 1))])
    found = tensors.resample_positions(table, (4, 4), (7, 3))
    assert found.shape == (22, 2)
    np.testing.assert_array_equal(found[0], [9, 9])
    np.testing.assert_allclose(found[1:], np.tile([[1.0, -2.0]], (21, 1)), atol=1e-6)
    assert tensors.resample_positions(table, (4, 4), (4, 4)) is not None


def test_resampled_positions_keep_a_slope():
    row, column = np.divmod(np.arange(64), 8)
    table = np.stack([(row + 0.5) / 8, (column + 0.5) / 8], axis=1)
    found = tensors.resample_positions(table, (8, 8), (16, 16)).reshape(16, 16, 2)
    expected = (np.arange(16) + 0.5) / 16
    np.testing.assert_allclose(found[3:-3, 8, 0], expected[3:-3], atol=1e-3)
    np.testing.assert_allclose(found[8, 3:-3, 1], expected[3:-3], atol=1e-3)


@pytest.mark.parametrize(("size", "new_size", "lost"), [(4, 8, 0.0), (14, 16, 0.0), (16, 14, 0.02)])
def test_resampled_patches_see_in_resized_pictures_what_they_saw_in_the_pictures(
    size, new_size, lost
):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((size * size * 3, 5)).astype("float32")
    smooth = rng.standard_normal((2, 3, 3, 3)).astype("float32")
    patches = np.asarray(ops.image.resize(smooth, (size, size), "bicubic"), "float32")
    resized = ops.image.resize(patches, (new_size, new_size), "bicubic", antialias=True)
    found = tensors.resample_patches(kernel, size, new_size)
    assert found.shape == (new_size * new_size * 3, 5)
    assert found.dtype == np.float32
    expected = patches.reshape(2, -1) @ kernel
    # Sums of up to 768 products, of pictures and kernels that are float32 themselves; fewer pixels lose
    # some of what was seen. Cancelled terms round too, so what counts is the size of the largest sum.
    rounding = 32 * np.finfo("float32").eps
    atol = (rounding + lost) * np.abs(expected).max()
    seen = np.asarray(resized).reshape(2, -1) @ found
    np.testing.assert_allclose(seen, expected, rtol=0, atol=atol)


def test_patches_of_the_same_size_stay_as_they_are():
    kernel = np.ones((12, 2), "float32")
    assert tensors.resample_patches(kernel, 2, 2) is kernel


# Formats ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["keras", "open_clip", "huggingface"])
def test_a_clip_goes_out_and_comes_back_bit_equal(clip, format, tmp_path):
    path = tmp_path / ("clip.keras" if format == "keras" else "clip")
    flipkit.save_as(clip, format, path, verify=True)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    back = flipkit.load_pretrained(path)
    for name, variable in tensors.weights(clip).items():
        np.testing.assert_array_equal(tensors.weights(back)[name], variable, err_msg=name)
    assert weights.difference(clip, back) == 0


def test_a_siglip_goes_out_and_comes_back_bit_equal(tmp_path):
    siglip = model(
        {"positions": "learned", "class_token": False, "pool": "map"},
        {"pool": "last"},
        dim=16,
        image_head=None,
        text_head="affine",
        max_logit_scale=None,
        init_logit_bias=-10.0,
    )
    flipkit.save_as(siglip, "huggingface", tmp_path / "siglip", verify=True)
    back = flipkit.load_pretrained(tmp_path / "siglip")
    for name, variable in tensors.weights(siglip).items():
        np.testing.assert_array_equal(tensors.weights(back)[name], variable, err_msg=name)


@pytest.mark.parametrize("changes", [{}, {"positions": "learned"}, {"patch_bias": False}])
def test_flip_pooled_over_patches_is_said_in_open_clip(changes, tmp_path):
    """Sine-cosine positions and the patch embedding's bias become one table of positions."""
    flip = model({**FLIP_GAP, **changes}, {"mlp_dim": 41})
    flipkit.save_as(flip, "open_clip", tmp_path / "flip", verify=True)
    back = flipkit.load_pretrained(tmp_path / "flip")
    assert weights.difference(flip, back) < 2e-6
    assert back.mask_ratio == flip.mask_ratio
    assert back.text.mlp_dim == 41
    kept = "sincos" if changes == {"patch_bias": False} else "learned"
    assert (back.image.positions, back.image.class_position) == (kept, False)


@pytest.mark.parametrize(
    ("image", "options", "told"),
    [
        ({}, {}, 'image.pool="mean": its avg pool leaves the class token out'),
        ({"pool": "mean", "class_token": False}, {}, "image.class_token=False"),
        ({**FLIP_GAP, "activation": "relu2"}, {}, "image.activation='relu2'"),
        ({**FLIP_GAP, "activation": "quick_gelu"}, {}, "quick_gelu is for both towers or none"),
        (FLIP_GAP, {"image_head": "affine"}, "image_head='affine'"),
        (FLIP_GAP, {"preprocessing": flipkit.Preprocessing(interpolation="lanczos")}, "lanczos"),
    ],
)
def test_open_clip_names_what_it_can_not_say(image, options, told, tmp_path):
    with pytest.raises(ConfigurationError) as problem:
        flipkit.save_as(model(image, **options), "open_clip", tmp_path / "out")
    assert told in str(problem.value)
    assert not list(tmp_path.iterdir())


def test_a_scale_beyond_its_clip_is_written_as_it_counts(clip, tmp_path):
    loud = model(CLIP, {"causal": True, "pool": "eos", "activation": "gelu"})
    loud.logit_scale.assign(6.0)
    flipkit.save_as(loud, "open_clip", tmp_path / "loud", verify=True)
    back = flipkit.load_pretrained(tmp_path / "loud")
    assert float(back.scale) == float(loud.scale) == pytest.approx(100)


def test_half_precision_is_compared_in_float32(tmp_path):
    half = model(
        {**CLIP, "dtype": "mixed_bfloat16"},
        {"causal": True, "pool": "eos", "activation": "gelu", "dtype": "mixed_bfloat16"},
        dtype="mixed_bfloat16",
    )
    flipkit.save_as(half, "open_clip", tmp_path / "half", verify=True)
    assert weights.difference(half, flipkit.load_pretrained(tmp_path / "half")) == 0


def test_nothing_is_written_over(clip, tmp_path):
    (tmp_path / "there").write_text("mine")
    with pytest.raises(ConfigurationError, match="exists"):
        flipkit.save_as(clip, "open_clip", tmp_path / "there")
    assert (tmp_path / "there").read_text() == "mine"


def test_what_reads_back_otherwise_is_not_kept(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "TOLERANCE", -1.0)
    with pytest.raises(ConfigurationError, match="other embeddings"):
        flipkit.save_as(clip, "open_clip", tmp_path / "out", verify=True)
    assert not list(tmp_path.iterdir())


def test_unknown_names_are_answered_with_the_nearest(clip, tmp_path):
    with pytest.raises(UnknownName, match="open_clip"):
        flipkit.save_as(clip, "openclip", tmp_path / "out")
    (tmp_path / "clip.keras").write_bytes(b"")
    with pytest.raises(UnknownName, match=r"clip\.keras"):
        flipkit.load_pretrained(tmp_path / "clip.kera")
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(ConfigurationError, match="one of the formats keras"):
        flipkit.load_pretrained(tmp_path / "notes.txt")


def test_tensors_alone_do_not_tell_their_model(stored):
    with pytest.raises(ConfigurationError, match="the folder that holds its config"):
        flipkit.load_pretrained(stored)


# Layer scale ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scaled():
    """A CLIP with layer scale in both towers, and a class token without a position as DeiT III has."""
    image = {**CLIP, "class_position": False, "pre_norm": False, "layer_scale": 1e-5}
    text = {"causal": True, "pool": "eos", "activation": "gelu", "layer_scale": 0.5}
    return model({**image, "norm_epsilon": 1e-6}, text)


def test_layer_scale_goes_to_open_clip_and_comes_back(scaled, tmp_path):
    path = tmp_path / "scaled"
    flipkit.save_as(scaled, "open_clip", path)
    config = json.loads((path / "open_clip_config.json").read_text())["model_cfg"]
    sections = [config[f"{role}_cfg"] for role in ("vision", "text")]
    assert [section["ls_init_value"] for section in sections] == [1e-5, 0.5]
    held = tensors.read_safetensors(path / "open_clip_model.safetensors")
    for tower in ("visual.", ""):
        for number in (1, 2):
            assert held[f"{tower}transformer.resblocks.0.ls_{number}.gamma"].shape == (16,)
    back = flipkit.load_pretrained(path)
    assert (back.image.layer_scale, back.text.layer_scale) == (1e-5, 0.5)
    same_weights(back, scaled)
    config["vision_cfg"]["ls_init_value"] = "small"
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(ConfigurationError, match=r"vision_cfg\.ls_init_value='small'"):
        flipkit.load_pretrained(path)


def as_timms(held):
    """open_clip's tensors of `scaled` under the names of timm's ViT, whose patch embedding has a bias."""
    names = {
        "ln_1.": "norm1.",
        "ln_2.": "norm2.",
        "attn.in_proj_": "attn.qkv.",
        "attn.out_proj.": "attn.proj.",
        "mlp.c_fc.": "mlp.fc1.",
        "mlp.c_proj.": "mlp.fc2.",
        "ls_1.": "ls1.",
        "ls_2.": "ls2.",
        "visual.transformer.resblocks.": "visual.trunk.blocks.",
        "visual.ln_post.": "visual.trunk.norm.",
        "visual.conv1.": "visual.trunk.patch_embed.proj.",
    }
    found = {}
    for name, value in held.items():
        if name.startswith("visual."):
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
        found[name] = value
    found["visual.trunk.patch_embed.proj.bias"] = np.zeros(16, "float32")
    found["visual.trunk.cls_token"] = found.pop("visual.class_embedding").reshape(1, 1, 16)
    found["visual.trunk.pos_embed"] = found.pop("visual.positional_embedding")[None, 1:]
    found["visual.head.proj.weight"] = found.pop("visual.proj").T
    return found


@pytest.mark.parametrize(("pool", "told"), [("token", None), ("avg", None), ("map", "timm_pool")])
def test_timms_towers_with_layer_scale_are_read(scaled, pool, told, tmp_path, monkeypatch):
    name = "deit3_small_patch16_224"
    real = timm_class.towers()[name]
    assert {"layer_scale": 1e-6, "class_position": False}.items() <= real.items()
    tiny = {**real, "image_size": 16, "patch_size": 4, **SMALL}
    monkeypatch.setattr(timm_class, "towers", lambda: {name: tiny})
    path = tmp_path / "scaled"
    flipkit.save_as(scaled, "open_clip", path)
    file = path / "open_clip_model.safetensors"
    held = {n: np.array(value) for n, value in tensors.read_safetensors(file).items()}
    tensors.write_safetensors(as_timms(held), {}, file)
    config = json.loads((path / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] = {
        "timm_model_name": name,
        "timm_pool": pool,
        "image_size": 16,
    }
    (path / "open_clip_config.json").write_text(json.dumps(config))
    if told:
        with pytest.raises(ConfigurationError, match=told):
            flipkit.load_pretrained(path)
        return
    found = flipkit.load_pretrained(path)
    assert found.image.pool == ("class" if pool == "token" else "mean_patches")
    for part, variable in tensors.weights(scaled).items():
        np.testing.assert_array_equal(tensors.weights(found)[part], variable, err_msg=part)
    if pool == "avg":  # and out again, as a tower of open_clip's own
        flipkit.save_as(found, "open_clip", tmp_path / "own")
        assert flipkit.load_pretrained(tmp_path / "own").image.layer_scale == 1e-6


@pytest.mark.parametrize("format", ["huggingface", "big_vision"])
def test_layer_scale_is_refused_by_name_where_there_is_no_word_for_it(format, scaled, tmp_path):
    with pytest.raises(ConfigurationError) as problem:
        flipkit.save_as(scaled, format, tmp_path / "scaled.npz")
    for option in ("image.layer_scale=1e-05", "text.layer_scale=0.5"):
        assert option in str(problem.value)


# As others write them ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(clip, tmp_path_factory):
    """{format: a folder of `clip`}, not to be changed."""
    made = {}
    for format in ("open_clip", "huggingface"):
        made[format] = tmp_path_factory.mktemp(format) / "clip"
        flipkit.save_as(clip, format, made[format])
    return made


@pytest.fixture
def rewritten(folders, tmp_path):
    """Makes a copy of a folder of `clip` whose tensors `edit` has replaced."""

    def make(format, edit=lambda held: held):
        target = tmp_path / "rewritten"
        shutil.copytree(folders[format], target)
        file = next(target.glob("*.safetensors"))
        held = {name: np.array(value) for name, value in tensors.read_safetensors(file).items()}
        tensors.write_safetensors(edit(held), {}, file)
        return target

    return make


def same_weights(found, expected):
    for name, variable in tensors.weights(expected).items():
        np.testing.assert_array_equal(tensors.weights(found)[name], variable, err_msg=name)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "_orig_mod.module.", "model.module._orig_mod."]
)
def test_what_was_around_a_model_is_taken_off_its_names(prefix):
    held = {f"{prefix}{name}": np.zeros(2) for name in ("logit_scale", "visual.model.weight")}
    assert set(own_tensors(held)) == {"logit_scale", "visual.model.weight"}
    assert set(own_tensors({**held, "visual.proj": np.zeros(2)})) == {*held, "visual.proj"}
    assert own_tensors({}) == {}


@pytest.mark.parametrize("format", ["open_clip", "huggingface"])
def test_wrapped_tensors_buffers_and_arrays_of_one_number_are_read(clip, rewritten, format):
    def edit(held):
        held["logit_scale"] = held["logit_scale"].reshape(1)
        sizes = ("input_resolution", "context_length", "vocab_size")
        held |= {name: np.array(224, "int64") for name in sizes}
        held |= {
            f"{tower}attn_mask": np.zeros((6, 6), "float32") for tower in ("", "text.", "visual.")
        }
        held["text_model.embeddings.position_ids"] = np.arange(6)[None]
        return {f"module.{name}": value for name, value in held.items()}

    same_weights(flipkit.load_pretrained(rewritten(format, edit)), clip)


@pytest.mark.parametrize("format", ["open_clip", "huggingface"])
def test_an_unknown_prefix_is_shown_beside_what_is_missing(rewritten, format):
    path = rewritten(format, lambda held: {f"student.{n}": v for n, v in held.items()})
    with pytest.raises(ConfigurationError) as problem:
        flipkit.load_pretrained(path)
    lines = [line.split()[0] for line in str(problem.value).split("\n")[1:]]
    assert lines[:-1] == ["missing:"] * 10 + ["unexpected:"] * 10
    assert "unexpected: student." in str(problem.value)


PROCESSOR = {
    "crop_size": {"height": 16, "width": 16},
    "data_format": "channels_first",
    "device": None,
    "disable_grouping": None,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "CLIPImageProcessorFast",
    "image_std": [0.25, 0.25, 0.25],
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 16, "longest_edge": None},
}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"do_center_crop": False, "size": {"height": 16, "width": 16}}, None),
        ({"size": {"shortest_edge": 20}}, "pictures of 16 pixels"),
        ({"do_pad": True}, "do_pad=True"),
        ({"do_flip": True}, "do_flip=True: unknown"),
    ],
    ids=str,
)
def test_the_nested_preprocessing_of_transformers_5_goes_first(rewritten, changes, told):
    path = rewritten("huggingface")
    config = {"image_processor": PROCESSOR | changes, "processor_class": "CLIPProcessor"}
    (path / "processor_config.json").write_text(json.dumps(config))
    if told:
        with pytest.raises(ConfigurationError, match=f"{told}.*|processor_config") as problem:
            flipkit.load_pretrained(path)
        assert told in str(problem.value)
        assert "/processor_config.json" in str(problem.value)
        return
    found = flipkit.load_pretrained(path).preprocessing
    assert [value.tolist() for value in found.statistics()] == [[0.5] * 3, [0.25] * 3]
    assert found.interpolation == "bilinear"
    assert found.resize_mode == ("squash" if changes else "shortest")


def test_a_processor_without_one_for_images_leaves_the_old_file(rewritten):
    path = rewritten("huggingface")
    before = flipkit.load_pretrained(path).preprocessing
    (path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert flipkit.load_pretrained(path).preprocessing.get_config() == before.get_config()


def whole(merges=("r e", "re d</w>"), **model):
    """The tokenizer.json of a CLIP with two merges."""
    like = flipkit.ClipBPE.example()
    pieces = [piece + "</w>" * (not goes_on) for piece, _, goes_on in like.spellings()]
    bytes_of = [chr(c) for c in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]]
    bytes_of += [chr(0x100 + i) for i in range(256 - len(bytes_of))]
    table = [*bytes_of, *(f"{b}</w>" for b in bytes_of), "re", "red</w>"]
    assert len(table) + 2 == len(pieces)
    table = {piece: i for i, piece in enumerate([*table, "<|startoftext|>", "<|endoftext|>"])}
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": table, **model}
    levels = {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]}
    return {"model": {**model, "merges": list(merges)}, "pre_tokenizer": levels}


@pytest.mark.parametrize("merges", [("r e", "re d</w>"), (["r", "e"], ["re", "d</w>"])])
def test_clips_byte_pairs_are_read_from_a_tokenizer_json(merges, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole(merges)))
    found = tokenizer_files.byte_pairs(tmp_path, 516)
    assert found.lines == flipkit.ClipBPE.example().lines
    expected = flipkit.ClipBPE.example()(["Red car"], 8)
    np.testing.assert_array_equal(found(["Red car"], 8), expected)
    (tmp_path / "tokenizer.json").unlink()
    np.testing.assert_array_equal(found(["Red car"], 8), expected)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nr e\n")
    assert tokenizer_files.byte_pairs(tmp_path, 516).vocab == 515
    with pytest.raises(ConfigurationError, match=r"at most 500 ids.*merges\.txt with 515"):
        tokenizer_files.byte_pairs(tmp_path, 500)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (whole(type="Unigram"), "Unigram"),
        (whole(end_of_word_suffix=None), "BPE"),
        (whole(vocab={"a": 0}), "BPE"),
        (whole(["r e", "re d x"]), "BPE"),
        ({**whole(), "pre_tokenizer": None}, "BPE"),
        ({"model": None}, "None"),
    ],
    ids=range(6),
)
def test_another_tokenizer_json_is_refused_by_its_kind(content, kind, rewritten):
    path = rewritten("huggingface")
    (path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=rf"tokenizer\.json, which holds.*{kind}.*merges"):
        flipkit.load_pretrained(path)


def test_a_siglip_whose_tokenizer_is_not_read_says_so(tmp_path, caplog):
    assert tokenizer_files.sentence_piece(tmp_path) is None
    assert not caplog.records
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole(type="Unigram")))
    with caplog.at_level("WARNING", logger="absl"):
        assert tokenizer_files.sentence_piece(tmp_path) is None
    assert "tokenizer.json is not read" in caplog.text


# The command line -------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs `python -m flipkit.convert` in this process: (exit code, printed, complained)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return shell.call("convert", [*arguments]), *capsys.readouterr()

    return call


def test_the_command_converts_and_verifies(clip, tmp_path, command):
    flipkit.save_as(clip, "open_clip", tmp_path / "clip")
    code, printed, complained = command("clip", "clip.keras", "--verify")
    assert (code, complained) == (0, "")
    assert "the same embeddings" in printed
    assert weights.difference(clip, flipkit.load_pretrained(tmp_path / "clip.keras")) == 0
    assert command("clip", "big.keras", "--image_size=24")[0] == 0
    assert flipkit.load_pretrained(tmp_path / "big.keras").image.grid == (6, 6)


def spoil(folder, how):
    """Damages the tensors in a folder."""
    file = folder / "open_clip_model.safetensors"
    held = {name: np.array(value) for name, value in tensors.read_safetensors(file).items()}
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-5])
    elif how == "pickle":
        file.write_bytes(pickle.dumps(Trap()))
    else:
        if how == "missing":
            del held["visual.proj"], held["ln_final.bias"]
        elif how == "extra":
            held["visual.trunk"] = np.zeros(3)
        elif how == "reshaped":
            held["visual.proj"] = held["visual.proj"].T
        tensors.write_safetensors(held, {}, file)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("truncated", ["visual.transformer.resblocks.0.mlp.c_proj.weight", "cut short"]),
        ("pickle", ["a pickle", "safetensors.torch.save_file"]),
        ("missing", ["missing: visual.proj (16, 8)", "missing: ln_final.bias (16,)"]),
        ("extra", ["unexpected: visual.trunk (3,)"]),
        ("reshaped", ["reshaped: visual.proj is (8, 16), expected (16, 8)"]),
    ],
)
def test_the_command_refuses_what_is_spoilt_and_writes_nothing(how, told, clip, tmp_path, command):
    flipkit.save_as(clip, "open_clip", tmp_path / "clip")
    spoil(tmp_path / "clip", how)
    code, printed, complained = command("clip", "out", "--format", "huggingface")
    assert (code, printed) == (2, "")
    assert complained.startswith("flipkit: ")
    for part in told:
        assert part in complained
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["clip"], "Expected a model and a target"),
        (["clip", "out"], "Set --format to one of: keras"),
        (["clip", "out", "--format=openclip"], "Did you mean 'open_clip'"),
        (["clap", "out.keras"], "No such file or folder: clap"),
        (["clip", "clip", "--format=open_clip"], "which exists"),
        (["notes", "out.keras"], "one of the formats keras"),
    ],
)
def test_the_command_answers_a_mistake_with_one_message(arguments, told, clip, tmp_path, command):
    flipkit.save_as(clip, "open_clip", tmp_path / "clip")
    (tmp_path / "notes").write_text("no weights")
    code, _, complained = command(*arguments)
    assert code == 2
    assert complained.startswith("flipkit: ")
    assert told in complained
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "notes"]
