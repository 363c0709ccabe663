"""What a run will cost and how it will go, told from shapes: nothing is trained and nothing allocated."""

import math
from typing import Any

import jax  # traces programs without running them, for which Keras has no word
import keras
from jax.extend import core
from keras import ops

from flipkit.encoders import shape_only
from flipkit.errors import ConfigurationError, FlipkitError
from flipkit.layers import Attention
from flipkit.sizes import sides

RATIOS = (0.0, 0.5, 0.75)  # those of the paper's Table 1a
MASKS = ("mask_ratio", "text_mask_ratio")
_ROWS = 2  # of a traced batch, divided out again: one row alone might be squeezed away


def plan(run) -> dict:
    """A run in numbers, each from its own model, schedules and phases; ready for JSON.

    Args:
        run: `flipkit.Run`.

    Returns:
        `parameters`; `towers`, by name, each with its encoder, parameters and tokens; `masking`, a list
        of `Towers.masking` at mask ratios 0, 0.5, 0.75 and the run's own, of pictures of the tower's own
        size; `data` and its samples, where they can be counted; `phases`, in order, each at its image
        size; `flops`, of all phases.
    """
    towers = Towers(run.model)
    sized = {None: towers}  # by image size
    samples, unknown = None, None
    try:
        samples = run.count_data()
    except FlipkitError as problem:
        unknown = str(problem)
    ratios, phases = {name: getattr(run.model, name, 0.0) for name in MASKS}, []
    size = getattr(run.model, "image_size", None)
    for phase in run.phases:
        told = {name: getattr(phase, name) for name in MASKS}
        ratios |= {name: ratio for name, ratio in told.items() if ratio is not None}
        size = phase.image_size or size
        if size not in sized:
            sized[size] = Towers(run.model, size)
        phases.append(_phase(phase, sized[size], *ratios.values()))
        phases[-1]["epochs"] = samples and phase.samples / samples
    own = {phase["mask_ratio"] for phase in phases}
    return {
        "parameters": towers.parameters,
        "towers": {name: towers.told(name) for name in towers.encoders},
        "masking": [towers.masking(r) for r in sorted({*RATIOS, *own} if towers.masks else {0.0})],
        "data": {"samples": samples, "unknown": unknown},
        "phases": phases,
        "flops": sum(phase["flops"] for phase in phases),
    }


