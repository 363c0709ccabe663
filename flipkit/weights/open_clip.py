"""open_clip's folders: open_clip_config.json beside open_clip_model.safetensors; ViT towers."""

import pathlib

from flipkit.errors import ConfigurationError
from flipkit.models.flip import FLIP
from flipkit.weights import timm_class, timm_siglip
from flipkit.weights.foreign import Config, read_json, write_json
from flipkit.weights.open_clip_config import TEXT_PARTS, model_of
from flipkit.weights.open_clip_written import model_config, preprocess_config, problems
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
    layer_scales,
    linear,
    logit_scale,
    norm,
    own_tensors,
    positions,
    same,
    stacked_attention,
)

CONFIG = "open_clip_config.json"
TENSORS = "open_clip_model.safetensors"


def recognises(path: pathlib.Path) -> bool:
    """Whether `path` is a folder with open_clip's config."""
    return (path / CONFIG).is_file()


def read(path: pathlib.Path) -> FLIP:
    """The model in the folder `path`.

    Where the config names no tokenizer, it is CLIP's byte pairs, without merges if their file is missing.
    `patch_dropout` becomes the mask ratio.
    """
    config = read_json(path / CONFIG)
    tensors = own_tensors(read_safetensors(_weights_file(path)))
    top = Config(config, str(path / CONFIG))
    model_config, preprocess = top.section("model_cfg"), top.section("preprocess_cfg", {})
    top.close()
    custom_text = bool(model_config.take("custom_text", False))
    if custom_text and "positional_embedding" in tensors:  # as open_clip itself, of older files
        tensors = {
            f"text.{name}" if name.startswith(TEXT_PARTS) else name: tensor
            for name, tensor in tensors.items()
        }
    model, timm = model_of(model_config, preprocess, tensors, path)
    found = entries(model, "text." if custom_text else "", timm)
    load(model, found, tensors, str(path))
    return model


def write(model: FLIP, path: pathlib.Path):
    """Writes a folder that `open_clip.create_model("local-dir:...")` loads.

    Raises:
        ConfigurationError: open_clip can't express the model; the message lists every such option.
    """
    refuse(problems(model), "open_clip can't express this model")
    config = {"model_cfg": model_config(model), "preprocess_cfg": preprocess_config(model)}
    path.mkdir()
    tensors = logit_scale(model, dump(model, entries(model)))
    write_safetensors(tensors, {"format": "pt"}, path / TENSORS)
    write_json(config, path / CONFIG)


def entries(model: FLIP, text: str = "", timm: bool = False) -> list[Entry]:
    """open_clip's tensors, and the weights of `model` in each.

    Args:
        text: prefix of the text tower's names: "text." with custom_text.
        timm: whether the image tower is one of timm's; SigLIP's always is.
    """
    if model.image.pool == "map":
        image = timm_siglip.entries(model.image)
    elif timm:
        image = timm_class.entries(model.image, model.image_head)
    else:
        image = _image_entries(model.image)
    found = [
        *image,
        same(f"{text}token_embedding.weight", "text/token_embedding"),
        same(f"{text}positional_embedding", "text/position"),
        *_blocks(f"{text}transformer", "text", model.text),
        *norm(f"{text}ln_final", "text/norm"),
        same("logit_scale", "logit_scale"),
    ]
    if model.text_head == "linear":
        found.append(same(f"{text}text_projection", "text_projection/kernel"))
    if model.text_head == "affine":
        found += linear(f"{text}text_projection", "text_projection")
    if model.init_logit_bias is not None:
        found.append(same("logit_bias", "logit_bias"))
    return found


def _image_entries(image):
    patches = convolution("visual.conv1.weight", "image/patch_embed/kernel", image.patch_size)
    return [
        patches,
        same("visual.class_embedding", "image/class_token", (image.dim,)),
        positions("visual.positional_embedding", image, bias=image.patch_bias),
        *(norm("visual.ln_pre", "image/pre_norm") if image.pre_norm else []),
        *_blocks("visual.transformer", "image", image),
        *norm("visual.ln_post", "image/norm"),
        same("visual.proj", "image_projection/kernel"),
    ]


def _blocks(name, role, tower):
    for i in range(tower.depth):
        theirs, ours = f"{name}.resblocks.{i}", f"{role}/block_{i:02d}"
        yield from norm(f"{theirs}.ln_1", f"{ours}/attention_norm")
        yield from stacked_attention(f"{theirs}.attn", f"{ours}/attention")
        yield from norm(f"{theirs}.ln_2", f"{ours}/mlp_norm")
        yield from linear(f"{theirs}.mlp.c_fc", f"{ours}/mlp/up")
        yield from linear(f"{theirs}.mlp.c_proj", f"{ours}/mlp/down")
        yield from layer_scales(tower, f"{theirs}.ls_1", f"{theirs}.ls_2", ours)


def _weights_file(path):
    for name in (TENSORS, "open_clip_pytorch_model.safetensors", "model.safetensors"):
        if (path / name).is_file():
            return path / name
    for file in sorted(path.iterdir()):
        refuse_pickle(file)
    raise ConfigurationError(f"Expected {TENSORS} beside {CONFIG}. Received: {path}, without it.")
