"""Train the small diffusion model of Fashion-MNIST that the kit ships; write it to
data/fashion_mnist_diffusion.safetensors, with samples beside it (.png).

usage: python tools/make_fashion_diffusion.py --kimg 400 a start from nothing python
tools/make_fashion_diffusion.py --kimg 360 --lr 7e-4 --init FILE --folder runs/longer a second
helping for the weights in FILE Resumable: the same command goes on where it stopped."""

import argparse
import torch
from ect_nb.diffusion import Precond, heun, karras_times
from ect_nb.io import data, weights
from ect_nb.networks import UNet
from ect_nb.show.pictures import tile
from ect_nb.training.config import Config
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


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--kimg", type=float, default=600)
    args.add_argument("--lr", type=float, default=1e-3)
    args.add_argument("--init", help="weights to start from, a file that this tool wrote")
    args.add_argument("--folder", default="runs/fashion-start")
    args.add_argument("--precision", default="auto")
    args.add_argument("--device", default="cpu")
    args = args.parse_args()
    torch.manual_seed(0)
    model = weights.load(args.init) if args.init else Precond(UNet(**NETWORK), sigma_data=0.5)
    config = Config.diffusion(
        kimg=args.kimg,
        batch=64,
        lr=args.lr,
        warmup_kimg=5,
        ema=0.9995,
        precision=args.precision,
        snapshot_kimg=100,
    )
    bar = tqdm(total=args.kimg, unit="kimg", mininterval=30)
    for p in train(model, data.load("fashion_mnist_20k"), config, args.folder, args.device):
        bar.update(p.kimg - bar.n)
    ship(args)


def ship(args):
    "The newest snapshot, in float16, with the facts of its run."
    folder = RunFolder(args.folder)
    losses = [r["value"] for r in folder.records() if r["metric"] == "loss"]
    kimg, path = list(folder.snapshots().items())[-1]
    facts = weights.header(path)["provenance"] | dict(
        command=f"python tools/make_fashion_diffusion.py --kimg {args.kimg:g} --lr {args.lr:g}"
        + " --init FILE" * bool(args.init),
        loss=round(sum(losses[-10:]) / len(losses[-10:]), 2),
        data="fashion_mnist_20k",
        precision_chosen=folder.config().get("precision_chosen"),
    )
    if args.init:
        facts |= dict(init=weights.header(args.init)["provenance"])
    out = Path(__file__).parents[1] / "data" / "fashion_mnist_diffusion.safetensors"
    weights.save(weights.load(path), out, dtype=torch.float16, **facts)
    show(out)


def show(path):
    "64 samples of the shipped file, 18 Heun steps, seed 0."
    from PIL import Image

    z = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    sheet = tile(heun(weights.load(path), z, karras_times(18)), ncol=16)[:, :, 0]
    Image.fromarray(sheet).save(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
