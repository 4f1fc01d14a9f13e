"""Train the small classifier of Fashion-MNIST whose features the kit measures distances in, and
write it to data/fashion_mnist_classifier.safetensors.

usage: python tools/make_fashion_classifier.py [--epochs 7] [--seed 0] six to eight minutes on one
CPU core

Writes the moments of the training pictures' features too, to
data/fashion_mnist_statistics.safetensors, so that nobody has to compute them again."""

import argparse
import platform
import time
import torch
from ect_nb.io import data, weights
from ect_nb.measure import features, metrics
from ect_nb.networks import Classifier
from pathlib import Path
from torch.nn import functional as F

OUT = Path(__file__).resolve().parents[1] / "data" / "fashion_mnist_classifier.safetensors"
BATCH, RATE, DECAY, SMOOTHING, SHIFT = 128, 3e-3, 0.05, 0.1, 1


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--epochs", type=int, default=7)
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--out", type=Path, default=OUT)
    args = args.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    model = train(data.load("fashion_mnist_20k"), args.epochs, args.seed)
    seconds = time.perf_counter() - start
    weights.save(
        model, args.out, dtype=torch.float16
    )  # what is stated below is true of the rounded weights, which are what is shipped
    model = weights.load(args.out)
    facts = dict(
        command=(
            f"python tools/make_fashion_classifier.py --epochs {args.epochs} --seed {args.seed}"
        ),
        seed=args.seed,
        data="fashion_mnist_20k",
        epochs=args.epochs,
        batch=BATCH,
        test_accuracy=accuracy(model, data.load("fashion_mnist_20k", split="test")),
        seconds=round(seconds),
        hardware=f"1 thread of {processor()}",
        software=dict(python=platform.python_version(), torch=torch.__version__),
    )
    weights.save(model, args.out, dtype=torch.float16, **facts)
    if args.out == OUT:
        metrics.save_reference(
            OUT.with_name("fashion_mnist_statistics.safetensors"),
            data.load("fashion_mnist_20k"),
            features.small_features(),
        )
    print(facts)


def train(pictures, epochs, seed):
    """AdamW with one rise and fall of the learning rate; pictures are mirrored and shifted by up to
    a pixel, labels smoothed."""
    torch.manual_seed(seed)
    model, steps = (
        Classifier().to(memory_format=torch.channels_last),
        epochs * (len(pictures) // BATCH),
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, RATE, total_steps=steps, pct_start=0.2
    )
    for epoch in range(epochs):
        order = torch.randperm(len(pictures))[: len(pictures) // BATCH * BATCH]
        for i in order.view(-1, BATCH):
            loss = F.cross_entropy(
                model(jitter(pictures.batch(i))), pictures.labels[i], label_smoothing=SMOOTHING
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def jitter(x):
    """Mirror each picture with probability 1/2; shift the batch by up to SHIFT pixels (black comes
    in)."""
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
    dy, dx = torch.randint(2 * SHIFT + 1, (2,)).tolist()
    return F.pad(x, [SHIFT] * 4, value=-1)[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]]


@torch.no_grad()
def accuracy(model, pictures):
    right = sum(
        (model(pictures.batch(i)).argmax(1) == pictures.labels[i]).sum().item()
        for i in torch.arange(len(pictures)).split(250)
    )
    return right / len(pictures)


def processor():
    "The name of the processor."
    try:
        return next(
            line.split(":")[1].strip()
            for line in open("/proc/cpuinfo")
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
