"""The trainer in real processes and real files: killed, interrupted, out of room, damaged, it ends
with the same bits; and what it computes is what the formulas say."""

import json
import math
import os
import pytest
import random
import shutil
import signal
import sys
import time
import torch
import traceback
import warnings
from dataclasses import replace
from ect_nb.analytic import GaussianMixture
from ect_nb.diffusion import Precond
from ect_nb.io import weights
from ect_nb.io.data import Pictures
from ect_nb.networks import MLP, UNet
from ect_nb.objectives import ECT, Denoising
from ect_nb.schedules import ConstantMapping, LogNormal, SigmoidMapping, Stages
from ect_nb.training import loop
from ect_nb.training.config import Config, changed, from_json, learning_rate, to_json
from ect_nb.training.loop import dice, rows, train, update_ema
from ect_nb.training.runs import RunFolder, checksum, load_state
from ect_nb.training.speed import choose_precision, residual_errors, set_precision
from pathlib import Path
from safetensors import safe_open
from torch import nn

# --- helpers: a small run, what it left behind, and ways to stop it

POINTS = torch.randn(48, 2, generator=torch.Generator().manual_seed(0))
BATCH = 16


def seeded(make, seed=0):
    "What `make()` builds with the global generator at `seed`, which is put back."
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return make()


def network(seed=0, width=16, dropout=0.2):
    return seeded(lambda: Precond(MLP(2, width, 2, dropout)), seed)


def settings(steps=32, **kw):
    """A run that meets everything at once: warm-up, EMA ramp, accumulation, three stages, rows with
    r = 0; a state only at the end unless asked."""
    return replace(
        Config(
            kimg=steps * BATCH / 1000,
            batch=BATCH,
            accumulate=2,
            lr=1e-2,
            warmup_kimg=0.1,
            ema=0.99,
            ema_rampup=True,
            stages=Stages(0, 160, 2),
            state_seconds=1e9,
        ),
        **kw,
    )


def finish(run, until=None):
    "The last progress of a run, or the one at step `until`, where it is closed."
    p = None
    for p in run:
        if p.step == until:
            break
    run.close()
    return p


def bits(tensors):
    return {
        k: (
            v.dtype,
            tuple(v.shape),
            v.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes(),
        )
        for k, v in tensors.items()
    }


def read(path):
    "The bits of a safetensors file and its header, seconds (which differ between runs) taken out."
    with safe_open(path, "pt") as f:
        tensors, meta = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
    plain = {k: json.loads(v) if v[:1] in "{[" else v for k, v in meta.items() if k != "checksum"}
    for v in plain.values():
        if isinstance(v, dict):
            v.pop("seconds", None)
    for d in (plain.get("provenance", {}).get("config", {}), plain):
        d.pop("state_seconds", None)
    return bits(tensors), plain


def outcome(folder):
    """All that a run leaves: newest state (weights, EMA, optimiser), snapshots, and its records
    without their seconds. A torn line in metrics.jsonl fails here."""
    folder = RunFolder(folder)
    records = [
        json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()
    ]
    for r in records:
        r.pop("seconds", None)
    return dict(
        state=read(folder.states()[-1]),
        snapshots={k: read(p) for k, p in folder.snapshots().items()},
        records=records,
    )


def same(a, b):
    "Whether two outcomes agree bit for bit; says where they do not."
    assert a["records"] == b["records"]
    assert a["snapshots"].keys() == b["snapshots"].keys()
    for one, two in [(a["state"], b["state"])] + [
        (a["snapshots"][k], b["snapshots"][k]) for k in a["snapshots"]
    ]:
        assert one[1] == two[1] and one[0].keys() == two[0].keys()
        assert [k for k in one[0] if one[0][k] != two[0][k]] == []


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


def step_of(folder):
    return max((int(p.stem.split("-")[1]) for p in RunFolder(folder).states()), default=0)


def lines_of(folder):
    file = Path(folder) / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def wait_for(happened, pid, seconds=60):
    "Look every half millisecond until `happened()`; False if the process is gone first."
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "nothing happened"
        if not os.path.exists(f"/proc/{pid}") and sys.platform == "linux":
            return False
        time.sleep(0.0005)
    return True


def one_sentence(error, *words):
    "The message of an error: one line that holds `words`."
    text = str(error.value)
    assert text and "\n" not in text and all(w in text for w in words), text
    return text


# --- a nursery of processes: torch is loaded once, then every run is a child of its own that can be
# killed


class SlowDisk:
    """A file that takes its bytes in two halves, with a pause between; beyond step `stall` the
    second half never comes."""

    def __init__(self, path, mode, folder, stall):
        self.file, self.stalls = (
            open(path, mode),
            "step-" in str(path) and stall is not None and step_of(folder) >= stall,
        )

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        time.sleep(100 if self.stalls else 0.002)
        self.file.write(data[len(data) // 2 :])

    def flush(self):
        self.file.flush()

    def fileno(self):
        return self.file.fileno()

    def __enter__(self):
        return self

    def __exit__(self, *e):
        self.file.close()


def child(folder, config, stall=None, slow=False, pause=0.0, full_at=None):
    """What a child process does: train in `folder`, on a slow disk, with a pause after each step,
    or with files limited to 8000 bytes from a step on."""
    if slow:
        weights.open = lambda path, mode: SlowDisk(path, mode, folder, stall)
        os.fsync = lambda handle: time.sleep(0.001)
    for p in train(network(), POINTS, from_json(config), folder):
        time.sleep(pause)
        if p.step == full_at:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))


