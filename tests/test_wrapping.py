"""A wrapped network is the f(x, t) of the kit: held to closed forms on a mixture, and to the
samplers of diffusers where it is installed."""

import importlib.util
import math
import pytest
import torch
from ect_nb import Config, Denoising, Stages, sample, train
from ect_nb.analytic import GaussianMixture
from ect_nb.diffusion import euler
from ect_nb.io import weights
from ect_nb.networks import MLP, classes_of
from ect_nb.objectives import ECT
from ect_nb.wrapping import DDPM, EDM, TARGETS, Cosine, RectifiedFlow, wrap
from torch import nn

DIFFUSERS = importlib.util.find_spec("diffusers") is not None
theirs = pytest.mark.skipif(
    not DIFFUSERS, reason='diffusers is missing: pip install "ect_nb[diffusers]"'
)
MIXTURE = GaussianMixture([[-1.1], [0.45], [1.2]], [0.12, 0.05, 0.08], [0.40, 0.25, 0.35])
SCHEDULES = [
    DDPM(),
    DDPM(rule="scaled_linear", start=0.00085, end=0.012),
    DDPM(rule="cosine"),
    Cosine(),
    Cosine(scale=math.pi / 2),
    EDM(),
    EDM(sigma_data=1.0),
    RectifiedFlow(),
    RectifiedFlow(scale=1000),
    RectifiedFlow(data_at=1),
]


def alpha_sigma(schedule, s):
    "α and σ at the time s that a network is told, written apart from the kit."
    if isinstance(schedule, DDPM):
        n = schedule.steps
        if schedule.rule == "cosine":
            bar = lambda u: torch.cos((u / n + 0.008) / 1.008 * math.pi / 2) ** 2
            k = torch.arange(n, dtype=torch.float64)
            beta = torch.minimum(1 - bar(k + 1) / bar(k), torch.tensor(0.999))
        elif schedule.rule == "linear":
            beta = torch.linspace(schedule.start, schedule.end, n, dtype=torch.float64)
        else:
            ends = schedule.start**0.5, schedule.end**0.5
            beta = torch.linspace(*ends, n, dtype=torch.float64) ** 2
        kept = torch.cumprod(1 - beta, 0)[s.round().long()]
        return kept.sqrt(), (1 - kept).sqrt()
    if isinstance(schedule, Cosine):
        angle = s / schedule.scale * math.pi / 2
        return angle.cos(), angle.sin()
    if isinstance(schedule, EDM):
        t = (4 * s).exp()
        size = (t**2 + schedule.sigma_data**2).sqrt()
        return 1 / size, t / size
    s = s / schedule.scale
    return (s, 1 - s) if schedule.data_at else (1 - s, s)


class Perfect(nn.Module):
    "The exact network of the mixture in the language of `target` under `schedule`."

    def __init__(self, target, schedule):
        super().__init__()
        self.target, self.schedule = target, schedule

    def forward(self, x_s, s):
        a, o = (v.double()[:, None] for v in alpha_sigma(self.schedule, s.double()))
        x, t = x_s / a, o / a
        x0 = MIXTURE.denoise(x, t[:, 0])
        eps = (x - x0) / t
        d = getattr(self.schedule, "sigma_data", 1.0)
        sign = -1 if getattr(self.schedule, "data_at", 0) else 1
        v = a * d * eps - o * x0 / d
        said = dict(epsilon=eps, x0=x0, v=v, flow=sign * (eps - x0), F=-v)
        return said[self.target]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_every_language_is_the_denoiser(target, schedule):
    levels = torch.logspace(-1.9, 1.1, 40, dtype=torch.float64)
    if isinstance(schedule, DDPM):  # at its ticks; between them nobody knows what is meant
        levels = schedule.levels()[10::40]
    x = torch.randn(len(levels), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x * (levels[:, None] ** 2 + 1).sqrt()
    f = wrap(Perfect(target, schedule), target, schedule)
    f.levels = schedule.levels() if isinstance(schedule, DDPM) else None
    assert torch.allclose(f(x, levels), MIXTURE.denoise(x, levels), atol=1e-6)


@pytest.mark.parametrize("rule", ["linear", "scaled_linear", "cosine"])
def test_ticks_in_float32_and_between(rule):
    schedule = DDPM(rule=rule)
    levels = schedule.levels()
    at = schedule.time(levels[:-1].float(), levels.float())
    assert (at - torch.arange(999)).abs().max() < 0.02
    middle = (levels[:-1] * levels[1:]).sqrt()
    halves = torch.arange(999).double() + 0.5
    assert torch.allclose(schedule.time(middle, levels), halves, atol=1e-6)
    ends = schedule.time(torch.tensor([1e-9, 1e9]).double(), levels)
    assert ends.tolist() == [0, 999]
    told = DDPM(rule=rule, whole=True).time(middle[:5] * 1.0001, levels)
    assert told.tolist() == [1, 2, 3, 4, 5] and not told.is_floating_point()


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "x0"])
def test_boundary(target):
    f = wrap(MLP(dim=2, width=8), target, Cosine())
    x = torch.randn(6, 2)
    assert torch.allclose(f(x, torch.zeros(6)), x, atol=1e-5)


