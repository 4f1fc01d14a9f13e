import edm_files
import hashlib
import http.server
import json
import os
import pickle
import pytest
import signal
import struct
import sys
import threading
import time
import torch
from concurrent.futures import ThreadPoolExecutor
from ect_nb.diffusion import Precond
from ect_nb.io import files, weights
from ect_nb.networks import MLP, Classifier, UNet
from safetensors.torch import load_file, save_file
from torch import nn

unix = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and resource limits")


def unet(**kw):
    return UNet(
        **{
            **dict(
                resolution=8,
                channels=1,
                model_channels=8,
                channel_mult=(1, 2),
                num_blocks=1,
                attention=(4,),
                dropout=0.1,
            ),
            **kw,
        }
    )


def foreign():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a
    )


MAKERS = dict(
    unet=lambda: Precond(unet(label_dim=3, patch=2), sigma_data=0.7),
    mlp=lambda: MLP(2, 8, 2, 0.3),
    precond_mlp=lambda: Precond(MLP(1, 8, 1)),
    classifier=lambda: Classifier(3, 4, 8),
)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_model_comes_back_bit_for_bit(kind, tmp_path):
    model = MAKERS[kind]().train()
    path = weights.save(model, tmp_path / "deep" / "down" / "m.safetensors", seed=3, data="cifar10")
    twin = weights.load(str(path))
    assert (
        same(model, twin)
        and type(twin) is type(model)
        and not any(m.training for m in twin.modules())
        and model.training
    )
    assert getattr(twin, "config", None) == getattr(model, "config", None)
    if isinstance(model, Precond):
        assert twin.sigma_data == model.sigma_data and twin.net.config == model.net.config
    found = weights.header(path)
    assert found["provenance"] == dict(seed=3, data="cifar10") and found["format"] == "ect_nb 1"
    assert (
        weights.describe(weights.build(found["model"])) == weights.describe(model) == found["model"]
    )
    assert os.listdir(path.parent) == ["m.safetensors"]


def test_any_reader_of_safetensors_finds_the_tensors_under_their_names(tmp_path):
    model = Precond(unet())
    tensors = load_file(weights.save(model, tmp_path / "m.safetensors"))
    assert tensors.keys() == model.state_dict().keys() and torch.equal(
        tensors["net.enc.8x8_conv.weight"], model.net.enc["8x8_conv"].weight
    )


