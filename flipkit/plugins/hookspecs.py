"""The hooks through which a package adds components to flipkit, and the marker of their functions.

A plugin is a module that an entry point of the group `flipkit` names:

    [project.entry-points.flipkit]
    block_masker = "flipkit_block_masker"

and a hook is a marked function in it, which returns {name: component}:

    @flipkit.hookimpl
    def flipkit_maskers():
        return {"block": BlockMasker}

A component is a class or a factory that can be called without arguments, or a string
`"module:attribute"`, imported only when that name is looked up. flipkit calls hooks once, at the
first look-up of any name. Neither they nor the import of their module may start a JAX backend
(make an array, a random key, a built layer): flipkit places devices later.

A plugin may declare the oldest and the newest hook API it works with: `flipkit_api = (1, 1)`.

A hook, or an argument of one, is declared deprecated for two minor versions before it is removed:

    @hookspec(warn_on_impl=Deprecated("flipkit 0.4 calls it no more", "Implement flipkit_towers"))
    @hookspec(warn_on_impl_args={"grid": Deprecated("flipkit 0.4 passes no grid", "Leave it out")})

Plugins that implement such a hook, or take such an argument, still work, with a warning to their authors.
"""

# A specification has no body.
# pyright: reportReturnType=false

from typing import Any

import pluggy

# The number rises when a plugin written for the old one would break. Hooks only gain arguments, which
# pluggy passes to functions that name them, so that it seldom rises.
FLIPKIT_API = 1


class Deprecated(DeprecationWarning):
    """The warning of a deprecated specification: the change, and what the plugin's author should do."""

    def __init__(self, reason, fix):
        super().__init__(f"{reason}. Fix: {fix}.")
        self.reason, self.fix = reason, fix


hookspec = pluggy.HookspecMarker("flipkit")
hookimpl = pluggy.HookimplMarker("flipkit")


@hookspec
def flipkit_maskers() -> dict[str, Any]:
    """Offer maskers: which patches or words a tower sees. Called when a masker is named.

    An entry makes a `flipkit.Masker`. After this, `FLIP(..., masker="block")` works:

        return {"block": BlockMasker}
    """


@hookspec
def flipkit_encoders() -> dict[str, Any]:
    """Offer image and text towers. Called when an encoder is named.

    An entry makes a `keras.layers.Layer` that fulfils the encoder's contract, at its default size
    when called without arguments. One class may serve several names:

        return {"vit_l16": functools.partial(flipkit.ViT, patch_size=16, dim=1024, depth=24)}
    """


@hookspec
def flipkit_datasets() -> dict[str, Any]:
    """Offer sources of samples. Called when a dataset is named: `data=captioned_shapes`.

    An entry makes a `flipkit.Dataset`: `len(data)` and `data[i] -> {"image", "texts", "id", ...}`.

        return {"my_shards": "my_package.data:MyShards"}
    """


@hookspec
def flipkit_schedules() -> dict[str, Any]:
    """Offer learning rates over samples. Called when a schedule is named.

    An entry makes a `flipkit.Schedule`.

        return {"inverse_sqrt": InverseSqrt}
    """


@hookspec
def flipkit_tokenizers() -> dict[str, Any]:
    """Offer tokenizers, text to ids and back. Called when a tokenizer is named.

    An entry makes a `flipkit.Tokenizer`.

        return {"gemma": "my_package.tokens:Gemma"}
    """


@hookspec
def flipkit_optimizers() -> dict[str, Any]:
    """Offer optimisers. Called when an optimiser is named.

    An entry makes a `keras.optimizers.Optimizer` whose `get_config` is complete.

        return {"lion": keras.optimizers.Lion}
    """


@hookspec
def flipkit_recipes() -> dict[str, Any]:
    """Offer recipes: descriptions of a run. Called when `flipkit run` gets a name.

    An entry leads to a function that returns a `flipkit.Run`: the function itself,
    `"module:function"`, or a `"module"` or a path to a `.py` file, whose function is then `recipe`.

        return {"flip_birds": "my_package.birds", "birds_b16": "my_package.birds:base"}
    """


@hookspec
def flipkit_losses() -> dict[str, Any]:
    """Offer contrastive losses. Called when a loss is named.

    An entry makes an object that fulfils the contract of `flipkit.ContrastiveLoss`.

        return {"hinge": HingeLoss}
    """


@hookspec
def flipkit_models() -> dict[str, Any]:
    """Offer models. Called when a model is named, and before a file is read that may hold one.

    An entry makes a `flipkit.models.Trainable`.

        return {"simclr": SimCLR}
    """


@hookspec
def flipkit_evaluators() -> dict[str, Any]:
    """Offer evaluators. Called when one is named: `flipkit evaluate MODEL spread data=...`.

    An entry makes an object that maps a model to `{metric: number}` when called. Its constructor takes
    `data` and its other settings, and keeps them as `flipkit.registry.Configurable` does. A method
    `check(model)`, if there is one, raises before training what calling the object would raise. Metrics
    called `top1`, `recall@1`, `..._accuracy` or `..._share` are shown in percent.

        return {"spread": Spread}
    """


@hookspec
def flipkit_formats() -> dict[str, Any]:
    """Offer formats of weights. Called when a model is read or written.

    An entry is `"module"`, or leads to an object, that has `recognises(path) -> bool`, `read(path)`, which
    returns a built model, and, if the format can be written, `write(model, path)`, where nothing is at
    `path` yet. flipkit tries its built-in formats on a path first.

        return {"npz": "my_package.npz"}
    """


@hookspec
def flipkit_commands() -> dict[str, Any]:
    """Offer commands: `flipkit embed ...`. Called when a command is named that flipkit lacks.

    An entry is a function that takes the words after the command's name, a list, and returns the exit
    code or None. `flipkit --help` prints the first line of its docstring, `flipkit NAME --help` all of
    it. A `flipkit.FlipkitError` is printed without a traceback, and the exit code is 2.
    `flipkit --help` imports only the plugins whose file names this hook.

        return {"embed": "my_package.command:embed"}
    """
