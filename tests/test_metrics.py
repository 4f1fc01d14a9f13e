"""Metrics: the distance against scipy and closed forms, moments against numpy, the interval against
what fresh draws really do, the shipped features against what is stated of them."""

import functools
import json
import math
import numpy as np
import pytest
import subprocess
import sys
import torch
from ect_nb.io import data, weights
from ect_nb.measure import features, metrics
from ect_nb.measure.features import INCEPTION, FeatureNetwork
from ect_nb.measure.metrics import (
    Moments,
    Share,
    distance,
    extrapolate,
    frechet_distance,
    measure,
    memorised,
    nearest,
    precision_recall,
    reference,
)
from pathlib import Path
from scipy import linalg

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ECT_NB_CACHE", str(tmp_path / "cache"))


normal = lambda seed: np.random.default_rng(seed)


def refusal(f, *args, **kwargs):
    "The message with which `f` raises ValueError: one sentence on one line."
    with pytest.raises(ValueError) as e:
        f(*args, **kwargs)
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
    c1, c2, m1, m2 = (
        spd(rng, d, smallest),
        spd(rng, d, smallest),
        rng.standard_normal(d),
        rng.standard_normal(d),
    )
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2) - 2 * np.trace(linalg.sqrtm(c1 @ c2).real)
    assert frechet_distance(m1, c1, m2, c2) == pytest.approx(expected, rel=1e-6)


def test_frechet_is_clean_fids():
    "clean-fid's own function, where SciPy still has what it calls."
    import inspect

    if "disp" not in inspect.signature(linalg.sqrtm).parameters:
        pytest.skip(
            "clean-fid 0.1.35 calls scipy.linalg.sqrtm(disp=False), which this SciPy has no more"
        )
    from cleanfid.fid import frechet_distance as theirs

    rng = normal(11)
    m1, m2, c1, c2 = (
        rng.standard_normal(40),
        rng.standard_normal(40),
        spd(rng, 40, 1e-4),
        spd(rng, 40, 1e-4),
    )
    assert frechet_distance(m1, c1, m2, c2) == pytest.approx(theirs(m1, c1, m2, c2), rel=1e-8)


def test_frechet_with_fewer_samples_than_dimensions():
    """Singular covariances, as 40 samples of 2,048 features have: by the singular values of the
    centred rows, without any square root of a matrix."""
    rng = normal(12)
    x, y = rng.standard_normal((30, 80)), 0.5 + rng.standard_normal((25, 80))
    a, b = ((v - v.mean(0)) / math.sqrt(len(v) - 1) for v in (x, y))
    expected = (
        ((x.mean(0) - y.mean(0)) ** 2).sum()
        + (a**2).sum()
        + (b**2).sum()
        - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum()
    )
    assert frechet_distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T)) == pytest.approx(
        expected, rel=1e-6
    )


def test_frechet_of_diagonal_gaussians_is_closed_form():
    rng = normal(0)
    m1, m2, s1, s2 = *rng.standard_normal((2, 12)), *rng.random((2, 12))
    s1[0] = s2[1] = 0  # a direction without variance is no obstacle
    assert frechet_distance(m1, np.diag(s1**2), m2, np.diag(s2**2)) == pytest.approx(
        ((m1 - m2) ** 2 + (s1 - s2) ** 2).sum(), rel=1e-6
    )


def test_frechet_of_equals_is_zero_and_it_is_symmetric():
    rng = normal(1)
    m, c, low = rng.standard_normal(30), spd(rng, 30, 1e-6), rng.standard_normal((30, 4))
    assert abs(frechet_distance(m, c, m, c)) < 1e-9
    assert abs(frechet_distance(m, low @ low.T, m, low @ low.T)) < 1e-6 * np.trace(
        low @ low.T
    )  # rank 4 of 30: square roots of rounding, 26 times about 1e-8
    d = spd(rng, 30, 1e-3)
    assert frechet_distance(m, c, -m, d) == pytest.approx(frechet_distance(-m, d, m, c), rel=1e-7)


