"""SigLIP in big_vision's .npz: the recorded model of transformers, put under big_vision's names by hand."""

import pathlib
import pickle

import ml_dtypes
import numpy as np
import pytest

import flipkit
from flipkit.errors import ConfigurationError
from flipkit.weights import big_vision, tensors

GOLDEN = pathlib.Path(__file__).parents[2] / "shared" / "golden" / "hf_siglip" / "base"
HEADS = {"img": 3, "txt": 2}


@pytest.fixture(scope="module")
def arrays():
    """The recorded weights as big_vision has them: flax's names and shapes."""
    if not GOLDEN.exists():
        pytest.skip(f"no reference outputs in {GOLDEN}")
    theirs = dict(tensors.read_safetensors(GOLDEN / "model.safetensors"))
    found = {"t": theirs["logit_scale"], "b": theirs["logit_bias"]}

    def norm(name, source):
        found[f"{name}/scale"] = theirs[f"{source}.weight"]
        found[f"{name}/bias"] = theirs[f"{source}.bias"]

    def dense(name, source):
        found[f"{name}/kernel"] = theirs[f"{source}.weight"].T
        found[f"{name}/bias"] = theirs[f"{source}.bias"]

    def mlp(name, source):
        dense(f"{name}/MlpBlock_0/Dense_0", f"{source}.fc1")
        dense(f"{name}/MlpBlock_0/Dense_1", f"{source}.fc2")

    def attention(name, heads, weights, biases):
        """`weights` and `biases`: torch's of query, key, value and out; flax's have an axis of heads."""
        name = f"{name}/MultiHeadDotProductAttention_0"
        for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=False):
            found[f"{name}/{part}/kernel"] = weight.T.reshape(len(weight), heads, -1)
            found[f"{name}/{part}/bias"] = bias.reshape(heads, -1)
        found[f"{name}/out/kernel"] = weights[3].T.reshape(heads, -1, len(weights[3]))
        found[f"{name}/out/bias"] = biases[3]

    for tower, source, stack in (("img", "vision", "Transformer"), ("txt", "text", "Encoder_0")):
        for i in range(2):
            block, layer = f"{tower}/{stack}/encoderblock_{i}", f"{source}_model.encoder.layers.{i}"
            norm(f"{block}/LayerNorm_0", f"{layer}.layer_norm1")
            norm(f"{block}/LayerNorm_1", f"{layer}.layer_norm2")
            mlp(block, f"{layer}.mlp")
            parts = [f"{layer}.self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
            weights, biases = (
                [theirs[f"{part}.{kind}"] for part in parts] for kind in ("weight", "bias")
            )
            attention(block, HEADS[tower], weights, biases)
        last = "post_layernorm" if tower == "img" else "final_layer_norm"
        norm(f"{tower}/{stack}/encoder_norm", f"{source}_model.{last}")
        table = theirs[f"{source}_model.embeddings.position_embedding.weight"]
        found[f"{tower}/pos_embedding"] = table[None]

    patches = "vision_model.embeddings.patch_embedding"
    found["img/embedding/kernel"] = theirs[f"{patches}.weight"].transpose(2, 3, 1, 0)
    found["img/embedding/bias"] = theirs[f"{patches}.bias"]
    pool, head = "img/MAPHead_0", "vision_model.head"
    found[f"{pool}/probe"] = theirs[f"{head}.probe"]
    norm(f"{pool}/LayerNorm_0", f"{head}.layernorm")
    mlp(pool, f"{head}.mlp")
    weights = np.split(theirs[f"{head}.attention.in_proj_weight"], 3)
    biases = np.split(theirs[f"{head}.attention.in_proj_bias"], 3)
    weights.append(theirs[f"{head}.attention.out_proj.weight"])
    biases.append(theirs[f"{head}.attention.out_proj.bias"])
    attention(pool, HEADS["img"], weights, biases)
    found["txt/Embed_0/embedding"] = theirs["text_model.embeddings.token_embedding.weight"]
    dense("txt/head", "text_model.head")
    return found


def save(path, arrays, prefix="params/"):
    np.savez(path, **{prefix + name: array for name, array in arrays.items()})
    return path


def embeddings(model):
    """Of the recorded inputs, whose pixels are normalised."""
    inputs = np.load(GOLDEN / "inputs.npz")
    model.preprocessing = flipkit.Preprocessing([0, 0, 0], [1 / 255] * 3)
    batch = {"image": inputs["pixel_values"].transpose(0, 2, 3, 1), "text": inputs["input_ids"]}
    return {name: np.asarray(vectors) for name, vectors in model(batch).items()}


def assert_golden(model, atol=2e-6):
    found, expected = embeddings(model), np.load(GOLDEN / "outputs_f64.npz")
    np.testing.assert_allclose(found["image"], expected["image_embeds"], atol=atol, rtol=0)
    np.testing.assert_allclose(found["text"], expected["text_embeds"], atol=atol, rtol=0)
    logits = float(model.scale) * found["image"] @ found["text"].T + float(model.logit_bias)
    # What two unit vectors are off by each, times the scale.
    atol *= 4 * float(model.scale)
    np.testing.assert_allclose(logits, expected["logits_per_image"], atol=atol, rtol=0)


def assert_same_weights(one, other):
    ours, theirs = tensors.weights(one), tensors.weights(other)
    assert ours.keys() == theirs.keys()
    for path, variable in ours.items():
        np.testing.assert_array_equal(variable.numpy(), theirs[path].numpy(), err_msg=path)


def test_embeddings_and_logits_are_the_recorded_ones(arrays, tmp_path):
    state = {"opt/0/mu/t": np.zeros(1, "float32"), "chrono/pause": np.zeros((), "float32")}
    path = tmp_path / "siglip.npz"
    np.savez(path, **{f"params/{name}": array for name, array in arrays.items()}, **state)
    model = flipkit.load_pretrained(path)
    assert (model.image.heads, model.image.mlp_dim, model.text.mlp_dim) == (3, 80, 72)
    assert (model.image.pool, model.image_head, model.text_head) == ("map", None, "affine")
    assert_golden(model)


def test_names_without_a_prefix_and_stacked_blocks_are_the_same_model(arrays, tmp_path):
    stacked = {name: array for name, array in arrays.items() if "/encoderblock_" not in name}
    for name in arrays:
        if "/encoderblock_0/" in name:
            blocks = [arrays[name.replace("block_0/", f"block_{i}/")] for i in range(2)]
            stacked[name.replace("block_0/", "block/")] = np.stack(blocks)
    model = flipkit.load_pretrained(save(tmp_path / "scan.npz", stacked, ""))
    assert_same_weights(model, flipkit.load_pretrained(save(tmp_path / "plain.npz", arrays)))


def test_bfloat16_arrays_are_read(arrays, tmp_path):
    halved = {name: array.astype(ml_dtypes.bfloat16).view("V2") for name, array in arrays.items()}
    model = flipkit.load_pretrained(save(tmp_path / "half.npz", halved))
    np.testing.assert_array_equal(
        model.text.table.numpy(),
        arrays["txt/Embed_0/embedding"].astype(ml_dtypes.bfloat16).astype("float32"),
    )


def test_model_goes_out_and_comes_back_bit_equal(arrays, tmp_path):
    model = flipkit.load_pretrained(save(tmp_path / "siglip.npz", arrays))
    flipkit.save_as(model, "big_vision", tmp_path / "again.npz")
    written = dict(np.load(tmp_path / "again.npz", allow_pickle=False))
    assert written.keys() == {f"params/{name}" for name in arrays}
    for name, array in arrays.items():
        np.testing.assert_array_equal(written[f"params/{name}"], array, err_msg=name)
    assert_same_weights(flipkit.load_pretrained(tmp_path / "again.npz"), model)


def test_models_without_attention_pooling_come_back_too(tiny, tmp_path):
    image = {"positions": "learned", "class_token": True, "pool": "class"}
    model = tiny(image=image, text={"pool": "last"}, image_head="affine", text_head="affine", dim=8)
    flipkit.save_as(model, "big_vision", tmp_path / "lit.npz")
    found = flipkit.load_pretrained(tmp_path / "lit.npz")
    assert found.logit_bias is None
    assert_same_weights(found, model)


def test_model_that_cannot_be_said_is_refused_naming_its_options(tiny, tmp_path):
    with pytest.raises(ConfigurationError) as problem:
        flipkit.save_as(tiny(text={"causal": True}), "big_vision", tmp_path / "no.npz")
    told = str(problem.value)
    for option in ("image.positions='sincos'", "text.causal=True", "text.pool='first'"):
        assert option in told
    assert "image_head='linear'" in told
    assert "image.class_token=True" in told
    assert not list(tmp_path.iterdir())


def test_other_arrays_are_refused_listing_them(arrays, tmp_path):
    changed = dict(arrays)
    del changed["img/Transformer/encoderblock_1/LayerNorm_0/scale"]
    changed["txt/MAPHead_0/probe"] = np.zeros((1, 1, 24), "float32")
    changed["txt/Encoder_0/encoder_norm/bias"] = np.zeros(25, "float32")
    with pytest.raises(ConfigurationError) as problem:
        flipkit.load_pretrained(save(tmp_path / "changed.npz", changed))
    told = str(problem.value)
    assert "missing: img/Transformer/encoderblock_1/LayerNorm_0/scale" in told
    assert "unexpected: txt/MAPHead_0/probe" in told
    assert "reshaped: txt/Encoder_0/encoder_norm/bias is (25,), expected (24,)" in told


def test_file_with_one_tower_is_refused(arrays, tmp_path):
    image = {name: array for name, array in arrays.items() if name.startswith("img/")}
    with pytest.raises(ConfigurationError, match=r"no two towers(.|\n)*missing: txt/Embed_0"):
        flipkit.load_pretrained(save(tmp_path / "image.npz", image))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_file_is_one_clear_error(arrays, tmp_path, share):
    path = save(tmp_path / "siglip.npz", arrays)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ConfigurationError, match="cut short or none"):
        flipkit.load_pretrained(path)


