"""open_clip's configs, read key by key into a FLIP."""

import math
from typing import Any

import numpy as np

from flipkit.checks import sides
from flipkit.encoders import TextTransformer, ViT
from flipkit.errors import ConfigurationError, nearest
from flipkit.models.flip import FLIP
from flipkit.preprocessing import STATISTICS
from flipkit.weights import timm_class, timm_siglip, tokenizer_files
from flipkit.weights.foreign import MOST_LAYERS, preprocessing
from flipkit.weights.torch_layout import logit_scale_limit, position_options

TEXT_POOLS = {"argmax": "eos", "eos": "eos", "first": "first", "last": "last"}
IMAGE_POOLS = {"tok": "class", "avg": "mean_patches"}
POSITIONS = {"learnable": "learned", "sin_cos_2d": "sincos"}
TEXT_PARTS = (
    "positional_embedding",
    "text_projection",
    "token_embedding",
    "transformer",
    "ln_final",
)


def model_of(config, preprocess, tensors, path):
    """The FLIP of an open_clip config, not built."""
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
    # Keys of training, and keys whose values the name replaces.
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
        raise ConfigurationError(
            f"{config.source}: patch_size={patch}; flipkit supports square ones"
        )
    options = _stack(config, quick_gelu, 768, 64)
    height, width = sides(size)
    config.require("pos_embed_type", *POSITIONS)  # the table itself determines it
    table = tensors.get("visual.positional_embedding", np.ones((1, 1)))
    options |= position_options(table, (height // patch, width // patch))
    pool = config.choice("pool_type", "tok", IMAGE_POOLS)
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
    pool = config.require("pool_type", *TEXT_POOLS)
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
        pool=TEXT_POOLS[pool],
        eos=eos if pool == "eos" else None,
        padding=padding,
        **options,
    )


def _stack(config, quick_gelu, width, head_width):
    """The arguments that both towers share; `head_width` is the image tower's default."""
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
