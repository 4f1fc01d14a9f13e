import ast
import math
import numpy as np
import pytest
import subprocess
import sys
import torch
from ect_nb import exact
from ect_nb.analytic import GaussianMixture, ideal_denoiser, posterior_weights
from functools import partial
from scipy import stats
from scipy.integrate import solve_ivp
from torch.func import jvp

MIXTURES = {
    "bumps": ([-1.0, 0.2, 1.1], [0.15, 0.06, 0.1], [0.45, 0.2, 0.35]),
    "uneven": ([-1.0, 0.5, 1.0], [0.01, 0.5, 0.02], [0.6, 0.1, 0.3]),
}


def double(*values):
    return [torch.tensor(v, dtype=torch.float64) for v in values]


def std_t(m, s, w, t):
    return math.sqrt(
        np.average(np.square(s) + np.square(m), weights=w) - np.average(m, weights=w) ** 2 + t**2
    )


def ode(x, t, m, s, w, end=1e-6):
    """The probability-flow ODE from t down to `end` in log t, in NumPy with SciPy's normal
    densities."""
    m, s, w = (np.array(v)[:, None] for v in (m, s, w))

    def slope(log_t, x):  # dx / dlog t = x - D(x, t)
        var = s**2 + math.exp(2 * log_t)
        log_p = np.log(w) + stats.norm.logpdf(x, m, np.sqrt(var))
        p = np.exp(log_p - log_p.max(0))
        p /= p.sum(0)
        return (p * math.exp(2 * log_t) / var * (x - m)).sum(0)

    return solve_ivp(
        slope, (math.log(t), math.log(end)), x, method="DOP853", rtol=1e-10, atol=1e-12
    ).y[:, -1]


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("t", [0.01, 0.1, 0.7, 3.0, 80.0])
def test_exact_map_is_the_end_of_the_ode(name, t):
    m, s, w = MIXTURES[name]
    x = np.average(m, weights=w) + np.linspace(-4, 4, 40) * std_t(m, s, w, t)
    found = GaussianMixture(m, s, w).exact_map(torch.from_numpy(x), t).numpy()
    assert np.abs(found - ode(x, t, m, s, w)).max() < 1e-5


def test_exact_map_of_one_gaussian():
    x, t = double([-30.0, -1.0, 0.3, 2.0, 700.0], [0.5, 1e-3, 2.0, 10.0, 80.0])
    found = GaussianMixture([0.3], [0.2]).exact_map(x, t)
    assert torch.allclose(found, 0.3 + (x - 0.3) * 0.2 / (0.04 + t**2).sqrt(), rtol=1e-13)


@pytest.mark.parametrize("t", [1e-3, 0.05, 1.0, 80.0])
def test_exact_map_is_monotone_finite_and_keeps_quantiles_far_into_the_tails(t):
    m, s, w = MIXTURES["bumps"]
    mix = GaussianMixture(m, s, w)
    x = torch.linspace(-8, 8, 801, dtype=torch.float64) * std_t(m, s, w, t)
    y = mix.exact_map(x, t)
    assert y.isfinite().all() and (y.diff() > 0).all()
    log_cdf = lambda z, t: np.logaddexp.reduce(
        [math.log(c) + stats.norm.logcdf(z, a, math.hypot(b, t)) for a, b, c in zip(m, s, w)]
    )
    log_sf = lambda z, t: np.logaddexp.reduce(
        [math.log(c) + stats.norm.logsf(z, a, math.hypot(b, t)) for a, b, c in zip(m, s, w)]
    )
    assert (
        np.abs(log_cdf(x.numpy(), t) - log_cdf(y.numpy(), 0)).max() < 1e-9
    )  # logs reach -1e4 here: relative 1e-13
    assert np.abs(log_sf(x.numpy(), t) - log_sf(y.numpy(), 0)).max() < 1e-9
    assert torch.allclose(mix.log_cdf(x, t), torch.from_numpy(log_cdf(x.numpy(), t)), rtol=1e-12)


