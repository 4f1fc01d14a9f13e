"""Methods: each loss and each draw against an independent formula, the runs of version 0.1 repeated
to the bit, and what a method keeps, told, stopped and continued."""

import copy
import json
import math
import numpy as np
import pytest
import scipy.stats
import shutil
import subprocess
import sys
import torch
from dataclasses import dataclass, field, replace
from ect_nb import losses
from ect_nb.diffusion import Precond, denoising_loss
from ect_nb.io.data import Pictures
from ect_nb.measure.sweeps import apart, sweep
from ect_nb.networks import MLP, UNet
from ect_nb.objectives import ECT, Comparison, ConsistencyTraining, Denoising, Objective
from ect_nb.sampling import sample
from ect_nb.schedules import ConstantMapping, LogNormal, SigmoidMapping, Stages
from ect_nb.training.config import Config, code_of, from_json, to_json, upgraded
from ect_nb.training.loop import train
from ect_nb.training.runs import RunFolder, checksum, load_state
from functools import partial
from pathlib import Path
from torch import nn

OLD = Path(__file__).parent / "version_0.1"
RUNS = json.loads((OLD / "runs.json").read_text())


def grid(shape, first=0):
    "Numbers in [-1, 1] that are the same on every machine."
    n = math.prod(shape)
    return (((torch.arange(n) * 37 + first) % 101) / 50.5 - 1).reshape(shape)


def filled(model):
    "`model` with weights that are the same on every machine."
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(0.4 * grid(p.shape, 11 * i))
    return model


class Foreign(nn.Module):
    "A network of someone else, with a dropout of torch's own."

    def __init__(self):
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 2)

    def forward(self, x, t):
        return x + self.b(self.drop(self.a(torch.cat([x, t.log()[:, None]], 1))))


MODELS = dict(
    mlp=lambda: Precond(MLP(2, 8, 2, 0.2)),
    wide=lambda: Precond(MLP(2, 8, 2), sigma_data=1.5),
    unet=lambda: Precond(UNet(4, 1, 8, (1,), 1, (), dropout=0.1, label_dim=3)),
    foreign=Foreign,
)
POINTS = grid((48, 2))
BYTES = (torch.arange(512) * 37 % 256).byte().reshape(32, 1, 4, 4)


def network(kind="mlp"):
    return filled(MODELS[kind]())


def data_of(kind):
    return Pictures(BYTES, torch.arange(32) % 3) if kind == "unet" else POINTS


def last(run, until=None):
    for p in run:
        if p.step == until:
            break
    run.close()
    return p


def config(objective=ECT(), steps=12, **kw):
    settings = dict(kimg=steps * 16 / 1000, batch=16, accumulate=2, lr=1e-2, ema=0.9)
    return Config(objective, **settings | dict(stages=Stages(1), state_seconds=1e9) | kw)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- settings of one's own that version 0.1 was given too


@dataclass(frozen=True)
class LogUniform:
    "ln t is uniform."

    low: float = 0.01
    high: float = 80.0

    def sample(self, n, generator=None):
        return self.low * (self.high / self.low) ** torch.rand(n, generator=generator)


def soft(t, r, sigma_data=0.5):
    return sigma_data / (t + sigma_data)


def cauchy(delta):
    return (1 + delta.flatten(1).square().sum(1)).log()


# --- runs of version 0.1


def alike():
    "Whether this machine computes as the one did on which version 0.1 ran."
    cpu = torch.backends.cpu.get_cpu_capability()
    return torch.__version__ == RUNS["torch"] and cpu == RUNS["cpu"]


