"""KID and CMMD: closed forms, no bias, intervals that hold, and the numbers that clean-fid and
torch-fidelity give for the same features; all distances from one drawing."""

import math
import numpy as np
import pytest
import torch
from ect_nb import Precond
from ect_nb.io import data
from ect_nb.measure.features import features, random_features, small_features
from ect_nb.measure.kernels import cmmd, cubic, discrepancy, gaussian, kid, measures
from ect_nb.measure.metrics import Moments, distance, frechet_distance
from ect_nb.networks import UNet
from importlib.util import find_spec
from PIL import Image


def draws(n, seed, shift=0.0, d=16):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g) + shift


def test_the_sum_over_all_pairs():
    x, y = draws(41, 0, 0.3), draws(37, 1)
    a, b, c = (cubic(*p).double() for p in ((x, x), (y, y), (x, y)))
    a.fill_diagonal_(0), b.fill_diagonal_(0)
    want = a.sum() / (41 * 40) + b.sum() / (37 * 36) - 2 * c.mean()
    assert math.isclose(kid(x, y, groups=7).value, float(want), rel_tol=1e-5)


def test_the_jackknife_leaves_groups_out():
    x, y, groups = draws(60, 0, 0.2), draws(50, 1), 6
    found = kid(x, y, groups=groups)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    parts = x[order].tensor_split(groups)
    left = [torch.cat(parts[:g] + parts[g + 1 :]) for g in range(groups)]
    values = np.array([kid(p, y, groups=2).value for p in left])
    half = 2.570582 * math.sqrt((groups - 1) * values.var())  # t with 5 degrees of freedom
    assert math.isclose(found.high - found.value, half, rel_tol=1e-4)


def test_no_bias_and_intervals_that_hold():
    "Equal sets: the mean of many is 0 within its error, and about 95 % of the intervals hold it."
    y, found = draws(400, 99), []
    for seed in range(60):
        found.append(kid(draws(80, seed), y, groups=10))
    exact = kid(draws(4000, 1000), y, groups=10).value  # y stands still, and is no exact normal
    values = np.array([d.value for d in found])
    assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(60) + 2e-2
    held = sum(d.low <= exact <= d.high for d in found)
    assert 48 <= held <= 60


def test_gaussian_kernel_is_that_of_directions():
    x = draws(5, 0)
    u = x / x.norm(dim=1, keepdim=True)
    want = torch.exp(-(torch.cdist(u, u) ** 2) / 200)
    assert torch.allclose(gaussian(x, 3 * x), want, atol=1e-6)
    assert cmmd(draws(100, 0, 1.0), draws(100, 1), groups=5).value > 0


@pytest.mark.skipif(find_spec("cleanfid") is None, reason="clean-fid is not installed")
def test_as_clean_fid_on_the_same_features():
    from cleanfid.fid import frechet_distance as theirs, kernel_distance

    x, y = draws(300, 0, 0.1).double().numpy(), draws(300, 1).double().numpy()
    want = kernel_distance(x, y, num_subsets=1, max_subset_size=300)
    assert math.isclose(kid(torch.tensor(x), torch.tensor(y)).value, want, rel_tol=1e-4)
    stats = [(a.mean(0), np.cov(a, rowvar=False)) for a in (x, y)]
    want = theirs(*stats[0], *stats[1])
    ours = frechet_distance(*(torch.tensor(a) for s in stats for a in s))
    assert math.isclose(ours, want, rel_tol=1e-6)
    found = distance(torch.tensor(x), Moments.of(torch.tensor(y), "features"))
    assert math.isclose(found.value, want, rel_tol=1e-6)


