"""What open_clip and transformers make of picture files: run by .venv-peer's Python, not by flipkit's.

Reads JSON from standard input: {"files", "side", "models": {name: [library, folder]}, "out"}; writes an
npz of float32 pixels (height, width, 3) in [0, 255], by "peer|mode|interpolation|file name", and of each
model's embeddings (files, dim), unit vectors, by its name.
"""

import json
import pathlib
import sys

import numpy as np
import open_clip
import torch
import transformers
from open_clip.transform import image_transform
from PIL import Image
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_siglip import SiglipImageProcessor


def embeddings(library, folder, files):
    """What a model, with the preprocessing that its folder declares, makes of files."""
    if library == "open_clip":
        model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        images = torch.stack([prepare(Image.open(file)) for file in files])
        return model.eval().encode_image(images, normalize=True)
    model = getattr(transformers, library).from_pretrained(folder).eval()
    prepare = transformers.AutoImageProcessor.from_pretrained(folder)
    images = [fetched(file) for file in files]
    found = model.get_image_features(**prepare(images=images, return_tensors="pt"))
    return torch.nn.functional.normalize(getattr(found, "pooler_output", found))


def fetched(file):
    """A file as transformers' Pillow processors read it.

    torchvision's reader reads no TIFF, and takes 16 bits for 8.
    """
    return CLIPImageProcessorPil().fetch_images(file)


def main():
    """Every peer's pixels of every file, and every model's embeddings."""
    task, found = json.load(sys.stdin), {}
    side, plain = task["side"], {"do_normalize": False}
    square = {"height": side, "width": side}
    cut = {"size": {"shortest_edge": side}, "crop_size": square, **plain}
    processors = {}
    for number, name in ((2, "bilinear"), (3, "bicubic")):
        processors[f"CLIP|shortest|{name}"] = CLIPImageProcessor(**cut, resample=number)
        processors[f"CLIPPil|shortest|{name}"] = CLIPImageProcessorPil(**cut, resample=number)
        processors[f"SigLIP|squash|{name}"] = SiglipImageProcessor(
            size=square, resample=number, **plain
        )
    for file in task["files"]:
        name = pathlib.Path(file).name
        for mode in ("shortest", "squash"):
            for interpolation in ("bilinear", "bicubic"):
                options = {"resize_mode": mode, "interpolation": interpolation}
                make = image_transform(side, False, mean=(0, 0, 0), std=(1, 1, 1), **options)
                key = f"open_clip|{mode}|{interpolation}|{name}"
                found[key] = make(Image.open(file)).numpy()
        for key, processor in processors.items():
            pixels = processor(images=fetched(file), return_tensors="np")["pixel_values"]
            found[f"{key}|{name}"] = np.asarray(pixels)[0]
    pixels = {key: value.transpose(1, 2, 0) * 255 for key, value in found.items()}
    with torch.no_grad():
        told = {
            name: embeddings(library, folder, task["files"]).numpy()
            for name, (library, folder) in task["models"].items()
        }
    np.savez(task["out"], **pixels, **told)


if __name__ == "__main__":
    main()
