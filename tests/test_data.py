"""Data: what is shipped is what was published, what is damaged is refused in one sentence, and no
foreign pickle is ever opened."""

import contextlib
import gzip
import hashlib
import importlib.util
import numpy as np
import os
import pickle
import pytest
import re
import struct
import torch
from ect_nb.io import data
from ect_nb.io.data import Pictures, load
from pathlib import Path
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "data" / "fashion_mnist"
ORIGINAL = next(
    (
        d
        for d in [
            Path("/usr/share/datasets/fashion-mnist"),
            *(
                Path(p) / s
                for p in os.environ.get("ECT_NB_DATA", "").split(os.pathsep)
                if p
                for s in ("fashion-mnist", "FashionMNIST/raw", "")
            ),
        ]
        if (d / "train-images-idx3-ubyte.gz").exists()
        and (d / "t10k-labels-idx1-ubyte.gz").exists()
    ),
    None,
)
original = pytest.mark.skipif(
    ORIGINAL is None,
    reason="the published Fashion-MNIST is not on this machine (Debian: dataset-fashion-mnist)",
)
CIFAR = next(
    (
        Path(p)
        for p in os.environ.get("ECT_NB_DATA", "").split(os.pathsep)
        if p and (Path(p) / "cifar-10-batches-py").is_dir()
    ),
    None,
)


@pytest.fixture(autouse=True)
def no_other_data(monkeypatch):
    monkeypatch.delenv("ECT_NB_DATA", raising=False)


def refusal(kind, f, *args, **kwargs):
    "The message with which `f` raises `kind`: one sentence on one line."
    with pytest.raises(kind) as e:
        f(*args, **kwargs)
    text = str(e.value)
    assert "\n" not in text and text.endswith((".", ".)")) and len(text) < 600, text
    return text


def copy_shipped(to):
    (to / "fashion_mnist").mkdir(parents=True)
    for f in ("test.webp", "test_labels.npy"):
        (to / "fashion_mnist" / f).write_bytes((SHIPPED / f).read_bytes())
    return to / "fashion_mnist"


def grey(n=6, size=4):
    return (
        torch.arange(n * size * size, dtype=torch.int64)
        .remainder(256)
        .to(torch.uint8)
        .view(n, 1, size, size)
    )


# What is shipped


@original
@pytest.mark.parametrize("split, stem, n", [("train", "train", 20000), ("test", "t10k", 2000)])
def test_shipped_is_the_original(split, stem, n):
    p = load("fashion_mnist_20k", split=split)
    x = np.frombuffer(
        gzip.open(ORIGINAL / f"{stem}-images-idx3-ubyte.gz").read(), np.uint8, offset=16
    ).reshape(-1, 28, 28)
    y = np.frombuffer(
        gzip.open(ORIGINAL / f"{stem}-labels-idx1-ubyte.gz").read(), np.uint8, offset=8
    )
    assert np.array_equal(p.images[:, 0].numpy(), x[:n]) and np.array_equal(p.labels.numpy(), y[:n])
    assert (
        len(p) == n
        and p.shape == (1, 28, 28)
        and p.labels.dtype == torch.int64
        and p.name == "fashion_mnist_20k"
    )


def test_readme_states_the_shipped_files():
    """The table of provenance against the files as they lie there, and against the values decoded
    from them."""
    rows = re.findall(
        r"^\| `(\w+\.\w+)` \| ([\d,]+) \| `(\w{64})` \| `(\w{64})` \|$",
        (SHIPPED / "README.md").read_text(encoding="utf-8"),
        re.M,
    )
    assert {r[0] for r in rows} == {
        "train.webp",
        "train_labels.npy",
        "test.webp",
        "test_labels.npy",
    }
    for name, size, of_file, of_values in rows:
        raw = (SHIPPED / name).read_bytes()
        split = name.split(".")[0].split("_")[0]
        p = load("fashion_mnist_20k", split=split)
        values = p.images.numpy() if name.endswith("webp") else p.labels.numpy().astype(np.uint8)
        assert (len(raw), hashlib.sha256(raw).hexdigest()) == (int(size.replace(",", "")), of_file)
        assert hashlib.sha256(values.tobytes()).hexdigest() == of_values


