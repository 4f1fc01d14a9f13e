"""What f(x, t) may be: whatever a network returns is compared with what went in, whatever labels
and dtypes come are taken or refused in a sentence."""

import pytest
import torch
import warnings
from ect_nb.diffusion import Precond, denoising_loss, euler, heun, karras_times
from ect_nb.losses import ect_loss
from ect_nb.networks import MLP, UNet, answer
from ect_nb.sampling import multistep, sample, segment_map
from torch import nn


def small(**kw):
    torch.manual_seed(0)
    net = UNet(
        **dict(
            resolution=16,
            channels=1,
            model_channels=8,
            channel_mult=(1, 2),
            num_blocks=1,
            attention=(),
        )
        | kw
    )
    for p in net.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.1)
    return net


class Net(nn.Module):
    "A network that answers what `f` makes of x."

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x, c):
        return self.f(x)


class Out:
    def __init__(self, x):
        self.sample = x


BAD = [
    (
        lambda x: x.mean(1, keepdim=True),
        r"gave \(4, 1, 8, 8\) for x of shape \(4, 3, 8, 8\): f\(x, t\) must have the shape of x",
    ),
    (lambda x: x[..., :4], r"gave \(4, 3, 8, 4\) for x of shape"),
    (lambda x: x.flatten(1), r"gave \(4, 192\)"),
    (lambda x: x[:1], r"gave \(1, 3, 8, 8\)"),
    (lambda x: Out(x), "class Out where .* returns its `.sample`"),
    (lambda x: (x, x), "class tuple .* returns the tensor alone"),
    (lambda x: None, "class NoneType"),
]

USES = dict(
    model=lambda f, x: f(x, 1.0),
    denoising=lambda f, x: denoising_loss(f, x, torch.ones(4), torch.randn_like(x)),
    ect=lambda f, x: ect_loss(f, x, torch.ones(4), torch.full((4,), 0.5), torch.randn_like(x)),
    at_zero=lambda f, x: ect_loss(f, x, torch.ones(4), torch.zeros(4), torch.randn_like(x)),
    sample=lambda f, x: sample(f, torch.randn_like(x)),
    heun=lambda f, x: heun(f, torch.randn_like(x), karras_times(3)),
    multistep=lambda f, x: multistep(f, torch.randn_like(x)),
)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("f, said", BAD)
def test_an_answer_of_another_shape_or_kind_is_one_sentence_wherever_a_model_is_asked(
    use, wrapped, f, said
):
    model = Precond(Net(f)) if wrapped else lambda x, t: f(x)
    if use == "model" and not wrapped:
        pytest.skip("nothing of the kit is asked")
    with pytest.raises(ValueError, match=said):
        USES[use](model, torch.rand(4, 3, 8, 8))


def test_a_column_answered_as_a_row_is_refused_not_spread_over_five_by_five():
    with pytest.raises(ValueError, match=r"gave \(5,\) for x of shape \(5, 1\)"):
        sample(Precond(Net(lambda x: x.squeeze(-1))), torch.randn(5, 1))


def test_a_right_answer_is_given_back_as_it_is():
    y = torch.rand(2, 3)
    assert answer(y, torch.zeros(2, 3)) is y


# ---- dtypes: x of any precision, a network of any precision


