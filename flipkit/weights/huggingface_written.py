"""Hugging Face's configs of CLIP and SigLIP, written of a FLIP."""

from flipkit.weights.foreign import INTERPOLATIONS
from flipkit.weights.huggingface_config import _LEGACY_EOS, ACTIVATIONS, RESAMPLE
from flipkit.weights.torch_layout import tower_problems


def problems(model, siglip):
    """The options that transformers can't express, a line each."""
    problems = tower_problems(model)
    if problems:
        return problems
    image, text = model.image, model.text
    wanted = {
        "image.class_token": (image.class_token, not siglip),
        "image.pool": (image.pool, "map" if siglip else "class"),
        "image.pre_norm": (image.pre_norm, not siglip),
        "text.causal": (text.causal, not siglip),
        "text.pool": (text.pool, "last" if siglip else "eos"),
        "image_head": (model.image_head, None if siglip else "linear"),
        "text_head": (model.text_head, "affine" if siglip else "linear"),
    }
    if siglip:
        wanted["image.patch_bias"] = image.patch_bias, True
        wanted["image.final_norm"] = image.final_norm, "before_pool"
    problems = [
        f"{o}={have!r}: it has {want!r}" for o, (have, want) in wanted.items() if have != want
    ]
    if not isinstance(image.image_size, int):
        problems.append(f"image.image_size={image.image_size}: its pictures are square")
    if text.pool == "eos" and text.eos == _LEGACY_EOS:
        problems.append("text.eos=2: it takes the largest id then, not the first 2")
    for role, tower in (("image", image), ("text", text)):
        if tower.activation not in ACTIVATIONS.values():
            problems.append(f"{role}.activation={tower.activation!r}: unknown there")
        if tower.layer_scale is not None:
            problems.append(f"{role}.layer_scale={tower.layer_scale}: its blocks have none")
    if model.preprocessing.interpolation not in INTERPOLATIONS:
        problems.append(f"preprocessing.interpolation: expected one of {INTERPOLATIONS}")
    return problems


def _stack_config(tower):
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "hidden_size": tower.dim,
        "intermediate_size": tower.mlp_dim or 4 * tower.dim,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "hidden_act": names[tower.activation],
        "layer_norm_eps": tower.norm_epsilon,
        "attention_dropout": 0.0,
    }


def _towers_config(model, kind):
    image, text = model.image, model.text
    return {
        "model_type": kind,
        "dtype": "float32",
        "vision_config": {
            "model_type": f"{kind}_vision_model",
            "image_size": image.image_size,
            "patch_size": image.patch_size,
            "num_channels": 3,
            **_stack_config(image),
        },
        "text_config": {
            "model_type": f"{kind}_text_model",
            "vocab_size": text.vocab,
            "max_position_embeddings": text.length,
            **_stack_config(text),
        },
    }


def clip_config(model):
    """The config.json of a CLIPModel with the weights of `model`."""
    config = _towers_config(model, "clip")
    eos = model.text.eos
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": _LEGACY_EOS}
    if eos is not None:
        ids = {"bos_token_id": max(eos - 1, 0), "pad_token_id": eos, "eos_token_id": eos}
    config["text_config"] |= {**ids, "projection_dim": model.dim}
    config["vision_config"]["projection_dim"] = model.dim
    return {"architectures": ["CLIPModel"], "projection_dim": model.dim, **config}


def siglip_config(model):
    """The config.json of a SiglipModel with the weights of `model`."""
    config = _towers_config(model, "siglip")
    vocab = model.text.vocab
    ids = {"bos_token_id": vocab - 2, "eos_token_id": vocab - 1, "pad_token_id": model.text.padding}
    config["text_config"] |= {**ids, "projection_size": model.dim}
    config["vision_config"]["vision_use_head"] = True
    return {"architectures": ["SiglipModel"], **config}


def preprocessor_config(model, name):
    """The preprocessor_config.json of the image processor called `name`."""
    mean, std = model.preprocessing.statistics()
    side, crop = model.image.image_size, model.preprocessing.resize_mode == "shortest"
    square = {"height": side, "width": side}
    numbers = {name: number for number, name in RESAMPLE.items()}
    return {
        "image_processor_type": name.replace("Model", "ImageProcessor"),
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side} if crop else square,
        "resample": numbers[model.preprocessing.interpolation],
        "do_center_crop": crop,
        **({"crop_size": square} if crop else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean.tolist(),
        "image_std": std.tolist(),
    }