@pytest.mark.parametrize("wrap", [lambda m: m, Precond])
def test_a_foreign_network_is_filled_in_place(wrap, tmp_path):
    model, twin = wrap(foreign()), wrap(foreign())
    path = weights.save(model, tmp_path / "m.safetensors")
    assert not same(model, twin) and weights.load(path, into=twin) is twin and same(model, twin)
    assert weights.describe(model) is None and weights.header(path)["model"] is None
    with pytest.raises(ValueError, match="does not say of which network.*into"):
        weights.load(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_a_file_holds_rounded_weights_and_loads_as_float32(dtype, tmp_path):
    model = Classifier(1, 4, 64)
    whole, half = (weights.save(model, tmp_path / str(d), dtype=d) for d in (None, dtype))
    twin = weights.load(half)
    assert half.stat().st_size < 0.52 * whole.stat().st_size
    for k, v in twin.state_dict().items():
        own = model.state_dict()[k]
        assert v.dtype == own.dtype and torch.equal(
            v, own.to(dtype).to(own.dtype) if own.is_floating_point() else own
        ), k
    assert all(
        v.dtype == torch.float32 for v in model.parameters()
    )  # the model in memory is left as it was


def test_tied_and_strided_tensors_are_written_as_they_look(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].bias = nn.Parameter(torch.arange(6.0)[::2])
    tensors = load_file(weights.save(model, tmp_path / "m.safetensors"))
    assert torch.equal(tensors["0.weight"], tensors["1.weight"]) and tensors["0.bias"].tolist() == [
        0,
        2,
        4,
    ]


# ---- all or nothing


def in_child(work):
    "Run `work` in a process of its own; its id."
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except OSError:
        os._exit(28)
    except BaseException:
        os._exit(1)


def ending(pid):
    status = os.waitpid(pid, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


@unix
@pytest.mark.parametrize("limit", [0, 100, 4096])
def test_a_full_disk_leaves_the_old_file_and_no_scraps(limit, tmp_path):
    import resource

    old, new, path = MLP(2, 32, 2), MLP(2, 32, 2), tmp_path / "m.safetensors"
    weights.save(old, path)

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        weights.save(new, path)

    assert ending(in_child(work)) == 28  # an OSError
    assert same(weights.load(path), old) and os.listdir(tmp_path) == ["m.safetensors"]


@unix
def test_a_process_killed_before_the_file_is_whole_leaves_the_old_one(tmp_path, monkeypatch):
    old, path = MLP(2, 8, 1), tmp_path / "m.safetensors"
    weights.save(old, path)

    def work():
        resting = lambda handle: (open(tmp_path / "reached", "w").close(), time.sleep(60))
        files.os.fsync = resting
        files.write_atomically(path, b"x" * 100_000)

    pid = in_child(work)
    deadline = time.time() + 10
    while not (tmp_path / "reached").exists() and time.time() < deadline:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert (
        ending(pid) == -signal.SIGKILL
        and (tmp_path / "reached").exists()
        and same(weights.load(path), old)
    )


@unix
def test_a_process_killed_at_any_moment_leaves_one_of_the_files_whole(tmp_path):
    a, b, path = b"a" * 2_000_000, b"b" * 3_000_000, tmp_path / "m"
    files.write_atomically(path, a)

    def work():
        while True:
            for data in (b, a):
                files.write_atomically(path, data)

    for i in range(8):
        pid = in_child(work)
        time.sleep(0.003 + 0.011 * i)
        os.kill(pid, signal.SIGKILL)
        assert ending(pid) == -signal.SIGKILL and path.read_bytes() in (a, b)


def test_what_cannot_be_written_as_plain_data_leaves_the_old_file(tmp_path):
    old, path = MLP(2, 8, 1), tmp_path / "m.safetensors"
    weights.save(old, path, note="first")
    with pytest.raises(TypeError):
        weights.save(MLP(2, 8, 1), path, note=object())
    assert (
        same(weights.load(path), old)
        and weights.header(path)["provenance"] == dict(note="first")
        and os.listdir(tmp_path) == ["m.safetensors"]
    )


# ---- files that are not checkpoints


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def one_sentence(error, *words):
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Quota exceeded</html>", "web page"),
        (b"\n  <html>\n<body>404</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "not a whole"),
        (b"\xef\xbb\xbf<html></html>", "web page"),
        (b"hello", "not a whole"),
        (b"\x17\xa4\x03" * 2000, "not a whole"),
        (struct.pack("<Q", 2**40) + b"{}", "not a whole"),
        (struct.pack("<Q", 4) + b"true", "not a whole"),
    ],
)
@pytest.mark.parametrize(
    "reader", [weights.load, weights.header, lambda path: weights.load(path, into=MLP())]
)
def test_what_is_no_checkpoint_is_named_in_one_sentence(reader, content, words, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        reader(path)
    one_sentence(error, words, "m.safetensors")


@pytest.mark.parametrize("share", [0.001, 0.05, 0.3, 0.9, 0.9999])
def test_a_file_cut_short_says_so(share, tmp_path):
    path = weights.save(MLP(2, 32, 2), tmp_path / "m.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError) as error:
        weights.load(path)
    one_sentence(error, "cut short")


@pytest.mark.parametrize(
    "write",
    [
        lambda bomb, path: path.write_bytes(pickle.dumps(bomb)),
        lambda bomb, path: path.write_bytes(pickle.dumps(bomb, 2)),
        lambda bomb, path: torch.save(bomb, path),
        lambda bomb, path: torch.save(bomb, path, _use_new_zipfile_serialization=False),
    ],
)
def test_a_pickle_is_refused_and_never_run(write, tmp_path):
    path, trace = tmp_path / "m.safetensors", tmp_path / "trace"
    write(Bomb(trace), path)
    for into in (None, MLP()):
        with pytest.raises(ValueError) as error:
            weights.load(path, into=into)
        one_sentence(error, "pickle", "only .safetensors")
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace))).close()
    assert trace.exists()  # the charge was live


def test_a_missing_file_and_a_folder_are_not_found(tmp_path):
    for reader in (weights.load, weights.header):
        with pytest.raises(FileNotFoundError) as error:
            reader(tmp_path / "none.safetensors")
        one_sentence(error, "no checkpoint at", "none.safetensors")
        with pytest.raises(ValueError) as error:
            reader(tmp_path)
        one_sentence(error, "is a folder", str(tmp_path))


# ---- checkpoints of other networks


