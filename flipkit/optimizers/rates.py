"""Learning rates by layer."""

from flipkit.errors import ConfigurationError


def layer_decay(encoder, decay: float, tower: str = "image") -> dict[str, float]:
    """Rates that fall towards an encoder's input, as `AdamW(rate_scale=...)` takes them.

    decay^(depth - i) for block i, decay^(depth + 1) before the blocks (patch embedding, class token,
    positions), 1 after them and for all other variables: MAE's fine-tuning, 0.75 in FLIP's
    (Table 12).

    Args:
        encoder: one of flipkit's towers, or another with a `depth` and blocks named `block_00`, ...
        decay: factor from a block to the one before it, in (0, 1].
        tower: the encoder's role in its model.
    """
    if not isinstance(decay, (int, float)) or not 0 < decay <= 1:
        raise ConfigurationError(f"Expected a factor in (0, 1]. Received: {decay=}")
    depth = encoder.depth
    blocks = {f"{tower}/block_{i:02d}": decay ** (depth - i) for i in range(depth)}
    after = ("norm", "pool") if getattr(encoder, "pool", None) == "map" else ("norm",)
    return {tower: decay ** (depth + 1), **blocks, **{f"{tower}/{part}": 1.0 for part in after}}
