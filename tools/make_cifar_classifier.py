"""Train the small classifier of CIFAR-10 whose features the kit measures distances of colour
pictures in, and write it to data/cifar10_classifier.safetensors.

usage: ECT_NB_DATA=folder python tools/make_cifar_classifier.py [--half 3] [--full 1] [--seed 0]
float32, fifteen minutes on one CPU core busy with other work too

The first epochs see the pictures at half their size, where a step costs a quarter, the last at
their own. `folder` holds CIFAR-10 (Krizhevsky 2009), which the kit does not redistribute. The
moments of the training pictures' features are computed where CIFAR-10 is at hand,
`metrics.reference`."""

import argparse
import os
import platform
import sys
import time
import torch
from ect_nb.io import data, weights
from ect_nb.networks import Classifier
from pathlib import Path
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))
from make_fashion_classifier import accuracy, processor

OUT = Path(__file__).resolve().parents[1] / "data" / "cifar10_classifier.safetensors"
BATCH, RATE, DECAY, SMOOTHING, SHIFT, WIDTH = 128, 5e-3, 0.05, 0.1, 3, 64


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--half", type=int, default=3, help="epochs at 16 x 16")
    args.add_argument("--full", type=int, default=1, help="epochs at 32 x 32, after those")
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--out", type=Path, default=OUT)
    args = args.parse_args()
    torch.set_num_threads(1)
    pictures, test = data.load("cifar10"), data.load("cifar10", split="test")
    start = time.perf_counter()
    model = train(pictures, args.half, args.full, args.seed)
    seconds = time.perf_counter() - start
    part = args.out.with_name(f"part_{args.out.name}")
    weights.save(
        model, part, dtype=torch.float16
    )  # what is stated below is true of the rounded weights, which are what is shipped
    model = weights.load(part)
    facts = dict(
        command=(
            f"ECT_NB_DATA=folder python tools/make_cifar_classifier.py --half {args.half} --full"
            f" {args.full} --seed {args.seed}"
        ),
        seed=args.seed,
        data="cifar10 (Krizhevsky 2009), 50,000 training pictures, not redistributed",
        pictures=pictures.checksum,
        epochs=args.half + args.full,
        epochs_at_half_size=args.half,
        batch=BATCH,
        learning_rate=RATE,
        shift=SHIFT,
        test_accuracy=accuracy(model.to(memory_format=torch.channels_last), test),
        seconds=round(seconds),
        hardware=f"1 thread of {processor()}, shared with other work",
        software=dict(python=platform.python_version(), torch=torch.__version__),
    )
    weights.save(model, part, dtype=torch.float16, **facts)
    os.replace(part, args.out)
    print(facts)


def train(pictures, half, full, seed):
    """AdamW with one rise and fall of the learning rate; pictures are mirrored and shifted by up to
    SHIFT pixels, labels smoothed."""
    torch.manual_seed(seed)
    model, steps = (
        Classifier(channels=3, classes=10, width=WIDTH).to(memory_format=torch.channels_last),
        (half + full) * (len(pictures) // BATCH),
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, RATE, total_steps=steps, pct_start=0.2
    )
    start, done = time.perf_counter(), 0
    for epoch in range(half + full):
        for i in torch.randperm(len(pictures))[: len(pictures) // BATCH * BATCH].view(-1, BATCH):
            x = jitter(pictures.batch(i))
            x = (F.avg_pool2d(x, 2) if epoch < half else x).contiguous(
                memory_format=torch.channels_last
            )
            loss = F.cross_entropy(model(x), pictures.labels[i], label_smoothing=SMOOTHING)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            done += 1
            if done % 50 == 0:
                print(
                    f"step {done} of {steps}: loss {loss.item():.3f},"
                    f" {time.perf_counter() - start:.0f} s",
                    flush=True,
                )
    return model.eval()


def jitter(x):
    """Mirror each picture with probability 1/2; shift the batch by up to SHIFT pixels (the border
    is mirrored in)."""
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
    dy, dx = torch.randint(2 * SHIFT + 1, (2,)).tolist()
    return F.pad(x, [SHIFT] * 4, mode="reflect")[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]]


if __name__ == "__main__":
    main()
