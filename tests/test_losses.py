import math
import numpy as np
import pytest
import torch
from decimal import Decimal, getcontext
from ect_nb.diffusion import Precond, denoising_loss
from ect_nb.losses import (
    METRICS,
    WEIGHTS,
    adaptive,
    ect_loss,
    edm,
    effective_rows,
    geometric_median,
    inverse_gap,
    noise_scale,
    pseudo_huber,
    slope,
    squared,
    uniform,
)
from ect_nb.networks import MLP, Dropout, UNet
from torch import nn

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    ),
    pytest.param(
        "mps",
        marks=pytest.mark.skipif(
            not torch.backends.mps.is_available(), reason="needs an Apple GPU"
        ),
    ),
]


def rand(*shape, seed=0, **kw):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **kw)


class Spy(nn.Module):
    """Any model, with a record of each call: x, t, other arguments, gradient on or off, training or
    not, output."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, []
        if isinstance(model, nn.Module):
            self.shares_dropout = getattr(model, "shares_dropout", False)

    def forward(self, x, t, **kw):
        y = self.model(x, t, **kw)
        self.calls.append(
            dict(
                x=x.detach(),
                t=t.detach(),
                kw=kw,
                grad=torch.is_grad_enabled(),
                training=self.training,
                y=y.detach(),
                needs_grad=y.requires_grad,
            )
        )
        return y


class Foreign(nn.Module):
    "A network of somebody else's, with nn.Dropout, which cannot answer at t = 0."

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 3))

    def forward(self, x, t):
        assert (t > 0).all()
        return self.net(torch.cat([x, t.log()[:, None]], 1))


def noisy_function(x, t):
    "A plain function with dice of its own."
    assert (t > 0).all()
    return x * (torch.rand_like(x) < 0.5)


def unet():
    return UNet(
        resolution=8,
        channels=1,
        model_channels=8,
        channel_mult=(1, 2),
        num_blocks=1,
        attention=(4,),
        dropout=0.4,
    )


def shaken(net):
    "The network with every weight moved, so that layers which start near zero count as well."
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return net


class ForeignBody(Foreign):
    "The same as the body of our preconditioning: it sees the noise condition ln(t)/4."

    def forward(self, x, c):
        return self.net(torch.cat([x, c[:, None]], 1))


# kind: how to make it, shape of a row, whether its second pass sees only the rows that need one
MODELS = dict(
    mlp=(lambda: Precond(MLP(3, 32, 2, dropout=0.4)), (3,), True),
    unet=(lambda: Precond(shaken(unet())), (1, 8, 8), True),
    foreign=(Foreign, (3,), False),
    wrapped_foreign=(lambda: Precond(ForeignBody()), (3,), False),
    function=(lambda: noisy_function, (3,), False),
)

ZERO, SAME, BETWEEN = slice(0, 4), slice(4, 8), slice(8, 12)


def batch(shape, seed=0, n=12):
    "Rows 0-3 at r = 0, 4-7 at r = t, 8-11 in between."
    t = rand(n, seed=seed + 1).exp()
    r = t.clone()
    r[ZERO], r[BETWEEN] = 0, t[BETWEEN] * torch.tensor([0.2, 0.5, 0.9, 0.99])
    return rand(n, *shape, seed=seed), t, r, rand(n, *shape, seed=seed + 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("levels_on_host", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_in_a_mixed_batch_with_dropout_every_row_gets_its_own_target(kind, levels_on_host, device):
    make, shape, ours = MODELS[kind]
    torch.manual_seed(0)
    model, order = Spy(make()).train().to(device), torch.randperm(12)
    x0, t, r, eps = (a[order] for a in batch(shape))
    x0, eps = x0.to(device), eps.to(device)
    zero, same = r == 0, r == t
    if not levels_on_host:
        t, r = t.to(device), r.to(device)
    loss = ect_loss(model, x0, t, r, eps, metric=squared, weight=uniform)
    first, second = model.calls
    f_t, seen = first["y"].cpu(), torch.arange(12)[~zero] if ours else torch.arange(12)
    assert (
        len(second["t"]) == len(seen) == (8 if ours else 12)
    )  # our networks: only the rows that need it
    f_r = torch.full_like(f_t, math.nan)
    f_r[seen] = second["y"].cpu()
    if ours:
        assert torch.allclose(f_r[same], f_t[same], rtol=1e-6, atol=1e-6 * float(f_t.abs().max()))
    else:
        assert torch.equal(f_r[same], f_t[same])
    target = torch.where(zero.view(-1, *[1] * len(shape)), x0.cpu(), f_r)
    wanted = (f_t.double() - target.double()).square().flatten(1).sum(1)
    assert torch.allclose(loss.detach().cpu().double(), wanted, rtol=1e-5, atol=1e-9)
    assert (loss[~(zero | same).to(loss.device)] > 0).any() or kind == "function"
    x_t, x_r = (x0.cpu() + a.cpu().view(-1, *[1] * len(shape)) * eps.cpu() for a in (t, r))
    assert torch.allclose(first["x"].cpu(), x_t) and torch.allclose(
        second["x"].cpu()[~zero[seen]], x_r[~zero]
    )
    assert torch.equal(second["t"].cpu()[~zero[seen]], r.cpu()[~zero]) and (second["t"] > 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", MODELS)
def test_without_clean_rows_both_branches_agree_bit_for_bit_at_r_equal_t(kind, device):
    make, shape, _ = MODELS[kind]
    torch.manual_seed(1)
    model = Spy(make()).train().to(device)
    x0, t, r, eps = batch(shape)
    r[ZERO] = t[ZERO]
    loss = ect_loss(model, x0.to(device), t, r, eps.to(device))
    first, second = (c["y"] for c in model.calls)
    assert (
        torch.equal(first[:8], second[:8]) and (loss[:8] == 0).all() and torch.isfinite(loss).all()
    )


@pytest.mark.parametrize("device", DEVICES)
def test_the_mask_itself_is_the_same_in_both_branches(device):
    class Mask(nn.Module):
        shares_dropout = True

        def __init__(self):
            super().__init__()
            self.a, self.b = Dropout(0.5), Dropout(0.25)

        def forward(self, x, t):
            return self.a(torch.ones_like(x)) + 100 * self.b(torch.ones_like(x))

    model = Spy(Mask()).to(device)
    x0, t, r, eps = batch((50,))
    ect_loss(model, x0.to(device), t, r, eps.to(device))
    first, second = (c["y"] for c in model.calls)
    assert torch.equal(second, first[4:]) and len(first.unique()) == 4  # on and off in two layers


@pytest.mark.parametrize("c, metric", [(0.0, pseudo_huber), (0.06, pseudo_huber), (0.0, squared)])
def test_rows_at_r_0_are_weight_times_metric_against_the_clean_picture(c, metric):
    model = Spy(Precond(MLP(3, 16, 1, dropout=0.4)))
    x0, t, r, eps = batch((3,))
    found = ect_loss(model, x0, t, r, eps, c=c, metric=metric).detach()[ZERO].double()
    S = (model.calls[0]["y"] - x0)[ZERO].double().square().sum(1)
    wanted = (S if metric is squared else (S + c**2).sqrt() - c) / t[ZERO].double()
    assert torch.allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_with_squared_l2_and_edm_weight_rows_at_r_0_are_denoising(kind):
    make, shape, _ = MODELS[kind]
    model = make().eval()
    x0, t, r, eps = batch(shape)
    found, wanted = (
        ect_loss(model, x0, t, r, eps, weight=edm, metric=squared),
        denoising_loss(model, x0, t, eps),
    )
    assert torch.allclose(found[ZERO], wanted[ZERO], rtol=1e-6)
    calls = Spy(model)
    assert (
        torch.allclose(
            ect_loss(calls, x0, t, 0 * r, eps, weight=edm, metric=squared), wanted, rtol=1e-6
        )
        and len(calls.calls) == 1
    )


@pytest.mark.parametrize("kind", MODELS)
def test_the_target_is_taken_without_gradient_in_the_mode_of_the_model(kind):
    make, shape, _ = MODELS[kind]
    for training in (True, False):
        model = Spy(make()).train(training)
        ect_loss(model, *batch(shape))
        first, second = model.calls
        assert (
            first["grad"]
            and not second["grad"]
            and not second["needs_grad"]
            and first["training"] == second["training"] == training
        )
        assert first["needs_grad"] or kind == "function"


def test_the_gradient_is_that_of_a_constant_target():
    theta = torch.tensor([0.7, -0.3, 0.2], dtype=torch.float64, requires_grad=True)
    x0, t, r, eps = (a.double() for a in batch((3,)))
    model = lambda x, t: torch.tanh(theta[0] * x + theta[1] * t.log()[:, None] + theta[2])
    for c, weight in ((0.0, inverse_gap), (0.1, edm)):
        (grad,) = torch.autograd.grad(
            ect_loss(model, x0, t, r, eps, weight=weight, c=c).sum(), theta
        )
        X0, T, R, E = (a.numpy() for a in (x0, t, r, eps))

        def f(p, x, t):
            return np.tanh(p[0] * x + p[1] * np.log(t)[:, None] + p[2])

        p, live = (
            theta.detach().numpy(),
            R < T,
        )  # at r = t the weight 1/(t - r) is 0 and the metric has gradient 0
        target = np.where(R[:, None] > 0, f(p, X0 + R[:, None] * E, np.where(R > 0, R, 1)), X0)
        w = 1 / (T - R)[live] if weight is inverse_gap else ((T**2 + 0.25) / (T * 0.5) ** 2)[live]

        def loss(p):
            d = f(p, X0 + T[:, None] * E, T) - target
            return (w * (np.sqrt((d**2).sum(1) + c**2) - c)[live]).sum()

        h = 1e-6
        assert np.allclose(
            grad, [(loss(p + h * e) - loss(p - h * e)) / (2 * h) for e in np.eye(3)], rtol=1e-6
        )


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize(
    "metric, c",
    [("squared", 0.0), ("pseudo_huber", 0.0), ("pseudo_huber", 0.03), ("adaptive", 0.03)],
)
def test_no_gap_gives_no_loss_and_no_nan(metric, c, weight):
    model = Precond(MLP(3, 16, 1, dropout=0.4))
    x0, t, r, eps = batch((3,))
    t[0] = r[0] = 1e-4
    loss = ect_loss(
        model, x0, t, t.clone(), eps, weight=WEIGHTS[weight], c=c, metric=METRICS[metric]
    )
    loss.sum().backward()
    assert (loss == 0).all() and all((p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("gaps", [0.0, 1e-3, 1.0])
def test_no_nan_at_the_extremes_of_t(gaps):
    model = Precond(MLP(3, 16, 1))
    t = torch.tensor([1e-7, 1e-4, 0.3, 80.0, 3e3])
    loss = ect_loss(model, rand(5, 3), t, t * (1 - gaps), rand(5, 3, seed=1))
    loss.sum().backward()
    assert torch.isfinite(loss).all() and all(
        torch.isfinite(p.grad).all() for p in model.parameters()
    )


def test_labels_go_with_their_rows_and_other_arguments_go_as_they_are():
    class Labelled(nn.Module):
        shares_dropout = True

        def forward(self, x, t, labels, scale, shift):
            return x * scale + labels.sum(1, keepdim=True) + shift

    for model in (
        Spy(Labelled()),
        Spy(lambda x, t, labels, scale, shift: x * scale + labels.sum(1, keepdim=True) + shift),
    ):
        x0, t, r, eps = batch((3,))
        labels, shift = rand(12, 5, seed=9), torch.tensor(2.0)
        loss = ect_loss(
            model,
            x0,
            t,
            r,
            eps,
            metric=squared,
            weight=uniform,
            labels=labels,
            scale=2.0,
            shift=shift,
        )
        second = model.calls[1]
        assert torch.equal(second["kw"]["labels"], labels[4:] if len(second["t"]) == 8 else labels)
        assert second["kw"]["scale"] == 2.0 and torch.equal(second["kw"]["shift"], shift)
        wanted = ((2 * (t - r)[:, None] * eps) ** 2).sum(1)
        wanted[ZERO] = (
            (x0 + 2 * t[:, None] * eps + labels.sum(1, keepdim=True) + 2)[ZERO].square().sum(1)
        )
        assert torch.allclose(loss, wanted, rtol=1e-4, atol=1e-6)


def test_the_generator_decides_the_masks_and_leaves_other_dice_alone():
    model = Precond(MLP(3, 32, 2, dropout=0.5))
    loss = lambda seed: ect_loss(model, *batch((3,)), generator=torch.Generator().manual_seed(seed))
    before = torch.get_rng_state()
    assert (
        torch.equal(loss(1), loss(1))
        and not torch.equal(loss(1), loss(2))
        and torch.equal(torch.get_rng_state(), before)
    )


def test_a_foreign_model_leaves_the_dice_as_one_pass_would():
    x0, t, r, eps = batch((3,))
    torch.manual_seed(3)
    noisy_function(x0, t)
    wanted = torch.rand(5)
    torch.manual_seed(3)
    ect_loss(noisy_function, x0, t, r, eps)
    assert torch.equal(torch.rand(5), wanted)


def test_dropout_is_fresh_again_afterwards_even_after_an_error():
    model = Precond(MLP(3, 64, 1, dropout=0.5))
    x, t = rand(4, 3), torch.ones(4)
    ect_loss(model, *batch((3,)))
    assert not torch.equal(model(x, t), model(x, t))
    with pytest.raises(TypeError):
        ect_loss(model, *batch((3,)), nonsense=1)
    assert not torch.equal(model(x, t), model(x, t)) and all(
        getattr(m, "keep", None) is None for m in model.modules()
    )


def test_low_precision_output_gives_a_float32_loss():
    x0, t, r, eps = batch((3,))
    for dtype in (torch.bfloat16, torch.float16):
        loss = ect_loss(
            lambda x, t: (0.5 * x).to(dtype), x0, t, r, eps, metric=squared, weight=uniform
        )
        d = (0.5 * (x0 + t[:, None] * eps)).to(dtype).float() - x0
        assert loss.dtype == torch.float32 and torch.allclose(
            loss[ZERO], d.square().sum(1)[ZERO], rtol=1e-5
        )  # the clean picture is not rounded


def test_float64_data_is_measured_in_float64_and_float64_levels_do_not_widen_float32_data():
    x0, t, r, eps = batch((3,))
    assert (
        ect_loss(lambda x, t: x * 2, x0.double(), t.double(), r.double(), eps.double()).dtype
        == torch.float64
    )
    assert ect_loss(Precond(MLP(3, 8, 1)), x0, t.double(), r.double(), eps).dtype == torch.float32


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(eps=torch.zeros(12, 2)), "eps has shape"),
        (dict(t=torch.ones(11)), "one noise level per row"),
        (dict(r=torch.zeros(12, 1)), "one noise level per row"),
        (dict(t=torch.full((12,), 0.1), r=torch.full((12,), 0.2)), "swapped"),
        (dict(r=torch.full((12,), -0.1)), "0 <= r <= t"),
        (dict(t=torch.full((12,), math.nan)), "0 <= r <= t"),
    ],
)
def test_bad_arguments_are_named_in_one_sentence(change, words):
    with pytest.raises(ValueError, match=words):
        ect_loss(noisy_function, **{**dict(zip(("x0", "t", "r", "eps"), batch((3,)))), **change})


# ---- metrics and weights

DELTA = rand(5, 2, 3, seed=7, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_metrics_are_their_formulas(scale):
    d = scale * DELTA
    S = (d.numpy() ** 2).sum((1, 2))
    assert (
        np.allclose(squared(d), S)
        and np.allclose(pseudo_huber(d), np.sqrt(S))
        and np.allclose(adaptive(d, 0.03, 0.7), S / (S + 0.0009) ** 0.7)
    )
    for c in (0.03, 0.06, 2.0):
        assert np.allclose(pseudo_huber(d, c), np.sqrt(S + c**2) - c, rtol=1e-7)


def test_pseudo_huber_does_not_cancel_at_small_differences():
    getcontext().prec = 50
    for size in (1e-6, 1e-4, 1e-2):
        x = torch.tensor([[size]])
        S = Decimal(float(x)) ** 2
        assert float(pseudo_huber(x, 1.0)) == pytest.approx(float((S + 1).sqrt() - 1), rel=1e-6)


@pytest.mark.parametrize(
    "metric, c", [(squared, 0.0), (pseudo_huber, 0.0), (pseudo_huber, 0.06), (pseudo_huber, 5.0)]
)
def test_metrics_have_the_gradient_of_their_formula(metric, c):
    d = DELTA.clone().requires_grad_()
    (grad,) = torch.autograd.grad(metric(d, c).sum(), d)
    formula = lambda x: (
        (x**2).sum() if metric is squared else np.sqrt((x**2).sum() + c**2) - c
    )  # the rows add up, so each is differentiated alone
    for row, found in zip(DELTA.numpy(), grad):
        steps = 1e-5 * np.eye(6).reshape(6, 2, 3)
        assert np.allclose(
            found.flatten(),
            [(formula(row + h) - formula(row - h)) / 2e-5 for h in steps],
            rtol=1e-7,
            atol=1e-9,
        )


@pytest.mark.parametrize("p", [0.5, 1.0])
def test_adaptive_has_the_gradient_of_s_over_a_constant(p):
    d = DELTA.clone().requires_grad_()
    (grad,) = torch.autograd.grad(adaptive(d, 0.1, p).sum(), d)
    S = DELTA.square().sum((1, 2), keepdim=True)
    assert torch.allclose(grad, 2 * DELTA / (S + 0.01) ** p)
    if p == 0.5:
        assert torch.allclose(grad, 2 * torch.autograd.grad(pseudo_huber(d, 0.1).sum(), d)[0])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("c", [0.0, 0.03])
def test_equal_pictures_have_distance_0_and_gradient_0(metric, c):
    if metric == "adaptive" and c == 0:
        pytest.skip("adaptive weighting needs c > 0")
    d = torch.zeros(2, 3, requires_grad=True)
    value = METRICS[metric](d, c)
    value.sum().backward()
    assert (value == 0).all() and (d.grad == 0).all()


def test_weights_are_their_formulas():
    t = np.array([0.01, 0.5, 2.0, 80.0])
    r = np.array([0.0, 0.4, 2.0, 79.0])
    with np.errstate(divide="ignore"):
        gap = np.where(t > r, 1 / (t - r), 0)
    wanted = dict(
        uniform=np.ones(4), inverse_gap=gap, inverse_t=1 / t, snr=1 / t**2, edm=1 / t**2 + 4
    )
    assert wanted.keys() == WEIGHTS.keys()
    for name, w in wanted.items():
        assert np.allclose(WEIGHTS[name](torch.tensor(t), torch.tensor(r)), w, rtol=1e-12), name


def test_ect_weighs_by_the_inverse_gap_and_measures_by_the_root_by_default():
    x0, t, r, eps = batch((3,))
    loss = ect_loss(lambda x, t: 3 * x, x0, t, r, eps)  # f(x_t) - f(x_r) = 3 (t - r) eps
    assert (
        torch.allclose(loss[BETWEEN], 3 * eps[BETWEEN].norm(dim=1), rtol=1e-4)
        and (loss[SAME] == 0).all()
    )


# ---- who is heard, and what a metric aims at


def test_the_slope_is_the_derivative_worked_out_by_hand():
    s = torch.tensor([0.0, 1e-3, 0.5, 20.0], dtype=torch.float64)
    assert torch.allclose(slope(squared, s), 2 * s) and torch.allclose(
        slope(pseudo_huber, s, 0.06), s / (s**2 + 0.06**2).sqrt()
    )
    assert torch.equal(slope(pseudo_huber, s), (s > 0).double())  # √S: 1 everywhere, and 0 at 0
    for p in (0.5, 1.0):
        assert torch.allclose(
            slope(lambda d, c: adaptive(d, c, p), s, 0.3), 2 * s / (s**2 + 0.09) ** p
        )


def test_the_slope_can_be_asked_without_gradients_and_leaves_its_argument_alone():
    s = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        found = slope(squared, s)
    assert torch.equal(found, torch.full((3,), 2.0)) and not found.requires_grad and s.grad is None


@pytest.mark.parametrize(
    "metric, c", [(squared, 0.0), (pseudo_huber, 0.0), (pseudo_huber, 0.3), (adaptive, 0.3)]
)
def test_weight_slope_and_network_multiply_to_the_gradient_of_a_row(metric, c):
    model = shaken(Precond(MLP(3, 16, 1)))
    x0, t, r, eps = (a[BETWEEN][:1] for a in batch((3,)))
    params = list(model.parameters())
    norm = lambda grads: torch.cat([v.flatten() for v in grads]).norm()
    whole = norm(
        torch.autograd.grad(ect_loss(model, x0, t, r, eps, metric=metric, c=c).sum(), params)
    )
    y = model(x0 + t[:, None] * eps, t)
    delta = (y - model(x0 + r[:, None] * eps, r)).detach()
    size = delta.norm(dim=1)
    assert torch.allclose(
        whole,
        inverse_gap(t, r)
        * slope(metric, size, c)
        * norm(torch.autograd.grad(y, params, delta / size)),
        rtol=1e-4,
    )


def test_effective_rows_counts_rows():
    assert effective_rows(torch.full((7,), 0.3)) == pytest.approx(7) and effective_rows(
        torch.tensor([0.0, 5.0, 0.0])
    ) == pytest.approx(1)
    assert effective_rows(torch.tensor([1.0, 1.0, 0.0, 0.0])) == pytest.approx(2)


def test_the_noise_scale_is_trace_over_squared_mean_and_unbiased_in_both_parts():
    generator, mean, std = (
        torch.Generator().manual_seed(0),
        torch.tensor([1.0, -2.0, 0.0]).double(),
        torch.tensor([3.0, 1.0, 2.0]).double(),
    )
    draw = lambda n: mean + std * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    assert float(noise_scale(draw(200_000))) == pytest.approx(14 / 5, rel=0.02)
    rows = draw(
        6
        # against the textbook: tr of the sample covariance, and the mean of products of two
        # rows
    )
    pairs = [rows[i] @ rows[j] for i in range(6) for j in range(6) if i != j]
    assert float(noise_scale(rows)) == pytest.approx(
        float(rows.T.cov().trace() / torch.stack(pairs).mean())
    )


def test_the_geometric_median_has_the_least_mean_distance():
    from scipy.optimize import minimize

    points, weights = (
        rand(40, 3, dtype=torch.float64).exp(),
        rand(40, seed=1, dtype=torch.float64).square(),
    )
    cost = lambda y: float((weights * (points - torch.as_tensor(y)).norm(dim=1)).sum())
    best = minimize(
        cost,
        points.mean(0).numpy(),
        method="Nelder-Mead",
        options=dict(xatol=1e-9, fatol=1e-12, maxiter=5000),
    ).x
    assert np.allclose(geometric_median(points, weights, 500), best, atol=1e-5)


def test_the_geometric_median_in_one_dimension_is_the_median_and_a_majority_takes_all():
    values = rand(101, 1, dtype=torch.float64).exp()
    assert torch.allclose(geometric_median(values, steps=3000), values.median(), atol=1e-3)
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert torch.allclose(
        geometric_median(triangle, torch.tensor([0.6, 0.2, 0.2]), 500), triangle[0], atol=1e-4
    )
    assert torch.allclose(
        geometric_median(triangle, torch.tensor([1, 2, 2])),
        geometric_median(triangle[[0, 1, 1, 2, 2]]),
        atol=1e-6,
    )
