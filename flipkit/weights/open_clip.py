"""open_clip's folders: open_clip_config.json beside open_clip_model.safetensors; ViT towers."""

import math
import pathlib
from typing import Any

import numpy as np

from flipkit.encoders import TextTransformer, ViT
from flipkit.errors import ConfigurationError, nearest
from flipkit.maskers import RandomMasker
from flipkit.models.flip import FLIP
from flipkit.preprocessing import STATISTICS
from flipkit.weights import timm_class, timm_siglip, tokenizer_files
from flipkit.weights.foreign import (
    INTERPOLATIONS,
    MOST_LAYERS,
    Config,
    preprocessing,
    read_json,
    write_json,
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
    layer_scales,
    linear,
    logit_scale,
    logit_scale_limit,
    norm,
    own_tensors,
    position_options,
    positions,
    same,
    stacked_attention,
    tower_problems,
)

CONFIG = "open_clip_config.json"
TENSORS = "open_clip_model.safetensors"
_TEXT_POOLS = {"argmax": "eos", "eos": "eos", "first": "first", "last": "last"}
_IMAGE_POOLS = {"tok": "class", "avg": "mean_patches"}
_POSITIONS = {"learnable": "learned", "sin_cos_2d": "sincos"}
_TEXT_PARTS = (
    "positional_embedding",
    "text_projection",
    "token_embedding",
    "transformer",
    "ln_final",
)


def recognises(path: pathlib.Path) -> bool:
    """Whether `path` is a folder with open_clip's config."""
    return (path / CONFIG).is_file()


def read(path: pathlib.Path) -> FLIP:
    """The model in the folder `path`.

    Where the config names no tokenizer it is CLIP's byte pairs, without their file if none is there.
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
            f"text.{name}" if name.startswith(_TEXT_PARTS) else name: tensor
            for name, tensor in tensors.items()
        }
    model, timm = _model(model_config, preprocess, tensors, path)
    found = entries(model, "text." if custom_text else "", timm)
    load(model, found, tensors, str(path))
    return model


def write(model: FLIP, path: pathlib.Path):
    """Writes a folder that `open_clip.create_model("local-dir:...")` loads.

    Raises:
        ConfigurationError: open_clip can't express the model; lists every option that it has no word for.
    """
    refuse(_problems(model), "open_clip can't express this model")
    config = {"model_cfg": _model_config(model), "preprocess_cfg": _preprocess_config(model)}
    path.mkdir()
    tensors = logit_scale(model, dump(model, entries(model)))
    write_safetensors(tensors, {"format": "pt"}, path / TENSORS)
    write_json(config, path / CONFIG)


def entries(model: FLIP, text: str = "", timm: bool = False) -> list[Entry]:
    """open_clip's tensors, and what of `model` each one holds.

    Args:
        text: what stands before the names of the text tower: "text." with custom_text.
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


# Reading ----------------------------------------------------------------------------------------


def _weights_file(path):
    for name in (TENSORS, "open_clip_pytorch_model.safetensors", "model.safetensors"):
        if (path / name).is_file():
            return path / name
    for file in sorted(path.iterdir()):
        refuse_pickle(file)
    raise ConfigurationError(f"Expected {TENSORS} beside {CONFIG}. Received: {path}, without it.")


