"""The relatives of ECT: each against a formula or a finite difference written another way, on
closed forms where there are any; and each trained, stopped, continued and written down."""

import inspect
import json
import math
import numpy as np
import pytest
import scipy.stats
import torch
from dataclasses import is_dataclass, replace
from ect_nb import family
from ect_nb.analytic import GaussianMixture
from ect_nb.diffusion import Precond, karras_times
from ect_nb.family import (
    CD,
    CT,
    TCM,
    ContinuousDistillation,
    ContinuousTraining,
    DataFreeECT,
    FeatureECT,
    FlowMapDistillation,
    MeanFlow,
    MeanFlowDistillation,
    MiddleStage,
    MomentMatching,
    MultistepConsistency,
    Shortcut,
    Truncated,
    below,
    heun_step,
    landing,
    passes,
    two_time,
    with_tangent,
)
from ect_nb.measure.sweeps import ask, sweep
from ect_nb.networks import MLP, UNet
from ect_nb.objectives import ECT, Denoising, Objective
from ect_nb.sampling import multistep, sample
from ect_nb.schedules import LogNormal, Stages
from ect_nb.training.config import Config, from_json
from ect_nb.training.loop import train
from ect_nb.training.runs import RunFolder

MIX = GaussianMixture([[-0.9], [0.2], [1.0]], [0.2, 0.1, 0.15], [0.3, 0.3, 0.4])


def waves(x):
    "Features that a run can write down."
    return torch.sin(x)


TWO = (Shortcut, MeanFlow, MeanFlowDistillation, FlowMapDistillation)
ALL = [CT(), CD(), DataFreeECT(steps=2), MiddleStage(steps=4), TCM(), MultistepConsistency()]
ALL += [ContinuousTraining(warm=3), ContinuousDistillation(), Shortcut(), MeanFlow(ends=0.2)]
ALL += [MeanFlowDistillation(), FlowMapDistillation(), MomentMatching(), FeatureECT(features=waves)]
NAMES = [type(o).__name__ for o in ALL]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batch(n=400, seed=1, dim=1):
    g = torch.Generator().manual_seed(seed)
    x0 = MIX.sample(n, g).double()
    eps = torch.randn(n, dim, generator=g, dtype=torch.float64)
    t = torch.logspace(-1.5, 1.5, n, dtype=torch.float64)
    return x0, t, eps


def network(dropout=0.0, second=False, dim=1):
    torch.manual_seed(3)
    model = Precond(MLP(dim, 16, 2, dropout), sigma_data=0.7)
    return two_time(model) if second else model


class Line:
    """Everything about one bump N(m, s²), where the path is known in closed form and in r too:
    F(x, t, r) = m + (x - m) √(s² + r²) / √(s² + t²)."""

    m, s = 0.3, 0.6

    def lands(self, x, t, r):
        t, r = t.view(-1, 1), r.view(-1, 1)
        return self.m + (x - self.m) * ((self.s**2 + r**2) / (self.s**2 + t**2)) ** 0.5

    def denoise(self, x, t, **kw):
        t = t.view(-1, 1)
        return self.m + (x - self.m) * self.s**2 / (self.s**2 + t**2)

    def g(self, x, t, r=None):
        r = torch.zeros_like(t) if r is None else r
        ratio = (r / t).view(-1, 1)
        jumped = (self.lands(x, t, r) - ratio * x) / torch.where(ratio < 1, 1 - ratio, 1)
        return torch.where(ratio < 1, jumped, self.denoise(x, t))


def rms(v):
    return float(v.detach().square().mean().sqrt())


def test_every_relative_is_a_class_of_at_most_25_lines_with_its_source():
    kinds = [k for k in vars(family).values() if isinstance(k, type) and issubclass(k, Objective)]
    ours = [k for k in kinds if k.__module__ == "ect_nb.family"]
    assert {k.__name__ for k in ours} == set(NAMES)
    for kind in ours:
        assert is_dataclass(kind) and "arXiv" in kind.__doc__
        text = inspect.getsource(kind).strip().splitlines()
        code = len(text) - len(kind.__doc__.splitlines())
        assert code <= 25, f"{kind.__name__} has {code} lines"


# --- a second time