def test_frechet_does_not_depend_on_the_frame():
    "A rotation and a shift of both leave it; a scale of both multiplies it by its square."
    rng = normal(2)
    m1, m2, c1, c2 = (
        rng.standard_normal(9),
        rng.standard_normal(9),
        spd(rng, 9, 1e-2),
        spd(rng, 9, 1e-2),
    )
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
    for a, b in ((c, -c), (-c, c)):
        assert "negative eigenvalue" in refusal(frechet_distance, m, a, m, b)


# Moments

ROWS = (
    normal(3).standard_normal((700, 5)) @ normal(4).standard_normal((5, 5)) + 1e4
)  # far from zero: a sum of squares would lose eight digits


def same(a, b, rel=1e-10):
    assert a.n == b.n
    for u, v in ((a.mean, b.mean), (a.scatter, b.scatter)):
        assert (u - v).abs().max() <= rel * v.abs().max()


def test_streaming_is_numpy_on_the_whole():
    m = Moments()
    for part in np.split(ROWS, [1, 2, 100, 350]):
        assert m.update(part) is m
    assert m.n == 700 and m.mean.dtype == m.cov.dtype == torch.float64
    assert np.allclose(m.mean, ROWS.mean(0), rtol=1e-13)
    assert np.allclose(m.cov, np.cov(ROWS.T), rtol=1e-9)  # unbiased, as numpy's default


def test_merge_in_any_order_and_take_out():
    parts = [Moments.of(p) for p in np.split(ROWS, [10, 300])]
    a, b, c = parts
    for whole in (a + b + c, c + (a + b), Moments() + b + c + a):
        same(whole, Moments.of(ROWS))
    same(a + b + c - b, Moments.of(np.concatenate([ROWS[:10], ROWS[300:]])))
    same(a + Moments(), a)


PAIR = """
import sys, time, numpy as np, torch
from pathlib import Path
from ect_nb.io import data
from ect_nb.measure import metrics
from ect_nb.measure.features import FeatureNetwork
from ect_nb.measure.metrics import Moments
out, name, compute = Path(sys.argv[1]), sys.argv[2], metrics.moments
rows, m = np.load(out / f"{name}.npy"), Moments(features="f")
for part in np.array_split(rows, 7): m.update(part)
m.save(out / f"half-{name}.safetensors")
def slowly(*a):
    with (out / "computed").open("a") as f: f.write("x")
    time.sleep(1)
    return compute(*a)
metrics.moments = slowly
torch.manual_seed(0)
network = FeatureNetwork(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 3)), "eye")
pictures = data.load("fashion_mnist_20k", split="test").subset(40)
(out / name).write_text("ready")
while not all((out / n).exists() for n in "ab"): time.sleep(0.01)
metrics.reference(pictures, network, out / "cache").save(out / f"{name}.safetensors")
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder of two processes: each takes the moments of one part of `ROWS`, and then both ask
    for one reference at the same time."""
    home = tmp_path_factory.mktemp("pair")
    for name, part in zip("ab", np.split(ROWS, [260])):
        np.save(home / f"{name}.npy", part)
    running = [subprocess.Popen([sys.executable, "-c", PAIR, home, n], cwd=ROOT) for n in "ab"]
    assert [p.wait(timeout=120) for p in running] == [0, 0]
    return home


def test_two_processes_add_up(pair):
    a, b = (Moments.load(pair / f"half-{n}.safetensors") for n in "ab")
    assert (a.n, b.n, a.features) == (260, 440, "f") and a.mean.dtype == torch.float64
    same(a + b, Moments.of(ROWS, "f"))


