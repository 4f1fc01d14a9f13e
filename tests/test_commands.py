"Every command that the pages print works; whatever goes wrong in the shell ends in a sentence."

import ast
import inspect
import json
import math
import numpy as np
import os
import pytest
import re
import shlex
import signal
import subprocess
import sys
import time
import torch
from dataclasses import replace
from ect_nb import __main__, commands
from ect_nb.commands import in_shell, main
from ect_nb.diffusion import Precond
from ect_nb.io import data, files, pickles, weights
from ect_nb.networks import MLP, Classifier, UNet
from ect_nb.training import loop, recipes, runs
from ect_nb.training.recipes import PRESETS
from ect_nb.training.runs import RunFolder
from pathlib import Path
from PIL import Image
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
TINY = dict(
    resolution=8, channels=3, model_channels=8, channel_mult=(1,), num_blocks=1, attention=()
)
SHORT = ("--device", "cpu", "--scale", "0.0001")  # a step of a phase that trains from scratch
FEW = ("precision=float32", "snapshot_kimg=1")
TWO_PHASES = [name for name, p in PRESETS.items() if len(p.phases) > 1]


def tiny_presets():
    "The presets with networks that train in milliseconds, by name."
    tiny = {
        n: replace(p, network=TINY | dict(label_dim=p.label_dim))
        for n, p in PRESETS.items()
        if p.network
    }
    return PRESETS | tiny


@pytest.fixture
def tiny(monkeypatch):
    for name, preset in tiny_presets().items():
        monkeypatch.setitem(PRESETS, name, preset)