def _serve(orders, answers):
    "For each order fork a child, tell its process id, and when it has ended, its status."
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    for line in orders:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.alarm(150)  # whatever happens, no child outlives its test for long
            log, code = open(order.pop("log"), "w"), 0
            try:
                child(**order)
            except BaseException:
                traceback.print_exc(file=log)
                code = 1
            log.close()
            os._exit(code)
        for answer in (lambda: pid, lambda: os.waitpid(pid, 0)[1]):
            answers.write(f"{answer()}\n")
            answers.flush()
    os._exit(0)


class Nursery:
    """Start a child, wait for its end, read what it said.

    Forked here, while this process has computed nothing, so that no thread is lost in the fork."""

    def __init__(self):
        torch.optim.SGD(
            [nn.Parameter(torch.zeros(1))], lr=1.0
        )  # the first optimiser loads a large part of torch: once for all
        (r1, w1), (r2, w2) = os.pipe(), os.pipe()
        if os.fork() == 0:
            os.close(w1)
            os.close(r2)
            try:
                _serve(os.fdopen(r1), os.fdopen(w2, "w"))
            finally:
                os._exit(1)
        os.close(r1)
        os.close(w2)
        self.orders, self.answers = os.fdopen(w1, "w"), os.fdopen(r2)

    def start(self, folder, config, **kw):
        self.log = Path(folder).with_suffix(".log")
        print(
            json.dumps(dict(folder=str(folder), config=to_json(config), log=str(self.log), **kw)),
            file=self.orders,
            flush=True,
        )
        return int(self.answers.readline())

    def wait(self):
        "The exit code, or minus the signal that ended it."
        return os.waitstatus_to_exitcode(int(self.answers.readline()))

    def run(self, *args, **kw):
        self.start(*args, **kw)
        return self.wait(), self.log.read_text()


NURSERY = Nursery() if hasattr(os, "fork") and sys.platform == "linux" else None
real_processes = pytest.mark.skipif(NURSERY is None, reason="needs fork, signals and /proc")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    "Bits are compared between this process and its children, which have one thread each."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    "The same 32 steps without any interruption: the folder."
    folder = tmp_path_factory.mktemp("straight") / "run"
    finish(train(network(), POINTS, settings(), folder))
    return folder


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    "A run stopped at step 20, with the states of steps 19 and 20."
    folder = tmp_path_factory.mktemp("halfway") / "run"
    finish(train(network(), POINTS, settings(state_seconds=-1.0), folder), until=20)
    assert [p.stem[-2:] for p in RunFolder(folder).states()] == ["19", "20"]
    return folder


@pytest.fixture
def stopped(halfway, tmp_path):
    return Path(shutil.copytree(halfway, tmp_path / "run"))


