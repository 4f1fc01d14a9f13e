"""The engine of the Lab (`ect_nb/show/lab.js`) in node: loss, gradient and one optimiser step
against torch, samplers, exact answers and distances against `ect_nb`, and what is trained against
what `ect_nb` trains."""

import json
import math
import numpy as np
import pytest
import shutil
import subprocess
import torch
from ect_nb.analytic import GaussianMixture
from ect_nb.diffusion import Precond, denoising_loss, heun, karras_times
from ect_nb.losses import ect_loss, inverse_gap, squared
from ect_nb.sampling import sample
from ect_nb.schedules import ConstantMapping, LogNormal
from pathlib import Path
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
LAB = ROOT / "ect_nb" / "show" / "lab.js"
ROWS, IN, WIDTH, OUT = 256, 8, 64, 4  # 5 inputs and 2 outputs, filled up with zeros
SHAPES = (IN, WIDTH), (WIDTH,), (WIDTH, WIDTH), (WIDTH,), (WIDTH, OUT), (OUT,)
REAL = (5, WIDTH), (WIDTH,), (WIDTH, WIDTH), (WIDTH,), (WIDTH, 2), (2,)
RATE, EMA, BETAS = 2e-3, 0.9, (0.9, 0.99)


class Net5(nn.Module):
    "The Lab's network in torch: (x, c, sin 4c, cos 4c) -> 64 -> 64 -> 2 with c = ln t / 4."

    def __init__(self, dtype=torch.float64):
        super().__init__()
        sizes = ((5, WIDTH), (WIDTH, WIDTH), (WIDTH, 2))
        one, two, three = (nn.Linear(a, b, dtype=dtype) for a, b in sizes)
        self.layers = nn.Sequential(one, nn.SiLU(), two, nn.SiLU(), three)

    def forward(self, x, c):
        return self.layers(torch.cat([x, torch.stack([c, (4 * c).sin(), (4 * c).cos()], 1)], 1))


def flat(model):
    "The parameters of `model`, or their gradients, in the Lab's order and with its zeros."
    return padded([p.detach() for p in model.parameters()])


def padded(tensors):
    parts = []
    for value, shape in zip(tensors, SHAPES):
        room = torch.zeros(shape, dtype=value.dtype)
        value = value.T if value.ndim == 2 else value
        room[tuple(slice(n) for n in value.shape)] = value
        parts.append(room.flatten())
    return torch.cat(parts)


def load(model, values):
    "Put the Lab's flat `values` into `model`."
    sizes = [math.prod(s) for s in SHAPES]
    parts = torch.as_tensor(values, dtype=torch.float64).split(sizes)
    with torch.no_grad():
        for p, part, shape, real in zip(model.parameters(), parts, SHAPES, REAL):
            part = part.view(shape)[tuple(slice(n) for n in real)]
            p.copy_(part.T if part.ndim == 2 else part)


# What is asked of the engine, in node here and in Chromium by test_lab_browser.py

ASK = """({engine, task}) => {
  const E = engine(), net = new E.Net({plain: task.plain}), numbers = v => Float32Array.from(v);
  net.boundary = task.boundary;
  net.adopt(numbers(task.params));
  const batch = Object.fromEntries(
    ['x0', 't', 'r', 'eps', 'epsBelow'].map(k => [k, numbers(task[k])]));
  const loss = new E.Objective(net).gradient(batch, task);
  const grad = [...net.grad];
  net.optimise({rate: task.rate, beta: task.beta});
  const answers = net.f(numbers(task.x0), numbers(task.t), net.params);
  return {loss, grad, params: [...net.params], ema: [...net.ema], answers: [...answers],
    fast: net.fast};
}"""


def node():
    found = shutil.which("node")
    if not found:
        pytest.skip("node is missing, in which the engine is asked: apt-get install nodejs")
    return found


def in_node(function, task):
    "What the JavaScript `function` of {engine, task} returns in node."
    script = (
        f"import {{engine}} from {json.dumps(LAB.as_uri())};\n"
        "let text = ''; for await (const part of process.stdin) text += part;\n"
        f"console.log(JSON.stringify(({function})({{engine, task: JSON.parse(text)}})));"
    )
    command = [node(), "--input-type=module", "--eval", script]
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