def same_as_then(p, then):
    "The weights are those of then to the bit, on such a machine; their answers on any."
    pictures = then["network"] == "unet"
    shape = (2, 1, 2, 2) if pictures else (2, 2)
    x = torch.linspace(-1, 1, 8 if pictures else 4).reshape(shape)
    x = x.repeat(1, 1, 2, 2) if pictures else x
    kw = dict(labels=torch.eye(3)[:2]) if pictures else {}
    answers = p.ema(x, torch.tensor([0.5, 5.0]), **kw).detach().flatten()[[0, 1, -2, -1]]
    coarse = 0.02 if then["config"]["precision"] == "bfloat16" else 2e-4
    assert answers.tolist() == pytest.approx(then["answers"], abs=coarse)
    if alike():
        ends = checksum(p.model.state_dict()), checksum(p.ema.state_dict())
        assert ends == (then["model"], then["ema"])


@pytest.mark.parametrize("name", RUNS["runs"])
def test_a_run_with_the_settings_of_version_0_1_ends_as_it_did(name):
    then = RUNS["runs"][name]
    kind = then["network"]
    same_as_then(last(train(network(kind), data_of(kind), from_json(then["config"]))), then)


@pytest.mark.parametrize("name", ["ect", "own"])
def test_a_folder_of_version_0_1_is_brought_to_todays_form_and_goes_on(name, tmp_path):
    folder = Path(shutil.copytree(OLD / name, tmp_path / "run"))
    assert "objective" not in RunFolder(folder).config()["config"]
    assert load_state(RunFolder(folder))[1]["step"] == 10
    then = RUNS["runs"][name]
    now = from_json(then["config"])
    p = last(train(network(then["network"]), POINTS, now, folder))
    same_as_then(p, then)
    written = RunFolder(folder).config()
    assert written["format"] == 2 and from_json(written["config"]) == now
    assert [r["kimg"] for r in RunFolder(folder).records()] == [
        pytest.approx(16 * i / 1000) for i in range(1, 25)
    ]


def test_a_folder_of_version_0_1_with_another_run_is_refused_in_one_sentence(tmp_path):
    folder = Path(shutil.copytree(OLD / "ect", tmp_path / "run"))
    before = (folder / "config.json").read_bytes()
    now = from_json(RUNS["runs"]["ect"]["config"])
    changes = {
        "its objective is ECT, not Denoising": Denoising(),
        "its objective.mapping.q is 2.0, not 4.0": ECT(mapping=SigmoidMapping(4.0)),
        "its objective.weight is inverse_gap, not test_objectives:soft": ECT(weight=soft),
    }
    for words, objective in changes.items():
        with pytest.raises(ValueError, match=words.replace(".", r"\.")) as error:
            next(train(network(), POINTS, replace(now, objective=objective), folder))
        assert "\n" not in str(error.value)
        assert (folder / "config.json").read_bytes() == before


def test_settings_of_version_0_1_become_an_objective():
    old = dict(kimg=3.0, mapping=None, weight="edm", metric="squared", c=0.0, lr=0.5)
    old["p_t"] = dict(kind="LogNormal", mean=-1.2, std=1.2)
    assert from_json(old) == Config(Denoising(), kimg=3.0, lr=0.5)
    old |= dict(mapping=dict(kind="ConstantMapping", q=3.0), metric="adaptive", c=0.1)
    mapping = ConstantMapping(3.0)
    objective = ECT(
        mapping=mapping, weight="edm", metric="adaptive", c=0.1, p_t=LogNormal(-1.2, 1.2)
    )
    assert from_json(old) == Config(objective, kimg=3.0, lr=0.5)
    today = to_json(Config(objective))
    assert upgraded(today) == today == upgraded(upgraded(old)) | dict(kimg=60.0, lr=1e-4)


# --- the three, against formulas written another way


def by_hand(f, x0, t, r, eps):
    "f(x_t, t) and f(x_r, r) in NumPy, row by row."
    ask = lambda s: np.stack(
        [
            (x + s_i * e if s_i > 0 else x).numpy()
            if s_i == 0
            else f((x + s_i * e)[None], s_i[None])[0].detach().numpy()
            for x, s_i, e in zip(x0, s, eps)
        ]
    )
    return ask(t), ask(r)


