"""Train the small diffusion model of Fashion-MNIST that the kit ships; write it to
data/fashion_mnist_diffusion.safetensors, with samples beside it (.png).

usage:
python tools/make_fashion_diffusion.py --kimg 400
    a start from nothing
python tools/make_fashion_diffusion.py --kimg 360 --lr 7e-4 --init FILE --folder runs/longer
    a second helping for the weights in FILE
python tools/make_fashion_diffusion.py --classes --kimg 400 --folder runs/fashion-classes
    a start that is told the class of each garment, half as dear a pass (it folds 4 × 4 pixels);
    written to data/fashion_mnist_classes.safetensors

Resumable: the same command goes on where it stopped. --minutes M: stop after that long; --ship:
write the newest snapshot and train nothing."""

import argparse
import torch
from ect_nb.diffusion import Precond, heun, karras_times
from ect_nb.io import data, weights
from ect_nb.networks import UNet
from ect_nb.sampling import told
from ect_nb.show.pictures import tile
from ect_nb.training.config import Config
from ect_nb.training.loop import train
from ect_nb.training.runs import RunFolder
from pathlib import Path
from tqdm import tqdm

COMMON = dict(resolution=28, channels=1, num_blocks=1, attention=(7,))
PLAIN = COMMON | dict(patch=2, model_channels=32, channel_mult=(1, 3))
CLASSES = COMMON | dict(patch=4, model_channels=96, channel_mult=(1,), label_dim=10)
CHOSEN = {  # by bench/study.py
    False: dict(optimizer="Adam", batch=64, lr=1e-3, snapshot=100),
    True: dict(optimizer="Muon", batch=32, lr=3e-3, snapshot=25),
}


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--kimg", type=float, default=600)
    args.add_argument("--lr", type=float)
    args.add_argument("--init", help="weights to start from, a file that this tool wrote")
    args.add_argument("--classes", action="store_true", help="tell the network the classes")
    args.add_argument("--optimizer")
    args.add_argument("--batch", type=int)
    args.add_argument("--ema", type=float, default=0.9995)
    args.add_argument("--warmup", type=float, default=5, help="thousand pictures")
    args.add_argument("--snapshot", type=int, help="thousand pictures")
    args.add_argument("--minutes", type=float, help="stop after so many, and go on another time")
    args.add_argument("--ship", action="store_true", help="write the newest snapshot, no more")
    args.add_argument("--folder", default="runs/fashion-start")
    args.add_argument("--precision", default="auto")
    args.add_argument("--device", default="cpu")
    args = args.parse_args()
    for name, value in CHOSEN[args.classes].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    limit = None if args.minutes is None else 60 * args.minutes
    if not args.ship:
        progress(args, limit)
        if max(RunFolder(args.folder).snapshots(), default=0) < int(args.kimg):
            return print("not done yet: the same command goes on")
    ship(args)


def progress(args, limit):
    "Train until the end or the `limit` in seconds, with a bar."
    config = Config.diffusion(
        kimg=args.kimg,
        batch=args.batch,
        lr=args.lr,
        optimizer=args.optimizer,
        warmup_kimg=args.warmup,
        ema=args.ema,
        precision=args.precision,
        snapshot_kimg=args.snapshot,
    )
    pictures = data.load("fashion_mnist_20k")
    run = train(begun(args), pictures, config, args.folder, args.device, time_limit=limit)
    bar = tqdm(total=args.kimg, unit="kimg", mininterval=30)
    for p in run:
        bar.update(p.kimg - bar.n)


def begun(args):
    "The network before its first step."
    torch.manual_seed(0)
    network = UNet(**(CLASSES if args.classes else PLAIN))
    return weights.load(args.init) if args.init else Precond(network, sigma_data=0.5)


def ship(args):
    "The newest snapshot, in float16, with the facts of its run."
    folder = RunFolder(args.folder)
    losses = [r["value"] for r in folder.records() if r["metric"] == "loss"]
    kimg, path = list(folder.snapshots().items())[-1]
    said = dict(kimg=args.kimg, lr=args.lr, batch=args.batch, ema=args.ema, warmup=args.warmup)
    said |= dict(optimizer=args.optimizer)
    facts = weights.header(path)["provenance"] | dict(
        command="python tools/make_fashion_diffusion.py "
        + " ".join(f"--{k} {v if isinstance(v, str) else f'{v:g}'}" for k, v in said.items())
        + " --classes" * args.classes
        + " --init FILE" * bool(args.init),
        loss=round(sum(losses[-10:]) / len(losses[-10:]), 2),
        data="fashion_mnist_20k",
        precision_chosen=folder.config().get("precision_chosen"),
    )
    if args.init:
        facts |= dict(init=weights.header(args.init)["provenance"])
    name = "fashion_mnist_classes" if args.classes else "fashion_mnist_diffusion"
    out = Path(__file__).parents[1] / "data" / f"{name}.safetensors"
    weights.save(weights.load(path), out, dtype=torch.float16, **facts)
    show(out)


def show(path):
    "64 samples of the shipped file, 18 Heun steps, seed 0."
    from PIL import Image

    z = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    sheet = tile(heun(told(weights.load(path)), z, karras_times(18)), ncol=16)[:, :, 0]
    Image.fromarray(sheet).save(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