def test_exact_map_on_the_flat_floor_between_bumps():
    mix = GaussianMixture(
        [-1.0, 1.0], [0.01, 0.01]
    )  # densities of e^-2500 between them, far below the smallest float
    (x,) = double([-0.5, -0.01, 0.0, 0.01, 0.5])
    y = mix.exact_map(x, 0.003)
    assert y[2] == 0 and torch.allclose(y, -y.flip(0)) and (y.diff() > 0).all()
    assert (
        np.abs(
            y.numpy() - ode(x.numpy(), 0.003, [-1.0, 1.0], [0.01, 0.01], [0.5, 0.5], end=1e-7)
        ).max()
        < 1e-5
    )


def test_exact_map_of_points():
    mix = GaussianMixture([-1.0, 0.5, 2.0], [0.0, 0.0, 0.0], [0.2, 0.3, 0.5])
    x = torch.linspace(-40, 40, 2001, dtype=torch.float64)
    y, ranks = (
        mix.exact_map(x, 5.0),
        stats.norm.cdf(x.numpy()[:, None], [-1.0, 0.5, 2.0], 5.0)
        @ [
            0.2,
            0.3,
            0.5,
        ],
    )
    assert (
        np.abs(y.numpy() - np.array([-1.0, 0.5, 2.0])[np.searchsorted([0.2, 0.5], ranks)]).max()
        < 1e-12
    )
    assert (
        GaussianMixture([-1.0, 1.0], [0.0, 0.0]).exact_map(torch.zeros(1), 1.0).item() == -1
    )  # a tie goes to the lower point
    half = GaussianMixture([0.0, 3.0], [0.0, 0.5]).exact_map(
        double([0.2, 3.5])[0], 0.3
    )  # a point and a bump
    assert half[0].abs() < 1e-12 and abs(half[1] - 3 - 0.5 * 0.5 / math.hypot(0.5, 0.3)) < 1e-3
    with pytest.raises(ValueError, match="start at t > 0"):
        mix.transport(x[:1], 0.0, 1.0)


def test_exact_map_at_zero_is_the_identity_and_transport_composes():
    mix = GaussianMixture(*MIXTURES["bumps"])
    x = torch.linspace(-3, 3, 31, dtype=torch.float64)
    assert torch.equal(mix.exact_map(x, 0.0), x)
    on_the_way = mix.transport(x, 2.0, 0.3)
    assert torch.allclose(mix.exact_map(on_the_way, 0.3), mix.exact_map(x, 2.0), atol=1e-12)
    assert torch.allclose(mix.transport(on_the_way, 0.3, 2.0), x, atol=1e-9)


def test_derivatives_of_the_exact_map():
    mix = GaussianMixture(*MIXTURES["bumps"])
    x, t = double([-1.3, 0.1, 0.9, 4.0], [0.2, 0.5, 1.0, 3.0])
    h = 1e-5
    by_x = (mix.exact_map(x + h, t) - mix.exact_map(x - h, t)) / (2 * h)
    by_t = (mix.exact_map(x, t + h) - mix.exact_map(x, t - h)) / (2 * h)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    assert torch.allclose(
        jvp(mix.exact_map, (x, t), (one, zero))[1], by_x, rtol=1e-6
    )  # central differences: h^2
    assert torch.allclose(jvp(mix.exact_map, (x, t), (zero, one))[1], by_t, rtol=1e-6, atol=1e-8)
    x.requires_grad_()
    assert torch.allclose(torch.autograd.grad(mix.exact_map(x, t).sum(), x)[0], by_x, rtol=1e-6)


