import math
import numpy as np
import pytest
import torch
from ect_nb.diffusion import Precond, denoising_loss, euler, heun, karras_times
from ect_nb.io import weights
from ect_nb.networks import MLP
from torch import nn


def rand(*shape, seed=0, **kw):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **kw)


class Net(nn.Module):
    "Records what it is given."

    def forward(self, x, c, **kw):
        self.x, self.c, self.kw = x, c, kw
        return torch.sin(3 * x) + c.view(-1, *[1] * (x.ndim - 1))


# ---- preconditioning


@pytest.mark.parametrize("shape", [(3,), (2, 4, 4)])
@pytest.mark.parametrize("d", [0.5, 0.3, 1.7])
@pytest.mark.parametrize("t", [0.002, 0.1, 0.5, 1.0, 7.0, 80.0])
def test_the_factors_are_those_of_edm(t, d, shape):
    net = Net()
    x = t * rand(5, *shape, dtype=torch.float64)
    y = Precond(net, d)(x, torch.full((5,), t, dtype=torch.float64)).numpy()
    c_in, c_skip, c_out = (
        1 / math.sqrt(t**2 + d**2),
        d**2 / (t**2 + d**2),
        t * d / math.sqrt(t**2 + d**2),
    )
    assert (
        np.allclose(net.x, c_in * x.numpy(), rtol=1e-12)
        and np.allclose(net.c, math.log(t) / 4, rtol=1e-12)
        and net.c.shape == (5,)
    )
    assert (
        np.allclose(
            y,
            c_skip * x.numpy() + c_out * (np.sin(3 * c_in * x.numpy()) + math.log(t) / 4),
            rtol=1e-10,
        )
        and y.dtype == np.float64
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [0.5, 0.1, 0.3, 0.6, 0.7, 1.0, 1.1, 1.7])
def test_without_noise_the_model_is_the_identity_bit_for_bit(d, dtype):
    x = rand(64, 3, dtype=dtype)
    assert torch.equal(Precond(Net(), d)(x, torch.zeros(64, dtype=dtype)), x)


@pytest.mark.parametrize("d", [0.5, 1.7])
@pytest.mark.parametrize("low", [0.003, 0.1])
@pytest.mark.parametrize("t", [0.002, 0.1, 0.821, 80.0])
def test_when_evaluated_the_boundary_stands_at_sigma_min_and_when_trained_at_zero(t, low, d):
    """Song et al. 2023, App. C, with the denominators of EDM; what the network is asked does not
    change."""
    net, x = Net(), t * rand(5, 3, dtype=torch.float64)
    model = Precond(net, d, low)
    c_in, X = 1 / math.sqrt(t**2 + d**2), x.numpy()
    for training, at in ((True, t), (False, t - low), (True, t)):
        y = model.train(training)(x, t).numpy()
        assert np.allclose(net.x, c_in * X, rtol=1e-12) and np.allclose(
            net.c, math.log(t) / 4, rtol=1e-12
        )
        assert np.allclose(
            y,
            d**2 / (at**2 + d**2) * X + at * d * c_in * (np.sin(3 * c_in * X) + math.log(t) / 4),
            rtol=1e-9,
            atol=1e-12,
        )


@pytest.mark.parametrize("d", [0.5, 0.3, 1.1])
def test_at_sigma_min_an_evaluated_model_is_the_identity_bit_for_bit(d):
    x = rand(64, 3)
    assert torch.equal(Precond(Net(), d, 0.003).eval()(x, 0.003), x) and not torch.equal(
        Precond(Net(), d, 0.003).train()(x, 0.003), x
    )
    assert torch.equal(Precond(Net(), d).eval()(x, 0.3), Precond(Net(), d).train()(x, 0.3))


@pytest.mark.parametrize("low", [0.0, 0.003])
def test_a_checkpoint_keeps_sigma_min_and_says_nothing_of_none(low, tmp_path):
    model, x = Precond(MLP(2, 8, 1), 0.7, low).eval(), rand(3, 2)
    twin = weights.load(weights.save(model, tmp_path / "m.safetensors"))
    assert (
        twin.sigma_min == low
        and torch.equal(twin(x, 0.1), model(x, 0.1))
        and weights.describe(Precond(nn.Linear(2, 2), 0.5, low)) is None
    )
    assert weights.describe(model).get("sigma_min", "unsaid") == (low or "unsaid")