def edit(path, meta=None, change=lambda tensors: None):
    "Rewrite a checkpoint with other metadata or tensors."
    tensors, head = load_file(path), weights.header(path)
    change(tensors)
    save_file(
        tensors, path, {"format": "ect_nb 1", "model": json.dumps(head["model"]), **(meta or {})}
    )


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d.pop("layers.0.weight"), ("lacks 1 tensor", "layers.0.weight")),
        (lambda d: d.update(extra=torch.zeros(1)), ("has unknown 1 tensor", "extra")),
        (
            lambda d: d.update({"layers.0.weight": torch.zeros(8, 4)}),
            ("layers.0.weight is (8, 4) there and (8, 35) here",),
        ),
        (lambda d: [d.pop(k) for k in list(d)[1:]], ("lacks 3 tensors",)),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_nothing_is_filled(change, words, tmp_path):
    path, target = weights.save(MLP(2, 8, 1), tmp_path / "m.safetensors"), MLP(2, 8, 1)
    edit(path, change=change)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    for into in (None, target):
        with pytest.raises(ValueError) as error:
            weights.load(path, into=into)
        one_sentence(error, "does not fit this network", *words)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_another_network_is_refused(tmp_path):
    path = weights.save(Precond(MLP(2, 8, 1)), tmp_path / "m.safetensors")
    for into in (MLP(2, 8, 1), Precond(MLP(2, 9, 1)), Precond(unet()), foreign()):
        with pytest.raises(ValueError, match="does not fit this network"):
            weights.load(path, into=into)


@pytest.mark.parametrize(
    "model, words",
    [
        (
            '{"name": "Transformer", "depth": 3}',
            ("unknown network 'Transformer'", "MLP", "newer version"),
        ),
        ('{"depth": 3}', ("unknown network None",)),
        ('{"name": "Precond", "net": {"name": "os.system"}}', ("unknown network 'os.system'",)),
        ('{"name": "MLP", "dim": 2, "wings": 2}', ("MLP", "wings")),
        ('"stable-diffusion"', ("m.safetensors",)),
        ("stable-diffusion", ("m.safetensors",)),
    ],
)
def test_a_description_that_cannot_be_built_is_named_in_one_sentence(model, words, tmp_path):
    path = weights.save(MLP(2, 8, 1), tmp_path / "m.safetensors")
    edit(path, meta=dict(model=model))
    with pytest.raises(ValueError) as error:
        weights.load(path)
    one_sentence(error, *words)
    assert not isinstance(error.value, json.JSONDecodeError)


def test_a_foreign_safetensors_file_can_fill_a_network_that_fits(tmp_path):
    source, twin = foreign(), foreign()
    for meta in (None, {"format": "pt"}, {"format": "pt", "model": "somebody else's"}):
        save_file(source.state_dict(), tmp_path / "m.safetensors", meta)
        assert same(weights.load(tmp_path / "m.safetensors", into=twin), source)
        with pytest.raises(ValueError, match="pass the network as `into`"):
            weights.load(tmp_path / "m.safetensors")


def test_a_subclass_is_not_mistaken_for_its_parent():
    class Mine(MLP):
        def forward(self, x, c, labels=None):
            return x

    class MyPrecond(Precond):
        sigma_max = 80

    assert (
        weights.describe(Mine()) is None
        and weights.describe(Precond(Mine())) is None
        and weights.describe(MyPrecond(MLP())) is None
    )


def test_filling_a_network_leaves_it_on_its_device(tmp_path):
    path = weights.save(foreign(), tmp_path / "m.safetensors")
    device = next(
        (
            name
            for name, there in (("cuda", torch.cuda), ("mps", torch.backends.mps))
            if there.is_available()
        ),
        None,
    )
    if device is None:
        pytest.skip("needs a second device, CUDA or MPS")
    assert next(weights.load(path, into=foreign().to(device)).parameters()).device.type == device


# ---- the files of EDM and ECT

KINDS = dict(
    ddpmpp={},
    deeper=dict(mult=(1, 2, 2), blocks=2, attention=(4, 2)),
    wide_attention=dict(attention=(8, 4)),
    no_attention=dict(attention=()),
    classes=dict(labels=10),
    augmented=dict(augment=9),
    both=dict(labels=4, augment=9),
    grey=dict(channels=1),
    ncsnpp=dict(ncsn=True),
    ncsnpp_classes=dict(ncsn=True, labels=3, augment=9, mult=(1, 2, 2)),
    ncsnpp_of_ect=dict(ncsn=True, scale=0.02),
)