def batch(objective, n=32, stage=1, seed=3):
    t, r = objective.levels(n, stage, torch.Generator().manual_seed(seed))
    return POINTS[:n], t, r, grid((n, 2), 5)


@pytest.mark.parametrize("c", [0.0, 0.3])
def test_the_loss_of_ect_is_the_gap_weighted_huber_distance(c):
    f, objective = network("wide"), ECT(c=c)
    x0, t, r, eps = batch(objective)
    assert 0 < int((r == 0).sum()) < 32
    a, b = by_hand(f, x0, t, r, eps)
    S = ((a - b).astype(np.float64) ** 2).sum(1)
    expected = (np.sqrt(S + c**2) - c) / (t - r).double().numpy()
    found = objective.loss(f, x0, t, r, eps).detach().numpy()
    assert found == pytest.approx(expected, rel=2e-4)


def test_levels_of_ect_are_a_log_normal_and_the_formula_of_r():
    t, r = ECT().levels(20_000, 2, torch.Generator().manual_seed(1))
    assert scipy.stats.kstest(t.log().numpy(), scipy.stats.norm(-1.1, 2.0).cdf).pvalue > 1e-3
    t = t.double().numpy()
    expected = np.maximum(t * (1 - (1 + 8 / (1 + np.exp(t))) / 2**3), 0)
    assert r.numpy() == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_denoising_is_the_loss_of_edm():
    f, objective = network("wide"), Denoising()
    x0, t, r, eps = batch(objective)
    assert (r == 0).all()
    expected = denoising_loss(f, x0, t, eps, sigma_data=1.5)
    assert torch.allclose(objective.loss(f, x0, t, r, eps), expected)


