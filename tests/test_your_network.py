"""Networks of diffusers from a start to a measured generator: tuned, killed, continued, sampled."""

import os
import pytest
import signal
import subprocess
import sys
import time
import torch
from ect_nb import ECT, Config, Stages, heun, sample, train
from ect_nb.diffusion import Precond, karras_times
from ect_nb.io import data, weights
from ect_nb.measure.features import random_features
from ect_nb.measure.kernels import measures
from ect_nb.measure.metrics import measure
from ect_nb.networks import UNet, classes_of
from ect_nb.training.runs import RunFolder
from ect_nb.wrapping import DDPM, RectifiedFlow, wrap
from importlib.util import find_spec
from pathlib import Path
from torch import nn
from torch.nn.utils import parametrize

pytestmark = pytest.mark.skipif(
    find_spec("diffusers") is None, reason='diffusers is missing: pip install "ect_nb[diffusers]"'
)
TUNE = Config(ECT(c=0.03), kimg=0.064, batch=8, lr=1e-3, stages=Stages(2), state_seconds=0.01)
EYE = random_features(3, 8)


def unet(shape, classes, dropout=0.1):
    "A U-Net of diffusers in the language of DDPM."
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=shape[1],
        in_channels=shape[0],
        out_channels=shape[0],
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        dropout=dropout,
        num_class_embeds=classes or None,
    )
    return wrap(net, schedule=DDPMScheduler())


def text_unet():
    "One that listens to texts, in the language of v."
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    net = UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return wrap(net, "v", DDPM())


def pictures(shape, classes):
    g = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (80, *shape), generator=g, dtype=torch.uint8)
    labels = torch.arange(80) % classes if classes else None
    return data.Pictures(images, labels, [str(i) for i in range(classes)])


def texts():
    "Pictures of 8 x 8, each with a text of five words, a word being eight numbers."
    words = torch.randn(80, 5, 8, generator=torch.Generator().manual_seed(2))
    images = pictures((3, 8, 8), 0).images
    return data.Pictures(images, conditions=dict(encoder_hidden_states=words))


RUNS = dict(
    classes=lambda: (unet((3, 32, 32), 10), pictures((3, 32, 32), 10)),
    plain=lambda: (unet((1, 28, 28), 0), pictures((1, 28, 28), 0)),
    text=lambda: (text_unet(), texts()),
)


def tune(name, folder, stop=None, pause=0.0):
    for p in train(*RUNS[name](), TUNE, folder):
        time.sleep(pause)
        if p.step == stop:
            break
    return p


def begin(home):
    "Two runs, each in a process of its own, that nobody ends."
    for name in ("classes", "text"):
        if not os.fork():
            print(name, os.getpid(), flush=True)
            tune(name, Path(home) / name, pause=4.0)
            os._exit(1)
    for _ in range(2):
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    "The folder with the two runs, each killed by SIGKILL after some steps."
    home = tmp_path_factory.mktemp("killed")
    code = f"import test_your_network as t; t.begin({str(home)!r})"
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    child = subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True
    )
    for _ in range(2):
        name, number = child.stdout.readline().split()
        until = time.monotonic() + 120
        while not list((home / name).glob("state/step-*")) and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(int(number), signal.SIGKILL)
    assert child.communicate()[0].split() == [str(-signal.SIGKILL)] * 2
    return home


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def ended(name, tmp_path, home=None):
    "The run from end to end, and from where it was killed or broken off: what its file holds."
    folder, whole = (home or tmp_path) / name, tune(name, tmp_path / "whole")
    if home is None:
        tune(name, folder, stop=3)
    assert not list(folder.glob("snapshots/*"))
    resumed = tune(name, folder)
    assert same(whole.ema, resumed.ema) and same(whole.model, resumed.model)
    (snapshot,) = RunFolder(folder).snapshots().values()
    f = weights.load(snapshot)
    assert same(f, resumed.ema) and not same(f, RUNS[name]()[0])
    return f


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks and kills with SIGKILL")
@pytest.mark.parametrize("name", ["classes", "plain"])
def test_a_unet_is_tuned_killed_continued_drawn_from_and_measured(tmp_path, name, request):
    f = ended(name, tmp_path, request.getfixturevalue("killed") if name == "classes" else None)
    seen = RUNS[name]()[1]
    classes = 10 * (name == "classes")
    assert classes_of(f) == classes and f.parametrisation == "epsilon"
    z, labels = torch.randn(4, *seen.images.shape[1:]), torch.tensor([0, 1, 2, 9])
    told = dict(labels=labels) if classes else {}
    for draw in (lambda **kw: sample(f, z, **kw), lambda **kw: heun(f, z, karras_times(4), **kw)):
        assert draw(**told).shape == z.shape and draw(**told).isfinite().all()
        if classes:
            assert not torch.equal(draw(**told), draw(labels=labels.flip(0)))
    if classes:
        record = measure(f, seen, EYE, (80.0, 1.0), n=60, batch=30, groups=5)
        assert record["low"] <= record["value"] <= record["high"] and record["nfe"] == 2
        found = measures(f, seen, [EYE], (80.0, 1.0), n=60, batch=30, groups=5)
        assert [r["metric"] for r in found] == ["FD", "KID"]
        assert abs(found[0]["value"] / record["value"] - 1) < 1e-5  # the same drawing