def inputs(channels=3, n=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    t = torch.tensor([0.004, 0.05, 0.821, 5.0, 80.0])[:n]
    return torch.randn(n, channels, 8, 8, generator=g) * (1 + t.view(-1, 1, 1, 1)), t


def written(path, model, **options):
    path.write_bytes(edm_files.snapshot(model, **options))
    return path


@torch.no_grad()
def agree(mine, theirs, channels=3, tolerance=1e-5, **kw):
    x, t = inputs(channels)
    return torch.allclose(mine(x, t, **kw), theirs(x, t, **kw), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("precond", [edm_files.EDMPrecond, edm_files.ECMPrecond])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_out_of_a_pickle_computes_what_it_computed_before(kind, precond, tmp_path):
    kw = KINDS[kind]
    theirs = edm_files.network(precond=precond, **kw)
    mine = weights.load_edm(written(tmp_path / "m.pkl", theirs), augment=True)
    assert (
        type(mine) is Precond
        and not any(m.training for m in mine.modules())
        and all(v.dtype == torch.float32 for v in mine.state_dict().values())
    )
    labels, augment, channels = (
        torch.eye(kw.get("labels", 0))[:1].repeat(5, 1),
        torch.randn(5, 9),
        kw.get("channels", 3),
    )
    assert agree(mine, theirs, channels)
    if kw.get("labels"):
        assert agree(mine, theirs, channels, labels=labels) and not torch.equal(
            mine(*inputs(channels), labels=labels), mine(*inputs(channels))
        )
    if kw.get("augment"):
        assert agree(mine, theirs, channels, augment=augment) and not torch.equal(
            mine(*inputs(channels), augment=augment), mine(*inputs(channels))
        )
    assert (
        mine.sigma_min == (0.003 if precond is edm_files.ECMPrecond else 0)
        and mine.net.config["dropout"] == 0.13
    )
    own = theirs.model.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in mine.net.state_dict().items()) and len(
        own
    ) == len(mine.net.state_dict())


@pytest.mark.parametrize("options", [dict(drop=(), tables=False), dict(drop=()), dict(protocol=5)])
def test_files_of_older_and_newer_torch_load_alike(options, tmp_path):
    theirs = edm_files.network()
    assert agree(weights.load_edm(written(tmp_path / "m.pkl", theirs, **options)), theirs)


def test_the_augmentation_head_is_left_out_unless_wanted(tmp_path):
    theirs = edm_files.network(augment=9)
    path = written(tmp_path / "m.pkl", theirs)
    plain, full = weights.load_edm(path), weights.load_edm(path, augment=True)
    assert (
        full.state_dict().keys() - plain.state_dict().keys() == {"net.map_augment.weight"}
        and plain.net.config["augment_dim"] == 0
        and agree(plain, theirs)
    )


@pytest.mark.parametrize(
    "given, implied",
    [
        (0.003, 0.003),
        (0.002, 0.002),
        (0, 0.003),
        (None, 0.003),
        ("text", 0.003),
        (float("nan"), 0.003),
    ],
)
def test_the_boundary_is_that_of_the_class_in_the_file_unless_overruled(given, implied, tmp_path):
    theirs = edm_files.network(precond=edm_files.ECMPrecond)
    theirs.sigma_min = given
    path = written(tmp_path / "m.pkl", theirs)
    mine = weights.load_edm(path)
    assert mine.sigma_min == implied
    x, t = inputs()
    assert torch.allclose(mine(x, implied), x, atol=1e-6) and not torch.allclose(
        mine.train()(x, implied), x, atol=1e-6
    )  # in training it stands at 0
    assert (
        weights.load_edm(path, sigma_min=0.01).sigma_min == 0.01
        and weights.load_edm(path, sigma_min=0).sigma_min == 0
    )
    plain = edm_files.network()
    plain.sigma_min = 0.002  # EDM's attribute is the range it was made for, not a boundary
    assert weights.load_edm(written(path, plain)).sigma_min == 0


def test_sigma_data_comes_from_the_file(tmp_path):
    theirs = edm_files.network()
    theirs.sigma_data = 0.7
    mine = weights.load_edm(written(tmp_path / "m.pkl", theirs))
    assert mine.sigma_data == 0.7 and agree(mine, theirs)


def test_half_precision_and_the_bare_network_are_read(tmp_path):
    theirs = edm_files.network(ncsn=True)
    (tmp_path / "bare.pkl").write_bytes(edm_files.pickled(theirs))
    assert agree(weights.load_edm(tmp_path / "bare.pkl"), theirs)
    mine, rounded = weights.load_edm(written(tmp_path / "m.pkl", theirs.half())), theirs.float()
    assert all(v.dtype == torch.float32 for v in mine.state_dict().values()) and agree(
        mine, rounded
    )


def test_a_loaded_network_can_be_trained_and_saved(tmp_path):
    mine = weights.load_edm(written(tmp_path / "m.pkl", edm_files.network(labels=3))).train()
    x, t = inputs()
    mine(x, t).square().sum().backward()
    assert all(
        p.requires_grad and p.grad is not None and not p.is_meta
        for n, p in mine.named_parameters()
        if "map_label" not in n
    )
    assert same(mine, weights.load(weights.save(mine, tmp_path / "m.safetensors")))


@pytest.mark.parametrize("kind", ["both", "ncsnpp_classes"])
def test_a_converted_file_gives_the_same_model_bit_for_bit_and_says_where_it_is_from(
    kind, tmp_path
):
    path = written(
        tmp_path / "network-snapshot.pkl",
        edm_files.network(precond=edm_files.ECMPrecond, **KINDS[kind]),
    )
    out = weights.convert(path, tmp_path / "out" / "m.safetensors", augment=True)
    mine, twin = weights.load_edm(path, augment=True), weights.load(out)
    assert (
        same(mine, twin)
        and twin.sigma_min == 0.003
        and weights.describe(mine) == weights.describe(twin)
        and torch.equal(mine(*inputs()), twin(*inputs()))
    )
    assert weights.header(out)["provenance"] == dict(
        source="network-snapshot.pkl",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        licence="CC BY-NC-SA 4.0",
    )
    with pytest.raises(FileNotFoundError):
        weights.convert(tmp_path / "none.pkl", out)


def test_a_file_says_what_it_is_and_whether_it_is_a_released_teacher(tmp_path, monkeypatch):
    path = written(tmp_path / "m.pkl", edm_files.network(labels=10, augment=9))
    facts = weights.edm_facts(path)
    theirs = edm_files.network(labels=10, augment=9)
    assert (
        facts["teacher"] is None
        and facts["parameters"] == sum(p.numel() for p in theirs.parameters())
        and facts["tensors"] == len(theirs.state_dict())
    )
    assert (
        facts["settings"]["label_dim"] == 10
        and facts["stored"] == ["float32"]
        and json.loads(json.dumps(facts)) == facts
    )
    monkeypatch.setitem(weights.TEACHERS, "mine", dict(url="", sha256=facts["sha256"], licence=""))
    assert weights.edm_facts(path)["teacher"] == "mine"
    assert (
        weights.TEACHERS["edm-cifar10-32x32-uncond-vp"]["sha256"]
        == "4d5dcc1f1d0d41c8934ad21626eeddbdc0460182becf9fc059a0631b1eedb4da"
    )


def test_the_full_cifar10_networks_have_the_published_sizes():
    with torch.device("meta"):
        nets = {
            n: edm_files.SongUNet(
                resolution=32, width=128, mult=(2, 2, 2), blocks=4, attention=(16,), **kw
            )
            for n, kw in (
                (55_732_739, {}),
                (55_733_891, dict(augment=9)),
                (55_735_299, dict(labels=10, augment=9)),
                (56_397_827, dict(ncsn=True, augment=9)),
            )
        }
    for n, net in nets.items():
        shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
        with torch.device("meta"):
            own = UNet(**weights._settings(shapes))
        assert {k: tuple(v.shape) for k, v in own.state_dict().items()} == shapes and sum(
            p.numel() for p in own.parameters()
        ) == n


# ---- files that hold something else


def changed(change, **kw):
    model = edm_files.network(**kw)
    change(model)
    return edm_files.snapshot(model)


def set_on(name, key, value):
    return lambda m: m.get_submodule(name).__dict__.update({key: value})


def rename(part, cls):
    def act(m):
        m.get_submodule(part).__class__ = type(cls, (m.get_submodule(part).__class__,), {})

    return act


def cut(name):
    def act(m):
        delattr(m.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])

    return act


