"""Edits against laws in closed form: a Gaussian given a part of it, and a pair without a bond."""

import math
import pytest
import torch
from ect_nb.analytic import GaussianMixture
from ect_nb.edit import SAME, along, bent, blocks, edit, guided, over_classes, written
from ect_nb.sampling import sample

EIGHT = (80.0, 12.0, 5.0, 2.5, 1.2, 0.7, 0.4, 0.2)
N = 4000


def dice(k):
    return torch.Generator().manual_seed(k)


def bonded(rho=0.8):
    "The exact consistency map of N(0, [[1, rho], [rho, 1]]): a matrix for each level."
    w, V = torch.linalg.eigh(torch.tensor([[1.0, rho], [rho, 1.0]]))

    def f(x, t):
        shrink = (w / (w + t[:, None] ** 2)).sqrt().to(x)
        return (x @ V.to(x) * shrink) @ V.T.to(x)

    return f


def given(rho, times, pull):
    "The second coordinate of edits whose first is known to be 1.5."
    y = torch.tensor([[1.5, 0.0]]).expand(N, 2)
    z = torch.randn(N, 2, generator=dice(0))
    x = edit(bonded(rho), z, y, torch.tensor([1.0, 0.0]), times, dice(1), pull)
    assert torch.equal(x[:, 0], y[:, 0])
    return x[:, 1]


def test_the_exact_map_of_the_test_is_exact():
    x, t = torch.randn(50, 2, generator=dice(2)), torch.full((50,), 2.0)
    f, line = bonded(0.0), GaussianMixture([[0.0]], [1.0])
    assert torch.allclose(f(x, t)[:, :1], line.exact_map(x[:, :1], 2.0), atol=1e-4)


def test_bending_comes_nearer_to_the_posterior_mean():
    "E[x2 | x1 = 1.5] = 1.5 rho."
    rho, exact = 0.8, 1.5 * 0.8
    first, more = (given(rho, times, 0).mean() for times in ((80.0,), EIGHT))
    pulled = given(rho, EIGHT, 1.0).mean()
    assert abs(first) < 0.06  # the first answer knows nothing of y
    assert abs(more - exact) < abs(first - exact)
    assert abs(pulled - exact) < abs(more - exact)


@pytest.mark.parametrize("pull", [0, 1.0])
def test_without_a_bond_the_rest_keeps_its_law(pull):
    "Kolmogorov and Smirnov's distance of the second coordinate from N(0, 1)."
    x = given(0.0, (80.0, 2.0, 0.5), pull).sort().values.double()
    cdf = torch.special.ndtr(x)
    rank = torch.arange(1, N + 1).double() / N
    assert (cdf - rank).abs().max() * math.sqrt(N) < 1.95  # exceeded once in a thousand


def test_bent_moves_downhill_by_finite_differences():
    f, t = bonded(), 0.7
    x, y = torch.randn(2, 6, 2, generator=dice(3)).double()
    known, levels = torch.tensor([1.0, 0.0]).double(), torch.full((6,), t).double()
    misfit = lambda x: (known * (f(x, levels) - y)).square().sum(1)
    moved = bent(f, x, t, y, known) - x
    step = 1e-6 * torch.eye(2).double()
    slope = torch.stack([(misfit(x + s) - misfit(x - s)) / 2e-6 for s in step], 1)
    assert torch.allclose(moved.norm(dim=1), t * misfit(x).sqrt(), rtol=1e-6)
    assert torch.allclose(moved / moved.norm(dim=1)[:, None], -slope / slope.norm(dim=1)[:, None])


def test_rows_do_not_hear_each_other():
    f, y, known = bonded(), torch.ones(5, 2), torch.tensor([1.0, 0.0])
    z = torch.randn(5, 2, generator=dice(4))
    both = bent(f, z, 1.0, y, known)
    assert torch.allclose(both[2:3], bent(f, z[2:3], 1.0, y[2:3], known), atol=1e-6)


@pytest.mark.parametrize("channels, p", [(1, 2), (3, 4)])
def test_blocks_are_an_orthogonal_turn_with_the_mean_first(channels, p):
    x, view = torch.randn(2, channels, 8, 12, generator=dice(5)), blocks(p)
    v = view.there(x)
    assert v.shape == (2, channels, p * p, 8 // p, 12 // p)
    assert torch.allclose(view.back(v), x, atol=1e-5)
    assert torch.allclose(v.square().sum((1, 2, 3, 4)), x.square().sum((1, 2, 3)), rtol=1e-5)
    means = torch.nn.functional.avg_pool2d(x, p)
    assert torch.allclose(v[:, :, 0], p * means, atol=1e-5)


def test_what_is_written_stays_and_the_rest_too():
    x, y = torch.randn(2, 3, 1, 4, 4, generator=dice(6))
    known = (torch.rand(1, 4, 4, generator=dice(7)) < 0.5).float()
    assert torch.equal(written(x, y, known, SAME), torch.where(known > 0, y, x))


def test_along_the_circle_the_noise_stays_normal():
    z, other = torch.randn(2, 100_000, generator=dice(8))
    assert torch.equal(along(z, other, 0.0), z)
    assert torch.allclose(along(z, other, 1.0), other, atol=1e-6)
    for share in (0.25, 0.5, 0.9):
        assert abs(along(z, other, share).std() - 1) < 0.01


def test_bad_times_and_scaled_noise_are_refused():
    z, y, known = torch.randn(4, 2, generator=dice(9)), torch.zeros(4, 2), torch.tensor([1.0, 0.0])
    with pytest.raises(ValueError, match="fall"):
        edit(bonded(), z, y, known, (0.8, 80.0))
    with pytest.raises(ValueError, match="standard normal"):
        edit(bonded(), 80 * z, y, known, (80.0,))


def test_guidance_goes_on_beyond_what_the_class_changed():
    "Maps that land on a point: the class's, and the middle of all; by hand, for every w."
    points, middle = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.5, 1.5]])
    told = lambda x, t, labels: points[labels] + 0 * x
    plain = lambda x, t: middle + 0 * x
    z, labels = torch.randn(6, 2, generator=dice(3)), torch.arange(6) % 2
    for w in (-1.0, 0.0, 0.5, 2.0):
        x = sample(guided(told, plain, w), z, (80.0, 0.8), dice(4), labels=labels)
        assert torch.allclose(x, (1 + w) * points[labels] - w * middle)


def test_the_mean_over_classes_is_the_answer_without_one_where_none_is_likelier():
    "Of denoisers of Gaussians: at t = 80 the ideal denoiser of their mixture, at t = 1 another."
    means = torch.tensor([-1.0, 0.5, 1.5])
    whole = GaussianMixture(means[:, None], [0.3] * 3)

    def told(x, t, labels):
        share = 0.09 / (0.09 + t[:, None] ** 2)
        return means[labels][:, None] + share * (x - means[labels][:, None])

    plain, z = over_classes(told, 3), torch.randn(200, 1, generator=dice(5))
    off = lambda t: (plain(t * z, torch.full((200,), t)) - whole.denoise(t * z, t)).abs().max()
    assert off(80.0) < 0.05 < off(1.0)
