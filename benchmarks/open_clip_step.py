"""Trains with open_clip: as many steps as each line read says, the seconds of one written.

beside_open_clip.py starts it in an environment of its own (`make .venv-peer`), which has open_clip and
torch and need not have flipkit.
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
    if size.get("needs_cuda") and device != "cuda":
        sys.exit(f"torch {torch.__version__} finds no CUDA device.")
    # As open_clip's own training script has it.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
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
    scale = model.logit_scale
    loss = ClipLoss()
    fast = {"fused": True} if device == "cuda" else {}
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.2, **fast
    )
    backend = size.get("compile")  # of torch.compile; None is eager
    if backend is not None:
        torch._dynamo.config.suppress_errors = True  # eager, for what it can't compile
        model = torch.compile(model, backend=backend)
    images = torch.randn(size["batch"], 3, size["pixels"], size["pixels"], device=device)
    texts = torch.randint(1, size["vocab"], (size["batch"], size["length"]), device=device)
    half = torch.autocast(device, torch.bfloat16, enabled=size["dtype"] == "mixed_bfloat16")

    def step():
        optimizer.zero_grad(set_to_none=True)
        with half:
            out = model(images, texts)
            value = loss(out["image_features"], out["text_features"], out["logit_scale"])
        value.backward()
        optimizer.step()
        with torch.no_grad():
            scale.clamp_(0, 4.6052)
        return value

    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            value = step()
        value.item()  # waits for the device
        answer = {"seconds": (time.perf_counter() - start) / int(line), "torch": torch.__version__}
        answer["peak"] = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        if backend is not None:
            frames = torch._dynamo.utils.counters["frames"]
            answer["compiled"] = f"{frames['ok']} of {frames['total']} frames"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
