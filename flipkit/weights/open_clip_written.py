"""open_clip's configs, written of a FLIP."""

from flipkit.maskers import RandomMasker
from flipkit.weights import timm_siglip
from flipkit.weights.foreign import INTERPOLATIONS
from flipkit.weights.open_clip_config import IMAGE_POOLS
from flipkit.weights.torch_layout import tower_problems


def problems(model):
    """The options that open_clip can't express, a line each."""
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
    elif image.pool not in IMAGE_POOLS.values():
        why = (
            "its avg pool leaves the class token out"
            if image.pool == "mean"
            else "it has none such"
        )
        problems.append(f'image.pool="{image.pool}": {why}; it has {list(IMAGE_POOLS.values())}')
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


def model_config(model):
    """The `model_cfg` of open_clip_config.json."""
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


def preprocess_config(model):
    """The `preprocess_cfg` of open_clip_config.json."""
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
