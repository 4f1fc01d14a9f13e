"""Measure, in one run and as ratios, what the kit claims to be fast at.

Machines differ and are noisy: read the ratios and their spread, not the seconds.

usage: python bench/bench.py [--rounds 7] [--runs 5] [--batch 64] [--device cpu] [--cifar]
--cifar also measures the full CIFAR-10 network: `python bench/cifar.py` with its own defaults
(minutes on a GPU, half an hour on a small CPU)."""

import argparse
import os
import statistics
import subprocess
import sys
import time
import torch
from ect_nb.analytic import GaussianMixture
from ect_nb.diffusion import Precond, heun, karras_times
from ect_nb.io import data, weights
from ect_nb.networks import MLP
from ect_nb.sampling import sample
from ect_nb.schedules import Stages
from ect_nb.show.flow import FlowPicture
from ect_nb.training.config import Config
from ect_nb.training.loop import draw, train
from ect_nb.training.speed import choose_precision, fast_precisions, residual_errors
from pathlib import Path

NBS = Path(__file__).resolve().parent.parent / "nbs" / "lessons"


def clock(work, device):
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def spread(values):
    "The median of `values` and their quartiles."
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:6.2f}  [{low:.2f}, {high:.2f}]"


def compare(ours, other, rounds, device):
    """Median of `rounds` paired ratios time(other) / time(ours), and their quartiles; the two take
    turns, so that a slow minute hits both."""
    ours(), other()
    return spread([clock(other, device) / clock(ours, device) for _ in range(rounds)])