def test_damaged_moments_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    Moments.of(ROWS).save(path)
    same(Moments.load(path), Moments.of(ROWS))
    whole = path.read_bytes()
    for damaged in (whole[:-9], b"", b"<html>", whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        assert "write it again" in refusal(Moments.load, path)


def test_moments_refuse():
    assert "(B, D)" in refusal(Moments.of, torch.zeros(3))
    bad = torch.zeros(8, 2)
    bad[3] = torch.nan
    assert "1 of 8 rows" in refusal(Moments.of, bad)
    one, two, named = (
        Moments.of(torch.zeros(4, 2)),
        Moments.of(torch.zeros(4, 3)),
        Moments.of(torch.zeros(4, 2), "inception"),
    )
    assert "same features" in refusal(one.__add__, two) and "inception" in refusal(
        one.__add__, named
    )
    assert "taken out" in refusal(one.__sub__, one) and "taken out" in refusal(
        Moments().__sub__, one
    )
    with pytest.raises(ValueError, match="2 rows"):
        Moments.of(torch.zeros(1, 2)).cov


# The interval. Gaussian features, n = 500, 300 draws; what the interval is for is known from 1000
# other draws and, without the bias, in closed form.

D, N = 16, 500
SHIFT, SCALE = 0.15, np.linspace(0.8, 1.2, D)
REFERENCE = Moments(10**9, torch.zeros(D).double(), torch.eye(D).double() * (10**9 - 1))
draw = lambda rng: SHIFT + SCALE * rng.standard_normal((N, D))


def plain(x):
    return frechet_distance(np.zeros(D), np.eye(D), x.mean(0), np.cov(x.T))


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
    assert (
        0.9 < half / (2.093 * sd) < 1.15
    )  # 2.093: t quantile, 19 degrees of freedom; covering by being wide is no better


def test_interval_is_centred_and_value_is_the_distance():
    d, x = intervals()[0], draw(normal(6))
    assert d.value == pytest.approx(plain(x), rel=1e-10) and d.n == N
    assert d.low + d.high == pytest.approx(2 * d.value)


def test_bias_is_the_part_owed_to_n():
    "Value less bias has the mean of infinite samples, which is known; the value has not."
    truth = D * SHIFT**2 + ((SCALE - 1) ** 2).sum()
    error = np.std([d.value for d in intervals()]) / math.sqrt(300)
    assert (
        np.mean([d.value for d in intervals()]) - truth > 5 * error
    )  # the bias is there to be found
    assert abs(np.mean([d.value - d.bias for d in intervals()]) - truth) < 3 * error


def test_extrapolation_reaches_the_truth_and_covers_it():
    """FD∞ from 500 samples in 16 features: its mean is the distance of infinite samples, which is
    known, and its interval is for that."""
    rng, truth = normal(10), D * SHIFT**2 + ((SCALE - 1) ** 2).sum()
    ends = [extrapolate(draw(rng), REFERENCE, parts=3) for _ in range(30)]
    values = np.array([e.value for e in ends])
    assert abs(values.mean() - truth) < 3.5 * values.std() / math.sqrt(30)
    covered = sum(e.low <= truth <= e.high for e in ends)
    assert covered >= 24  # binomial(30, 0.95) is below 24 once in 1,700 times
    half = np.mean([(e.high - e.low) / 2 for e in ends])
    assert 0.8 < half / (2.093 * values.std()) < 1.25
    assert (
        ends[0].metric == "FD∞"
        and str(ends[0]).startswith("FD∞ ")
        and ends[0].n == N
        and ends[0].bias == 0
    )


def test_extrapolation_is_the_line_by_hand():
    x = torch.from_numpy(draw(normal(13)))
    shuffled = x[torch.randperm(N, generator=torch.Generator().manual_seed(0))].numpy()
    means = [np.mean([plain(p) for p in (shuffled[j::k] for j in range(k))]) for k in (1, 2, 3)]
    assert extrapolate(x, REFERENCE, parts=3).value == pytest.approx(
        np.polyfit([1 / N, 2 / N, 3 / N], means, 1)[1], rel=1e-8
    )


def test_only_the_real_thing_is_called_fid():
    def title(features, n, n_reference):
        return metrics._title(
            Moments(n_reference, torch.zeros(2).double(), torch.eye(2).double(), features), n
        )

    fid, clean = f"{INCEPTION}_legacy_tensorflow", f"{INCEPTION}_clean"
    assert (
        title(fid, 50_000, 50_000),
        title(clean, 50_000, 50_000),
        title("dinov2_vitl14", 50_000, 50_000),
    ) == ("FID", "clean-FID", "FD-DINOv2")
    for name, n, n_reference in (
        (fid, 10_000, 50_000),
        (fid, 50_000, 10_000),
        (fid + "_converted", 50_000, 50_000),
        ("fashion_mnist_classifier_64", 50_000, 60_000),
    ):
        assert title(name, n, n_reference) == "FD"
    assert (
        distance(
            draw(normal(14)), Moments(REFERENCE.n, REFERENCE.mean, REFERENCE.scatter, fid)
        ).metric
        == "FD"
    )


def test_percentile_bootstrap_would_fail():
    """The reason for the jackknife: resampling with replacement adds a second helping of bias, so
    its percentile interval sits too high (it covers about one time in three here)."""
    rng, mean, covered = normal(7), expected()[0], []
    for _ in range(40):
        x = draw(normal(1000 + len(covered)))
        boot = [plain(x[rng.integers(0, N, N)]) for _ in range(60)]
        covered.append(np.quantile(boot, 0.025) <= mean <= np.quantile(boot, 0.975))
    assert np.mean(covered) < 0.70


def test_interval_knows_no_order():
    """Samples sorted by class get the interval of shuffled ones, within the noise of 20 groups:
    slices would make it several times too wide, every 20th too narrow."""
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
def held_out():
    return data.load("fashion_mnist_20k", split="test")


@functools.cache
def held_out_features():
    return metrics.features(features.small_features(), held_out())


def test_classifier_is_as_good_as_stated():
    path = data.find("fashion_mnist_classifier.safetensors")
    facts = weights.header(path)["provenance"]
    right = (
        (weights.load(path).head(held_out_features().relu()).argmax(1) == held_out().labels)
        .sum()
        .item()
    )  # features come before the ReLU
    assert right / 2000 == pytest.approx(
        facts["test_accuracy"], abs=1 / 2000
    )  # one picture on the edge may fall to either side on another machine
    assert (
        facts["test_accuracy"] >= 0.9
        and facts["seed"] == 0
        and facts["seconds"] > 0
        and facts["command"].startswith("python tools/make_fashion_classifier.py")
    )


def test_features_do_not_depend_on_the_batch():
    network, some = features.small_features(), held_out().subset(30)
    a, b = (
        metrics.features(network, some, batch=7),
        metrics.features(network, some.batch(torch.arange(30)), batch=30),
    )
    assert (
        a.dtype == torch.float32
        and a.shape == (30, 64)
        and torch.equal(a, metrics.features(network, some, batch=7))
    )
    for other in (b, held_out_features()[:30]):
        assert (a - other).abs().max() < 1e-5 * a.abs().max()
    assert features.small_features() is network and network.name == "fashion_mnist_classifier_64"


def test_shipped_reference_is_that_of_the_training_pictures():
    "Against 1,000 of them forward: a random part of the whole lies where the whole says."
    train, network = data.load("fashion_mnist_20k"), features.small_features()
    m = metrics.reference(train, network)
    assert m.n == 20000 and m.features == network.name
    part = metrics.features(
        network,
        train.subset(torch.randperm(20000, generator=torch.Generator().manual_seed(0))[:1000]),
    ).double()
    z = (part.mean(0) - m.mean) / (m.cov.diagonal() / 1000).sqrt()
    assert z.abs().max() < 4.5 and 0.6 < z.std() < 1.5
    assert np.allclose(part.var(0) / m.cov.diagonal(), 1, atol=0.25)


def test_reference_is_read_only_for_the_same_pictures_and_weights(monkeypatch, tmp_path):
    network, some = features.small_features(), held_out().subset(50)
    computed = metrics.reference(some, network)
    assert computed.n == 50 and computed.features == network.name
    same(
        computed,
        metrics.save_reference(tmp_path / "fashion_mnist_statistics.safetensors", some, network),
    )
    monkeypatch.setattr(data, "find", lambda path, folders=None: tmp_path / path)
    monkeypatch.setattr(
        metrics, "features", lambda *_: pytest.fail("the stored moments were not used")
    )
    same(metrics.reference(some, network), computed)
    with pytest.raises(pytest.fail.Exception):
        metrics.reference(held_out().subset(49), network)


def test_floor_is_small_and_noise_is_far():
    reference = metrics.reference(data.load("fashion_mnist_20k"), features.small_features())
    floor = distance(held_out_features(), reference)
    noise = distance(
        metrics.features(
            features.small_features(),
            torch.randn(200, 1, 28, 28, generator=torch.Generator().manual_seed(0)),
        ),
        reference,
    )
    assert (
        floor.high < 0.05 * reference.cov.trace()
    )  # against the variance of the pictures themselves
    assert noise.low > 20 * floor.high
    assert floor.features == "fashion_mnist_classifier_64" and "FID" not in str(floor)


def test_features_refuse():
    network = features.small_features()
    assert "(1, 28, 28)" in refusal(metrics.features, network, torch.zeros(2, 3, 32, 32))
    assert "floats" in refusal(metrics.features, network, held_out().images[:2])
    assert "eval" in refusal(metrics.features, torch.nn.Flatten(), torch.zeros(2, 1, 28, 28))
    assert "small" in refusal(features.small_features, "imagenet64")
    assert metrics.features(lambda x: x.flatten(1), torch.zeros(5, 1, 2, 2), batch=2).shape == (
        5,
        4,
    )  # any callable does


# The cache


def eye(name="eye", seed=0):
    torch.manual_seed(seed)
    return FeatureNetwork(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 3)), name)


