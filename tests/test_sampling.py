import math
import numpy as np
import pytest
import torch
from ect_nb import sampling
from ect_nb.sampling import sample


def seeded(seed):
    return torch.Generator().manual_seed(seed)


S = 0.5


class Gaussian:
    "The exact consistency map of a Gaussian of standard deviation S: f(x, t) = x S / √(S² + t²)."

    def __init__(self):
        self.levels = []

    def __call__(self, x, t):
        assert (
            t.shape == (len(x),)
            and t.dtype == x.dtype
            and not torch.is_grad_enabled()
            and (t == t[0]).all()
        )
        self.levels.append(float(t[0]))
        return x * (S / (S**2 + t**2).sqrt()).view(-1, *[1] * (x.ndim - 1))


@pytest.mark.parametrize("shape", [(6,), (6, 2), (6, 3, 4, 4)])
@pytest.mark.parametrize("times", [(80.0,), (80.0, 0.8), (80.0, 5.0, 0.3), [10, 1]])
def test_samples_are_the_algorithm_by_hand(times, shape):
    z = torch.randn(shape, generator=seeded(0), dtype=torch.float64)
    fresh, f = seeded(1), lambda x, t: x * S / math.sqrt(S**2 + t**2)
    x = f(times[0] * z.numpy(), times[0])
    for t in times[1:]:
        x = f(x + t * torch.randn(shape, generator=fresh, dtype=torch.float64).numpy(), t)
    model = Gaussian()
    found = sample(model, z, times, generator=seeded(1))
    assert (
        np.allclose(found, x, rtol=1e-12)
        and found.shape == z.shape
        and found.dtype == z.dtype
        and model.levels == list(times)
    )


def test_one_step_from_80_is_the_default():
    model, z = Gaussian(), torch.randn(4, 3)
    assert torch.allclose(
        sample(model, z), z * 80 * S / math.sqrt(S**2 + 6400)
    ) and model.levels == [80.0]


