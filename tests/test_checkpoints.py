import json, os, pickle, signal, struct, sys, time
import pytest, torch
from torch import nn
from safetensors.torch import load_file, save_file
from ect_nb import checkpoints
from ect_nb.diffusion import Precond
from ect_nb.networks import MLP, Classifier, UNet

unix = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and resource limits")

def unet(**kw): return UNet(**{**dict(resolution=8, channels=1, model_channels=8, channel_mult=(1, 2), num_blocks=1, attention=(4,), dropout=0.1), **kw})

def foreign(): return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))

def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)

MAKERS = dict(unet=lambda: Precond(unet(label_dim=3, patch=2), sigma_data=0.7), mlp=lambda: MLP(2, 8, 2, 0.3), precond_mlp=lambda: Precond(MLP(1, 8, 1)), classifier=lambda: Classifier(3, 4, 8))

@pytest.mark.parametrize("kind", MAKERS)
def test_a_model_comes_back_bit_for_bit(kind, tmp_path):
    model = MAKERS[kind]().train()
    path = checkpoints.save(model, tmp_path / "deep" / "down" / "m.safetensors", seed=3, data="cifar10")
    twin = checkpoints.load(str(path))
    assert same(model, twin) and type(twin) is type(model) and not any(m.training for m in twin.modules()) and model.training
    assert getattr(twin, "config", None) == getattr(model, "config", None)
    if isinstance(model, Precond): assert twin.sigma_data == model.sigma_data and twin.net.config == model.net.config
    found = checkpoints.header(path)
    assert found["provenance"] == dict(seed=3, data="cifar10") and found["format"] == "ect_nb 1"
    assert checkpoints.describe(checkpoints.build(found["model"])) == checkpoints.describe(model) == found["model"]
    assert os.listdir(path.parent) == ["m.safetensors"]

def test_any_reader_of_safetensors_finds_the_tensors_under_their_names(tmp_path):
    model = Precond(unet())
    tensors = load_file(checkpoints.save(model, tmp_path / "m.safetensors"))
    assert tensors.keys() == model.state_dict().keys() and torch.equal(tensors["net.enc.8x8_conv.weight"], model.net.enc["8x8_conv"].weight)

@pytest.mark.parametrize("wrap", [lambda m: m, Precond])
def test_a_foreign_network_is_filled_in_place(wrap, tmp_path):
    model, twin = wrap(foreign()), wrap(foreign())
    path = checkpoints.save(model, tmp_path / "m.safetensors")
    assert not same(model, twin) and checkpoints.load(path, into=twin) is twin and same(model, twin)
    assert checkpoints.describe(model) is None and checkpoints.header(path)["model"] is None
    with pytest.raises(ValueError, match="does not say of which network.*into"): checkpoints.load(path)

@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_a_file_holds_rounded_weights_and_loads_as_float32(dtype, tmp_path):
    model = Classifier(1, 4, 64)
    whole, half = (checkpoints.save(model, tmp_path / str(d), dtype=d) for d in (None, dtype))
    twin = checkpoints.load(half)
    assert half.stat().st_size < 0.52 * whole.stat().st_size
    for k, v in twin.state_dict().items():
        own = model.state_dict()[k]
        assert v.dtype == own.dtype and torch.equal(v, own.to(dtype).to(own.dtype) if own.is_floating_point() else own), k
    assert all(v.dtype == torch.float32 for v in model.parameters())      # the model in memory is left as it was

def test_tied_and_strided_tensors_are_written_as_they_look(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].bias = nn.Parameter(torch.arange(6.0)[::2])
    tensors = load_file(checkpoints.save(model, tmp_path / "m.safetensors"))
    assert torch.equal(tensors["0.weight"], tensors["1.weight"]) and tensors["0.bias"].tolist() == [0, 2, 4]

# ---- all or nothing

def in_child(work):
    "Run `work` in a process of its own; its id."
    pid = os.fork()
    if pid: return pid
    try: work(); os._exit(0)
    except OSError: os._exit(28)
    except BaseException: os._exit(1)