def counted(monkeypatch):
    "How often the features of whole sets were computed."
    calls, compute = [], metrics.moments
    monkeypatch.setattr(metrics, "moments", lambda *a, **kw: calls.append(1) or compute(*a, **kw))
    return calls


def test_moments_stream():
    some = held_out().subset(90)
    same(metrics.moments(eye(), some, batch=4), Moments.of(metrics.features(eye(), some)), rel=1e-6)
    same(
        metrics.moments(eye(), some.batch(torch.arange(90)), batch=4),
        metrics.moments(eye(), some),
        rel=1e-6,
    )


def test_reference_is_computed_once_for_data_weights_and_name(monkeypatch, tmp_path):
    calls, some = counted(monkeypatch), held_out().subset(40)
    first = reference(some, eye())
    same(reference(held_out().subset(40), eye()), first)
    assert len(calls) == 1 and first.features == "eye"
    for pictures, network in (
        (held_out().subset(39), eye()),
        (some, eye(seed=1)),
        (some, eye("eye, enlarged otherwise")),
    ):
        calls.clear()
        reference(pictures, network), reference(pictures, network)
        assert len(calls) == 1
    calls.clear()
    reference(some, eye(), tmp_path / "elsewhere")
    assert len(calls) == 1 and len(list((tmp_path / "elsewhere").glob("*.safetensors"))) == 1
    assert (
        reference(some, lambda x: x.flatten(1)[:, :4]).n == 40
    )  # a plain function has no checksum: never cached


