"""What enlarging and rounding do in the real Inception: 40 test pictures of CIFAR-10, each prepared
five ways, and how far apart the ways are. Writes bench/inception.jsonl.

usage: ECT_NB_INCEPTION=inception-2015-12-05.pt ECT_NB_DATA=folder python bench/inception.py about
200 pictures through Inception"""

import json
import platform
import torch
from ect_nb.io import data
from ect_nb.measure import features, metrics
from pathlib import Path

N = 40


def main():
    pictures = data.load("cifar10", split="test")
    g = torch.Generator().manual_seed(0)
    x = pictures.batch(torch.randperm(len(pictures), generator=g)[:N])
    floats = (x + (torch.rand(x.shape, generator=g) - 0.5) / 127.5).clamp(
        -1, 1
    )  # what a sampler would have given to be rounded to these bytes
    legacy, clean = features.inception(), features.inception("clean")
    bilinear = lambda x: clean.network.net(127.5 * features.resize(x, 299, "bilinear") + 127.5)
    ways = {
        "legacy_tensorflow, rounded": (legacy, features.quantise(floats)),
        "legacy_tensorflow, truncated": (legacy, features.quantise(floats, "truncate")),
        "legacy_tensorflow, floats": (legacy, floats),
        "clean, rounded": (clean, features.quantise(floats)),
        "bilinear, rounded": (bilinear, features.quantise(floats)),
    }
    seen = {}
    for way, (network, pictures) in ways.items():
        seen[way] = features.features(network, pictures, batch=10)
        print(way, flush=True)
    base = seen["legacy_tensorflow, rounded"]
    across = torch.pdist(base).mean()
    lines = []
    for way, f in seen.items():
        m, m0 = metrics.Moments.of(f), metrics.Moments.of(base)
        lines.append(
            dict(
                data="cifar10 test",
                n=N,
                features=legacy.name,
                weights=legacy.checksum,
                way=way,
                against="legacy_tensorflow, rounded",
                distance=round(metrics.frechet_distance(m0.mean, m0.cov, m.mean, m.cov), 4),
                moved=round(((f - base).norm(dim=1).mean() / across).item(), 4),
                seed=0,
                device=f"cpu {platform.machine()}",
                torch=torch.__version__,
            )
        )
    Path(__file__).with_suffix(".jsonl").write_text("".join(json.dumps(l) + "\n" for l in lines))
    print(*map(json.dumps, lines), sep="\n")


if __name__ == "__main__":
    main()