def test_rows_have_their_own_levels_and_a_number_serves_all():
    model, x, t = Precond(Net()), rand(3, 2), torch.tensor([0.1, 1.0, 10.0])
    assert torch.equal(model(x, t), torch.cat([model(x[i : i + 1], float(t[i])) for i in range(3)]))
    assert torch.equal(model(x, 2), model(x, torch.full((3,), 2.0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_of_the_data_is_kept(dtype):
    model = Precond(MLP(2, 8, 1)).to(dtype)
    for t in (0.5, torch.ones(3), torch.ones(3, dtype=torch.float64)):
        assert model(rand(3, 2, dtype=dtype), t).dtype == dtype


def test_a_body_in_low_precision_returns_the_type_of_the_data():
    class Low(nn.Module):
        def forward(self, x, c):
            return x.bfloat16()

    assert Precond(Low())(rand(3, 2), 1.0).dtype == torch.float32


def test_labels_reach_the_network():
    net = Net()
    Precond(net)(rand(2, 3), 1.0, labels="cats", augment=None)
    assert net.kw == dict(labels="cats", augment=None)


# ---- loss


@pytest.mark.parametrize("shape", [(4,), (2, 3, 3)])
@pytest.mark.parametrize("d", [0.5, 0.9])
def test_the_denoising_loss_is_edms(d, shape):
    x0, eps, t = (
        rand(6, *shape, dtype=torch.float64),
        rand(6, *shape, seed=1, dtype=torch.float64),
        rand(6, seed=2, dtype=torch.float64).exp(),
    )
    found = denoising_loss(
        lambda x, t: x.sin() / t.view(-1, *[1] * len(shape)), x0, t, eps, sigma_data=d
    )
    X, E, T = x0.numpy(), eps.numpy(), t.numpy()
    for i in range(6):
        error = np.sin(X[i] + T[i] * E[i]) / T[i] - X[i]
        assert found[i] == pytest.approx((1 / T[i] ** 2 + 1 / d**2) * (error**2).sum(), rel=1e-10)


def test_the_denoising_loss_weighs_all_levels_of_an_untrained_model_alike():
    """With a network that answers 0 and data of standard deviation 1/2 the expected loss is exactly
    1 per value, whatever t (Karras et al. 2022, App. B.6)."""

    class Zero(nn.Module):
        def forward(self, x, c):
            return 0 * x

    for t in (0.01, 0.3, 1.0, 30.0):
        loss = denoising_loss(
            Precond(Zero()), 0.5 * rand(4000, 10), torch.full((4000,), t), rand(4000, 10, seed=1)
        )
        assert loss.mean() / 10 == pytest.approx(1, abs=4 * math.sqrt(2 / 40_000))


def test_the_best_denoiser_of_a_gaussian_is_a_minimum_of_the_loss():
    s, t = 0.5, torch.full((4000,), 0.7)
    x0, eps = s * rand(4000, 4), rand(4000, 4, seed=1)
    loss = [
        denoising_loss(lambda x, t: a * x, x0, t, eps).mean()
        for a in (0.30, s**2 / (s**2 + 0.49), 0.38)
    ]
    assert loss[1] < min(loss[0], loss[2])


def test_float64_levels_do_not_widen_float32_data():
    assert (
        denoising_loss(
            Precond(MLP(2, 8, 1)), rand(3, 2), torch.ones(3, dtype=torch.float64), rand(3, 2)
        ).dtype
        == torch.float32
    )


def test_labels_reach_the_model_through_the_loss():
    assert (
        denoising_loss(
            lambda x, t, labels: labels,
            torch.ones(2, 1),
            torch.ones(2),
            torch.ones(2, 1),
            labels=torch.ones(2, 1),
        )
        == 0
    ).all()


# ---- time grid


@pytest.mark.parametrize(
    "n, t_min, t_max, rho", [(18, 0.002, 80.0, 7.0), (5, 0.01, 10.0, 3.0), (2, 0.1, 1.0, 1.0)]
)
def test_the_time_grid_is_that_of_karras(n, t_min, t_max, rho):
    t = karras_times(n, t_min, t_max, rho)
    wanted = [
        (t_max ** (1 / rho) + i / (n - 1) * (t_min ** (1 / rho) - t_max ** (1 / rho))) ** rho
        for i in range(n)
    ] + [0]
    assert (
        t.dtype == torch.float64
        and t.shape == (n + 1,)
        and np.allclose(t, wanted, rtol=1e-12)
        and (t.diff() < 0).all()
    )
    assert (
        float(t[0]) == pytest.approx(t_max) and float(t[-2]) == pytest.approx(t_min) and t[-1] == 0
    )


def test_one_step_goes_from_the_top_to_0():
    assert np.allclose(karras_times(1), [80, 0])


@pytest.mark.parametrize("n", [0, -3])
def test_no_step_is_refused(n):
    with pytest.raises(ValueError, match="at least one step"):
        karras_times(n)


# ---- solvers; the ODE of a Gaussian of standard deviation s has D(x, t) = s² x / (s² + t²) and the
# solution x(t) = x(T) √((s² + t²) / (s² + T²))


class Gaussian:
    def __init__(self, s=0.5):
        self.s, self.levels, self.rows = s, [], []

    def __call__(self, x, t):
        assert (
            t.shape == (len(x),)
            and (t > 0).all()
            and t.dtype == x.dtype
            and not torch.is_grad_enabled()
        )
        self.levels.append(float(t[0]))
        self.rows.append(len(x))
        t = t.view(-1, *[1] * (x.ndim - 1))
        return self.s**2 * x / (self.s**2 + t**2)


def solution(x, T, t, s=0.5):
    return x * math.sqrt((s**2 + t**2) / (s**2 + T**2))


@pytest.mark.parametrize("solver, order", [(euler, 1), (heun, 2)])
def test_the_order_of_the_solvers(solver, order):
    x = rand(4, 3, dtype=torch.float64)
    errors = [
        float(
            (
                solver(Gaussian(), x / 3, torch.linspace(3, 0.2, n + 1, dtype=torch.float64))
                - solution(x, 3, 0.2)
            )
            .abs()
            .max()
        )
        for n in (40, 80, 160)
    ]
    assert np.log2(np.divide(errors[:-1], errors[1:])) == pytest.approx(order, abs=0.06)


@pytest.mark.parametrize("solver, order, near", [(euler, 1, 0.04), (heun, 2, 0.003)])
def test_karras_steps_to_0_reach_the_solution_with_the_same_order(solver, order, near):
    x = 80 * rand(10, dtype=torch.float64)
    errors = [
        float((solver(Gaussian(), x / 80, karras_times(n)) / solution(x, 80, 0) - 1).abs().max())
        for n in (36, 72, 144)
    ]
    assert (
        np.log2(np.divide(errors[:-1], errors[1:])) == pytest.approx(order, abs=0.15)
        and errors[1] < near
    )


@pytest.mark.parametrize("n", [1, 2, 18])
def test_n_steps_cost_n_evaluations_and_with_heun_2n_minus_1(n):
    for solver, cost in ((euler, n), (heun, 2 * n - 1)):
        model = Gaussian()
        solver(model, rand(3, 1, 2, 2), karras_times(n))
        assert len(model.levels) == cost and set(model.rows) == {3}
        assert set(np.float32(model.levels)) == set(np.float32(karras_times(n)[:-1]))


def test_one_step_by_hand():
    x, model = rand(5, dtype=torch.float64), Gaussian()
    X = x.numpy()
    D = lambda x, t: 0.25 * x / (0.25 + t**2)
    slope = (X - D(X, 2)) / 2
    assert np.allclose(euler(model, x / 2, torch.tensor([2.0, 0.0])), D(X, 2)) and np.allclose(
        heun(model, x / 2, torch.tensor([2.0, 0.0])), D(X, 2)
    )
    moved = X - slope
    assert np.allclose(euler(model, x / 2, [2.0, 1.0]), moved) and np.allclose(
        heun(model, x / 2, [2.0, 1.0]), X - (slope + moved - D(moved, 1)) / 2
    )


@pytest.mark.parametrize("solver", [euler, heun])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_type_and_the_states_on_the_way_are_kept(solver, dtype):
    z = rand(2, 3, 4, 4, dtype=dtype)
    path = solver(Gaussian(), z, karras_times(6), keep=True)
    end = solver(Gaussian(), z, karras_times(6))
    assert (
        path.shape == (7, 2, 3, 4, 4)
        and path.dtype == end.dtype == dtype
        and torch.allclose(path[0], 80 * z)
        and torch.equal(path[-1], end)
    )
    assert torch.allclose(solver(Gaussian(), z, karras_times(6)[:4]), path[3])  # part of the way


def test_times_given_as_numbers_are_not_rounded():
    x, times = rand(4, dtype=torch.float64), [1.1, 0.7, 0.3]
    assert torch.equal(
        heun(Gaussian(), x, times), heun(Gaussian(), x, torch.tensor(times, dtype=torch.float64))
    )


# ---- one convention for noise: standard normal z, which the sampler scales itself


@pytest.mark.parametrize("solver", [euler, heun])
@pytest.mark.parametrize("scale, t", [(80, 80.0), (14.6, 14.6), (80, 20.0)])
def test_noise_that_is_scaled_already_is_refused_with_its_size(solver, scale, t):
    with pytest.raises(
        ValueError,
        match=f"not 1: samplers take standard normal z and scale it by times\\[0\\] = {t:g}",
    ):
        solver(Gaussian(), scale * rand(8, 1, 28, 28), [t, 1.0, 0.0])


@pytest.mark.parametrize("t", [0.05, 0.5, 5.0, 80.0])
def test_a_noisy_point_divided_by_its_level_passes_at_every_level_and_so_do_single_points_and_grids(
    t,
):
    x = rand(16, 1, 8, 8).clamp(-1, 1) + t * torch.randn(
        16, 1, 8, 8, generator=torch.Generator().manual_seed(1)
    )
    for z in (x / t, torch.tensor([[3.9]]), torch.zeros(2, 1), torch.linspace(-4, 4, 9)[:, None]):
        heun(Gaussian(), z, [t, t / 2, 0.0])


def test_a_walk_begins_at_times_0_times_z():
    z = rand(3, 2, dtype=torch.float64)
    assert torch.equal(euler(Gaussian(), z, [5.0, 1.0], keep=True)[0], 5.0 * z)


@pytest.mark.parametrize(
    "times",
    [
        [1.0, 80.0],
        [80.0],
        [],
        [80.0, 80.0, 0.0],
        [80.0, -1.0],
        [float("inf"), 1.0],
        [80.0, float("nan"), 0.0],
        80.0,
        [80.0, 0.0, 0.0],
    ],
)
def test_times_that_do_not_fall_are_refused(times):
    with pytest.raises(ValueError, match="times must be positive and fall"):
        heun(Gaussian(), rand(2, 2), times)


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        heun(Gaussian(), torch.tensor([[float("nan")]]), [80.0, 0.0])


def test_a_model_in_training_mode_walks_without_its_dropout_and_stays_as_it_was():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    net[0].eval()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t):
            return self.net(x)

    model, z = Model().train(), rand(64, 2)
    net[0].eval()
    assert torch.equal(heun(model, z, [80.0, 1.0, 0.0]), heun(model, z, [80.0, 1.0, 0.0]))
    assert model.training and net[1].training and not net[0].training


def test_four_heun_steps_are_repaired_by_a_larger_t_min_and_by_no_rho():
    from ect_nb.analytic import GaussianMixture

    mix = GaussianMixture([-1.1, 0.1, 1.2], [0.12, 0.05, 0.08], [0.40, 0.25, 0.35])
    z = torch.linspace(-2.4, 2.4, 49, dtype=torch.float64)
    ends = mix.exact_map(80 * z, 80.0)

    def off(**grid):
        return (heun(mix.denoise, z, karras_times(4, **grid)) - ends).abs()

    assert min(float(off(rho=k / 2).mean()) for k in range(2, 31)) > 1.5
    assert off(t_min=0.4).mean() < 0.12
    at_one = int((z - 1).abs().argmin())
    assert off(rho=9.5)[at_one] < 0.1 < off(rho=9)[at_one]  # one start can be lucky