def test_shipped_is_small_and_licensed():
    assert (
        sum(f.stat().st_size for f in SHIPPED.iterdir()) < 10e6
    )  # of the 15 MB of data/, 5 are for checkpoints
    assert (
        "MIT License" in (SHIPPED / "LICENSE").read_text()
        and "Zalando" in (SHIPPED / "LICENSE").read_text()
    )


def test_first_labels():
    """The first ten training labels as printed in many tutorials of the set (an ankle boot, two
    shirts, ...)."""
    p = load("fashion_mnist_20k")
    assert [p.classes[i] for i in p.labels[:3]] == [
        "Ankle boot",
        "T-shirt/top",
        "T-shirt/top",
    ] and p.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]


@original
def test_tool_makes_sheets(tmp_path, monkeypatch):
    """The tool's sheets, on fewer pictures (the full run takes half a minute), decode to the
    original; other raw files are refused."""
    spec = importlib.util.spec_from_file_location(
        "make_fashion_mnist", ROOT / "tools" / "make_fashion_mnist.py"
    )
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    theirs, _, *md5 = tool.SPLITS["test"]
    monkeypatch.setattr(tool, "SPLITS", {"test": (theirs, 300, *md5)})
    tool.main(ORIGINAL, tmp_path / "made")
    x = np.frombuffer(
        gzip.open(ORIGINAL / "t10k-images-idx3-ubyte.gz").read(), np.uint8, offset=16
    ).reshape(-1, 1, 28, 28)
    assert np.array_equal(data.read_sheet(tmp_path / "made" / "test.webp"), x[:300])
    for f in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        (tmp_path / f).write_bytes(gzip.compress(b"other"))
    with pytest.raises(SystemExit, match="md5"):
        tool.main(tmp_path, tmp_path / "never")


# What is shipped, damaged


def test_half_a_sheet(tmp_path):
    f = copy_shipped(tmp_path) / "test.webp"
    f.write_bytes(f.read_bytes()[:300000])
    text = refusal(ValueError, load, "fashion_mnist_20k", root=tmp_path, split="test")
    assert str(f) in text and "300,000 of 788,976" in text


@pytest.mark.parametrize("at", [1000, 400000, 788900])
def test_one_flipped_byte_in_a_sheet(tmp_path, at):
    f = copy_shipped(tmp_path) / "test.webp"
    raw = bytearray(f.read_bytes())
    raw[at] ^= 16
    f.write_bytes(raw)
    assert "wrong checksum" in refusal(
        ValueError, load, "fashion_mnist_20k", root=tmp_path, split="test"
    )


def test_sheet_of_another_encoder_is_accepted(tmp_path):
    "The values count, not the file: a sheet saved anew, larger, with the same pictures."
    f = copy_shipped(tmp_path) / "test.webp"
    Image.open(f).save(f, lossless=True, method=0, quality=0)
    assert f.stat().st_size != 788976
    assert torch.equal(
        load("fashion_mnist_20k", root=tmp_path, split="test").images,
        load("fashion_mnist_20k", split="test").images,
    )


def test_labels_missing_or_changed(tmp_path):
    f = copy_shipped(tmp_path) / "test_labels.npy"
    y = np.load(f)
    y[0] += 1
    np.save(f, y)
    assert "test_labels.npy" in refusal(
        ValueError, load, "fashion_mnist_20k", root=tmp_path, split="test"
    )
    f.unlink()
    assert "test_labels.npy is missing" in refusal(
        FileNotFoundError, load, "fashion_mnist_20k", root=tmp_path, split="test"
    )


# The full set


