"Files from outside: what stands in them is looked at, bounded, and never run."

import json
import numpy as np
import os
import pytest
import socket
import struct
import subprocess
import sys
import textwrap
import torch
import warnings
from ect_nb import networks
from ect_nb.diffusion import Precond
from ect_nb.io import data, files, pickles, weights
from ect_nb.measure import atlas, features, metrics
from PIL import EpsImagePlugin, Image

EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(/nowhere) (w)"
    b" file\nshowpage\n"
)


def said(f, *args, error=ValueError, **kw):
    "The one sentence with which `f` refuses."
    with pytest.raises(error) as e:
        f(*args, **kw)
    text = str(e.value)
    assert text and "\n" not in text and len(text) < 600
    return text


def small(**kw):
    return networks.UNet(
        8, 1, model_channels=8, channel_mult=(1,), num_blocks=1, attention=(), **kw
    )


@pytest.fixture
def model():
    return Precond(small(), 0.5)


# Pictures


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.webp"])
@pytest.mark.parametrize("readers", ["read_picture", "load", "read_sheet", "atlas"])
def test_a_program_under_the_name_of_a_picture_is_not_run(tmp_path, monkeypatch, name, readers):
    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: ran.append(a))
    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "_open", lambda self: ran.append(self))
    path = tmp_path / name
    path.write_bytes(EPS)
    read = dict(
        read_picture=lambda: data.read_picture(path),
        load=lambda: data.load(tmp_path),
        read_sheet=lambda: data.read_sheet(path),
        atlas=lambda: atlas._read_png(EPS, (1, 8, 8)),
    )
    assert "unknown format" in said(read[readers]) and not ran


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "ICO"])
def test_formats_that_are_not_meant_are_refused(tmp_path, kind):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", kind)
    assert "unknown format" in said(data.read_picture, tmp_path / "a.png")


@pytest.mark.parametrize("side", [8193, 14000, 60000])
def test_a_picture_bomb_is_a_sentence_before_it_is_decoded(tmp_path, side):
    import zlib

    chunk = lambda k, d: struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d))
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    raw = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
    (tmp_path / "a.png").write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "pixels" in said(data.read_picture, tmp_path / "a.png")


def test_a_picture_cut_short_or_swollen(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as a picture" in said(data.read_picture, path)
    path.write_bytes(whole + bytes(1000))
    assert data.read_picture(path).shape == (40, 40)


# What is not a file

READERS = dict(
    contents=files.contents,
    picture=data.read_picture,
    sheet=data.read_sheet,
    idx=data.read_idx,
    pickle=pickles.read,
    load=weights.load,
    header=weights.header,
    digest=files.file_digest,
    moments=metrics.Moments.load,
)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "device"])
def test_only_files_are_read(tmp_path, reader, kind):
    path = tmp_path / "it.png"
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "folder":
        path.mkdir()
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(os.path.relpath(path))
    if kind == "device":
        path.symlink_to("/dev/zero")
    assert f"a {kind}" in said(READERS[reader], path) or reader == "moments"


def test_a_file_that_is_too_large_or_changes(tmp_path, monkeypatch):
    path = tmp_path / "f"
    with open(path, "wb") as f:
        f.truncate(5 << 30)  # sparse: it takes no room
    for reader in (
        lambda p: files.contents(p, 1000),
        pickles.read,
        data.read_idx,
        data.read_picture,
    ):
        assert "5,368,709,120 bytes" in said(reader, path) or "larger than" in said(reader, path)
    path.write_bytes(b"12345")
    real = os.fstat

    class Larger:
        def __init__(self, s):
            self.st_mode, self.st_size = s.st_mode, s.st_size + 5

    monkeypatch.setattr(files.os, "fstat", lambda n: Larger(real(n)))
    assert "changed while it was read" in said(files.contents, path)


def test_no_reader_maps_a_file():
    import inspect

    for module in (files, data, pickles, weights, metrics, atlas):
        source = inspect.getsource(module)
        assert "mmap" not in source and "safe_open" not in source and "load_file" not in source


# Pickles that are small and ask for much


