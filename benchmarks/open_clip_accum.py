"""How far open_clip's `--accum-freq` is from the gradient of the whole batch: what caching.py asks of it.

Runs in an environment of its own (`make .venv-peer`), which has open_clip and torch and not flipkit.
Prints a line of JSON for each number of micro-batches: the distance of the towers' gradient, as a share of
its norm, as open_clip draws masks and with the masks of its first pass in the second one too.
"""

import contextlib
import json
import sys
import unittest.mock

import open_clip  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]
from open_clip.loss import ClipLoss  # pyright: ignore[reportMissingImports]


@contextlib.contextmanager
def numbers_of(stream, first):
    """Inside it masks of rows from `first` on are functions of (stream, row), not of the calls so far."""
    randn = torch.randn

    def drawn(rows, tokens):
        seeds = (torch.Generator().manual_seed(1_000 * stream + first + i) for i in range(rows))
        return torch.stack([randn(tokens, generator=seed) for seed in seeds])

    with unittest.mock.patch("open_clip.transformer.torch.randn", drawn):
        yield


def main():
    """Compares gradients of a model that the first argument describes."""
    size = json.loads(sys.argv[1])
    torch.manual_seed(0)
    towers = {"width": size["dim"], "layers": size["depth"]}
    vision = {
        "image_size": size["pixels"],
        "patch_size": size["patch"],
        "patch_dropout": size["mask_ratio"],
    }
    text = {"context_length": size["length"], "vocab_size": size["vocab"], "heads": size["heads"]}
    model = open_clip.model.CLIP(
        embed_dim=size["dim"],
        vision_cfg={**towers, **vision, "head_width": size["dim"] // size["heads"]},
        text_cfg={**towers, **text},
        output_dict=True,
    ).train()
    batch, loss = size["batch"], ClipLoss()
    images = torch.randn(batch, 3, size["pixels"], size["pixels"])
    texts = torch.randint(1, size["vocab"], (batch, size["length"]))

    def features(begin, rows, stream):
        part = slice(begin, begin + rows)
        with numbers_of(stream, begin):
            return model(images[part], texts[part])

    def gradient(parts, first, second):
        """Of the loss over the batch in `parts`: embeddings with masks `first`, gradients with `second`."""
        model.zero_grad()
        rows = batch // parts
        begins = range(0, batch, rows)
        with torch.no_grad():
            cached = [features(begin, rows, first) for begin in begins]
        for i, begin in enumerate(begins):
            fresh = features(begin, rows, second)
            joined = {
                name: torch.cat(
                    [fresh[name] if j == i else one[name] for j, one in enumerate(cached)]
                )
                for name in ("image_features", "text_features")
            }
            loss(**joined, logit_scale=fresh["logit_scale"]).backward()
        named = model.named_parameters()
        return torch.cat([p.grad.ravel() for name, p in named if name != "logit_scale"])

    whole = gradient(1, 1, 1)
    for parts in size["parts"]:
        shipped, same = (
            float((gradient(parts, first, 1) - whole).norm() / whole.norm()) for first in (0, 1)
        )
        print(json.dumps({"parts": parts, "shipped": shipped, "same_masks": same}), flush=True)


if __name__ == "__main__":
    main()