def _phase(phase, towers, mask_ratio, text_mask_ratio):
    schedule = phase.schedule
    forward = towers.masking(mask_ratio, text_mask_ratio)
    training = towers.training(mask_ratio, text_mask_ratio)
    warmup = getattr(schedule, "warmup", None)  # a plugin's schedule may have none, and no peak
    return {
        "pairs": phase.pairs,
        "batch_size": phase.batch_size,
        "steps": phase.steps,
        "samples": phase.samples,
        "peak_rate": getattr(schedule, "peak", None),
        "warmup_steps": None if warmup is None else int(warmup // phase.batch_size),
        "mask_ratio": mask_ratio,
        "text_mask_ratio": text_mask_ratio,
        "image_size": towers.image_size,
        "tokens": forward["tokens"],
        "forward_flops_per_pair": forward["flops"],
        "training_flops_per_pair": training,
        "flops": phase.samples * sum(training.values()),
    }


class Towers:
    """The encoders of a model, image and text or one of them, in parameters, tokens and FLOPs.

    FLOPs are those of matrix products and convolutions. The loss's, over a whole batch, are not among
    them: 6 * batch * dim a pair, a hundredth of a step at the paper's sizes.

    Args:
        model: `flipkit.FLIP` or another with encoders, of which a copy without memory is made.
        image_size: of the pictures, as in `flipkit.FLIP`; None is the tower's own.
    """

    def __init__(self, model, image_size=None):
        self.model = shape_only(model)
        self.image_size = image_size or model.image.image_size
        if hasattr(model, "image_size"):
            self.model.image_size = image_size
        for layer in self.model._flatten_layers():
            if isinstance(layer, Attention):
                layer.impl = "einsum"  # the same products as the fused ones, on every machine
        names = [name for name in ("image", "text") if hasattr(model, name)]
        self.encoders = {name: getattr(self.model, name) for name in names}
        self._forward, self._training = {}, {}  # traced once for a tower and what it keeps

    @property
    def parameters(self) -> int:
        """Numbers in the model's weights, learned and frozen."""
        return _size(self.model) - 1  # the count of steps is none

    @property
    def masks(self) -> bool:
        """Whether training can drop patches."""
        return hasattr(self.model, "mask_ratio") and bool(getattr(self.model.image, "grid", None))

    def told(self, tower) -> dict:
        """Parameters and tokens of a tower."""
        encoder, head = self.encoders[tower], getattr(self.model, f"{tower}_projection", None)
        found = {
            "encoder": type(encoder).__name__,
            "parameters": _size(encoder),
            "with_projection": _size(encoder) + (_size(head) if head else 0),
            "tokens": self.tokens(tower, 0.0),
        }
        fixed = getattr(encoder, "position", None)
        if fixed is not None and not isinstance(fixed, keras.Variable):
            # The official code keeps fixed positions, and a row of zeros for the class token, among its
            # parameters, and Table 9 counts them.
            rows = len(fixed) + _class_tokens(encoder)
            found["with_fixed_positions"] = _size(encoder) + rows * fixed.shape[-1]
        return found

    def kept(self, tower, ratio) -> int | None:
        """Patches or words that training keeps at a mask ratio; None of an encoder without a grid."""
        if tower == "text":
            self.model.text_mask_ratio = ratio
            return self.model.kept_tokens
        if self.masks:
            self.model.mask_ratio = ratio
            return self.model.kept_patches
        return math.prod(self.grid) if self.grid else None

    @property
    def grid(self) -> tuple[int, int] | None:
        """(rows, columns) of a picture's patches; None of an encoder that tells none."""
        return getattr(self.model, "grid", getattr(self.model.image, "grid", None))

    def tokens(self, tower, ratio) -> int | None:
        """Tokens that pass through the blocks: those kept, and the image tower's class token."""
        kept = self.kept(tower, ratio)
        return None if kept is None else kept + _class_tokens(self.encoders[tower])

    def forward(self, tower, ratio=0.0) -> int:
        """FLOPs of an encoder for one image or text."""
        kept = self.kept(tower, ratio)
        if (tower, kept) not in self._forward:
            inputs = self._patches if tower == "image" else self._words
            resized = tower == "image" and self.grid != getattr(self.model.image, "grid", None)
            static: dict[str, Any] = {"grid": self.grid} if resized else {}
            self._forward[tower, kept] = _flops_of_layer(
                self.encoders[tower], *inputs(kept), **static
            )
        return self._forward[tower, kept]

    def training(self, ratio=0.0, text_ratio=0.0) -> dict[str, int]:
        """FLOPs of training on a pair, forward and backward, by tower: with what belongs to it, such as
        its projection or a reconstruction, and with what `remat` computes again.
        """
        found = {}
        for tower, share in self._ratios(ratio, text_ratio):
            kept = self.kept(tower, share)  # which sets the mask, too
            if (tower, kept) not in self._training:
                x = self._pixels("uint8") if tower == "image" else self._words(None)[0]
                self._training[tower, kept] = _flops_of_layer(self.model, {tower: x}, training=True)
            found[tower] = self._training[tower, kept]
        return found

    def masking(self, ratio, text_ratio=0.0) -> dict:
        """A forward pass at a mask ratio, and its ratio to one without masks.

        flipkit embeds the patches that it keeps. The official code embeds all of them and drops some
        afterwards, which is what the paper's figures count: `official_image_ratio`, `official_ratio`.
        """
        ratios = dict(self._ratios(ratio, text_ratio))
        costs = {tower: self.forward(tower, share) for tower, share in ratios.items()}
        whole = {tower: self.forward(tower) for tower in ratios}
        dropped = (self.kept("image", 0.0) or 0) - (self.kept("image", ratio) or 0)
        embedding = dropped and dropped * self._embedding()
        flops, unmasked = sum(costs.values()), sum(whole.values())
        return {
            "mask_ratio": ratio,
            "tokens": {tower: self.tokens(tower, share) for tower, share in ratios.items()},
            "flops_by_tower": costs,
            "flops": flops,
            "image_ratio": costs["image"] / whole["image"],
            "ratio": flops / unmasked,
            "official_image_ratio": (costs["image"] + embedding) / whole["image"],
            "official_ratio": (flops + embedding) / unmasked,
        }

    def _ratios(self, ratio, text_ratio):
        return zip(self.encoders, (ratio, text_ratio), strict=False)  # which may lack a text tower

    def _embedding(self):
        """FLOPs of embedding a patch."""
        layer = getattr(self.model.image, "patch_embed", None)
        dense = isinstance(layer, keras.layers.Dense)
        return _flops_of_layer(layer, self._patches(1)[0]) if dense else 0

    # Inputs, as shapes

    def _pixels(self, dtype):
        height, width = sides(self.image_size)
        return jax.ShapeDtypeStruct((_ROWS, height, width, 3), dtype)

    def _patches(self, kept):
        if kept is None or kept == math.prod(self.grid or ()):
            return self._pixels("float32"), {}
        pixels = 3 * self.model.image.patch_size**2
        patches = jax.ShapeDtypeStruct((_ROWS, kept, pixels), "float32")
        return patches, {"ids": jax.ShapeDtypeStruct((_ROWS, kept), "int32")}

    def _words(self, kept):
        length = self.model.text.length
        ids = jax.ShapeDtypeStruct((_ROWS, length), "int32")
        if kept in (None, length):
            return ids, {}
        return ids, {"keep": jax.ShapeDtypeStruct((_ROWS, kept), "int32")}


def _class_tokens(encoder):
    return int(bool(getattr(encoder, "class_token", False)))


def _size(layer):
    """Numbers in a layer's weights, learned and frozen."""
    return sum(math.prod(variable.shape) for variable in layer.weights)


def _flops_of_layer(layer, x, rest=None, *, training=False, **static):
    """FLOPs of a layer for one row of its input; `training` adds the gradient of what it learns."""
    learned, others = (
        [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in variables]
        for variables in (layer.trainable_variables, layer.non_trainable_variables)
    )

    def total(learned, others, x, rest):
        outputs, _ = layer.stateless_call(learned, others, x, **rest, **static, training=training)
        return sum(ops.sum(ops.cast(output, "float32")) for output in jax.tree.leaves(outputs))

    function = jax.value_and_grad(total) if training else total
    return flops(function, learned, others, x, rest or {}) // _ROWS


# Counting ---------------------------------------------------------------------------------------


def flops(function, *inputs) -> int:
    """FLOPs of the matrix products and convolutions in `function(*inputs)`; a multiply-add is two.

    The function is traced and not run, so that this counts what is computed, whoever wrote it: a
    backward pass, blocks that `remat` computes again, each round of a scan, the costliest branch of
    a condition. Sums, norms, softmax and activations are not counted, as usual.

    Args:
        function: takes and returns arrays.
        inputs: `jax.ShapeDtypeStruct`, in any nesting, or arrays.

    Raises:
        ConfigurationError: there are products inside a loop whose number of rounds no shape tells.
    """
    return _count(jax.make_jaxpr(function)(*inputs).jaxpr)


def _count(program):
    return sum(_flops_of_equation(equation) for equation in program.eqns)


def _flops_of_equation(equation):
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        left, right = (variable.aval.shape for variable in equation.invars[:2])
        outputs = equation.outvars[0].aval.size
        if name == "dot_general":
            [contracted, _], _ = params["dimension_numbers"]
            return 2 * outputs * math.prod(left[axis] for axis in contracted)
        features = right[params["dimension_numbers"].rhs_spec[0]]
        zeros = math.prod(params["lhs_dilation"])  # in the gradient of a convolution with strides
        return 2 * outputs * math.prod(right) // features // zeros
    counts = [_count(program) for value in params.values() for program in _programs(value)]
    if name == "cond":
        return max(counts)
    if name == "scan":
        return params["length"] * sum(counts)
    if name in ("while", "pallas_call") and any(counts):
        raise ConfigurationError(
            f"Can't count the matrix products in a {name!r}: no shape tells its rounds. Those of a "
            "scan, and of a loop in Python, can be counted."
        )
    return sum(counts)


def _programs(value):
    """The programs in a parameter of an equation."""
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    return [p for item in value for p in _programs(item)] if isinstance(value, tuple) else []