@pytest.mark.parametrize("label_dim", [0, 3])
def test_a_second_time_changes_nothing_until_it_is_trained(label_dim):
    torch.manual_seed(0)
    unet = Precond(UNet(8, 1, 8, (1, 2), 1, (4,), label_dim=label_dim)).eval()
    for p in unet.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([0.1, 1.0, 5.0, 80.0])
    kw = dict(labels=torch.tensor([0, 1, 2, 0])) if label_dim else {}
    twin = two_time(unet)
    assert all(torch.equal(twin(x, t, r=r, **kw), unet(x, t, **kw)) for r in (0.0, t / 2, t))
    mlp, x = network(), torch.randn(4, 1)
    assert torch.allclose(two_time(mlp)(x, t, r=t / 2), mlp(x, t), atol=1e-6)


def test_after_a_step_the_second_time_is_heard_and_none_means_the_end():
    model = network(second=True)
    p = next(train(model, torch.randn(64, 1), Config(MeanFlow(), kimg=1, batch=64, lr=1e-2)))
    x, t = torch.randn(4, 1), torch.full((4,), 2.0)
    assert not torch.allclose(p.model(x, t, r=1.0), p.model(x, t, r=0.1))
    assert torch.equal(p.model(x, t), p.model(x, t, r=0.0))


@pytest.mark.parametrize("kind", TWO)
def test_a_network_of_one_time_is_refused_in_a_sentence(kind):
    with pytest.raises(ValueError, match="two by family.two_time") as e:
        next(train(network(), torch.randn(64, 1), Config(kind(), kimg=1, batch=64)))
    assert "\n" not in str(e.value)


def test_landing_tells_each_time_the_next():
    line, times = Line(), (80.0, 2.0, 0.5)
    z = torch.randn(50, 1, dtype=torch.float64)
    end = line.lands(80 * z, torch.tensor([80.0]), torch.tensor([0.0]))
    assert torch.allclose(multistep(landing(line.g, times), z, times), end, atol=1e-9)
    assert below(torch.tensor([0.1, 0.5, 0.6, 2.0, 80.0]), times).tolist() == [0, 0, 0.5, 0.5, 2.0]


# --- targets


def test_a_heun_step_is_that_of_numpy():
    x0, t, eps = batch()
    r = torch.where(torch.arange(400) % 3 == 0, 0.0, 0.7 * t)
    x = (x0 + t[:, None] * eps).numpy()[:, 0]

    def D(x, t):
        return MIX.denoise(torch.tensor([[x]]), float(t)).item()

    for i in range(0, 400, 37):
        a, b = float(t[i]), float(r[i])
        d = (x[i] - D(x[i], a)) / a
        y = x[i] + (b - a) * d
        if b > 0:
            y = x[i] + (b - a) * (d + (y - D(y, b)) / b) / 2
        found = heun_step(MIX.denoise, torch.tensor([[x[i]]]), t[i : i + 1], r[i : i + 1])
        assert found.item() == pytest.approx(y, rel=1e-9)