def frame(body):
    "All that `body` leaves on the stack as one tuple; no instruction here is refused for its name."
    return b"\x80\x04(" + body + b"t."


def bomb(kind, n=100_000):
    "A pickle of n instructions or so whose work would be n times n."
    rec = b"ctorch.nn.modules.container\nModuleDict\n"
    names = b"}q\x00(" + b"".join(b"\x8c\x06" + b"%06d" % i + b"N" for i in range(n)) + b"u"
    make = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
    word = lambda s: b"X" + struct.pack("<I", len(s)) + s
    class_ = word(b"type") + word(b"class") + word(b"class_name") + word(b"a")
    longs = [((2**61 - 1) * i).to_bytes(10, "little") for i in range(1, 50_000)]
    pairs = [b"J" + struct.pack("<i", i) + b"J" + struct.pack("<i", -i) + b"\x86" for i in range(n)]
    return frame(
        {
            "build": names + rec + b")R" + b"h\x00b" * n,
            "arguments": b"("
            + b"N" * n
            + b"tq\x00"
            + b"ctorch._utils\n_rebuild_parameter\nh\x00R" * n,
            "persistent": names
            + (make + b"}(" + word(b"state") + b"h\x00" + class_ + b"u\x85R") * (n // 20),
            "keys": b"}(" + b"".join(b"\x8a\x0a" + k + b"N" for k in longs) + b"u",
            "pairs as keys": b"}(" + b"".join(p + b"N" for p in pairs) + b"u",
            "a set of them": b"\x8f(" + b"".join(b"\x8a\x0a" + k for k in longs) + b"\x90",
        }[kind]
    )


HARMLESS = {"build", "persistent"}  # what was written once is referred to, never copied


BOMBS = ["build", "arguments", "persistent", "keys", "pairs as keys", "a set of them"]


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_in_pickles_end_in_bounded_work(tmp_path, kind):
    path = tmp_path / "m.pkl"
    path.write_bytes(bomb(kind))
    code = f"""
        import resource, sys
        from ect_nb.io import pickles
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        try: print("read", len(pickles.read({str(path)!r})))
        except ValueError as e: print(e)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)"""
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr[-500:]
    sentence, grown = out.stdout.strip().split("\n")
    assert ("read" if kind in HARMLESS else "refused") in sentence and int(grown) < 300, out.stdout


def test_tables_named_again_and_again_are_bounded():
    table = {f"p{i}": torch.zeros(1) for i in range(9000)}
    shared = pickles.Record("M", dict(_parameters=table))
    top = pickles.Record("T", dict(_modules={f"m{i}": shared for i in range(9000)}))
    assert "not nested" in said(pickles.tensors, top)
    deep = pickles.Record("L")
    for _ in range(16):
        deep = pickles.Record("D", dict(_modules=dict(a=deep, b=deep)))
    assert "not nested" in said(lambda: list(pickles.modules(deep)))


# Headers


def forge(path, model, description, meta=None):
    from safetensors.torch import save_file

    tensors = {k: v.contiguous().clone() for k, v in model.state_dict().items()}
    save_file(
        tensors,
        path,
        {
            "format": "ect_nb 1",
            "model": description if isinstance(description, str) else json.dumps(description),
        }
        | (meta or {}),
    )


NONSENSE = [
    dict(patch=0),
    dict(patch=10**9),
    dict(model_channels=0),
    dict(model_channels=4096),
    dict(model_channels=10**9),
    dict(model_channels=10**30),
    dict(channel_mult=[]),
    dict(channel_mult=[0]),
    dict(channel_mult=[-1]),
    dict(channel_mult=["a"]),
    dict(channel_mult=None),
    dict(num_blocks=10**9),
    dict(num_blocks=-1),
    dict(num_blocks=None),
    dict(name=["UNet"]),
    dict(name={}),
    dict(resample=[]),
    dict(embedding=[]),
    dict(label_dim=10**12),
    dict(attention=7),
    dict(resolution=0),
    dict(dropout="x"),
    dict(unheard=1),
]


@pytest.mark.parametrize("change", NONSENSE, ids=str)
def test_headers_of_nonsense_are_one_sentence(tmp_path, model, change):
    path = tmp_path / "m.safetensors"
    description = weights.describe(model)
    description["net"] |= change
    forge(path, model, description)
    said(weights.load, path)


@pytest.mark.parametrize("sigma", [float("nan"), -1, "0.5", [], None, 10**400])
def test_a_scale_of_nonsense(tmp_path, model, sigma):
    forge(tmp_path / "m", model, weights.describe(model) | dict(sigma_data=sigma))
    assert "sigma_data" in said(weights.load, tmp_path / "m")


@pytest.mark.parametrize(
    "description",
    [
        dict(name="Precond"),
        dict(name="Precond", net=None),
        dict(name="Precond", net=[]),
        dict(name="Precond", net="UNet"),
        "[" * 100_000,
        "1",
        '{"a": ' * 100_000,
        "{}",
    ],
)
def test_headers_without_a_network(tmp_path, model, description):
    forge(tmp_path / "m", model, description)
    said(weights.load, tmp_path / "m")


def test_a_header_deeper_than_json_goes(tmp_path):
    raw = b"[" * 100_000
    (tmp_path / "m").write_bytes(len(raw).to_bytes(8, "little") + raw)
    for reader in (weights.header, weights.load):
        said(reader, tmp_path / "m")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path, model, bad):
    with torch.no_grad():
        list(model.parameters())[3].view(-1)[0] = bad
    weights.save(model, tmp_path / "m")
    assert "NaN or infinity" in said(weights.load, tmp_path / "m")


