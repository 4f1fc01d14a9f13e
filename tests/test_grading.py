"""Hand-ins, honest and not, graded each in a process of its own."""

import csv
import ect_nb
import io
import json
import pytest
from ect_nb.course import far, grade
from pathlib import Path

RIGHT = "def two_steps(f, z1, z2, t1=80.0, t2=0.8):\n    return f(f(t1 * z1, t1) + t2 * z2, t2)"
SLIP = "def two_steps(f, z1, z2, t1=80.0, t2=0.8):\n    return f(f(t1 * z1, t1), t2)"
TRICK = "def two_steps(f, z1, z2, t1=80.0, t2=0.8):\n    "
USED = TRICK + "return z1"
HELPED = TRICK + "return f(put(f(t1 * z1, t1), t2, z2), t2)"
PATCH = "X.compare = lambda *a, **k: None\n    return z1"
HAND_INS = {
    "right": (1, [RIGHT]),
    "helper": (1, ["def put(x, t, z):\n    return x + t * z", HELPED]),
    "stub": (0, [TRICK + "..."]),
    "missing": (0, ["x = 1"]),
    "slip": (0.5, [SLIP]),
    "fixed": (0, ["import torch", TRICK + "return torch.zeros(6)"]),
    "exits": (0, [TRICK + "raise SystemExit(0)"]),
    "ends": (0, ["import os", TRICK + "os._exit(0)"]),
    "hangs": (0, [TRICK + "while True:\n        pass"]),
    "frames": (0, ["import sys", TRICK + "return sys._getframe(1).f_locals['want']"]),
    "patched": (0, ["import ect_nb.course.check as X", TRICK + PATCH]),
    "reference": (0, [TRICK + "from ect_nb.course.lesson_07 import _twice\n    return z1"]),
    "writes": (0, [TRICK + "open('mine', 'w').write('x')\n    return z1"]),
    "starts": (0, ["import os", TRICK + "os.system('true')\n    return z1"]),
    "equal": (0, ["class Same:\n    def __eq__(self, o): return True", TRICK + "return Same()"]),
    "memory": (0, ["import torch", TRICK + "return torch.ones(10**10)"]),
    "redefined": (0, ["def check_two_steps(f): return '✓'", USED]),
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return far.without_checks(Path(ect_nb.__file__).parent, tmp_path_factory.mktemp("package"))


@pytest.mark.parametrize("kind", HAND_INS)
def test_a_hand_in_earns_what_it_deserves_and_does_no_harm(kind, package, tmp_path):
    score, cells = HAND_INS[kind]
    file = tmp_path / f"{kind}.json"
    file.write_text(json.dumps(dict(page="07", name=kind, cells=cells)), encoding="utf-8")
    result = grade.graded(file, package, seed=1, seconds=4)
    row = next(r for r in result["rows"] if r[0] == "check_two_steps")
    assert row[2] == score, row[3]
    assert sum(r[2] for r in result["rows"]) == score
    assert not (package / "mine").exists()


def test_what_is_no_hand_in_is_a_line_of_the_table_and_a_page(tmp_path, package):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    results = [grade.graded(p, package, 1) for p in grade.found_in(tmp_path)]
    assert len(results) == 2 and all("is no hand-in" in r["error"] for r in results)
    grade.written(tmp_path / "grades", results, 1)
    assert len(list((tmp_path / "grades").glob("*.html"))) == 2
    assert grade.found_in(tmp_path / "nothing") == []


def test_a_name_is_neither_a_formula_nor_markup():
    row = ("check_two_steps", 1, 0.5, "✗ <b>no</b>")
    result = dict(name="=1+1<script>", file="a.json", page="07", error="", rows=[row])
    line = list(csv.reader(io.StringIO(grade.course_table([result]))))[1]
    assert line[0] == "'=1+1<script>" and line[3:6] == ["0.5", "0.5", "1"]
    page = grade.feedback(result)
    assert "<script>" not in page and "<b>" not in page


def test_a_notebook_is_known_by_the_checks_it_calls(tmp_path):
    cells = [dict(cell_type="code", source=["print(check_two_steps(two_steps))"])]
    file = tmp_path / "my homework.ipynb"
    file.write_text(json.dumps(dict(nbformat=4, cells=cells)))
    name, page, sources = grade.handed(file)
    pages = {"06": {"check_target": 0}, "07": {"check_two_steps": 0}}
    assert grade.page_of(page, sources, pages) == "07" and name == "my homework"
    assert grade.page_of("nothing", ["x = 1"], pages) is None
