"""One training step of open_clip per line read, its seconds written: what beside_open_clip.py asks of it.

Runs in an environment of its own (`make .venv-peer`), which has open_clip and torch and not flipkit.
"""

import json
import sys
import time

import open_clip  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]
from open_clip.loss import ClipLoss  # pyright: ignore[reportMissingImports]


def main():
    """Builds what the first argument describes, then steps at each line of the standard input."""
    size = json.loads(sys.argv[1])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    image, text = size["image"], size["text"]
    model = open_clip.model.CLIP(
        embed_dim=image[0],
        vision_cfg={
            "image_size": size["pixels"],
            "patch_size": size["patch"],
            "width": image[0],
            "layers": image[1],
            "head_width": image[0] // image[2],
            "patch_dropout": size["mask_ratio"],
        },
        text_cfg={
            "context_length": size["length"],
            "vocab_size": size["vocab"],
            "width": text[0],
            "layers": text[1],
            "heads": text[2],
        },
        output_dict=True,
    ).to(device)
    model.train()
    loss = ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.2)
    images = torch.randn(size["batch"], 3, size["pixels"], size["pixels"], device=device)
    texts = torch.randint(1, size["vocab"], (size["batch"], size["length"]), device=device)
    half = torch.autocast(device, torch.bfloat16, enabled=size["dtype"] == "mixed_bfloat16")
    for _ in sys.stdin:
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with half:
            out = model(images, texts)
            value = loss(out["image_features"], out["text_features"], out["logit_scale"])
        value.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        value.item()  # waits for the device
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak}), flush=True)


if __name__ == "__main__":
    main()
