"Metrics: the distance against scipy and closed forms, moments against numpy, the interval against what fresh draws really do, the shipped features against what is stated of them."
import functools, math
import numpy as np
import pytest
import torch
from scipy import linalg
from ect_nb import checkpoints, data, metrics
from ect_nb.metrics import Moments, distance, frechet_distance

normal = lambda seed: np.random.default_rng(seed)

def refusal(f, *args, **kwargs):
    "The message with which `f` raises ValueError: one sentence on one line."
    with pytest.raises(ValueError) as e: f(*args, **kwargs)
    assert "\n" not in str(e.value) and len(str(e.value)) < 300
    return str(e.value)

# The distance of two Gaussians

def spd(rng, d, smallest):
    "A random covariance with eigenvalues from `smallest` to 1."
    q, _ = np.linalg.qr(rng.standard_normal((d, d)))
    return (q * np.geomspace(smallest, 1, d)) @ q.T

@pytest.mark.parametrize("d, smallest", [(1, 1.0), (3, 0.1), (20, 1e-3), (20, 1e-8), (64, 1e-10)])
def test_frechet_is_that_of_sqrtm(d, smallest):
    rng = normal(d)
    c1, c2, m1, m2 = spd(rng, d, smallest), spd(rng, d, smallest), rng.standard_normal(d), rng.standard_normal(d)
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2) - 2 * np.trace(linalg.sqrtm(c1 @ c2).real)
    assert frechet_distance(m1, c1, m2, c2) == pytest.approx(expected, rel=1e-6)

def test_frechet_of_diagonal_gaussians_is_closed_form():
    rng = normal(0)
    m1, m2, s1, s2 = *rng.standard_normal((2, 12)), *rng.random((2, 12))
    s1[0] = s2[1] = 0   # a direction without variance is no obstacle
    assert frechet_distance(m1, np.diag(s1**2), m2, np.diag(s2**2)) == pytest.approx(((m1 - m2)**2 + (s1 - s2)**2).sum(), rel=1e-6)

def test_frechet_of_equals_is_zero_and_it_is_symmetric():
    rng = normal(1)
    m, c, low = rng.standard_normal(30), spd(rng, 30, 1e-6), rng.standard_normal((30, 4))
    assert abs(frechet_distance(m, c, m, c)) < 1e-9
    assert abs(frechet_distance(m, low @ low.T, m, low @ low.T)) < 1e-6 * np.trace(low @ low.T)   # rank 4 of 30: square roots of rounding, 26 times about 1e-8
    d = spd(rng, 30, 1e-3)
    assert frechet_distance(m, c, -m, d) == pytest.approx(frechet_distance(-m, d, m, c), rel=1e-7)

def test_frechet_does_not_depend_on_the_frame():
    "A rotation and a shift of both leave it; a scale of both multiplies it by its square."
    rng = normal(2)
    m1, m2, c1, c2 = rng.standard_normal(9), rng.standard_normal(9), spd(rng, 9, 1e-2), spd(rng, 9, 1e-2)
    q, _ = np.linalg.qr(rng.standard_normal((9, 9)))
    moved = frechet_distance(3 * q @ m1 + 5, 9 * q @ c1 @ q.T, 3 * q @ m2 + 5, 9 * q @ c2 @ q.T)
    assert moved == pytest.approx(9 * frechet_distance(m1, c1, m2, c2), rel=1e-9)

def test_frechet_refuses():
    m, c = torch.zeros(3), torch.eye(3)
    assert "(D, D)" in refusal(frechet_distance, m, c[:2], m, c)
    assert "(D, D)" in refusal(frechet_distance, c, c, m, c)
    assert "dimensions" in refusal(frechet_distance, m, c, m[:2], c[:2, :2])
    assert "symmetric" in refusal(frechet_distance, m, c, m, c + torch.triu(torch.ones(3, 3), 1))
    assert "NaN" in refusal(frechet_distance, m * torch.nan, c, m, c)
    assert "NaN" in refusal(frechet_distance, m, c, m, c / 0)
    for a, b in ((c, -c), (-c, c)): assert "negative eigenvalue" in refusal(frechet_distance, m, a, m, b)

# Moments

ROWS = normal(3).standard_normal((700, 5)) @ normal(4).standard_normal((5, 5)) + 1e4   # far from zero: a sum of squares would lose eight digits

def same(a, b, rel=1e-10):
    assert a.n == b.n
    for u, v in ((a.mean, b.mean), (a.scatter, b.scatter)): assert (u - v).abs().max() <= rel * v.abs().max()