def test_the_pairs_of_ct_are_uniform_over_the_grid_and_its_second_answer_is_the_averages():
    objective = CT(first=6, most=6)
    t, r = objective.levels(12_000, 0, torch.Generator().manual_seed(0))
    i = torch.linspace(0, 1, 7, dtype=torch.float64)
    grid = ((0.002 ** (1 / 7) + i * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7).float()
    where = (grid[:, None] - r).abs().argmin(0)
    assert torch.allclose(t, grid[where + 1]) and torch.allclose(r, grid[where])
    assert scipy.stats.chisquare(torch.bincount(where).numpy()).pvalue > 1e-3
    x0, t, eps = batch(64)
    own, other = objective.pair(Line().g, x0, t, t / 2, eps, target=lambda x, t: 0 * x + 7)
    assert (other == 7).all() and torch.allclose(own, Line().g(x0 + t[:, None] * eps, t))


def test_cd_has_nothing_to_correct_at_the_exact_map_and_a_wrong_teacher_is_seen():
    x0, t, eps = batch()
    f = lambda x, t: MIX.exact_map(x, t)
    gaps = {}
    for k in (16, 32, 64):
        own, other = CD().pair(f, x0, t, t * (1 - 1 / k), eps, target=f, teacher=MIX.denoise)
        gaps[k] = rms(own - other)
    assert gaps[64] < 2e-4 and 4 < gaps[16] / gaps[32] and 4 < gaps[32] / gaps[64]
    wrong = lambda x, t, **kw: 1.1 * MIX.denoise(x, t)
    own, other = CD().pair(f, x0, t, t * 63 / 64, eps, target=f, teacher=wrong)
    assert rms(own - other) > 5 * gaps[64]


def test_without_data_the_points_are_the_teachers_and_the_data_do_not_matter():
    seen = []

    def model(x, t):
        seen.append(x)
        return x

    x0, t, eps = batch(2000)
    for data in (x0, 0 * x0 + 5):
        g = torch.Generator().manual_seed(4)
        DataFreeECT(steps=18).pair(model, data, t, 0 * t, eps, g, teacher=MIX.denoise)
    assert torch.equal(*seen)
    drawn = (seen[0] - t[:, None] * eps)[:, 0]
    cdf = lambda x: MIX.cdf(torch.as_tensor(x, dtype=torch.float64)[:, None], 0.0).numpy()
    assert scipy.stats.kstest(drawn.numpy(), cdf).statistic < 0.04


def test_the_middle_stage_tells_each_state_the_end_of_its_own_walk():
    x0, _, eps = batch(96)
    answers = {}
    for steps in (12, 48):
        objective = MiddleStage(steps=steps)
        t, r = objective.levels(96, 0)
        assert t[:steps].tolist() == pytest.approx(karras_times(steps)[:-1].tolist(), rel=1e-5)
        f = lambda x, t: MIX.exact_map(x, t)
        answers[steps] = objective.pair(f, x0, t, r, eps, teacher=MIX.denoise)
        ends = MIX.exact_map(80 * eps[::steps], 80.0).repeat_interleave(steps, 0)
        answers[steps] += (ends[:96],)
    off = {k: rms(f_t - end) for k, (f_t, end, _) in answers.items()}
    assert off[48] < off[12] / 5 and rms(answers[48][1] - answers[48][2]) < 0.02


def test_tcm_draws_above_its_edge_and_is_held_there_by_the_first_stage():
    objective = TCM(p_t=LogNormal(0.0, 1.0), edge=1.5)
    t, r = objective.levels(20_000, 1, torch.Generator().manual_seed(0))
    assert float(t.min()) == 1.5 and abs(float((t == 1.5).float().mean()) - 0.25) < 0.02
    law = scipy.stats.truncnorm(math.log(1.5), np.inf)
    assert scipy.stats.kstest(t[t > 1.5].log().numpy(), law.cdf).pvalue > 1e-3
    x0, t, eps = batch(64)
    t = t.clamp(min=1.5)
    r = 0.9 * t
    first = lambda x, t, **kw: 0 * x + 7
    f_t, f_r = objective.pair(Line().g, x0, t, r, eps, teacher=first)
    assert ((f_r == 7)[:, 0] == (r < 1.5)).all()
    assert torch.allclose(f_r[r >= 1.5], Line().g(x0 + r[:, None] * eps, r)[r >= 1.5])
    each = objective.loss(Line().g, x0, t, r, eps, teacher=first)
    plain = (f_t - f_r).abs()[:, 0] / (t - r)
    share = torch.where(t == 1.5, 0.1 / 0.25, 1 / 0.75)
    assert torch.allclose(each, plain * share)
    both = Truncated(lambda x, t: 0 * x, lambda x, t: 0 * x + 1, 1.5)
    found = both(torch.zeros(3, 1), torch.tensor([1.4, 1.5, 9.0]))
    assert found[:, 0].tolist() == [0, 1, 1]


@pytest.mark.parametrize("cuts", [(), (1.0,), (4.0, 1.0, 0.2)])
def test_segments_have_nothing_to_correct_along_a_path(cuts):
    line, objective = Line(), MultistepConsistency(cuts=cuts)
    x0, t, eps = batch()
    x_t, lower = x0 + t[:, None] * eps, below(t, cuts)
    r = lower + 0.6 * (t - lower)
    x_r = line.lands(x_t, t, r)  # on the path, not on the data's own line of noise
    slope = (x_t - x_r) / (t - r)[:, None]
    f = lambda x, t: line.g(x, t, below(t, cuts))
    own, other = objective.pair(f, x_r - r[:, None] * slope, t, r, slope)
    assert torch.allclose(own, other, atol=1e-8)
    t, r = objective.levels(500, 3, torch.Generator().manual_seed(0))
    assert (r >= below(t, cuts)).all() and (r < t).all()


def test_segments_without_a_cut_are_ect():
    x0, t, eps = batch()
    plain, cut = ECT(), MultistepConsistency(cuts=())
    assert torch.allclose(
        plain.loss(Line().g, x0, t, t / 2, eps), cut.loss(Line().g, x0, t, t / 2, eps)
    )


# --- tangents


def test_the_tangent_of_a_network_is_what_two_nearby_answers_say_under_one_mask():
    torch.manual_seed(1)
    unet = Precond(UNet(8, 1, 8, (1, 2), 1, (4,), dropout=0.3)).train()
    for p in unet.parameters():
        torch.nn.init.normal_(p, std=0.1)
    unet.double()
    unet.net.body = torch.float64
    x, v = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64)
    t, h = torch.tensor([0.1, 1.0, 5.0, 40.0]).double(), 1e-4
    s, dice = t.view(-1, 1, 1, 1), lambda: torch.Generator().manual_seed(7)
    f, slope = with_tangent(unet, x, t, v, dice())
    up = family.asked(unet, x + h * s * v, t * (1 + h), dice())
    down = family.asked(unet, x - h * s * v, t * (1 - h), dice())
    assert torch.allclose(f, family.asked(unet, x, t, dice()))
    assert torch.allclose(slope, ((up - down) / (2 * h * s)).detach(), rtol=1e-4, atol=1e-5)
    assert f.requires_grad and not slope.requires_grad