@pytest.mark.parametrize("times", [(80.0,), (80.0, 0.8), (80.0, 2.0, 0.2), (1.0, 0.5)])
def test_exact_steps_give_the_variance_that_noise_and_map_demand(times):
    v = times[0] ** 2 * S**2 / (S**2 + times[0] ** 2)  # of f(t z, t)
    for t in times[1:]:
        v = (v + t**2) * S**2 / (S**2 + t**2)
    x = sample(Gaussian(), torch.randn(40_000, generator=seeded(2)), times, seeded(3))
    assert x.var() == pytest.approx(v, rel=4 * math.sqrt(2 / 40_000)) and abs(
        x.mean()
    ) < 4 * math.sqrt(v / 40_000)
    if times[0] == 80:
        assert x.var() == pytest.approx(S**2, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_is_kept_and_the_generator_decides_the_noise(dtype):
    z = torch.randn(5, 2, generator=seeded(4), dtype=dtype)
    draw = lambda seed: sample(Gaussian(), z, (80.0, 0.8), seeded(seed))
    assert (
        draw(1).dtype == dtype
        and torch.equal(draw(1), draw(1))
        and not torch.equal(draw(1), draw(2))
    )
    torch.manual_seed(5)
    first = sample(Gaussian(), z, (80.0, 0.8))
    torch.manual_seed(5)
    assert torch.equal(sample(Gaussian(), z, (80.0, 0.8)), first)


def test_z_is_left_as_it_was():
    z = torch.ones(3, 2)
    sample(Gaussian(), z, (80.0, 0.8))
    assert (z == 1).all()


@pytest.mark.parametrize(
    "times",
    [
        (),
        (0.8, 80.0),
        (80.0, 80.0),
        (80.0, 0.0),
        (0.0,),
        (-1.0,),
        (80.0, -0.5),
        (80.0, 0.8, 0.9),
        (math.nan,),
        (80.0, math.nan),
    ],
)
def test_wrong_times_are_refused_in_one_sentence(times):
    with pytest.raises(ValueError, match="times must be positive and fall, like"):
        sample(Gaussian(), torch.zeros(2), times)


@pytest.mark.parametrize(
    "device",
    [
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
    ],
)
def test_a_generator_on_the_host_gives_the_same_samples_on_any_device(device):
    z = torch.randn(5, 2, generator=seeded(6))
    there = sample(Gaussian(), z.to(device), (80.0, 0.8), seeded(7))
    assert there.device.type == device and torch.allclose(
        there.cpu(), sample(Gaussian(), z, (80.0, 0.8), seeded(7)), rtol=1e-5
    )


# Jumps, segments, search

from ect_nb.analytic import GaussianMixture
from ect_nb.diffusion import euler
from ect_nb.sampling import jump, multistep, search_times, segment_map

MIX = GaussianMixture([[-1.0], [0.6]], [0.3, 0.2])


def gaussian_flow(x, t, s):
    "The exact flow of N(0, S²): x √(S² + s²) / √(S² + t²)."
    t, s = (torch.as_tensor(v, dtype=x.dtype).view(-1, *[1] * (x.ndim - 1)) for v in (t, s))
    return x * ((S**2 + s**2) / (S**2 + t**2)).sqrt()


def test_a_jump_stands_on_the_line():
    x, x_hat = torch.randn(2, 5, 3)
    assert (
        torch.equal(jump(x, x_hat, 2.0, 0.0), x_hat)
        and torch.allclose(jump(x, x_hat, 2.0, 2.0), x)
        and torch.allclose(jump(x, x_hat, 2.0, 1.0), (x + x_hat) / 2)
    )


@pytest.mark.parametrize("times", [(80.0,), (80.0, 0.8), (80.0, 5.0, 0.3, 0.1), (2.0, 1.0)])
@pytest.mark.parametrize("shape", [(6,), (6, 2), (3, 1, 4, 4)])
def test_exact_segments_end_where_the_path_ends_however_many(times, shape):
    z = torch.randn(shape, generator=seeded(0), dtype=torch.float64)
    found = multistep(segment_map(gaussian_flow, times), z, times)
    assert (
        torch.allclose(found, z * times[0] * S / math.sqrt(S**2 + times[0] ** 2), rtol=1e-10)
        and found.shape == z.shape
    )


def test_segments_of_a_mixture_land_on_its_path_at_every_time():
    times, z = (80.0, 2.0, 0.5), torch.randn(50, 1, generator=seeded(1), dtype=torch.float64)
    f = segment_map(MIX.transport, times)
    y = jump(80 * z, f(80 * z, torch.full((50,), 80.0)), 80.0, 2.0)
    assert torch.allclose(y, MIX.transport(80 * z, 80.0, 2.0), atol=1e-8)
    assert torch.allclose(multistep(f, z, times), MIX.exact_map(80 * z, 80.0), atol=1e-8)


def test_the_dial_ends_at_the_consistency_map_and_at_the_denoiser():
    x, t = (
        torch.linspace(-3, 3, 41, dtype=torch.float64)[:, None],
        torch.full((41,), 1.0, dtype=torch.float64),
    )
    assert torch.equal(segment_map(MIX.transport, (1.0,))(x, t), MIX.exact_map(x, t))
    gaps = [
        (segment_map(MIX.transport, (1.0, 1 - h))(x, t) - MIX.denoise(x, t)).abs().max()
        for h in (0.1, 0.01, 0.001)
    ]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 0.01


def test_rows_may_stand_in_different_segments():
    x, t = (
        torch.randn(4, 1, dtype=torch.float64),
        torch.tensor([3.0, 2.0, 1.0, 0.2], dtype=torch.float64),
    )
    s = torch.tensor(
        [2.0, 0.5, 0.5, 0.0], dtype=torch.float64
    )  # a boundary belongs to the segment below it
    want = (gaussian_flow(x, t, s) - (s / t)[:, None] * x) / (1 - s / t)[:, None]
    assert torch.allclose(segment_map(gaussian_flow, (80.0, 2.0, 0.5))(x, t), want)


def test_jumps_with_a_denoiser_are_eulers_method():
    z, times = torch.randn(40, 1, generator=seeded(2)), [80.0, 9.0, 1.0, 0.2]
    assert torch.allclose(
        multistep(MIX.denoise, z, times), euler(MIX.denoise, z, [*times, 0.0]), atol=1e-5
    )


def test_jumps_with_the_ideal_denoiser_of_a_gaussian_are_too_narrow():
    z, times = torch.ones(1, dtype=torch.float64), [80.0, 9.0, 1.0, 0.2]
    width = times[0] * math.prod(
        (S**2 + s * t) / (S**2 + t**2) for t, s in zip(times, [*times[1:], 0.0])
    )
    found = float(multistep(lambda x, t: x * S**2 / (S**2 + t**2), z, times))
    assert found == pytest.approx(width, rel=1e-12) and found < S


@pytest.mark.parametrize("times", [(), (0.8, 80.0), (80.0, 0.0), (math.nan,)])
def test_jumps_refuse_wrong_times(times):
    with pytest.raises(ValueError, match="times must be positive and fall, like"):
        multistep(Gaussian(), torch.zeros(2), times)


def blunt(x, t):
    """The exact map of a Gaussian, off by a constant that grows with t, and by another below t =
    0.3."""
    return (
        gaussian_flow(x, t, torch.zeros_like(t))
        + 0.3 * (t > 1).to(x.dtype)
        + 0.5 * (t < 0.3).to(x.dtype)
    )


def test_a_search_finds_what_trying_all_finds():
    z, grid, calls = (
        torch.randn(500, generator=seeded(3), dtype=torch.float64),
        [0.1, 0.2, 0.5, 0.9, 3.0, 9.0],
        [],
    )

    def quality(x):
        calls.append(1)
        return x.mean().abs() + (x.std() - S).abs()

    def value(times):
        return float(quality(sample(blunt, z, times, seeded(5))))

    for n in (1, 2, 3):
        times, found = search_times(blunt, quality, n, z, grid, seed=5)
        assert (
            len(times) == n
            and times[0] == 80
            and list(times) == sorted(times, reverse=True)
            and found == value(times)
        )
        if n == 2:
            assert found == min(value((80.0, t)) for t in grid)
        if n == 3:
            assert found == min(value((80.0, a, b)) for a in grid for b in grid if a > b)


def test_a_search_is_the_same_again_and_leaves_the_global_dice_alone():
    z = torch.randn(100, generator=seeded(4), dtype=torch.float64)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    found = [
        search_times(blunt, lambda x: x.mean().abs(), 3, z, [0.2, 0.5, 2.0], seed=1)
        for _ in range(2)
    ]
    assert found[0] == found[1] and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("n", [0, 4, -1])
def test_a_search_says_how_many_times_it_can_find(n):
    with pytest.raises(ValueError, match="n must be from 1 to 3"):
        search_times(Gaussian(), lambda x: 0.0, n, torch.zeros(3), [0.5, 2.0, 80.0, 0.0])


# ---- networks that want to be told the class


def test_every_row_is_told_a_class_and_other_models_are_left_alone():
    from ect_nb.diffusion import Precond
    from ect_nb.networks import UNet

    torch.manual_seed(0)
    model = Precond(
        UNet(
            resolution=8,
            channels=1,
            model_channels=8,
            channel_mult=(1,),
            num_blocks=1,
            attention=(),
            label_dim=3,
        ),
        0.5,
    ).eval()
    for p in model.parameters():
        p.data.add_(0.2 * torch.randn(p.shape))
    z = torch.randn(7, 1, 8, 8)
    labels = torch.eye(3)[[0, 1, 2, 0, 1, 2, 0]]
    with torch.no_grad():
        by_hand = model(80 * z, torch.full((7,), 80.0), labels=labels)
        assert torch.allclose(
            sampling.sample(sampling.told(model), z), by_hand, atol=1e-5
        ) and not torch.allclose(sampling.sample(model, z), by_hand, atol=1e-2)
    plain = Precond(
        UNet(
            resolution=8,
            channels=1,
            model_channels=8,
            channel_mult=(1,),
            num_blocks=1,
            attention=(),
        ),
        0.5,
    )
    assert sampling.told(plain) is plain and sampling.told(len) is len
