"""The hooks through which a package adds to flipkit, and the marker its functions carry.

A plugin is a module that an entry point of the group `flipkit` names:

    [project.entry-points.flipkit]
    block_masker = "flipkit_block_masker"

and a hook is a marked function in it, which returns names and what they stand for:

    @flipkit.hookimpl
    def flipkit_maskers():
        return {"block": BlockMasker}

What a name stands for is a class or a factory that can be called without arguments, or a string
`"module:attribute"`, imported only when somebody asks for that name. Hooks are called once, when
any name is first looked up. Neither they nor the import of their module may start a JAX backend
(make an array, a random key, a built layer): flipkit places devices later.

A plugin may say the oldest and the newest hook API it works with: `flipkit_api = (1, 1)`.

A hook, or an argument of one, that is to go says so for two minor versions before it does:

    @hookspec(warn_on_impl=Deprecated("flipkit 0.4 calls it no more", "Implement flipkit_towers"))
    @hookspec(warn_on_impl_args={"grid": Deprecated("flipkit 0.4 gives no grid", "Leave it out")})

The plugins that implement the one, or ask for the other, work on, and their authors are told.
"""

# A specification has no body.
# pyright: reportReturnType=false

from typing import Any

import pluggy

# Goes up when a plugin written for the old number would break. Hooks only ever gain arguments,
# which pluggy passes to those who ask for them, so that it seldom does.
FLIPKIT_API = 1


class Deprecated(DeprecationWarning):
    """What a specification has to say of a plugin: what changes, and what its author should do."""

    def __init__(self, reason, fix):
        super().__init__(f"{reason}. Fix: {fix}.")
        self.reason, self.fix = reason, fix


hookspec = pluggy.HookspecMarker("flipkit")
hookimpl = pluggy.HookimplMarker("flipkit")


@hookspec
def flipkit_maskers() -> dict[str, Any]:
    """Offer maskers: which patches or words a tower sees. Asked when a masker is named.

    An entry makes a `flipkit.Masker`. After this, `FLIP(..., masker="block")` works:

        return {"block": BlockMasker}
    """


@hookspec
def flipkit_encoders() -> dict[str, Any]:
    """Offer image and text towers. Asked when an encoder is named.

    An entry makes a `keras.layers.Layer` that fulfils the encoder's contract, at its default size
    when called without arguments. One class may serve several names:

        return {"vit_l16": functools.partial(flipkit.ViT, patch_size=16, dim=1024, depth=24)}
    """


@hookspec
def flipkit_datasets() -> dict[str, Any]:
    """Offer sources of samples. Asked when a dataset is named: `data=captioned_shapes`.

    An entry makes a `flipkit.Dataset`: `len(data)` and `data[i] -> {"image", "texts", "id", ...}`.

        return {"my_shards": "my_package.data:MyShards"}
    """


@hookspec
def flipkit_schedules() -> dict[str, Any]:
    """Offer learning rates over samples. Asked when a schedule is named.

    An entry makes a `flipkit.Schedule`.

        return {"inverse_sqrt": InverseSqrt}
    """


@hookspec
def flipkit_tokenizers() -> dict[str, Any]:
    """Offer tokenizers, text to ids and back. Asked when a tokenizer is named.

    An entry makes a `flipkit.Tokenizer`.

        return {"gemma": "my_package.tokens:Gemma"}
    """


@hookspec
def flipkit_optimizers() -> dict[str, Any]:
    """Offer optimisers. Asked when an optimiser is named.

    An entry makes a `keras.optimizers.Optimizer` whose `get_config` is complete.

        return {"lion": keras.optimizers.Lion}
    """


@hookspec
def flipkit_recipes() -> dict[str, Any]:
    """Offer recipes: descriptions of a run. Asked when `python -m flipkit.run` is given a name.

    An entry leads to a function that returns a `flipkit.Run`: the function itself,
    `"module:function"`, or a `"module"` or a path to a `.py` file, whose function is then `recipe`.

        return {"flip_birds": "my_package.birds", "birds_b16": "my_package.birds:base"}
    """


@hookspec
def flipkit_losses() -> dict[str, Any]:
    """Offer contrastive losses. Asked when a loss is named.

    An entry makes an object that fulfils the contract of `flipkit.ContrastiveLoss`.

        return {"hinge": HingeLoss}
    """


@hookspec
def flipkit_models() -> dict[str, Any]:
    """Offer models that run. Asked when a model is named, and before a file is read that may hold one.

    An entry makes a `flipkit.models.Trainable`.

        return {"simclr": SimCLR}
    """


@hookspec
def flipkit_evaluators() -> dict[str, Any]:
    """Offer evaluators. Asked when one is named: `flipkit evaluate MODEL spread data=...`.

    An entry makes an object that maps a model to `{metric: number}` when called. It takes `data` and what
    else can be set as arguments, and keeps them as `flipkit.registry.Configurable` does. A method
    `check(model)`, if it has one, raises before training what calling it would certainly raise.

        return {"spread": Spread}
    """


@hookspec
def flipkit_formats() -> dict[str, Any]:
    """Offer formats of weights. Asked when a model is read or written.

    An entry is `"module"`, or leads to an object, that has `recognises(path) -> bool`, `read(path)`, which
    returns a built model, and, if the format can be written, `write(model, path)`, where nothing is at
    `path` yet. Built-in formats are asked first which of them recognises a path.

        return {"npz": "my_package.npz"}
    """


@hookspec
def flipkit_commands() -> dict[str, Any]:
    """Offer commands: `flipkit embed ...`. Asked when flipkit does not have the command itself.

    An entry is a function that takes the words after the command's name, a list, and returns the exit
    code or None. The first line of its docstring is what `flipkit --help` prints. A
    `flipkit.FlipkitError` is printed without a traceback, and the exit code is 2. `flipkit --help` imports
    only the plugins whose file names this hook.

        return {"embed": "my_package.command:embed"}
    """