def test_a_product_in_2d_factorises():
    a, b = (
        GaussianMixture([-1.0, 0.8], [0.2, 0.2], [0.3, 0.7]),
        GaussianMixture([-0.5, 0.6], [0.2, 0.2], [0.6, 0.4]),
    )
    grid = [[u, v] for u in a.means.tolist() for v in b.means.tolist()]
    both = GaussianMixture(grid, [0.2] * 4, torch.outer(a.weights, b.weights).flatten())
    x = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    t = torch.logspace(-2, 1.9, 20, dtype=torch.float64)
    for name in ("exact_map", "denoise", "score", "velocity"):
        apart = torch.stack([getattr(a, name)(x[:, 0], t), getattr(b, name)(x[:, 1], t)], 1)
        assert torch.allclose(getattr(both, name)(x, t), apart, atol=1e-6), name
    assert torch.allclose(both.log_prob(x, t), a.log_prob(x[:, 0], t) + b.log_prob(x[:, 1], t))


def test_columns_and_numbers_agree():
    m, s, w = MIXTURES["bumps"]
    flat, column = GaussianMixture(m, s, w), GaussianMixture([[v] for v in m], s, w)
    x, t = torch.linspace(-2, 2, 9), torch.linspace(0.1, 3, 9)
    for name in ("exact_map", "denoise", "score", "velocity"):
        assert torch.equal(getattr(flat, name)(x, t), getattr(column, name)(x[:, None], t)[:, 0])


def test_denoise_is_the_posterior_mean():
    """Importance sampling of x0 with weights N(x; x0, t^2); the bound is five of its own standard
    errors."""
    mix = GaussianMixture([[-1.0, 0.3], [0.8, -0.2]], [0.3, 0.5], [0.4, 0.6])
    x0 = mix.sample(400_000, torch.Generator().manual_seed(1)).double()
    for x, t in (([0.2, 0.1], 0.7), ([-1.5, 1.0], 0.5), ([3.0, -3.0], 4.0)):
        (x,) = double([x])
        w = (-(x - x0).square().sum(1) / (2 * t * t)).exp()
        w /= w.sum()
        mean = w @ x0
        error = (w.square() @ (x0 - mean).square()).sqrt()
        assert ((mix.denoise(x, t)[0] - mean).abs() < 5 * error).all() and error.max() < 0.01


def test_score_is_the_gradient_of_log_prob_and_velocity_follows():
    mix = GaussianMixture([[-1.0, 0.3], [0.8, -0.2]], [0.3, 0.5], [0.4, 0.6])
    x = (
        torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        .mul(2)
        .requires_grad_()
    )
    t = torch.logspace(-2, 1.9, 50, dtype=torch.float64)
    (grad,) = torch.autograd.grad(mix.log_prob(x, t).sum(), x)
    assert torch.allclose(mix.score(x, t), grad, rtol=1e-10)
    assert torch.allclose(
        mix.velocity(x, t), (x - mix.denoise(x, t)) / t[:, None], rtol=1e-8, atol=1e-10
    )  # the right side cancels at small t
    assert (mix.velocity(x, 0.0) == 0).all() and torch.allclose(mix.denoise(x, 0.0), x)


def test_log_prob_against_scipy():
    m, s, w = MIXTURES["bumps"]
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)
    wanted = sum(c * stats.norm.pdf(x.numpy(), a, math.hypot(b, 0.3)) for a, b, c in zip(m, s, w))
    assert np.allclose(GaussianMixture(m, s, w).log_prob(x, 0.3).exp().numpy(), wanted, rtol=1e-12)


def test_samples_follow_the_distribution():
    m, s, w = MIXTURES["bumps"]
    mix = GaussianMixture(m, s, np.array(w) * 7)  # weights are normalised
    x = mix.sample(20_000, torch.Generator().manual_seed(3))
    assert torch.equal(x, mix.sample(20_000, torch.Generator().manual_seed(3)))
    assert (
        stats.kstest(
            x.numpy(), lambda z: sum(c * stats.norm.cdf(z, a, b) for a, b, c in zip(m, s, w))
        ).pvalue
        > 1e-3
    )


