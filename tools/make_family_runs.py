"""Train ECT's relatives on Fashion-MNIST from the shipped diffusion model, each for the same number
of network passes, and measure them at 1, 2, 4, 8 evaluations.

usage: python tools/make_family_runs.py [--methods ECT CD ...] [--seeds 0 1 2] [--passes 12]
[--samples 500] [--device cpu] [--folder runs/family] [--out FILE.csv]

`--passes` counts thousand passes of one picture through the network, as many as torch's
multiplications make (`passes` of ect_nb.family): a pass of the teacher and a Jacobian-vector
product count too. The learning rate of each method is chosen among `RATES` by a trial each, a third
as long, with a training seed and noise that nothing else uses, at two evaluations; what else a
method has is set once, below, and not tuned. Every distance goes into its run's folder at once, and
all of them into FOLDER/family.csv. Stopped, the same command goes on: a run from its last state, to
the bit. `--out`: write the table of what is there, and train nothing."""

import argparse
import csv
import time
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
from ect_nb.training.runs import RunFolder
from pathlib import Path
from unittest.mock import patch

CUTS = (3.0, 0.8, 0.3)
EIGHT = (80.0, 12.0, 5.0, 2.5, 1.2, 0.7, 0.4, 0.2)
TIMES = {1: (80.0,), 2: (80.0, 0.8), 4: (80.0, *CUTS), 8: EIGHT}
RATES = (5e-4, 2e-3)
TRIAL = 100  # the training seed of the trials


def garments(x):
    "Features of garments, by the kit's classifier of them."
    return small_features("fashion_mnist")(x.clone())


METHODS = {
    "ECT": ECT(c=0.03),
    "CD": family.CD(),
    "sCT": family.ContinuousTraining(warm=4),
    "MeanFlow": family.MeanFlow(ends=0.25),
    "iCT": ConsistencyTraining(c=0.015),
    "scratch": ECT(c=0.03),
    "without-data": family.DataFreeECT(c=0.03),
    "features": family.FeatureECT(features=garments),
    "middle": family.MiddleStage(),
    "sCD": family.ContinuousDistillation(warm=4),
    "CT": family.CT(first=10, most=160),
    "segments": family.MultistepConsistency(c=0.03, cuts=CUTS),
    "shortcut": family.Shortcut(),
    "flow-map": family.FlowMapDistillation(),
    "sets": family.MomentMatching(),
}
TWO = ("MeanFlow", "shortcut", "flow-map")
COLUMNS = "method train_seed nfe value low high bias n_samples lr trials budget passes jvps".split()
COLUMNS += ["kimg", "train_seconds", "seconds", "device"]


def begin(name, seed):
    "The model to train: the shipped diffusion model, with a second time where it is asked for."
    torch.manual_seed(seed)
    start = weights.load(data.find("fashion_mnist_diffusion.safetensors"))
    if name == "scratch":
        return Precond(UNet(**start.net.config), sigma_data=start.sigma_data)
    return family.two_time(start) if name in TWO else start


def cost_of(name, pictures):
    "Passes, and Jacobian-vector products, that a row of a training step of `name` costs."
    model, few = begin(name, 0).train(), pictures.batch(torch.arange(32))
    with patch.object(family, "jvp", wraps=family.jvp) as counted:
        cost = family.passes(METHODS[name], model, few, stage=3)
    return dict(passes=round(cost, 2), jvps=counted.call_count)


def config_of(objective, kimg, seed, lr):
    "Four stages from the third on, as long as one another."
    stages = Stages(start=3, every=max(int(kimg * 250), 1), last=6)
    common = dict(batch=16, decay="linear", ema=0.99, state_seconds=20.0)
    return Config(objective, kimg=kimg, seed=seed, lr=lr, stages=stages, **common)


