"""The engine of the Lab (`ect_nb/show/lab.js`) in node: loss, gradient and one step of the optimiser
against torch, the samplers against `ect_nb`, the exact answers against `GaussianMixture`, what is
trained against what `ect_nb` trains."""

import json
import math
import numpy as np
import pytest
import shutil
import subprocess
import torch
from ect_nb.analytic import GaussianMixture
from ect_nb.diffusion import Precond, denoising_loss, heun, karras_times
from ect_nb.losses import ect_loss, inverse_gap, pair, squared, uniform
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
    lower = torch.where(
        zero[:, None], x0, f(x0 + r[:, None] * below, r.clamp(min=1e-6))
    )
    lower = lower.detach() if task["held"] else lower
    weights = dict(
        edm=1 / t**2 + 4, inverse_gap=1 / (t - r), uniform=torch.ones_like(t)
    )
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
    assert in_node(ASK, task)["loss"] == pytest.approx(float(mine), rel=1e-5)
    case = CASES["pseudo-Huber, some r = 0"]
    model, v, task = dice(case)
    mine = ect_loss(model, v["x0"], v["t"], v["r"], v["eps"], inverse_gap, case["c"]).mean()
    assert in_node(ASK, task)["loss"] == pytest.approx(float(mine), rel=1e-5)
