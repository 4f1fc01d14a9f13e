"""Networks and files in the form of EDM and ECT, with code of our own: what the readers are tested
on.

`SongUNet` is a second implementation of DDPM++ and NCSN++ (Song et al. 2021; Karras et al. 2022,
Table 7) under EDM's names; `write` pickles it as EDM does, each object with its class's source."""

import io
import numpy as np
import pickle
import sys
import torch
import torch.nn.functional as F
import types
from collections import OrderedDict
from torch import nn

SOURCE = "raise SystemExit('the source in the file was run')\n" * 40


def weight(*shape):
    return nn.Parameter(torch.randn(shape) * 0.7 / max(1, np.prod(shape[1:])) ** 0.5)


class Linear(nn.Module):
    def __init__(self, cin, cout, bias=True):
        super().__init__()
        self.in_features, self.out_features, self.weight, self.bias = (
            cin,
            cout,
            weight(cout, cin),
            nn.Parameter(torch.randn(cout) * 0.1) if bias else None,
        )

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class GroupNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.num_groups, self.eps, self.weight, self.bias = (
            min(32, channels // 4),
            1e-6,
            nn.Parameter(1 + 0.2 * torch.randn(channels)),
            nn.Parameter(0.2 * torch.randn(channels)),
        )

    def forward(self, x):
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class Conv2d(nn.Module):
    """A convolution; with `taps`, behind a filter that halves or doubles.

    `late`: convolve first, then halve."""

    def __init__(self, cin, cout, kernel, up=False, down=False, taps=(1, 1), late=False):
        super().__init__()
        self.in_channels, self.out_channels, self.up, self.down, self.fused_resample = (
            cin,
            cout,
            up,
            down,
            late,
        )
        self.weight, self.bias = (
            weight(cout, cin, kernel, kernel),
            nn.Parameter(torch.randn(cout) * 0.1),
        )
        f = torch.tensor(taps, dtype=torch.float32)
        self.register_buffer(
            "resample_filter",
            (f[:, None] * f[None] / f.sum() ** 2)[None, None] if up or down else None,
        )

    def resample(self, x):
        n, C = self.resample_filter.shape[-1] // 2 - 1, x.shape[1]
        each = self.resample_filter.expand(C, 1, -1, -1)
        if self.up:
            return F.conv_transpose2d(x, 4 * each, stride=2, padding=n, groups=C)
        return F.conv2d(x, each, stride=2, padding=n, groups=C)

    def forward(self, x):
        edge = self.weight.shape[-1] // 2
        if self.fused_resample:
            n = self.resample_filter.shape[-1] // 2 - 1
            y = F.conv2d(x, self.weight, padding=edge + n)
            return (
                F.conv2d(
                    y,
                    self.resample_filter.expand(y.shape[1], 1, -1, -1),
                    stride=2,
                    groups=y.shape[1],
                )
                + self.bias[:, None, None]
            )
        return F.conv2d(
            self.resample(x) if self.up or self.down else x, self.weight, self.bias, padding=edge
        )


class UNetBlock(nn.Module):
    def __init__(self, cin, cout, emb, taps, up=False, down=False, attention=False, dropout=0.13):
        super().__init__()
        self.in_channels, self.out_channels, self.emb_channels, self.num_heads, self.dropout = (
            cin,
            cout,
            emb,
            int(attention),
            dropout,
        )
        self.skip_scale, self.adaptive_scale = np.sqrt(0.5), False
        self.norm0, self.conv0 = GroupNorm(cin), Conv2d(cin, cout, 3, up, down, taps)
        self.affine, self.norm1, self.conv1 = (
            Linear(emb, cout),
            GroupNorm(cout),
            Conv2d(cout, cout, 3),
        )
        self.skip = Conv2d(cin, cout, 1, up, down, taps) if cin != cout or up or down else None
        if attention:
            self.norm2, self.qkv, self.proj = (
                GroupNorm(cout),
                Conv2d(cout, 3 * cout, 1),
                Conv2d(cout, cout, 1),
            )

    def forward(self, x, emb):
        y = self.norm1(self.conv0(F.silu(self.norm0(x))) + self.affine(emb)[..., None, None])
        y = self.conv1(F.dropout(F.silu(y), self.dropout, self.training))
        x = self.skip_scale * (y + (self.skip(x) if self.skip is not None else x))
        if not self.num_heads:
            return x
        q, k, v = self.qkv(self.norm2(x)).reshape(len(x), x.shape[1], 3, -1).unbind(2)
        w = torch.einsum("bci,bcj->bij", q, k / x.shape[1] ** 0.5).softmax(2)
        return self.skip_scale * (
            self.proj(torch.einsum("bij,bcj->bci", w, v).reshape(x.shape)) + x
        )


class PositionalEmbedding(nn.Module):
    def __init__(self, num_channels):
        super().__init__()
        self.num_channels, self.max_positions, self.endpoint = num_channels, 10000, True

    def forward(self, c):
        n = self.num_channels // 2
        a = torch.outer(c, self.max_positions ** -(torch.arange(n, dtype=torch.float32) / (n - 1)))
        return torch.stack([a.sin(), a.cos()], 1).flatten(1)


class FourierEmbedding(nn.Module):
    def __init__(self, num_channels, scale=16):
        super().__init__()
        self.register_buffer("freqs", scale * torch.randn(num_channels // 2))

    def forward(self, c):
        a = torch.outer(c, 2 * np.pi * self.freqs)
        return torch.cat([a.sin(), a.cos()], 1)


class SongUNet(nn.Module):
    def __init__(
        self,
        resolution=8,
        channels=3,
        width=8,
        mult=(1, 2),
        blocks=1,
        attention=(4,),
        labels=0,
        augment=0,
        ncsn=False,
        scale=16,
    ):
        super().__init__()
        self._init_args, self._init_kwargs = (
            (),
            dict(
                img_resolution=resolution,
                in_channels=channels,
                out_channels=channels,
                label_dim=labels,
                augment_dim=augment,
                model_channels=width,
                channel_mult=list(mult),
                num_blocks=blocks,
                attn_resolutions=list(attention),
                dropout=0.13,
                **(
                    dict(
                        embedding_type="fourier",
                        encoder_type="residual",
                        resample_filter=[1, 3, 3, 1],
                        channel_mult_noise=2,
                    )
                    if ncsn
                    else {}
                ),
            ),
        )
        self.label_dropout, noise, emb, taps = (
            0,
            width * (2 if ncsn else 1),
            4 * width,
            (1, 3, 3, 1) if ncsn else (1, 1),
        )
        self.map_noise = FourierEmbedding(noise, scale) if ncsn else PositionalEmbedding(noise)
        self.map_label = Linear(labels, noise) if labels else None
        self.map_augment = Linear(augment, noise, bias=False) if augment else None
        self.map_layer0, self.map_layer1 = Linear(noise, emb), Linear(emb, emb)
        self.enc, self.dec, skips, c, side = nn.ModuleDict(), nn.ModuleDict(), [], width, channels
        kw = dict(emb=emb, taps=taps)
        for i, m in enumerate(mult):
            r = f"{resolution >> i}x{resolution >> i}"
            if i == 0:
                self.enc[f"{r}_conv"] = Conv2d(channels, width, 3)
            else:
                self.enc[f"{r}_down"] = UNetBlock(c, c, down=True, **kw)
                if ncsn:
                    self.enc[f"{r}_aux_residual"] = Conv2d(
                        side, c, 3, down=True, taps=taps, late=True
                    )
                    side = c
            skips.append(c)
            for j in range(blocks):
                self.enc[f"{r}_block{j}"], c = (
                    UNetBlock(c, width * m, attention=resolution >> i in attention, **kw),
                    width * m,
                )
                skips.append(c)
        for i, m in reversed(list(enumerate(mult))):
            r = f"{resolution >> i}x{resolution >> i}"
            if i == len(mult) - 1:
                self.dec[f"{r}_in0"], self.dec[f"{r}_in1"] = (
                    UNetBlock(c, c, attention=True, **kw),
                    UNetBlock(c, c, **kw),
                )
            else:
                self.dec[f"{r}_up"] = UNetBlock(c, c, up=True, **kw)
            for j in range(blocks + 1):
                self.dec[f"{r}_block{j}"], c = (
                    UNetBlock(
                        c + skips.pop(),
                        width * m,
                        attention=j == blocks and resolution >> i in attention,
                        **kw,
                    ),
                    width * m,
                )
        self.dec[f"{r}_aux_norm"], self.dec[f"{r}_aux_conv"] = GroupNorm(c), Conv2d(c, channels, 3)

    def forward(self, x, c, labels=None, augment=None):
        e = self.map_noise(c)
        if self.map_label is not None:
            e = e + self.map_label(
                (torch.zeros(len(x), self.map_label.in_features) if labels is None else labels)
                * self.map_label.in_features**0.5
            )
        if self.map_augment is not None and augment is not None:
            e = e + self.map_augment(augment)
        e = F.silu(self.map_layer1(F.silu(self.map_layer0(e))))
        skips, side = [], x
        for name, part in self.enc.items():
            if "aux_residual" in name:
                x = skips[-1] = side = (x + part(side)) / 2**0.5
            else:
                x = part(x, e) if isinstance(part, UNetBlock) else part(x)
                skips.append(x)
        for name, part in self.dec.items():
            if "block" in name:
                x = torch.cat([x, skips.pop()], 1)
            x = (
                F.silu(part(x))
                if name.endswith("aux_norm")
                else part(x, e)
                if isinstance(part, UNetBlock)
                else part(x)
            )
        return x


class EDMPrecond(nn.Module):
    def __init__(self, model, labels=0, sigma_data=0.5):
        super().__init__()
        (
            self.img_resolution,
            self.img_channels,
            self.label_dim,
            self.use_fp16,
            self.sigma_min,
            self.sigma_max,
            self.sigma_data,
        ) = (8, 3, labels, False, 0, float("inf"), sigma_data)
        self.model = model

    def forward(self, x, t, labels=None, augment=None):
        t = t.reshape(-1, 1, 1, 1)
        total, low = (t**2 + self.sigma_data**2), 0 if self.training else self.boundary()
        out = self.model(x / total.sqrt(), t.flatten().log() / 4, labels, augment)
        return (
            self.sigma_data**2 / ((t - low) ** 2 + self.sigma_data**2) * x
            + (t - low) * self.sigma_data / total.sqrt() * out
        )

    def boundary(self):
        return 0


class ECMPrecond(EDMPrecond):
    def __init__(self, *args, sigma_min=0.003, **kw):
        super().__init__(*args, **kw)
        self.sigma_min = sigma_min

    def boundary(self):
        return self.sigma_min or 0.003


OURS = (
    Linear,
    GroupNorm,
    Conv2d,
    UNetBlock,
    PositionalEmbedding,
    FourierEmbedding,
    SongUNet,
    EDMPrecond,
)

# ---- the container


def _reconstruct_persistent_obj(meta):
    "Stands where EDM's own function does, so that the pickler writes its name."
    raise SystemExit("the pickle was run")


MODULE = types.ModuleType("torch_utils.persistence")
MODULE._reconstruct_persistent_obj = _reconstruct_persistent_obj
_reconstruct_persistent_obj.__module__ = MODULE.__name__


class Pickler(pickle.Pickler):
    source, drop = SOURCE, ()

    def reducer_override(self, obj):
        if not isinstance(obj, OURS):
            return NotImplemented
        state = {k: v for k, v in obj.__dict__.items() if k not in self.drop}
        return (
            _reconstruct_persistent_obj,
            (
                dict(
                    type="class",
                    version=6,
                    module_src=self.source,
                    class_name=type(obj).__name__,
                    state=state,
                ),
            ),
            None,
        )


HOOKS = (
    "_non_persistent_buffers_set",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)  # keys that torch of 2022 did not have, or not all of them


def pickled(obj, protocol=4, drop=HOOKS, tables=True):
    """`obj` as the bytes of a pickle; `tables`: the tables of modules are OrderedDicts, as torch
    had them until 2.4."""
    for m in (obj.get("ema") if isinstance(obj, dict) else obj).modules() if tables else ():
        for key in ("_parameters", "_buffers", "_modules"):
            m.__dict__[key] = OrderedDict(m.__dict__[key])
    buffer, before = (
        io.BytesIO(),
        {k: sys.modules.get(k) for k in ("torch_utils", "torch_utils.persistence")},
    )
    sys.modules.update(
        {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": MODULE}
    )
    sys.modules["torch_utils"].persistence = MODULE
    pickler = Pickler(buffer, protocol)
    pickler.drop = drop
    try:
        pickler.dump(obj)
    finally:
        for k, v in before.items():
            sys.modules.pop(k) if v is None else sys.modules.update({k: v})
    return buffer.getvalue()


def snapshot(ema, **kw):
    return pickled(
        dict(
            ema=ema,
            loss_fn=None,
            augment_pipe=None,
            dataset_kwargs=dict(path="cifar10-32x32.zip", use_labels=False, xflip=False),
        ),
        **kw,
    )


def network(seed=0, precond=EDMPrecond, **kw):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return precond(SongUNet(**kw), labels=kw.get("labels", 0)).eval()