def edm2():
    model = edm_files.EDMPrecond(None)
    del model.model
    model.unet = edm_files.Linear(3, 3)
    return edm_files.snapshot(model)


OTHERS = {
    "several heads": (
        lambda: changed(set_on("model.enc.4x4_block0", "num_heads", 2)),
        ["several attention heads"],
    ),
    "adaptive scale": (
        lambda: changed(set_on("model.dec.8x8_up", "adaptive_scale", True)),
        ["adaptive_scale"],
    ),
    "another skip scale": (
        lambda: changed(set_on("model.dec.8x8_up", "skip_scale", 1.0)),
        ["skip_scale"],
    ),
    "another epsilon": (
        lambda: changed(set_on("model.enc.8x8_block0.norm0", "eps", 1e-5)),
        ["eps"],
    ),
    "other groups": (
        lambda: changed(set_on("model.enc.8x8_block0.norm0", "num_groups", 1)),
        ["groups"],
    ),
    "another embedding": (
        lambda: changed(set_on("model.map_noise", "endpoint", False)),
        ["endpoint"],
    ),
    "other positions": (
        lambda: changed(set_on("model.map_noise", "max_positions", 100)),
        ["max_positions"],
    ),
    "another filter": (
        lambda: changed(lambda m: m.model.enc["4x4_down"].conv0.resample_filter.mul_(2)),
        ["resampling filter"],
    ),
    "text for a number": (
        lambda: changed(set_on("model.dec.8x8_up", "skip_scale", "much")),
        ["skip_scale"],
    ),
    "no first layer": (lambda: changed(cut("model.map_layer0")), ["neither DDPM++ nor NCSN++"]),
    "a missing weight": (
        lambda: changed(cut("model.dec.8x8_block1.conv1.weight")),
        ["does not fit", "lacks 1", "dec.8x8_block1.conv1.weight"],
    ),
    "an unknown part": (
        lambda: changed(lambda m: m.model.dec.update({"8x8_aux_skip": edm_files.Linear(2, 2)})),
        ["has unknown", "aux_skip"],
    ),
    "another shape": (
        lambda: changed(
            lambda m: setattr(m.model.dec["8x8_block1"], "affine", edm_files.Linear(5, 8))
        ),
        ["does not fit", "(8, 5) there"],
    ),
    "no sigma_data": (lambda: changed(set_on("", "sigma_data", "half")), ["sigma_data"]),
    "variance preserving": (lambda: changed(rename("", "VPPrecond")), ["VPPrecond"]),
    "another network": (
        lambda: changed(lambda m: setattr(m, "model", edm_files.Linear(3, 3))),
        ["class Linear"],
    ),
    "no network": (
        lambda: changed(lambda m: setattr(m, "model", None)),
        ["without a network named 'model'"],
    ),
    "EDM2": (edm2, ["EDM2"]),
    "a dictionary": (lambda: pickle.dumps(dict(a=1), 4), ["without a network under 'ema'"]),
    "a number": (lambda: pickle.dumps(3, 4), ["without a network"]),
    "state dict": (lambda: pickle.dumps(dict(ema=dict(w=torch.ones(2))), 4), ["without a network"]),
    "weights that are text": (
        lambda: changed(lambda m: m.model.map_layer0._parameters.update(weight="abc")),
        ["map_layer0.weight"],
    ),
    "a scalar": (
        lambda: changed(
            lambda m: m.model.enc["8x8_block0"].norm0._parameters.update(weight=torch.tensor(1.0))
        ),
        ["m.pkl"],
    ),
    "a network of many terabytes": (
        lambda: changed(
            lambda m: m.model.enc["8x8_conv"]._parameters.update(weight=torch.empty(10**9, 3, 0, 3))
        ),
        ["m.pkl"],
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_this_kit_does_not_build_is_named_in_one_sentence(kind, tmp_path):
    make, words = OTHERS[kind]
    (tmp_path / "m.pkl").write_bytes(make())
    for reader in (weights.load_edm, lambda p: weights.convert(p, tmp_path / "out.safetensors")):
        with pytest.raises(ValueError) as error:
            reader(tmp_path / "m.pkl")
        one_sentence(error, "m.pkl", *words)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_renamed_class_of_the_same_network_is_read(tmp_path):
    theirs = edm_files.network()
    rename("model", "MyUNet")(theirs)
    assert agree(weights.load_edm(written(tmp_path / "m.pkl", theirs)), theirs)


@pytest.mark.parametrize(
    "content, word",
    [
        (b"", "is empty"),
        (b"<html>Quota</html>", "web page"),
        (b"hello", "not a pickle"),
        (b"PK\x03\x04" + bytes(50), "zip"),
        (b"\x80\x04}q", "cut short"),
    ],
)
def test_what_is_no_pickle_of_a_network_is_named(content, word, tmp_path):
    (tmp_path / "m.pkl").write_bytes(content)
    with pytest.raises(ValueError) as error:
        weights.load_edm(tmp_path / "m.pkl")
    one_sentence(error, "m.pkl", word)
    with pytest.raises(FileNotFoundError):
        weights.load_edm(tmp_path / "none.pkl")
    (tmp_path / "m.pkl").write_bytes(
        weights.save(MLP(2, 8, 1), tmp_path / "m.safetensors").read_bytes()
    )
    with pytest.raises(ValueError, match="safetensors file.*weights.load"):
        weights.load_edm(tmp_path / "m.pkl")


def test_a_malicious_file_is_refused_and_never_run(tmp_path):
    model, trace = edm_files.network(), tmp_path / "trace"
    model.model.enc["4x4_down"].extra = Bomb(trace)
    with pytest.raises(ValueError) as error:
        weights.load_edm(written(tmp_path / "m.pkl", model))
    one_sentence(error, "open", "nothing in it was run")
    assert not trace.exists()


def doubled(depth):
    "Tuples of tuples, few in the file, 2^depth to whoever walks through them."
    tangle = ()
    for _ in range(depth):
        tangle = (tangle, tangle)
    return tangle


HEAVY = {
    "a scale that multiplies": (
        "skip_scale",
        set_on("model.dec.8x8_up", "skip_scale", doubled(60)),
    ),
    "groups that multiply": ("groups", set_on("model.dec.8x8_up.norm0", "num_groups", doubled(60))),
    "a scale beyond any float": ("skip_scale", set_on("model.dec.8x8_up", "skip_scale", 2**2000)),
    "a deviation that multiplies": ("sigma_data", set_on("", "sigma_data", doubled(60))),
    "a deviation beyond any float": ("sigma_data", set_on("", "sigma_data", 2**2000)),
}


@unix
@pytest.mark.parametrize("kind", HEAVY)
def test_an_attribute_that_would_take_for_ever_is_named_without_being_spelled_out(kind, tmp_path):
    word, change = HEAVY[kind]
    (tmp_path / "m.pkl").write_bytes(changed(change))

    def work():
        signal.alarm(60)  # what hangs is ended
        for reader in (weights.load_edm, weights.edm_facts):
            with pytest.raises(ValueError) as error:
                reader(tmp_path / "m.pkl")
            one_sentence(error, "m.pkl", word)
            assert len(str(error.value)) < 300 + len(str(tmp_path))

    assert ending(in_child(work)) == 0


def test_numbers_under_more_names_than_the_file_can_hold_are_refused(tmp_path):
    def share(times):
        return changed(
            lambda m: m.model._buffers.update({f"extra{i}": numbers for i in range(times)})
        )

    numbers = torch.zeros(2_000_000, dtype=torch.float16)  # 4 MB; under 4000 names 32 GB of float32
    (tmp_path / "m.pkl").write_bytes(share(4000))
    for reader in (weights.load_edm, weights.edm_facts):
        with pytest.raises(ValueError) as error:
            reader(tmp_path / "m.pkl")
        one_sentence(error, "m.pkl", "same numbers under many names")


# ---- fetching

CONTENT = pickle.dumps(dict(ema=torch.arange(500_000.0)), 4)
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """A web server on this machine.

    `stop`: after how many bytes it hangs up (None: not at all); `status`; `page`: the body of an
    error page instead; `sized`: whether it says how long the file is; `asked`: how often it was."""

    def __init__(self):
        self.content, self.stop, self.status, self.page = CONTENT, None, 200, None
        self.sized, self.asked = True, 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked += 1
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/m.pkl"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, request):
        if self.status != 200:
            return request.send_error(self.status)
        body = self.page or self.content
        request.send_response(200)
        if self.sized:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: self.stop])


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    s = Server()
    yield s
    s.http.shutdown()
    s.http.server_close()