def resumed(folder, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return finish(train(network(), POINTS, settings(**kw), folder))


# --- killed, interrupted, stopped


@real_processes
def test_twenty_kills_change_no_bit(tmp_path):
    seed = int(os.environ.get("ECT_NB_KILL_SEED", time.time_ns() % 10**6))
    print(f"ECT_NB_KILL_SEED={seed}")
    luck, config = random.Random(seed), settings(96, state_seconds=-1.0, snapshot_kimg=1)
    finish(
        train(network(), POINTS, replace(config, state_seconds=1e9), tmp_path / "straight" / "run")
    )
    folder, torn, ends = tmp_path / "killed" / "run", 0, []
    folder.parent.mkdir()
    for attempt in range(20):
        start = step_of(folder)
        stall = start + luck.randint(1, 4)  # there the child stops in the middle of writing a state
        pid = NURSERY.start(folder, config, slow=True, stall=stall)
        if attempt % 4 == 0:
            wait_for(lambda: step_of(folder) >= stall and list(folder.rglob("state/.*.tmp")), pid)
        else:
            target = start + luck.randint(0, stall - start)
            wait_for(lambda: step_of(folder) >= target, pid)
            time.sleep(luck.uniform(0, 0.05 if target == start else 0.01))
        os.kill(pid, signal.SIGKILL)
        assert NURSERY.wait() == -signal.SIGKILL
        torn += bool(list(folder.rglob("state/.*.tmp")))
        ends.append(step_of(folder))
    print("killed at steps", ends, "of which in the middle of writing", torn)
    assert torn >= 3 and len(set(ends)) > 6 and ends[-1] < 96
    assert NURSERY.run(folder, config) == (0, "")
    same(outcome(folder), outcome(tmp_path / "straight" / "run"))
    assert not list(folder.rglob(".*.tmp")) and len(RunFolder(folder).states()) == 2


@real_processes
def test_a_kill_before_the_first_state_starts_again_without_doubled_records(tmp_path, straight):
    folder = tmp_path / "run"
    pid = NURSERY.start(folder, settings(), pause=0.01)
    assert wait_for(lambda: lines_of(folder) >= 3, pid)
    os.kill(pid, signal.SIGKILL)
    NURSERY.wait()
    assert not RunFolder(folder).states()
    with open(folder / "metrics.jsonl", "a") as f:
        f.write('{"run": "run", "metr')  # and a line cut short
    finish(train(network(), POINTS, settings(), folder))
    same(outcome(folder), outcome(straight))


@real_processes
def test_ctrl_c_saves_a_whole_step(tmp_path, straight):
    folder, luck, seen = tmp_path / "run", random.Random(time.time_ns()), 0
    for _ in range(3):
        pid = NURSERY.start(folder, settings(), pause=0.01)
        assert wait_for(lambda: lines_of(folder) >= seen + 3, pid)
        time.sleep(luck.uniform(0, 0.02))
        os.kill(pid, signal.SIGINT)
        assert NURSERY.wait() == 1 and NURSERY.log.read_text().rstrip().endswith(
            "KeyboardInterrupt"
        )
        assert (
            step_of(folder) == lines_of(folder) >= seen + 3
        )  # a short run records every step: none is lost, none is half
        seen = step_of(folder)
    finish(train(network(), POINTS, settings(), folder))
    same(outcome(folder), outcome(straight))


class Hooked(Precond):
    """A model that calls `Hooked.hook(number of the pass)` in every forward pass: to interrupt or
    spoil a run at a known place."""

    hook, passes = None, 0

    def forward(self, x, t, **kw):
        Hooked.passes += 1
        f = super().forward(x, t, **kw)
        return Hooked.hook(Hooked.passes, f) if Hooked.hook else f


def hooked(monkeypatch, hook):
    monkeypatch.setattr(Hooked, "hook", staticmethod(hook))
    monkeypatch.setattr(Hooked, "passes", 0)
    return seeded(lambda: Hooked(MLP(2, 16, 2, 0.2)))


def test_ctrl_c_inside_a_step_waits_for_its_end(tmp_path, monkeypatch):
    def press(n, f):
        if n == 18:
            os.kill(
                os.getpid(), signal.SIGINT
            )  # a step has four passes, two for each of its halves
        return f

    config, folder, before, steps = (
        settings(12, stages=Stages(1)),
        tmp_path / "run",
        signal.getsignal(signal.SIGINT),
        [],
    )
    with pytest.raises(KeyboardInterrupt):
        for p in train(hooked(monkeypatch, press), POINTS, config, folder):
            steps.append(p.step)
    assert (
        steps == list(range(1, len(steps) + 1))
        and step_of(folder) == len(steps) + 1
        and signal.getsignal(signal.SIGINT) is before
    )
    finish(train(hooked(monkeypatch, None), POINTS, config, folder))
    finish(train(hooked(monkeypatch, None), POINTS, config, tmp_path / "other" / "run"))
    same(outcome(folder), outcome(tmp_path / "other" / "run"))


@pytest.mark.parametrize("way", ["break", "close", "error in the body", "ctrl-c in the body"])
def test_every_way_of_stopping_saves_and_continues_to_the_same_bits(tmp_path, straight, way):
    folder = tmp_path / "run"
    run = train(network(), POINTS, settings(), folder)
    if way == "close":
        for _ in range(7):
            next(run)
        run.close()
    else:
        del run
        error = dict(
            [("error in the body", ZeroDivisionError), ("ctrl-c in the body", KeyboardInterrupt)]
        ).get(way)

        def loop():
            for p in train(network(), POINTS, settings(), folder):
                if p.step == 7 and error:
                    raise error
                if p.step == 7:
                    break

        if error:
            with pytest.raises(error):
                loop()
        else:
            loop()
    assert step_of(folder) == 7
    finish(train(network(), POINTS, settings(), folder))
    same(outcome(folder), outcome(straight))


def test_steps_are_yielded_once_each_with_or_without_a_folder(tmp_path):
    for folder in (None, tmp_path / "run"):
        seen = [
            (p.step, p.images, p.total, p.done, float(p.loss) > 0)
            for p in train(network(), POINTS, settings(4), folder)
        ]
        assert seen == [(i, i * BATCH, 4 * BATCH, i / 4, True) for i in (1, 2, 3, 4)]


def test_a_folder_makes_no_difference_to_the_weights(straight):
    p = finish(train(network(), POINTS, settings()))
    tensors = outcome(straight)["state"][0]
    for name, model in (("model", p.model), ("ema", p.ema)):
        assert {k: v for k, v in tensors.items() if k.startswith(name + ".")} == {
            f"{name}.{k}": v for k, v in bits(model.state_dict()).items()
        }
    [path] = RunFolder(straight).snapshots().values()
    assert bits(weights.load(path).state_dict()) == bits(p.ema.state_dict())


def test_a_finished_run_ends_at_once_and_changes_nothing(straight, tmp_path):
    folder = Path(shutil.copytree(straight, tmp_path / "run"))
    before = contents(folder)
    assert [p.step for p in train(network(), POINTS, settings(), folder)] in ([], [32])
    assert contents(folder) == before


# --- a full disk, a damaged state


@real_processes
def test_a_full_disk_says_so_and_costs_nothing(tmp_path, straight):
    folder = tmp_path / "run"
    code, log = NURSERY.run(folder, settings(state_seconds=-1.0), full_at=9)
    last = log.strip().splitlines()[-1]
    assert (
        code == 1
        and last.startswith("RuntimeError: the state could not be saved in")
        and "File too large" in last
        and "make room" in last
    )
    assert [p.stem[-2:] for p in RunFolder(folder).states()] == ["08", "09"] and not list(
        folder.rglob(".*.tmp")
    )
    assert load_state(RunFolder(folder))[1]["step"] == 9
    finish(train(network(), POINTS, settings(), folder))
    same(outcome(folder), outcome(straight))


def fill(folder, name):
    """No room for one of the files: a full device in place of metrics.jsonl, or nothing can be put
    into snapshots."""
    if name == "metrics.jsonl":
        (folder / name).rename(folder / "kept")
        (folder / name).symlink_to("/dev/full")
    else:
        (folder / name).write_text("")


def empty(folder, name):
    (folder / name).unlink()
    if name == "metrics.jsonl":
        (folder / "kept").rename(folder / name)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["metrics.jsonl", "snapshots"])
def test_a_record_or_snapshot_that_found_no_room_is_made_up_for(tmp_path, name):
    config = settings(24)  # a snapshot is due at the end
    finish(train(network(), POINTS, config, tmp_path / "straight" / "run"))
    folder = tmp_path / "run"
    run = train(network(), POINTS, config, folder)
    for p in run:
        if p.step == 20:
            break
    fill(folder, name)
    with pytest.raises(RuntimeError, match="make room and continue"):
        for p in run:
            pass
    empty(folder, name)
    finish(train(network(), POINTS, config, folder))
    same(outcome(folder), outcome(tmp_path / "straight" / "run"))