@pytest.mark.parametrize(
    "damage", [lambda b: b[:200], lambda b: b"", lambda b: b[:-1] + bytes([b[-1] ^ 1])]
)
def test_damaged_cache_is_computed_anew(damage, monkeypatch, tmp_path):
    some = held_out().subset(40)
    first = reference(some, eye())
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match="damaged: the statistics are computed anew"):
        same(reference(some, eye()), first)
    calls = counted(monkeypatch)
    same(reference(some, eye()), first)
    assert not calls and not list((tmp_path / "cache").glob(".*.tmp"))


def test_damaged_shipped_statistics_are_computed(monkeypatch, tmp_path):
    some = held_out().subset(40)
    (tmp_path / "fashion_mnist_statistics.safetensors").write_bytes(b"cut")
    monkeypatch.setattr(data, "find", lambda path, folders=None: tmp_path / path)
    with pytest.warns(UserWarning, match="write it again"):
        assert reference(some, eye()).n == 40


def test_no_room_for_the_cache(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="ECT_NB_CACHE"):
        assert reference(held_out().subset(40), eye(), tmp_path / "file").n == 40


def test_two_processes_compute_once(pair):
    assert (pair / "computed").read_text() == "x"
    a, b = (Moments.load(pair / f"{n}.safetensors") for n in "ab")
    assert torch.equal(a.mean, b.mean) and torch.equal(a.scatter, b.scatter)
    same(a, metrics.moments(eye(), held_out().subset(40)), rel=1e-6)


