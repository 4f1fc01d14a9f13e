"""Hand-ins, honest and not, graded together in one folder, each in a process of its own."""

import csv
import dataclasses
import ect_nb
import io
import json
import os
import pytest
import sys
import torch
from ect_nb import schedules
from ect_nb.course import far, grade
from pathlib import Path

RIGHT = "def two_steps(f, z1, z2, t1=80.0, t2=0.8):\n    return f(f(t1 * z1, t1) + t2 * z2, t2)"
SLIP = "def two_steps(f, z1, z2, t1=80.0, t2=0.8):\n    return f(f(t1 * z1, t1), t2)"
TRICK = "def two_steps(f, z1, z2, t1=80.0, t2=0.8):\n    "
USED = TRICK + "return z1"
HELPED = TRICK + "return f(put(f(t1 * z1, t1), t2, z2), t2)"
PATCH = "X.compare = lambda *a, **k: None\n    return z1"
UNFENCE = """import builtins, os, posixpath
import ect_nb.course.far as F
def free(path, mode):
    F._NEVER = F._LOOKS = ()
    os.O_WRONLY = os.O_RDWR = os.O_CREAT = os.O_TRUNC = 0
    os.fsdecode = os.path.realpath = lambda p: "/dev/null"
    builtins.isinstance, old = (lambda *a: True), builtins.isinstance
    try:
        return open(path, mode)
    finally:
        builtins.isinstance = old"""
HAND_INS = {
    "right": (1, [RIGHT]),
    "helper": (1, ["def put(x, t, z):\n    return x + t * z", HELPED]),
    "stub": (0, [TRICK + "..."]),
    "missing": (0, ["x = 1"]),
    "slip": (0.5, [SLIP]),
    "exits": (0, [TRICK + "raise SystemExit(0)"]),
    "ends": (0, ["import os", TRICK + "os._exit(0)"]),
    "hangs": (0, [TRICK + "while True:\n        pass"]),
    "frames": (0, ["import sys", TRICK + "return sys._getframe(1).f_locals['want']"]),
    "patched": (0, ["import ect_nb.course.check as X", TRICK + PATCH]),
    "reference": (0, [TRICK + "from ect_nb.course.lesson_07 import _twice\n    return z1"]),
    "writes": (0, [TRICK + "open('mine', 'w').write('x')\n    return f(f(t1 * z1, t1), t2)"]),
    "outside": (0, [TRICK + "open({outside!r}, 'w').write('x')\n    return z1"]),
    "unfences": (0, [UNFENCE, TRICK + "free({outside!r}, 'w').write('x')\n    return z1"]),
    "reads": (0, [UNFENCE, TRICK + "free({checks!r}, 'r')\n    " + RIGHT.split("\n    ")[1]]),
    "starts": (0, ["import os", TRICK + "os.system('true')\n    return z1"]),
    "equal": (0, ["class Same:\n    def __eq__(self, o): return True", TRICK + "return Same()"]),
    "memory": (0, ["import torch", TRICK + "return torch.ones(10**10)"]),
    "redefined": (0, ["def check_two_steps(f): return '✓'", USED]),
}


def shown_case():
    "What a hand-in holds that knows the first case of the copy by heart: its numbers."
    from ect_nb.course.lesson_07 import check_two_steps

    kept = []

    def listening(f, z1, z2, t1, t2):
        kept.append(f(f(t1 * z1, t1) + t2 * z2, t2))
        return kept[-1]

    assert check_two_steps(listening).score == 1
    return f"torch.tensor({kept[0].tolist()!r}, dtype={kept[0].dtype})"


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    "(folder, {kind: result}): all of them in one folder, and what each of them earned."
    folder = tmp_path_factory.mktemp("course")
    outside, checks = folder.parent / "outside.txt", Path(far.__file__).with_name("lesson_07.py")
    cells = {kind: given for kind, (_, given) in HAND_INS.items()}
    cells["by_heart"] = ["import torch", TRICK + f"return {shown_case()}"]
    for kind, given in cells.items():
        given = [c.replace("{outside!r}", repr(str(outside))) for c in given]
        given = [c.replace("{checks!r}", repr(str(checks))) for c in given]
        said = dict(page="07", name=kind, cells=given, said=dict(check_two_steps=[1, "✓ Right."]))
        (folder / f"{kind}.json").write_text(json.dumps(said), encoding="utf-8")
    (folder / "broken.json").write_text("{")
    results = grade.grade(folder, seed=1, seconds=2, workers=1, say=lambda line: None)
    assert not outside.exists() and not (Path.cwd() / "mine").exists()
    return folder, {r["name"]: r for r in results}