DAMAGE = dict(
    shorter=lambda b: b[: len(b) // 2],
    almost=lambda b: b[:-1],
    flipped=lambda b: b[:-2000] + bytes([b[-2000] ^ 4]) + b[-1999:],
    empty=lambda b: b"",
    zeros=lambda b: bytes(len(b)),
)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_named_and_the_one_before_it_used(stopped, straight, damage):
    newest = RunFolder(stopped).states()[-1]
    newest.write_bytes(DAMAGE[damage](newest.read_bytes()))
    with pytest.warns(UserWarning, match="step-000000020.safetensors is damaged"):
        finish(train(network(), POINTS, settings(), stopped))
    same(outcome(stopped), outcome(straight))


def test_after_a_damaged_state_there_are_soon_two_whole_ones_again(stopped):
    newest = RunFolder(stopped).states()[-1]
    os.truncate(newest, 100)
    newest.rename(
        newest.with_name("step-000000030.safetensors")
    )  # damaged, and eleven steps ahead of what is left
    with pytest.warns(UserWarning):
        finish(train(network(), POINTS, settings(state_seconds=-1.0), stopped), until=23)
    whole = [p.stem[-2:] for p in RunFolder(stopped).states() if p.stat().st_size > 100]
    assert whole == ["22", "23"]


def test_when_all_states_are_damaged_the_run_says_so_once(stopped):
    for path in RunFolder(stopped).states():
        os.truncate(path, 100)
    before = contents(stopped)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError) as error:
            next(train(network(), POINTS, settings(state_seconds=-1.0), stopped))
    one_sentence(error, "every state", "damaged", "another folder")
    assert contents(stopped) == before


def test_no_flipped_bit_of_a_state_goes_unnoticed(stopped):
    """Also in its header, where names, shapes, types and the step stand: each is either refused or
    harmless (blanks)."""
    old, path = RunFolder(stopped).states()
    old.unlink()
    whole, (tensors, facts) = path.read_bytes(), load_state(RunFolder(stopped))
    header = 8 + int.from_bytes(whole[:8], "little")
    seed = time.time_ns() % 10**6
    places = [
        *range(8),
        *random.Random(seed).sample(range(8, header), 400),
        *random.Random(seed).sample(range(header, len(whole)), 100),
    ]
    unnoticed = []
    for i in places:
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = load_state(RunFolder(stopped))
            except RuntimeError:
                continue
        if bits(found[0]) != bits(tensors) or found[1] != facts:
            unnoticed.append(
                whole[max(i - 30, 8) : i + 10].decode(errors="replace") if i < header else i
            )
    assert unnoticed == [], (
        f"{len(unnoticed)} of {len(places)} flips went unnoticed (seed {seed}), for example before"
        f" the end of {unnoticed[0]!r}"
    )


# --- whose folder it is


@pytest.mark.parametrize("other", ["lr", "mapping", "data", "weights", "network", "cosine"])
def test_another_run_is_refused_and_nothing_changes(stopped, other, tmp_path):
    model, data, config, folder = network(), POINTS, settings(), stopped
    if other == "lr":
        config = settings(lr=2e-2)
    if other == "mapping":
        config = settings(objective=ECT(mapping=ConstantMapping()))
    if other == "data":
        data = POINTS.clone()
        data[7, 1] += 1e-6
    if other == "weights":
        model = network(seed=1)
    if other == "network":
        model = network(width=17)
    if other == "cosine":  # its learning rate was planned for 8 steps
        folder = tmp_path / "cosine"
        finish(train(model, data, settings(8, decay="cosine"), folder), until=4)
        config = settings(9, decay="cosine")
    before = contents(folder)
    with pytest.raises(ValueError) as error:
        next(train(model, data, config, folder))
    one_sentence(
        error,
        str(folder),
        "another run",
        "choose another folder",
        dict(
            mapping="mapping",
            lr="0.02",
            data="data",
            weights="began from other weights",
            network="another description",
            cosine="kimg",
        )[other],
    )
    assert contents(folder) == before


def test_a_run_of_constant_rate_may_be_made_longer(stopped, tmp_path):
    finish(train(network(), POINTS, settings(40), tmp_path / "other" / "run"))
    finish(train(network(), POINTS, settings(), stopped))
    finish(train(network(), POINTS, settings(40), stopped))
    assert outcome(stopped)["state"] == outcome(tmp_path / "other" / "run")["state"]
    assert RunFolder(stopped).config()["config"]["kimg"] == settings(40).kimg


@pytest.mark.parametrize("name", ["thesis.tex", "state/step-000000001.safetensors", "config.json"])
def test_a_folder_of_something_else_is_left_alone(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"model_type": "bert"}')
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / ".draft.tmp").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ValueError) as error:
        next(train(network(), POINTS, settings(), tmp_path))
    one_sentence(error, str(tmp_path), "choose another folder")
    assert contents(tmp_path) == before | {
        k: v for k, v in contents(tmp_path).items() if k == ".lock"
    }


def test_a_config_that_cannot_be_read_is_named(stopped):
    os.truncate(stopped / "config.json", 50)
    before = contents(stopped)
    with pytest.raises(ValueError) as error:
        next(train(network(), POINTS, settings(), stopped))
    one_sentence(error, "config.json cannot be read")
    assert contents(stopped) == before