def test_streaming_is_numpy_on_the_whole():
    m = Moments()
    for part in np.split(ROWS, [1, 2, 100, 350]): assert m.update(part) is m
    assert m.n == 700 and m.mean.dtype == m.cov.dtype == torch.float64
    assert np.allclose(m.mean, ROWS.mean(0), rtol=1e-13)
    assert np.allclose(m.cov, np.cov(ROWS.T), rtol=1e-9)   # unbiased, as numpy's default

def test_merge_in_any_order_and_take_out():
    parts = [Moments.of(p) for p in np.split(ROWS, [10, 300])]
    a, b, c = parts
    for whole in (a + b + c, c + (a + b), Moments() + b + c + a): same(whole, Moments.of(ROWS))
    same(a + b + c - b, Moments.of(np.concatenate([ROWS[:10], ROWS[300:]])))
    same(a + Moments(), a)

def test_moments_refuse():
    assert "(B, D)" in refusal(Moments.of, torch.zeros(3))
    bad = torch.zeros(8, 2)
    bad[3] = torch.nan
    assert "1 of 8 rows" in refusal(Moments.of, bad)
    one, two, named = Moments.of(torch.zeros(4, 2)), Moments.of(torch.zeros(4, 3)), Moments.of(torch.zeros(4, 2), "inception")
    assert "same features" in refusal(one.__add__, two) and "inception" in refusal(one.__add__, named)
    assert "taken out" in refusal(one.__sub__, one) and "taken out" in refusal(Moments().__sub__, one)
    with pytest.raises(ValueError, match="2 rows"): Moments.of(torch.zeros(1, 2)).cov

# The interval. Gaussian features, n = 500, 300 draws; what the interval is for is known from 1000 other draws and, without the bias, in closed form.

D, N = 16, 500
SHIFT, SCALE = 0.15, np.linspace(0.8, 1.2, D)
REFERENCE = Moments(10**9, torch.zeros(D).double(), torch.eye(D).double() * (10**9 - 1))
draw = lambda rng: SHIFT + SCALE * rng.standard_normal((N, D))

def plain(x): return frechet_distance(np.zeros(D), np.eye(D), x.mean(0), np.cov(x.T))

@functools.cache
def expected():
    rng = normal(5)
    values = np.array([plain(draw(rng)) for _ in range(1000)])
    return values.mean(), values.std()

@functools.cache
def intervals():
    rng = normal(6)
    return [distance(draw(rng), REFERENCE) for _ in range(300)]

def test_interval_covers_the_expected_distance():
    "Binomial(300, 0.95) is below 270 once in 10,000 times."
    mean, sd = expected()
    covered = np.mean([d.low <= mean <= d.high for d in intervals()])
    half = np.mean([(d.high - d.low) / 2 for d in intervals()])
    assert covered >= 0.90
    assert 0.9 < half / (2.093 * sd) < 1.15   # 2.093: t quantile, 19 degrees of freedom; an interval that covers by being wide is no better

def test_interval_is_centred_and_value_is_the_distance():
    d, x = intervals()[0], draw(normal(6))
    assert d.value == pytest.approx(plain(x), rel=1e-10) and d.n == N
    assert d.low + d.high == pytest.approx(2 * d.value)

def test_bias_is_the_part_owed_to_n():
    "Value less bias has the mean of infinite samples, which is known; the value has not."
    truth = D * SHIFT**2 + ((SCALE - 1)**2).sum()
    error = np.std([d.value for d in intervals()]) / math.sqrt(300)
    assert np.mean([d.value for d in intervals()]) - truth > 5 * error   # the bias is there to be found
    assert abs(np.mean([d.value - d.bias for d in intervals()]) - truth) < 3 * error

def test_percentile_bootstrap_would_fail():
    "The reason for the jackknife: resampling with replacement adds a second helping of bias, so its percentile interval sits too high (it covers about one time in three here)."
    rng, mean, covered = normal(7), expected()[0], []
    for _ in range(40):
        x = draw(normal(1000 + len(covered)))
        boot = [plain(x[rng.integers(0, N, N)]) for _ in range(60)]
        covered.append(np.quantile(boot, 0.025) <= mean <= np.quantile(boot, 0.975))
    assert np.mean(covered) < 0.70

def test_interval_knows_no_order():
    "Samples sorted by class get the interval of shuffled ones, within the noise of 20 groups: slices would make it several times too wide, every 20th too narrow."
    x, rng = draw(normal(8)), normal(9)
    x[:, 0] += 6 * (rng.random(N) < 0.2)
    ordered, shuffled = distance(x[x[:, 0].argsort()], REFERENCE), distance(x, REFERENCE)
    assert ordered.value == pytest.approx(shuffled.value, rel=1e-10)
    assert 0.6 < (ordered.high - ordered.low) / (shuffled.high - shuffled.low) < 1.6