def sampler_of(name, times):
    "How `name` draws: jumps for two times and for its own segments, else noise put back."
    if name in TWO:
        return lambda model, z, g: multistep(family.landing(model, times), z, times)
    if name == "segments" and times == TIMES[4]:
        return lambda model, z, g: multistep(model, z, times)
    return lambda model, z, g: sample(model, z, times, g)


def trained(name, seed, kimg, lr, args, pictures):
    "The averaged model after `kimg`; the folder also keeps the processor seconds of each part."
    folder, keeps = args.folder / f"{name}-{lr:g}-seed{seed}", METHODS[name].keeps
    teacher = dict(teacher=begin("ECT", seed)) if "teacher" in keeps else {}
    config = config_of(METHODS[name], kimg, seed, lr)
    started, first = time.process_time(), None
    run = train(begin(name, seed), pictures, config, folder, args.device, **teacher)
    try:
        for p in run:
            first = first or p.step
    finally:
        if first and first < kimg * 1000 / config.batch:
            used = time.process_time() - started
            RunFolder(folder).record(metric="processor", value=round(used, 2), seed=seed)
    return p.ema, RunFolder(folder)


def measured(name, seed, lr, budget, nfes, args, pictures, **more):
    "The records of a run of so many thousand passes; what is not yet there is made."
    n, kimg = args.samples, budget / more["passes"]
    folder = RunFolder(args.folder / f"{name}-{lr:g}-seed{seed}")
    there = lambda: {r["nfe"]: r for r in folder.records() if r.get("metric") == "FD"}
    for nfe in [k for k in nfes if k not in there()]:
        model, folder = trained(name, seed, kimg, lr, args, pictures)
        used = sum(r["value"] for r in folder.records() if r.get("metric") == "processor")
        facts = dict(method=name, train_seed=seed, lr=lr, budget=budget, kimg=round(kimg, 3))
        facts |= dict(train_seconds=round(used, 1), seed=1000 + seed) | more
        how = dict(sampler=sampler_of(name, TIMES[nfe]), nfe=nfe, n=n)
        r = measure(model, pictures, small_features("fashion_mnist"), **how, **facts)
        folder.record(**r)
        print(f"{folder.path.name} nfe {nfe} FD {r['value']:.2f} {used:.0f} s", flush=True)
        write(args.folder, args.folder / "family.csv")
    return there()


def chosen(name, args, pictures, cost):
    "The learning rate whose trial came nearer, and both distances in words."
    call = lambda lr: measured(name, TRIAL, lr, args.passes / 3, (2,), args, pictures, **cost)
    found = {lr: call(lr)[2]["value"] for lr in RATES}
    return min(found, key=found.get), "; ".join(f"{lr:g}: {v:.1f}" for lr, v in found.items())


def write(folder, path):
    "All distances that are in the run folders of `folder`, but for the trials', as a table."
    logs = sorted(folder.glob("*/metrics.jsonl"))
    rows = [r for log in logs for r in RunFolder(log.parent).records() if r.get("metric") == "FD"]
    rows = [r for r in rows if r["train_seed"] != TRIAL]
    rows.sort(key=lambda r: (list(METHODS).index(r["method"]), r["train_seed"], r["nfe"]))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for r in rows:
            near = {k: f"{r[k]:.3f}" for k in ("value", "low", "high", "bias")}
            writer.writerow(r | near)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    nine = list(METHODS)[:9]
    parser.add_argument("--methods", nargs="+", default=nine, choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--passes", type=float, default=12.0)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--folder", type=Path, default=Path("runs/family"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.out:
        return write(args.folder, args.out)
    pictures = data.load("fashion_mnist_20k")
    for seed in args.seeds:
        for name in args.methods:
            cost = cost_of(name, pictures)
            lr, trials = chosen(name, args, pictures, cost)
            cost |= dict(trials=trials)
            measured(name, seed, lr, args.passes, tuple(TIMES), args, pictures, **cost)


if __name__ == "__main__":
    main()