@original
@pytest.mark.parametrize("packed", [True, False])
def test_full_set(tmp_path, packed, monkeypatch):
    """All 10,000 test pictures, from the packed files, or unpacked as torchvision keeps them and
    found through the environment."""
    x, y = (
        gzip.decompress((ORIGINAL / f"t10k-{f}-ubyte.gz").read_bytes())
        for f in ("images-idx3", "labels-idx1")
    )
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "t10k-images-idx3-ubyte").write_bytes(x)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(y)
    if not packed:
        monkeypatch.setenv("ECT_NB_DATA", str(tmp_path))
    p = load("fashion_mnist", root=ORIGINAL if packed else None, split="test")
    assert p.name == "fashion_mnist" and p.images.shape == (10000, 1, 28, 28)
    assert p.images.numpy().tobytes() == x[16:] and p.labels.byte().numpy().tobytes() == y[8:]


def test_without_the_full_set_the_shipped_part_comes_and_says_so():
    assert load("fashion_mnist", split="test").name == "fashion_mnist_20k"


def idx(shape, body=None):
    return (
        b"\0\0\x08"
        + bytes([len(shape)])
        + struct.pack(f">{len(shape)}I", *shape)
        + (bytes(int(np.prod(shape))) if body is None else body)
    )


def test_idx_read(tmp_path):
    a = np.random.default_rng(0).integers(0, 256, (3, 5, 2), dtype=np.uint8)
    (tmp_path / "a").write_bytes(idx(a.shape, a.tobytes()))
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(a.shape, a.tobytes())))
    assert np.array_equal(data.read_idx(tmp_path / "a"), a) and np.array_equal(
        data.read_idx(str(tmp_path / "a.gz")), a
    )


@pytest.mark.parametrize(
    "content, packed, says",
    [
        (b"\0\0\x0d\3" + bytes(40), False, "another kind of file"),
        (b"", False, "another kind of file"),
        (b"\0\0\x08\3\0", False, "another kind of file"),
        (idx((10000, 28, 28))[:5000], False, "5,000 of 7,840,016"),
        (idx((10000, 28, 28)) + b"x", False, "too long"),
        (idx((10, 28, 28)), False, "another set"),
        (idx((10000, 28, 28)), False, "MNIST"),
        (gzip.compress(np.random.default_rng(0).bytes(9000))[:4000], True, "only part"),
        (b"<html>not found</html>", True, "does not unpack"),
    ],
)
def test_idx_damaged(tmp_path, content, packed, says):
    f = tmp_path / ("t10k-images-idx3-ubyte" + ".gz" * packed)
    f.write_bytes(content)
    text = refusal(ValueError, load, "fashion_mnist", root=tmp_path, split="test")
    assert str(f) in text and says in text


@original
def test_full_set_without_labels(tmp_path):
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(
        (ORIGINAL / "t10k-images-idx3-ubyte.gz").read_bytes()
    )
    assert "t10k-labels-idx1-ubyte.gz is missing" in refusal(
        FileNotFoundError, load, "fashion_mnist", root=tmp_path, split="test"
    )


# CIFAR-10


