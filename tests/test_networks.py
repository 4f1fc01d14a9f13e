import hashlib
import json
import math
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ect_nb.analytic import GaussianMixture
from ect_nb.diffusion import Precond
from ect_nb.networks import (
    MLP,
    NCSNPP,
    Block,
    Classifier,
    Conv2d,
    Dropout,
    FourierEmbedding,
    PositionalEmbedding,
    UNet,
    shared_dropout,
    shares_dropout,
)
from torch import nn

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    ),
    pytest.param(
        "mps",
        marks=pytest.mark.skipif(
            not torch.backends.mps.is_available(), reason="needs an Apple GPU"
        ),
    ),
]


def rand(*shape, seed=0, **kw):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **kw)


def small(**kw):
    return UNet(
        **{
            **dict(
                resolution=8,
                channels=2,
                model_channels=16,
                channel_mult=(1, 2),
                num_blocks=2,
                attention=(8,),
                dropout=0.0,
            ),
            **kw,
        }
    )


def shaken(net, std=0.15):
    "Every tensor random, so that no layer hides behind a small start."
    g = torch.Generator().manual_seed(1)
    for name, p in net.named_parameters():
        p.data = std * torch.randn(p.shape, generator=g) + (
            1 if "norm" in name and name.endswith("weight") else 0
        )
    return net


# ---- the U-Net, against EDM's tensors and against a second implementation


def meta(**kw):
    with torch.device("meta"):
        return UNet(**kw)


def test_the_tensors_of_the_cifar10_network_are_those_of_edm():
    shapes = {k: tuple(v.shape) for k, v in meta().state_dict().items()}
    assert len(shapes) == 424 and sum(k.endswith("resample_filter") for k in shapes) == 8
    named = {
        "map_layer0.weight": (512, 128),
        "map_layer0.bias": (512,),
        "map_layer1.weight": (512, 512),
        "enc.32x32_conv.weight": (128, 3, 3, 3),
        "enc.32x32_block0.conv0.weight": (256, 128, 3, 3),
        "enc.32x32_block0.skip.weight": (256, 128, 1, 1),
        "enc.32x32_block0.affine.weight": (256, 512),
        "enc.16x16_block3.qkv.weight": (768, 256, 1, 1),
        "enc.16x16_down.conv0.resample_filter": (1, 1, 2, 2),
        "enc.8x8_down.skip.weight": (256, 256, 1, 1),
        "dec.8x8_in0.qkv.weight": (768, 256, 1, 1),
        "dec.16x16_block4.proj.weight": (256, 256, 1, 1),
        "dec.32x32_up.conv0.weight": (256, 256, 3, 3),
        "dec.8x8_block0.conv0.weight": (256, 512, 3, 3),
        "dec.32x32_block4.conv0.weight": (256, 384, 3, 3),
        "dec.32x32_aux_norm.weight": (256,),
        "dec.32x32_aux_conv.weight": (3, 256, 3, 3),
    }
    assert {k: shapes.get(k) for k in named} == named
    assert (
        not {
            "dec.8x8_in1.qkv.weight",
            "dec.16x16_block3.qkv.weight",
            "enc.32x32_block1.skip.weight",
            "map_augment.weight",
            "map_label.weight",
        }
        & shapes.keys()
    )
    listing = "\n".join(
        sorted(f"{k} {'x'.join(map(str, s))}" for k, s in shapes.items())
    )  # the whole list, as read from the published network
    assert (
        hashlib.sha256(listing.encode()).hexdigest()
        == "cd1f035c34532dad714b6401ef7b63e1665884943a1f30d9c4aaac165f5702ba"
    )


@pytest.mark.parametrize(
    "kw, tensors, parameters",
    [
        ({}, 424, 55_732_739),
        (dict(augment_dim=9), 425, 55_733_891),
        (dict(label_dim=10, augment_dim=9), 427, 55_735_299),
        (dict(label_dim=10), 426, 55_732_739 + 11 * 128),
        (NCSNPP, 431, 56_395_523),
        (NCSNPP | dict(augment_dim=9), 432, 56_397_827),
    ],
    ids=str,
)
def test_the_sizes_of_the_cifar10_networks_are_the_published_ones(kw, tensors, parameters):
    net = meta(**kw)
    assert (
        len(net.state_dict()) == tensors and sum(p.numel() for p in net.parameters()) == parameters
    )