def test_a_mask_of_infinities_may_stay(tmp_path):
    net = torch.nn.Linear(2, 2)
    net.register_buffer("mask", torch.full((2,), -torch.inf))
    weights.save(net, tmp_path / "m")
    assert weights.load(tmp_path / "m", into=net).mask.isinf().all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, "float16"])
def test_only_floats_are_kept(tmp_path, model, dtype):
    assert "dtype is float16" in said(
        weights.save, model, tmp_path / "m", dtype
    ) and not os.listdir(tmp_path)


def test_the_shape_trained_on_is_kept(tmp_path, model):
    weights.save(model, tmp_path / "m", shape=(1, 16, 24), note="x")
    assert weights.header(tmp_path / "m")["shape"] == (1, 16, 24)
    forge(tmp_path / "n", model, weights.describe(model), {"shape": "[1, -2, 1e400]"})
    said(weights.header, tmp_path / "n")


def test_wrappers_are_looked_through(tmp_path, model):
    weights.save(torch.nn.DataParallel(model), tmp_path / "m")
    again = weights.load(tmp_path / "m")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    assert weights.describe(torch.compile(model)) == weights.describe(model)


def test_a_subclass_keeps_its_description_only_if_nothing_but_its_name_differs(tmp_path):
    class Named(Precond):
        "My own name."

    class Changed(Precond):
        def forward(self, x, t, labels=None):
            return x

    assert weights.describe(Named(small(), 0.5)) == weights.describe(Precond(small(), 0.5))
    with pytest.warns(UserWarning, match="without a description"):
        weights.save(Changed(small(), 0.5), tmp_path / "m")
    assert weights.header(tmp_path / "m")["model"] is None


def test_a_folder_of_diffusers_is_named_as_such(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "diffusers" in said(weights.load, tmp_path)


# Folders of pictures


def pictures(folder, *names, size=(8, 8)):
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, 10 * i).save(path)


def test_a_split_is_numbered_by_the_training_classes(tmp_path):
    pictures(
        tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png", "test/a/1.png", "test/c/1.png"
    )
    test = data.load(tmp_path, split="test")
    assert test.labels.tolist() == [0, 2] and test.classes == data.load(tmp_path).classes == [
        "a",
        "b",
        "c",
    ]
    pictures(tmp_path, "test/d/1.png")
    assert "'d'" in said(data.load, tmp_path, split="test")