@pytest.mark.parametrize("normalise", [True, False])
def test_the_tangent_of_sct_is_that_of_trigflow(normalise):
    model, sigma = network().double(), 0.7
    x0, t, eps = batch(100)
    theta, h = torch.atan(t / sigma), 1e-5

    def f(theta):  # at x_θ = cos θ x0 + sin θ z, with z = σ ε
        x = theta.cos()[:, None] * x0 + theta.sin()[:, None] * sigma * eps
        return model(x / theta.cos()[:, None], sigma * theta.tan())

    slope = ((f(theta + h) - f(theta - h)) / (2 * h)).detach()
    g = theta.cos()[:, None] * slope
    g = g / (g.abs() + 0.1) if normalise else g
    own, target = ContinuousTraining(normalise=normalise).pair(model, x0, t, t, eps)
    c_out = sigma * theta.sin()[:, None]
    assert torch.allclose(target, own.detach() - c_out * g, atol=1e-5)
    assert torch.allclose(own, f(theta), atol=1e-9)
    weight = ContinuousTraining().functions(model)[0](t, t)
    assert torch.allclose(weight, 1 / c_out[:, 0] ** 2)


def test_the_warm_up_of_sct_begins_at_denoising():
    model, sigma = network().double(), 0.7
    x0, t, eps = batch(100)
    own, target = ContinuousTraining(normalise=False).pair(model, x0, t, 0 * t, eps)
    way = sigma**3 / (t**2 + sigma**2)
    assert torch.allclose(target - own, way[:, None] * (x0 - own), atol=1e-9)
    _, r = ContinuousTraining(warm=4).levels(8, 1, torch.Generator().manual_seed(0))
    t, _ = ContinuousTraining(warm=4).levels(8, 1, torch.Generator().manual_seed(0))
    assert torch.allclose(r, t / 2)
    assert torch.equal(*ContinuousTraining(warm=4).levels(8, 9))


def test_tangents_vanish_at_the_exact_map_along_v_and_not_at_the_denoiser():
    x0, t, eps = batch()
    objective = ContinuousDistillation(normalise=False)
    gaps = {}
    for name, f in (("map", MIX.exact_map), ("denoiser", MIX.denoise)):
        own, target = objective.pair(f, x0, t, t, eps, teacher=MIX.denoise)
        gaps[name] = rms(own - target)
    assert gaps["map"] < 1e-9 and gaps["denoiser"] > 0.05


