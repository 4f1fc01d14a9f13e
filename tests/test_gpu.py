"tools/gpu.py at a tiny scale on a CPU: killed, continued, carried to a machine that has nothing."

import json
import numpy as np
import os
import pytest
import signal
import subprocess
import sys
import time
from pathlib import Path
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
ENV = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", ECT_NB_DEVICE="cpu")
ENV = {k: v for k, v in ENV.items() if k != "ECT_NB_INCEPTION"}
MOST = 16_000_000


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder of 100 small pictures, and one test to be run."
    home = tmp_path_factory.mktemp("gpu")
    (home / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(100):
        picture = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        picture.save(home / "pictures" / f"{i:03d}.png")
    (home / "test_small.py").write_text("def test_sum():\n    assert 1 + 1 == 2\n")
    return home


def command(home, out, runs, *more):
    args = [str(home / out), "--runs", str(home / runs), "--scale", "1e-5"]
    args += ["--data", str(home / "pictures"), "--tests", str(home / "test_small.py"), *more]
    return [sys.executable, str(ROOT / "tools" / "gpu.py"), *args]


def call(home, out="out", runs="runs", *more, inception=None):
    env = ENV | dict(ECT_NB_CACHE=str(home / "cache"))
    env |= dict(ECT_NB_INCEPTION=str(inception)) if inception else {}
    done = subprocess.run(
        command(home, out, runs, *more), cwd=home, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def killed(home, when, how):
    "Begin, and send the signal `how` as soon as `when()`."
    env = ENV | dict(ECT_NB_CACHE=str(home / "cache"))
    process = subprocess.Popen(
        command(home, "out", "runs"), cwd=home, env=env, stdout=subprocess.DEVNULL
    )
    while process.poll() is None and not when():
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(how)
    process.wait()


def lines(home, out="out"):
    return [json.loads(line) for line in (home / out / "gpu.jsonl").read_text().splitlines()]


def same(line):
    "What does not depend on the clock."
    clock = "seconds", "whole_seconds", "date", "said", "ratio", "ms"
    return {k: v for k, v in line.items() if k not in clock}


def results(home, out, task):
    return [same(line) for line in lines(home, out) if line["task"] == task]


def test_killed_twice_and_continued(home):
    states = lambda name: list((home / "runs" / name / "state").glob("step-*"))
    killed(home, lambda: states("cifar10-small-diffusion"), signal.SIGKILL)
    killed(home, lambda: states("cifar10-small"), signal.SIGTERM)
    before = lines(home)
    said = call(home)
    assert lines(home)[: len(before)] == before  # nothing that was known is done again
    for task in ("tests", "step", "small", "fashion"):
        assert f"{task:8s} done" in said
    assert "fid      left: ECT_NB_INCEPTION names no" in said
    small = [line for line in lines(home) if line.get("run") == "cifar10-small"]
    found = sorted((line["kimg"], line["nfe"]) for line in small)
    assert found == [(k, n) for k in range(1, 9) for n in (1, 2)]
    assert all(line["low"] <= line["value"] <= line["high"] for line in small)
    assert [line["code"] for line in lines(home) if line["task"] == "tests"] == [0]
    assert {line["stage"] for line in lines(home) if line["task"] == "step"} == {0, 3, 7}
    made = list((home / "out").iterdir())
    assert len(made) <= 8 and all(p.stat().st_size <= MOST for p in made)
    assert (home / "out" / "gpu.md").read_text().count("\n## ") == 4


def test_what_was_killed_is_what_was_not(home):
    call(home, "whole", "runs-whole", "--only", "small")
    assert results(home, "whole", "small") == results(home, "out", "small")


def test_a_bare_machine_goes_on_from_the_results_alone(home):
    before = lines(home)
    said = call(home, "out", "runs-elsewhere")
    assert lines(home) == before and "small    done" in said
    model = "cifar10-small.safetensors"
    assert (home / "runs" / model).read_bytes() == (home / "runs-elsewhere" / model).read_bytes()


@pytest.mark.slow
def test_fid_where_inception_is_at_hand(home):
    "By a stand-in of the published file, from the model that lies there; a second call has it."
    from test_features import INCEPTION, Layers, Original, write

    if not (home / "out").exists():
        call(home, "out", "runs", "--only", "small")
    file = write(Original(Layers()), home / f"{INCEPTION}.pt")
    said = call(home, "out", "runs", "--only", "fid", inception=file)
    found = [line for line in lines(home) if line["task"] == "fid"]
    assert "fid      done" in said and [line["nfe"] for line in found] == [1, 2]
    for line in found:
        assert line["features"] == f"{INCEPTION}_legacy_tensorflow" and line["n_samples"] == 80
        assert line["low"] <= line["value"] <= line["high"]
        assert line["whole_seconds"] >= line["seconds"]
    call(home, "out", "runs", "--only", "fid", inception=file)
    assert [line for line in lines(home) if line["task"] == "fid"] == found


def test_out_of_time_it_says_what_is_left(home):
    said = call(home, "late", "runs-late", "--minutes", "0")
    assert "small    left\n" in said and "the same command goes on" in said


def test_parts_that_are_not_whole_are_left_alone(home):
    (home / "broken").mkdir()
    (home / "broken" / "runs-0123abcd-1-of-2.part").write_bytes(b"half")
    call(home, "broken", "runs-broken", "--minutes", "0")
    assert not list((home / "runs-broken").rglob("*.safetensors"))