def fetched(server, folder, **kw):
    path = weights.fetch(server.url, folder / "m.pkl", **kw)
    assert path.read_bytes() == server.content and os.listdir(folder) == ["m.pkl"]
    return path


def test_a_file_is_fetched_once_and_then_used(server, tmp_path):
    for _ in range(2):
        fetched(server, tmp_path, sha256=SHA.upper())
    assert server.asked == 1


def test_a_file_there_already_is_used_if_it_is_the_right_one(server, tmp_path):
    (tmp_path / "m.pkl").write_bytes(b"mine")
    assert weights.fetch(server.url, tmp_path / "m.pkl").read_bytes() == b"mine"
    with pytest.raises(ValueError) as error:
        weights.fetch(server.url, tmp_path / "m.pkl", SHA)
    one_sentence(error, "is there already but", "take it away")
    assert (tmp_path / "m.pkl").read_bytes() == b"mine" and server.asked == 0


@pytest.mark.parametrize("sha256", [SHA, None], ids=["digest", "none"])
@pytest.mark.parametrize("sized", [True, False])
def test_a_broken_download_leaves_nothing_and_the_next_call_fetches_all(
    sha256, sized, server, tmp_path
):
    server.stop, server.sized = 700_000, sized
    with pytest.raises((ValueError, ConnectionError)) as error:
        weights.fetch(server.url, tmp_path / "m.pkl", sha256)
    one_sentence(error, server.url, "it broke off" if sha256 else "cut short")
    assert os.listdir(tmp_path) == []
    server.stop = None
    fetched(server, tmp_path, sha256=sha256)


