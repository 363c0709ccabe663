"""Hugging Face's folders of a CLIPModel or a SiglipModel: config.json beside model.safetensors."""

import pathlib

import numpy as np

from flipkit.encoders import TextTransformer, ViT
from flipkit.errors import ConfigurationError, nearest
from flipkit.models.flip import FLIP
from flipkit.preprocessing import STATISTICS, Preprocessing
from flipkit.tokenizers import Tokenizer
from flipkit.weights import tokenizer_files
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
    turned,
)

CONFIG, TENSORS = "config.json", "model.safetensors"
INDEX = "model.safetensors.index.json"
PROCESSOR, PREPROCESSOR = "processor_config.json", "preprocessor_config.json"

_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_LEGACY_EOS = 2  # in older configs of CLIP, in whose vocabulary the end is the largest id

# The configs' own defaults, as of transformers 5: what a file leaves out.
_CLIP_TEXT = {
    "vocab_size": tokenizer_files.BPE_VOCAB,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49_407,
}
_CLIP_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_SIGLIP_TEXT = (
    _CLIP_TEXT
    | _SIGLIP
    | {
        "vocab_size": 32_000,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "max_position_embeddings": 64,
    }
)
_SIGLIP_VISION = _CLIP_VISION | _SIGLIP | {"patch_size": 16}

# Settings that every config of transformers may hold and no CLIP or SigLIP reads in its forward pass.
_IGNORED = [
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "add_cross_attention",
    "architectures",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "logit_scale_init_value",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "projection_dim",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
]


def recognises(path: pathlib.Path) -> bool:
    """Whether `path` is a folder with a config of transformers for a model of image and text."""
    return (path / CONFIG).is_file() and "model_type" in read_json(path / CONFIG)


def read(path: pathlib.Path) -> FLIP:
    """The model in the folder `path`, with the tokenizer whose file is there.

    That is merges.txt or tokenizer.json of a CLIP, spiece.model of a SigLIP.
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
    make = _clip if kind == "clip" else _siglip
    model = make(config, tensors, path)
    load(model, entries(model), tensors, str(path))
    return model


def write(model: FLIP, path: pathlib.Path):
    """Writes a folder that `from_pretrained` loads: of SiglipModel if the model has a logit bias, else
    of CLIPModel.

    Raises:
        ConfigurationError: that class can't express the model; lists every option that it has no word for.
    """
    siglip = model.init_logit_bias is not None
    name = "SiglipModel" if siglip else "CLIPModel"
    refuse(_problems(model, siglip), f"transformers' {name} can't express this model")
    path.mkdir()
    tensors = logit_scale(model, dump(model, entries(model)))
    write_safetensors(tensors, {"format": "pt"}, path / TENSORS)
    write_json(_siglip_config(model) if siglip else _clip_config(model), path / CONFIG)
    write_json(_preprocessor_config(model, name), path / PREPROCESSOR)


def entries(model: FLIP) -> list[Entry]:
    """The tensors of a CLIPModel, or of a SiglipModel if there is a logit bias, and what each one holds."""
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


# Reading ----------------------------------------------------------------------------------------


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


def _clip(config, tensors, path):
    vision, text = (
        _tower(config, f"{tower}_config", defaults)
        for tower, defaults in (("vision", _CLIP_VISION), ("text", _CLIP_TEXT))
    )
    dim = config.whole("projection_dim", 512)
    _close(config)
    eos = text.take("eos_token_id")
    if type(eos) is not int:
        raise ConfigurationError(f"{text.source}: eos_token_id={eos!r}; expected an integer")
    image = _image(
        vision,
        tensors,
        class_token=True,
        patch_bias=False,
        pre_norm=True,
        pool="class",
        final_norm="after_pool",
    )
    text = _text(text, causal=True, pool="eos", eos=None if eos == _LEGACY_EOS else eos)
    tokenizer = tokenizer_files.byte_pairs(path, text.vocab)
    limit = logit_scale_limit(tensors.get("logit_scale", np.zeros(1)))
    return _flip(image, text, tokenizer, path, "clip", dim=dim, max_logit_scale=limit)


def _siglip(config, tensors, path):
    vision = _tower(config, "vision_config", _SIGLIP_VISION)
    text = _tower(config, "text_config", _SIGLIP_TEXT)
    _close(config)
    vision.require("vision_use_head", True)
    text.ignore("eos_token_id")
    image = _image(vision, tensors, class_token=False, pool="map")
    dim = text.take("projection_size")
    text = _text(text, causal=False, pool="last")
    tokenizer = tokenizer_files.sentence_piece(path)
    return _flip(
        image,
        text,
        tokenizer,
        path,
        "siglip",
        dim=dim or text.dim,
        image_head=None,
        text_head="affine",
        max_logit_scale=None,
        # What the stored bias began as is nobody's knowledge; SigLIP's own began at -10.
        init_logit_bias=-10.0,
    )


def _flip(image, text, tokenizer: Tokenizer | None, path, kind, **options):
    found = _preprocessing(path, kind, image.image_size)
    return FLIP(image, text, mask_ratio=0.0, preprocessing=found, tokenizer=tokenizer, **options)


def _tower(config, name, defaults):
    """A tower's config over its defaults; `name`_dict, of older files, goes before both."""
    values, older = config.section(name, {}).rest(), config.section(f"{name}_dict", {}).rest()
    over = {**defaults, **older} if older else {}
    return Config({**defaults, **values, **over}, config.source, f"{name}.")