def test_distance_refuses():
    x = torch.zeros(100, D)
    assert "5 features" in refusal(distance, x[:, :5], REFERENCE)
    assert "40 samples" in refusal(distance, x[:39], REFERENCE)
    assert "groups" in refusal(distance, x, REFERENCE, groups=1)
    x[7, 2] = torch.nan
    assert "1 of 100 rows" in refusal(distance, x, REFERENCE)

# The shipped features

@functools.cache
def held_out(): return data.load("fashion_mnist_20k", split="test")

@functools.cache
def held_out_features(): return metrics.features(metrics.small_features(), held_out())

def test_classifier_is_as_good_as_stated():
    path = data.find("fashion_mnist_classifier.safetensors")
    facts = checkpoints.header(path)["provenance"]
    right = (checkpoints.load(path).head(held_out_features().relu()).argmax(1) == held_out().labels).sum().item()   # features come before the ReLU
    assert right / 2000 == pytest.approx(facts["test_accuracy"], abs=1 / 2000)   # one picture on the edge may fall to either side on another machine
    assert facts["test_accuracy"] >= 0.9 and facts["seed"] == 0 and facts["seconds"] > 0 and facts["command"].startswith("python tools/make_fashion_classifier.py")

def test_features_do_not_depend_on_the_batch():
    network, some = metrics.small_features(), held_out().subset(30)
    a, b = metrics.features(network, some, batch=7), metrics.features(network, some.batch(torch.arange(30)), batch=30)
    assert a.dtype == torch.float32 and a.shape == (30, 64) and torch.equal(a, metrics.features(network, some, batch=7))
    for other in (b, held_out_features()[:30]): assert (a - other).abs().max() < 1e-5 * a.abs().max()
    assert metrics.small_features() is network and network.name == "fashion_mnist_classifier_64"

def test_shipped_reference_is_that_of_the_training_pictures():
    "Against 1,000 of them forward: a random part of the whole lies where the whole says."
    train, network = data.load("fashion_mnist_20k"), metrics.small_features()
    m = metrics.reference(train, network)
    assert m.n == 20000 and m.features == network.name
    part = metrics.features(network, train.subset(torch.randperm(20000, generator=torch.Generator().manual_seed(0))[:1000])).double()
    z = (part.mean(0) - m.mean) / (m.cov.diagonal() / 1000).sqrt()
    assert z.abs().max() < 4.5 and 0.6 < z.std() < 1.5
    assert np.allclose(part.var(0) / m.cov.diagonal(), 1, atol=0.25)

def test_reference_is_read_only_for_the_same_pictures_and_weights(monkeypatch, tmp_path):
    network, some = metrics.small_features(), held_out().subset(50)
    computed = metrics.reference(some, network)
    assert computed.n == 50 and computed.features == network.name
    same(computed, metrics.save_reference(tmp_path / "fashion_mnist_statistics.safetensors", some, network))
    monkeypatch.setattr(data, "find", lambda path, folders=None: tmp_path / path)
    monkeypatch.setattr(metrics, "features", lambda *_: pytest.fail("the stored moments were not used"))
    same(metrics.reference(some, network), computed)
    with pytest.raises(pytest.fail.Exception): metrics.reference(held_out().subset(49), network)

def test_floor_is_small_and_noise_is_far():
    reference = metrics.reference(data.load("fashion_mnist_20k"), metrics.small_features())
    floor = distance(held_out_features(), reference)
    noise = distance(metrics.features(metrics.small_features(), torch.randn(200, 1, 28, 28, generator=torch.Generator().manual_seed(0))), reference)
    assert floor.high < 0.05 * reference.cov.trace()   # against the variance of the pictures themselves
    assert noise.low > 20 * floor.high
    assert floor.features == "fashion_mnist_classifier_64" and "FID" not in str(floor)

def test_features_refuse():
    network = metrics.small_features()
    assert "(1, 28, 28)" in refusal(metrics.features, network, torch.zeros(2, 3, 32, 32))
    assert "floats" in refusal(metrics.features, network, held_out().images[:2])
    assert "eval" in refusal(metrics.features, torch.nn.Flatten(), torch.zeros(2, 1, 28, 28))
    assert "small" in refusal(metrics.small_features, "cifar10")
    assert metrics.features(lambda x: x.flatten(1), torch.zeros(5, 1, 2, 2), batch=2).shape == (5, 4)   # any callable does