def ending(pid):
    status = os.waitpid(pid, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

@unix
@pytest.mark.parametrize("limit", [0, 100, 4096])
def test_a_full_disk_leaves_the_old_file_and_no_scraps(limit, tmp_path):
    import resource
    old, new, path = MLP(2, 32, 2), MLP(2, 32, 2), tmp_path / "m.safetensors"
    checkpoints.save(old, path)
    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        checkpoints.save(new, path)
    assert ending(in_child(work)) == 28      # an OSError
    assert same(checkpoints.load(path), old) and os.listdir(tmp_path) == ["m.safetensors"]

@unix
def test_a_process_killed_before_the_file_is_whole_leaves_the_old_one(tmp_path, monkeypatch):
    old, path = MLP(2, 8, 1), tmp_path / "m.safetensors"
    checkpoints.save(old, path)
    def work():
        resting = lambda handle: (open(tmp_path / "reached", "w").close(), time.sleep(60))
        checkpoints.os.fsync = resting
        checkpoints.write_atomically(path, b"x" * 100_000)
    pid = in_child(work)
    deadline = time.time() + 10
    while not (tmp_path / "reached").exists() and time.time() < deadline: time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert ending(pid) == -signal.SIGKILL and (tmp_path / "reached").exists() and same(checkpoints.load(path), old)

@unix
def test_a_process_killed_at_any_moment_leaves_one_of_the_files_whole(tmp_path):
    a, b, path = b"a" * 2_000_000, b"b" * 3_000_000, tmp_path / "m"
    checkpoints.write_atomically(path, a)
    def work():
        while True:
            for data in (b, a): checkpoints.write_atomically(path, data)
    for i in range(8):
        pid = in_child(work)
        time.sleep(0.003 + 0.011 * i)
        os.kill(pid, signal.SIGKILL)
        assert ending(pid) == -signal.SIGKILL and path.read_bytes() in (a, b)

def test_what_cannot_be_written_as_plain_data_leaves_the_old_file(tmp_path):
    old, path = MLP(2, 8, 1), tmp_path / "m.safetensors"
    checkpoints.save(old, path, note="first")
    with pytest.raises(TypeError): checkpoints.save(MLP(2, 8, 1), path, note=object())
    assert same(checkpoints.load(path), old) and checkpoints.header(path)["provenance"] == dict(note="first") and os.listdir(tmp_path) == ["m.safetensors"]

# ---- files that are not checkpoints

class Bomb:
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), "w")

def one_sentence(error, *words):
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text

@pytest.mark.parametrize("content, words", [
    (b"", "is empty"), (b"<!DOCTYPE html><html>Quota exceeded</html>", "web page"), (b"\n  <html>\n<body>404</body></html>", "web page"), (b"version https://git-lfs.github.com/spec/v1", "not a whole"),
    (b"\xef\xbb\xbf<html></html>", "web page"), (b"hello", "not a whole"), (b"\x17\xa4\x03" * 2000, "not a whole"), (struct.pack("<Q", 2**40) + b"{}", "not a whole"), (struct.pack("<Q", 4) + b"true", "not a whole")])
@pytest.mark.parametrize("reader", [checkpoints.load, checkpoints.header, lambda path: checkpoints.load(path, into=MLP())])
def test_what_is_no_checkpoint_is_named_in_one_sentence(reader, content, words, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error: reader(path)
    one_sentence(error, words, "m.safetensors")

@pytest.mark.parametrize("share", [0.001, 0.05, 0.3, 0.9, 0.9999])
def test_a_file_cut_short_says_so(share, tmp_path):
    path = checkpoints.save(MLP(2, 32, 2), tmp_path / "m.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:int(share * len(whole))])
    with pytest.raises(ValueError) as error: checkpoints.load(path)
    one_sentence(error, "cut short")

@pytest.mark.parametrize("write", [lambda bomb, path: path.write_bytes(pickle.dumps(bomb)), lambda bomb, path: path.write_bytes(pickle.dumps(bomb, 2)),
                                   lambda bomb, path: torch.save(bomb, path), lambda bomb, path: torch.save(bomb, path, _use_new_zipfile_serialization=False)])
def test_a_pickle_is_refused_and_never_run(write, tmp_path):
    path, trace = tmp_path / "m.safetensors", tmp_path / "trace"
    write(Bomb(trace), path)
    for into in (None, MLP()):
        with pytest.raises(ValueError) as error: checkpoints.load(path, into=into)
        one_sentence(error, "pickle", "only .safetensors")
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace))).close()
    assert trace.exists()       # the charge was live

