"""Train the runs behind the shipped atlas: Fashion-MNIST, the tour's recipe, from the shipped
diffusion model and from scratch, three seeds each. Stopped, it continues.

usage: python tools/make_fashion_runs.py [--inits diffusion scratch] [--seeds 0 1 2] [--kimg 24]
[--device cpu] [--folder runs]

`--long` asks what an hour and a night buy: the start that is told the classes, tuned by the recipe
`LONG`, every budget of `BUDGETS` in turn, seed 0 to the last of them, seeds 1 and 2 and consistency
training from scratch (seeds 0, 1 and 2) to 250 thousand pictures. A run has all budgets on its way,
so its learning rate falls with the root of the pictures seen instead of towards an end, and its
stage moves on every 250 thousand. `--long --minutes M` stops after M minutes; the same command goes
on to the bit. `--only NAME ...` trains these runs alone. `--ship` writes the longest tuned model to
data/fashion_mnist_classes_tuned.safetensors and trains nothing."""

import argparse
import math
import time
import torch
from ect_nb.diffusion import Precond
from ect_nb.io import data, weights
from ect_nb.networks import UNet
from ect_nb.objectives import ECT
from ect_nb.schedules import Stages
from ect_nb.training.config import Config, changed
from ect_nb.training.loop import train
from ect_nb.training.runs import RunFolder
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
CLASSES = NETWORK | dict(patch=4, model_channels=96, channel_mult=(1,), label_dim=10)
BUDGETS = (1, 2, 4, 8, 16, 32, 64, 125, 250, 500, 1000)
LONG = Config(
    batch=32,
    lr=3e-3,
    decay="inverse_sqrt",
    decay_kimg=8,
    ema_rel=0.1,
    objective=ECT(c=0.03),
    stages=Stages(start=3, every=250_000),
    precision="auto",
)


def begin(init, seed, start="fashion_mnist_diffusion", network=NETWORK):
    "The model to train: the shipped diffusion model, or the same network with fresh weights."
    torch.manual_seed(seed)
    return (
        weights.load(data.find(f"{start}.safetensors"))
        if init == "diffusion"
        else Precond(UNet(**network), sigma_data=0.5)
    )


def plan(budgets=BUDGETS, most=250):
    "(budget, init, seed), short budgets first; seed 0 from the diffusion model goes to the end."
    return [
        (kimg, init, seed)
        for kimg in budgets
        for seed in (0, 1, 2)
        for init in ("diffusion", "scratch")
        if kimg <= most or (init, seed) == ("diffusion", 0)
    ]


def long(folder, device, minutes=None, only=None):
    "Bring every run of `plan` to its next budget, until all are there or the time is over."
    wardrobe = data.load("fashion_mnist_20k")
    end = time.monotonic() + (math.inf if minutes is None else 60 * minutes)
    for kimg, init, seed in plan():
        name = f"fashion-long-{'ect' if init == 'diffusion' else 'scratch'}-seed{seed}"
        reached = max(RunFolder(folder / name).snapshots(), default=0)
        if only and name not in only or reached >= kimg:
            continue
        config, left = changed(LONG, kimg=kimg, seed=seed), max(0.0, end - time.monotonic())
        model = begin(init, seed, "fashion_mnist_classes", CLASSES)
        run = train(model, wardrobe, config, folder / name, device, time_limit=left)
        for p in run:
            pass
        print(f"{name}: {p.kimg:g} of {kimg} thousand pictures", flush=True)
        if time.monotonic() > end:
            return print("the time is over: the same command goes on")


def ship(folder):
    "The newest snapshot of the longest run, in float16, with the facts of its run."
    first = data.find("fashion_mnist_classes.safetensors")
    path = list(RunFolder(folder / "fashion-long-ect-seed0").snapshots().values())[-1]
    facts = weights.header(path)["provenance"] | dict(
        command="python tools/make_fashion_runs.py --long --only fashion-long-ect-seed0",
        data="fashion_mnist_20k",
        init=weights.header(first)["provenance"],
    )
    out = Path(__file__).parents[1] / "data" / "fashion_mnist_classes_tuned.safetensors"
    weights.save(weights.load(path), out, torch.float16, (1, 28, 28), **facts)


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument(
        "--inits", nargs="+", default=["diffusion", "scratch"], choices=["diffusion", "scratch"]
    )
    args.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args.add_argument("--kimg", type=float, default=24)
    args.add_argument("--folder", type=Path, default=Path("runs"))
    args.add_argument("--device", default="cpu")
    args.add_argument("--long", action="store_true", help="what an hour and a night buy")
    args.add_argument("--minutes", type=float, help="with --long: stop after so many")
    args.add_argument("--only", nargs="+", help="with --long: names of runs")
    args.add_argument("--ship", action="store_true", help="write the longest tuned model")
    args = args.parse_args()
    if args.ship:
        return ship(args.folder)
    if args.long:
        return long(args.folder, args.device, args.minutes, args.only)
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