CASES = {
    "denoiser": dict(weight="edm", c=0, ratio=0.0),
    "tightened": dict(weight="inverse_gap", c=0, ratio=0.75),
    "pseudo-Huber, some r = 0": dict(weight="inverse_gap", c=0.03, ratio=0.5, zeros=40),
    "uniform weight": dict(weight="uniform", c=0.03, ratio=0.9),
    "fresh noise": dict(weight="inverse_gap", c=0.03, ratio=0.75, sameNoise=False),
    "not held": dict(weight="inverse_gap", c=0.03, ratio=0.75, held=False, zeros=40),
    "no boundary": dict(weight="inverse_gap", c=0, ratio=0.75, boundary=False),
}


def dice(case, seed=0):
    "Model and task of a case: weights, x0, levels and noise, the same for both."
    g = torch.Generator().manual_seed(seed)
    model = Precond(Net5()).train()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / p.shape[-1] ** 0.5)
    t = (0.3 + 1.5 * torch.randn(ROWS, generator=g)).exp().double().clamp(0.002, 80)
    r = case["ratio"] * t.clone()
    r[: case.get("zeros", 0)] = 0
    x0, eps, other = (torch.randn(ROWS, 2, generator=g).double() for _ in range(3))
    x0, t, r, eps, other = (v.float().double() for v in (x0 / 2, t, r, eps, other))
    below = eps if case.get("sameNoise", True) else other
    values = dict(x0=x0, t=t, r=r, eps=eps, epsBelow=below, params=flat(model).float())
    load(model, values["params"])
    task = {k: v.flatten().tolist() for k, v in values.items()}
    task |= dict(held=True, boundary=True, rate=RATE, beta=EMA, plain=False) | case
    return model, values, task


def huber(delta, c):
    "The metric written anew: √(S + c²) - c, and S where c = 0."
    S = delta.square().sum(1)
    return S if c == 0 else (S + c**2).sqrt() - c


def asked(model, task):
    "f(x, t); without a boundary the network's own answer, at the size of the data."
    if task["boundary"]:
        return model
    return lambda x, t: 0.5 * model.net(x / (t**2 + 0.25).sqrt()[:, None], t.log() / 4)


def torch_step(model, values, task):
    "Loss, gradient, weights and average after one step, and the answers then, all by torch."
    x0, t, r, eps, below = (values[k] for k in ("x0", "t", "r", "eps", "epsBelow"))
    f, zero = asked(model, task), r == 0
    upper = f(x0 + t[:, None] * eps, t)
    lower = torch.where(zero[:, None], x0, f(x0 + r[:, None] * below, r.clamp(min=1e-6)))
    lower = lower.detach() if task["held"] else lower
    weights = dict(edm=1 / t**2 + 4, inverse_gap=1 / (t - r), uniform=torch.ones_like(t))
    loss = (weights[task["weight"]] * huber(upper - lower, task["c"])).mean()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, betas=BETAS)
    loss.backward()
    grad = padded([p.grad for p in model.parameters()])
    before = flat(model)
    optimizer.step()
    with torch.no_grad():
        answers = f(x0, t)
    after = flat(model)
    return dict(
        loss=loss.detach(),
        grad=grad,
        params=after,
        ema=EMA * before + (1 - EMA) * after,
        answers=answers.flatten(),
    )


def agree(found, wanted):
    "Loss and gradient to 1e-5 of their size, weights and answers to 1e-5."
    for name, value in wanted.items():
        ours, size = torch.as_tensor(found[name], dtype=torch.float64), 1.0
        if name in ("loss", "grad"):
            size = float(value.abs().max())
        off = float((ours - value).abs().max())
        assert off <= 1e-5 * size, f"{name}: {off:.1e} off, of {size:.3g}"


@pytest.mark.parametrize("plain", [False, True], ids=["simd", "plain"])
@pytest.mark.parametrize("name", CASES)
def test_one_step_is_torchs(name, plain):
    model, values, task = dice(CASES[name] | dict(plain=plain))
    found = in_node(ASK, task)
    assert found["fast"] is not plain
    agree(found, torch_step(model, values, task))


