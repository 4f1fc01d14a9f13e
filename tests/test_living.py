"""The panels that live on a page, asked in node: what they say at given values is what the kit
says, and what stands in the notebooks is of this code."""

import html
import json
import math
import numpy as np
import pytest
import re
import shutil
import subprocess
import torch
from ect_nb.analytic import GaussianMixture
from ect_nb.diffusion import Precond, euler, heun, karras_times
from ect_nb.networks import MLP
from ect_nb.show.living import living_source, packed
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIVING = ROOT / "ect_nb" / "show" / "living.js"
LISTS = dict(means=[-1.1, 0.1, 1.2], stds=[0.12, 0.05, 0.08], weights=[0.40, 0.25, 0.35])
BUMPS = GaussianMixture(*LISTS.values())
PAGES = dict(walks="02_diffusion", pairs="03_consistency", trainings="06_training")
PAGES |= dict(samples="07_sampling", tangents="08_family")


def in_node(function, task):
    "What the JavaScript `function` of {m, task}, m the module, returns in node."
    if not shutil.which("node"):
        pytest.skip("node is missing, in which panels are asked: apt-get install nodejs")
    script = (
        f"import * as m from {json.dumps(LIVING.as_uri())};\n"
        "let text = ''; for await (const part of process.stdin) text += part;\n"
        f"console.log(JSON.stringify(({function})({{m, task: JSON.parse(text)}})));"
    )
    command = ["node", "--input-type=module", "--eval", script]
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


DRAWN = """({m, task: [kind, data, all]}) => {
  const draw = m.DRAWS[kind](data);
  return all.map(values => {
    const began = performance.now(), {svg, ...found} = draw(values, false);
    return {...found, took: performance.now() - began, size: svg.length,
      broken: /NaN|undefined|Infinity/.test(svg)};
  });
}"""


def drawn(kind, data, *values):
    found = in_node(DRAWN, [kind, data, list(values)])
    assert not any(f["broken"] for f in found)
    return found


def test_paths_are_the_exact_ones():
    "Between all levels, over the whole width of the panels."
    places, levels = (-2.4, -1, -0.4, 0.3, 1.2, 2.4), (0.002, 1, 80)
    cases = [(x * math.hypot(1, t), t, r) for x in places for t in levels for r in (0, 2)]
    ask = "({m, task: [lists, cases]}) => cases.map(c => new m.Mixture(lists).transport(...c))"
    found = in_node(ask, [LISTS, cases])
    for (x, t, r), y in zip(cases, found):
        at = torch.tensor([x], dtype=torch.float64), torch.tensor([t], dtype=torch.float64)
        assert y == pytest.approx(float(BUMPS.transport(*at, float(r))), abs=1e-7), (x, t, r)


WALKS = [
    dict(start=0.5, sampler="Heun", steps=9, rho=7, t_min=0.002),
    dict(start=-2.4, sampler="Euler", steps=40, rho=1, t_min=0.5),
    dict(start=1.0, sampler="Heun", steps=1, rho=15, t_min=0.1),
]


def test_walks_end_where_the_samplers_end():
    for values, found in zip(WALKS, drawn("walks", dict(mixture=LISTS), *WALKS)):
        times = karras_times(values["steps"], t_min=values["t_min"], rho=values["rho"])
        z = torch.tensor([values["start"]], dtype=torch.float64)
        states = dict(Heun=heun, Euler=euler)[values["sampler"]](BUMPS.denoise, z, times, keep=True)
        toward = BUMPS.exact_map(states.flatten(), times)
        assert found["end"] == pytest.approx(float(states[-1, 0]), abs=1e-9)
        assert found["truth"] == pytest.approx(float(toward[0]), abs=1e-7)
        assert found["shift"] == pytest.approx(toward.diff().abs().tolist(), abs=1e-7)


def test_pairs_answer_as_the_exact_map():
    "Against pairs drawn by chance from the posterior, 200,000 of them."
    g = torch.Generator().manual_seed(0)
    for t, ratio, x in ((1.0, 0.5, 0.3), (3.0, 0.9, -2.0), (0.2, 0.0, 0.0)):
        (found,) = drawn("pairs", dict(mixture=LISTS), dict(t=t, ratio=ratio, x=x))
        from_, r = x * math.sqrt(1 + t**2), ratio * t
        grid = torch.linspace(-2, 2, 40_001, dtype=torch.float64)
        p = BUMPS.log_prob(grid, 0.0) - (from_ - grid).square() / (2 * t**2)
        x0 = grid[p.softmax(0).multinomial(200_000, True, generator=g)]
        answers = BUMPS.exact_map(x0 + ratio * (from_ - x0), r) if r else x0
        close = dict(abs=5 * float(answers.std()) / 200_000**0.5 + 0.002)
        assert found["said"] == pytest.approx(float(answers.mean()), **close)
        at = torch.tensor([from_], dtype=torch.float64)
        assert found["end"] == pytest.approx(float(BUMPS.exact_map(at, t)), abs=1e-7)