def plain_step(model, optimizer, x0, t, r, eps):
    "ECT as one would first write it: eager, float32, both branches for every row."

    def step():
        level = lambda s: s.reshape(-1, 1, 1, 1)
        f_t = model(x0 + level(t) * eps, t)
        with torch.no_grad():
            f_r = model(x0 + level(r) * eps, torch.where(r > 0, r, t))
        target = torch.where(level(r) > 0, f_r, x0)
        loss = ((f_t - target).square().flatten(1).sum(1).add(1e-12).sqrt() / (t - r)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def training(start, wardrobe, args, device):
    print("training step: plain eager float32 / the kit's trainer (above 1: the kit is faster)")
    for stage in (0, 1, 3, 5):
        config = Config(kimg=1e6, batch=args.batch, stages=Stages(start=stage))
        x0, t, r, eps = draw(config, wardrobe, 0, stage, device)
        errors = residual_errors(start, x0, t, r, eps, fast_precisions(device))
        config = Config(
            kimg=1e6,
            batch=args.batch,
            stages=Stages(start=stage),
            precision=choose_precision(errors),
        )
        run = train(start, wardrobe, config, device=device)
        plain = weights.load(
            data.find("fashion_mnist_diffusion.safetensors"), device=device
        ).train()
        other = plain_step(
            plain, torch.optim.RAdam(plain.parameters(), 1e-4), x0, t.to(device), r.to(device), eps
        )
        share = float((r > 0).float().mean())
        print(
            f"  stage {stage}  {compare(lambda: next(run), other, args.rounds, device)}  "
            f" {config.precision}, residual error"
            f" {', '.join(f'{p} {e:.2f}' for p, e in errors.items()) or '-'}, {share:.0%} of rows"
            " need the second pass"
        )


def sampling(start, args, device):
    print("sampling: 35-evaluation Heun / few evaluations")
    z = torch.randn(16, 1, 28, 28, device=device)
    walk = lambda: heun(start, z, karras_times(18))
    for name, times in (("one", (80.0,)), ("two", (80.0, 1.0))):
        print(f"  {name:8s}{compare(lambda: sample(start, z, times), walk, args.rounds, device)}")


NOW = "import time\ndef now(): return time.perf_counter(), time.process_time()\n"
IMPORTS = (
    NOW
    + """import torch
a = now()
import ect_nb.training.loop, ect_nb.sampling, ect_nb.io.data
import ect_nb.measure.metrics, ect_nb.show.explorer
b = now()
print(b[0] - a[0], b[1] - a[1])
"""
)
PICTURE = (
    NOW
    + """import json, os, IPython.display
notebook = json.load(open("00_sixty_seconds.ipynb", encoding="utf-8"))
page, cells = {}, ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
def shown(*args, **kw):
    d = now()
    print(d[0] - a[0], d[1] - a[1], b[0] - a[0], c[0] - b[0], d[0] - c[0], flush=True)
    os._exit(0)
IPython.display.display = shown
a = now(); import torch
b = now(); import matplotlib.pyplot
c = now()
for cell in cells:
    lines = [l for l in cell.split("\\n") if not l.startswith(("%", "!"))]
    if not cell.startswith("#| hide"): exec("\\n".join(lines), page)
"""
)


def fresh(code, runs):
    """The numbers that `code` prints in fresh processes in nbs/: those of the first, which fills
    the caches of files and bytecode, and those of `runs` more, number by number."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | dict(
        MPLBACKEND="agg"
    )
    run = lambda: (
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=NBS,
            env=env,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
    )
    first, *rest = [[float(v) for v in run().split()] for _ in range(runs + 1)]
    return first, list(zip(*rest))


def against(aim, seconds, busy):
    """Seconds as a share of the aim, with quartiles, and the seconds that the processor worked:
    those a busy machine stretches least."""
    return (
        f"{spread([s / aim for s in seconds])}   {statistics.median(seconds):.3g} s, aim {aim} s,"
        f" processor {statistics.median(busy):.2g} s"
    )


def waiting(args):
    print(
        f"waiting: seconds / the aim (at most 1: met); fresh processes: {args.runs} after a"
        " first one"
    )
    first, (seconds, busy) = fresh(IMPORTS, args.runs)
    print(
        f"  import ect_nb after torch {against(0.3, seconds, busy)}; first process {first[0]:.2f} s"
    )
    first, (seconds, busy, *parts) = fresh(PICTURE, args.runs)
    print(
        f"  first picture of 00       {against(5, seconds, busy)}; first process {first[0]:.1f} s"
    )
    print(
        "    of which {:.1f} s import torch, {:.1f} s import matplotlib,"
        " {:.1f} s are the rest".format(*map(statistics.median, parts))
    )


def slider(n=100):
    """Moves of the flow panel to random points: each draws the flow and the answers of two models
    as a PNG."""
    mixture = GaussianMixture([[-1.1], [0.1], [1.2]], [0.12, 0.05, 0.08], [0.40, 0.25, 0.35])
    picture = FlowPicture(
        mixture,
        {
            name: Precond(MLP(width=64), sigma_data=1.0).eval()
            for name in ("denoiser", "after tuning")
        },
    )
    t = 0.01 * 8000 ** torch.rand(n + 1)
    x, seconds, busy = (4.8 * torch.rand(n + 1) - 2.4) * (1 + t**2).sqrt(), [], []
    for point in zip(x.tolist(), t.tolist()):
        before = time.process_time()
        seconds.append(clock(lambda: picture.draw(*point), torch.device("cpu")))
        busy.append(time.process_time() - before)
    slow = statistics.quantiles(seconds[1:], n=20, method="inclusive")[-1]
    print(
        f"  {n} moves of a slider    {against(0.05, seconds[1:], busy[1:])}; 95th percentile"
        f" {slow:.3f} s"
    )


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--rounds", type=int, default=7)
    args.add_argument("--runs", type=int, default=5)
    args.add_argument("--batch", type=int, default=64)
    args.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args.add_argument(
        "--cifar", action="store_true", help="also the full CIFAR-10 network (bench/cifar.py)"
    )
    args = args.parse_args()
    device = torch.device(args.device)
    start = weights.load(data.find("fashion_mnist_diffusion.safetensors"), device=device)
    wardrobe = data.load("fashion_mnist_20k").to(device)
    print(
        f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads, batch"
        f" {args.batch}; median and quartiles of {args.rounds} paired runs"
    )
    training(start, wardrobe, args, device)
    sampling(start, args, device)
    waiting(args)
    slider()
    if args.cifar:
        subprocess.run(
            [sys.executable, str(Path(__file__).with_name("cifar.py")), "--device", args.device],
            check=True,
        )


if __name__ == "__main__":
    main()