def test_a_wrong_gradient_would_be_seen():
    "The comparison fails for the gradient of another metric."
    model, values, task = dice(CASES["pseudo-Huber, some r = 0"])
    found = in_node(ASK, task | dict(c=0.031))
    with pytest.raises(AssertionError, match="off"):
        agree(found, torch_step(model, values, task))


def test_the_losses_are_those_of_the_kit():
    "Denoising and tightening are `denoising_loss` and `ect_loss`."
    model, v, task = dice(CASES["denoiser"])
    mine = denoising_loss(model, v["x0"], v["t"], v["eps"]).mean()
    assert in_node(ASK, task)["loss"] == pytest.approx(float(mine.detach()), rel=1e-5)
    case = CASES["pseudo-Huber, some r = 0"]
    model, v, task = dice(case)
    mine = ect_loss(model, v["x0"], v["t"], v["r"], v["eps"], inverse_gap, case["c"]).mean()
    assert in_node(ASK, task)["loss"] == pytest.approx(float(mine.detach()), rel=1e-5)


# Samplers, exact answers, distances

SAMPLERS = """({engine, task}) => {
  const E = engine(), net = new E.Net(), numbers = v => Float32Array.from(v);
  net.adopt(numbers(task.params));
  const z = numbers(task.z), fresh = numbers(task.fresh), f = (x, t) => net.f(x, t);
  return {
    walk: [...E.walk(f, z, E.karras(18)).at(-1)], one: [...E.jump(f, z)],
    two: [...E.jump(f, z, [0.6], fresh)], levels: E.karras(18),
  };
}"""


def test_samplers_are_those_of_the_kit():
    model, v, task = dice(CASES["denoiser"])
    g = torch.Generator().manual_seed(3)
    z, fresh = (torch.randn(300, 2, generator=g).double() for _ in range(2))
    asked = dict(z=z.flatten().tolist(), fresh=fresh.flatten().tolist(), params=task["params"])
    found = in_node(SAMPLERS, asked)
    model.eval()
    times = karras_times(18)
    one = sample(model, z)
    with torch.no_grad():
        two = model(one + 0.6 * fresh, torch.full((300,), 0.6).double())
    assert found["levels"] == pytest.approx(times.tolist(), rel=1e-9)
    for name, wanted in dict(walk=heun(model, z, times), one=one, two=two).items():
        ours = torch.tensor(found[name], dtype=torch.float64).view(-1, 2)
        assert (ours - wanted).abs().max() < 1e-4, name


EXACT = """({engine, task}) => {
  const E = engine(), data = new E.Bumps(task.points, task.std);
  return {
    means: task.at.map(([x, y, t]) => data.denoise(x, y, t)),
    ends: task.z.map(z => data.path(z, E.karras(48)).at(-1)),
    levels: E.LEVELS, stations: E.stations(data, task.z.flat(), E.LEVELS).map(x => [...x]),
  };
}"""


@pytest.mark.parametrize("n", [5, 60])
def test_exact_answers_are_those_of_the_mixture(n):
    "Few bumps and many: the closed form, and where its paths stand and end."
    g = torch.Generator().manual_seed(n)
    points = (torch.rand(n, 2, generator=g) * 2 - 1).float().double()
    std = 0.1 if n == 5 else 0.03
    mixture = GaussianMixture(points, torch.full((n,), std).double())
    at = torch.cat([torch.randn(40, 2, generator=g), torch.rand(40, 1, generator=g) * 3], 1)
    at, z = at.double(), torch.randn(12, 2, generator=g).double()
    task = dict(points=points.flatten().tolist(), std=std, at=at.tolist(), z=z.tolist())
    found = in_node(EXACT, task)
    means = mixture.denoise(at[:, :2].contiguous(), at[:, 2].contiguous())
    assert torch.allclose(torch.tensor(found["means"]).double(), means, atol=1e-6)
    ends = mixture.exact_map(80 * z, 80.0)
    off = (torch.tensor(found["ends"]).double() - ends).norm(dim=1)
    assert off.median() < 0.01 and (off < 0.1).double().mean() >= 0.9
    for t, x in list(zip(found["levels"], found["stations"]))[2::5]:
        wanted = mixture.transport(80 * z, torch.tensor(80.0).double(), t)
        off = (torch.tensor(x).double().view(-1, 2) - wanted).norm(dim=1)
        assert off.median() < 0.01 * max(1, t)


