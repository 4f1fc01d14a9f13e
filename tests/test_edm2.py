"""EDM2: counts of the paper, a second implementation, files of the same form, and its averages."""

import dataclasses
import edm_files
import math
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ect_nb import Config, Precond, train
from ect_nb.edm2 import EDM2, SIZES, Weight, kept, power, width
from ect_nb.io import weights
from ect_nb.objectives import ECT, Denoising
from ect_nb.training.recipes import PRESETS, begin
from torch import nn

# ---- a second implementation, from the paper, with EDM2's tensor names


def rms(x, axis):
    return x / (1e-4 + x.square().mean(axis, keepdim=True).sqrt())


class Conv(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) * 3)

    def forward(self, x, gain=1):
        w = self.weight.flatten(1)
        w = (gain * w / (1e-4 * w.shape[1] ** 0.5 + w.norm(dim=1, keepdim=True))).view_as(
            self.weight
        )
        if w.ndim == 2:
            return torch.einsum("oi,bi->bo", w, x)
        return F.conv2d(x, w, padding="same")


class Fourier(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.register_buffer("freqs", torch.randn(n) * 2 * np.pi)
        self.register_buffer("phases", torch.rand(n) * 2 * np.pi)


class Block(nn.Module):
    def __init__(self, cin, cout, emb, flavor, mode="keep", heads=0):
        super().__init__()
        self.flavor, self.resample_mode, self.num_heads = flavor, mode, heads
        self.dropout, self.res_balance, self.attn_balance, self.clip_act = 0.1, 0.3, 0.3, 256
        self.emb_gain = nn.Parameter(torch.tensor(0.7))
        self.conv_res0 = Conv(cout, cout if flavor == "enc" else cin, 3, 3)
        self.emb_linear, self.conv_res1 = Conv(cout, emb), Conv(cout, cout, 3, 3)
        self.conv_skip = Conv(cout, cin, 1, 1) if cin != cout else None
        self.attn_qkv = Conv(3 * cout, cout, 1, 1) if heads else None
        self.attn_proj = Conv(cout, cout, 1, 1) if heads else None

    def forward(self, x, emb):
        act = lambda y: y * torch.sigmoid(y) / 0.596
        if self.resample_mode == "down":
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        if self.resample_mode == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        short = x if self.conv_skip is None else self.conv_skip(x)
        if self.flavor == "enc":
            x = short = rms(short, 1)
        y = self.conv_res0(act(x))
        y = act(y * (self.emb_linear(emb, self.emb_gain) + 1)[..., None, None])
        y = self.conv_res1(F.dropout(y, self.dropout, self.training))
        x = (0.7 * short + 0.3 * y) / math.sqrt(0.58)
        if self.num_heads:
            B, C, H, W = x.shape
            a = rms(self.attn_qkv(x).view(B, self.num_heads, -1, 3, H * W), 2)
            q, k, v = a[..., 0, :], a[..., 1, :], a[..., 2, :]
            s = torch.einsum("bhci,bhcj->bhij", q, k / (C // self.num_heads) ** 0.5).softmax(3)
            y = self.attn_proj(torch.einsum("bhij,bhcj->bhci", s, v).reshape(B, C, H, W))
            x = (0.7 * x + 0.3 * y) / math.sqrt(0.58)
        return x.clip(-256, 256)


class UNet(nn.Module):
    def __init__(self, res=8, channels=3, labels=0, width=8, mult=(1, 2), blocks=1, attention=(4,)):
        super().__init__()
        emb, self.label_dim = width * max(mult), labels
        self.label_balance = self.concat_balance = 0.5
        self.out_gain = nn.Parameter(torch.tensor(0.4))
        self.emb_fourier, self.emb_noise = Fourier(width), Conv(emb, width)
        self.emb_label = Conv(emb, labels) if labels else None
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        has = lambda c, r: c // 4 if r in attention else 0
        c, skips = width, [width]
        self.enc[f"{res}x{res}_conv"] = Conv(width, channels + 1, 3, 3)
        for i, m in enumerate(mult):
            r = res >> i
            if i:
                self.enc[f"{r}x{r}_down"] = Block(c, c, emb, "enc", "down")
                skips.append(c)
            for j in range(blocks):
                self.enc[f"{r}x{r}_block{j}"] = Block(
                    c, width * m, emb, "enc", heads=has(width * m, r)
                )
                c = width * m
                skips.append(c)
        for i, m in reversed(list(enumerate(mult))):
            r = res >> i
            if i == len(mult) - 1:
                self.dec[f"{r}x{r}_in0"] = Block(c, c, emb, "dec", heads=c // 4)
                self.dec[f"{r}x{r}_in1"] = Block(c, c, emb, "dec")
            else:
                self.dec[f"{r}x{r}_up"] = Block(c, c, emb, "dec", "up")
            for j in range(blocks + 1):
                name, wide = f"{r}x{r}_block{j}", width * m
                self.dec[name] = Block(c + skips.pop(), wide, emb, "dec", heads=has(wide, r))
                c = wide
        self.out_conv = Conv(channels, c, 3, 3)

    def forward(self, x, noise, labels=None):
        f = self.emb_fourier
        emb = self.emb_noise((torch.outer(noise, f.freqs) + f.phases).cos() * 2**0.5)
        if self.label_dim:
            rows = torch.zeros(len(x), self.label_dim) if labels is None else labels
            emb = (emb / 2 + self.emb_label(rows * self.label_dim**0.5) / 2) / math.sqrt(0.5)
        emb = emb * torch.sigmoid(emb) / 0.596
        x, skips = torch.cat([x, torch.ones(len(x), 1, *x.shape[2:])], 1), []
        for part in self.enc.values():
            x = part(x) if isinstance(part, Conv) else part(x, emb)
            skips.append(x)
        for name, part in self.dec.items():
            if "block" in name:
                y = skips.pop()
                a, b = x.shape[1], y.shape[1]
                size = math.sqrt((a + b) / 0.5)
                x = torch.cat([x * size / 2 / a**0.5, y * size / 2 / b**0.5], 1)
            x = part(x, emb)
        return self.out_conv(x, self.out_gain)


class EDM2Precond(nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.unet, self.sigma_data, self.use_fp16 = unet, 0.5, True
        self.logvar_fourier, self.logvar_linear = Fourier(16), Conv(1, 16)

    def forward(self, x, t, labels=None):
        s = t[:, None, None, None]
        var = s**2 + 0.25
        y = self.unet(x / var.sqrt(), t.log() / 4, labels)
        return 0.25 / var * x + s * 0.5 / var.sqrt() * y


OURS = (Conv, Fourier, Block, UNet, EDM2Precond)


def written(path, half=True, **kw):
    "A network in a file as EDM2 writes it: float16, buffers too, in an EasyDict."
    torch.manual_seed(0)
    model = EDM2Precond(UNet(**kw)).eval().requires_grad_(False)
    model = model.half() if half else model
    was = edm_files.OURS
    edm_files.OURS = was + OURS
    EDM2Precond.__name__ = "Precond"
    try:
        path.write_bytes(edm_files.snapshot(model))
    finally:
        edm_files.OURS, EDM2Precond.__name__ = was, "EDM2Precond"
    return model.float()


SHAPES = [
    dict(),
    dict(labels=10),
    dict(res=16, channels=1, mult=(1, 2, 3), blocks=2, attention=(8,)),
]


@pytest.mark.parametrize("kw", SHAPES, ids=str)
def test_the_file_is_read_and_says_the_same(tmp_path, kw):
    reference = written(tmp_path / "edm2.pkl", **kw)
    model = weights.load_edm(tmp_path / "edm2.pkl")
    net, side = model.net, kw.get("res", 8)
    assert isinstance(net, EDM2) and model.sigma_data == 0.5 and model.sigma_min == 0
    assert net.config["head_channels"] == 4 and net.config["dropout"] == 0.1
    assert set(net.state_dict()) == set(reference.unet.state_dict())
    x = torch.randn(3, kw.get("channels", 3), side, side)
    t = torch.tensor([0.02, 1.0, 80.0])
    x = x * (t**2 + 0.25).sqrt()[:, None, None, None]
    labels = torch.eye(10)[[1, 2, 9]] if kw.get("labels") else None
    with torch.no_grad():
        assert torch.allclose(model(x, t, labels), reference(x, t, labels), atol=1e-5)
    path = weights.convert(tmp_path / "edm2.pkl", tmp_path / "kit.safetensors")
    with torch.no_grad():
        assert torch.equal(weights.load(path)(x, t, labels), model(x, t, labels))
    assert weights.load(path).origin["licence"] == weights.LICENCE
    assert weights.edm_facts(tmp_path / "edm2.pkl")["settings"]["name"] == "EDM2"


@pytest.mark.parametrize("key, value", [("res_balance", 0.5), ("clip_act", 8)])
def test_another_rule_is_refused(tmp_path, key, value):
    torch.manual_seed(0)
    model = EDM2Precond(UNet()).eval()
    setattr(model.unet.dec["8x8_up"], key, value)
    was = edm_files.OURS
    edm_files.OURS = was + OURS
    try:
        (tmp_path / "other.pkl").write_bytes(edm_files.snapshot(model))
    finally:
        edm_files.OURS = was
    with pytest.raises(ValueError, match=f"unlike EDM2's network: {key} of dec.8x8_up"):
        weights.load_edm(tmp_path / "other.pkl")


def test_counts_are_those_of_the_paper():
    with torch.device("meta"):
        sizes = {name: EDM2(model_channels=n) for name, n in SIZES.items()}
    millions = {k: sum(p.numel() for p in net.parameters()) / 1e6 for k, net in sizes.items()}
    told = dict(S=280, M=498, L=777, XL=1119)  # Karras et al. 2024, Table 2
    assert all(abs(millions[k] - n) < 1 for k, n in told.items())
    assert len(sizes["S"].state_dict()) == 200


def small(**kw):
    torch.manual_seed(0)
    net = EDM2(8, 1, 0, 8, (1, 2), 1, attention=(4,), head_channels=4, **kw)
    net.out_gain.data.fill_(0.5)
    for m in net.modules():
        if hasattr(m, "emb_gain"):
            m.emb_gain.data.fill_(0.5)
    return Precond(net)


def test_magnitudes_are_kept_through_the_network():
    model, seen = small(), []
    for m in model.net.modules():
        if type(m).__name__ == "Block":
            m.register_forward_hook(lambda m, x, y: seen.append(float(y.square().mean().sqrt())))
    x = torch.randn(64, 1, 8, 8) * 0.5 + 2 * torch.randn(64, 1, 8, 8)
    with torch.no_grad():
        model(x, torch.full((64,), 2.0))
    assert len(seen) > 6 and all(0.7 < s < 1.4 for s in seen)


@pytest.mark.parametrize("objective", [Denoising(), ECT(c=0.03)])
def test_training_keeps_lengths_and_shares_dropout(objective, tmp_path):
    data = torch.rand(64, 1, 8, 8) * 2 - 1
    config = Config(objective, kimg=0.3, batch=16, lr=1e-2, ema_rel=0.1)
    for p in train(small(dropout=0.3), data, config, tmp_path / "run"):
        pass
    rows = [m.weight.flatten(1) for m in p.model.modules() if isinstance(m, Weight)]
    assert all((w.square().mean(1) - 1).abs().max() < 1e-2 for w in rows)
    total = sum(1 for _ in p.folder.snapshots())
    assert total == 1 and weights.header(p.folder.snapshots()[0])["model"]["net"]["name"] == "EDM2"


def test_the_average_is_the_power_function():
    for sigma_rel in (0.03, 0.075, 0.2):
        g, n = power(sigma_rel), 3000
        assert abs(width(g) - sigma_rel) < 1e-9
        share = np.zeros(n + 1)
        for step in range(1, n + 1):
            share *= kept(step, sigma_rel)
            share[step] += 1 - kept(step, sigma_rel)
        want = np.arange(n + 1.0) ** g
        assert np.abs(share.cumsum() - want.cumsum() / want.sum()).max() < 2e-2
    for wrong in (0, 0.3, -1):
        with pytest.raises(ValueError, match="width"):
            power(wrong)
    with pytest.raises(ValueError, match="ema_rel"):
        next(train(small(), torch.zeros(8, 1, 8, 8), Config(Denoising(), ema_rel=0.5)))


def test_the_preset_starts_from_such_a_file(tmp_path):
    written(tmp_path / "start.pkl", labels=10)
    model = begin(PRESETS["imagenet64"], tmp_path / "start.pkl")
    drops = {m.p for m in model.modules() if type(m).__name__ == "Dropout"}
    assert isinstance(model.net, EDM2) and drops == {0.4}
    assert PRESETS["imagenet64"].teacher in weights.TEACHERS
    assert dataclasses.is_dataclass(PRESETS["imagenet64"])
