"""Train the runs behind the shipped atlas: Fashion-MNIST, the tour's recipe, from the shipped
diffusion model and from scratch, three seeds each. Stopped, it continues.

usage: python tools/make_fashion_runs.py [--inits diffusion scratch] [--seeds 0 1 2] [--kimg 24]
[--device cpu] [--folder runs]"""

import argparse
import torch
from ect_nb.diffusion import Precond
from ect_nb.io import data, weights
from ect_nb.networks import UNet
from ect_nb.objectives import ECT
from ect_nb.schedules import Stages
from ect_nb.training.config import Config
from ect_nb.training.loop import train
from pathlib import Path
from tqdm import tqdm

NETWORK = dict(
    resolution=28,
    channels=1,
    patch=2,
    model_channels=32,
    channel_mult=(1, 3),
    num_blocks=1,
    attention=(7,),
)


def begin(init, seed):
    "The model to train: the shipped diffusion model, or the same network with fresh weights."
    torch.manual_seed(seed)
    return (
        weights.load(data.find("fashion_mnist_diffusion.safetensors"))
        if init == "diffusion"
        else Precond(UNet(**NETWORK), sigma_data=0.5)
    )


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument(
        "--inits", nargs="+", default=["diffusion", "scratch"], choices=["diffusion", "scratch"]
    )
    args.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args.add_argument("--kimg", type=float, default=24)
    args.add_argument("--folder", type=Path, default=Path("runs"))
    args.add_argument("--device", default="cpu")
    args = args.parse_args()
    wardrobe = data.load("fashion_mnist_20k")
    for seed in args.seeds:
        for init in args.inits:
            config = Config(
                kimg=args.kimg,
                batch=16,
                lr=2e-3,
                decay="linear",
                ema=0.99,
                objective=ECT(c=0.03),
                stages=Stages(start=3),
                precision="auto",
                snapshot_kimg=1,
                seed=seed,
            )
            name = f"fashion-{'ect' if init == 'diffusion' else 'scratch'}-seed{seed}"
            bar = tqdm(total=args.kimg, unit="kimg", desc=name, mininterval=30)
            for p in train(begin(init, seed), wardrobe, config, args.folder / name, args.device):
                bar.update(p.kimg - bar.n)
            bar.close()


if __name__ == "__main__":
    main()