def draw_pictures(folder, n, *shape, seed=0):
    "`n` files of noise, (height, width) or (height, width, 3)."
    folder.mkdir(parents=True)
    dice = np.random.default_rng(seed)
    for i in range(n):
        Image.fromarray(dice.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Pictures of several kinds, checkpoints good and bad, and stand-ins for the released weights."
    home = tmp_path_factory.mktemp("home")
    draw_pictures(home / "colour", 48, 8, 8, 3)
    draw_pictures(home / "grey", 4, 8, 8)
    draw_pictures(home / "odd", 2, 9, 9, 3)
    draw_pictures(home / "mixed" / "a", 3, 10, 12, 3)
    draw_pictures(home / "mixed" / "b", 3, 14, 9, 3)
    draw_pictures(home / "classes" / "a", 3, 8, 8, 3)
    draw_pictures(home / "classes" / "b", 3, 8, 8, 3, seed=1)
    torch.manual_seed(0)
    model = Precond(UNet(**TINY), 0.5)
    weights.save(model, home / "start.safetensors")
    weights.save(model.net, home / "bare.safetensors")
    weights.save(Precond(MLP(dim=2)), home / "mlp.safetensors")
    weights.save(Classifier(28, 1, 10), home / "classifier.safetensors")
    for value in ("nan", "inf"):
        sick = Precond(UNet(**TINY), 0.5)
        next(sick.parameters()).data.view(-1)[0] = float(value)
        weights.save(sick, home / f"{value}.safetensors")
    for kind, classes in (("uncond", 0), ("cond", 10)):
        teacher = Precond(UNet(**TINY | dict(label_dim=classes)), 0.5)
        pickles.imitate(teacher, home / f"edm-cifar10-32x32-{kind}-vp.pkl")
    (home / "text.safetensors").write_text("no weights")
    os.mkfifo(home / "pipe")
    return home


def call(capsys, *args):
    "What `main` returns, and what it says on the two streams."
    code = main([str(a) for a in args])
    return code, *capsys.readouterr()


# ---- K1: recipes of two phases


@pytest.mark.parametrize("name", TWO_PHASES)
def test_a_recipe_of_two_phases_runs_without_a_start_and_is_done_when_called_again(
    name, home, tmp_path, tiny, capsys
):
    args = ("run", name, tmp_path / "run", "--data", home / "colour", *SHORT, "--set", *FEW)
    code, out, err = call(capsys, *args)
    assert code == 0 and out.startswith("done: "), err
    assert {p.name for p in tmp_path.iterdir()} == {"run", "run-diffusion"}
    for folder, phase in (("run", "tuning"), ("run-diffusion", "diffusion")):
        assert all(p.name.startswith(phase) for p in (tmp_path / folder / "samples").iterdir())
        assert len(list((tmp_path / folder / "samples").iterdir())) == 1
    kimg = PRESETS[name].phases["tuning"].kimg * 0.0001
    total = f"{max(p.stat().st_mtime for p in (tmp_path / 'run').rglob('*.safetensors')):f}"
    assert f"{kimg:.2f}"[:3] in out or "of tuning" in out
    code, again, _ = call(capsys, *args)
    assert code == 0 and again.startswith("done: ")
    assert f"{max(p.stat().st_mtime for p in (tmp_path / 'run').rglob('*.safetensors')):f}" == total


def test_the_bar_is_as_long_as_the_phase_that_runs(home, tmp_path, tiny, capsys):
    common = ("--data", home / "colour", *SHORT, "--set", "kimg=0.048", "batch=16", *FEW)
    first = PRESETS["cpu"].phases["diffusion"]  # in whole steps of the first phase
    long = math.ceil(first.kimg * 0.0001 * 1000 / first.batch) * first.batch / 1000
    assert long != 0.048
    _, _, err = call(
        capsys, "run", "cpu", tmp_path / "tuned", "--start", home / "start.safetensors", *common
    )
    assert "/0.048" in err and "diffusion, stage" not in err
    _, _, err = call(capsys, "run", "cpu", tmp_path / "both", *common)
    diffusion, tuning = (re.search(f"{name}, stage.*", err)[0] for name in ("diffusion", "tuning"))
    assert f"/{long:g} " in diffusion.partition("tuning")[0] and "/0.048 " in tuning


def test_a_folder_that_version_0_1_left_without_a_way_forward_goes_on(home, tmp_path, tiny, capsys):
    "There the sheet of the first phase lay in the folder of the second, which was then refused."
    args = ("run", "cpu", tmp_path / "run", "--data", home / "colour", *SHORT, "--set", *FEW)
    (tmp_path / "run" / "samples").mkdir(parents=True)
    (tmp_path / "run" / "samples" / "diffusion-000150.png").write_bytes(b"sheet")
    assert call(capsys, *args)[0] == 0
    assert (
        tmp_path / "run-diffusion" / "samples" / "diffusion-000150.png"
    ).read_bytes() == b"sheet"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    code, _, err = call(capsys, "run", "cpu", tmp_path / "mine", *args[3:])
    assert code == 2 and "not empty and not a run" in err


SERVER = """
import json, os, sys
sys.path.insert(0, os.path.join(os.getcwd(), "tests"))
import test_commands
import torch
from ect_nb import commands
commands.PRESETS.update(test_commands.tiny_presets())
torch.optim.RAdam([torch.zeros(1, requires_grad=True)])  # what torch loads late is loaded once
for line in sys.stdin:
    child = os.fork()
    if not child:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os._exit(commands.main(json.loads(line)))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_in_either_phase_by_every_signal_it_goes_on_to_the_same_weights(home, tmp_path):
    "One process has the kit loaded and forks one child for each command."
    args = [
        "run",
        "cpu",
        "--data",
        str(home / "colour"),
        "--device",
        "cpu",
        "--scale",
        "0.004",
        "--set",
        "kimg=0.8",
        "batch=16",
        "state_seconds=0.2",
        *FEW,
    ]
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        cwd=ROOT,
    ) as server:

        def command(folder, number=None, phase=""):
            server.stdin.write(json.dumps(args[:2] + [str(tmp_path / folder)] + args[2:]) + "\n")
            server.stdin.flush()
            child = int(server.stdout.readline())
            began, records = time.monotonic(), tmp_path / (folder + phase) / "metrics.jsonl"
            before = records.stat().st_size if records.exists() else 0
            while number and not (records.exists() and records.stat().st_size > before):
                assert time.monotonic() < began + 60
                time.sleep(0.002)
            if number:
                os.kill(child, number)
            return int(server.stdout.readline())

        for phase in ("-diffusion", ""):
            assert command("killed", signal.SIGTERM, phase) == 128 + signal.SIGTERM
            assert command("killed", signal.SIGKILL, phase) == -signal.SIGKILL
            assert command("killed", signal.SIGINT, phase) == 130
        assert command("killed", signal.SIGHUP) == 128 + signal.SIGHUP
        assert command("killed") == command("whole") == 0
        server.stdin.close()
    for phase in ("", "-diffusion"):
        a, b = (
            list(RunFolder(tmp_path / (f + phase)).snapshots().values())[-1]
            for f in ("killed", "whole")
        )
        a, b = (weights.load(p).state_dict() for p in (a, b))
        assert all(torch.equal(a[k], b[k]) for k in a)


# ---- the commands that the pages print


def texts():
    "(where, text) of all that a reader sees: pages, README, and what their cells print."
    yield "README.md", (ROOT / "README.md").read_text()
    yield "data/README.md", (ROOT / "data" / "README.md").read_text()
    for path in sorted((ROOT / "nbs").rglob("[!.]*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            shown = "\n".join(
                "".join(o.get("text", o.get("data", {}).get("text/plain", "")))
                for o in cell.get("outputs", [])
            )
            yield (
                path.name,
                "".join(cell["source"]) * (cell["cell_type"] == "markdown") + "\n" + shown,
            )


def printed():
    "(where, words of the command) for each that names a command of recipes and what it is to do."
    found = {}
    for where, text in texts():
        for rest in re.findall(r"-m ect_nb +([a-z][^`\n;]*?)(?:\. [A-Z]|[`\n;]|$)", text):
            found.setdefault(tuple(shlex.split(rest, comments=True)), where)
    return [(where, words) for words, where in found.items()]


def planned():
    "Commands that the planner gives over its whole range, each once."
    from ect_nb.show import planner

    found = set()
    for data_set in ("cifar10", "fashion_mnist_20k"):
        for device in ("A100", "T4", "CPU, one core", "RTX 4090"):
            for kimg in (1, 20, 99, 300, 499, 500, 1024, 2999, 3000, 12_800, 51_200, 200_000):
                found |= {c for _, c in planner.preset(data_set, kimg, device)}
    return sorted(found)


def of_the_room(words, tmp_path, monkeypatch):
    """The code of a teacher's command, which goes through the same door; what it computes is tested
    with its page."""
    from ect_nb.course import contest, grade

    (tmp_path / "FOLDER").mkdir()
    for name in ("FILE", "FOLDER/a.safetensors"):
        (tmp_path / name).write_bytes(b"")
    asked = []
    monkeypatch.setattr(grade, "grade", lambda *a: asked.append(a[0]) or [])
    monkeypatch.setattr(contest, "reference", lambda *a: (SimpleNamespace(n=8000), None))
    monkeypatch.setattr(contest, "references", lambda path, *a: asked.append(path) or [])
    monkeypatch.setattr(
        contest, "evaluate", lambda path, *a: asked.append(path) or contest.Entry(path.stem)
    )
    monkeypatch.setattr(sys, "argv", ["ect_nb", *words])
    code = __main__.main()
    assert asked and words[-1] in str(asked[0])
    return code


def carried_out(words, home, tmp_path, monkeypatch, capsys):
    """Run the command as printed, in a fresh folder, with what keeps it small: (code, words on
    stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ECT_NB_DATA", str(home))
    if not (tmp_path / "data").exists():
        (tmp_path / "data").symlink_to(ROOT / "data")
    if words[0] in __main__.ROOM:
        return of_the_room(words, tmp_path, monkeypatch), ""
    a, more = commands.parser().parse_args(words), []
    if a.command == "run":
        commands.asked(a)  # as printed, its settings make a recipe
        pictures = home / ("classes" if PRESETS[a.preset].label_dim else "colour")
        own = {s.partition("=")[0] for s in a.set}
        small = [
            s
            for s in ("kimg=0.032", "batch=16", "accumulate=1", *FEW)
            if s.partition("=")[0] not in own
        ]
        more = [*SHORT, "--set", *small] + (["--data", pictures] if a.data is None else [])
    if a.command == "export" and a.target.suffix == ".onnx":
        pytest.importorskip("onnxscript")
    if a.command in ("sample", "export"):
        more = ["--n", 8, "--device", "cpu"] if a.command == "sample" else []
        a.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        a.checkpoint.write_bytes((home / "start.safetensors").read_bytes())
    code, _, err = call(capsys, *words, *more)
    return code, err


def test_the_pages_print_commands():
    names = {words[0] for _, words in printed()}
    assert {"run", "sample", "teacher"} <= names and {where for where, _ in printed()} >= {
        "README.md",
        "cifar10.ipynb",
    }
    assert len(planned()) > 10


@pytest.mark.parametrize(
    "where, words", printed(), ids=lambda v: v if isinstance(v, str) else " ".join(v)[:60]
)
def test_every_command_of_the_pages_works(where, words, home, tmp_path, tiny, monkeypatch, capsys):
    code, err = carried_out(words, home, tmp_path, monkeypatch, capsys)
    assert code == 0, f"{where} prints `{' '.join(words)}`, which says: {err}"


def test_every_command_of_the_planner_works(home, tmp_path, tiny, monkeypatch, capsys):
    "All make a recipe; the one of each preset with most words is carried out."
    longest = {}
    for command in planned():
        start, _, words = command.partition("ect_nb ")
        words = shlex.split(words)
        assert start == "python -m "
        assert commands.asked(commands.parser().parse_args(words)), command
        longest[words[1]] = max(longest.get(words[1], []), words, key=len)
    assert len(longest) > 4 and any("ema=" in w for words in longest.values() for w in words)
    for name, words in longest.items():
        (tmp_path / name).mkdir()
        code, err = carried_out(words, home, tmp_path / name, monkeypatch, capsys)
        assert code == 0, f"the planner prints `{' '.join(words)}`, which says: {err}"


def test_a_command_that_needs_a_download_ends_in_the_sentence_that_says_how(
    home, tmp_path, tiny, monkeypatch, capsys
):
    monkeypatch.setenv("ECT_NB_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("one_hour", "conditional", "t4"):
        code, _, err = call(capsys, "run", name, "x", "--data", home / "classes", "--device", "cpu")
        command = re.search(r"`python -m ect_nb (.*?)`", err)
        assert code == 2 and command and not (tmp_path / "x").exists()
        assert commands.parser().parse_args(command[1].split()).name == PRESETS[name].teacher
    code, _, err = call(capsys, "run", "cpu", "x", "--device", "cpu")
    assert code == 2 and "CIFAR-10 was not found" in err and "--root" in err and "load(" not in err

    def offline(*a, **k):
        raise ConnectionError(
            "the address cannot be reached (no network): check the connection and call again"
        )

    monkeypatch.setattr(weights, "fetch", offline)
    code, _, err = call(capsys, "teacher", "edm-cifar10-32x32-uncond-vp")
    assert code == 2 and "cannot be reached" in err


def test_the_sample_of_the_pages_is_one_that_the_run_of_the_pages_writes():
    runs_of = {w[2]: w for _, w in printed() if w[0] == "run"}
    for where, words in printed():
        if words[0] == "sample" and "kimg-" in words[1]:
            a = commands.parser().parse_args(runs_of[words[1].partition("/snapshots/")[0]])
            c = list(PRESETS[a.preset].phases.values())[-1]
            steps = -(-c.kimg * 1000 // c.batch)
            assert Path(words[1]).stem == f"kimg-{int(steps * c.batch // 1000):06d}", where


def test_the_launcher_takes_what_12_prints():
    launch = pytest.importorskip("accelerate.commands.launch")
    found = [l for _, text in texts() for l in re.findall(r"accelerate launch (.*ect_nb.*)", text)]
    assert found
    for line in found:
        assert (
            launch.launch_command_parser().parse_args(shlex.split(line)).training_script == "ect_nb"
        )


def test_tools_and_targets_that_the_pages_name_exist_with_their_options():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    seen = 0
    for where, text in texts():
        for target in re.findall(r"(?:^|`)make ([a-z]+)", text, re.M):
            assert target in targets, f"{where}: make {target}"
        for script, rest in re.findall(r"python ((?:tools|bench)/\w+\.py)([^`\n]*)", text):
            seen += 1
            assert (ROOT / script).is_file(), f"{where}: {script}"
            source = (ROOT / script).read_text()
            for option in re.findall(r"(--[a-z][\w-]*)", rest):
                assert f'"{option}"' in source, f"{where}: {script} has no {option}"
    assert seen


# ---- sizes and channels


def test_mixed_pictures_are_trained_at_a_size(home, tmp_path, tiny, monkeypatch, capsys):
    args = ("run", "cpu", tmp_path / "run", "--data", home / "mixed", *SHORT, "--set", *FEW)
    code, _, err = call(capsys, *args)
    assert code == 2 and "--size" in err and "size=" not in err and not list(tmp_path.iterdir())
    code, _, err = call(capsys, *args[:5], "--size", 8, *args[5:])
    assert code == 0, err
    asked = []
    monkeypatch.setattr(
        data, "load", lambda *a, **k: asked.append(k) or (_ for _ in ()).throw(ValueError("seen"))
    )
    for text, size in (("8x6", (8, 6)), ("8×8", 8), ("12", 12)):
        assert (
            call(capsys, *args[:5], "--size", text, *args[5:])[0] == 2 and asked[-1]["size"] == size
        )


def test_pictures_that_the_network_cannot_take_leave_nothing_behind(
    home, tmp_path, tiny, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    folded = replace(PRESETS["cpu"], network=TINY | dict(patch=2, channel_mult=(1, 1)))
    monkeypatch.setitem(PRESETS, "cpu", folded)
    args = lambda pictures: ("run", "cpu", "run", "--data", home / pictures, *SHORT, "--set", *FEW)
    code, _, err = call(capsys, *args("grey"))
    assert code == 2 and re.search(
        "takes pictures of 3 channels, and grey has 1 .*--channels 3", err
    )
    code, _, err = call(capsys, *args("odd"))
    assert code == 2 and re.search("cannot take pictures of 9 × 9.*--size", err)
    code, _, err = call(
        capsys,
        "run",
        "conditional",
        "run",
        *args("colour")[3:],
        "--start",
        home / "edm-cifar10-32x32-cond-vp.pkl",
    )
    assert code == 2 and "is told the class" in err
    assert not list(tmp_path.iterdir())
    for more in ((*args("grey"), "--channels", 3), (*args("odd"), "--size", 8)):
        assert call(capsys, *more)[0] == 0  # in the same folder, as the sentences say
        for folder in ("run", "run-diffusion"):
            __import__("shutil").rmtree(tmp_path / folder)


# ---- what goes wrong is said in one sentence

RUN = (
    "run",
    "cpu",
    "{tmp}/run",
    "--data",
    "{home}/colour",
    "--start",
    "{home}/start.safetensors",
    "--device",
    "cpu",
)
WRONG = {
    "settings": [
        (RUN + ("--set", s), says)
        for s, says in (
            ("lr", "has no value"),
            ("=3", "no setting"),
            ("betas=(0.9", "cannot be read"),
            ("lr=abc", "not a finite number"),
            ("lr=nan", "not a finite number"),
            ("lr=1e999", "not a finite number"),
            ("stages=3", "as in stages=Stages"),
            ("p_t=3", "as in p_t=LogNormal"),
            ("p_t=None", "as in p_t"),
            ("batch=16.0", "whole number"),
            ("c=x", "finite number"),
            ("c=nan", "finite number"),
            ("decay_kimg=nan", "finite number"),
            ("kimg=10**30", "cannot be read"),
            ("kimg=1e30", "longest published run"),
            ("batch=1000000000", "more than 65,536"),
            ("compile=1", "True or False"),
            ("warmup_kimg=-1", "negative"),
            ("seed=-1", "negative"),
            ("precision=half", "must be one of"),
            ("mapping=open('x')", "cannot be read"),
            ("stages=Stages(x=2)", "cannot be read"),
            ("lr=" + "[" * 400, "cannot be read"),
            ("lr=" + "9" * 6000, "cannot be read"),
            ("betas=(2, 3)", "two numbers"),
            ("optimizer=SGDD", "must be one of"),
            ("weight=heavy", "must be one of"),
            ("c=-1", "negative"),
            ("mapping=None", "SigmoidMapping"),
            ("objective=Far", "an objective, ECT"),
            ("first=3", "no setting"),
        )
    ],
    "options": [
        (RUN + more, says)
        for more, says in (
            (("--scale", "inf"), "no number above 0"),
            (("--scale", "0"), "no number above 0"),
            (("--scale", "-1"), "no number above 0"),
            (("--scale", "1e20"), "longest published run"),
            (("--hours", "nan"), "no number above 0"),
            (("--hours", "0"), "no number above 0"),
            (("--seed", "-1"), "no whole number from 0"),
            (("--seed", "1e3"), "no whole number"),
            (("--every", "0"), "no number above 0"),
            (("--size", "0"), "no size"),
            (("--size", "100000"), "no size"),
            (("--size", "8x"), "no size"),
            (("--size", "-8"), "expected one|no size"),
            (("--channels", "2"), "invalid choice"),
            (("--device", "abacus"), "choose --device"),
            (("--device", "meta"), "choose --device"),
            (("--device", "cuda:99"), "cuda:99 is not here: choose"),
            (("--device", "cpu:1"), "choose --device"),
            (("--sped", "3"), "unrecognized"),
            (("--seed", "1", "--set", "seed=2"), "differ"),
            (("--set", "lr=1e-3", "--set", "lr=2e-3"), "twice"),
        )
    ],
    "places": [
        (("run", "cpu", "{home}/pipe", *RUN[3:]), "there and no folder|exists"),
        (("run", "cpu", "/dev/null", *RUN[3:]), "no folder|exists"),
        (("run", "cpu", "{home}/text.safetensors", *RUN[3:]), "no folder|exists"),
        (("run", "cpu", "/proc/ect_nb/x", *RUN[3:]), "proc"),
        (("run", "cpu", "{tmp}/run", "--data", "{home}/pipe"), "neither a set"),
        (("run", "cpu", "{tmp}/run", "--data", "/dev/zero"), "neither a set"),
        ((*RUN[:5], "--start", "{home}/pipe"), "is not a file"),
        ((*RUN[:5], "--start", "{home}"), "is not a file"),
        ((*RUN[:5], "--start", "{home}/none.safetensors"), "no checkpoint at"),
        ((*RUN[:5], "--start", "{home}/text.safetensors"), "not a whole safetensors"),
        ((*RUN[:5], "--start", "{home}/mlp.safetensors"), "cannot take pictures|draws no pictures"),
        ((*RUN[:5], "--start", "{home}/nan.safetensors"), "NaN"),
    ],
    "commands": [
        ((), "required"),
        (("fly",), "invalid choice"),
        (("run", "nope", "x"), "invalid choice"),
        (("run", "cpu"), "required"),
        (("teacher", "socrates"), "no teacher is called"),
        (("sample",), "required"),
    ],
    "samples": (
        [
            (("sample", "{home}/" + file, "{tmp}/x.npz", "--device", "cpu", *more), says)
            for file, more, says in (
                ("mlp.safetensors", (), "draws no pictures"),
                ("bare.safetensors", (), "without the preconditioning"),
                ("classifier.safetensors", (), "draws no pictures"),
                ("nan.safetensors", (), "holds NaN"),
                ("inf.safetensors", (), "holds NaN or infinity"),
                ("pipe", (), "is not a file"),
                ("text.safetensors", (), "not a whole"),
                ("start.safetensors", ("--times", "1", "80"), "must be positive and fall"),
                ("start.safetensors", ("--times", "inf"), "must be positive"),
                ("start.safetensors", ("--times", "80", "nan"), "must be positive"),
                ("start.safetensors", ("--times", "80", "-1"), "must be positive"),
                ("start.safetensors", ("--times", "80", "80"), "must be positive and fall"),
                ("start.safetensors", ("--n", "0"), "no whole number from 1"),
                ("start.safetensors", ("--n", "1000000000000"), "GB"),
                ("start.safetensors", ("--batch", "0"), "no whole number"),
                ("start.safetensors", ("--seed", "x"), "no whole number"),
            )
        ]
        + [
            (
                ("sample", "{home}/start.safetensors", place, "--n", "4", "--device", "cpu"),
                "no file",
            )
            for place in ("{home}", "{home}/pipe", "/dev/null")
        ]
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_whatever_is_wrong_ends_in_one_sentence_and_leaves_nothing_behind(
    kind, home, tmp_path, tiny, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for args, says in WRONG[kind]:
        code, _, err = call(capsys, *(a.format(tmp=tmp_path, home=home) for a in args))
        said = [l for l in err.strip().split("\r")[-1].splitlines() if l.strip()]
        assert code == 2 and said and said[-1].startswith("ect_nb: "), (args, err)
        assert re.search(says, said[-1]) and "Traceback" not in err and len(said[-1]) < 700, (
            args,
            said,
        )
        assert not list(tmp_path.iterdir()), args
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a"),
        AttributeError("b"),
        ZeroDivisionError(),
        RecursionError("deep"),
        MemoryError(),
        TypeError("c"),
        OSError(28, "No space left on device", "x"),
        PermissionError(13, "Permission denied", "y"),
        EOFError(),
        UnicodeDecodeError("utf8", b"x", 0, 1, "bad"),
        RuntimeError("many\nlines\n" * 300),
        FloatingPointError("the loss is not a number: use precision='float32'"),
        AssertionError(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_error_from_anywhere_becomes_a_sentence(error, monkeypatch, capsys):
    def fails(*a, **k):
        raise error

    monkeypatch.setattr(data, "load", fails)
    args = ("run", "cpu", "x", "--device", "cpu")
    code, _, err = call(capsys, *args)
    assert (
        code == 2
        and err.startswith("ect_nb: ")
        and err.count("\n") == 1
        and 15 < len(err) < 800
        and "precision='" not in err
    )
    monkeypatch.setenv("ECT_NB_DEBUG", "1")
    with pytest.raises(type(error)):
        main(list(args))


def test_a_full_disk_and_a_second_copy_of_the_command_are_said(
    home, tmp_path, tiny, monkeypatch, capsys
):
    args = [a.format(tmp=tmp_path, home=home) for a in RUN] + [
        "--set",
        "kimg=0.032",
        "batch=16",
        *FEW,
    ]
    (tmp_path / "run").mkdir()
    with runs.lock(RunFolder(tmp_path / "run")):
        code, _, err = call(capsys, *args)
    assert code == 2 and "in use" in err

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "write_atomically", full)
    code, _, err = call(capsys, *args)
    assert code == 2 and re.search("No space|make room", err)
    monkeypatch.undo()


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    assert main(["list"]) == 0


def test_a_seed_set_as_a_setting_is_the_seed(home, tmp_path, tiny, capsys):
    common = ("--data", home / "colour", *SHORT, "--set", *FEW)
    for folder, more in (("set", ("seed=5",)), ("option", ("--seed", "5")), ("other", ("seed=6",))):
        assert call(capsys, "run", "cpu", tmp_path / folder, *common, *more)[0] == 0
    config = {f: RunFolder(tmp_path / f).config() for f in ("set", "option", "other")}
    assert (
        config["set"]["config"]["seed"] == 5
        and config["set"]["init"] == config["option"]["init"] != config["other"]["init"]
    )


# ---- sentences that the shell can print name what the shell has


def raised():
    """Every text of an error in the modules that a command can reach, f-strings with … for what
    they fill in."""
    core = [ROOT / "ect_nb" / f"{m}.py" for m in ("sampling", "diffusion", "networks", "schedules")]
    deeper = [p for d in ("training", "io") for p in (ROOT / "ect_nb" / d).glob("[!_]*.py")]
    top = [ROOT / "ect_nb" / "measure" / "bulk.py", ROOT / "ect_nb" / "commands.py"]
    for path in [*core, *deeper, *top]:
        module = path.stem
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                parts = [p for a in node.exc.args for p in ast.walk(a)]
                text = "".join(
                    p.value
                    for p in parts
                    if isinstance(p, ast.Constant) and isinstance(p.value, str)
                )
                if text:
                    yield module, text


def test_no_sentence_advises_in_python():
    "Arguments of the functions that a command calls become options or settings of the command."
    reached = [data.load, loop.train, weights.load, recipes.run]
    names = {n for f in reached for n in inspect.signature(f).parameters} | set(
        loop.Config.__dataclass_fields__
    )
    names -= {
        "teacher",  # no recipe keeps one
        "name",
        "model",
        "config",
        "data",
        "path",
        "preset",
        "split",
        "into",
        "accelerator",
        "folder",
        "teacher",
    }
    found = list(raised())
    assert len(found) > 60
    for module, text in found:
        said = in_shell(text)
        for name in re.findall(r"(?<!--set )(?<![\w.-])([a-z_]+)=(?![\w'(=])", said):
            assert name not in names, f"{module}: {said}"


@pytest.mark.parametrize(
    "python, shell",
    [
        (
            "give size= to crop and resize all to one square.",
            "give --size to crop and resize all to one square.",
        ),
        (
            "then load('cifar10', root=root); a folder, load('path/to/pictures'), does",
            "then --data cifar10 --root FOLDER; a folder, --data path/to/pictures, does",
        ),
        ("pass device='cpu', or check", "pass --device cpu, or check"),
        (
            "use a smaller lr or precision='float32'; what",
            "use a smaller lr or --set precision=float32; what",
        ),
        ("use compile=False", "use --set compile=False"),
        ("as in stages=Stages(start=0)", "as in stages=Stages(start=0)"),
        ("--set lr=3 is negative", "--set lr=3 is negative"),
        ("its x=3 is not ours", "its x=3 is not ours"),
    ],
)
def test_advice_is_translated(python, shell):
    assert in_shell(python) == shell


# ---- sampling from the shell


def test_samples_have_the_size_that_was_trained(home, tmp_path, monkeypatch, capsys):
    model, path = weights.load(home / "start.safetensors"), home / "start.safetensors"
    drawn = lambda *more: (
        call(capsys, "sample", path, tmp_path / "x.npz", "--n", 5, "--device", "cpu", *more)[0],
        np.load(tmp_path / "x.npz")["arr_0"],
    )
    assert drawn()[1].shape == (5, 8, 8, 3)
    assert drawn("--size", "6x10")[1].shape == (5, 6, 10, 3)
    about = weights.header(path)
    for where in ("top", "model", "provenance"):
        told = (
            about | dict(shape=[3, 12, 4])
            if where == "top"
            else about | {where: dict(about[where] or {}, shape=[3, 12, 4])}
        )
        monkeypatch.setattr(weights, "header", lambda p, told=told: told)
        monkeypatch.setattr(weights, "load", lambda p: model)
        assert drawn()[1].shape == (5, 12, 4, 3)


def test_a_conditional_teacher_is_told_a_class_for_each_picture_whatever_the_batch(
    home, tmp_path, capsys
):
    teacher = home / "edm-cifar10-32x32-cond-vp.pkl"
    for batch in (32, 64):
        code, _, err = call(
            capsys,
            "sample",
            teacher,
            tmp_path / f"{batch}.npz",
            "--n",
            70,
            "--batch",
            batch,
            "--times",
            80,
            "--device",
            "cpu",
        )
        assert code == 0, err
    a, b = (np.load(tmp_path / f"{n}.npz")["arr_0"].astype(int) for n in (32, 64))
    assert abs(a - b).max() <= 1 and not list(tmp_path.glob(".*"))