def test_a_missing_file_and_a_folder_are_not_found(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        for reader in (checkpoints.load, checkpoints.header):
            with pytest.raises(FileNotFoundError) as error: reader(path)
            one_sentence(error, "no checkpoint at", str(path))

# ---- checkpoints of other networks

def edit(path, meta=None, change=lambda tensors: None):
    "Rewrite a checkpoint with other metadata or tensors."
    tensors, head = load_file(path), checkpoints.header(path)
    change(tensors)
    save_file(tensors, path, {"format": "ect_nb 1", "model": json.dumps(head["model"]), **(meta or {})})

@pytest.mark.parametrize("change, words", [
    (lambda d: d.pop("layers.0.weight"), ("lacks 1 tensor", "layers.0.weight")), (lambda d: d.update(extra=torch.zeros(1)), ("has unknown 1 tensor", "extra")),
    (lambda d: d.update({"layers.0.weight": torch.zeros(8, 4)}), ("layers.0.weight is (8, 4) there and (8, 35) here",)), (lambda d: [d.pop(k) for k in list(d)[1:]], ("lacks 3 tensors",))])
def test_tensors_that_do_not_fit_are_named_and_nothing_is_filled(change, words, tmp_path):
    path, target = checkpoints.save(MLP(2, 8, 1), tmp_path / "m.safetensors"), MLP(2, 8, 1)
    edit(path, change=change)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    for into in (None, target):
        with pytest.raises(ValueError) as error: checkpoints.load(path, into=into)
        one_sentence(error, "does not fit this network", *words)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())

def test_another_network_is_refused(tmp_path):
    path = checkpoints.save(Precond(MLP(2, 8, 1)), tmp_path / "m.safetensors")
    for into in (MLP(2, 8, 1), Precond(MLP(2, 9, 1)), Precond(unet()), foreign()):
        with pytest.raises(ValueError, match="does not fit this network"): checkpoints.load(path, into=into)

@pytest.mark.parametrize("model, words", [
    ('{"name": "Transformer", "depth": 3}', ("unknown network 'Transformer'", "MLP", "newer version")), ('{"depth": 3}', ("unknown network None",)), ('{"name": "Precond", "net": {"name": "os.system"}}', ("unknown network 'os.system'",)),
    ('{"name": "MLP", "dim": 2, "wings": 2}', ("MLP", "wings")), ('"stable-diffusion"', ("m.safetensors",)), ("stable-diffusion", ("m.safetensors",))])
def test_a_description_that_cannot_be_built_is_named_in_one_sentence(model, words, tmp_path):
    path = checkpoints.save(MLP(2, 8, 1), tmp_path / "m.safetensors")
    edit(path, meta=dict(model=model))
    with pytest.raises(ValueError) as error: checkpoints.load(path)
    one_sentence(error, *words)
    assert not isinstance(error.value, json.JSONDecodeError)

def test_a_foreign_safetensors_file_can_fill_a_network_that_fits(tmp_path):
    source, twin = foreign(), foreign()
    for meta in (None, {"format": "pt"}, {"format": "pt", "model": "somebody else's"}):
        save_file(source.state_dict(), tmp_path / "m.safetensors", meta)
        assert same(checkpoints.load(tmp_path / "m.safetensors", into=twin), source)
        with pytest.raises(ValueError, match="pass the network as `into`"): checkpoints.load(tmp_path / "m.safetensors")

def test_a_subclass_is_not_mistaken_for_its_parent():
    class Mine(MLP): pass
    class MyPrecond(Precond): pass
    assert checkpoints.describe(Mine()) is None and checkpoints.describe(Precond(Mine())) is None and checkpoints.describe(MyPrecond(MLP())) is None

def test_filling_a_network_leaves_it_on_its_device(tmp_path):
    path = checkpoints.save(foreign(), tmp_path / "m.safetensors")
    device = next((name for name, there in (("cuda", torch.cuda), ("mps", torch.backends.mps)) if there.is_available()), None)
    if device is None: pytest.skip("needs a second device, CUDA or MPS")
    assert next(checkpoints.load(path, into=foreign().to(device)).parameters()).device.type == device