class Odd(nn.Module):
    "Gives twice the channels in a tuple, and remembers what it was told."

    def __init__(self):
        super().__init__()
        self.layer, self.told = nn.Conv2d(3, 6, 1), None

    def forward(self, x, s, y=None, context=None):
        self.told = s, y, context
        return (self.layer(x),)


def test_conditions_and_odd_answers():
    net, context = Odd(), torch.randn(4, 7)
    f = wrap(net, "v", DDPM(whole=True), classes=10, null=10)
    assert classes_of(f) == 10
    x, t = torch.randn(4, 3, 8, 10), torch.tensor([0.1, 1.0, 5.0, 80.0])
    rows = torch.nn.functional.one_hot(torch.tensor([3, 0, 9, 1]), 10).float()
    rows[1] = 0  # nothing is said
    y = f(x, t, labels=rows, context=context)
    s, told, same = net.told
    assert y.shape == x.shape and s.dtype == torch.int64 and same is context
    assert told.tolist() == [3, 10, 9, 1]
    assert torch.equal(f(x, t, torch.tensor([3, 10, 9, 1]), context=context), y)
    half = f(x.half(), t)
    assert half.dtype == torch.float16


@pytest.mark.parametrize(
    "args, word",
    [
        ((MLP(dim=2), "noise", EDM()), "parametrisation"),
        ((MLP(dim=2), "v", None), "schedule"),
        ((lambda x, s: x, "v", EDM()), "torch.nn.Module"),
        ((wrap(MLP(dim=2), "v", EDM()), "v", EDM()), "already"),
        ((MLP(dim=2), "v", DDPM(rule="sine")), "rule"),
    ],
)
def test_refused(args, word):
    with pytest.raises(ValueError, match=word):
        wrap(*args)


def last(*args, **kw):
    for progress in train(*args, **kw):
        pass
    return progress


def own_net():
    torch.manual_seed(0)
    return MLP(dim=2, width=16)


@pytest.mark.parametrize("schedule", [Cosine(), DDPM(betas=(0.1, 0.2, 0.3, 0.9))], ids=str)
def test_tuned_stopped_and_continued(schedule, tmp_path):
    points = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    f = wrap(own_net(), "v", schedule)
    config = Config(ECT(c=0.03), kimg=0.6, batch=32, lr=1e-3, stages=Stages(2))
    whole = last(f, points, config, tmp_path / "whole").ema
    for p in train(f, points, config, tmp_path / "run"):
        if p.step == 7:
            break
    resumed = last(f, points, config, tmp_path / "run").ema
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))
    snapshot = sorted((tmp_path / "run" / "snapshots").glob("*"))[-1]
    z = torch.randn(5, 2)
    assert torch.equal(sample(weights.load(snapshot), z), sample(resumed, z))
    for other in (wrap(own_net(), "epsilon", schedule), wrap(own_net(), "v", EDM())):
        with pytest.raises(ValueError, match="another description"):
            last(other, points, config, tmp_path / "run")


class Texts:
    "Rows with a condition for each: the trainer hands them on by name."

    def __init__(self):
        self.x, self.conditions = (
            torch.randn(64, 3, 4, 4),
            dict(context=torch.arange(64.0)[:, None]),
        )

    def __len__(self):
        return 64

    def batch(self, index):
        return self.x[index]


