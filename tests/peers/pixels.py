"""What open_clip and transformers make of picture files: run by .venv-peer's Python, not by flipkit's.

Reads JSON from standard input: {"files", "side", "out"}; writes an npz of float32 pixels (height, width, 3)
in [0, 255], by "peer|mode|interpolation|file name".
"""

import json
import pathlib
import sys

import numpy as np
from open_clip.transform import image_transform
from PIL import Image
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_siglip import SiglipImageProcessor


def main():
    """Every peer's pixels of every file."""
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
            # The Pillow one's way to fetch a file: torchvision's reader knows no TIFF, and takes 16
            # bits for 8.
            image = CLIPImageProcessorPil().fetch_images(file)
            pixels = processor(images=image, return_tensors="np")["pixel_values"]
            found[f"{key}|{name}"] = np.asarray(pixels)[0]
    pixels = {key: value.transpose(1, 2, 0) * 255 for key, value in found.items()}
    np.savez(task["out"], **pixels)


if __name__ == "__main__":
    main()