def test_a_file_that_is_not_the_promised_one_is_not_kept(server, tmp_path):
    with pytest.raises(ValueError) as error:
        weights.fetch(server.url, tmp_path / "m.pkl", "0" * 64)
    one_sentence(error, server.url, "not the SHA-256 0000", "by hand")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "sha256, says", [(SHA, "SHA-256"), (None, "web page")], ids=["digest", "none"]
)
def test_an_error_page_is_no_file(sha256, says, server, tmp_path):
    server.page = b"<!DOCTYPE html><html>Please sign in</html>"
    with pytest.raises(ValueError) as error:
        weights.fetch(server.url, tmp_path / "m.pkl", sha256)
    one_sentence(error, server.url, says)
    assert ".fetch-" not in str(error.value) and os.listdir(tmp_path) == []


def test_a_pickle_that_would_run_something_is_not_kept(server, tmp_path):
    "Of the released weights one has no published checksum; what comes under its name is read."
    server.content = pickle.dumps(Bomb(tmp_path / "trace"))
    with pytest.raises(ValueError) as error:
        weights.fetch(server.url, tmp_path / "m.pkl")
    one_sentence(error, server.url, "nothing in it was run")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("status", [404, 403, 503])
def test_a_server_that_refuses_is_named_with_its_reason(status, server, tmp_path):
    server.status = status
    with pytest.raises(ConnectionError) as error:
        weights.fetch(server.url, tmp_path / "m.pkl")
    one_sentence(error, str(status), server.url)
    assert server.asked == 1 and os.listdir(tmp_path) == []


