"""What a contrastive loss is."""

from flipkit.registry import Configurable


class Loss(Configurable):
    """A loss over a batch of pairs: `loss(image, text, scale) -> float32 scalar`.

    `image` and `text` are unit vectors (batch, dim), row i of one belonging to row i of the other;
    `scale` is the learned inverse temperature.

    Attributes:
        needs: further arguments that the caller passes by these names: `("logit_bias",)`, an attribute of
            the model, calls `loss(image, text, scale, logit_bias=...)`; "inputs" is the batch, "targets"
            what `targets` returned.
        variables: arrays that the loss reads and training does not change, such as a teacher's weights;
            compiled programs take them as inputs.
    """

    needs: tuple[str, ...] = ()
    variables: list = []

    def prepare(self, model):
        """Called with the model by `compile`: raise here if the loss does not fit it, or load files."""

    def targets(self, inputs) -> dict:
        """What the loss compares embeddings with, {name: array (batch, ...)}, from a batch or a part of it.

        Only a loss whose `needs` have "targets" is asked. Training does not pass a gradient to them.
        """
        return {}

    def __call__(self, image, text, scale):
        raise NotImplementedError(f"{type(self).__name__} defines no __call__(image, text, scale)")