def test_damaged_array_is_named(arrays, tmp_path):
    path = save(tmp_path / "siglip.npz", arrays)
    data = bytearray(path.read_bytes())
    place = data.find(arrays["txt/Embed_0/embedding"].tobytes())
    data[place + 100] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(
        ConfigurationError, match=r"is damaged(.|\n)*txt/Embed_0/embedding: Bad CRC"
    ):
        flipkit.load_pretrained(path)


def test_pickles_are_refused_and_never_run(arrays, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "trapped"), "w"))

    inside = np.empty(1, object)
    inside[0] = Trap()
    np.savez(tmp_path / "objects.npz", **{"params/t": inside})
    with pytest.raises(ConfigurationError, match=r"params/t: Object arrays cannot be loaded"):
        flipkit.load_pretrained(tmp_path / "objects.npz")
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ConfigurationError, match="a pickle"):
        flipkit.load_pretrained(tmp_path / "plain.npz")
    assert not (tmp_path / "trapped").exists()


def test_logit_scale_beyond_the_limit_is_written_as_it_counts(arrays, tmp_path):
    model = flipkit.load_pretrained(save(tmp_path / "siglip.npz", arrays))
    model.max_logit_scale = 10.0
    model.logit_scale.assign(5.0)
    flipkit.save_as(model, "big_vision", tmp_path / "clipped.npz")
    written = big_vision.read_npz(tmp_path / "clipped.npz")
    np.testing.assert_allclose(np.exp(written["t"]), 10.0, rtol=1e-6)
