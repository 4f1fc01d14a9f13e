import math
import pytest
import torch
from ect_nb.analytic import GaussianMixture
from ect_nb.consistency import (
    boundary_error,
    error_bound,
    jumps,
    map_error,
    residual,
    residual_map,
    total_derivative,
)
from torch import nn

MIX = GaussianMixture([-1.1, 0.1, 1.2], [0.12, 0.05, 0.08], [0.40, 0.25, 0.35])


def noisy(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return MIX.sample(n, g).double(), torch.randn(n, generator=g, dtype=torch.float64)


def line(x, t):
    return 2 * x + 3 * t.view(-1, *[1] * (x.ndim - 1))


def strict(x, t):
    "A model that, like the ideal denoiser of a finite set, has no answer at t = 0."
    assert len(x) and (t > 0).all()
    return line(x, t)


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 3, 5, 5)])
def test_residual_row_by_row(shape):
    x0, eps = torch.randn(shape), torch.randn(shape)
    t, r = torch.tensor([0.5, 1.0, 2.0, 3.0]), torch.tensor([0.0, 0.4, 2.0, 0.0])
    found = residual(strict, x0, t, r, eps)
    for i in range(
        4
    ):  # f(x_t, t) - f(x_r, r) = (t - r) (2 eps + 3); at r = 0, 2 x0 + 2 t eps + 3 t - x0
        wanted = x0[i] + t[i] * (2 * eps[i] + 3) if r[i] == 0 else (t[i] - r[i]) * (2 * eps[i] + 3)
        assert torch.allclose(found[i], wanted, atol=1e-5)
    assert (found[2] == 0).all()
    assert torch.allclose(
        residual(strict, x0, 2.0, 0.0, eps), x0 + 2 * (2 * eps + 3), atol=1e-5
    )  # no row needs the model at r


def test_residual_lets_gradients_through_both_branches():
    scale = torch.ones((), requires_grad=True)
    residual(
        lambda x, t: scale * x,
        torch.ones(2),
        torch.tensor([3.0, 3.0]),
        torch.tensor([0.0, 1.0]),
        torch.ones(2),
    ).sum().backward()
    assert scale.grad == 4 + (4 - 2)


def test_wrong_levels_say_so():
    x = torch.zeros(3)
    for call, words in [
        (lambda: residual(line, x, 1.0, 2.0, x), "0 <= r <= t"),
        (lambda: residual(line, x, 1.0, -1.0, x), "0 <= r <= t"),
        (lambda: residual(line, x, torch.ones(2), 0.0, x), "must be a number or have shape"),
        (lambda: residual(line, x, 1.0, 0.0, torch.zeros(3, 1)), "shape of x0"),
        (lambda: jumps(line, MIX.transport, x, [1.0]), "times must fall"),
        (lambda: jumps(line, MIX.transport, x, [1.0, 2.0]), "times must fall"),
        (lambda: jumps(line, MIX.transport, x, [1.0, -2.0]), "times must fall"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


def test_total_derivative_against_differences_along_the_path():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1)
    ).double()
    model = lambda x, t: net(torch.cat([x, t.log().view(-1, 1, 1, 1).expand_as(x)], 1))
    velocity = lambda x, t: x.sin() * t.view(-1, 1, 1, 1)
    x, t, h = (
        torch.randn(3, 1, 4, 4, dtype=torch.float64),
        torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64),
        1e-5,
    )
    v = velocity(x, t)
    wanted = (model(x + h * v, t + h) - model(x - h * v, t - h)) / (2 * h)
    assert torch.allclose(total_derivative(model, velocity, x, t), wanted, atol=1e-7)


def test_the_exact_map_is_consistent_and_the_denoiser_is_not():
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    for t, seen in (
        (0.05, 7.0),
        (0.5, 0.9),
        (5.0, 0.02),
    ):  # the denoiser changes most where bumps part
        assert total_derivative(MIX.exact_map, MIX.velocity, x, t).abs().max() < 1e-9
        assert total_derivative(MIX.denoise, MIX.velocity, x, t).abs().max() > seen
        assert (total_derivative(lambda x, t: 0 * x + 1, MIX.velocity, x, t) == 0).all()


def test_boundary_error():
    x = torch.tensor([1.0, -2.0, 2.0])
    assert boundary_error(MIX.exact_map, x) == 0
    assert boundary_error(lambda x, t: 0 * x, x).item() == pytest.approx(math.sqrt(3))
    assert boundary_error(strict, x, t=1e-3).item() == pytest.approx(
        math.sqrt(sum((v + 0.003) ** 2 for v in (1, -2, 2)) / 3)
    )


def test_residual_map():
    x0, eps = noisy(300)
    ts, rs = [0.5, 1.0, 2.0], [0.0, 0.5, 1.0]
    found = residual_map(strict, x0, ts, rs, eps)
    for i, t in enumerate(ts):
        for j, r in enumerate(rs):
            if r >= t:
                assert found[i, j].isnan()
            elif r > 0:
                assert found[i, j].item() == pytest.approx(
                    (t - r) * (2 * eps + 3).square().mean().sqrt().item(), rel=1e-6
                )
            else:
                assert found[i, j].item() == pytest.approx(
                    (x0 + t * (2 * eps + 3)).square().mean().sqrt().item(), rel=1e-6
                )
    along = residual_map(MIX.exact_map, x0, ts, rs, eps, MIX.transport)
    assert along.nan_to_num(0).max() < 1e-9
    assert (
        residual_map(MIX.exact_map, x0, ts, rs, eps).nan_to_num(9).min() > 0.01
    )  # pairs with the same noise leave the path
    constant = residual_map(lambda x, t: 0 * x, x0, ts, rs, eps)
    assert constant[:, 1:].nan_to_num(0).max() == 0 and torch.allclose(
        constant[:, 0], x0.square().mean().sqrt().float().expand(3)
    )


