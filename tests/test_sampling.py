import math
import numpy as np, pytest, torch
from ect_nb.sampling import sample

def seeded(seed): return torch.Generator().manual_seed(seed)

S = 0.5
class Gaussian:
    "The exact consistency map of a Gaussian of standard deviation S: f(x, t) = x S / √(S² + t²)."
    def __init__(self): self.levels = []
    def __call__(self, x, t):
        assert t.shape == (len(x),) and t.dtype == x.dtype and not torch.is_grad_enabled() and (t == t[0]).all()
        self.levels.append(float(t[0]))
        return x * (S / (S**2 + t**2).sqrt()).view(-1, *[1] * (x.ndim - 1))

@pytest.mark.parametrize("shape", [(6,), (6, 2), (6, 3, 4, 4)])
@pytest.mark.parametrize("times", [(80.0,), (80.0, 0.8), (80.0, 5.0, 0.3), [10, 1]])
def test_samples_are_the_algorithm_by_hand(times, shape):
    z = torch.randn(shape, generator=seeded(0), dtype=torch.float64)
    fresh, f = seeded(1), lambda x, t: x * S / math.sqrt(S**2 + t**2)
    x = f(times[0] * z.numpy(), times[0])
    for t in times[1:]: x = f(x + t * torch.randn(shape, generator=fresh, dtype=torch.float64).numpy(), t)
    model = Gaussian()
    found = sample(model, z, times, generator=seeded(1))
    assert np.allclose(found, x, rtol=1e-12) and found.shape == z.shape and found.dtype == z.dtype and model.levels == list(times)

def test_one_step_from_80_is_the_default():
    model, z = Gaussian(), torch.randn(4, 3)
    assert torch.allclose(sample(model, z), z * 80 * S / math.sqrt(S**2 + 6400)) and model.levels == [80.0]

@pytest.mark.parametrize("times", [(80.0,), (80.0, 0.8), (80.0, 2.0, 0.2), (1.0, 0.5)])
def test_exact_steps_give_the_variance_that_noise_and_map_demand(times):
    v = times[0] ** 2 * S**2 / (S**2 + times[0] ** 2)              # of f(t z, t)
    for t in times[1:]: v = (v + t**2) * S**2 / (S**2 + t**2)
    x = sample(Gaussian(), torch.randn(40_000, generator=seeded(2)), times, seeded(3))
    assert x.var() == pytest.approx(v, rel=4 * math.sqrt(2 / 40_000)) and abs(x.mean()) < 4 * math.sqrt(v / 40_000)
    if times[0] == 80: assert x.var() == pytest.approx(S**2, rel=0.03)

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_is_kept_and_the_generator_decides_the_noise(dtype):
    z = torch.randn(5, 2, generator=seeded(4), dtype=dtype)
    draw = lambda seed: sample(Gaussian(), z, (80.0, 0.8), seeded(seed))
    assert draw(1).dtype == dtype and torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    torch.manual_seed(5); first = sample(Gaussian(), z, (80.0, 0.8))
    torch.manual_seed(5); assert torch.equal(sample(Gaussian(), z, (80.0, 0.8)), first)

def test_z_is_left_as_it_was():
    z = torch.ones(3, 2)
    sample(Gaussian(), z, (80.0, 0.8))
    assert (z == 1).all()

@pytest.mark.parametrize("times", [(), (0.8, 80.0), (80.0, 80.0), (80.0, 0.0), (0.0,), (-1.0,), (80.0, -0.5), (80.0, 0.8, 0.9), (math.nan,), (80.0, math.nan)])
def test_wrong_times_are_refused_in_one_sentence(times):
    with pytest.raises(ValueError, match="times must be positive and fall, like"): sample(Gaussian(), torch.zeros(2), times)

@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")),
                                    pytest.param("mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs an Apple GPU"))])
def test_a_generator_on_the_host_gives_the_same_samples_on_any_device(device):
    z = torch.randn(5, 2, generator=seeded(6))
    there = sample(Gaussian(), z.to(device), (80.0, 0.8), seeded(7))
    assert there.device.type == device and torch.allclose(there.cpu(), sample(Gaussian(), z, (80.0, 0.8), seeded(7)), rtol=1e-5)
