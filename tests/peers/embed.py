"""What open_clip and transformers make of folders: run by .venv-peer's Python, not by flipkit's.

Reads JSON from standard input: [{"library", "folder", "inputs", "outputs", "image_size"}, ...]; writes
for each an npz of unit vectors `image` and `text`, and the logits with images in rows.
"""

import json
import sys

import numpy as np
import torch


def open_clip_model(folder, image_size):
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}", force_image_size=image_size).eval()

    def embed(pixels, ids):
        logits, _ = model.get_logits(pixels, ids)
        unit = {"normalize": True}
        return model.encode_image(pixels, **unit), model.encode_text(ids, **unit), logits

    return embed


def transformers_model(folder, name):
    import transformers

    model = getattr(transformers, name).from_pretrained(folder).eval()

    def embed(pixels, ids):
        found = model(input_ids=ids, pixel_values=pixels)
        return found.image_embeds, found.text_embeds, found.logits_per_image

    return embed


def main():
    """Embeds every task's inputs."""
    for task in json.load(sys.stdin):
        if task["library"] == "open_clip":
            embed = open_clip_model(task["folder"], task["image_size"])
        else:
            embed = transformers_model(task["folder"], task["library"])
        inputs = np.load(task["inputs"])
        with torch.no_grad():
            found = embed(torch.tensor(inputs["pixels"]), torch.tensor(inputs["ids"]).long())
        names = ("image", "text", "logits")
        np.savez(task["outputs"], **dict(zip(names, (f.numpy() for f in found), strict=True)))


if __name__ == "__main__":
    main()