def test_meanflow_is_the_published_equation_in_the_time_of_flow_matching():
    model = network(second=True).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x0, t, eps = batch(100)
    r = torch.where(torch.arange(100) % 4 == 0, t, t * torch.linspace(0, 0.95, 100))
    tau, rho = t / (1 + t), r / (1 + r)

    def u(tau):  # at z_τ = (1 - τ) x0 + τ ε, which is x_t / (1 + t)
        t = tau / (1 - tau)
        z = (1 - tau)[:, None] * x0 + tau[:, None] * eps
        x = z * (1 + t)[:, None]
        # z_ρ = z - (τ - ρ) u  and  x_r = F(x, t, r): solved for u
        s, ratio = rho / (1 - rho), ((rho / (1 - rho)) / t)[:, None]
        F = ratio * x + (1 - ratio) * model(x, t, r=s)
        gap = torch.where(tau > rho, tau - rho, 1.0)[:, None]
        return (z - F / (1 + s)[:, None]) / gap

    h = 1e-5
    slope = ((u(tau + h) - u(tau - h)) / (2 * h)).detach()
    published = (eps - x0) - (tau - rho)[:, None] * slope
    own, target = MeanFlow().pair(model, x0, t, r, eps)
    rows = r < t
    residual = (u(tau) - published)[rows]
    assert torch.allclose((target - own)[rows], residual, rtol=1e-4, atol=1e-4)
    k = ((1 + t) / t)[:, None]
    assert torch.allclose(target[~rows], (k * x0)[~rows])  # r = t: flow matching


def test_a_second_time_has_nothing_to_correct_at_the_exact_flow():
    line = Line()
    x0, t, eps = batch()
    r = t * torch.linspace(0, 0.98, 400, dtype=torch.float64)[torch.randperm(400)]
    tied = {
        "Shortcut": Shortcut().pair(line.g, x0, t, r, eps, target=line.g),
        "MeanFlow": MeanFlowDistillation().pair(line.g, x0, t, r, eps, teacher=line.denoise),
        "LSD": FlowMapDistillation().pair(line.g, x0, t, r.clamp(min=0.02), eps),
    }
    for name, (own, target) in tied.items():
        assert rms(own - target) < 1e-7 * max(1, rms(own)), name
    off = lambda x, t, r=None: line.g(x, t, r) + 0.1 * torch.tanh(t - r)[:, None]
    own, target = FlowMapDistillation().pair(off, x0, t, r.clamp(min=0.02), eps)
    assert rms(own - target) > 0.01


def test_the_diagonal_of_the_two_time_methods_is_denoising():
    line = Line()
    x0, t, eps = batch()
    own, target = Shortcut().pair(line.g, x0, t, t, eps, target=line.g)
    assert torch.equal(target, x0) and torch.allclose(own, line.denoise(x0 + t[:, None] * eps, t))
    own, target = FlowMapDistillation().pair(line.g, x0, t, t, eps)
    assert torch.allclose(own - target, x0 - line.denoise(x0 + t[:, None] * eps, t), atol=1e-9)


@pytest.mark.parametrize("kind", TWO)
def test_shares_of_the_second_level(kind):
    objective = kind(same=0.3, ends=0.2)
    t, r = objective.levels(20_000, 0, torch.Generator().manual_seed(0))
    low = float(r.min())
    assert abs(float((r == t).float().mean()) - 0.3) < 0.02 and ((0 <= r) & (r <= t)).all()
    assert low == pytest.approx(0.02 if kind is FlowMapDistillation else 0.0)
    assert abs(float((r == low).float().mean()) - 0.2) < (0.12 if low else 0.02)


# --- what measures the gap


def test_a_step_in_feature_space_has_length_one_and_the_direction_of_the_features():
    x0, t, eps = batch()
    x0, eps = x0.repeat(1, 2), eps.repeat(1, 2)
    first = lambda x: x[:, :1]
    objective = FeatureECT(features=first)
    f_t, target = objective.pair(lambda x, t: x * 0.9 + 0.1, x0, t, t / 2, eps)
    step = target - f_t.detach()
    assert torch.allclose(step[:, 0].abs(), torch.ones(400).double(), atol=1e-6)
    assert (step[:, 1] == 0).all()
    nearer = (0.9 * (x0 + t[:, None] / 2 * eps) + 0.1)[:, 0] - f_t[:, 0]
    assert (step[:, 0].sign() == nearer.sign()).all()
    with pytest.raises(ValueError, match="features is None"):
        FeatureECT()