def test_samples_are_those_of_the_networks():
    "Three networks of chance, at one, two and five times; the cubics between cost little."
    g, n, k = torch.Generator().manual_seed(1), 500, 3
    torch.manual_seed(0)
    nets = [Precond(MLP(width=64)).eval() for _ in range(k)]
    linear = lambda f: [m for m in f.net.layers if isinstance(m, torch.nn.Linear)]
    with torch.no_grad():
        for f in nets:
            linear(f)[-1].weight.normal_(std=0.3, generator=g)
    z, more = torch.randn(n, 1, generator=g), torch.randn(4, k * n, 1, generator=g)
    told = [
        dict(
            weights=[packed(m.weight.detach()) for m in linear(f)],
            biases=[packed(m.bias.detach()) for m in linear(f)],
            sigma=0.5,
        )
        for f in nets
    ]
    data = torch.linspace(-1, 1, n)
    record = dict(mixture=LISTS, nets=told, z=packed(z), fresh=packed(more), quantiles=packed(data))
    values = [dict(evaluations=e, second=s, last=0.05) for e, s in ((1, 1), (2, 0.5), (5, 4.0))]
    for v, found in zip(values, drawn("samples", record, *values)):
        times = spaced(**v)
        said = ", ".join(f"{t:.2g}" for t in times)
        assert found["words"].startswith(f"Times {said}: ")
        for i, f in enumerate(nets):
            with torch.no_grad():
                x = f(80 * z, 80.0)
                for t, noise in zip(times[1:], more):
                    x = f(x + t * noise[i * n : (i + 1) * n], t)
            w1 = (x[:, 0].sort().values - data).abs().mean()
            assert found["w1"][i] == pytest.approx(float(w1), abs=2e-3)


def spaced(evaluations, second, last):
    "80, then from `second` to `last` in even ratios, written anew."
    if evaluations == 1:
        return [80.0]
    ratio = (last / second) ** (1 / max(evaluations - 2, 1))
    return [80.0, *(second * ratio**i for i in range(evaluations - 1))]


def test_packed_numbers_come_back():
    values = np.random.default_rng(0).normal(size=1000)
    told = packed(values)
    found = in_node("({m, task}) => m.unpacked(task)", told)
    assert np.abs(np.array(found) - values).max() < 1e-4
    with pytest.raises(ValueError, match="finite"):
        packed([1.0, math.inf])


def stored(name):
    "Kind, data and sentence of the living panel in a lesson, and its whole HTML."
    nb = json.loads((ROOT / "nbs" / "lessons" / f"{name}.ipynb").read_text(encoding="utf-8"))
    outs = [o["data"] for c in nb["cells"] for o in c.get("outputs", []) if "data" in o]
    alive = [o for o in outs if "ect-living" in "".join(o.get("text/html", ""))]
    assert len(alive) == 1
    page = html.unescape("".join(alive[0]["text/html"]))
    call = re.search(
        r"window\.panel = living\(.*?'panel'\), \"(\w+)\", (\{.*?\})\);</script>", page
    )
    return call[1], json.loads(call[2]), "".join(alive[0]["text/plain"]), page


@pytest.mark.parametrize("kind", PAGES)
def test_a_stored_panel_says_what_the_widget_said(kind):
    "Of this code, small, and within 50 ms at its beginning and its ends; times are not judged."
    name, data, said, page = stored(PAGES[kind])
    assert name == kind and living_source() in page and len(page) < 300_000
    controls = data["controls"]
    ends = [
        {name: c["stops"][k if k is not None else c["at"]][1] for name, c in controls.items()}
        for k in (None, 0, -1)
    ]
    found = drawn(kind, data, *ends)
    assert said.endswith(found[0]["words"])
    print(kind, "ms:", [round(f["took"], 1) for f in found], "kB:", len(page) // 1000)
    assert len({f["words"] for f in found}) > 1