@pytest.mark.parametrize("outer", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("inner", [torch.float64, torch.float32, torch.bfloat16])
def test_an_input_of_any_precision_meets_a_network_of_any_precision(outer, inner):
    f, x = Precond(small()), torch.rand(3, 1, 16, 16) * 2 - 1
    want = f(x, torch.full((3,), 0.7))
    got = Precond(f.net.to(inner))(x.to(outer), torch.full((3,), 0.7))
    rough = outer.itemsize < 4 or inner == torch.bfloat16
    assert got.dtype == outer and (got.double() - want).abs().max() < (0.06 if rough else 2e-6)


def test_the_path_of_float32_is_what_it_was_bit_for_bit():
    f, x, t = (
        Precond(small(), sigma_data=0.4),
        torch.randn(3, 1, 16, 16),
        torch.tensor([0.1, 1.0, 80.0]),
    )
    s, d = t.view(-1, 1, 1, 1), 0.4
    var = s**2 + d**2
    want = x / (1 + (s / d) ** 2) + s * d / var.sqrt() * f.net(x / var.sqrt(), t.log() / 4)
    assert torch.equal(f(x, t), want)


# ---- labels


@pytest.mark.parametrize(
    "classes",
    [torch.tensor([0, 2, 1]), torch.tensor([0, 2, 1], dtype=torch.uint8), torch.eye(3)[[0, 2, 1]]],
)
def test_labels_are_numbers_or_rows_by_position_or_name(classes):
    f, x = Precond(small(label_dim=3)), torch.randn(3, 1, 16, 16)
    want = f(x, 2.0, labels=torch.eye(3)[[0, 2, 1]])
    assert torch.equal(f(x, 2.0, classes), want) and torch.equal(f(x, 2.0, labels=classes), want)
    assert not torch.equal(want, f(x, 2.0, torch.tensor([1, 1, 1])))


@pytest.mark.parametrize(
    "labels, said",
    [
        (torch.tensor([1, 2, 3]), "run from 1 to 3, and this network wants 0 to 2"),
        (torch.tensor([-1, 0, 1]), "run from -1 to 1"),
        (torch.tensor([0.0, 1.0, 2.0]), "must be class numbers"),
        (torch.eye(4)[:3], r"one-hot rows \(B, 3\)"),
    ],
)
def test_labels_that_fit_no_class_are_refused_with_their_range(labels, said):
    with pytest.raises(ValueError, match=said):
        small(label_dim=3)(torch.randn(3, 1, 16, 16), torch.zeros(3), labels)


def test_a_network_without_classes_refuses_labels():
    with pytest.raises(ValueError, match="not told classes"):
        small()(torch.randn(2, 1, 16, 16), torch.zeros(2), torch.tensor([0, 1]))


def test_samplers_pass_labels_on_and_warn_where_a_class_is_wanted_and_none_is_told():
    f, z, k = Precond(small(label_dim=3)), torch.randn(3, 1, 16, 16), torch.tensor([0, 2, 1])
    by_hand = lambda x, t: f(x, t, k)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for run in (
            sample,
            multistep,
            lambda g, z, **kw: heun(g, z, [80.0, 1.0, 0.0], **kw),
            lambda g, z, **kw: euler(g, z, [80.0, 1.0], **kw),
        ):
            assert torch.equal(run(f, z, labels=k), run(by_hand, z))
    with pytest.warns(UserWarning, match="wants one of 3 classes and is told none"):
        sample(f, z)


# ---- shapes that a network takes, settings that make one


@pytest.mark.parametrize(
    "shape", [(2, 1, 15, 15), (2, 1, 16, 17), (2, 3, 16, 16), (2, 16, 16), (2, 1, 16)]
)
def test_the_unet_says_which_pictures_it_takes(shape):
    with pytest.raises(ValueError, match=r"takes \(B, 1, H, W\) with H and W multiples of 2"):
        small()(torch.randn(shape), torch.zeros(2))


def test_the_unet_takes_what_is_not_square():
    assert small()(torch.randn(2, 1, 32, 24), torch.zeros(2)).shape == (2, 1, 32, 24)


def test_the_mlp_says_what_it_takes():
    with pytest.raises(ValueError, match=r"takes \(B, 2\)"):
        MLP(2)(torch.randn(4, 1), torch.zeros(4))


@pytest.mark.parametrize(
    "bad",
    [
        dict(patch=0),
        dict(model_channels=0),
        dict(channel_mult=[]),
        dict(channel_mult=[0, 1]),
        dict(num_blocks=0),
        dict(channels=-1),
        dict(resolution=0),
        dict(num_blocks=1.5),
        dict(model_channels="8"),
    ],
)
def test_settings_that_make_no_unet_are_named(bad):
    with pytest.raises(
        ValueError, match=f"{next(iter(bad))} is .*: it must be a whole number above 0"
    ):
        small(**bad)


@pytest.mark.parametrize("bad", [dict(dim=0), dict(width=0), dict(depth=0)])
def test_settings_that_make_no_mlp_are_named(bad):
    with pytest.raises(ValueError, match="must be a whole number above 0"):
        MLP(**bad)


@pytest.mark.parametrize(
    "bad",
    [
        dict(t_min=-1.0),
        dict(t_min=0.0),
        dict(t_max=float("inf")),
        dict(rho=0.0),
        dict(t_min=5.0, t_max=2.0),
        dict(rho=float("nan")),
    ],
)
def test_a_grid_of_nonsense_is_refused(bad):
    with pytest.raises(ValueError, match="needs 0 < t_min <= t_max and rho > 0"):
        karras_times(4, **bad)


@pytest.mark.parametrize(
    "t, eps", [((4,), (4, 1)), ((4,), (1, 2)), ((1,), (4, 2)), ((4, 1), (4, 2))]
)
def test_the_denoising_loss_refuses_what_would_be_spread(t, eps):
    with pytest.raises(ValueError, match="eps must have the shape of x0"):
        denoising_loss(lambda x, t: x, torch.zeros(4, 2), torch.ones(t), torch.ones(eps))


# ---- an export keeps its rows free


def test_exported_with_eight_rows_and_used_with_two():
    f = Precond(small(attention=(8,))).eval()

    def rows(n):
        return torch.randn(n, 1, 16, 16), torch.full((n,), 2.0)

    free = torch.export.Dim("b", min=1, max=64)
    exported = torch.export.export(f, rows(8), dynamic_shapes=({0: free}, {0: free})).module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(f, rows(8), check_trace=False)
    for n in (1, 2, 13):
        x, t = rows(n)
        assert torch.equal(exported(x, t), f(x, t)) and torch.allclose(
            traced(x, t), f(x, t), atol=1e-6
        )


def test_a_conditional_network_and_an_mlp_export_too():
    free = torch.export.Dim("b", min=1, max=64)
    for f, args in (
        (
            Precond(small(label_dim=3)).eval(),
            lambda n: (
                torch.randn(n, 1, 16, 16),
                torch.full((n,), 2.0),
                torch.eye(3)[torch.arange(n) % 3],
            ),
        ),
        (Precond(MLP(2, 8, 2)).eval(), lambda n: (torch.randn(n, 2), torch.full((n,), 2.0))),
    ):
        exported = torch.export.export(
            f, args(8), dynamic_shapes=tuple({0: free} for _ in args(1))
        ).module()
        five = args(5)
        assert torch.allclose(exported(*five), f(*five), atol=1e-6)


def test_a_segment_map_takes_one_level_for_all_rows():
    segments = segment_map(lambda x, t, s: x, (80.0, 1.0))
    assert segments(torch.randn(3, 2), 5.0).shape == (3, 2)