def test_without_a_network_one_sentence_says_so(server, tmp_path):
    server.http.shutdown()
    server.http.server_close()
    for url in (server.url, "http://nowhere.invalid/m.pkl"):
        with pytest.raises(ConnectionError) as error:
            weights.fetch(url, tmp_path / "m.pkl")
        one_sentence(error, url, "cannot be reached", "by hand")


def test_a_body_without_a_length_is_taken_to_its_end(server, tmp_path):
    server.sized = False
    fetched(server, tmp_path, sha256=SHA)


def test_several_who_fetch_at_once_all_have_the_file(server, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        fetch = lambda _: weights.fetch(server.url, tmp_path / "m.pkl", SHA)
        assert set(pool.map(fetch, range(4))) == {tmp_path / "m.pkl"}
    fetched(server, tmp_path, sha256=SHA)


@unix
def test_a_full_disk_is_not_blamed_on_the_network(server, tmp_path):
    def work():
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        weights.fetch(server.url, tmp_path / "m.pkl")

    pid = in_child(lambda: raises_no_connection_error(work))
    assert ending(pid) == 28 and not (tmp_path / "m.pkl").exists()


def raises_no_connection_error(work):
    try:
        work()
    except ConnectionError:
        os._exit(7)


# ---- teachers

NAME = "edm-cifar10-32x32-uncond-vp"


@pytest.fixture
def places(tmp_path, monkeypatch):
    "An empty working folder and a folder named by ECT_NB_DATA; no network."
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("ECT_NB_DATA", str(home))
    monkeypatch.setattr(weights, "fetch", lambda url, path, sha256=None: (url, path, sha256))
    return home, here


def test_a_teacher_not_at_hand_is_named_with_command_size_and_licence(places):
    for name in weights.TEACHERS:
        with pytest.raises(FileNotFoundError) as error:
            weights.teacher(name)
        size = "560 MB" if name.startswith("edm2") else "223 MB"
        one_sentence(error, f"python -m ect_nb teacher {name}", size, "CC BY-NC-SA 4.0")
    with pytest.raises(ValueError, match="no teacher is called 'edm2'.*" + NAME):
        weights.teacher("edm2")


def test_a_teacher_is_found_in_the_folder_the_home_and_beside(places, tmp_path):
    home, here = places
    (here / "data").mkdir()
    for place, folder in (
        (here / "data", None),
        (home, None),
        (tmp_path / "own", tmp_path / "own"),
    ):
        place.mkdir(exist_ok=True)
        for suffix in (".safetensors", ".pkl"):
            (place / (NAME + suffix)).touch()
            found = weights.teacher(NAME, folder)
            assert found.resolve() == (place / (NAME + suffix)).resolve()


def test_a_teacher_is_fetched_only_when_told_and_where_told(places, tmp_path, monkeypatch):
    home, here = places
    url, path, sha256 = weights.teacher(NAME, tmp_path / "own", download=True)
    assert (
        path == tmp_path / "own" / f"{NAME}.pkl"
        and url.endswith(f"/edm/pretrained/{NAME}.pkl")
        and sha256 == weights.TEACHERS[NAME]["sha256"]
    )
    assert weights.teacher(NAME, download=True)[1] == home / f"{NAME}.pkl"
    monkeypatch.delenv("ECT_NB_DATA")
    assert (
        weights.teacher(NAME, download=True)[1].resolve()
        == (here / "data" / f"{NAME}.pkl").resolve()
    )