@real_processes
def test_two_processes_cannot_train_in_one_folder(tmp_path, straight):
    folder = tmp_path / "run"
    run = train(network(), POINTS, settings(), folder)
    next(run)
    before = contents(folder)
    code, log = NURSERY.run(folder, settings())
    assert (
        code == 1
        and "RuntimeError: " in log
        and "another process is training there" in log.strip().splitlines()[-1]
    )
    with pytest.raises(RuntimeError, match="in use"):
        next(train(network(), POINTS, settings(), folder))
    assert contents(folder) == before
    finish(run)
    same(outcome(folder), outcome(straight))
    assert NURSERY.run(folder, settings()) == (0, "")  # the lock went with the run


# --- settings and records

CONFIGS = [
    Config(),
    Config.diffusion(),
    settings(),
    Config(
        objective=ECT(mapping=ConstantMapping(3.0, first=0), p_t=LogNormal(-1.2, 1.2)),
        stages=Stages(2, 1000, None),
        betas=(0.8, 0.99),
    ),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_settings_survive_a_json_file(config):
    again = from_json(json.loads(json.dumps(to_json(config))))
    assert (
        again == config
        and type(again.objective) is type(config.objective)
        and hash(again) == hash(config)
    )


def test_config_json_is_enough_to_repeat_a_run(stopped):
    was = RunFolder(stopped).config()
    assert from_json(was["config"]) == settings(state_seconds=-1.0)
    assert (
        was["data"]["n"] == 48
        and was["data"]["checksum"] == checksum(dict(x=POINTS))
        and was["init"] == checksum(network().state_dict())
    )
    assert weights.build(was["network"])(torch.zeros(1, 2), 1.0).shape == (1, 2)


def test_diffusion_settings_change_only_what_is_said():
    assert (
        Config.diffusion(kimg=3, lr=0.5).lr == 0.5
        and Config.diffusion().objective == Denoising()
        and Config.diffusion(kimg=3).kimg == 3
    )


def test_records_say_what_happened(tmp_path):
    config = settings(130, batch=8, warmup_kimg=2.0, accumulate=1)
    seen = {p.images: (p.lr, p.stage) for p in train(network(), POINTS, config, tmp_path / "run")}
    records = RunFolder(tmp_path / "run").records()
    assert [round(r["kimg"] * 1000 / 8) for r in records] == [
        *range(2, 261, 2)
    ]  # a hundred a run, and a few
    for r in records:
        assert (r["run"], r["metric"], r["seed"], r["precision"]) == (
            "run",
            "loss",
            0,
            "float32",
        ) and math.isfinite(r["value"])
        assert (r["lr"], r["stage"]) == seen[round(r["kimg"] * 1000)]


def test_a_record_is_the_mean_loss_since_the_one_before(tmp_path):
    losses = []
    for stop in (7, 200):  # stopped between two records: half of one is part of the state
        for p in (
            run := train(network(), POINTS, settings(100, batch=8, accumulate=1), tmp_path / "run")
        ):
            losses.append(float(p.loss))
            if p.step == stop:
                break
        run.close()
    found = [r["value"] for r in RunFolder(tmp_path / "run").records()]
    assert found == pytest.approx(
        [(a + b) / 2 for a, b in zip(losses[::2], losses[1::2])], rel=1e-6
    )


def test_no_record_is_lost_to_rounding_when_a_run_goes_on(tmp_path):
    "2007 / 1000 * 1000 is above 2007: the record of that very step must stay."
    config = replace(
        settings(), kimg=2.2, batch=223, accumulate=1
    )  # step 9 ends at 2007 pictures, step 10 is the last
    for folder, stop in (("a", None), ("b", 9)):
        finish(train(network(), POINTS, config, tmp_path / folder / "run"), until=stop)
    finish(train(network(), POINTS, config, tmp_path / "b" / "run"))
    same(outcome(tmp_path / "b" / "run"), outcome(tmp_path / "a" / "run"))


def test_measurements_of_others_stay_with_the_run(stopped):
    RunFolder(stopped).record(metric="fid", value=3.0, kimg=0.1)
    RunFolder(stopped).record(metric="note", value=1.0, kimg=None)
    finish(train(network(), POINTS, settings(), stopped))
    assert [r["metric"] for r in RunFolder(stopped).records() if r["metric"] != "loss"] == [
        "fid",
        "note",
    ]


# --- the numbers


def test_accumulation_changes_only_rounding():
    """Four steps of RAdam are still momentum, linear in the gradients, so nothing blows rounding
    (about 1e-7) up."""
    one, four = (
        finish(train(network(dropout=0.0), POINTS, settings(4, accumulate=a, stages=Stages(1))))
        for a in (1, 4)
    )
    for (k, a), b, start in zip(
        one.model.state_dict().items(),
        four.model.state_dict().values(),
        network().state_dict().values(),
    ):
        moved = (a - start).norm()
        assert moved > 0 and (a - b).norm() <= 2e-6 * a.norm() + 1e-5 * moved, k
    assert float(one.loss) == pytest.approx(float(four.loss), rel=1e-6)


@pytest.mark.parametrize("optimizer", ["RAdam", "Adam", "AdamW", "NAdam"])
def test_the_optimiser_is_the_one_named(optimizer):
    """Two steps of the trainer are two steps of torch's own optimiser on the loss, written out:
    diffusion, one point, no dropout."""
    config = Config(
        kimg=2 * 4 / 1000,
        batch=4,
        optimizer=optimizer,
        lr=1e-2,
        betas=(0.7, 0.9),
        objective=Denoising(p_t=LogNormal(), metric="squared", weight="uniform"),
        stages=Stages(),
    )
    model = network(dropout=0.0)
    p = finish(train(model, POINTS[:4], config))
    mine = getattr(torch.optim, optimizer)(model.parameters(), lr=1e-2, betas=(0.7, 0.9))
    for step in range(2):
        x0, t = (
            POINTS[:4][rows(0, 4 * step, 4 * step + 4, 4)],
            config.objective.p_t.sample(4, dice(0, "time", step)),
        )
        eps = torch.randn(4, 2, generator=dice(0, "noise", step))
        mine.zero_grad()
        (model(x0 + t[:, None] * eps, t) - x0).square().sum(1).mean().backward()
        mine.step()
    for a, b in zip(p.model.parameters(), model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rampup", [False, True])
def test_the_ema_follows_its_recursion(rampup):
    hand = {k: v.double() for k, v in network().state_dict().items()}
    for n, p in enumerate(train(network(), POINTS, settings(20, ema=0.6, ema_rampup=rampup)), 1):
        beta = min(0.6, n / (n + 9)) if rampup else 0.6
        hand = {
            k: beta * hand[k] + (1 - beta) * v.double() for k, v in p.model.state_dict().items()
        }
    for k, v in p.ema.state_dict().items():
        torch.testing.assert_close(v.double(), hand[k], rtol=1e-5, atol=1e-6)
    assert not p.ema.training and p.model.training


def test_the_ema_copies_buffers():
    a, b = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    b(torch.randn(8, 2) + 3)
    update_ema(a, b, 0.9)
    assert torch.equal(a.running_mean, b.running_mean) and a.num_batches_tracked == 1


def test_the_learning_rate_at_points_worked_out_by_hand():
    at = lambda kimg, **kw: learning_rate(Config(kimg=100, batch=100, lr=2.0, **kw), kimg * 1000)
    assert [at(k) for k in (0, 50, 100)] == [2.0, 2.0, 2.0]
    assert [at(k, warmup_kimg=10) for k in (0, 4.9, 9.9, 10, 60)] == pytest.approx(
        [0.02, 1.0, 2.0, 2.0, 2.0]
    )  # the first step is not wasted on 0
    assert [at(k, decay="linear") for k in (0, 25, 100)] == pytest.approx([2.0, 1.5, 0.0])
    assert [
        at(k, decay="cosine", warmup_kimg=20) for k in (0, 20, 40, 60, 80, 100)
    ] == pytest.approx([0.01, 2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5), 0.0])
    assert [at(k, decay="inverse_sqrt", decay_kimg=10) for k in (0, 10, 40, 90)] == pytest.approx(
        [2.0, 2.0, 1.0, 2 / 3]
    )


def test_every_pass_shows_each_picture_once_wherever_batches_end():
    for n, batch in ((10, 3), (10, 10), (7, 16), (1, 4)):
        got = torch.cat([rows(5, i, i + batch, n) for i in range(0, 4 * n * batch, batch)])
        passes = got.reshape(-1, n)
        assert all(sorted(p.tolist()) == list(range(n)) for p in passes)
        assert (
            n < 7 or len({tuple(p.tolist()) for p in passes[:3]}) == 3
        )  # and in another order each time
    assert torch.equal(rows(5, 0, 8, 48), rows(5, 0, 8, 48)) and not torch.equal(
        rows(5, 0, 48, 48), rows(6, 0, 48, 48)
    )


def test_every_stream_of_dice_is_its_own():
    draws = [
        torch.randn(4, generator=dice(seed, stream, step))
        for seed in (0, 1, 2)
        for stream in ("order", "time", "noise", "dropout")
        for step in (0, 1, 2, 10**6)
    ]
    assert len({tuple(d.tolist()) for d in draws}) == len(draws)
    assert torch.equal(
        torch.randn(4, generator=dice(2, "noise", 7)), torch.randn(4, generator=dice(2, "noise", 7))
    )
    many = torch.stack(
        [torch.randn(200, generator=dice(0, s, i)) for s in ("time", "noise") for i in range(20)]
    )
    assert (
        torch.corrcoef(many).fill_diagonal_(0).abs().max() < 0.35
    )  # five standard deviations of a correlation of 200


def test_the_checksum_sees_every_bit():
    a = dict(
        w=torch.randn(3, 2),
        n=torch.tensor(3),
        h=torch.randn(4).bfloat16(),
        b=torch.tensor([True, False]),
    )
    found = {
        checksum(a),
        checksum(a | dict(w=-a["w"])),
        checksum(a | dict(n=torch.tensor(4))),
        checksum(a | dict(b=torch.tensor([True, True]))),
    }
    w = a["w"].clone()
    w.view(torch.int32)[2, 1] ^= 1
    found.add(checksum(a | dict(w=w)))
    assert len(found) == 5 and checksum(dict(reversed(a.items()))) == checksum(a)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_tuning_brings_a_toy_nearer_to_the_exact_map(seed, denoiser):
    assert one_step_error(
        finish(
            train(
                denoiser,
                TOY,
                Config(
                    kimg=64,
                    batch=128,
                    lr=2e-3,
                    ema=0.98,
                    decay="linear",
                    objective=ECT(metric="squared"),
                    stages=Stages(2, 12_800),
                    seed=seed,
                ),
            )
        ).ema
    ) < 0.6 * one_step_error(denoiser)


MIX = GaussianMixture([-1.0, 0.25, 1.1], [0.08, 0.12, 0.06], [0.3, 0.45, 0.25])
TOY = MIX.sample(4096, torch.Generator().manual_seed(0))[:, None]


@pytest.fixture(scope="module")
def denoiser():
    return finish(
        train(
            seeded(lambda: Precond(MLP(1, 64, 3))),
            TOY,
            Config.diffusion(kimg=51, batch=128, lr=5e-3, ema=0.98),
        )
    ).ema


@torch.no_grad()
def one_step_error(model):
    z = 80 * torch.randn(1000, generator=torch.Generator().manual_seed(5))
    return (
        (model(z[:, None], torch.full((1000,), 80.0))[:, 0] - MIX.exact_map(z, 80.0))
        .square()
        .mean()
        .sqrt()
    )


# --- what belongs to the user stays as it was


class Foreign(nn.Module):
    "A network of someone else, with dropout and a batch norm of torch's own."

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.drop, self.b = (
            nn.Linear(3, 16),
            nn.BatchNorm1d(16),
            nn.Dropout(0.3),
            nn.Linear(16, 2),
        )

    def forward(self, x, t):
        t = torch.as_tensor(t, dtype=x.dtype).expand(len(x))
        return x + self.b(self.drop(self.norm(self.a(torch.cat([x, t.log()[:, None]], 1)))))


@pytest.mark.parametrize("make", [network, lambda: seeded(Foreign)], ids=["of the kit", "foreign"])
def test_the_given_model_and_the_users_dice_are_left_alone(tmp_path, make):
    model = make().eval()
    model.requires_grad_(False)
    before = bits(model.state_dict())
    torch.manual_seed(3)
    dice_before = torch.get_rng_state()
    p = finish(train(model, POINTS, settings(6), tmp_path / "run"))
    assert torch.equal(torch.get_rng_state(), dice_before)
    assert (
        bits(model.state_dict()) == before
        and not model.training
        and not any(v.requires_grad for v in model.parameters())
    )
    assert bits(p.model.state_dict()) != before and bits(p.ema.state_dict()) != bits(
        p.model.state_dict()
    )


def test_a_foreign_network_repeats_and_continues_to_the_same_bits(tmp_path):
    model, ends = seeded(Foreign), []
    for seed, stop in ((1, None), (2, None), (3, 5)):
        folder = tmp_path / str(seed) / "run"
        torch.manual_seed(seed)  # the user's own seed has no say
        finish(train(model, POINTS, settings(12, seed=4), folder), until=stop)
        if stop:
            torch.rand(7)
            finish(train(model, POINTS, settings(12, seed=4), folder))
        ends.append(outcome(folder))
    same(ends[0], ends[1])
    same(ends[0], ends[2])
    assert bits(finish(train(model, POINTS, settings(12, seed=5))).model.state_dict()) != {
        k[6:]: v for k, v in ends[0]["state"][0].items() if k.startswith("model.")
    }


def test_pictures_train_as_well_as_points(tmp_path):
    x = torch.randint(
        0, 256, (20, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    model = seeded(lambda: Precond(UNet(4, 1, 8, (1,), 1, (), dropout=0.1)))
    config = settings(4)
    a = finish(train(model, Pictures(x), config, tmp_path / "a" / "run"))
    b = finish(train(model, x.float() / 127.5 - 1, config))
    assert bits(a.model.state_dict()) == bits(b.model.state_dict())


# --- what goes wrong, in one sentence


def test_a_loss_that_is_not_a_number_stops_the_run_and_spoils_no_state(tmp_path, monkeypatch):
    model = hooked(
        monkeypatch, lambda n, f: f * math.nan if n > 23 else f
    )  # two passes to try it, two a step: from step 11 on
    config = settings(30, accumulate=1, stages=Stages(1), state_seconds=-1.0)
    with pytest.raises(FloatingPointError) as error:
        finish(train(model, POINTS, config, tmp_path / "run"))
    one_sentence(error, "not a number", "lr")
    tensors, facts = load_state(RunFolder(tmp_path / "run"))
    assert facts["step"] == 10 and all(v.isfinite().all() for v in tensors.values())


class SpoilGradient(torch.autograd.Function):
    "The identity, with a gradient that is not a number."

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * math.nan


def test_a_gradient_that_is_not_a_number_spoils_no_state_either(tmp_path, monkeypatch):
    model = hooked(
        monkeypatch, lambda n, f: SpoilGradient.apply(f) if n == 21 else f
    )  # step 10, after two passes to try it: its loss is fine, its weights are not
    config = settings(30, accumulate=1, stages=Stages(1), state_seconds=-1.0)
    with pytest.raises(FloatingPointError):
        finish(train(model, POINTS, config, tmp_path / "run"))
    tensors, facts = load_state(RunFolder(tmp_path / "run"))
    assert facts["step"] == 9 and all(v.isfinite().all() for v in tensors.values())


WRONG = [
    ("weight", "heavy", "inverse_gap"),
    ("metric", "l2", "pseudo_huber"),
    ("decay", "step", "cosine"),
    ("precision", "int8", "bfloat16"),
    ("optimizer", "Atom", "RAdam"),
    ("optimizer", "adam", "Adam"),
    ("optimizer", "SGD", "Adam"),
    ("optimizer", "lr_scheduler", "Adam"),
    ("kimg", 0, "kimg"),
    ("kimg", math.nan, "kimg"),
    ("batch", 0, "batch"),
    ("accumulate", 3, "accumulate"),
    ("accumulate", 0, "accumulate"),
    ("accumulate", -1, "accumulate"),
    ("ema", 1.5, "ema"),
    ("lr", -1.0, "learning rate"),
    ("lr", math.nan, "learning rate"),
    ("betas", (0.9, 1.0), "beta"),
    ("seed", -1, "seed"),
    ("mapping", abs, "mapping"),
]


@pytest.mark.parametrize("name, value, word", WRONG, ids=[f"{n}={v}" for n, v, _ in WRONG])
def test_a_wrong_setting_gets_one_sentence(tmp_path, name, value, word):
    with pytest.raises(ValueError) as error:
        next(train(network(), POINTS, changed(settings(4), **{name: value}), tmp_path / "run"))
    one_sentence(error, word)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    "model, data, word",
    [
        (network, lambda: torch.zeros(0, 2), "data"),
        (network, lambda: (POINTS * 50).byte(), "float"),
        (network, lambda: [1.0, 2.0], "data"),
        (lambda: nn.Identity(), lambda: POINTS, "param"),
    ],
    ids=["no data", "bytes", "a list", "nothing to train"],
)
def test_what_cannot_be_trained_gets_one_sentence(model, data, word):
    with pytest.raises((ValueError, TypeError)) as error:
        next(train(model(), data(), settings(4)))
    one_sentence(error, word)


# --- arithmetic


def pictures(n=32):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def unet(dropout=0.0):
    "A small U-Net; its last layers, nearly zero at birth, are woken up so that the body has a say."

    def make():
        net = UNet(8, 1, 8, (1, 1), 1, (4,), dropout)
        with torch.no_grad():
            for name, p in net.named_parameters():
                if any(part in name for part in ("conv1", "proj", "aux_conv")):
                    p.add_(torch.randn_like(p) * 0.1)
        return Precond(net)

    return seeded(make)


def test_the_error_of_the_residual_grows_as_the_gap_shrinks():
    g = torch.Generator().manual_seed(2)
    t, eps, errors, model = (
        LogNormal().sample(32, g),
        torch.randn(32, 1, 8, 8, generator=g),
        {},
        unet(dropout=0.1),
    )
    for stage in (1, 4, 7):
        errors[stage] = residual_errors(
            model,
            pictures(),
            t,
            SigmoidMapping()(t, stage),
            eps,
            ["bfloat16", "float16", "float32"],
        )
    bf16, fp16 = ([errors[s][p] for s in (1, 4, 7)] for p in ("bfloat16", "float16"))
    assert (
        bf16[0] < 0.03 < bf16[1] < 0.15 < 0.3 < bf16[2]
        and bf16[1] / bf16[0] > 3
        and all(b > 3 * a > 0 for a, b in zip(fp16, bf16))
    )  # 3 more bits in fp16
    assert (
        all(e["float32"] == 0 for e in errors.values())
        and model.training
        and model.net.body == torch.float32
    )
    assert [choose_precision(errors[s]) for s in (1, 7)] == ["bfloat16", "float16"]


def test_the_first_arithmetic_that_is_good_enough_is_taken():
    assert (
        choose_precision(dict(bfloat16=0.31, float16=0.30, tf32=0.0)) == "float16"
        and choose_precision(dict(bfloat16=0.31)) == "float32"
    )
    assert (
        choose_precision({}) == "float32"
        and choose_precision(dict(bfloat16=math.nan)) == "float32"
        and choose_precision(dict(bfloat16=0.5), limit=0.6) == "bfloat16"
    )


def test_late_stages_are_kept_in_float32_and_the_choice_is_part_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "fast_precisions", lambda device: ["bfloat16"])
    config = settings(
        2,
        batch=8,
        precision="auto",
        accumulate=1,
        objective=ECT(mapping=SigmoidMapping(q=16.0)),
        stages=Stages(0, BATCH),
    )  # gaps of q⁻¹ and q⁻², as in stages 3 and 7 of q = 2
    seen = [p.precision for p in train(unet(), pictures(), config, tmp_path / "a" / "run")]
    chosen = RunFolder(tmp_path / "a" / "run").config()["precision_chosen"]
    assert seen[:4] == ["bfloat16"] * 2 + ["float32"] * 2 and {
        k: v["precision"] for k, v in chosen.items()
    } == {"0": "bfloat16", "1": "float32"}
    assert chosen["0"]["errors"]["bfloat16"] < 0.3 < chosen["1"]["errors"]["bfloat16"]
    for stop in (1, 3):
        folder = tmp_path / str(stop) / "run"
        finish(train(unet(), pictures(), config, folder), until=stop)
        with monkeypatch.context() as m:
            if stop == 3:
                m.setattr(loop, "residual_errors", lambda *a, **kw: pytest.fail("measured again"))
            finish(train(unet(), pictures(), config, folder))
        same(outcome(folder), outcome(tmp_path / "a" / "run"))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_continues_to_the_same_bits(tmp_path, precision):
    config = settings(2, batch=8, precision=precision, stages=Stages(0))  # four steps
    for folder, stop in (("a", None), ("b", 2)):
        finish(train(unet(0.1), pictures(), config, tmp_path / folder / "run"), until=stop)
    finish(train(unet(0.1), pictures(), config, tmp_path / "b" / "run"))
    same(outcome(tmp_path / "a" / "run"), outcome(tmp_path / "b" / "run"))
    plain = finish(train(unet(0.1), pictures(), replace(config, precision="float32")))
    assert {f"model.{k}": v for k, v in bits(plain.model.state_dict()).items()}.items() - outcome(
        tmp_path / "a" / "run"
    )["state"][0].items()


def test_a_network_without_a_body_stays_in_float32(monkeypatch):
    with pytest.raises(ValueError) as error:
        next(train(network(), POINTS, settings(2, precision="bfloat16")))
    one_sentence(error, "no `body`", "float32")
    set_precision(network(), "float32")
    monkeypatch.setattr(loop, "fast_precisions", lambda device: ["bfloat16"])
    assert finish(train(network(), POINTS, settings(2, precision="auto"))).precision == "float32"


def test_training_leaves_torchs_switches_as_they_were():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    finish(train(network(), POINTS, settings(2)))
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