@pytest.mark.skipif(find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed")
def test_as_torch_fidelity_on_the_same_features():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = draws(200, 0, 0.1).double(), draws(200, 1).double()
    told = dict(kid_subsets=1, kid_subset_size=200, verbose=False, rng_seed=0)
    want = kid_features_to_metric(x, y, **told)["kernel_inception_distance_mean"]
    assert math.isclose(kid(x, y).value, want, rel_tol=1e-4)
    stats = [fid_features_to_statistics(a) for a in (x, y)]
    want = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert math.isclose(distance(x, Moments.of(y, "features")).value, want, rel_tol=1e-5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "200 garments, and as many of others under noise, as PNG files."
    home, made = tmp_path_factory.mktemp("folders"), []
    clothes = data.load("fashion_mnist").images[:400].clone()
    noise = torch.randint(0, 40, (200, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    clothes[200:] = (clothes[200:].int() + noise).clamp(max=255)
    for name, part in zip(("real", "made"), clothes.split(200)):
        made.append(home / name)
        made[-1].mkdir()
        for i, x in enumerate(part):
            Image.fromarray(x[0].numpy()).convert("RGB").save(made[-1] / f"{i:03d}.png")
    return made


def ours(folders):
    "The kit's Fréchet distance and KID of the pictures in two folders."
    net = small_features()
    real, made = (features(net, data.load(str(f), channels=1)) for f in folders)
    return distance(made, Moments.of(real, net.name)).value, kid(made, real).value


def eye(x):
    "The same features of three equal channels from 0 to 255."
    return small_features()(x[:, :1].float() / 127.5 - 1)


@pytest.mark.skipif(find_spec("cleanfid") is None, reason="clean-fid is not installed")
def test_as_clean_fid_on_the_same_files(folders):
    from cleanfid import fid

    told = dict(mode="legacy_tensorflow", num_workers=0, device=torch.device("cpu"))
    theirs = fid.compute_fid(*map(str, folders), custom_feat_extractor=eye, verbose=False, **told)
    assert math.isclose(ours(folders)[0], theirs, rel_tol=1e-5)
    found = [fid.get_folder_features(str(f), eye, verbose=False, **told) for f in folders]
    theirs = fid.kernel_distance(*found, num_subsets=1)
    assert math.isclose(ours(folders)[1], theirs, rel_tol=1e-3)


@pytest.mark.skipif(find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed")
def test_as_torch_fidelity_on_the_same_files(folders):
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class Eye(FeatureExtractorBase):
        def __init__(self, name, features_list, **kw):
            super().__init__(name, features_list)

        get_provided_features_list = staticmethod(lambda: ("64",))
        get_default_feature_layer_for_metric = staticmethod(lambda metric: "64")
        can_be_compiled = staticmethod(lambda: False)

        def forward(self, x):
            return (eye(x),)

    FEATURE_EXTRACTORS_REGISTRY["ect_nb"] = Eye
    theirs = torch_fidelity.calculate_metrics(
        input1=str(folders[1]),
        input2=str(folders[0]),
        feature_extractor="ect_nb",
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
        fid=True,
        kid=True,
        kid_subsets=1,
        kid_subset_size=200,
    )
    fd, mmd = ours(folders)
    assert math.isclose(fd, theirs["frechet_inception_distance"], rel_tol=1e-5)
    assert math.isclose(mmd, theirs["kernel_inception_distance_mean"], rel_tol=1e-3)


def test_all_from_one_drawing():
    pictures = data.load("fashion_mnist").subset(200)
    torch.manual_seed(0)
    model, asked = Precond(UNet(28, 1, 8, (1, 1), 1, attention=())).eval(), []
    model.register_forward_hook(lambda m, x, y: asked.append(len(y)))
    networks = [random_features(1, 16), random_features(1, 16, seed=1)]
    networks[1].name = "clip_test"
    found = measures(model, pictures, networks, (80.0, 1.0), n=60, batch=25, groups=5)
    assert sum(asked) == 2 * 60  # two evaluations a sample, whatever is asked of it
    names = [(r["metric"], r["features"]) for r in found]
    assert names == [("FD", networks[0].name), ("KID", networks[0].name), ("CMMD", "clip_test")]
    assert all(r["low"] <= r["value"] <= r["high"] and r["nfe"] == 2 for r in found)


@pytest.mark.parametrize(
    "x, y, word",
    [
        (draws(10, 0), draws(10, 0), "groups want"),
        (draws(100, 0), draws(10, 0, d=3), "features are wanted"),
    ],
)
def test_refused(x, y, word):
    with pytest.raises(ValueError, match=word):
        discrepancy(x, y)


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_dinov2_from_a_folder(tmp_path):
    from ect_nb.measure.kernels import from_folder
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    tiny = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224)
    model = Dinov2Model(Dinov2Config(patch_size=14, **tiny)).eval()
    model.save_pretrained(tmp_path)
    net = from_folder(tmp_path)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    assert net(x).shape == (2, 32) and net.name == "dinov2_32" and len(net.checksum) == 16
