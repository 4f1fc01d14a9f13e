"""Which network the CIFAR-10 preset `cpu` should train: each candidate learns denoising, told the
class, with the same number of operations; its loss on test pictures decides.

Appends lines to bench/cifar_cpu.jsonl and writes bench/cifar_cpu.md from them. A candidate that was
stopped goes on where it stood; one that is done is left alone.

usage: ECT_NB_DATA=folder python bench/cifar_cpu.py --tera 20 --folder runs/cifar-cpu
       python bench/cifar_cpu.py table"""

import argparse
import json
import platform
import time
import torch
from ect_nb.diffusion import Precond, denoising_loss, heun, karras_times
from ect_nb.io import data
from ect_nb.measure import features, metrics
from ect_nb.measure.features import quantise
from ect_nb.networks import UNet, one_hot
from ect_nb.sampling import told
from ect_nb.schedules import LogNormal
from ect_nb.training.config import Config
from ect_nb.training.loop import train
from ect_nb.training.runs import RunFolder
from ect_nb.training.speed import flops
from pathlib import Path

HERE = Path(__file__).parent
SHAPE = (3, 32, 32)
ALL = dict(resolution=32, channels=3, patch=2, label_dim=10, attention=(8,))
CANDIDATES = {
    "32 × (1, 3), 1 block": dict(model_channels=32, channel_mult=(1, 3), num_blocks=1),
    "64 × (1, 2), 1 block": dict(model_channels=64, channel_mult=(1, 2), num_blocks=1),
    "48 × (1, 2, 2), 1 block": dict(model_channels=48, channel_mult=(1, 2, 2), num_blocks=1),
}
TEXT = """# The network of the preset `cpu`

Written by `python bench/cifar_cpu.py table` from `cifar_cpu.jsonl`. Every candidate folds 2 × 2
pixels, is told the class, and spends the same number of operations (3 for each of a pass, `tera`
10¹² in all) on learning to denoise CIFAR-10: Adam, batch 32, peak rate 1.5e-3, warm-up of a
thousand pictures, cosine decay, one seed, one thread. `test loss` is EDM's, on 1,000 test pictures
with one fixed noise; `walk` the Fréchet distance of 500 samples of 18 Heun steps to the training
pictures, in 64 features of the kit's classifier (not FID). Short trials favour small networks: of
two that come out alike the larger has more to gain from hours. Seconds are the processor's, on a
machine with much other work."""


def network(name):
    torch.manual_seed(0)
    return Precond(UNet(**ALL, **CANDIDATES[name]), sigma_data=0.5)


def trial(name, tera, home, pictures):
    "Train the candidate `name`, and write what came of it."
    model = network(name)
    F = flops(model, SHAPE, labels=torch.zeros(1, 10))
    config = Config.diffusion(
        kimg=tera * 1e9 / (3 * F), batch=32, lr=1.5e-3, warmup_kimg=1, ema=0.995, seed=0
    )
    folder = RunFolder(home / f"{CANDIDATES[name]['model_channels']}-{tera:g}")
    began = time.process_time()
    for p in train(model, pictures, config, folder.path):
        pass
    spent = time.process_time() - began
    loss, walk = judged(p.ema, pictures)
    return dict(
        network=name,
        parameters=sum(a.numel() for a in model.parameters()),
        mega=round(F / 1e6),
        tera=tera,
        kimg=round(p.kimg, 1),
        test_loss=round(loss, 2),
        walk=round(walk, 1),
        cpu_seconds=round(spent),
        threads=torch.get_num_threads(),
        device=f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        torch=torch.__version__,
    )


@torch.no_grad()
def judged(model, pictures):
    "The loss on test pictures, and the distance of the walk."
    test, dice = data.load("cifar10", split="test"), torch.Generator().manual_seed(0)
    t, eps = LogNormal(-1.2, 1.2).sample(1000, dice), torch.randn(1000, *SHAPE, generator=dice)
    losses = []
    for rows in torch.arange(1000).split(100):
        labels = one_hot(test.labels[rows], 10)
        f = lambda x, s: model(x, s, labels=labels)
        losses.append(denoising_loss(f, test.batch(rows), t[rows], eps[rows]))
    eye = features.small_features("cifar10")
    z = torch.randn(500, *SHAPE, generator=torch.Generator().manual_seed(7))
    x = torch.cat([heun(told(model), part, karras_times(18)) for part in z.split(100)])
    found = metrics.distance(metrics.features(eye, quantise(x)), metrics.reference(pictures, eye))
    return float(torch.cat(losses).mean()), found.value


def lines():
    file = HERE / "cifar_cpu.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def table():
    found = sorted(lines(), key=lambda line: (line["tera"], line["test_loss"]))
    keys = "network parameters mega tera kimg test_loss walk cpu_seconds threads device".split()
    rows = [keys, ["---"] * len(keys), *([line[k] for k in keys] for line in found)]
    text = "\n".join("| " + " | ".join(map(str, r)) + " |" for r in rows)
    (HERE / "cifar_cpu.md").write_text(f"{TEXT}\n\n{text}\n")


def main():
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("what", nargs="?", choices=["run", "table"], default="run")
    args.add_argument("--tera", type=float, default=20, help="10¹² operations for each candidate")
    args.add_argument("--folder", type=Path, default=Path("runs/cifar-cpu"))
    args = args.parse_args()
    if args.what == "run":
        pictures = data.load("cifar10")
        for name in CANDIDATES:
            if any((line["network"], line["tera"]) == (name, args.tera) for line in lines()):
                continue
            line = trial(name, args.tera, args.folder, pictures)
            with (HERE / "cifar_cpu.jsonl").open("a") as f:
                f.write(json.dumps(line, ensure_ascii=False) + "\n")
            print(line, flush=True)
    if lines():
        table()


if __name__ == "__main__":
    main()