def test_ncsnpp_adds_two_convolutions_and_the_frequencies_to_the_tensors_of_ddpmpp():
    plain, other = (
        {k: tuple(v.shape) for k, v in meta(augment_dim=9, label_dim=10, **kw).state_dict().items()}
        for kw in ({}, NCSNPP)
    )
    assert {k: s for k, s in other.items() if k not in plain} == {
        "map_noise.freqs": (128,),
        "enc.16x16_aux_residual.weight": (256, 3, 3, 3),
        "enc.16x16_aux_residual.bias": (256,),
        "enc.16x16_aux_residual.resample_filter": (1, 1, 4, 4),
        "enc.8x8_aux_residual.weight": (256, 256, 3, 3),
        "enc.8x8_aux_residual.bias": (256,),
        "enc.8x8_aux_residual.resample_filter": (1, 1, 4, 4),
    }
    filters = {
        f"{place}.{part}.resample_filter": (1, 1, 4, 4)
        for place in ("enc.16x16_down", "enc.8x8_down", "dec.16x16_up", "dec.32x32_up")
        for part in ("conv0", "skip")
    }
    assert {k: s for k, s in other.items() if k in plain and s != plain[k]} == filters | {
        "map_layer0.weight": (512, 256),
        "map_label.weight": (256, 10),
        "map_label.bias": (256,),
        "map_augment.weight": (256, 9),
    }
    assert plain.keys() <= other.keys()


def test_the_filter_is_1_3_3_1_each_way_and_sums_to_one():
    row = np.array([1, 3, 3, 1]) / 8
    filters = [v for k, v in small(**NCSNPP).state_dict().items() if k.endswith("resample_filter")]
    assert len(filters) == 5 and all(np.array_equal(f[0, 0], row[:, None] * row) for f in filters)


