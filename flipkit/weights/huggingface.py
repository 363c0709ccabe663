"""Hugging Face's folders of a CLIPModel or a SiglipModel: config.json beside model.safetensors."""

import pathlib

from flipkit.errors import ConfigurationError, nearest
from flipkit.models.flip import FLIP
from flipkit.weights.foreign import Config, read_json, write_json
from flipkit.weights.huggingface_config import PREPROCESSOR, clip, siglip
from flipkit.weights.huggingface_written import (
    clip_config,
    preprocessor_config,
    problems,
    siglip_config,
)
from flipkit.weights.tensors import (
    Entry,
    dump,
    load,
    read_safetensors,
    refuse,
    refuse_pickle,
    write_safetensors,
)
from flipkit.weights.torch_layout import (
    convolution,
    linear,
    logit_scale,
    norm,
    own_tensors,
    positions,
    same,
    stacked_attention,
    turned,
)

CONFIG, TENSORS = "config.json", "model.safetensors"
INDEX = "model.safetensors.index.json"


def recognises(path: pathlib.Path) -> bool:
    """Whether `path` is a folder with a config of transformers for a model of image and text."""
    return (path / CONFIG).is_file() and "model_type" in read_json(path / CONFIG)


def read(path: pathlib.Path) -> FLIP:
    """The model in the folder `path`, with the tokenizer if its file is there.

    The file is merges.txt or tokenizer.json of a CLIP, spiece.model of a SigLIP.
    """
    values = read_json(path / CONFIG)
    kind = values.get("model_type")
    if kind not in ("clip", "siglip"):
        raise ConfigurationError(
            f"Expected a CLIPModel or a SiglipModel. Received: {path} with model_type={kind!r}. "
            f"{nearest(str(kind), ('clip', 'siglip'))}"
        )
    tensors = own_tensors(_tensors(path))
    config = Config(values, str(path / CONFIG))
    config.ignore("model_type")
    make = clip if kind == "clip" else siglip
    model = make(config, tensors, path)
    load(model, entries(model), tensors, str(path))
    return model


def write(model: FLIP, path: pathlib.Path):
    """Writes a folder that `from_pretrained` loads: of SiglipModel if the model has a logit bias, else
    of CLIPModel.

    Raises:
        ConfigurationError: that class can't express the model; the message lists every such option.
    """
    siglip = model.init_logit_bias is not None
    name = "SiglipModel" if siglip else "CLIPModel"
    refuse(problems(model, siglip), f"transformers' {name} can't express this model")
    path.mkdir()
    tensors = logit_scale(model, dump(model, entries(model)))
    write_safetensors(tensors, {"format": "pt"}, path / TENSORS)
    write_json(siglip_config(model) if siglip else clip_config(model), path / CONFIG)
    write_json(preprocessor_config(model, name), path / PREPROCESSOR)


def entries(model: FLIP) -> list[Entry]:
    """The tensors of a CLIPModel, or of a SiglipModel if there is a logit bias, and their weights."""
    image, siglip = model.image, model.init_logit_bias is not None
    vision, one = "vision_model.embeddings", (1,) if siglip else ()
    found = [
        convolution(
            f"{vision}.patch_embedding.weight", "image/patch_embed/kernel", image.patch_size
        ),
        positions(f"{vision}.position_embedding.weight", image, image.patch_bias and not siglip),
        *_layers("vision_model", "image", image.depth),
        *norm("vision_model.post_layernorm", "image/norm"),
        same("text_model.embeddings.token_embedding.weight", "text/token_embedding"),
        same("text_model.embeddings.position_embedding.weight", "text/position"),
        *_layers("text_model", "text", model.text.depth),
        *norm("text_model.final_layer_norm", "text/norm"),
        same("logit_scale", "logit_scale", one),
    ]
    if not siglip:
        return [
            *found,
            same(f"{vision}.class_embedding", "image/class_token", (image.dim,)),
            *norm("vision_model.pre_layrnorm", "image/pre_norm"),  # spelled so
            turned("visual_projection.weight", "image_projection/kernel"),
            turned("text_projection.weight", "text_projection/kernel"),
        ]
    head = "vision_model.head"
    return [
        *found,
        same(f"{vision}.patch_embedding.bias", "image/patch_embed/bias"),
        same(f"{head}.probe", "image/pool/probe"),
        *stacked_attention(f"{head}.attention", "image/pool/attention"),
        *norm(f"{head}.layernorm", "image/pool/norm"),
        *linear(f"{head}.mlp.fc1", "image/pool/mlp/up"),
        *linear(f"{head}.mlp.fc2", "image/pool/mlp/down"),
        *linear("text_model.head", "text_projection"),
        same("logit_bias", "logit_bias", one),
    ]


def _layers(name, tower, depth):
    for i in range(depth):
        theirs, ours = f"{name}.encoder.layers.{i}", f"{tower}/block_{i:02d}"
        yield from norm(f"{theirs}.layer_norm1", f"{ours}/attention_norm")
        for part, layer in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out")):
            yield from linear(f"{theirs}.self_attn.{part}_proj", f"{ours}/attention/{layer}")
        yield from norm(f"{theirs}.layer_norm2", f"{ours}/mlp_norm")
        yield from linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up")
        yield from linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down")


def _tensors(path):
    if (path / TENSORS).is_file():
        return read_safetensors(path / TENSORS)
    if not (path / INDEX).is_file():
        for file in sorted(path.iterdir()):
            refuse_pickle(file)
        raise ConfigurationError(
            f"Expected {TENSORS} beside {CONFIG}. Received: {path}, without it."
        )
    places = read_json(path / INDEX).get("weight_map", {})
    # Names alone: an index must not lead out of its folder.
    files = sorted({pathlib.PurePath(str(file)).name for file in places.values()})
    found = {}
    for file in files:
        found |= read_safetensors(path / file)
    return found