class Captioned(nn.Module):
    "`f` told the texts `e`, one after the other."

    def __init__(self, f, e):
        super().__init__()
        self.f, self.e = f, e

    def forward(self, x, t):
        return self.f(x, t, encoder_hidden_states=self.e[torch.arange(x.shape[0]) % len(self.e)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks and kills with SIGKILL")
def test_texts_reach_a_unet_that_is_killed_continued_and_measured(tmp_path, killed):
    "In training from data.conditions, in sampling by name; another text, another picture."
    f, e = ended("text", tmp_path, killed), texts().conditions["encoder_hidden_states"]
    z = torch.randn(2, 3, 8, 8)
    one, other = (sample(f, z, encoder_hidden_states=e[i : i + 2]) for i in (0, 2))
    assert one.isfinite().all() and not torch.equal(one, other)
    record = measure(Captioned(f, e).eval(), texts(), EYE, (80.0, 1.0), n=60, batch=30, groups=5)
    assert record["low"] <= record["value"] <= record["high"]
    mute = data.Pictures(texts().images, conditions=dict(encoder_hidden_states=0 * e))
    for p in train(text_unet(), mute, TUNE):
        pass
    assert not same(p.ema, f)  # the texts made a difference to what was learned


class Latents:
    "Numbers of 4 channels on a grid, with labels."

    def __init__(self):
        self.z = torch.randn(80, 4, 4, 4, generator=torch.Generator().manual_seed(1)) / 2
        self.labels = torch.arange(80) % 10

    def __len__(self):
        return len(self.z)

    def batch(self, indices):
        return self.z[indices]


def dit():
    "A transformer of diffusers in the language of flows."
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    net = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=4,
        patch_size=1,
        num_embeds_ada_norm=10,
    )
    return wrap(net, "flow", RectifiedFlow(scale=1000))


def test_a_transformer_on_latents(tmp_path):
    def last(folder, stop=None):
        for p in train(dit(), Latents(), TUNE, folder):
            if p.step == stop:
                break
        return p

    whole = last(tmp_path / "whole")
    last(tmp_path / "run", stop=3)
    resumed = last(tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(whole.ema.parameters(), resumed.ema.parameters()))
    f = weights.load(list(RunFolder(tmp_path / "run").snapshots().values())[-1])
    z, labels = torch.randn(3, 4, 4, 4), torch.tensor([0, 4, 9])
    assert torch.equal(sample(f, z, labels=labels), sample(resumed.ema, z, labels=labels))
    assert not torch.equal(sample(f, z, labels=labels), sample(f, z, labels=labels.flip(0)))


class LowRank(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.B = nn.Parameter(torch.zeros(len(weight), 2))
        self.A = nn.Parameter(torch.randn(2, weight[0].numel()) / 10)

    def forward(self, W):
        return W + (self.B @ self.A).reshape(W.shape)


def adapted(model):
    model.requires_grad_(False)
    for m in list(model.modules()):
        if getattr(m, "weight", None) is not None and m.weight.ndim > 1 and len(m.weight) > 2:
            parametrize.register_parametrization(m, "weight", LowRank(m.weight))
    return model


def own_unet():
    "The kit's own U-Net, with attention and dropout, and nothing left at zero."
    torch.manual_seed(0)
    net = UNet(8, 3, 8, (1, 2), 1, attention=(4,), dropout=0.1)
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return Precond(net)


STARTS = dict(diffusers=lambda: unet((3, 8, 8), 0), own=own_unet)


@pytest.mark.parametrize("whose", STARTS)
def test_what_was_frozen_stays_to_the_last_bit(tmp_path, whose):
    begin = STARTS[whose]

    def last(folder, stop=None):
        torch.manual_seed(3)
        model = adapted(begin())
        for p in train(model, pictures((3, 8, 8), 0), TUNE, folder):
            if p.step == stop:
                break
        return p

    whole = last(tmp_path / "whole")
    last(tmp_path / "run", stop=3)
    resumed = last(tmp_path / "run")
    before = dict(begin().named_parameters())
    for p in (whole, resumed):
        for model in (p.model, p.ema):
            now = {
                k.replace("parametrizations.", "").removesuffix(".original"): v
                for k, v in model.named_parameters()
                if not k.endswith((".A", ".B"))
            }
            assert set(now) == set(before)
            assert all(torch.equal(v, before[k]) for k, v in now.items())
    learned = [(k, v) for k, v in whole.ema.named_parameters() if k.endswith((".A", ".B"))]
    assert any(v.abs().max() > 0 for k, v in learned if k.endswith(".B"))
    again = dict(resumed.ema.named_parameters())
    assert all(torch.equal(v, again[k]) for k, v in learned)
    assert all(v.requires_grad == k.endswith((".A", ".B")) for k, v in p.model.named_parameters())
    (snapshot,) = p.folder.snapshots().values()
    f = weights.load(snapshot, into=adapted(begin())).eval()
    assert same(f, p.ema)
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([0.1, 2.0, 70.0])
    for m in list(f.modules()):
        if parametrize.is_parametrized(m):
            parametrize.remove_parametrizations(m, "weight")
    assert weights.describe(f) == weights.describe(begin())
    again = weights.load(weights.save(f, tmp_path / "merged.safetensors"))
    assert all(torch.equal(v, f.state_dict()[k]) for k, v in again.state_dict().items())
    with torch.no_grad():  # at t = 70 rounding is multiplied by 70
        assert torch.allclose(again(x, t), p.ema(x, t), atol=1e-3)
