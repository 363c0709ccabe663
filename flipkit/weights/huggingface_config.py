"""Hugging Face's configs of CLIP and SigLIP, read key by key into a FLIP."""

import numpy as np

from flipkit.encoders import TextTransformer, ViT
from flipkit.errors import ConfigurationError
from flipkit.models.flip import FLIP
from flipkit.preprocessing import STATISTICS, Preprocessing
from flipkit.tokenizers import Tokenizer
from flipkit.weights import tokenizer_files
from flipkit.weights.foreign import MOST_LAYERS, Config, preprocessing, read_json
from flipkit.weights.torch_layout import logit_scale_limit, position_options

PROCESSOR, PREPROCESSOR = "processor_config.json", "preprocessor_config.json"
ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_LEGACY_EOS = 2  # in older configs of CLIP, in whose vocabulary the end is the largest id

# The configs' own defaults, as of transformers 5, for keys that a file leaves out.
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


def clip(config, tensors, path):
    """The FLIP of a CLIPModel's config, not built."""
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


def siglip(config, tensors, path):
    """The FLIP of a SiglipModel's config, not built."""
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
        # No file stores what the bias began as; SigLIP's own began at -10.
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
    """The arguments that both towers share; closes the tower's config."""
    config.require("attention_dropout", 0.0, 0)
    config.ignore("model_type")
    options = {
        "dim": config.whole("hidden_size"),
        "depth": config.whole("num_hidden_layers", most=MOST_LAYERS),
        "heads": config.whole("num_attention_heads"),
        "mlp_dim": config.whole("intermediate_size"),
        "norm_epsilon": config.number("layer_norm_eps", 1e-5),
        "activation": config.choice("hidden_act", "quick_gelu", ACTIVATIONS),
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
    """As the folder's files have it, or as the model's own processor does it by default."""
    clip = kind == "clip"
    mean, std = STATISTICS["clip" if clip else "half"]
    values, source = _processor(path)
    if values is None:
        mode = "shortest" if clip else "squash"
        return preprocessing(mean, std, "bicubic", mode, "transformers")
    config = Config(values, source)
    config.ignore("_valid_processor_keys", "do_convert_rgb", "feature_extractor_type")
    config.ignore("image_processor_type", "processor_class", "valid_processor_keys")
    # The layout of tensors, and the names in `size`
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
    return preprocessing(*found, RESAMPLE[resample], mode, "transformers")


def _processor(path):
    """The settings of the image processor, without its nulls, and the file that has them; (None, "") if
    there are none.

    transformers 5 has them in a part of the whole processor's file, which it reads first.
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
