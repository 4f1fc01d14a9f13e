"""Train ECT's relatives on Fashion-MNIST from the shipped diffusion model, each for the same number
of network passes, some seeds each, and measure them at 1, 2, 4, 8 evaluations. Stopped, it
continues: a run from its last state, a table from the rows it has.

usage: python tools/make_family_runs.py [--methods ECT CD ...] [--seeds 0 1 2] [--passes 96]
[--samples 5000] [--device cpu] [--folder runs/family]

`--passes` counts thousand passes of one picture; `passes` of ect_nb.family says what a row of a
method costs. Every distance goes into the run folder, and all of them into FOLDER/family.csv."""

import argparse
import csv
import torch
from ect_nb import family
from ect_nb.diffusion import Precond
from ect_nb.io import data, weights
from ect_nb.measure.features import small_features
from ect_nb.measure.metrics import measure
from ect_nb.networks import UNet
from ect_nb.objectives import ECT, ConsistencyTraining
from ect_nb.sampling import multistep, sample
from ect_nb.schedules import Stages
from ect_nb.training.config import Config
from ect_nb.training.loop import train
from pathlib import Path
from tqdm import tqdm

CUTS = (3.0, 0.8, 0.3)
EIGHT = (80.0, 12.0, 5.0, 2.5, 1.2, 0.7, 0.4, 0.2)
TIMES = {1: (80.0,), 2: (80.0, 0.8), 4: (80.0, *CUTS), 8: EIGHT}


def garments(x):
    "Features of garments, by the kit's classifier of them."
    return small_features("fashion_mnist")(x)


METHODS = {
    "ECT": ECT(c=0.03),
    "scratch": ECT(c=0.03),
    "iCT": ConsistencyTraining(c=0.015),
    "CT": family.CT(first=10, most=160),
    "CD": family.CD(),
    "without-data": family.DataFreeECT(c=0.03),
    "middle": family.MiddleStage(),
    "segments": family.MultistepConsistency(c=0.03, cuts=CUTS),
    "sCT": family.ContinuousTraining(warm=4),
    "sCD": family.ContinuousDistillation(warm=4),
    "MeanFlow": family.MeanFlow(ends=0.25),
    "shortcut": family.Shortcut(),
    "flow-map": family.FlowMapDistillation(),
    "features": family.FeatureECT(features=garments),
    "sets": family.MomentMatching(),
}
TWO = ("MeanFlow", "shortcut", "flow-map")
COLUMNS = "method train_seed nfe value low high bias n_samples passes kimg".split()
COLUMNS += ["train_seconds", "seconds"]


def begin(name, seed):
    "The model to train: the shipped diffusion model, with a second time where it is asked for."
    torch.manual_seed(seed)
    start = weights.load(data.find("fashion_mnist_diffusion.safetensors"))
    if name == "scratch":
        return Precond(UNet(**start.net.config), sigma_data=start.sigma_data)
    return family.two_time(start) if name in TWO else start


def config_of(objective, kimg, seed):
    "Four stages from the third on, as long as one another."
    stages = Stages(start=3, every=max(int(kimg * 250), 1), last=6)
    common = dict(batch=16, lr=1e-3, decay="linear", ema=0.99, snapshot_kimg=1)
    return Config(objective, kimg=kimg, seed=seed, stages=stages, **common)


def sampler_of(name, times):
    "How `name` draws: jumps for two times and for its own segments, else noise put back."
    if name in TWO:
        return lambda model, z, g: multistep(family.landing(model, times), z, times)
    if name == "segments" and times == TIMES[4]:
        return lambda model, z, g: multistep(model, z, times)
    return lambda model, z, g: sample(model, z, times, g)


def trained(name, seed, cost, args, wardrobe):
    "The averaged model of a run of so many passes, its folder, and the seconds of its steps."
    kimg, folder = args.passes / cost, args.folder / f"fashion-{name}-seed{seed}"
    start, teacher = begin(name, seed), {}
    if "teacher" in METHODS[name].keeps:
        teacher = dict(teacher=begin("ECT", seed))
    config = config_of(METHODS[name], kimg, seed)
    bar = tqdm(total=kimg, unit="kimg", desc=folder.name, mininterval=30)
    for p in train(start, wardrobe, config, folder, args.device, **teacher):
        bar.update(p.kimg - bar.n)
    bar.close()
    return p.ema, p


def measured(name, seed, cost, args, wardrobe):
    "Train, and record a distance for each number of evaluations that has none yet."
    model, p = trained(name, seed, cost, args, wardrobe)
    there = {r["nfe"] for r in p.folder.records() if r.get("metric") == "FD"}
    facts = dict(n=args.samples, seed=1000 + seed, method=name, train_seed=seed, passes=cost)
    for nfe in sorted(set(TIMES) - there):
        how = dict(sampler=sampler_of(name, TIMES[nfe]), nfe=nfe, kimg=p.kimg)
        r = measure(model, wardrobe, small_features("fashion_mnist"), **how, **facts)
        p.folder.record(**r, train_seconds=round(p.seconds, 1))
    return [r for r in p.folder.records() if r.get("metric") == "FD"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--passes", type=float, default=96.0)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--folder", type=Path, default=Path("runs/family"))
    parser.add_argument("--device", default="cpu")
    args, wardrobe = parser.parse_args(), data.load("fashion_mnist_20k")
    few, rows = wardrobe.batch(torch.arange(32)), []
    for seed in args.seeds:
        for name in args.methods:
            cost = family.passes(METHODS[name], begin(name, seed).train(), few, stage=3)
            rows += measured(name, seed, cost, args, wardrobe)
            with (args.folder / "family.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
