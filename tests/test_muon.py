"""Muon against torch's own, against the polynomial written out, and in a run that is stopped."""

import pytest
import torch
from ect_nb.diffusion import Precond
from ect_nb.networks import MLP
from ect_nb.training.config import Config, validated
from ect_nb.training.loop import train
from ect_nb.training.muon import COEFFICIENTS, Muon, is_matrix, orthogonal
from ect_nb.training.runs import checksum

POINTS = torch.randn(48, 2, generator=torch.Generator().manual_seed(0))


def matrix(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 70), (70, 24), (32, 32)])
def test_polynomial_written_out(shape):
    """The products kept small give what the iteration on the whole matrix gives, in float64."""
    G, (a, b, c) = matrix(*shape), COEFFICIENTS
    X = G.double() / G.double().norm()
    for _ in range(5):
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    assert torch.allclose(orthogonal(G).double(), X, atol=2e-4)


@pytest.mark.parametrize("shape", [(24, 70), (70, 24)])
def test_torchs_own(shape):
    "Three steps of torch.optim.Muon, which computes in bfloat16, go the same way."
    own, other = (torch.nn.Parameter(matrix(*shape, seed=9)) for _ in range(2))
    begun = own.detach().clone()
    ours = Muon([own], lr=0.01, momentum=0.95)
    theirs = torch.optim.Muon(
        [other], lr=0.01, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(3):
        own.grad, other.grad = (matrix(*shape, seed=step) for _ in range(2))
        ours.step()
        theirs.step()
    apart = (own - other).norm() / (other - begun).norm()
    assert apart < 0.05, float(apart)


def test_what_is_a_matrix():
    kinds = {(64, 16): True, (64, 15): False, (15, 64): False, (64,): False, (32, 16, 3, 3): True}
    assert {shape: is_matrix(torch.zeros(shape)) for shape in kinds} == kinds


def test_a_stopped_run_goes_on_to_the_bit(tmp_path):
    config = Config(kimg=0.08, batch=8, optimizer="Muon", lr=1e-2, decay="linear")
    torch.manual_seed(0)
    start = Precond(MLP(dim=2, width=32), sigma_data=1.0)
    for whole in train(start, POINTS, config):
        pass
    for _ in range(12):
        for p in train(start, POINTS, config, tmp_path / "run", time_limit=0):
            pass
    assert p.step == whole.step == 10
    assert checksum(p.ema.state_dict()) == checksum(whole.ema.state_dict())


def test_by_name():
    assert validated(Config(optimizer="Muon"))
    with pytest.raises(ValueError, match="Muon"):
        validated(Config(optimizer="Moun"))