def _stack(config):
    """Arguments of a tower that both have; closes its config."""
    config.require("attention_dropout", 0.0, 0)
    config.ignore("model_type")
    options = {
        "dim": config.whole("hidden_size"),
        "depth": config.whole("num_hidden_layers", most=MOST_LAYERS),
        "heads": config.whole("num_attention_heads"),
        "mlp_dim": config.whole("intermediate_size"),
        "norm_epsilon": config.number("layer_norm_eps", 1e-5),
        "activation": config.choice("hidden_act", "quick_gelu", _ACTIVATIONS),
    }
    _close(config)
    return options


def _close(config):
    config.require("pruned_heads", None, {})
    config.ignore(*_IGNORED)
    config.close()


def _image(config, tensors, class_token, **options):
    config.require("num_channels", 3)
    size, patch = config.whole("image_size"), config.whole("patch_size")
    options |= _stack(config)
    table = tensors.get("vision_model.embeddings.position_embedding.weight", np.ones((1, 1)))
    if class_token:
        options |= position_options(table, (size // patch, size // patch))
    else:
        options["positions"] = "learned"
    return ViT(size, patch, class_token=class_token, **options)


def _text(config, **options):
    vocab, length = config.whole("vocab_size"), config.whole("max_position_embeddings")
    return TextTransformer(vocab, length, **_stack(config), **options)


def _preprocessing(path, kind, size) -> Preprocessing:
    """As the folder says it, or as the model's own processor does it by default."""
    clip = kind == "clip"
    mean, std = STATISTICS["clip" if clip else "half"]
    values, source = _processor(path)
    if values is None:
        mode = "shortest" if clip else "squash"
        return preprocessing(mean, std, "bicubic", mode, "transformers")
    config = Config(values, source)
    config.ignore("_valid_processor_keys", "do_convert_rgb", "feature_extractor_type")
    config.ignore("image_processor_type", "processor_class", "valid_processor_keys")
    # How tensors lie, and what `size` tells by its names
    config.ignore("data_format", "input_data_format", "default_to_square")
    config.require("do_pad", False)
    for step in ("do_resize", "do_rescale", "do_normalize"):
        config.require(step, True)
    config.require("rescale_factor", 1 / 255)
    found = config.numbers("image_mean", mean), config.numbers("image_std", std)
    resample = config.require("resample", 3, 2)
    crop = config.require("do_center_crop", clip, not clip)
    resized, cut = config.take("size", size), config.take("crop_size", size)
    config.close()
    sides = _sides(resized) | (_sides(cut) if crop else set())
    shortest = isinstance(resized, int) or "shortest_edge" in resized
    if sides != {size} or shortest != crop:
        raise ConfigurationError(
            f"Expected pictures of {size} pixels, resized by their shorter side and cut, or resized to a "
            f"square. Received: size={resized}, do_center_crop={crop}, crop_size={cut} in {source}"
        )
    mode = "shortest" if crop else "squash"
    return preprocessing(*found, _RESAMPLE[resample], mode, "transformers")


def _processor(path):
    """The settings of the image processor, without its nulls, and the file that has them; (None, "") is
    none.

    transformers 5 has them in a part of the whole processor's, which it reads first.
    """
    values, source = None, ""
    if (path / PROCESSOR).is_file():
        values, source = read_json(path / PROCESSOR).get("image_processor"), str(path / PROCESSOR)
    if values is None and (path / PREPROCESSOR).is_file():
        values, source = read_json(path / PREPROCESSOR), str(path / PREPROCESSOR)
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if value is not None}
    return values, source


def _sides(size) -> set:
    """The numbers of pixels in a size of transformers: an int or a table."""
    if isinstance(size, dict):
        return {side for side in size.values() if side is not None}
    return {size}


# Writing ----------------------------------------------------------------------------------------


def _problems(model, siglip):
    """What transformers has no word for; a line for each option."""
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
        if tower.activation not in _ACTIVATIONS.values():
            problems.append(f"{role}.activation={tower.activation!r}: unknown there")
        if tower.layer_scale is not None:
            problems.append(f"{role}.layer_scale={tower.layer_scale}: its blocks have none")
    if model.preprocessing.interpolation not in INTERPOLATIONS:
        problems.append(f"preprocessing.interpolation: expected one of {INTERPOLATIONS}")
    return problems


def _stack_config(tower):
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
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


def _clip_config(model):
    config = _towers_config(model, "clip")
    eos = model.text.eos
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": _LEGACY_EOS}
    if eos is not None:
        ids = {"bos_token_id": max(eos - 1, 0), "pad_token_id": eos, "eos_token_id": eos}
    config["text_config"] |= {**ids, "projection_dim": model.dim}
    config["vision_config"]["projection_dim"] = model.dim
    return {"architectures": ["CLIPModel"], "projection_dim": model.dim, **config}


def _siglip_config(model):
    config = _towers_config(model, "siglip")
    vocab = model.text.vocab
    ids = {"bos_token_id": vocab - 2, "eos_token_id": vocab - 1, "pad_token_id": model.text.padding}
    config["text_config"] |= {**ids, "projection_size": model.dim}
    config["vision_config"]["vision_use_head"] = True
    return {"architectures": ["SiglipModel"], **config}


def _preprocessor_config(model, name):
    mean, std = model.preprocessing.statistics()
    side, crop = model.image.image_size, model.preprocessing.resize_mode == "shortest"
    square = {"height": side, "width": side}
    numbers = {name: number for number, name in _RESAMPLE.items()}
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
