"What a pickle may not do, shown with pickles that would do it, and what is read all the same."

import copyreg
import edm_files
import hashlib
import io
import numpy as np
import os
import pickle
import pickletools
import pytest
import struct
import sys
import torch
from collections import OrderedDict
from ect_nb.io import pickles
from safetensors.torch import save_file


class Touch:
    "Opened, it touches a file."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (line(self.path),)


class Setter:
    "Its `__setstate__` touches a file."

    def __init__(self, path):
        self.path = path

    def __setstate__(self, state):
        open(state["path"], "w").close()


class Newer:
    def __new__(cls, *, path=None):
        if path:
            open(path, "w").close()
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (), dict(path=self.path)


class Persistent(pickle.Pickler):
    def persistent_id(self, obj):
        return "number 7" if obj == 7 else None


def line(path):
    return f"open({str(path)!r}, 'w').close()"


def text(s):
    return (
        b"\x8c" + bytes([len(s)]) + s.encode()
        if len(s) < 256
        else b"X" + struct.pack("<I", len(s)) + s.encode()
    )


def quoted(s):
    return repr(str(s)).encode()


def stack_global(module, name):
    return text(module) + text(name) + b"\x93"


def data(content):
    return b"B" + struct.pack("<I", len(content)) + content


def newer(path):
    made = Newer()
    made.path = str(path)
    return pickle.dumps(made, 4)


def extension(path):
    if ("os", "mkdir") not in copyreg._extension_registry:
        copyreg.add_extension("os", "mkdir", 241)
    copyreg._extension_cache[241] = (
        os.mkdir
    )  # known already in this process: Python's unpickler does not even ask find_class
    return b"\x80\x04\x82\xf1" + text(str(path)) + b"\x85R."


LIVE = {  # each touches the file `p` in Python's own unpickler; what the refusal must name
    "a global of protocol 0": (
        lambda p: b"cbuiltins\nexec\n(S" + quoted(line(p)) + b"\ntR.",
        "builtins.exec",
    ),
    "a global in a dictionary of protocol 0": (
        lambda p: pickle.dumps(dict(ema=Touch(p)), 0),
        "__builtin__.exec",
    ),
    "a global of protocol 2": (lambda p: pickle.dumps(Touch(p), 2), "__builtin__.exec"),
    "names on the stack": (lambda p: pickle.dumps(dict(ema=Touch(p)), 4), "builtins.exec"),
    "names out of the memo": (
        lambda p: (
            b"\x80\x04"
            + text("exec")
            + b"\x940"
            + text("builtins")
            + b"h\x00\x93"
            + text(line(p))
            + b"\x85R."
        ),
        "instruction POP",
    ),
    "a dotted name": (
        lambda p: (
            b"\x80\x04" + stack_global("pickle", "codecs.builtins.exec") + text(line(p)) + b"\x85R."
        ),
        "pickle.codecs.builtins.exec",
    ),
    "a dotted name beneath a permitted module": (
        lambda p: (
            b"\x80\x04"
            + stack_global("torch.storage", "io.open")
            + text(str(p))
            + text("w")
            + b"\x86R."
        ),
        "torch.storage.io.open",
    ),
    "a state with an evil setter": (
        lambda p: pickle.dumps(Setter(str(p)), 4),
        "test_pickles.Setter",
    ),
    "new arguments by keyword": (newer, "test_pickles.Newer"),
    "an instance of protocol 0": (
        lambda p: b"(S" + quoted(line(p)) + b"\nibuiltins\nexec\n.",
        "builtins.exec",
    ),
    "an object of protocol 1": (
        lambda p: b"(cbuiltins\nexec\nS" + quoted(line(p)) + b"\no.",
        "builtins.exec",
    ),
    "a registered extension": (extension, "instruction EXT1"),
}


def refused(path, *words):
    with pytest.raises(ValueError) as error:
        pickles.read(path)
    said = str(error.value)
    assert (
        "\n" not in said and len(said) < 400 and path.name in said and all(w in said for w in words)
    ), said