def test_what_is_not_read_is_said_once(tmp_path):
    pictures(tmp_path, "a/x/1.png", "a/2.png", "b/3.png")
    (tmp_path / "c").mkdir()
    (tmp_path / "b" / "list.csv").write_text("")
    with pytest.warns(UserWarning) as w:
        found = data.load(tmp_path)
    text = str(w[0].message)
    assert len(found) == 2 and len(w) == 1 and all(n in text for n in ("a/x", "c (", "b/list.csv"))


def test_sizes_of_two_numbers(tmp_path):
    pictures(tmp_path, "1.png", "2.png", size=(40, 30))
    assert data.load(tmp_path, size=(16, 24)).shape == (1, 16, 24) and data.load(
        tmp_path, size=12
    ).shape == (1, 12, 12)
    for size in ((1, 2, 3), (0, 4), -3, "8", (4.0, 4), True):
        assert "size is" in said(data.load, tmp_path, size=size)


@pytest.mark.parametrize(
    "labels", [[-1, 0], [0, 2], [0.0, 1.0], [True, False], [[0, 1]], ["a", "b"]]
)
def test_labels_are_classes(labels):
    said(data.Pictures, torch.zeros(2, 1, 4, 4, dtype=torch.uint8), labels, ["x", "y"])


def test_idx_files_that_promise_much(tmp_path):
    import gzip

    (tmp_path / "a.gz").write_bytes(gzip.compress(b"\0\0\x08\x01" + bytes(50_000_000)))
    assert "unpacks to more" in said(data.read_idx, tmp_path / "a.gz")
    (tmp_path / "b").write_bytes(b"\0\0\x08\xff" + bytes(4 * 255))
    said(data.read_idx, tmp_path / "b")
    assert "no batch" in said(data.read_cifar10, tmp_path / "b")


# Atlas, features, metrics


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "1",
        "[" * 100_000,
        '{"version": 1}',
        '{"version": 1, "runs": []}',
        '{"version": 1, "runs": {"a": 1}}',
        '{"version": 1, "runs": {"a": {"records": [], "facts": {}, "sheet": ["x"]}}}',
        '{"version": [1]}',
    ],
)
def test_an_atlas_of_nonsense_is_a_sentence(tmp_path, text):
    (tmp_path / "atlas.json").write_text(text)
    assert "atlas" in said(atlas.Atlas.load, tmp_path)


def test_an_atlas_reads_sheets_of_its_own_folder_only(tmp_path):
    source = json.loads((data.find("atlas") / "atlas.json").read_text())
    next(iter(source["runs"].values()))["sheet"] = "../sheet.png"
    (tmp_path / "atlas.json").write_text(json.dumps(source))
    assert "damaged" in said(atlas.Atlas.load, tmp_path)


def test_the_way_back_needs_no_file(monkeypatch, tmp_path):
    monkeypatch.setattr(
        features.data, "find", lambda *a: (_ for _ in ()).throw(FileNotFoundError("no data"))
    )
    features.small_features.cache_clear()
    for name in ["cleanfid", *(m for m in sys.modules if m.startswith("cleanfid."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delenv("ECT_NB_INCEPTION", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for shape in ((1, 28, 28), (3, 32, 32)):
        with pytest.warns(UserWarning, match="cleanfid"):
            net = features.at_hand(shape)
        assert net.name.startswith("random") and net(torch.zeros(2, *shape)).shape == (2, 64)
    told = said(features.inception, error=ImportError)
    assert told.endswith('pip install "ect_nb[metrics]"') and told.count("pip install") == 1


def test_a_float_tensor_is_data_to_measure():
    net = features.FeatureNetwork(torch.nn.Flatten(), "flat")
    x = 5 * torch.randn(200, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    f = lambda x, t, labels=None: 5 * x / 80
    record = metrics.measure(f, x, net, n=200)
    assert (
        record["data"] == "tensor" and abs(record["value"]) < 10
    )  # held to [-1, 1] it would be about 70
    json.dumps(record)


def test_extrapolation_with_small_parts_says_so():
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="no more than the 64 features"):
        metrics.extrapolate(x, metrics.Moments.of(torch.randn(500, 64)), groups=4)