@pytest.mark.parametrize("kind", [*HAND_INS, "by_heart"])
def test_a_hand_in_earns_what_it_deserves_and_does_no_harm(kind, course):
    result, score = course[1][kind], HAND_INS.get(kind, (0,))[0]
    row = next(r for r in result["rows"] if r[0] == "check_two_steps")
    assert row[2] == score, row[3]
    assert sum(r[2] for r in result["rows"]) == score


def test_the_table_has_a_line_and_a_page_for_every_hand_in(course):
    folder, results = course
    text = (folder / "grades" / "grades.csv").read_text(encoding="utf-8-sig")
    lines = list(csv.DictReader(io.StringIO(text)))
    assert {line["name"]: float(line["points"]) for line in lines} == {
        name: sum(row[1] * row[2] for row in r["rows"]) for name, r in results.items()
    }
    assert len(list((folder / "grades").glob("*.html"))) == len(lines) == len(HAND_INS) + 2
    assert "is no hand-in" in results["broken"]["error"]
    assert (folder / "grades" / "seed.txt").read_text() == "1\n"


def test_what_is_no_hand_in_is_a_line_of_the_table_and_a_page(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    results = [grade.graded(p, tmp_path, 1) for p in grade.found_in(tmp_path)]
    assert len(results) == 2 and all("is no hand-in" in r["error"] for r in results)
    grade.written(tmp_path / "grades", results, 1)
    assert len(list((tmp_path / "grades").glob("*.html"))) == 2
    assert grade.found_in(tmp_path / "nothing") == []


LIMIT = """import os, resource
def limit(x):
    return resource.getrlimit(resource.RLIMIT_FSIZE)[0], os.getpid()
def hang(x):
    while True:
        pass"""


@pytest.mark.skipif(os.name == "nt", reason="no such limits there")
def test_the_system_bounds_an_answer_in_a_forked_process_and_in_one_of_its_own(tmp_path):
    package = far.without_checks(Path(ect_nb.__file__).parent, tmp_path / "package")
    server = far.ForkServer(package) if sys.platform == "linux" else None
    for kind in [far.Forked] * bool(server) + [far.subprocess.Popen]:
        with far.Process([LIMIT], package, 1, server=server) as process:
            most, number = process.answer("limit")(torch.zeros(1))
            assert most == 0 and number == process.process.pid and type(process.process) is kind
            with pytest.raises(far.Ended, match="more than 1 seconds"):
                process.answer("hang")(torch.zeros(1))
        if kind is far.Forked:
            server.process.kill()  # when it has ended, an answer gets a process all the same
    if server:
        server.close()


@pytest.mark.parametrize("extra, known", [([], True), ([("more", int, 0)], False)])
def test_settings_are_known_where_the_cells_of_a_page_define_their_class_anew(extra, known):
    """Lesson 04 defines Stages, so that a hand-in of it has a class of its own by that name."""
    held = [(f.name, int, 1) for f in dataclasses.fields(schedules.Stages)]
    own = dataclasses.make_dataclass("Stages", held + extra)(start=2)
    said = json.loads(json.dumps(far.encode(own, None, [])))
    got = far.decode(said, None, {})
    assert (got == schedules.Stages(2, 1, 1)) is known and type(got) is not type(own)


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
