"""Exercises for nbgrader and otter: stubs get nothing, solutions everything, a slip a half.

The formats are followed here by hand, cells and marks for the one, doctests for the other; where a
tool itself is installed it is asked too."""

import ast
import doctest
import importlib.util
import json
import nbformat
import pytest
import re
import sys
from test_exercises import ROOT, asked_once, changed, names, slips_of  # noqa: F401, a fixture

sys.path.insert(0, str(ROOT / "tools"))
import exercises
import graders

PAGES = ["lessons/04_schedules", "workshop/measure", "lessons/00_sixty_seconds"]
PAGES = [pytest.param(ROOT / "nbs" / f"{name}.ipynb", id=name) for name in PAGES]
LONG = ROOT / "nbs" / "lessons" / "07_sampling.ipynb"
PAGES += [pytest.param(LONG, id="lessons/07_sampling", marks=pytest.mark.slow)]
has = lambda tool: pytest.mark.skipif(not importlib.util.find_spec(tool), reason=f"no {tool}")


def cleared(source):
    "What nbgrader's `generate_assignment` leaves of a cell."
    begin, end, hidden, over = graders.MARKS
    stub = r"\1# YOUR CODE HERE\n\1raise NotImplementedError()"
    source = re.sub(rf"^( *){begin}.*?{end}$", stub, source, flags=re.M | re.S)
    return re.sub(rf"\n{hidden}.*?{over}", "", source, flags=re.S)


def value(source, space):
    "Run a cell; what its last expression gives."
    *body, last = ast.parse(source).body
    exec(compile(ast.Module(body, []), "cell", "exec"), space)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), space)


def answers(path, e):
    "[(share of the stars, an answer's source)], with two slips that are known by name."
    halves = [changed(e, s) for s in slips_of(path) if s["exercise"] == e.check]
    return [(0, e.stub), (1, e.solution)], halves[:2]


@pytest.mark.parametrize("path", PAGES)
def test_nbgrader_gives_nothing_for_stubs_all_for_solutions_and_slips_their_share(path):
    source = graders.for_nbgrader(path, seed=3)
    nb = json.loads(path.read_text(encoding="utf-8"))
    for e in exercises.exercises(nb):
        answer, test = source.cells[e.at + 1 : e.at + 3]
        meta = test.metadata.nbgrader
        assert meta.points == e.stars and meta.grade and meta.locked and not meta.solution
        assert answer.metadata.nbgrader.solution and not answer.metadata.nbgrader.grade
        released = cleared(answer.source)
        assert "raise NotImplementedError" in released and "hidden" not in cleared(test.source)
        sure, halves = answers(path, e)
        for share, text in [*sure, (0, released), *((None, h) for h in halves)]:
            space = names(nb)
            exec(text, space)
            points = value(test.source, space)
            assert share is None and points < e.stars or points == share * e.stars


@pytest.mark.parametrize("path", PAGES)
def test_otter_gives_the_same_by_its_files_of_tests(path):
    nb, tests = graders.for_otter(path, seed=3)
    page = json.loads(path.read_text(encoding="utf-8"))
    assert "Solution</summary>" not in json.dumps(nb) and "otter.Notebook" in nb.cells[1].source
    for e in exercises.exercises(page):
        name = e.check.removeprefix("check_")
        assert f'grader.check("{name}")' in nb.cells[e.at + 3].source  # one cell was added
        exec(tests[name], said := {})
        cases = said["test"]["suites"][0]["cases"]
        assert sum(c["points"] for c in cases) == said["test"]["points"] == e.stars
        sure, halves = answers(path, e)
        for share, text in [*sure, *((None, h) for h in halves)]:
            space = names(page)
            exec(text, space)
            points = sum(c["points"] for c in cases if passes(c["code"], space))
            assert share is None and points < e.stars or points == share * e.stars


def passes(code, space):
    "Whether a doctest holds in these names."
    test = doctest.DocTestParser().get_doctest(code, dict(space), "case", None, 0)
    return doctest.DocTestRunner(verbose=False).run(test, out=lambda s: None).failed == 0


@has("nbgrader")
def test_nbgrader_itself_clears_the_source_and_reads_the_points():
    from nbgrader.preprocessors import ClearHiddenTests, ClearSolutions
    from nbgrader.utils import determine_grade

    path = ROOT / "nbs" / "lessons" / "07_sampling.ipynb"
    source = graders.for_nbgrader(path, seed=3)
    for e in exercises.exercises(json.loads(path.read_text(encoding="utf-8"))):
        test = source.cells[e.at + 2]
        for points in (0.0, e.stars / 2, float(e.stars)):
            out = nbformat.v4.new_output("execute_result", data={"text/plain": str(points)})
            test["outputs"] = [out]
            assert determine_grade(test) == (points, e.stars)
    for step in (ClearSolutions(), ClearHiddenTests()):
        source, _ = step.preprocess(source, {})
    text = "\n".join(c.source for c in source.cells)
    for e in exercises.exercises(json.loads(path.read_text(encoding="utf-8"))):
        assert "BEGIN" not in text and "hidden(" not in text and e.solution not in text


@has("otter")
def test_otter_itself_runs_the_files_of_tests(tmp_path):
    from otter.test_files import OKTestFile

    path = ROOT / "nbs" / "lessons" / "07_sampling.ipynb"
    page = json.loads(path.read_text(encoding="utf-8"))
    _, tests = graders.for_otter(path, seed=3)
    for e in exercises.exercises(page):
        name = e.check.removeprefix("check_")
        (tmp_path / f"{name}.py").write_text(tests[name], encoding="utf-8")
        for text, share in ((e.stub, 0), (e.solution, 1)):
            space = names(page)
            exec(text, space)
            file = OKTestFile.from_file(str(tmp_path / f"{name}.py"))
            file.run(space)
            assert file.score == share * e.stars and file.possible == e.stars