@pytest.mark.parametrize("kind", LIVE)
def test_a_pickle_that_would_run_something_is_refused_by_name_and_runs_nothing(kind, tmp_path):
    path, trace = tmp_path / "m.pkl", tmp_path / "trace"
    make, word = LIVE[kind]
    path.write_bytes(make(trace))
    refused(path, "nothing in it was run", word)
    assert not trace.exists()
    try:
        pickle.loads(path.read_bytes())
    except (TypeError, pickle.UnpicklingError):
        pass  # some complain after the deed
    assert trace.exists()  # the charge was live


def test_a_charge_hidden_anywhere_in_a_network_is_refused(tmp_path):
    def hide(where):
        model = edm_files.network()
        where(model)
        return edm_files.snapshot(model)

    trace, path = tmp_path / "trace", tmp_path / "m.pkl"
    touch = Touch(trace)
    for where in (
        lambda m: m.__dict__.update(extra=touch),
        lambda m: m.model.enc["4x4_down"].__dict__.update(skip_scale=touch),
        lambda m: m.model._forward_hooks.update({3: touch}),
        lambda m: m.model.map_noise._buffers.update(freqs=touch),
        lambda m: m.model.enc.__dict__.update(note=[[touch]]),
    ):
        path.write_bytes(hide(where))
        refused(path, "builtins.exec")
    assert not trace.exists()


def test_the_source_text_in_the_file_is_a_checksum_and_nothing_more(tmp_path, monkeypatch):
    monkeypatch.setattr(edm_files.Pickler, "source", line(tmp_path / "trace"))
    (tmp_path / "m.pkl").write_bytes(edm_files.snapshot(edm_files.network()))
    top = pickles.read(tmp_path / "m.pkl")
    assert (
        top["ema"].source == hashlib.sha256(line(tmp_path / "trace").encode()).hexdigest()
        and not (tmp_path / "trace").exists()
    )


def test_persistent_ids_are_refused(tmp_path):
    for protocol in (0, 1, 2, 4):
        buffer = io.BytesIO()
        Persistent(buffer, protocol).dump(7)
        (tmp_path / "m.pkl").write_bytes(buffer.getvalue())
        refused(tmp_path / "m.pkl", "PERSID")


def test_state_with_special_names_stays_data(tmp_path):
    state = {
        "__setstate__": 1,
        "__class__": "os.system",
        "__dict__": {},
        "name": "other",
        "state": 3,
    }
    meta = dict(type="class", version=6, module_src="", class_name="Thing", state=state)
    path = tmp_path / "m.pkl"
    path.write_bytes(
        b"\x80\x04"
        + stack_global("torch_utils.persistence", "_reconstruct_persistent_obj")
        + pickle.dumps(meta, 2)[2:-1]
        + b"\x85R"
        + pickle.dumps(state, 2)[2:-1]
        + b"b."
    )
    record = pickles.read(path)
    assert type(record) is pickles.Record and record.name == "Thing" and record.state == state


@pytest.mark.parametrize(
    "build",
    [
        lambda: stack_global("collections", "OrderedDict"),
        lambda: stack_global("collections", "OrderedDict") + b")R",
        lambda: b"]",
        lambda: text("abc"),
        lambda: b"K\x01",
    ],
)
def test_nothing_but_a_record_has_attributes(build, tmp_path):
    (tmp_path / "m.pkl").write_bytes(b"\x80\x04" + build() + b"}" + text("__call__") + b"K\x01sb.")
    refused(tmp_path / "m.pkl", "changes something other than a module")


def held():
    "Pickles, without their ends, that leave each kind of thing in the unpickler's hands."
    yield from ((f"the name {m}.{n}", b"\x80\x04" + stack_global(m, n)) for m, n in pickles.ALLOWED)
    yield "a storage", stored(legacy(300))
    yield "a tensor", shaped(0, (3,), (1,))[:-1]
    yield "a kind of number", b"\x80\x04" + stack_global("numpy", "dtype") + text("f8") + b"\x85R"
    yield (
        "a record",
        b"\x80\x04" + stack_global("torch.nn.modules.container", "ModuleDict") + b")\x81",
    )