def by_hand(w, config, x, c, labels=None, augment=None):
    """DDPM++ and NCSN++ as Karras et al. 2022 (Table 7, App. F) describe them, from the tensors `w`
    by elementary operations in float64."""
    w, x, c = {k: v.double() for k, v in w.items()}, x.double(), c.double()
    silu = lambda a: a / (1 + torch.exp(-a))

    def linear(name, a):
        return a @ w[name + ".weight"].T + w.get(name + ".bias", 0)

    def norm(name, a):
        B, C, H, W = a.shape
        g = a.reshape(B, min(32, C // 4), -1)
        g = (g - g.mean(2, keepdim=True)) / (g.var(2, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return g.reshape(a.shape) * w[name + ".weight"].view(-1, 1, 1) + w[name + ".bias"].view(
            -1, 1, 1
        )

    tap = config.get("resample", [1, 1])
    taps = [(i, j, p * q / sum(tap) ** 2) for i, p in enumerate(tap) for j, q in enumerate(tap)]

    def down(a, pad=len(tap) // 2 - 1):
        "Each new pixel gathers from those around it."
        a = F.pad(a, [pad] * 4)
        H, W = ((m - len(tap)) // 2 + 1 for m in a.shape[-2:])
        return sum(p * a[:, :, i : i + 2 * H : 2, j : j + 2 * W : 2] for i, j, p in taps)

    def up(a, pad=len(tap) // 2 - 1):
        "Each old pixel gives to those around it, four times as much in all."
        B, C, H, W = a.shape
        out = a.new_zeros(B, C, 2 * (H + pad), 2 * (W + pad))
        for i, j, p in taps:
            out[:, :, i : i + 2 * H : 2, j : j + 2 * W : 2] += 4 * p * a
        return out[:, :, pad : pad + 2 * H, pad : pad + 2 * W]

    def conv(name, a, kind=""):
        if kind == "up":
            a = up(a)
        if kind == "down":
            a = down(a)
        k = w[name + ".weight"]
        n, out = k.shape[-1], 0
        pad = n // 2 + (len(tap) // 2 - 1 if kind == "late" else 0)
        a = F.pad(a, [pad] * 4)
        size = [m - n + 1 for m in a.shape[-2:]]
        for i in range(n):
            for j in range(n):
                out = out + torch.einsum(
                    "oc,bchw->bohw", k[:, :, i, j], a[:, :, i : i + size[0], j : j + size[1]]
                )
        return (down(out, 0) if kind == "late" else out) + w[name + ".bias"].view(-1, 1, 1)

    def block(name, a, emb):
        kind = name.rsplit("_", 1)[1]
        h = conv(name + ".conv0", silu(norm(name + ".norm0", a)), kind)
        h = silu(norm(name + ".norm1", h + linear(name + ".affine", emb)[:, :, None, None]))
        h = conv(name + ".conv1", h)
        a = (h + (conv(name + ".skip", a, kind) if name + ".skip.weight" in w else a)) / math.sqrt(
            2
        )
        if name + ".qkv.weight" in w:
            B, C, H, W = a.shape
            z = conv(name + ".qkv", norm(name + ".norm2", a)).reshape(B, 3 * C, H * W)
            q, k, v = (
                z[:, 0::3],
                z[:, 1::3],
                z[:, 2::3],
            )  # interleaved: channel 3 i is the i-th of q
            weights = torch.exp(torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(C))
            h = torch.einsum("bqk,bck->bcq", weights / weights.sum(2, keepdim=True), v).reshape(
                B, C, H, W
            )
            a = (a + conv(name + ".proj", h)) / math.sqrt(2)
        return a

    half = config["model_channels"] * config.get("noise_width", 1) // 2
    omega = (
        2 * math.pi * w["map_noise.freqs"]
        if "map_noise.freqs" in w
        else 10000.0 ** -(torch.arange(half, dtype=torch.float64) / (half - 1))
    )
    angle = c[:, None] * omega
    e = torch.cat([angle.sin(), angle.cos()], 1)
    if labels is not None:
        e = e + linear("map_label", labels.double() * math.sqrt(labels.shape[1]))
    if augment is not None:
        e = e + linear("map_augment", augment.double())
    e = silu(linear("map_layer1", silu(linear("map_layer0", e))))
    sizes = [config["resolution"] >> i for i in range(len(config["channel_mult"]))]
    aux, skips = x, []
    for i, s in enumerate(sizes):
        x = conv(f"enc.{s}x{s}_conv", x) if i == 0 else block(f"enc.{s}x{s}_down", x, e)
        if i and config.get("encoder") == "residual":
            x = aux = (x + conv(f"enc.{s}x{s}_aux_residual", aux, "late")) / math.sqrt(2)
        skips.append(x)
        for j in range(config["num_blocks"]):
            x = block(f"enc.{s}x{s}_block{j}", x, e)
            skips.append(x)
    for i, s in enumerate(sizes[::-1]):
        for part in ["in0", "in1"] if i == 0 else ["up"]:
            x = block(f"dec.{s}x{s}_{part}", x, e)
        for j in range(config["num_blocks"] + 1):
            x = block(f"dec.{s}x{s}_block{j}", torch.cat([x, skips.pop()], 1), e)
    return conv(f"dec.{s}x{s}_aux_conv", silu(norm(f"dec.{s}x{s}_aux_norm", x)))


@pytest.mark.parametrize(
    "kw",
    [
        {},
        dict(label_dim=3, augment_dim=5),
        dict(attention=(4,), channel_mult=(2, 1, 2)),
        dict(model_channels=160, channel_mult=(1,), num_blocks=1),
        NCSNPP,
        NCSNPP | dict(channel_mult=(1, 2, 2), label_dim=3, augment_dim=5),
        dict(embedding="fourier"),
        dict(encoder="residual", channel_mult=(2, 1, 2)),
        dict(resample=(1, 3, 3, 1), channel_mult=(1, 2, 1)),
        dict(noise_width=2),
    ],
    ids=str,
)
def test_the_unet_computes_what_the_paper_describes(kw):
    net = shaken(small(**kw)).double()
    x, c = rand(2, 2, 8, 8), torch.tensor([-1.5, 0.9])
    extra = (
        dict(labels=F.one_hot(torch.tensor([0, 2]), 3), augment=rand(2, 5))
        if kw.get("label_dim")
        else {}
    )
    config = dict(resolution=8, model_channels=16, channel_mult=(1, 2), num_blocks=2) | kw
    wanted = by_hand(net.state_dict(), config, x, c, **extra)
    assert wanted.std() > 0.05 and torch.allclose(
        net(x.double(), c.double(), **extra), wanted, rtol=1e-6, atol=1e-7
    )  # frequencies are float32
    assert torch.allclose(net.float()(x, c, **extra).double(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_fused_attention_is_the_explicit_softmax(heads):
    block = shaken(Block(16, 16, 8, attention=True, heads=heads), 0.4)
    x = rand(2, 16, 4, 4)
    z = block.qkv(block.norm2(x)).flatten(2)
    found = []
    for h in range(heads):  # head h has channels 48 / heads each, q, k, v interleaved
        q, k, v = (z[:, 48 // heads * h + i : 48 // heads * (h + 1) : 3] for i in range(3))
        weights = torch.softmax(torch.einsum("bcq,bck->bqk", q, k / math.sqrt(16 // heads)), dim=2)
        found.append(torch.einsum("bqk,bck->bcq", weights, v))
    wanted = block.proj(torch.cat(found, 1).reshape(x.shape))
    assert (
        wanted.std() > 0.1
        and weights.std() > 0.01
        and torch.allclose(block.attend(x), wanted, rtol=1e-4, atol=1e-5)
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kw", [{}, NCSNPP, NCSNPP | dict(patch=2)], ids=str)
def test_channels_last_gives_the_same_answer_and_gradient(kw, device):
    net, x, c = (
        shaken(small(**kw)).to(device),
        rand(2, 2, 8, 8).to(device),
        torch.tensor([-1.0, 0.5], device=device),
    )
    wanted = net(x, c)
    grads = torch.autograd.grad(wanted.square().sum(), list(net.parameters()))
    net = net.to(memory_format=torch.channels_last)
    found = net(x.to(memory_format=torch.channels_last), c)
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4)
    for a, b in zip(torch.autograd.grad(found.square().sum(), list(net.parameters())), grads):
        assert (a - b).norm() <= 1e-3 * b.norm() + 1e-5


@pytest.mark.parametrize("kw", [dict(patch=2, label_dim=3), NCSNPP], ids=["ddpmpp", "ncsnpp"])
def test_the_network_is_one_graph_to_the_compiler(kw):
    net, x, c = shaken(small(num_blocks=1, **kw)), rand(2, 2, 8, 8), torch.tensor([-1.0, 0.5])
    compiled = torch.compile(
        net, backend="eager", fullgraph=True
    )  # fullgraph: an error wherever it would have to break
    assert torch.allclose(compiled(x, c), net(x, c), rtol=1e-4, atol=1e-5)


def test_the_longer_filter_is_bilinear():
    """Another implementation: torch's interpolation, with antialiasing on the way down; it treats
    the border otherwise."""
    x, inside = rand(2, 5, 8, 12), (..., slice(1, -1), slice(1, -1))
    blank = lambda **way: Conv2d(5, 5, 1, resample=(1, 3, 3, 1), **way)
    larger, smaller = blank(up=True).double(x), blank(down=True).halve(x, 1)
    assert larger.shape == (2, 5, 16, 24) and torch.allclose(
        larger[inside], F.interpolate(x, scale_factor=2, mode="bilinear")[inside], atol=1e-6
    )
    assert smaller.shape == (2, 5, 4, 6) and torch.allclose(
        smaller[inside],
        F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)[inside],
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "kw, named",
    [
        (dict(embedding="sines"), ("embedding='sines'", "'fourier'")),
        (dict(encoder="skip"), ("encoder='skip'", "'residual'")),
        (dict(resample=(1, 2, 1)), ("resample=[1, 2, 1]", "[1, 3, 3, 1]")),
        (dict(noise_width=3), ("noise_width=3", "1 or 2")),
    ],
)
def test_a_setting_outside_the_family_is_named_with_the_choices(kw, named):
    with pytest.raises(ValueError) as e:
        small(**kw)
    assert all(word in str(e.value) for word in named) and str(e.value).count("\n") == 0


def test_labels_augmentation_and_noise_level_all_count():
    net, x, c = shaken(small(label_dim=3, augment_dim=2)), rand(1, 2, 8, 8), torch.zeros(1)
    one = lambda i: F.one_hot(torch.tensor([i]), 3)
    outs = [
        net(x, c, one(0)),
        net(x, c, one(1)),
        net(x, c + 1, one(0)),
        net(x, c, one(0), torch.ones(1, 2)),
    ]
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(outs) for b in outs[:i])


@pytest.mark.parametrize(
    "kw",
    [
        dict(patch=2),
        dict(patch=3, resolution=12, channel_mult=(1, 2)),
        dict(patch=3, resolution=9, channel_mult=(1,)),
        dict(patch=5, resolution=20),
        dict(channels=1, patch=3, resolution=6),
        dict(model_channels=48),
        dict(model_channels=40),
        dict(model_channels=12),
        dict(model_channels=4, channel_mult=(1, 3)),
        dict(channel_mult=(1,)),
        dict(attention=()),
        NCSNPP,
        NCSNPP | dict(channel_mult=(1,)),
        NCSNPP | dict(resolution=16, channel_mult=(1, 2, 1, 3), num_blocks=1),
        NCSNPP | dict(resolution=12, channels=3, patch=3),
        NCSNPP | dict(model_channels=40, attention=(4, 8), num_blocks=3),
        dict(resolution=32, channel_mult=(1, 1, 1, 1, 1, 1), num_blocks=1),
    ],
    ids=str,
)
def test_odd_settings_work_and_every_weight_learns(kw):
    net = shaken(small(**kw))
    C, R = net.config["channels"], net.config["resolution"]
    y = net(rand(2, C, R, R), torch.tensor([-1.0, 0.5]))
    y.square().sum().backward()
    assert (
        y.shape == (2, C, R, R)
        and torch.isfinite(y).all()
        and all(
            p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters() if p.numel() > 1
        )
    )


def test_patches_become_channels_and_come_back():
    net, x, c = (
        shaken(small(patch=2)).double(),
        rand(3, 2, 8, 8).double(),
        torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64),
    )
    folded = (
        x.reshape(3, 2, 4, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).reshape(3, 8, 4, 4)
    )  # channel, row in the patch, column in the patch
    y = by_hand(
        net.state_dict(),
        dict(resolution=4, model_channels=16, channel_mult=(1, 2), num_blocks=2),
        folded,
        c,
    )
    assert torch.allclose(
        net(x, c),
        y.reshape(3, 2, 2, 2, 4, 4).permute(0, 1, 4, 2, 5, 3).reshape(3, 2, 8, 8),
        rtol=1e-6,
        atol=1e-7,
    )


def test_rows_do_not_see_each_other():
    for net, shape in (
        (shaken(small()), (2, 8, 8)),
        (MLP(2, 16, 2), (2,)),
        (Classifier(2).eval(), (2, 8, 8)),
    ):
        x, c = rand(6, *shape), rand(6, seed=1)
        args = lambda i: (x[i],) if isinstance(net, Classifier) else (x[i], c[i])
        assert torch.allclose(
            net(*args(slice(None)))[[4, 1]], net(*args([4, 1])), rtol=1e-4, atol=1e-5
        )


def test_a_new_network_starts_near_zero_so_that_the_model_starts_as_its_skip():
    torch.manual_seed(0)
    x, t = rand(4, 2, 8, 8), torch.tensor([0.01, 0.5, 2.0, 80.0])
    skip = (0.25 / (0.25 + t**2)).view(-1, 1, 1, 1) * x
    assert torch.allclose(Precond(small())(x, t), skip, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype, near", [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
@pytest.mark.parametrize("kw", [dict(patch=2), NCSNPP | dict(patch=2)], ids=["ddpmpp", "ncsnpp"])
def test_a_low_precision_body_keeps_float32_outside_and_stays_close(kw, dtype, near, device):
    net = shaken(small(**kw)).to(device)
    model, x, t = (
        Precond(net),
        rand(4, 2, 8, 8).to(device),
        torch.tensor([0.05, 0.5, 2.0, 20.0], device=device),
    )
    exact = model(x, t)
    net.body, seen = dtype, []
    net.map_layer1.register_forward_hook(
        lambda layer, inputs, output: seen.append((inputs[0].dtype, output.dtype))
    )
    y = model(x, t)
    assert (
        y.dtype == torch.float32
        and not torch.equal(y, exact)
        and (y - exact).norm() < near * exact.norm()
    )
    y.sum().backward()
    assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in net.parameters())
    assert seen == [(torch.float32, torch.float32)]  # the embedding of the noise level


def test_the_config_makes_the_same_network_again():
    for net in (
        small(label_dim=3, patch=2, dropout=0.2),
        small(**NCSNPP),
        small(resample=[1, 3, 3, 1]),
        MLP(3, 7, 2, 0.1),
        Classifier(3, 5, 8),
    ):
        twin = type(net)(**json.loads(json.dumps(net.config)))
        assert twin.config == net.config and {k: v.shape for k, v in twin.state_dict().items()} == {
            k: v.shape for k, v in net.state_dict().items()
        }


def test_the_config_names_only_what_is_not_ddpmpp():
    assert (
        not NCSNPP.keys() & small().config.keys()
        and small(embedding="positional", resample=[1, 1]).config == small().config
    )
    assert small(**NCSNPP).config == small().config | NCSNPP | dict(resample=[1, 3, 3, 1])


# ---- small parts


def test_the_fourier_embedding_turns_random_frequencies_that_belong_to_the_weights():
    torch.manual_seed(0)
    layer, c = FourierEmbedding(4096), torch.tensor([-0.7, 0.3])
    freqs = layer.state_dict()["freqs"].double().numpy()
    assert (
        freqs.shape == (2048,)
        and freqs.std() == pytest.approx(16, rel=4 / math.sqrt(2 * 2048))
        and abs(freqs.mean()) < 4 * 16 / math.sqrt(2048)
    )
    angle = 2 * np.pi * np.array([-0.7, 0.3])[:, None] * freqs
    assert (
        np.allclose(layer(c), np.hstack([np.sin(angle), np.cos(angle)]), atol=1e-4)
        and layer.double()(c.double()).dtype == torch.float64
    )
    layer.load_state_dict(dict(freqs=torch.ones(2048)))
    assert torch.allclose(
        layer(torch.tensor([0.25])),
        torch.cat([torch.ones(1, 2048), torch.zeros(1, 2048)], 1),
        atol=1e-6,
    )


@pytest.mark.parametrize("n", [4, 32, 128])
def test_the_embedding_is_sines_then_cosines(n):
    c = np.array([-3.0, 0.0, 0.7, 1.1])
    angle = c[:, None] / 10000 ** (np.arange(n // 2) / (n // 2 - 1))
    assert np.allclose(
        PositionalEmbedding(n)(torch.tensor(c)),
        np.hstack([np.sin(angle), np.cos(angle)]),
        atol=1e-6,
    )


def test_the_mlp_is_its_layers_in_order():
    net = MLP(2, 8, 2).double()
    x, c = rand(5, 2, dtype=torch.float64).numpy(), rand(5, seed=1, dtype=torch.float64).numpy()
    angle = 8 * c[:, None] / 10000 ** (np.arange(16) / 15)
    h = np.hstack([x, c[:, None], np.sin(angle), np.cos(angle)])
    weights = [p.detach().numpy() for p in net.parameters()]
    for i in range(0, len(weights), 2):
        h = h @ weights[i].T + weights[i + 1]
        if i < len(weights) - 2:
            h = h / (1 + np.exp(-h))
    assert len(weights) == 6 and np.allclose(
        net(torch.tensor(x), torch.tensor(c)).detach(), h, atol=1e-6
    )


@pytest.mark.parametrize("channels, size", [(1, 28), (3, 32), (1, 5)])
def test_the_classifier_tells_four_pictures_apart_and_shows_its_features(channels, size):
    torch.manual_seed(0)
    net, x, y = Classifier(channels, 4, 16), rand(4, channels, size, size), torch.arange(4)
    assert net(x).shape == (4, 4) and net.features(x).shape == (4, 16)
    for _ in range(15):
        loss = F.cross_entropy(net(x), y)
        for p, g in zip(net.parameters(), torch.autograd.grad(loss, net.parameters())):
            p.data -= 0.1 * g
    assert loss < 0.5 * math.log(4) and torch.equal(
        net.eval()(x), net.head(net.features(x).clamp(min=0))
    )


# ---- dropout that two passes can share


def test_alone_it_is_ordinary_dropout():
    x = rand(1000)
    for p in (0.0, 0.3, 1.0):
        torch.manual_seed(0)
        ours = Dropout(p)(x)
        torch.manual_seed(0)
        assert torch.equal(ours, nn.Dropout(p)(x))
    assert torch.equal(Dropout(0.5).eval()(x), x)


@pytest.mark.parametrize("device", DEVICES)
def test_a_second_pass_repeats_the_masks_of_its_rows(device):
    net = nn.Sequential(Dropout(0.3), nn.Sequential(Dropout(0.5)), nn.Tanh())
    x = torch.ones(6, 400, device=device)
    with shared_dropout(net) as tape:
        first = net(x)
        tape.replay()
        assert torch.equal(net(x), first)
        tape.replay(torch.tensor([4, 1], device=device))
        assert torch.equal(net(x[:2]), first[[4, 1]])
        tape.replay(torch.tensor([0], device=device))
        assert torch.equal(net(x[:1]), first[:1])
    assert not torch.equal(net(x), net(x))
    assert (first > 0).float().mean() == pytest.approx(0.35, abs=0.04)  # 4 sigma of 2400 draws


def test_shared_masks_keep_the_mean_and_follow_the_generator():
    layer, x = Dropout(0.3), torch.ones(200, 200, requires_grad=True)

    def draw(seed):
        with shared_dropout(layer, torch.Generator().manual_seed(seed)):
            return layer(x)

    y = draw(0)
    assert float(y.detach().mean()) == pytest.approx(
        1, abs=4 * math.sqrt(0.3 / 0.7 / 40_000)
    ) and set(y.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.7)}
    assert torch.equal(draw(0), y) and not torch.equal(draw(1), y)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_an_error_inside_gives_the_layers_back():
    layer = Dropout(0.5)
    with pytest.raises(KeyError):
        with shared_dropout(layer):
            raise KeyError
    assert layer.keep is None


def test_only_networks_whose_every_die_is_ours_say_so():
    class Mine(nn.Module):
        pass

    assert shares_dropout(MLP()) and shares_dropout(Precond(MLP())) and shares_dropout(small())
    assert not any(map(shares_dropout, (nn.Dropout(0.5), Mine(), Precond(Mine()), lambda x, t: x)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_toy_network_learns_a_denoiser_quickly(seed):
    """Trained for a few hundred steps it is much nearer to the ideal denoiser than the best linear
    one, where that one is wrong."""
    mixture = GaussianMixture([[-1.1], [0.1], [1.2]], [0.12, 0.05, 0.08], [0.40, 0.25, 0.35])
    torch.manual_seed(seed)
    f = Precond(MLP(width=64), sigma_data=1.0)
    adam = torch.optim.Adam(f.parameters(), lr=3e-3)
    for _ in range(400):
        x0, t = mixture.sample(256), torch.randn(256).mul(2).exp()
        x_t = x0 + t[:, None] * torch.randn_like(x0)
        ((f(x_t, t) - x0).square().sum(1) * (1 + 1 / t**2)).mean().backward()
        adam.step()
        adam.zero_grad()
    x0, t = mixture.sample(2000), torch.logspace(-1, 0, 2000)
    x_t = x0 + t[:, None] * torch.randn_like(x0)
    wrong = lambda y: float((y - mixture.denoise(x_t, t)).square().mean().sqrt())
    assert wrong(f(x_t, t).detach()) < 0.6 * wrong(x_t / (1 + t[:, None] ** 2))
