"""open_clip's loss and its gradient once per line read, the seconds written: what loss.py asks of it.

Runs in an environment of its own (`make .venv-peer`), which has open_clip and torch and not flipkit.
"""

import json
import resource
import sys
import time

import torch  # pyright: ignore[reportMissingImports]
from open_clip.loss import ClipLoss, SigLipLoss  # pyright: ignore[reportMissingImports]


def main():
    """Makes embeddings of the size that the arguments name: a loss, how many pairs, their length."""
    name, count, dim = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loss = ClipLoss() if name == "contrastive" else SigLipLoss()
    given = [torch.nn.functional.normalize(torch.randn(count, dim)) for _ in range(2)]
    given += [torch.tensor(20.0), *([torch.tensor(-10.0)] if name == "sigmoid" else ())]
    given = [x.to(device).requires_grad_() for x in given]
    for _ in sys.stdin:
        start = time.perf_counter()
        for x in given:
            x.grad = None
        value = loss(*given)
        value.backward()
        value.item()  # waits for the device
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if device == "cuda":
            peak = torch.cuda.max_memory_allocated()
        print(json.dumps({"seconds": seconds, "peak": peak}), flush=True)


if __name__ == "__main__":
    main()