def test_sets_are_compared_by_the_kernel_distance_of_numpy():
    model, x0 = network().double(), batch(12)[0]
    _, t, eps = batch(12)
    t = t[::4].repeat_interleave(4)
    objective = MomentMatching(group=4)
    y, z = (v.detach().numpy()[:, 0] for v in objective.pair(model, x0, t, t / 2, eps))
    found = objective.loss(model, x0, t, t / 2, eps)
    for i in range(0, 12, 4):
        c = 0.7 * float(t[i]) / math.hypot(0.7, float(t[i]))
        k = lambda a, b: np.exp(-np.abs(a[:, None] - b[None]) / c).mean()
        a, b = y[i : i + 4], z[i : i + 4]
        expected = k(a, a) + k(b, b) - 2 * k(a, b)
        assert found[i : i + 4].tolist() == pytest.approx([expected] * 4, rel=1e-6, abs=1e-9)
    t, r = objective.levels(10, 2, torch.Generator().manual_seed(0))
    assert len(t) == 10 and len(set(t[:4].tolist())) == 1 and (r <= t).all()


# --- training


def settings(objective, **kw):
    base = dict(kimg=0.192, batch=16, accumulate=2, lr=1e-2, ema=0.9, stages=Stages(1))
    return Config(objective, **base | dict(state_seconds=1e9) | kw)


def start(objective, dropout=0.2):
    return network(dropout, second=isinstance(objective, TWO))


def last(run, until=None):
    for p in run:
        if p.step == until:
            break
    run.close()
    return p


@pytest.mark.parametrize("objective", ALL, ids=NAMES)
def test_each_goes_on_bit_for_bit_and_says_in_config_json_what_it_is(objective, tmp_path):
    points = MIX.sample(64, torch.Generator().manual_seed(0))
    config, model = settings(objective), start(objective)
    whole = last(train(model, points, config, tmp_path / "whole"))
    last(train(model, points, config, tmp_path / "cut"), until=5)
    torch.manual_seed(99)  # dice that nobody may use
    again = last(train(model, points, config, tmp_path / "cut"))
    for a, b in zip(whole.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)
    moved = [not torch.equal(a, b) for a, b in zip(whole.model.parameters(), model.parameters())]
    assert any(moved)
    written = json.loads((tmp_path / "whole" / "config.json").read_text())["config"]["objective"]
    assert written["kind"] == f"ect_nb.family:{type(objective).__name__}"
    assert from_json(RunFolder(tmp_path / "whole").config()["config"]) == config
    with pytest.raises(ValueError, match="its objective"):
        next(train(model, points, replace(config, objective=ECT()), tmp_path / "whole"))


@pytest.mark.parametrize("objective", ALL, ids=NAMES)
def test_in_a_sweep_each_becomes_what_it_becomes_alone(objective):
    points = MIX.sample(64, torch.Generator().manual_seed(0))
    model, x, t = start(objective, 0.0), torch.randn(20, 1), torch.full((20,), 2.0)
    configs = [settings(objective, seed=s, accumulate=1) for s in (0, 1)]
    for p in sweep([model, model], points, configs):
        pass
    for found, config in zip(ask(p.ema, x, t), configs):
        alone = last(train(model, points, config)).ema
        assert torch.allclose(found, alone(x, t), atol=2e-4)


def test_costs_are_those_that_one_counts_by_hand():
    model, x0 = network(second=True), torch.randn(64, 1)
    full = passes(Denoising(), model, x0)
    assert 2 < full <= 3  # the first layer has no gradient for its input
    assert passes(CT(), model, x0, 3) == pytest.approx(full + 1, abs=0.01)
    assert passes(CD(), model, x0, 3) == pytest.approx(full + 3, abs=0.01)
    assert passes(DataFreeECT(steps=3), model, x0, 20) == pytest.approx(full + 1 + 5, abs=0.2)
    assert passes(Shortcut(), model, x0) == pytest.approx(full + 2, abs=0.01)
    assert passes(MiddleStage(steps=8), model, x0) == pytest.approx(full + 15 / 8, abs=0.01)
    assert passes(MeanFlow(), model, x0) > full + 1.5


def test_samples_of_a_two_time_network_may_put_noise_back_too():
    model = network(second=True).eval()
    z = torch.randn(5, 1)
    assert sample(model, z, (80.0, 1.0), torch.Generator().manual_seed(0)).shape == (5, 1)