def test_dtype_is_kept_and_float32_is_close():
    mix = GaussianMixture(*MIXTURES["bumps"])
    x = torch.linspace(-3, 3, 40)
    for name in ("log_prob", "log_cdf", "cdf", "denoise", "score", "velocity", "exact_map"):
        f = getattr(mix, name)
        assert f(x, 0.5).dtype == torch.float32 and f(x.double(), 0.5).dtype == torch.float64
        assert torch.allclose(f(x, 0.5).double(), f(x.double(), 0.5), rtol=1e-4, atol=1e-5)
    assert (
        GaussianMixture([[0.0, 1.0]], [1.0]).exact_map(torch.ones(2, 2), 1.0).dtype == torch.float32
    )


def test_wrong_input_says_what_is_wrong():
    for args, words in [
        (([0.0, 1.0], [1.0]), "stds must have shape"),
        (([0.0], [-1.0]), "not negative"),
        (([0.0], [float("nan")]), "finite"),
        (([0.0, 1.0], [1.0, 1.0], [1.0, -1.0]), "weights must be finite and not negative"),
        (([0.0], [1.0], [0.0]), "above zero"),
        (([], []), "means must have shape"),
        (([[[0.0]]], [1.0]), "means must have shape"),
    ]:
        with pytest.raises(ValueError, match=words):
            GaussianMixture(*args)
    mix, plane = GaussianMixture([0.0], [1.0]), GaussianMixture([[0.0, 0.0]], [1.0])
    for call, words in [
        (lambda: mix.denoise(torch.zeros(3, 1), 1.0), "x must have shape"),
        (lambda: plane.denoise(torch.zeros(3, 3), 1.0), "x must have shape"),
        (lambda: mix.score(torch.zeros(3), torch.ones(2)), "t must be a number or have shape"),
        (lambda: mix.score(torch.zeros(3), -1.0), "must not be negative"),
        *[
            (lambda f=f: f(torch.zeros(3, dtype=torch.long), 1.0), "floating-point")
            for f in (mix.score, mix.exact_map)
        ],
        (lambda: plane.cdf(torch.zeros(3, 2), 1.0), "for numbers"),
        (
            lambda: GaussianMixture([0.0], [0.0]).log_prob(torch.zeros(3), 0.0),
            "no density at t = 0",
        ),
        (lambda: mix.exact_map(torch.zeros(3), -1.0), "must not be negative"),
        (lambda: mix.velocity(torch.zeros(3), torch.ones(2)), "t must be a number or have shape"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


def test_ideal_denoiser():
    g = torch.Generator().manual_seed(4)
    data, x = torch.rand(30, 1, 6, 6, generator=g) * 2 - 1, torch.randn(7, 1, 6, 6, generator=g)
    t = torch.tensor([0.3, 0.5, 0.8, 1.0, 2.0, 5.0, 80.0])
    d2 = (x.double()[:, None] - data.double()).square().sum((2, 3, 4))
    p = (-d2 / (2 * t.double()[:, None] ** 2)).softmax(1)
    wanted = (p[:, :, None, None, None] * data.double()).sum(1)
    model = partial(ideal_denoiser, data=data)
    assert model(x, t).dtype == torch.float32 and torch.allclose(
        model(x, t).double(), wanted, atol=1e-5
    )
    assert torch.equal(model(x, 1e-3), data[d2.argmin(1)])  # t -> 0: the nearest, in float32
    assert torch.allclose(
        model(x, 1e5), data.mean(0).expand_as(x), atol=1e-4
    )  # t -> infinity: the mean
    points = GaussianMixture(data.double().flatten(1), torch.zeros(30))
    assert torch.allclose(points.denoise(x.double().flatten(1), t), wanted.flatten(1), atol=1e-9)
    for call, words in [
        (lambda: model(x[:, :, :5], 1.0), "must agree"),
        (lambda: model(x, 0.0), "above 0"),
        (lambda: model(x, torch.ones(3)), "t must be a number or have shape"),
        (lambda: ideal_denoiser(x, 1.0, (data * 9).byte()), "floating point"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


def test_ideal_denoiser_at_small_noise_in_many_dimensions():
    """Two near twins among 3072 values at t = 0.002: an expansion of the square in float32 would
    toss a coin."""
    g = torch.Generator().manual_seed(5)
    a = torch.rand(1, 3072, generator=g) * 2 - 1
    data = torch.cat([a, a + 3e-4 * torch.randn(1, 3072, generator=g)])
    x = data[:1] + 0.002 * torch.randn(200, 3072, generator=g)
    d2 = (x.double()[:, None] - data.double()).square().sum(2)
    wanted = (-d2 / (2 * 0.002**2)).softmax(1) @ data.double()
    assert (ideal_denoiser(x, 0.002, data).double() - wanted).abs().max() < 1e-5


def test_posterior_weights():
    "Bayes' rule with SciPy's normal densities, one pixel at a time."
    g = torch.Generator().manual_seed(6)
    data, x = (
        torch.rand(9, 1, 3, 3, generator=g).double() * 2 - 1,
        torch.randn(4, 1, 3, 3, generator=g).double(),
    )
    t = torch.tensor([0.2, 0.7, 3.0, 80.0])
    log_p = np.array(
        [
            [stats.norm.logpdf(a.numpy(), y.numpy(), s).sum() for y in data]
            for a, s in zip(x, t.numpy())
        ]
    )
    wanted = np.exp(log_p - np.logaddexp.reduce(log_p, 1)[:, None])
    found = posterior_weights(x, t, data)
    assert found.shape == (4, 9) and np.allclose(found.numpy(), wanted, rtol=1e-6, atol=1e-12)
    assert torch.allclose(found.sum(1), torch.ones(4).double()) and torch.allclose(
        found[3], torch.full((9,), 1 / 9).double(), atol=1e-2
    )
    assert torch.equal(
        posterior_weights(data, 1e-3, data), torch.eye(9).double()
    )  # without noise each knows itself
    assert torch.allclose(torch.einsum("bn,n...->b...", found, data), ideal_denoiser(x, t, data))
    with pytest.raises(ValueError, match="must agree"):
        posterior_weights(x[:, :, :2], 1.0, data)


def test_help_tells_the_truth_about_every_method():
    methods = "sample parts log_prob denoise score velocity log_cdf cdf transport exact_map".split()
    for name in methods:
        method = getattr(GaussianMixture, name)
        assert method.__name__ == name and method.__doc__
        assert method.__qualname__ == f"GaussianMixture.{name}"
    with pytest.raises(TypeError, match=r"GaussianMixture\.log_prob\(\) missing"):
        GaussianMixture([0.0], [1.0]).log_prob()


def test_transport_of_the_page_and_of_the_class_are_one():
    mix = GaussianMixture(*MIXTURES["bumps"])
    x = torch.linspace(-3, 3, 50)
    assert torch.equal(exact.transport(mix, x, 2.0, 0.5), mix.transport(x, 2.0, 0.5))
    with pytest.raises(ValueError, match="no density at t = 0"):
        exact.variances(GaussianMixture([0.0, 1.0], [0.0, 1.0]), torch.zeros(3, 1))


def test_a_picture_loads_the_pictures_and_a_mixture_its_numerics():
    loads = "import sys; print(sorted(m for m in sys.modules if m.startswith('ect_nb')))"
    for line, most in (
        ("from ect_nb.show.pictures import COLORS", {"ect_nb", "show", "pictures"}),
        ("from ect_nb.analytic import GaussianMixture", {"ect_nb", "analytic", "exact"}),
    ):
        command = [sys.executable, "-c", f"{line}; {loads}"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert {name.split(".")[-1] for name in ast.literal_eval(found)} == most