# Precision, recall, copies


def by_hand(real, made, k):
    "Kynkäänniemi et al. 2019, equation 2, in loops."

    def inside(points, centres):
        radius = [
            sorted(math.dist(c, o) for j, o in enumerate(centres) if j != i)[k - 1]
            for i, c in enumerate(centres)
        ]
        return np.mean([any(math.dist(p, c) <= r for c, r in zip(centres, radius)) for p in points])

    return inside(made, real), inside(real, made)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_precision_recall_is_brute_force(k):
    real, made = (
        normal(20).standard_normal((60, 4)),
        0.7 + 1.3 * normal(21).standard_normal((60, 4)),
    )
    p, r = precision_recall(real, made, k)
    assert (p.value, r.value) == by_hand(real.tolist(), made.tolist(), k) and 0 < p.value < 1


def test_precision_recall_of_known_cases():
    x = normal(22).standard_normal((300, 3))
    value = lambda real, made: tuple(s.value for s in precision_recall(real, made))
    assert value(x, x) == (1, 1) and value(x, x + 100) == (0, 0)
    two = np.concatenate([x[:150], x[150:] + 50])  # two heaps; the model makes one of them
    p, r = value(two, np.concatenate([x[:150], x[:150] + 1e-3]))
    assert p > 0.98 and 0.4 < r <= 0.5
    assert (
        value(x, np.repeat(x[:10], 30, 0))[0] == 1
        and value(x, np.repeat(x[:10], 30, 0))[1] == 10 / 300
    )  # copies of ten: balls of radius 0
    p, r = value(x, 6 * x)
    assert p < 0.2 and r > 0.8  # too wide: poor pictures that surround the real ones


def test_precision_recall_refuses():
    x = torch.zeros(20, 3)
    assert (
        "as many" in refusal(precision_recall, x, x[:19])
        and "k is 20" in refusal(precision_recall, x, x, k=20)
        and "k is 0" in refusal(precision_recall, x, x, k=0)
    )


def test_share_is_wilsons():
    s = Share.of(torch.arange(100) < 10)
    assert (
        (s.value, s.n) == (0.1, 100)
        and s.low == pytest.approx(0.0552, abs=1e-4)
        and s.high == pytest.approx(0.1744, abs=1e-4)
    )
    none = Share.of(torch.zeros(50, dtype=torch.bool))
    assert none.value == none.low == 0 and none.high == pytest.approx(0.0714, abs=1e-3)


def test_nearest_is_brute_force():
    x, others = (
        torch.randn(70, 1, 3, 3, generator=torch.Generator().manual_seed(0)),
        torch.randn(90, 1, 3, 3, generator=torch.Generator().manual_seed(1)),
    )
    d, i = nearest(x, others)
    all_pairs = (x[:, None] - others[None]).double().flatten(2).norm(dim=2)
    assert torch.equal(i, all_pairs.argmin(1)) and torch.allclose(d, all_pairs.min(1).values)
    assert nearest(others[5:6] + 1e-5, others)[1].item() == 5


def test_memorised():
    "Fresh rows: the share that was asked for. A tenth copied: a tenth more."
    g = torch.Generator().manual_seed(0)
    train, held_out, fresh = (torch.randn(n, 8, generator=g) for n in (2000, 2000, 2000))
    assert memorised(fresh, train, held_out, at=0.05).value == pytest.approx(0.05, abs=0.02)
    fresh[:200] = train[:200] + 1e-3
    copied = memorised(fresh, train, held_out, at=0.01)
    assert copied.value == pytest.approx(0.11, abs=0.01) and copied.low > 0.05
    assert "hold out more" in refusal(memorised, fresh, train, held_out[:100])