class Reads(Odd):
    def forward(self, x, s, context):
        assert context.shape == (len(x), 1)
        self.told = context
        return self.layer(x) * (1 + context[:, :, None, None] / 64)


def test_conditions_reach_the_network_in_training():
    f = wrap(Reads(), "epsilon", EDM())
    run = last(f, Texts(), Config(Denoising(), kimg=0.064, batch=64))
    assert run.model.net.told.sort(0).values.flatten().tolist() == list(range(64))


@theirs
def test_unet_of_diffusers_is_described_and_read_back(tmp_path):
    from diffusers import DDPMScheduler, UNet2DModel

    for shape in ((1, 28, 28), (3, 32, 32), (3, 16, 24)):
        net = UNet2DModel(
            sample_size=shape[1:],
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            num_class_embeds=10,
        )
        f = wrap(net, schedule=DDPMScheduler(prediction_type="v_prediction")).eval()
        assert (f.parametrisation, f.labels, classes_of(f)) == ("v", "class_labels", 10)
        path = weights.save(f, tmp_path / "f.safetensors", shape=shape)
        x, labels = torch.randn(3, *shape), torch.tensor([1, 2, 3])
        again = weights.load(path)
        t = torch.tensor([0.1, 2.0, 70.0])
        assert torch.equal(again(x, t, labels), f(x, t, labels))
    description = weights.describe(f)
    for name in ("diffusers:DDPMScheduler", "diffusers:os", "diffusers:a.b", "diffusers:nothing"):
        with pytest.raises(ValueError, match="no model of diffusers"):
            weights.build(description | dict(net=dict(name=name, config={})))


def tiny(seed=0):
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()


@theirs
@pytest.mark.parametrize("target", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("rule", ["linear", "squaredcos_cap_v2"])
@torch.no_grad()
def test_euler_is_their_ddim(target, rule):
    from diffusers import DDIMScheduler

    ddim = DDIMScheduler(
        beta_schedule=rule,
        prediction_type=target,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="leading",
    )
    net = tiny()
    f = wrap(net, schedule=ddim)
    ddim.set_timesteps(10)
    levels = DDPM(rule=f.schedule.rule).levels()[ddim.timesteps]
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    x = (levels[0] / (1 + levels[0] ** 2).sqrt()).float() * z
    for s in ddim.timesteps:
        x = ddim.step(net(x, s).sample, s, x).prev_sample
    ours = euler(f, z, torch.cat([levels, levels.new_zeros(1)]))
    assert torch.allclose(ours, x, atol=2e-3 * float(x.abs().max()))


@theirs
@torch.no_grad()
def test_euler_is_their_flow_and_their_edm():
    from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

    net, z = tiny(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    flow = FlowMatchEulerDiscreteScheduler()
    flow.set_timesteps(sigmas=[0.95, 0.7, 0.4, 0.1])
    x = 0.95 * z
    for s in flow.timesteps:
        x = flow.step(net(x, s).sample, s, x).prev_sample
    s = flow.sigmas.double()
    ours = euler(wrap(net, schedule=flow), z, s / (1 - s))
    assert torch.allclose(ours, x, atol=1e-4)
    for target in ("epsilon", "v_prediction"):
        edm = EDMEulerScheduler(prediction_type=target)
        edm.set_timesteps(6)
        x = edm.sigmas[0] * z
        for s in edm.timesteps:
            x = edm.step(net(edm.scale_model_input(x, s), s).sample, s, x).prev_sample
        ours = euler(wrap(net, schedule=edm), z, edm.sigmas.double())
        assert torch.allclose(ours, x, atol=1e-3)


def test_a_clock_that_has_a_name():
    class Named(nn.Module):
        def forward(self, x, context, timestep):
            return x * timestep[:, None] + context

    f = wrap(Named(), "x0", RectifiedFlow())
    x, t = torch.randn(3, 2), torch.tensor([1.0, 3.0, 9.0])
    want = x / (1 + t)[:, None] * (t / (1 + t))[:, None] + 5
    assert torch.allclose(f(x, t, context=5.0), want)