def published(pixels, labels):
    "A batch as cPickle wrote it in 2009: byte strings, and an array by `_reconstruct`."
    string = lambda b: b"U" + bytes([len(b)]) + b
    raw = pixels.tobytes()
    shape = b"M" + struct.pack("<H", pixels.shape[0]) + b"M" + struct.pack("<H", pixels.shape[1])
    dtype = (
        b"cnumpy\ndtype\n" + string(b"u1") + b"K\0K\1\x87R"
        b"(K\3" + string(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\0tb"
    )
    return (
        b"\x80\x02}("
        + string(b"batch_label")
        + string(b"training batch 1 of 5")
        + string(b"labels")
        + b"]("
        + b"".join(b"K" + bytes([k]) for k in labels)
        + b"e"
        + string(b"data")
        + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85"
        + string(b"b")
        + b"\x87R(K\1"
        + shape
        + b"\x86"
        + dtype
        + b"\x89T"
        + struct.pack("<I", len(raw))
        + raw
        + b"tb"
        + string(b"filenames")
        + b"]("
        + string(b"leptodactylus_pentadactylus_s_000004.png")
        + b"eu."
    )


@pytest.fixture(params=[2, 4])
def small_cifar(request, tmp_path, monkeypatch):
    """A folder in CIFAR-10's format with three pictures a batch, in the published layout (protocol
    2, byte strings) or Python 3's, made known as if published."""
    folder, rng, known = tmp_path / "cifar-10-batches-py", np.random.default_rng(1), {}
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pixels, labels = (
            rng.integers(0, 256, (3, 3072), dtype=np.uint8),
            rng.integers(0, 10, 3).tolist(),
        )
        content = pickle.dumps(
            {
                "batch_label": "3 of 3",
                "labels": labels,
                "data": pixels,
                "filenames": ["labels.png", "b.png", "c.png"],
            },
            protocol=4,
        )
        if request.param == 2:
            content = published(pixels, labels)
        (folder / name).write_bytes(content + bytes(500))
    for f in folder.iterdir():
        known[f.name] = (f.stat().st_size, hashlib.md5(f.read_bytes()).hexdigest())
    monkeypatch.setattr(data, "_CIFAR10", {name: known[name] for name in data._CIFAR10})
    return folder


@pytest.mark.parametrize("where", ["root", "folder", "renamed", "environment"])
def test_cifar10_read(small_cifar, where, monkeypatch):
    """Against a generator that repeats the fixture's draws: planes R, G, B as published, batches in
    order, test last."""
    rng = np.random.default_rng(1)
    x, y = zip(
        *[
            (rng.integers(0, 256, (3, 3072), dtype=np.uint8), rng.integers(0, 10, 3))
            for _ in range(6)
        ]
    )
    root = {
        "root": small_cifar.parent,
        "folder": str(small_cifar),
        "renamed": small_cifar.parent / "mine",
        "environment": None,
    }[where]
    if where == "renamed":
        small_cifar.rename(root)
    if where == "environment":
        monkeypatch.setenv(
            "ECT_NB_DATA", os.pathsep.join([str(ROOT / "data"), str(small_cifar.parent)])
        )
    p, q = load("cifar10", root=root), load("cifar10", root=root, split="test")
    assert (
        p.shape == (3, 32, 32)
        and p.images.numpy().tobytes() == np.concatenate(x[:5]).tobytes()
        and q.images.numpy().tobytes() == x[5].tobytes()
    )
    assert (
        p.labels.tolist() == np.concatenate(y[:5]).tolist() and q.labels.tolist() == y[5].tolist()
    )


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"])
@pytest.mark.parametrize("known", [False, True])
def test_cifar10_runs_no_pickle(small_cifar, tmp_path, name, known, monkeypatch):
    """A pickle that would make a folder, of the right size; `known`: even one whose checksum were
    the published one is not run."""
    trace, f = tmp_path / "the pickle ran", small_cifar / name
    f.write_bytes(
        pickle.dumps(Payload(trace)).ljust(f.stat().st_size, b"\0")
    )  # bytes after its end do not stop a pickle
    if known:
        monkeypatch.setitem(
            data._CIFAR10, name, (f.stat().st_size, hashlib.md5(f.read_bytes()).hexdigest())
        )
    with pytest.raises(ValueError) if not known else contextlib.suppress(ValueError):
        load("cifar10", root=tmp_path, split="test" if name == "test_batch" else "train")
    assert not trace.exists()
    pickle.loads(f.read_bytes())
    assert trace.exists()  # it would have run


def test_cifar10_damaged(small_cifar):
    f = small_cifar / "data_batch_3"
    whole = f.read_bytes()
    f.write_bytes(whole[:1000])
    assert f"{f} is only part of a file (1,000 of {len(whole):,} bytes)" in refusal(
        ValueError, load, "cifar10", root=small_cifar
    )
    f.write_bytes(whole[:-1] + b"x")
    assert "wrong checksum" in refusal(ValueError, load, "cifar10", root=small_cifar)
    f.unlink()
    assert "data_batch_3 is missing" in refusal(
        FileNotFoundError, load, "cifar10", root=small_cifar
    )


def test_cifar10_absent(tmp_path):
    text = refusal(FileNotFoundError, load, "cifar10", root=tmp_path)
    assert str(tmp_path) in text and "download=True" in text and "folder of pictures" in text


@pytest.mark.skipif(CIFAR is None, reason="no folder of $ECT_NB_DATA holds cifar-10-batches-py")
def test_real_cifar10():
    train, test = load("cifar10", root=CIFAR), load("cifar10", root=CIFAR, split="test")
    assert (
        torch.bincount(train.labels).tolist() == [5000] * 10
        and torch.bincount(test.labels).tolist() == [1000] * 10
    )
    # channel means and deviations of the training set as quoted everywhere: 0.4914 0.4822 0.4465,
    # 0.2470 0.2435 0.2616
    x = train.images.float().div(255)
    assert torch.allclose(x.mean((0, 2, 3)), torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-4)
    assert torch.allclose(x.std((0, 2, 3)), torch.tensor([0.2470, 0.2435, 0.2616]), atol=1e-4)
    datasets = pytest.importorskip("torchvision.datasets")
    for ours, theirs in (
        (train, datasets.CIFAR10(CIFAR, train=True)),
        (test, datasets.CIFAR10(CIFAR, train=False)),
    ):
        assert (
            np.array_equal(ours.images.permute(0, 2, 3, 1).numpy(), theirs.data)
            and ours.labels.tolist() == theirs.targets
            and ours.classes == theirs.classes
        )


# Folders of pictures


def save(path, array, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path, **kwargs)
    return path


def rgb(value, size=8):
    return np.broadcast_to(np.array(value, np.uint8), (size, size, 3))


def test_flat_folder_is_exact_and_in_order(tmp_path):
    a = np.random.default_rng(2).integers(0, 256, (3, 6, 8, 3), dtype=np.uint8)
    for i, end in enumerate(("png", "bmp", "webp")):
        save(tmp_path / f"{i}.{end}", a[i], **({"lossless": True} if end == "webp" else {}))
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    p = load(str(tmp_path))
    assert (
        p.labels is None
        and p.shape == (3, 6, 8)
        and np.array_equal(p.images.permute(0, 2, 3, 1).numpy(), a)
    )


def test_class_folders(tmp_path):
    for kind, v in (("b", 200), ("a", 100)):
        for i in range(2):
            save(tmp_path / kind / f"{i}.PNG", np.full((5, 5), v + i))
    (tmp_path / "empty").mkdir()
    p = load(tmp_path)
    assert (
        p.classes == ["a", "b"]
        and p.labels.tolist() == [0, 0, 1, 1]
        and p.images[:, 0, 0, 0].tolist() == [100, 101, 200, 201]
        and p.shape == (1, 5, 5)
    )


def test_grey_and_colour_together(tmp_path):
    save(tmp_path / "1.png", np.full((8, 8), 77))
    save(tmp_path / "2.png", rgb((255, 0, 0)))
    assert load(tmp_path).images[:, :, 0, 0].tolist() == [[77, 77, 77], [255, 0, 0]]
    assert load(tmp_path, channels=1).images[:, :, 0, 0].tolist() == [
        [77],
        [76],
    ]  # ITU-R 601: 0.299 of red
    assert "channels is 1" in refusal(ValueError, load, tmp_path, channels=4)


def test_mixed_sizes(tmp_path):
    save(tmp_path / "1.png", rgb(9, 8))
    save(tmp_path / "2.png", rgb(9, 10))
    text = refusal(ValueError, load, tmp_path)
    assert "2.png" in text and "size=" in text
    assert load(tmp_path, size=4).shape == (3, 4, 4)


def test_size_takes_the_centre_and_smooths(tmp_path):
    a = np.full(
        (32, 64), 255
    )  # white wings, and in the central square a chequerboard of single pixels
    a[:, 16:48] = 255 * (np.indices((32, 32)).sum(0) % 2)
    save(tmp_path / "1.png", a)
    x = load(tmp_path, size=8).images.float()
    assert (
        x - 127.5
        # a quarter of the size: grey, where taking each fourth pixel would give 0 or 255
    ).abs().max() < 12


def test_transparency_lies_on_white(tmp_path):
    a = np.zeros((4, 4, 4), np.uint8)
    a[..., 3] = 255
    a[0, 0, 3] = 0
    save(tmp_path / "1.png", a)
    assert load(tmp_path).images[0, :, 0, :2].tolist() == [[255, 0]] * 3


def test_turned_by_exif(tmp_path):
    a = np.zeros((4, 6), np.uint8)
    a[:, :3] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    save(tmp_path / "1.png", a, exif=exif)
    assert load(tmp_path).images[0, 0].tolist() == np.rot90(a, -1).tolist()


@pytest.mark.parametrize("half", [False, True])
def test_unreadable_picture(tmp_path, half):
    f = save(tmp_path / "1.png", np.random.default_rng(3).integers(0, 256, (64, 64)))
    f.write_bytes(f.read_bytes()[:2000] if half else b"not a picture")
    assert f"{f} cannot be read as a picture" in refusal(ValueError, load, tmp_path)


def test_sixteen_bits(tmp_path):
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "1.png")
    assert "8 bits" in refusal(ValueError, load, tmp_path)


