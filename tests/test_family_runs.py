"""The command for the family at picture scale: costs, and a table of what is in the run folders."""

import csv
import pytest
import sys
from ect_nb.io import data
from ect_nb.training.runs import RunFolder
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import make_family_runs as runs


@pytest.mark.parametrize("name, passes, jvps", [("CD", 6, 0), ("sCT", 6, 1)])
def test_costs_are_those_one_counts_by_hand(name, passes, jvps):
    "Forward and backward 3, a second answer 1, a teacher's Heun step 2; a product 3 by itself."
    cost = runs.cost_of(name, data.load("fashion_mnist_20k"))
    assert cost["jvps"] == jvps and abs(cost["passes"] - passes) < 0.1


def record(method, seed, nfe):
    many = dict.fromkeys(runs.COLUMNS, 1) | dict(value=2.5, low=2.0, high=3.0, bias=0.1)
    return many | dict(metric="FD", method=method, train_seed=seed, nfe=nfe)


def test_the_table_has_every_distance_but_those_of_trials(tmp_path):
    for method, seed in (("CD", 0), ("ECT", 1), ("ECT", 0), ("ECT", runs.TRIAL)):
        for nfe in (2, 1):
            RunFolder(tmp_path / f"{method}-{seed}").record(**record(method, seed, nfe))
    RunFolder(tmp_path / "ECT-0").record(metric="processor", value=3.0)
    runs.write(tmp_path, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    named = [(r["method"], r["train_seed"], r["nfe"]) for r in rows]
    expected = [("ECT", "0"), ("ECT", "1"), ("CD", "0")]
    assert named == [(*k, nfe) for k in expected for nfe in ("1", "2")]
    assert rows[0]["value"] == "2.500" and set(rows[0]) == set(runs.COLUMNS)
