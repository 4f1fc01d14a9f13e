"""Files of OpenAI's consistency models: a second implementation of their U-Net, from the papers,
with their tensor names, says the same as what is read."""

import functools
import math
import pickle
import pytest
import torch
import torch.nn.functional as F
from ect_nb import sample
from ect_nb.io import weights
from ect_nb.io.consistency_files import load_consistency
from ect_nb.networks import classes_of
from importlib.util import find_spec
from torch import nn

pytestmark = pytest.mark.skipif(
    find_spec("diffusers") is None, reason='diffusers is missing: pip install "ect_nb[diffusers]"'
)
HEAD = 8


class ResBlock(nn.Module):
    """Dhariwal & Nichol's residual block; `how`: half or double the sides; `scaled`: time gives a
    scale and a shift, else a shift alone."""

    def __init__(self, cin, cout, emb, how=None, scaled=True):
        super().__init__()
        self.how, self.scaled = how, scaled
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, cin), nn.SiLU(), nn.Conv2d(cin, cout, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, (1 + scaled) * cout))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, cout), nn.SiLU(), nn.Dropout(0), nn.Conv2d(cout, cout, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)

    def sized(self, x):
        if self.how == "half":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0) if self.how == "double" else x

    def forward(self, x, emb):
        h = self.in_layers[2](self.sized(self.in_layers[:2](x)))
        told = self.emb_layers(emb)[:, :, None, None]
        if self.scaled:
            scale, shift = told.chunk(2, 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + told)
        return self.skip_connection(self.sized(x)) + h


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm, self.qkv = nn.GroupNorm(32, c), nn.Conv1d(c, 3 * c, 1)
        self.proj_out = nn.Conv1d(c, c, 1)

    def forward(self, x, emb):
        B, C, H, W = x.shape
        q, k, v = self.qkv(self.norm(x).flatten(2)).view(B, 3, C // HEAD, HEAD, H * W).unbind(1)
        a = torch.einsum("bhci,bhcj->bhij", q, k).div(math.sqrt(HEAD)).softmax(3)
        y = torch.einsum("bhij,bhcj->bhci", a, v).reshape(B, C, H * W)
        return x + self.proj_out(y).view_as(x)


class UNet(nn.Module):
    def __init__(
        self, width=32, mult=(1, 2, 2), n=2, attention=(4,), res=16, classes=5, scaled=True
    ):
        super().__init__()
        Res = functools.partial(ResBlock, scaled=scaled)
        emb, self.width = 4 * width, width
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        if classes:
            self.label_emb = nn.Embedding(classes, emb)
        part, c, skips = nn.ModuleList, width, [width]
        self.input_blocks = part([part([nn.Conv2d(3, width, 3, padding=1)])])
        for l, m in enumerate(mult):
            for _ in range(n):
                made = [Res(c, m * width, emb)]
                c = m * width
                made += [Attention(c)] * (res >> l in attention)
                self.input_blocks.append(part(made))
                skips.append(c)
            if l < len(mult) - 1:
                self.input_blocks.append(part([Res(c, c, emb, "half")]))
                skips.append(c)
        self.middle_block = part([Res(c, c, emb), Attention(c), Res(c, c, emb)])
        self.output_blocks = part()
        for l, m in reversed(list(enumerate(mult))):
            for j in range(n + 1):
                made = [Res(c + skips.pop(), m * width, emb)]
                c = m * width
                made += [Attention(c)] * (res >> l in attention)
                made += [Res(c, c, emb, "double")] * (l > 0 and j == n)
                self.output_blocks.append(part(made))
        self.out = nn.Sequential(nn.GroupNorm(32, c), nn.SiLU(), nn.Conv2d(c, 3, 3, padding=1))

    def forward(self, x, s, labels=None):
        half = self.width // 2
        rate = 10_000 ** (-torch.arange(half) / half)
        angle = s[:, None] * rate
        emb = self.time_embed(torch.cat([angle.cos(), angle.sin()], 1))
        emb = emb if labels is None else emb + self.label_emb(labels)
        x, skips = self.input_blocks[0][0](x), []
        skips.append(x)
        for block in self.input_blocks[1:]:
            for layer in block:
                x = layer(x, emb)
            skips.append(x)
        for layer in self.middle_block:
            x = layer(x, emb)
        for block in self.output_blocks:
            x = torch.cat([x, skips.pop()], 1)
            for layer in block:
                x = layer(x, emb)
        return self.out(x)


def consistency(net, x, t, labels=None, low=0.002, d=0.5):
    "Song et al. 2023, App. C."
    s = t[:, None, None, None]
    F = net(x / (s**2 + d**2).sqrt(), 250 * t.log(), labels)
    return d**2 / ((s - low) ** 2 + d**2) * x + d * (s - low) / (s**2 + d**2).sqrt() * F


def written(path, **kw):
    torch.manual_seed(0)
    net = UNet(**kw).eval()
    for p in net.parameters():
        p.data += 0.02 * torch.randn_like(p)
    torch.save(net.state_dict(), path)
    return net


CASES = [
    dict(),
    dict(mult=(1, 2), n=1, attention=(16, 8)),
    dict(mult=(1,), n=2, classes=0, scaled=False),
]


@pytest.mark.parametrize("kw", CASES, ids=str)
@torch.no_grad()
def test_the_file_is_read_and_says_the_same(tmp_path, kw):
    net = written(tmp_path / "cm.pt", **kw)
    f = load_consistency(tmp_path / "cm.pt", head_channels=HEAD)
    classes = kw.get("classes", 5)
    assert classes_of(f) == classes and not f.training
    t = torch.tensor([0.002, 0.5, 80.0])
    x = torch.randn(3, 3, 16, 16) * (t**2 + 0.25).sqrt()[:, None, None, None]
    labels = torch.tensor([0, 2, 4]) if classes else None
    want = consistency(net, x, t, labels)
    assert torch.allclose(f(x, t, labels), want, atol=1e-4)
    assert torch.allclose(f(x, t, labels)[0], x[0], atol=1e-5)
    path = weights.save(f, tmp_path / "kit.safetensors", shape=(3, 16, 16))
    assert torch.equal(weights.load(path)(x, t, labels), f(x, t, labels))
    z = torch.randn(2, 3, 16, 16)
    told = dict(labels=torch.tensor([1, 3])) if classes else {}
    assert sample(f, z, (80.0, 2.0), **told).isfinite().all()


def test_an_attention_of_either_convolution(tmp_path):
    "Kernels of one side or of two say the same."
    net, path = written(tmp_path / "cm.pt", mult=(1,), n=1, attention=(16,)), tmp_path / "two.pt"
    wide = {k: v[..., None] if v.ndim == 3 else v for k, v in net.state_dict().items()}
    torch.save(wide, path)
    a, b = (load_consistency(p, head_channels=HEAD) for p in (tmp_path / "cm.pt", path))
    x, t, labels = torch.randn(2, 3, 8, 8), torch.ones(2), torch.tensor([1, 2])
    assert torch.equal(a(x, t, labels), b(x, t, labels))


def test_any_file_by_its_ending(tmp_path):
    written(tmp_path / "cm.pt", width=64, mult=(1,), n=1, attention=())
    assert weights.load_any(tmp_path / "cm.pt").origin == dict(source="cm.pt")


class Evil:
    def __reduce__(self):
        return print, ("a program ran",)


def test_what_is_no_such_file_is_said_and_nothing_is_run(tmp_path, capsys):
    path = tmp_path / "cm.pt"
    for content in (Evil(), dict(a=Evil()), [1], {}):
        torch.save(content, path)
        with pytest.raises(ValueError, match="no whole file of named tensors"):
            load_consistency(path)
    for raw in (b"", b"<html>", pickle.dumps(Evil()), b"PK\x03\x04 half"):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match="no whole file of named tensors"):
            load_consistency(path)
    assert "a program ran" not in capsys.readouterr().out
    net = written(path)
    for k in ("out.2.weight", "input_blocks.3.0.in_layers.2.weight"):
        torch.save({n: v for n, v in net.state_dict().items() if n != k}, path)
        with pytest.raises(ValueError, match="does not hold the U-Net"):
            load_consistency(path)
    with pytest.raises(FileNotFoundError):
        load_consistency(tmp_path / "none.pt")