def test_folders_that_cannot_be_meant(tmp_path):
    assert "no pictures" in refusal(ValueError, load, tmp_path)
    save(tmp_path / "1.png", rgb(1))
    save(tmp_path / "a" / "1.png", rgb(1))
    assert "both" in refusal(ValueError, load, tmp_path)


def test_folder_with_its_own_split(tmp_path):
    for part, n in (("train", 3), ("test", 2)):
        for i in range(n):
            save(tmp_path / "pets" / part / "cat" / f"{i}.png", rgb(i))
    assert len(load("pets", root=tmp_path)) == 3 and len(load(tmp_path / "pets", split="test")) == 2
    assert "no folder named test" in refusal(
        ValueError, load, tmp_path / "pets" / "train", split="test"
    )


# The door and the folders


def test_names_that_do_not_exist(tmp_path):
    text = refusal(ValueError, load, "cifar11")
    assert all(n in text for n in ("fashion_mnist", "fashion_mnist_20k", "cifar10"))
    assert "'valid'" in refusal(ValueError, load, "cifar10", split="valid")
    assert "folder of pictures" in refusal(ValueError, load, "fashion_mnist", size=32)
    refusal(FileNotFoundError, load, "fashion_mnist", root=tmp_path / "absent")


def test_home(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.setenv("ECT_NB_DATA", os.pathsep.join([str(tmp_path / "a"), str(tmp_path / "b")]))
    assert data.home() == [tmp_path / "a", tmp_path / "b", ROOT / "data"]
    (tmp_path / "b" / "x").write_text("")
    assert data.find("x") == tmp_path / "b" / "x"
    monkeypatch.setenv("ECT_NB_DATA", str(tmp_path / "c"))
    assert str(tmp_path / "c") in refusal(FileNotFoundError, load, "fashion_mnist")


def test_without_the_kits_folder(tmp_path, monkeypatch):
    """As installed from a wheel: nothing beside the package, nothing above the working folder; then
    the working folder has it."""
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    assert data.home() == []
    text = refusal(FileNotFoundError, load, "fashion_mnist")
    assert "clone" in text and "ECT_NB_DATA" in text
    monkeypatch.chdir(ROOT / "tests")
    assert data.home() == [ROOT / "data"]


# Pictures


def test_batch_values():
    p = Pictures(torch.tensor([0, 127, 255], dtype=torch.uint8).view(3, 1, 1, 1))
    assert p.batch([0, 2]).flatten().tolist() == [-1.0, 1.0] and p.batch(
        torch.tensor([1])
    ).item() == np.float32(np.float32(127) / np.float32(127.5) - np.float32(1))
    assert p.batch([0]).dtype == torch.float32 and p.batch([2, 2, 1]).shape == (3, 1, 1, 1)


def test_batch_at_random():
    p = Pictures(torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1))
    draw = lambda seed: p.batch(4000, torch.Generator().manual_seed(seed)).flatten()
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    share = torch.unique(draw(3), return_counts=True)[1]
    assert (
        len(share) == 5 and (share - 800).abs().max() < 5 * 25.3
    )  # binomial: sqrt(4000 * 0.2 * 0.8) = 25.3


