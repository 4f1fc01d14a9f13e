"""Tune the shipped diffusion model of Fashion-MNIST that knows no classes by the first recipe of
00; write the one-step generator that came of it to data/fashion_mnist_tuned.safetensors.

usage: python tools/make_fashion_tuned.py [--kimg 24] [--seed 0] [--folder runs/fashion-tuned]

Stopped, it continues."""

import argparse
import torch
from ect_nb.io import data, weights
from ect_nb.objectives import ECT
from ect_nb.schedules import Stages
from ect_nb.training.config import Config
from ect_nb.training.loop import train
from ect_nb.training.runs import RunFolder
from pathlib import Path


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--kimg", type=float, default=24)
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--folder", type=Path, default=Path("runs/fashion-tuned"))
    args = args.parse_args()
    first = data.find("fashion_mnist_diffusion.safetensors")
    config = Config(
        objective=ECT(c=0.03),
        kimg=args.kimg,
        batch=16,
        lr=2e-3,
        decay="linear",
        ema=0.99,
        stages=Stages(start=3),
        precision="float32",
        snapshot_kimg=4,
        seed=args.seed,
    )
    start, wardrobe = weights.load(first), data.load("fashion_mnist_20k")
    for p in train(start, wardrobe, config, args.folder):
        print(f"{p.kimg:g} of {args.kimg:g} thousand pictures", flush=True)
    path = list(RunFolder(args.folder).snapshots().values())[-1]
    facts = weights.header(path)["provenance"] | dict(
        command=f"python tools/make_fashion_tuned.py --kimg {args.kimg:g} --seed {args.seed}",
        data="fashion_mnist_20k",
        init=weights.header(first)["provenance"],
    )
    out = Path(__file__).parents[1] / "data" / "fashion_mnist_tuned.safetensors"
    weights.save(weights.load(path), out, torch.float16, (1, 28, 28), **facts)


if __name__ == "__main__":
    main()
