"""Records reach every log that is asked for, in strict JSON, and no log ends a run."""

import csv
import json
import math
import numpy as np
import pytest
import sys
import torch
import types
from ect_nb import ECT, MLP, Config, Precond, Stages, train
from ect_nb.training import logs
from ect_nb.training.runs import RunFolder
from importlib.util import find_spec

POINTS = torch.randn(128, 2, generator=torch.Generator().manual_seed(0))
CONFIG = Config(ECT(c=0.03), kimg=1.6, batch=32, stages=Stages(2))


def model():
    torch.manual_seed(0)
    return Precond(MLP(dim=2, width=16))


def run(folder=None, log=None):
    for _ in train(model(), POINTS, CONFIG, folder, log=log):
        pass


def test_a_log_hears_what_the_folder_keeps(tmp_path):
    heard = []
    run(tmp_path / "run", heard.append)
    kept = RunFolder(tmp_path / "run").records()
    assert len(heard) == len(kept) == 50
    assert all(a.items() <= b.items() for a, b in zip(heard, kept))
    alone = []
    run(None, alone.append)  # without a folder too
    same = lambda r: {k: v for k, v in r.items() if k != "seconds"}
    assert list(map(same, alone)) == list(map(same, heard))


def test_a_log_that_fails_costs_itself_alone(tmp_path):
    def fails(record):
        heard.append(record)
        raise OSError("no server")

    heard = []
    with pytest.warns(UserWarning, match="left out.*no server"):
        run(tmp_path / "run", fails)
    assert len(heard) == 1 and len(RunFolder(tmp_path / "run").records()) == 50


def test_csv(tmp_path):
    path = tmp_path / "a" / "curves.csv"
    run(None, logs.csv_log(path))
    run(None, logs.csv_log(path))
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == 100 and {r["metric"] for r in rows} == {"loss"}
    assert all(float(r["kimg"]) > 0 and math.isfinite(float(r["value"])) for r in rows)


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = logs.tensorboard_log(tmp_path)
    for kimg in (1.0, 2.0):
        log(dict(metric="FD", value=kimg / 2, low=0.1, high=None, kimg=kimg))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("FD")] == [(1, 0.5), (2, 1.0)]
    assert len(events.Scalars("FD/low")) == 2 and "FD/high" not in events.Tags()["scalars"]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_are_told_numbers(name, monkeypatch):
    told, begun = [], []
    stand_in = types.ModuleType(name)
    stand_in.log = told.append
    stand_in.init = lambda **kw: begun.append(kw) or stand_in
    monkeypatch.setitem(sys.modules, name, stand_in)
    log = getattr(logs, f"{name}_log")(project="p")
    log(dict(metric="FD", value=3.0, low=math.nan, high=4.0, kimg=7, lr=None, device="cpu"))
    assert begun == [dict(project="p")] and told == [{"FD": 3.0, "FD/high": 4.0, "kimg": 7}]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_what_is_missing_is_said(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    how = r'"ect_nb\[logs\]"' if name == "tensorboard" else name
    said = f"{name} is not installed.*pip install {how}"
    with pytest.raises(ImportError, match=said):
        getattr(logs, f"{name}_log")(**(dict(folder="x") if name == "tensorboard" else {}))


def test_records_are_strict_json(tmp_path):
    odd = dict(
        metric="FD",
        value=math.nan,
        parts=[1.0, math.inf, dict(deep=(math.nan, np.float32(2)))],
        n=np.int64(3),
        tensor=torch.tensor(0.5),
    )
    RunFolder(tmp_path).record(**odd)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    refuse = lambda word: pytest.fail(f"{word} is not JSON")
    found = json.loads(line, parse_constant=refuse)
    assert found["value"] is None and found["parts"] == [1.0, None, {"deep": [None, 2.0]}]
    assert found["n"] == 3 and found["tensor"] == 0.5


def test_watched_measures_when_due_and_within_its_share(tmp_path, monkeypatch):
    clock, heard = [0.0], []
    monkeypatch.setattr(logs.time, "monotonic", lambda: clock[0])

    def steps():
        for p in train(model(), POINTS, CONFIG, tmp_path / "run"):
            clock[0] += 1.0  # a second a step
            yield p

    def slow(ema):
        clock[0] += 4.0
        return dict(metric="FD", value=1.0)

    progress = list(logs.watched(steps(), slow, every_kimg=0.032, log=heard.append, share=0.25))
    assert len(progress) == 50 and heard[-1]["kimg"] == 1.6
    assert 3 <= len(heard) and 4 * (len(heard) - 1) <= 0.25 * clock[0] + 4
    kept = [r for r in RunFolder(tmp_path / "run").records() if r["metric"] == "FD"]
    assert [r["kimg"] for r in kept] == [r["kimg"] for r in heard]
