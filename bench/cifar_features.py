"""What distances in the features of the kit's small classifier of CIFAR-10 mean: the 10,000 test
pictures as they are (the floor) and without one class, 5,000 of them with a little noise and
blurred, each against the 50,000 training pictures. Writes bench/cifar_features.jsonl.

usage: ECT_NB_DATA=folder python bench/cifar_features.py 70,000 pictures through the classifier, a
few minutes on one CPU core"""

import json
import os
import platform
import torch
from ect_nb.io import data
from ect_nb.measure import features, metrics
from pathlib import Path
from torch.nn import functional as F

NOISE, LEFT_OUT = 0.1, 3  # standard deviation, of pictures in [-1, 1]; the class


def main():
    torch.set_num_threads(1)
    network, train, test = (
        features.small_features("cifar10"),
        data.load("cifar10"),
        data.load("cifar10", split="test"),
    )
    reference, g = metrics.reference(train, network), torch.Generator().manual_seed(0)
    look = lambda n, change: torch.cat(
        [
            metrics.features(network, features.quantise(change(test.batch(i))))
            for i in torch.arange(n).split(500)
        ]
    )
    plain = look(10_000, lambda x: x)
    seen = {
        "as they are": plain,
        f"noise, σ = {NOISE}": look(5000, lambda x: x + NOISE * torch.randn(x.shape, generator=g)),
        "blurred, 3 × 3": look(5000, blur),
        f"without the class {test.classes[LEFT_OUT]}": plain[test.labels != LEFT_OUT],
    }
    lines = []
    for way, rows in seen.items():
        d = metrics.distance(rows, reference)
        lines.append(
            dict(
                data="cifar10 test",
                way=way,
                n=d.n,
                n_reference=reference.n,
                features=d.features,
                weights=network.checksum,
                value=round(d.value, 4),
                low=round(d.low, 4),
                high=round(d.high, 4),
                bias=round(d.bias, 4),
                seed=0,
                device=f"cpu {platform.machine()}",
                torch=torch.__version__,
            )
        )
        print(json.dumps(lines[-1], ensure_ascii=False), flush=True)
    out = Path(__file__).with_suffix(".jsonl")
    part = out.with_name(f"part_{out.name}")
    part.write_text("".join(json.dumps(l, ensure_ascii=False) + "\n" for l in lines))
    os.replace(part, out)


def blur(x):
    "Each pixel mixed with its neighbours, 1 2 1 in both directions."
    w = torch.tensor([1.0, 2.0, 1.0]) / 4
    return F.conv2d(
        F.pad(x, [1] * 4, mode="reflect"), (w[:, None] * w).expand(3, 1, 3, 3), groups=3
    )


if __name__ == "__main__":
    main()
