"""Measure, in one run and as ratios, what the kit claims to be fast at. Machines differ and are noisy: read the ratios and their spread, not the seconds.

usage: python bench/bench.py [--rounds 7] [--batch 64] [--device cpu]"""
import argparse, statistics, subprocess, sys, time
import torch
from ect_nb import checkpoints, data
from ect_nb.diffusion import heun, karras_times
from ect_nb.sampling import sample
from ect_nb.schedules import Stages
from ect_nb.training import Config, choose_precision, draw, fast_precisions, residual_errors, train


def clock(work, device):
    began = time.perf_counter()
    work()
    if device.type == "cuda": torch.cuda.synchronize()
    return time.perf_counter() - began


def compare(ours, other, rounds, device):
    "Median of `rounds` paired ratios time(other) / time(ours), and their quartiles; the two take turns, so that a slow minute hits both."
    ours(), other()
    ratios = sorted(clock(other, device) / clock(ours, device) for _ in range(rounds))
    low, _, high = statistics.quantiles(ratios, n=4)
    return f"{statistics.median(ratios):6.2f}  [{low:.2f}, {high:.2f}]"


def plain_step(model, optimizer, x0, t, r, eps):
    "ECT as one would first write it: eager, float32, both branches for every row."
    def step():
        level = lambda s: s.reshape(-1, 1, 1, 1)
        f_t = model(x0 + level(t) * eps, t)
        with torch.no_grad(): f_r = model(x0 + level(r) * eps, torch.where(r > 0, r, t))
        target = torch.where(level(r) > 0, f_r, x0)
        loss = ((f_t - target).square().flatten(1).sum(1).add(1e-12).sqrt() / (t - r)).mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    return step


def training(start, wardrobe, args, device):
    print("training step: plain eager float32 / the kit's trainer (above 1: the kit is faster)")
    for stage in (0, 1, 3, 5):
        config = Config(kimg=1e6, batch=args.batch, stages=Stages(start=stage))
        x0, t, r, eps = draw(config, wardrobe, 0, stage, device)
        errors = residual_errors(start, x0, t, r, eps, fast_precisions(device))
        config = Config(kimg=1e6, batch=args.batch, stages=Stages(start=stage), precision=choose_precision(errors))
        run = train(start, wardrobe, config, device=device)
        plain = checkpoints.load(data.find("fashion_mnist_diffusion.safetensors"), device=device).train()
        other = plain_step(plain, torch.optim.RAdam(plain.parameters(), 1e-4), x0, t.to(device), r.to(device), eps)
        share = float((r > 0).float().mean())
        print(f"  stage {stage}  {compare(lambda: next(run), other, args.rounds, device)}   {config.precision}, residual error {', '.join(f'{p} {e:.2f}' for p, e in errors.items()) or '-'}, {share:.0%} of rows need the second pass")


def sampling(start, args, device):
    print("sampling: 35-evaluation Heun / few evaluations")
    z = torch.randn(16, 1, 28, 28, device=device)
    walk = lambda: heun(start, 80 * z, karras_times(18))
    for name, times in (("one", (80.0,)), ("two", (80.0, 1.0))):
        print(f"  {name:8s}{compare(lambda: sample(start, z, times), walk, args.rounds, device)}")


def imports(args):
    "Seconds that the modules used by most add to `import torch`."
    code = "import time, torch; a = time.perf_counter(); import ect_nb.training, ect_nb.sampling, ect_nb.data, ect_nb.metrics; print(time.perf_counter() - a)"
    seconds = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(3)]
    print(f"import ect_nb beyond torch: {min(seconds):.2f} s (best of 3)")


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--rounds", type=int, default=7)
    args.add_argument("--batch", type=int, default=64)
    args.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = args.parse_args()
    device = torch.device(args.device)
    start = checkpoints.load(data.find("fashion_mnist_diffusion.safetensors"), device=device)
    wardrobe = data.load("fashion_mnist_20k").to(device)
    print(f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads, batch {args.batch}; median and quartiles of {args.rounds} paired runs")
    training(start, wardrobe, args, device)
    sampling(start, args, device)
    imports(args)


if __name__ == "__main__": main()