# Records


class Constant(torch.nn.Module):
    "A consistency model that answers with its input made small, and counts its calls."

    def __init__(self):
        super().__init__()
        self.gain, self.calls = torch.nn.Parameter(torch.tensor(0.5)), 0

    def forward(self, x, t):
        self.calls += 1
        return self.gain * x / t.view(-1, 1, 1, 1)


SCHEMA = [
    "run",
    "data",
    "network",
    "parameters",
    "init",
    "kimg",
    "nfe",
    "times",
    "metric",
    "features",
    "value",
    "low",
    "high",
    "n_samples",
    "seconds",
    "device",
    "software",
    "seed",
]


def test_record_has_the_schema_and_can_be_recomputed(tmp_path):
    from ect_nb.sampling import sample
    from ect_nb.training.loop import RunFolder

    model, some, network = Constant().eval(), held_out().subset(300), eye()
    r = measure(
        model,
        some,
        network,
        times=(80.0, 0.8),
        n=120,
        batch=50,
        seed=3,
        run="mine",
        init="nothing",
        kimg=1.5,
        note="a test",
    )
    assert [k for k in SCHEMA if k not in r] == [] and r["note"] == "a test"
    assert (r["run"], r["data"], r["network"], r["parameters"], r["init"], r["kimg"]) == (
        "mine",
        "fashion_mnist_20k",
        "Constant",
        1,
        "nothing",
        1.5,
    )
    assert (
        r["nfe"],
        r["times"],
        r["metric"],
        r["features"],
        r["n_samples"],
        r["n_reference"],
        r["seed"],
    ) == (2, [80.0, 0.8], "FD", "eye", 120, 300, 3)
    assert model.calls == 2 * 3 and r["seconds"] >= 0
    again = measure(model, some, network, times=(80.0, 0.8), n=120, batch=50, seed=3)
    assert (
        again["value"] == r["value"]
        and measure(model, some, network, times=(80.0, 0.8), n=120, batch=50, seed=4)["value"]
        != r["value"]
    )
    drawn = []  # the samples themselves, through a sampler of our own, measured by hand

    def sampler(f, z, g):
        drawn.append(sample(f, z, (80.0, 0.8), g))
        return drawn[-1]

    assert (
        measure(model, some, network, sampler=sampler, nfe=2, n=120, batch=50, seed=3)["value"]
        == r["value"]
    )
    rounded = (127.5 * torch.cat(drawn).clamp(-1, 1) + 127.5).round() / 127.5 - 1
    d = distance(
        metrics.features(network, rounded), Moments.of(metrics.features(network, some), "eye")
    )
    assert (r["value"], r["low"], r["high"], r["bias"]) == pytest.approx(
        (d.value, d.low, d.high, d.bias), rel=1e-4
    )
    folder = RunFolder(tmp_path / "mine")
    folder.record(**r)
    assert folder.records() == [json.loads(json.dumps(r))]


def test_record_of_a_run_folder_keeps_its_name(tmp_path):
    from ect_nb.training.loop import RunFolder

    folder = RunFolder(tmp_path / "theirs")
    folder.record(
        **measure(
            lambda x, t: x / 80, held_out().subset(60), lambda x: x.flatten(1)[:, 300:304], n=50
        )
    )
    (line,) = folder.records()
    assert (
        line["run"] == "theirs"
        and line["nfe"] == 1
        and line["times"] == [80.0]
        and line["features"] == ""
        and line["parameters"] == 0
    )


def test_measure_refuses():
    assert "eval()" in refusal(measure, Constant(), held_out().subset(60), eye())
    assert "nfe" in refusal(
        measure, Constant().eval(), held_out().subset(60), eye(), sampler=lambda f, z, g: z
    )
    assert "50 of 50 rows" in refusal(
        measure, lambda x, t: x * torch.nan, held_out().subset(60), eye(), n=50
    )