def test_device_is_kept():
    "The meta device stands in for an accelerator: what is made of a set stays where the set is."
    p = Pictures(grey(), torch.arange(6), list("abcdef"), "six").to("meta")
    assert (
        {
            t.device.type
            for t in (p.images, p.labels, p.batch([0, 1]), p.batch(3), p.subset(2).labels)
        }
        == {"meta"}
        and p.name == "six"
        and p.classes == list("abcdef")
    )


def test_subset():
    p = Pictures(grey(), torch.arange(6) * 10, name="six")
    assert p.subset(2).labels.tolist() == [0, 10] and p.subset([5, 1]).labels.tolist() == [50, 10]
    assert (
        torch.equal(p.subset(torch.tensor([5, 1])).images, p.images[[5, 1]])
        and len(p.subset(p.labels > 20)) == 3
    )
    for n in (0, 7):
        refusal(ValueError, p.subset, n)


def test_checksum_names_the_pictures():
    p = Pictures(grey())
    seen = [p, Pictures(p.images.flip(0)), Pictures(p.images.view(3, 1, 8, 4)), p.subset(5)]
    one = p.images.clone()
    one[3, 0, 1, 1] ^= 1
    seen.append(Pictures(one))
    assert len({s.checksum for s in seen}) == 5 and re.fullmatch("[0-9a-f]{16}", p.checksum)
    assert (
        Pictures(grey(), torch.arange(6), name="other").checksum
        == p.checksum
        == p.to("cpu").checksum
        == Pictures(grey().flip(3).flip(3)).checksum
    )