DISTANCE = """({engine, task}) => {
  const E = engine(), numbers = v => Float32Array.from(v);
  const found = E.distance(task.a.map(numbers), task.b.map(numbers));
  return {squares: E.sliced(numbers(task.a[0]), numbers(task.b[0])), found};
}"""


def sliced(a, b, directions=32):
    "Squared W2 of (N, 2) against (N, 2) along `directions` lines, written anew."
    angle = math.pi * (np.arange(directions) + 0.5) / directions
    lines = np.stack([np.cos(angle), np.sin(angle)])
    return ((np.sort(a @ lines, 0) - np.sort(b @ lines, 0)) ** 2).mean(0)


def test_distances_have_students_interval():
    from scipy.stats import t as student

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 200, 2)), rng.normal(size=(4, 200, 2)) * 0.7
    flat = lambda x: x.reshape(4, -1).tolist()
    answer = in_node(DISTANCE, dict(a=flat(a), b=flat(b)))
    assert answer["squares"] == pytest.approx(sliced(a[0], b[0]).tolist(), abs=1e-5)
    each = [math.sqrt(sliced(p, q).mean()) for p, q in zip(a, b)]
    half = student.ppf(0.975, 3) * np.std(each, ddof=1) / 2
    found = answer["found"]
    assert found["mean"] == pytest.approx(np.mean(each), abs=1e-5)
    assert found["high"] - found["mean"] == pytest.approx(half, rel=1e-3)


RESIDUALS = """({engine, task}) => {
  const E = engine(), net = new E.Net(), numbers = v => Float32Array.from(v);
  net.adopt(numbers(task.params));
  return E.residuals((x, t) => net.f(x, t), task.states.map(numbers), task.levels);
}"""


def test_residuals_are_those_of_the_kit():
    "`residual_map` along the paths of a mixture."
    model, v, task = dice(CASES["denoiser"])
    g = torch.Generator().manual_seed(5)
    mixture = GaussianMixture(torch.randn(6, 2, generator=g).double() / 2, torch.full((6,), 0.1))
    z, levels = torch.randn(64, 2, generator=g).double(), [0.0, 0.1, 1.0, 20.0]
    top = torch.tensor(20.0).double()
    x = lambda t: mixture.transport(20 * z, top, t)
    states = [x(t).flatten().tolist() for t in levels]
    asked = dict(params=task["params"], states=states, levels=levels)
    found = np.array(in_node(RESIDUALS, asked), dtype=float)
    model.eval()
    for i, t in enumerate(levels):
        for j, r in enumerate(levels[:i]):
            with torch.no_grad():
                below = model(x(r), torch.full((64,), r).double()) if r else x(r)
                gap = model(x(t), torch.full((64,), t).double()) - below
            assert found[i, j] == pytest.approx(float(gap.square().mean().sqrt()), rel=1e-3)
    assert np.isnan(found[np.triu_indices(4)]).all()


# Trained here and trained by the kit

LEARN, TIGHTEN, SEEDS, DRAWN = 500, 1000, 3, 2000

TRAINED = """({engine, task}) => {
  const E = engine(), data = new E.Bumps(task.points, task.std);
  return task.seeds.map(seed => {
    const run = new E.Run(data, {...task.settings, seed});
    for (const phase of ['learn', 'tighten']) run.plans[phase] = {...run.plans[phase],
      steps: task[phase]};
    while (!run.finished) run.step();
    run.tighten();
    while (!run.finished) run.step();
    const dice = new E.Dice(seed + 100), z = dice.normals(2 * task.drawn);
    return {one: [...E.jump(run.now(), z)], walk: [...E.walk(run.before(), z, E.WALK).at(-1)]};
  });
}"""
RING = [[0.75 * math.cos(a), 0.75 * math.sin(a)] for a in np.arange(120) * math.pi / 60]