CHANGES = {
    "an attribute": b"}" + text("make") + b"Nsb",
    "a slot": b"N}" + text("__defaults__") + b")s\x86b",
    "the first item": b"K\x00Ns",
    "an item by name": text("tensor") + b"Ns",
    "some items": b"(K\x00NK\x01Nu",
    "one more": b"Na",
    "some more": b"(NNe",
    "one of a set": b"(K\x01\x90",
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_that_the_unpickler_holds_can_be_set_or_filled(change, tmp_path):
    path, before = (
        tmp_path / "m.pkl",
        [vars(c).copy() for c in vars(pickles).values() if is_ours(c)],
    )
    for what, begun in held():
        path.write_bytes(begun + CHANGES[change] + b".")
        if what == "a record" and change == "an attribute":
            assert pickles.read(path).state == dict(make=None)
        else:
            refused(path)
    assert before == [vars(c) for c in vars(pickles).values() if is_ours(c)]


def is_ours(thing):
    return getattr(thing, "__module__", "") == pickles.__name__ and hasattr(thing, "__dict__")


@pytest.mark.parametrize("module, name", list(pickles.ALLOWED))
def test_the_table_is_exact(module, name, tmp_path):
    path = tmp_path / "m.pkl"
    for m, n in (
        (module + ".x", name),
        (module, name + ".x"),
        (module, name.upper() + "_"),
        (module.upper() + "_", name),
        ("", f"{module}.{name}"),
        (f"{module}.{name}", ""),
        (module, name + " "),
    ):
        path.write_bytes(b"\x80\x04" + stack_global(m, n) + b".")
        refused(path, "asks for")
    path.write_bytes(b"\x80\x04K\x01K\x02\x93.")
    refused(path, "by other means than text")


# ---- memory and time


def legacy(numbers):
    "A storage of the `numbers` 0, 1, 2, …, as torch writes it into a pickle."
    return next(
        arg
        for op, arg, _ in pickletools.genops(pickle.dumps(torch.arange(float(numbers)), 4))
        if isinstance(arg, bytes)
    )


def stored(payload):
    return (
        b"\x80\x04" + stack_global("torch.storage", "_load_from_bytes") + data(payload) + b"\x85R"
    )


def shaped(*args, numbers=300):
    return (
        b"\x80\x04"
        + stack_global("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + stored(legacy(numbers))[2:]
        + b"".join(pickle.dumps(a, 2)[2:-1] for a in args)
        + b"\x89}tR."
    )


def promise(n):
    payload = legacy(300)
    assert payload.count(b"M\x2c\x01Ntq") == 1
    return (
        stored(payload.replace(b"M\x2c\x01Ntq", b"\x8a\x08" + struct.pack("<q", n) + b"Ntq")) + b"."
    )


HUGE = {
    "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc",
    "text that is not there": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc",
    "a long number that is not there": b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"1",
    "a negative length": b"\x80\x04\x8b" + struct.pack("<i", -5) + b"1",
    "a memo of two billion places": b"\x80\x04Kar\xff\xff\xff\x7fj\xfe\xff\xff\x7f.",
    "a storage of 2^40 numbers": promise(2**40),
    "a storage of 2^62 numbers": promise(2**62),
    "a storage of -1 numbers": promise(-1),
    "a storage of 600 numbers": promise(600),
    "a tensor beyond its storage": shaped(0, (301,), (1,)),
    "a tensor from beyond": shaped(300, (1,), (1,)),
    "a tensor with a long stride": shaped(0, (2,), (300,)),
    "a tensor of a stride of 0": shaped(0, (2**40,), (0,)),
    "a tensor of a negative size": shaped(0, (-1,), (1,)),
    "a tensor of a negative offset": shaped(-4, (2,), (1,)),
    "a tensor of overlapping rows": shaped(0, (300, 300), (0, 1)),
    "a tensor of many dimensions": shaped(0, (1,) * 60, (1,) * 60),
    "a tensor without sizes": shaped(0, 3, 1),
    "the same storage a million times": (
        b"\x80\x04"
        + stack_global("torch.storage", "_load_from_bytes")
        + b"q\x00"
        + data(legacy(10_000))
        + b"q\x01("
        + b"h\x00h\x01\x85R" * 100_000
        + b"t."
    ),
    "the same text a million times": (
        b"\x80\x04"
        + stack_global("_codecs", "encode")
        + b"q\x00"
        + text("x" * 50_000)
        + b"q\x01"
        + text("latin1")
        + b"q\x02("
        + b"h\x00h\x01h\x02\x86R" * 100_000
        + b"t."
    ),
    "too many instructions": b"\x80\x04(" + b"N" * (pickles.MAX_STEPS + 5) + b"t.",
    "a memo of sixteen million places": b"\x80\x04Nr\xff\xff\xff\x00.",
    "a memo of two billion places, put and no more": b"\x80\x04Nr\xff\xff\xff\x7f.",
    "a frame of an exabyte": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    "bytes of two gigabytes that are not there": b"\x80\x04B" + struct.pack("<I", 2**31 - 1) + b".",
    "a storage with the numbers of two": stored(legacy(300) + legacy(300)[-1208:]) + b".",
    "marks without end": b"\x80\x04" + b"(" * 400_000 + b".",
    "no mark": b"\x80\x04" + b"N" * 400_000 + b"t.",
}


def peak():
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1 if sys.platform == "darwin" else 2**-10
    )


@pytest.mark.parametrize("kind", HUGE)
def test_a_promise_that_the_file_does_not_keep_costs_no_memory(kind, tmp_path):
    path = tmp_path / "m.pkl"
    path.write_bytes(HUGE[kind])
    before = peak()
    refused(path)
    assert peak() - before < 300e6


def test_numbers_within_their_storage_are_read_as_shaped(tmp_path):
    path = tmp_path / "m.pkl"
    for args, want in (
        ((0, (300,), (1,)), torch.arange(300.0)),
        ((20, (3, 2), (1, 100)), torch.arange(300.0)[20:].as_strided((3, 2), (1, 100))),
        ((299, (), ()), torch.tensor(299.0)),
        ((0, (0, 5), (5, 1)), torch.zeros(0, 5)),
    ):
        path.write_bytes(shaped(*args))
        assert torch.equal(pickles.read(path).tensor, want)


def test_deep_and_tangled_data_end_in_a_sentence_or_in_data(tmp_path):
    path = tmp_path / "m.pkl"
    path.write_bytes(b"\x80\x04)" + b"\x85" * 200_000 + b".")  # a tuple in a tuple in a tuple
    assert type(pickles.read(path)) is tuple
    laughs = b"]q\x00" + b"".join(
        b"](" + b"h\x00" * 10 + b"e" + b"q\x00" for _ in range(100)
    )  # 10^100 leaves, 101 lists
    path.write_bytes(b"\x80\x04(" + laughs + b"t.")
    assert len(pickles.read(path)[-1]) == 10
    path.write_bytes(
        b"\x80\x04}(" + b")" + b"\x85" * 50 + b"Nu."
    )  # a tuple as a key: hashing could take for ever
    refused(path, "dictionary of names")


def record(**state):
    return pickles.Record("Module", state)


def test_modules_that_hold_themselves_or_multiply_are_refused():
    loop = record()
    loop.state["_modules"] = dict(again=loop)
    twins = record()
    for _ in range(40):
        twins = record(_modules={"a": twins, "b": twins})
    wide = record(_modules={str(i): record() for i in range(30_000)})
    for bad in (
        loop,
        twins,
        wide,
        record(_modules=dict(a=3)),
        record(_modules=[1]),
        record(_modules={3: record()}),
        record(_modules={"x" * 500: record()}),
        record(_parameters=dict(a="text")),
        record(_buffers=7),
    ):
        with pytest.raises(ValueError):
            pickles.tensors(bad)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"PK\x03\x04" + bytes(100),
        pickle.dumps(3),
        legacy(5)[:40],
        legacy(5)[:-3],
        legacy(5)[:15] + pickle.dumps(Touch("trace"), 2) * 4,
        legacy(5)[:15] + b"N" * 9000,
    ],
)
def test_a_storage_of_another_form_is_refused(payload, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.pkl").write_bytes(stored(payload) + b".")
    refused(tmp_path / "m.pkl")
    assert not (tmp_path / "trace").exists()


def test_a_storage_whose_head_names_more_than_a_storage_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = legacy(5)
    assert good.count(b"ctorch\nFloatStorage\n") == 1 and good.count(b"}q\x00(") == 1
    for bad, word in (
        (good.replace(b"ctorch\nFloatStorage\n", b"cos\nsystem\n"), "os system"),
        (good.replace(b"ctorch\nFloatStorage\n", b"ctorch\nTensor\n"), "torch Tensor"),
        (good.replace(b"}q\x00(", pickle.dumps(Touch("trace"), 2)[2:-1] + b"}q\x00("), "exec"),
    ):
        (tmp_path / "m.pkl").write_bytes(stored(bad) + b".")
        refused(tmp_path / "m.pkl", "a storage in it asks for", word)
    assert not (tmp_path / "trace").exists()


# ---- honest files


def test_an_honest_file_comes_back_as_plain_data(tmp_path):
    model = edm_files.network(augment=9)
    for options in (dict(), dict(drop=(), tables=False), dict(protocol=5)):
        (tmp_path / "m.pkl").write_bytes(edm_files.snapshot(model, **options))
        top = pickles.read(tmp_path / "m.pkl")
        assert (
            set(top) == {"ema", "loss_fn", "augment_pipe", "dataset_kwargs"}
            and top["loss_fn"] is None
            and top["dataset_kwargs"]
            == dict(path="cifar10-32x32.zip", use_labels=False, xflip=False)
        )
        ema = top["ema"]
        assert (
            ema.name,
            ema.state["sigma_data"],
            ema.state["sigma_max"],
            ema.state["training"],
        ) == ("EDMPrecond", 0.5, float("inf"), False)
        assert ema.source == hashlib.sha256(edm_files.SOURCE.encode()).hexdigest()
        found, own = pickles.tensors(ema), model.state_dict()
        assert found.keys() == own.keys() and all(
            torch.equal(found[k], own[k]) and found[k].dtype == own[k].dtype for k in own
        )
        names = dict(pickles.modules(ema))
        assert {k for k, _ in model.named_modules()} == names.keys() and names[
            "model.enc"
        ].name == "ModuleDict"
        scale = names["model.enc.4x4_block0"].state["skip_scale"]
        assert (
            type(scale) is float
            and scale == float(np.sqrt(0.5))
            and names["model"].state["_init_kwargs"]["channel_mult"] == [1, 2]
        )


def test_kinds_of_numbers_and_tables_are_kept(tmp_path):
    value = dict(
        a=np.float64(0.1),
        b=np.float32(0.5),
        c=np.int64(-7),
        d=[1, 2**40, -1.5, None, True],
        e=("x", b"y"),
        f=OrderedDict(z=1),
        g={"s"},
        h=torch.tensor([1.5], dtype=torch.float16),
        i=torch.arange(3),
        j=torch.nn.Parameter(torch.ones(2, 3).T),
    )
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(value, 4))
    found = pickles.read(tmp_path / "m.pkl")
    tensors = {k: (found.pop(k).tensor, value.pop(k)) for k in "hij"}
    assert found == value and all(
        torch.equal(a, b) and a.dtype == b.dtype for a, b in tensors.values()
    )


