"""A second pair of eyes for the study: a classifier of another architecture and seed, whose 48
hidden numbers neither training nor the choice of a recipe has seen.

usage: python bench/second_eye.py    two minutes on one CPU core; writes
data/fashion_mnist_second_eye.safetensors"""

import time
import torch
from ect_nb.io import data, weights
from ect_nb.measure.features import FeatureNetwork
from pathlib import Path
from torch import nn
from torch.nn import functional as F

NAME = "fashion_mnist_second_eye.safetensors"
EPOCHS, BATCH, RATE, SEED = 6, 100, 1e-3, 1


class SecondEye(nn.Module):
    """Three strided convolutions and a dense layer, without normalisation, pooling or augmentation:
    `x` (B, 1, 28, 28) -> logits (B, 10)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 24, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(24, 48, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(48, 96, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(1536, 48),
        )
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        return self.head(F.gelu(self.body(x)))


def second_eye():
    "The feature network, loaded."
    model = weights.load(data.find(NAME), into=SecondEye())
    return FeatureNetwork(model, "second_eye_48", model.body, shape=(1, 28, 28), dim=48)


def main():
    torch.manual_seed(SEED)
    began, model, pictures = time.process_time(), SecondEye(), data.load("fashion_mnist_20k")
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(pictures)).split(BATCH):
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - epoch / EPOCHS)
            loss = F.cross_entropy(model(pictures.batch(rows)), pictures.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    test = data.load("fashion_mnist_20k", split="test")
    with torch.no_grad():
        right = model(test.batch(torch.arange(len(test)))).argmax(1) == test.labels
    facts = dict(
        command="python bench/second_eye.py",
        seed=SEED,
        data="fashion_mnist_20k",
        epochs=EPOCHS,
        test_accuracy=round(float(right.float().mean()), 4),
        cpu_seconds=round(time.process_time() - began),
    )
    out = Path(__file__).resolve().parents[1] / "data" / NAME
    weights.save(model, out, dtype=torch.float16, **facts)
    print(facts)


if __name__ == "__main__":
    main()