def test_map_error():
    x0, eps = noisy(100)
    shifted = lambda x, t: MIX.exact_map(x, t) + 0.3 * t
    assert torch.allclose(
        map_error(shifted, MIX.exact_map, x0, [0.5, 2.0], eps),
        torch.tensor([0.15, 0.6], dtype=torch.float64),
    )


def test_jumps_telescope_and_the_bound_holds_at_every_level():
    "One Gaussian N(m, s^2): map, denoiser and transport on paper."
    m, s = 0.4, 0.5
    transport = lambda x, t, r: m + (x - m) * math.sqrt((s**2 + r**2) / (s**2 + t**2))
    denoise = lambda x, t: m + (x - m) * s**2 / (s**2 + t**2)
    x = m + torch.randn(
        500, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ) * math.sqrt(s**2 + 100)
    times = [10.0, 3.0, 1.0, 0.3, 0.1, 0.0]
    found = jumps(denoise, transport, x, times)
    assert found.shape == (5, 500)
    assert torch.allclose(found.sum(0), denoise(x, 10.0) - transport(x, 10.0, 0.0), atol=1e-12)
    bound = error_bound(found)
    for n, t in enumerate(times[:-1]):
        y = transport(x, 10.0, t)
        assert (denoise(y, t) - transport(y, t, 0.0)).square().mean().sqrt() <= bound[n] + 1e-9
    assert (bound.diff() < 0).all()


def test_the_bound_is_attained_when_all_errors_agree():
    delta, times = 0.01, [8.0, 4.0, 2.0, 1.0, 0.0]
    steps = torch.tensor(times[::-1], dtype=torch.float64)
    model = lambda x, t: MIX.exact_map(x, t) + delta * torch.searchsorted(steps, t.double())
    x0, eps = noisy(50)
    found = jumps(model, MIX.transport, x0 + 8 * eps, times)
    assert torch.allclose(found, torch.full_like(found, delta), atol=1e-9)
    assert torch.allclose(
        error_bound(found), delta * torch.tensor([4.0, 3, 2, 1], dtype=torch.float64), atol=1e-8
    )


def test_pairs_with_the_same_noise_are_one_euler_step_on_average():
    """Of all pairs, those whose x_t falls near x: the mean of x_r there, against x_t + (r - t) v,
    within five standard errors."""
    g = torch.Generator().manual_seed(2)
    x0, eps = MIX.sample(2_000_000, g), torch.randn(2_000_000, generator=g)
    x_t = x0 + eps
    for x in (-1.0, 0.4, 2.0):
        near = (x_t - x).abs() < 0.02
        left = (x0 + 0.5 * eps)[near] - (x_t[near] - 0.5 * MIX.velocity(x_t[near], 1.0))
        assert left.mean().abs() < 5 * left.std() / math.sqrt(near.sum()) and near.sum() > 5000


def divides_at_one():
    "Where at t = 1 the exact map leaps from tread to tread: the two largest leaps, by bisection."
    grid = torch.linspace(-3, 3, 601, dtype=torch.float64)
    found = []
    for i in MIX.exact_map(grid, 1.0).diff().topk(2).indices.tolist():
        low, high = grid[i], grid[i + 1]
        for _ in range(40):
            middle = (low + high) / 2
            a, b, c = MIX.exact_map(torch.stack([low, middle, high]), 1.0)
            low, high = (low, middle) if b - a > c - b else (middle, high)
        found.append(float(low))
    return found


def rms_of_the_mean_over_pairs(gap, n=120):
    """Over all noisy points at t = 1: rms of E[f*(x_r, r) | x_t] - f*(x_t, t), from the strips
    around the divides alone, by quantiles of each bump of the posterior."""
    square, q = 0.0, torch.special.ndtri((torch.arange(20, dtype=torch.float64) + 0.5) / 20)
    for divide in divides_at_one():
        x = divide + 3 * gap * torch.linspace(-1, 1, n, dtype=torch.float64)
        var = MIX.stds**2 + 1
        p = (MIX.weights.log() - (x[:, None] - MIX.means) ** 2 / (2 * var) - var.log() / 2).softmax(
            1
        )
        x0 = (MIX.means + MIX.stds**2 / var * (x[:, None] - MIX.means))[..., None] + (
            MIX.stds / var.sqrt()
        )[:, None] * q
        ends = MIX.exact_map((x0 + (1 - gap) * (x[:, None, None] - x0)).flatten(), 1 - gap).view_as(
            x0
        )
        off = (p * ends.mean(2)).sum(1) - MIX.exact_map(x, 1.0)
        square += float(torch.trapezoid(MIX.log_prob(x, 1.0).exp() * off.square(), x))
    return square**0.5


def test_over_all_noisy_data_the_mean_over_pairs_is_off_by_the_root_of_the_gap():
    wide, narrow = rms_of_the_mean_over_pairs(1 / 64), rms_of_the_mean_over_pairs(1 / 4096)
    assert (
        2**0.5 < (wide / narrow) ** (1 / 6) < 1.52
    )  # a halving: the root of two, and a little for the bent ends of the treads
    assert wide == pytest.approx(0.034, rel=0.05)  # sixty points of the crowd give 0.0008
