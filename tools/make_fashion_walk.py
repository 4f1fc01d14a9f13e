"""Walk the start that is told the classes from the noises of lesson 00, and write
where the walks end to data/fashion_mnist_walk.safetensors (uint8 (N, 1, 28, 28)), with what made
them.

usage: python tools/make_fashion_walk.py [--n 1000] [--device cpu]"""

import argparse
import hashlib
import json
import time
import torch
from ect_nb.diffusion import heun, karras_times
from ect_nb.io import data, weights
from ect_nb.measure.features import quantise
from ect_nb.sampling import told
from pathlib import Path
from safetensors.torch import save_file
from tqdm import tqdm

SEED, STEPS = 7, 18


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--n", type=int, default=1000)
    args.add_argument("--device", default="cpu")
    args = args.parse_args()
    file = data.find("fashion_mnist_classes.safetensors")
    model = told(weights.load(file, device=args.device))
    z = torch.randn(args.n, 1, 28, 28, generator=torch.Generator().manual_seed(SEED))
    began, times = time.process_time(), karras_times(STEPS)
    ends = [heun(model, part.to(args.device), times).cpu() for part in tqdm(z.split(50))]
    garments = ((quantise(torch.cat(ends)) + 1) * 127.5).round().to(torch.uint8)
    facts = dict(
        command="python tools/make_fashion_walk.py",
        start=hashlib.sha256(Path(file).read_bytes()).hexdigest()[:8],
        sampler=f"Heun, {STEPS} steps, {2 * STEPS - 1} evaluations",
        noise=f"torch.randn({args.n}, 1, 28, 28), seed {SEED}",
        classes="0 to 9 in turn",
        arithmetic=f"float32 on {args.device}, torch {torch.__version__}",
        processor_seconds=round(time.process_time() - began),
    )
    out = Path(__file__).parents[1] / "data" / "fashion_mnist_walk.safetensors"
    save_file(dict(garments=garments), out, dict(format="ect_nb 1", provenance=json.dumps(facts)))


if __name__ == "__main__":
    main()