class Nets(nn.Module):
    "Three of the Lab's networks at once, begun as the Lab begins: rows in equal groups."

    def __init__(self):
        super().__init__()
        new = lambda *shape: nn.Parameter(torch.zeros(SEEDS, *shape))
        self.weights = nn.ParameterList([new(5, WIDTH), new(WIDTH, WIDTH), new(WIDTH, 2)])
        self.biases = nn.ParameterList([new(1, n) for n in (WIDTH, WIDTH, 2)])
        with torch.no_grad():
            for w, std in zip(self.weights, (5**-0.5, 1.4 / 8, 0.1 / 8)):
                w.normal_(std=std)
            self.biases[0].uniform_(-1, 1)

    def forward(self, x, c):
        told = torch.cat([x, torch.stack([c, (4 * c).sin(), (4 * c).cos()], 1)], 1)
        h = told.view(SEEDS, -1, 5)
        for i, (w, b) in enumerate(zip(self.weights, self.biases)):
            h = torch.baddbmm(b, nn.functional.silu(h) if i else h, w)
        return h.reshape(len(x), 2)


def kit_trains(data):
    """The recipe of the Lab with the losses, levels and samplers of the kit, for all seeds at once:
    each network sees its own rows, and Adam treats every number alone."""
    torch.manual_seed(0)
    f = Precond(Nets()).train()
    ema = kit_phase(f, data, LEARN, LogNormal(-0.6, 1.8), (4e-3, 0.1, 0.99), None)
    denoiser = Precond(Nets()).eval()
    denoiser.load_state_dict(ema)
    f.load_state_dict(ema)
    ema = kit_phase(f, data, TIGHTEN, LogNormal(0.3, 2.0), (5e-3, 0.05, 0.995), ConstantMapping())
    f.load_state_dict(ema)
    z = torch.randn(SEEDS * DRAWN, 2)
    drawn = dict(one=sample(f.eval(), z), walk=heun(denoiser, z, karras_times(18)))
    each = {name: x.view(SEEDS, DRAWN, 2).numpy() for name, x in drawn.items()}
    return [{name: x[k] for name, x in each.items()} for k in range(SEEDS)]


def kit_phase(f, data, steps, p_t, how, mapping):
    "Adam for `steps`; returns the averaged weights."
    rate, last, beta = how
    adam, rows = torch.optim.Adam(f.parameters(), lr=rate, betas=BETAS), SEEDS * ROWS
    ema = {k: v.clone() for k, v in f.state_dict().items()}
    for k in range(steps):
        x0, t = data(rows), p_t.sample(rows).clamp(0.002, 80)
        eps = torch.randn_like(x0)
        if mapping is None:
            loss = denoising_loss(f, x0, t, eps)
        else:
            r = mapping(t, min(5, 6 * k // steps))
            loss = ect_loss(f, x0, t, r, eps, inverse_gap, metric=squared)
        adam.param_groups[0]["lr"] = rate * (1 - (1 - last) * k / steps)
        adam.zero_grad()
        (loss.sum() / ROWS).backward()
        adam.step()
        for name, v in f.state_dict().items():
            ema[name].lerp_(v, 1 - beta)
    return ema


def far(samples, data):
    "Sliced W2 distance to as many fresh data."
    return math.sqrt(sliced(np.asarray(samples).reshape(-1, 2), data(DRAWN).numpy()).mean())


def apart(a, b):
    "How many standard errors two lists of distances are apart, with 0.003 granted for rounding."
    error = math.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b))
    return abs(np.mean(a) - np.mean(b)) / (error + 0.003)


def test_trained_as_far_from_the_data_as_by_the_kit():
    "One step and walk, three seeds each; with fresh noise at r the difference would be seen."
    points = torch.tensor(RING, dtype=torch.float32)
    data = lambda n: points[torch.randint(len(points), (n,))] + 0.03 * torch.randn(n, 2)
    task = dict(points=points.flatten().tolist(), std=0.03, drawn=DRAWN, seeds=list(range(SEEDS)))
    task |= dict(learn=LEARN, tighten=TIGHTEN, settings={})
    ours, theirs = in_node(TRAINED, task), kit_trains(data)
    wrong = in_node(TRAINED, task | dict(settings=dict(sameNoise=False)))
    found = {}
    for name in ("one", "walk"):
        a, b, c = ([far(x[name], data) for x in runs] for runs in (ours, theirs, wrong))
        found[name] = a, b, c
        print(name, *([round(v, 4) for v in x] for x in (a, b, c)))
        assert apart(a, b) < 4
    assert apart(found["one"][2], found["one"][1]) > 8
