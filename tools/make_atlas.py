"""Measure the runs of tools/make_fashion_runs.py and the walks of what they began with, and pack
all that has been measured into data/atlas, runs on CIFAR-10 (tools/make_cifar_runs.py) too.
Stopped, it continues.

usage: python tools/make_atlas.py [--folder runs] [--n 1000] [--kimgs 1 2 4 8 16 24] [--only NAME
...] [--clock] [--pack] [--onto] [--out data/atlas]

`--clock` times sampling again, apart from the measurements, and writes these seconds into the
records: for runs that were measured on a busy machine. All of one network share a time for each way
to sample."""

import argparse
import json
import time
import torch
from ect_nb.diffusion import heun, karras_times
from ect_nb.io import data, files, weights
from ect_nb.measure.atlas import TIMES, Atlas, survey, survey_walk
from ect_nb.measure.features import small_features
from ect_nb.sampling import sample, told
from ect_nb.training.runs import RunFolder
from pathlib import Path
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
LONG = "fashion-long-"
STARTS = {"fashion-": "fashion_mnist_diffusion", LONG: "fashion_mnist_classes"}


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--folder", type=Path, default=Path("runs"))
    args.add_argument("--n", type=int, default=1000, help="samples for each distance")
    args.add_argument("--kimgs", type=int, nargs="+", default=[1, 2, 4, 8, 16, 24])
    args.add_argument(
        "--only", nargs="+", help="names of runs to measure (default: all in the folder)"
    )
    args.add_argument(
        "--clock",
        action="store_true",
        help="time sampling again on the quiet machine, measure nothing else, and pack",
    )
    args.add_argument("--pack", action="store_true", help="pack what there is, measure nothing")
    args.add_argument("--onto", action="store_true", help="keep what is packed in --out already")
    args.add_argument(
        "--out", type=Path, default=HERE.parent / "data" / "atlas", help="the folder of the atlas"
    )
    args = args.parse_args()
    if args.clock:
        clock(args.folder)
    elif not args.pack:
        measure(args)
    atlas = Atlas.load(args.out) if args.onto else Atlas()
    for run in sorted(
        p for p in args.folder.iterdir() if p.name.startswith(("fashion-", "cifar10-"))
    ):
        try:
            atlas.add(run)
        except ValueError as e:
            print("left out:", e)
    if not atlas.runs:
        raise SystemExit(
            f"{args.folder} holds no measured run fashion-* or cifar10-*: measure one first"
            " (without --pack)"
        )
    atlas.save(args.out)
    print(
        "packed:",
        ", ".join(f"{name} ({len(run.records)} records)" for name, run in atlas.runs.items()),
    )


def measure(args):
    "Measure every run of Fashion-MNIST in the folder, and the walk of the start of each kind."
    pictures, network = data.load("fashion_mnist_20k"), small_features()
    runs = sorted(
        p
        for p in args.folder.iterdir()
        if p.name.startswith("fashion-")
        and not p.name.endswith("heun")
        and (not args.only or p.name in args.only)
    )
    for kind in sorted({kind_of(run.name) for run in runs}):
        start = weights.load(data.find(f"{STARTS[kind]}.safetensors"))
        where, how = args.folder / f"{kind}heun", dict(init="diffusion", train_seed=0)
        for r in survey_walk(
            start, where, pictures, network, steps=(2, 3, 5, 9, 18), n=args.n, **how
        ):
            show(r)
    for run in runs:
        how = dict(
            init="scratch" if "scratch" in run.name else "diffusion",
            train_seed=int(run.name.rpartition("seed")[2]),
        )
        kimgs = None if kind_of(run.name) == LONG else args.kimgs
        for r in survey(run, pictures, network, TIMES, kimgs, args.n, **how):
            show(r)


def kind_of(name):
    "The beginning of a run's name, which says what it was tuned from."
    return LONG if name.startswith(LONG) else "fashion-"


def clock(folder, n=250):
    """Write into every record of a Fashion-MNIST run the seconds that its samples take when nothing
    else runs: the better of two times `n` pictures, scaled to its n_samples."""
    models = {k: weights.load(data.find(f"{start}.safetensors")) for k, start in STARTS.items()}
    z, known = torch.randn(n, 1, 28, 28), {}
    for path in sorted(folder.glob("fashion-*/metrics.jsonl")):
        records, kind = RunFolder(path.parent).records(), kind_of(path.parent.name)
        for r in records:
            if "nfe" not in r:
                continue
            if r["parameters"] != sum(p.numel() for p in models[kind].parameters()):
                raise SystemExit(f"{path} is of another network than the one clocked here")
            way = kind, r["method"], r["nfe"]
            if way not in known:
                known[way] = min(seconds(told(models[kind]), z, *way[1:]) for _ in range(2)) / n
                tqdm.write(f"{' '.join(map(str, way))}: {1000 * known[way]:.2f} ms a picture")
            r.update(
                seconds=round(known[way] * r["n_samples"], 3),
                clocked=f"{n} pictures apart from the measurement, the better of two",
            )
        files.write_atomically(path, "".join(json.dumps(r) + "\n" for r in records).encode())


@torch.no_grad()
def seconds(model, z, method, nfe):
    began = time.perf_counter()
    (
        heun(model, z, karras_times((nfe + 1) // 2))
        if method == "heun"
        else sample(model, z, TIMES[nfe])
    )
    return time.perf_counter() - began


def show(r):
    tqdm.write(
        f"{r['run']:>22}  {r['kimg']:>3} kimg  {r['nfe']:>2} evaluations  {r['value']:.1f}"
        f" [{r['low']:.1f}, {r['high']:.1f}]  {r['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