def test_numpy_of_both_names_and_old_encodings_are_read(tmp_path):
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        number = (
            pickle.dumps(np.float64(2.5), 4)
            .replace(text("numpy._core.multiarray"), text(module))
            .replace(text("numpy.core.multiarray"), text(module))
        )
        (tmp_path / "m.pkl").write_bytes(
            b"\x80\x04" + number[11:]
        )  # without the frame, whose length has changed
        assert pickles.read(tmp_path / "m.pkl") == 2.5
    (tmp_path / "m.pkl").write_bytes(
        pickle.dumps(np.float64(2.5), 2)
    )  # protocol 2 spells bytes as _codecs.encode(text, 'latin1')
    assert pickles.read(tmp_path / "m.pkl") == 2.5


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.7, 0.99, 0.999999])
def test_a_file_cut_short_says_so(share, tmp_path):
    whole = edm_files.snapshot(edm_files.network())
    (tmp_path / "m.pkl").write_bytes(whole[: max(3, int(share * len(whole)))])
    refused(tmp_path / "m.pkl", "cut short")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_file_is_read_or_refused_but_nothing_else(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "m.pkl"
    whole = np.frombuffer(edm_files.pickled(edm_files.Linear(2, 3)), np.uint8)
    outcomes = set()
    for _ in range(800):
        damaged = whole.copy()
        damaged[rng.integers(len(whole), size=rng.integers(1, 4))] = rng.integers(256, size=1)
        path.write_bytes(damaged.tobytes())
        try:
            pickles.read(path)
            outcomes.add("read")
        except ValueError as e:
            assert "\n" not in str(e)
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def archive(path):
    torch.save(dict(a=torch.ones(2)), path)


def old_archive(path):
    torch.save(dict(a=torch.ones(2)), path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    "write, words",
    [
        (lambda p: p.write_bytes(b""), ["is empty"]),
        (lambda p: p.write_text("<!DOCTYPE html><html>Quota</html>"), ["web page"]),
        (lambda p: p.write_bytes(b"\xef\xbb\xbf\n <html>"), ["web page"]),
        (archive, ["zip archive", "torch.save"]),
        (old_archive, ["torch.save"]),
        (lambda p: save_file(dict(a=torch.ones(2)), p), ["safetensors", "weights.load"]),
        (lambda p: p.write_text("hello"), ["not a pickle"]),
        (
            lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\n"),
            ["not a pickle"],
        ),
        (lambda p: p.write_bytes(bytes(1000)), ["not a pickle"]),
        (lambda p: p.write_bytes(b"\x80\x04\xff"), ["damaged"]),
        (lambda p: p.write_bytes(b"\x80\x04."), ["no single object"]),
    ],
)
def test_what_is_no_such_pickle_is_named(write, words, tmp_path):
    write(tmp_path / "m.pkl")
    refused(tmp_path / "m.pkl", *words)


def test_a_missing_file_and_a_folder_are_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file at"):
        pickles.read(tmp_path / "none.pkl")
    with pytest.raises(ValueError, match="is a folder"):
        pickles.read(tmp_path)


def test_an_imitation_has_the_form_of_the_files_and_leaves_no_stand_in_behind(tmp_path):
    from ect_nb.diffusion import Precond
    from ect_nb.networks import UNet

    model = Precond(
        UNet(resolution=8, model_channels=8, channel_mult=(1, 2), num_blocks=1, attention=(4,))
    )
    pickles.imitate(model, tmp_path / "m.pkl")
    assert "torch_utils" not in sys.modules and "torch_utils.persistence" not in sys.modules
    top = pickles.read(tmp_path / "m.pkl")
    assert (
        top["ema"].name == "EDMPrecond"
        and len(top["ema"].source) == 64
        and pickles.tensors(top["ema"]).keys() == model.net.state_dict(prefix="model.").keys()
    )
    with pytest.raises(Exception):
        pickle.loads((tmp_path / "m.pkl").read_bytes())