def _model(config, preprocess, tensors, path):
    quick_gelu = bool(config.take("quick_gelu", False))
    config.ignore("output_dict", "init_logit_scale", "nonscalar_logit_scale")
    dim, bias = config.whole("embed_dim"), config.take("init_logit_bias")
    vision, language = config.section("vision_cfg"), config.section("text_cfg")
    config.close()
    mask_ratio = vision.take("patch_dropout", 0.0)
    timm = vision.take("timm_model_name")
    image, image_head = (
        _image(vision, quick_gelu, tensors) if timm is None else _timm_image(vision, timm)
    )
    proj_type = language.require("proj_type", "linear", "none")
    text_head = "affine" if language.take("proj_bias", False) else "linear"
    named = language.take("hf_tokenizer_name")
    language.ignore("tokenizer_mode", "tokenizer_kwargs")
    text = _text(language, quick_gelu)
    made = FLIP(
        image,
        text,
        mask_ratio=mask_ratio,
        dim=dim,
        image_head=image_head,
        text_head=text_head if proj_type == "linear" else None,
        max_logit_scale=logit_scale_limit(tensors.get("logit_scale", np.zeros(1))),
        init_logit_bias=bias,
        preprocessing=_preprocessing(preprocess, image.image_size),
        tokenizer=tokenizer_files.byte_pairs(path, text.vocab) if named is None else None,
    )
    return made, timm is not None


def _timm_image(config, name):
    """Timm's tower `name` and the head on it."""
    siglip, others = timm_siglip.towers(), timm_class.towers()
    if name not in siglip | others:
        raise ConfigurationError(
            f"{config.source}: timm_model_name={name!r}; of timm's towers flipkit has those of SigLIP, "
            f"DeiT III and DINOv2. {nearest(str(name), siglip | others)}"
        )
    options = (siglip | others)[name]
    pools = {"map": "map", "": "map"} if name in siglip else timm_class.POOLS
    heads = {"none": None} if name in siglip else {"linear": "linear", "none": None}
    pool, head = config.take("timm_pool", "avg"), config.take("timm_proj", "linear")
    size = _size(config, "image_size", 224)
    if pool not in pools or head not in heads or size != options["image_size"]:
        raise ConfigurationError(
            f"{config.source}: expected of {name} timm_pool in {list(pools)}, timm_proj in {list(heads)} "
            f"and image_size={options['image_size']}. Received: timm_pool={pool!r}, "
            f"timm_proj={head!r}, image_size={size}"
        )
    bias = bool(config.take("timm_proj_bias", False))
    # Those of training, and those whose values the name replaces.
    config.ignore("timm_model_pretrained", "timm_drop", "timm_drop_path")
    config.ignore("patch_size", "width", "layers", "head_width", "mlp_ratio", "ls_init_value")
    config.close()
    head = "affine" if bias and heads[head] else heads[head]
    return ViT(**{**options, "pool": pools[pool]}), head