@pytest.mark.parametrize(
    "images, labels, says",
    [
        (torch.zeros(2, 1, 4, 4), None, "uint8"),
        (np.zeros((2, 1, 4, 4), np.uint8), None, "uint8"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), None, "(2, 4, 4)"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), None, "C = 1 or 3"),
        (torch.zeros(0, 1, 4, 4, dtype=torch.uint8), None, "at least 1"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), [1, 2, 3], "labels"),
    ],
)
def test_pictures_refuses(images, labels, says):
    assert says in refusal(ValueError, Pictures, images, labels)


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_against_numpy(channels):
    x = torch.randint(
        256, (7, channels, 9, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(4)
    )
    y = x.numpy().astype(np.float64) / 127.5 - 1
    assert data.statistics(Pictures(x)) == pytest.approx((y.mean(), y.std()), abs=1e-12)


def test_statistics_of_the_wardrobe():
    """Mean 0.2860 and deviation 0.3530 on [0, 1] are quoted for the full training set; a third of
    it, mapped to [-1, 1], comes within 0.005."""
    mean, std = data.statistics(load("fashion_mnist_20k"))
    assert abs(mean - (2 * 0.2860 - 1)) < 0.005 and abs(std - 2 * 0.3530) < 0.005


def test_conditions_go_with_their_pictures():
    words = torch.arange(6.0)[:, None] * torch.ones(3)
    x = Pictures(torch.zeros(6, 1, 4, 4, dtype=torch.uint8), conditions=dict(words=words))
    assert torch.equal(x.subset([4, 1]).to("cpu").conditions["words"], words[[4, 1]])
    with pytest.raises(ValueError, match="words is wanted as a tensor with a row for each"):
        Pictures(x.images, conditions=dict(words=words[:5]))
