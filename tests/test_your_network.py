"""Networks of diffusers from a start to a measured generator: tuned, killed, continued, sampled."""

import os
import pytest
import signal
import subprocess
import sys
import time
import torch
from ect_nb import ECT, Config, Denoising, Stages, heun, sample, train
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
TUNE = Config(ECT(c=0.03), kimg=0.32, batch=16, lr=1e-3, stages=Stages(2), state_seconds=0.01)
CASES = [((1, 28, 28), 0), ((3, 32, 32), 0), ((1, 28, 28), 10), ((3, 32, 32), 10)]


def unet(shape, classes, dropout=0.1):
    "A U-Net of diffusers in the language of DDPM."
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=shape[1],
        in_channels=shape[0],
        out_channels=shape[0],
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        dropout=dropout,
        num_class_embeds=classes or None,
    )
    return wrap(net, schedule=DDPMScheduler())


def pictures(shape, classes):
    g = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (80, *shape), generator=g, dtype=torch.uint8)
    labels = torch.arange(80) % classes if classes else None
    return data.Pictures(images, labels, [str(i) for i in range(classes)])


def tune(folder, shape, classes, pause=0.0):
    for p in train(unet(shape, classes), pictures(shape, classes), TUNE, folder):
        time.sleep(pause)
    return p


def killed(folder, shape, classes):
    "Tune in a process of its own, which is killed after some steps."
    code = f"import test_your_network as t; t.tune({str(folder)!r}, {shape}, {classes}, 0.2)"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    child = subprocess.Popen([sys.executable, "-c", code], env=os.environ | dict(PYTHONPATH=path))
    while not list(folder.glob("state/step-*")) and child.poll() is None:
        time.sleep(0.02)
    time.sleep(0.5)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL


@pytest.mark.skipif(os.name == "nt", reason="kills with SIGKILL")
@pytest.mark.parametrize("shape, classes", CASES, ids=str)
def test_a_unet_is_tuned_killed_continued_drawn_from_and_measured(tmp_path, shape, classes):
    whole, run = tune(tmp_path / "whole", shape, classes), tmp_path / "run"
    killed(run, shape, classes)
    assert not (run / "snapshots").exists() or not list((run / "snapshots").iterdir())
    resumed = tune(run, shape, classes)
    assert all(torch.equal(a, b) for a, b in zip(whole.ema.parameters(), resumed.ema.parameters()))
    (snapshot,) = RunFolder(run).snapshots().values()
    f = weights.load(snapshot)
    assert classes_of(f) == classes and f.parametrisation == "epsilon"
    z, labels = torch.randn(4, *shape), torch.tensor([0, 1, 2, 9]) if classes else None
    told = dict(labels=labels) if classes else {}
    for draw in (lambda f: sample(f, z, **told), lambda f: heun(f, z, karras_times(4), **told)):
        assert torch.equal(draw(f), draw(resumed.ema)) and draw(f).shape == z.shape
    if classes:
        assert not torch.equal(sample(f, z, labels=labels), sample(f, z, labels=labels.flip(0)))
    eye = random_features(shape[0], 8)
    record = measure(f, pictures(shape, classes), eye, (80.0, 1.0), n=60, batch=30, groups=5)
    assert record["low"] <= record["value"] <= record["high"] and record["nfe"] == 2
    found = measures(f, pictures(shape, classes), [eye], (80.0, 1.0), n=60, batch=30, groups=5)
    assert [r["metric"] for r in found] == ["FD", "KID"]
    assert abs(found[0]["value"] / record["value"] - 1) < 1e-5  # the same drawing


class Latents:
    "Numbers of 4 channels on a grid, with labels."

    def __init__(self, width=4):
        self.z = torch.randn(80, 4, 4, width, generator=torch.Generator().manual_seed(1)) / 2
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
    last(tmp_path / "run", stop=7)
    resumed = last(tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(whole.ema.parameters(), resumed.ema.parameters()))
    f = weights.load(list(RunFolder(tmp_path / "run").snapshots().values())[-1])
    z, labels = torch.randn(3, 4, 4, 4), torch.tensor([0, 4, 9])
    assert torch.equal(sample(f, z, labels=labels), sample(resumed.ema, z, labels=labels))
    assert not torch.equal(sample(f, z, labels=labels), sample(f, z, labels=labels.flip(0)))


def test_text_embeddings_reach_a_unet(tmp_path):
    "In training from data.conditions, in sampling by name; another text, another picture."
    from diffusers import UNet2DConditionModel

    class Texts(Latents):
        conditions = dict(encoder_hidden_states=torch.randn(80, 5, 8))

    torch.manual_seed(0)
    net = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    f, texts = wrap(net, "v", DDPM()), Texts(width=6)
    texts.labels = None
    for p in train(f, texts, Config(ECT(c=0.03), kimg=0.064, batch=16, stages=Stages(2))):
        pass
    z, e = torch.randn(2, 4, 4, 6), texts.conditions["encoder_hidden_states"]
    one, other = (sample(p.ema, z, encoder_hidden_states=e[i : i + 2]) for i in (0, 2))
    assert one.isfinite().all() and not torch.equal(one, other)
    assert torch.equal(one, sample(p.ema, z, encoder_hidden_states=e[:2]))


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
        if isinstance(m, nn.Conv2d | nn.Linear) and len(m.weight) > 2:
            parametrize.register_parametrization(m, "weight", LowRank(m.weight))
    return model


def small():
    torch.manual_seed(0)
    return Precond(UNet(8, 3, 8, (1, 2), 1, attention=(4,)))


@pytest.mark.parametrize("theirs", [False, True])
def test_what_was_frozen_stays_to_the_last_bit(tmp_path, theirs):
    begin = (lambda: unet((3, 8, 8), 0)) if theirs else small

    def last(folder, stop=None):
        torch.manual_seed(3)
        model = adapted(begin())
        for p in train(model, pictures((3, 8, 8), 0), TUNE, folder):
            if p.step == stop:
                break
        return p

    whole = last(tmp_path / "whole")
    last(tmp_path / "run", stop=9)
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


def test_a_denoiser_of_theirs_becomes_one_of_ours():
    "Trained from nothing in the language of v, the loss falls."
    losses = []
    f = unet((1, 28, 28), 0, dropout=0.0)
    config = Config(Denoising(), kimg=1, batch=16, lr=3e-3)
    for p in train(f, data.load("fashion_mnist").subset(64), config):
        losses.append(float(p.loss))
    assert sum(losses[-15:]) < 0.8 * sum(losses[:15])