def _image(config, quick_gelu, tensors):
    """open_clip's own tower and the head on it."""
    config.require("attentional_pool", None, False)
    config.ignore(
        "attn_pooler_queries", "attn_pooler_heads", "output_tokens", "timm_model_pretrained"
    )
    config.ignore("timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path")
    size, patch = _size(config, "image_size", 224), _size(config, "patch_size", 16)
    if not isinstance(patch, int):
        raise ConfigurationError(f"{config.source}: patch_size={patch}; flipkit knows square ones")
    options = _stack(config, quick_gelu, 768, 64)
    height, width = (size, size) if isinstance(size, int) else size
    config.require("pos_embed_type", *_POSITIONS)  # the table itself tells which
    table = tensors.get("visual.positional_embedding", np.ones((1, 1)))
    options |= position_options(table, (height // patch, width // patch))
    pool = config.choice("pool_type", "tok", _IMAGE_POOLS)
    after = bool(config.take("final_ln_after_pool", False))
    pre_norm = not config.take("no_ln_pre", False)
    config.close()
    image = ViT(
        size,
        patch,
        patch_bias=False,
        pre_norm=pre_norm,
        pool=pool,
        final_norm="after_pool" if after else "before_pool",
        **options,
    )
    return image, "linear"


def _text(config, quick_gelu):
    config.require("hf_model_name", None)
    config.require("embed_cls", False)
    config.ignore("hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "output_tokens")
    config.ignore("final_ln_after_pool")  # of one token the norm before and after is the same
    options = _stack(config, quick_gelu, 512, None)
    pool = config.require("pool_type", *_TEXT_POOLS)
    eos = config.take("eos_id", 2)
    causal = not config.take("no_causal_mask", False)
    vocab, length = (
        config.whole("vocab_size", tokenizer_files.BPE_VOCAB),
        config.whole("context_length", 77),
    )
    padding = config.take("pad_id", 0)
    config.close()
    return TextTransformer(
        vocab,
        length,
        causal=causal,
        pool=_TEXT_POOLS[pool],
        eos=eos if pool == "eos" else None,
        padding=padding,
        **options,
    )


def _stack(config, quick_gelu, width, head_width):
    """Arguments of a tower that both have; `head_width` is the image tower's default."""
    width = config.whole("width", width)
    heads = config.whole("heads", 8) if head_width is None else None
    heads = heads or max(1, width // config.whole("head_width", head_width))
    scale = config.take("ls_init_value")
    if scale is not None and (type(scale) not in (int, float) or not 0 <= scale < math.inf):
        raise ConfigurationError(
            f"{config.source}: {config.name}ls_init_value={scale!r}; expected a number from 0 up"
        )
    config.require("block_type", None, "default", "custom")  # "custom" alone changes nothing
    for name in ("qk_norm", "scaled_cosine_attn", "scale_heads"):
        config.require(name, False)
    for name in ("scale_attn_inner", "scale_attn", "scale_fc"):
        config.require(name, False)
    norms, activations = config.section("norm_kwargs", {}), config.section("act_kwargs", {})
    epsilon = norms.number("eps", 1e-5)
    tanh = activations.require("approximate", "none", "tanh") == "tanh"
    if quick_gelu:
        activations.require("approximate", "none")
    norms.close()
    activations.close()
    return {
        "dim": width,
        "depth": config.whole("layers", 12, most=MOST_LAYERS),
        "heads": heads,
        "mlp_dim": int(width * config.number("mlp_ratio", 4.0)),
        "activation": "quick_gelu" if quick_gelu else "gelu_tanh" if tanh else "gelu",
        "norm_epsilon": epsilon,
        "layer_scale": scale,
    }


def _size(config, key, default) -> Any:
    """An int, or (height, width) where the two differ."""
    value = config.take(key, default)
    sides = [value, value] if isinstance(value, int) else value
    if (
        not isinstance(sides, list)
        or len(sides) != 2
        or not all(type(side) is int and side > 0 for side in sides)
    ):
        raise ConfigurationError(f"Expected one or two integers. Received: {key}={value!r}")
    return sides[0] if sides[0] == sides[1] else tuple(sides)


def _preprocessing(config, size):
    config.require("mode", "RGB")
    config.ignore("fill_color")  # of margins, which neither way to cut has
    mean, std = STATISTICS["clip"]
    mean, std = config.numbers("mean", mean), config.numbers("std", std)
    interpolation = config.require("interpolation", "bicubic", "bilinear", "random")
    if interpolation == "random":
        interpolation = "bicubic"  # what open_clip evaluates with then
    mode = config.require("resize_mode", "shortest", "squash")
    wanted = _size(config, "size", size if isinstance(size, int) else list(size))
    if wanted != size:
        raise ConfigurationError(
            f"{config.source} has pictures of {wanted} pixels for a tower of {size} pixels."
        )
    config.close()
    return preprocessing(mean, std, interpolation, mode, "open_clip")


# Writing ----------------------------------------------------------------------------------------


def _problems(model):
    """What open_clip has no word for; a line for each option."""
    problems = tower_problems(model)
    if problems:
        return problems
    image, text = model.image, model.text
    head = None if image.pool == "map" else "linear"
    if image.pool == "map":
        if timm_siglip.name_of(image) is None:
            problems.append(
                'image.pool="map": it has that in timm\'s SigLIP towers, with all their sizes'
            )
        if image.layer_scale is not None:
            problems.append(
                f"image.layer_scale={image.layer_scale}: timm's SigLIP towers have none"
            )
    elif not image.class_token:
        problems.append("image.class_token=False: its towers always have one")
    elif image.pool not in _IMAGE_POOLS.values():
        why = (
            "its avg pool leaves the class token out"
            if image.pool == "mean"
            else "it has none such"
        )
        problems.append(f'image.pool="{image.pool}": {why}; it has {list(_IMAGE_POOLS.values())}')
    if text.pool == "mean":
        problems.append('text.pool="mean": it has "first", "last", "eos"')
    if model.image_head != head:
        problems.append(f"image_head={model.image_head!r}: it has {head!r} with this pool")
    quick = [tower.activation == "quick_gelu" for tower in (image, text)]
    if len(set(quick)) == 2:
        problems.append("image.activation, text.activation: quick_gelu is for both towers or none")
    for role, tower in (("image", image), ("text", text)):
        if tower.activation not in ("gelu", "gelu_tanh", "quick_gelu"):
            problems.append(f"{role}.activation={tower.activation!r}: it has gelu and quick_gelu")
    if model.preprocessing.interpolation not in INTERPOLATIONS:
        problems.append(
            f"preprocessing.interpolation={model.preprocessing.interpolation!r}: it has "
            f"{list(INTERPOLATIONS)}"
        )
    return problems


def _model_config(model):
    image, text = model.image, model.text
    random = model.masks_images and isinstance(model.masker, RandomMasker)
    drawn = image.positions == "sincos" and not image.patch_bias and image.grid[0] == image.grid[1]
    config = {"embed_dim": model.dim, "quick_gelu": image.activation == "quick_gelu"}
    if model.init_logit_bias is not None:
        config["init_logit_bias"] = model.init_logit_bias
    config["vision_cfg"] = {
        "image_size": image.image_size,
        "patch_dropout": model.mask_ratio if random else 0.0,
    }
    config["vision_cfg"] |= (
        _timm_config(image)
        if image.pool == "map"
        else {
            "patch_size": image.patch_size,
            "head_width": image.dim // image.heads,
            **_stack_config(image),
            "no_ln_pre": not image.pre_norm,
            "pool_type": "tok" if image.pool == "class" else "avg",
            "final_ln_after_pool": image.final_norm == "after_pool",
            "pos_embed_type": "sin_cos_2d" if drawn else "learnable",
        }
    )
    config["text_cfg"] = {
        "context_length": text.length,
        "vocab_size": text.vocab,
        "heads": text.heads,
        **_stack_config(text),
        "no_causal_mask": not text.causal,
        "pool_type": "argmax" if text.pool == "eos" and text.eos is None else text.pool,
        "pad_id": text.padding,
        "proj_type": "none" if model.text_head is None else "linear",
        "proj_bias": model.text_head == "affine",
    }
    if text.eos is not None:
        config["text_cfg"]["eos_id"] = text.eos
    return config


def _timm_config(image):
    name = timm_siglip.name_of(image)
    timm = {"timm_model_name": name, "timm_model_pretrained": False}
    return {**timm, "timm_pool": "map", "timm_proj": "none"}


def _stack_config(tower):
    hidden = tower.mlp_dim or 4 * tower.dim
    ratio = hidden / tower.dim
    if int(tower.dim * ratio) != hidden:  # open_clip rounds the product down
        ratio = (hidden + 0.5) / tower.dim
    config = {"width": tower.dim, "layers": tower.depth, "mlp_ratio": ratio}
    config["norm_kwargs"] = {"eps": tower.norm_epsilon}
    if tower.layer_scale is not None:
        config["ls_init_value"] = tower.layer_scale
    if tower.activation == "gelu_tanh":
        config["act_kwargs"] = {"approximate": "tanh"}
    return config


def _preprocess_config(model):
    mean, std = model.preprocessing.statistics()
    return {
        "size": model.image.image_size,
        "mode": "RGB",
        "mean": mean.tolist(),
        "std": std.tolist(),
        "interpolation": model.preprocessing.interpolation,
        "resize_mode": model.preprocessing.resize_mode,
        "fill_color": 0,
    }