@pytest.mark.parametrize("stage, n", [(0, 10), (3, 80), (7, 1280), (9, 1280)])
def test_pairs_of_consistency_training_are_neighbours_in_the_shares_of_a_log_normal(stage, n):
    t, r = ConsistencyTraining().levels(40_000, stage, torch.Generator().manual_seed(2))
    i = np.arange(n + 1) / n
    levels = (0.002 ** (1 / 7) + i * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    where = np.abs(levels[:-1, None] - r.double().numpy()[None, :400]).argmin(0)
    assert r[:400].numpy() == pytest.approx(levels[where], rel=1e-5)
    assert t[:400].numpy() == pytest.approx(levels[where + 1], rel=1e-5)
    cdf = scipy.stats.lognorm(s=2.0, scale=np.exp(-1.1)).cdf
    ten = np.searchsorted(levels, np.quantile(levels, np.arange(1, 10) / 10))
    for k in sorted(set(ten)):  # the share of pairs below a level
        share = (cdf(levels[k]) - cdf(levels[0])) / (cdf(levels[-1]) - cdf(levels[0]))
        found = float((t <= levels[k] * 1.00001).double().mean())
        assert abs(found - share) < 5 * math.sqrt(share * (1 - share) / 40_000) + 1e-9


def test_consistency_training_weighs_by_the_gap_and_has_no_row_at_zero():
    f, objective = network("wide"), ConsistencyTraining()
    x0, t, r, eps = batch(objective)
    a, b = by_hand(f, x0, t, r, eps)
    S = ((a - b).astype(np.float64) ** 2).sum(1)
    expected = (np.sqrt(S + 0.03**2) - 0.03) / (t - r).double().numpy()
    assert float(r.min()) == pytest.approx(0.002, rel=1e-3) or float(r.min()) > 0.002
    assert objective.loss(f, x0, t, r, eps).detach().numpy() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("objective", [ECT(), Denoising(), ConsistencyTraining(c=0.1)])
def test_each_of_them_brings_its_loss_down_and_is_written_and_read(objective):
    p = last(train(network("wide"), POINTS, config(objective, 100, lr=3e-3)))
    many = [torch.cat(a) for a in zip(*[batch(objective, 48, 1, seed) for seed in range(20)])]
    with torch.no_grad():
        before, after = (objective.loss(f, *many).mean() for f in (network("wide"), p.ema))
    assert after < 0.95 * before
    assert from_json(json.loads(json.dumps(to_json(Config(objective))))) == Config(objective)


# --- functions get what they ask for


def told(**seen):
    "A weight that notes what it is told."

    def weight(t, r, sigma_data=None, c=None):
        seen["log"].append((sigma_data, c))
        return torch.ones_like(t)

    return weight


def test_weight_and_metric_get_sigma_data_and_c_where_they_ask():
    log = []

    def metric(delta, *, c, sigma_data=1.0):
        return c * sigma_data * delta.flatten(1).abs().sum(1)

    objective = ECT(weight=told(log=log), metric=metric, c=0.25)
    f = network("wide")
    x0, t, r, eps = batch(objective)
    a, b = by_hand(f, x0, t, r, eps)
    found = objective.loss(f, x0, t, r, eps).detach().numpy()
    assert log[-1] == (1.5, 0.25)
    assert found == pytest.approx(0.25 * 1.5 * np.abs(a - b).sum(1), rel=1e-4)
    objective.loss(lambda x, t: 0 * x, x0, t, r, eps)
    assert log[-1] == (None, 0.25)  # a model without one: the weight's own default


def test_what_a_partial_function_has_fixed_stays_and_an_object_is_a_function_too():
    @dataclass(frozen=True)
    class Power:
        p: float = 2.0

        def __call__(self, t, r):
            return t**-self.p

    f, x0 = network("wide"), POINTS[:32]
    _, t, r, eps = batch(ECT())
    base = ECT(weight="uniform").loss(f, x0, t, r, eps)
    fixed = ECT(weight=partial(losses.edm, sigma_data=2.0)).loss(f, x0, t, r, eps)
    assert torch.allclose(fixed, base * (t**2 + 4) / (2 * t) ** 2)
    assert torch.allclose(ECT(weight=Power(0.5)).loss(f, x0, t, r, eps), base * t**-0.5)
    steep = ECT(metric=partial(losses.adaptive, p=1.0), c=0.3, weight="uniform")
    S = base.double() ** 2
    assert torch.allclose(steep.loss(f, x0, t, r, eps).double(), S / (S + 0.09), rtol=1e-4)


# --- what makes no objective


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: ECT(weight="heavy"), "weight is 'heavy'; it must be one of uniform, inverse_gap"),
        (lambda: ECT(metric=3), "metric is 3; it must be one of squared, pseudo_huber"),
        (lambda: ECT(mapping=None), r"mapping is None.* r = 0 is the objective Denoising"),
        (lambda: ECT(mapping=Stages()), "mapping is Stages"),
        (lambda: ECT(p_t=3), "p_t is 3; it must have sample"),
        (lambda: ECT(c=-1.0), "c is -1.0"),
        (lambda: ECT(c=math.nan), "c is nan"),
        (lambda: Denoising(weight="unifrm"), "weight is 'unifrm'"),
        (lambda: ConsistencyTraining(c="x"), "c is 'x'"),
    ],
)
def test_a_setting_that_makes_no_objective_is_named_at_once(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_name_added_to_the_table_is_a_choice_and_stands_in_the_sentence(monkeypatch):
    monkeypatch.setitem(losses.WEIGHTS, "soft", soft)
    assert ECT(weight="soft").functions(network("wide"))[0](torch.ones(1), 0) == 1.5 / 2.5
    with pytest.raises(ValueError, match="edm, soft, or a function"):
        ECT(weight="hard")


def test_a_class_that_cannot_be_written_down_says_how():
    class Bare(ECT):
        weight: str = "uniform"

    with pytest.raises(ValueError, match=r"put @dataclass\(frozen=True\) above class Bare"):
        Bare()

    @dataclass(frozen=True)
    class Untyped(ECT):
        weight = "uniform"

    with pytest.raises(
        ValueError, match="Untyped.weight needs a type .* weight: object = 'uniform'"
    ):
        Untyped()

    @dataclass(frozen=True)
    class Greedy(ECT):
        keeps = ("critic",)

    with pytest.raises(ValueError, match="keeps 'critic', and the trainer holds target or teacher"):
        Greedy()


@dataclass(frozen=True)
class Unfinished(Objective):
    "Levels without a loss."

    def levels(self, n, stage, generator=None):
        return torch.ones(n), torch.zeros(n)


@dataclass(frozen=True)
class Detached(Unfinished):
    def loss(self, model, x0, t, r, eps, generator=None, **kw):
        return model(x0, t).detach().square().sum(1)


@dataclass(frozen=True)
class Above(Comparison):
    def levels(self, n, stage, generator=None):
        return torch.ones(n), 2 * torch.ones(n)


@pytest.mark.parametrize(
    "wrong, words",
    [
        (ECT, "objective is .*; it must be an Objective, such as ECT"),
        (Unfinished(), "Unfinished lacks loss"),
        (Detached(), "the loss of Detached has no gradient"),
        (Above(), "must give r with 0 <= r <= t"),
        (Objective(), "gives no noise levels .*lacks levels"),
        (ECT(mapping=abs), "mapping.*gives no noise levels"),
        (ECT(metric=lambda delta: delta.abs()), "must be one number a row"),
        (ECT(weight=lambda t: t), "the loss of ECT fails: TypeError"),
    ],
)
def test_an_objective_that_makes_no_run_is_refused_before_anything_is_written(
    wrong, words, tmp_path
):
    with pytest.raises(ValueError, match=words) as error:
        train(network("wide"), POINTS, config(wrong), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


# --- methods of one's own, whole


@dataclass(frozen=True)
class Far(Objective):
    "The mean distance of the answers from `place`: no pair, nothing kept."

    place: float = 3.0

    def levels(self, n, stage, generator=None):
        t = 0.5 + torch.rand(n, generator=generator)
        return t, torch.zeros(n)

    def loss(self, model, x0, t, r, eps, generator=None, **kw):
        s = t.reshape(-1, *[1] * (x0.ndim - 1))
        return (model(x0 + s * eps, t, **kw) - self.place).square().flatten(1).sum(1)


@dataclass(frozen=True)
class SlowTarget(ECT):
    "ECT with an averaged target network."

    keeps = ("target",)
    target_ema: float = 0.7


@dataclass(frozen=True)
class Distilled(ECT):
    "What is compared at r is a step of a teacher from x_t down the ODE, not the line of the noise."

    keeps = ("teacher",)

    def pair(self, model, x0, t, r, eps, generator=None, teacher=None, **kw):
        s = t[:, None]
        x_t = x0 + s * eps
        with torch.no_grad():
            x_r = x_t + (r[:, None] - s) * (x_t - teacher(x_t, t, **kw)) / s
            below = model(x_r, r.clamp(min=1e-3), **kw)
        return model(x_t, t, **kw), below


class TwoTimes(nn.Module):
    "A network told two times; without the second it answers as if that were 0."

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x, t, r=None):
        t = torch.as_tensor(t, dtype=x.dtype).expand(len(x))
        r = torch.zeros_like(t) if r is None else r
        return x + self.b(torch.tanh(self.a(torch.cat([x, t[:, None], (t - r)[:, None]], 1))))


@dataclass(frozen=True)
class MeanVelocity(ECT):
    "Two times: the way from t to r in one step, against half of it twice (both without gradient)."

    def loss(self, model, x0, t, r, eps, generator=None, **kw):
        x_t, half = x0 + t[:, None] * eps, (t + r) / 2
        with torch.no_grad():
            there = model(model(x_t, t, r=half, **kw), half, r=r, **kw)
        return (model(x_t, t, r=r, **kw) - there).square().sum(1) + (
            model(x0, r, r=r, **kw) - x0
        ).square().sum(1)


OWN = dict(
    far=(lambda: network("wide"), Far()),
    target=(lambda: network("mlp"), SlowTarget()),
    teacher=(lambda: network("wide"), Distilled()),
    two_times=(lambda: filled(TwoTimes()), MeanVelocity()),
    own_parts=(lambda: network("wide"), ECT(p_t=LogUniform(0.1), weight=soft, metric=cauchy)),
)


@pytest.mark.parametrize("name", OWN)
def test_a_method_of_ones_own_stops_goes_on_to_the_same_bits_and_is_sampled(name, tmp_path):
    make, objective = OWN[name]
    settings, ends = config(objective), []
    for folder, stop in (("a", None), ("b", 5)):
        last(train(make(), POINTS, settings, tmp_path / folder), until=stop)
        ends.append(last(train(make(), POINTS, settings, tmp_path / folder)))
    alone = last(train(make(), POINTS, settings))
    for p in ends:
        assert checksum(p.ema.state_dict()) == checksum(alone.ema.state_dict())
        assert checksum(p.model.state_dict()) != checksum(make().state_dict())
    a, b = (load_state(RunFolder(tmp_path / name))[0] for name in "ab")
    assert checksum(a) == checksum(b)
    written = RunFolder(tmp_path / "b").config()["config"]
    assert from_json(written) == settings
    assert sample(alone.ema, torch.randn(5, 2), (2.0, 0.5)).shape == (5, 2)


@pytest.mark.parametrize("ema", [0.0, 0.7])
def test_the_target_is_the_average_by_its_recursion_and_gives_the_second_answer(ema, tmp_path):
    make, objective = lambda: network("wide"), SlowTarget(target_ema=ema)
    settings, slow = config(objective, accumulate=1), make()
    for p in train(make(), POINTS, settings, tmp_path / "run"):
        with torch.no_grad():
            for a, b in zip(slow.parameters(), p.model.parameters()):
                a.mul_(ema).add_((1 - ema) * b)
        now = copy.deepcopy(slow)
    tensors = load_state(RunFolder(tmp_path / "run"))[0]
    for name, w in now.state_dict().items():
        torch.testing.assert_close(tensors[f"target.{name}"], w, rtol=1e-5, atol=1e-6)
    x0, t, r, eps = batch(objective)
    f_t, f_r = objective.pair(p.model, x0, t, r, eps, target=now)
    a, _ = by_hand(p.model, x0, t, r, eps)
    _, b = by_hand(now, x0, t, r, eps)
    assert f_t.detach().numpy() == pytest.approx(a, rel=1e-4, abs=1e-5)
    assert f_r.numpy() == pytest.approx(b, rel=1e-4, abs=1e-5)
    plain = last(train(make(), POINTS, config(ECT(), accumulate=1)))
    same = checksum(plain.model.state_dict()) == checksum(p.model.state_dict())
    assert same == (ema == 0.0)  # an average without memory is the network itself


def test_a_teacher_is_the_start_unless_another_is_given_and_never_moves(tmp_path):
    settings, teacher = config(Distilled()), filled(Precond(MLP(2, 4, 2), sigma_data=1.5))
    before = checksum(teacher.state_dict())
    start = last(train(network("wide"), POINTS, settings))
    named = last(train(network("wide"), POINTS, settings, teacher=network("wide")))
    other = last(train(network("wide"), POINTS, settings, tmp_path / "run", teacher=teacher))
    ends = [checksum(p.model.state_dict()) for p in (start, named, other)]
    assert ends[0] == ends[1] != ends[2] and checksum(teacher.state_dict()) == before
    assert RunFolder(tmp_path / "run").config()["teacher"] == before
    with pytest.raises(ValueError, match="it had another teacher"):
        next(train(network("wide"), POINTS, settings, tmp_path / "run"))
    with pytest.raises(ValueError, match="ECT asks no teacher"):
        train(network("wide"), POINTS, config(), teacher=teacher)
    with pytest.raises(ValueError, match="must be a torch.nn.Module"):
        train(network("wide"), POINTS, settings, teacher=lambda x, t: x)


def test_arithmetic_by_measurement_asks_the_objective(monkeypatch):
    from ect_nb.training import loop

    asked = []

    @dataclass(frozen=True)
    class Watched(SlowTarget):
        def pair(self, model, x0, t, r, eps, generator=None, **kw):
            asked.append((sorted(kw), model.net.body))
            return super().pair(model, x0, t, r, eps, generator, **kw)

    monkeypatch.setattr(loop, "fast_precisions", lambda device: ["bfloat16"])
    with pytest.raises(ValueError, match="compares two answers, and Far.pair gives none"):
        train(network("unet"), data_of("unet"), config(Far(), precision="auto"))
    settings = config(Watched(), 2, precision="auto", stages=Stages(0))
    p = last(train(network("unet"), data_of("unet"), settings))
    assert p.precision in ("bfloat16", "float32")
    assert (["labels", "target"], torch.bfloat16) in asked
    assert network("unet").net.body == torch.float32


@pytest.mark.parametrize("name", ["target", "teacher", "own_parts"])
def test_a_sweep_asks_each_objective_and_ends_where_training_alone_would(name):
    make, objective = OWN[name]
    settings = [
        config(objective, 20, accumulate=1, seed=0),
        config(ECT(), 20, accumulate=1, lr=3e-3, seed=1),
        config(objective, 20, accumulate=1, ema=0.5, seed=2),
    ]
    starts = [network("wide") for _ in settings]
    for p in sweep(starts, POINTS, settings):
        pass
    for f, start, c in zip(apart(p.ema), starts, settings):
        alone = last(train(start, POINTS, c)).ema
        for a, b in zip(f.parameters(), alone.parameters()):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


# --- written down: where it is found, and when it has changed


def test_things_that_cannot_be_written_down_are_named_before_anything_is_written(tmp_path):
    @dataclass(frozen=True)
    class Table:
        of: object

        def __call__(self, t, stage):
            return 0.5 * t

    class Method:
        def half(self, t, stage):
            return 0.5 * t

    for mapping in (Table(torch.ones(2)), Table(dict(a=1)), Method().half, Table(nn.Linear(1, 1))):
        with pytest.raises(ValueError, match="objective.mapping.* cannot write down") as error:
            train(network(), POINTS, config(ECT(mapping=mapping)), tmp_path / "run")
        assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def times(share):
    def mapping(t, stage):
        return share * t

    return mapping


@pytest.mark.parametrize(
    "one, two, words",
    [
        (ECT(mapping=times(0.5)), ECT(mapping=times(0.6)), "mapping.share is 0.5, not 0.6"),
        (
            ECT(weight=partial(losses.edm, sigma_data=1.0)),
            ECT(weight=partial(losses.edm, sigma_data=2.0)),
            "weight.sigma_data is 1.0, not 2.0",
        ),
        (ECT(weight=lambda t, r: t), ECT(weight=lambda t, r: t + 1), "the code of its .*weight"),
        (Far(3.0), Far(4.0), "objective.place is 3.0, not 4.0"),
        (SlowTarget(), ECT(), "objective is test_objectives:SlowTarget, not ECT"),
    ],
)
def test_what_has_changed_is_said_when_a_run_should_go_on(one, two, words, tmp_path):
    last(train(network("wide"), POINTS, config(one), tmp_path / "run"), until=3)
    with pytest.raises(ValueError, match=words.replace(".", r"\.").replace(r"\.*", ".*")) as error:
        next(train(network("wide"), POINTS, config(two), tmp_path / "run"))
    assert "\n" not in str(error.value)
    last(train(network("wide"), POINTS, config(one), tmp_path / "run"))


def test_a_settings_file_is_no_program():
    said = to_json(Config())
    for kind in ("subprocess:Popen", "test_objectives:Foreign", "nowhere:Thing", "builtins:eval.x"):
        said["objective"]["mapping"] = dict(kind=kind, args=["true"])
        with pytest.raises(ValueError, match="cannot be (found|read back)"):
            from_json(said)
    assert "antigravity" not in sys.modules
    said["objective"]["mapping"] = dict(kind="antigravity:fly")
    with pytest.raises(ValueError, match="import antigravity, or define it again"):
        from_json(said)
    assert "antigravity" not in sys.modules
    said["objective"] = dict(kind="ect_nb.objectives:ECT", speed=3)
    with pytest.raises(ValueError, match="other settings"):
        from_json(said)
    with pytest.raises(ValueError, match="haste is no setting"):
        from_json(dict(haste=1))


NOTEBOOK = """
import json, sys, torch
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
def run(text):
    result = shell.run_cell(text)
    if result.error_in_exec or result.error_before_exec:
        print("ERROR", result.error_in_exec or result.error_before_exec)
run('''
import torch
from dataclasses import dataclass
from ect_nb import Config, ECT, MLP, Objective, Precond, train
from ect_nb.losses import pair
''')
run({first!r})
run('''
torch.manual_seed(0)
points, start = torch.randn(48, 2), Precond(MLP(2, 8, 2))
def tune(**kw):
    for p in train(start, points, Config(Mine(**kw), kimg=0.064, batch=16, lr=1e-2), {folder!r}):
        pass
    print("END", p.step, float(p.ema.net.layers[0].weight.sum()))
tune()
''')
run({second!r})
run("tune()")
"""
MINE = """
@dataclass(frozen=True)
class Mine(Objective):
    "Of a cell."
    share: float = 0.5
    def levels(self, n, stage, generator=None):
        t = torch.rand(n, generator=generator) + 0.1
        return t, self.share * t
    def loss(self, model, x0, t, r, eps, generator=None, **kw):
        a, b = pair(model, x0, t, r, eps, generator, **kw)
        return (a - b).square().sum(1)
"""


@pytest.mark.parametrize(
    "second, words",
    [
        (MINE, None),
        (MINE.replace("Of a cell.", "Of another."), None),
        (
            MINE.replace("a - b", "b - 2 * a"),
            "the code of its objective (__main__:Mine) has changed",
        ),
        (MINE.replace("0.5", "0.25"), "its objective.share is 0.5, not 0.25"),
    ],
)
def test_a_method_from_a_notebook_cell_goes_on_unless_it_has_changed(second, words, tmp_path):
    text = NOTEBOOK.format(first=MINE, second=second, folder=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("END", "ERROR"))]
    assert len(lines) == 2 and lines[0].startswith("END 4"), done.stdout + done.stderr
    assert lines[1] == lines[0] if words is None else words in lines[1], done.stdout


def test_the_code_of_a_class_is_that_of_its_own_bases_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    base = "class Base:\n    def __call__(self, t, stage):\n        return {} * t\n"
    marks = []
    for i, share in enumerate((0.5, 0.5, 0.25)):
        text = base.format(share) + "class Own(Base):\n    pass\n"
        (tmp_path / f"based{i}.py").write_text(text)
        module = __import__(f"based{i}")
        marks.append(to_json(Config(ECT(mapping=module.Own())))["objective"]["mapping"]["code"])
    assert marks[0] == marks[1] != marks[2] and code_of(module.Own) in marks[2]


def test_an_objective_with_fields_that_are_made_anew_is_written_and_read():
    @dataclass(frozen=True)
    class Listed(ECT):
        ends: tuple = field(default_factory=lambda: (0.1, 0.2))

    said = to_json(Config(Listed()))
    assert said["objective"]["ends"] == [0.1, 0.2]
