"""The exercises for other graders: `python tools/exercises.py nbgrader DIR` writes an assignment's
notebooks for nbgrader's folder `source`, `... otter DIR` a student's notebooks and a file of tests
for each exercise.

Stubs get 0, solutions everything, a slip that a check knows a half. Both run an answer in the
process of its tests; `python -m ect_nb grade` is the grader whose answers cannot reach its checks.
"""

import ast
import exercises
import nbformat
import secrets
from classroom import page_key
from pathlib import Path

MARKS = "### BEGIN SOLUTION", "### END SOLUTION", "### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS"
ASKED = """from ect_nb.course.check import hidden
from ect_nb.course.{module} import {check} as _judge
with hidden({seed}):
    _said = _judge({answer})
{stars} * _said.score"""
OTTER = """OK_FORMAT = True

test = {{
    "name": {name!r},
    "points": {stars},
    "suites": [
        {{
            "type": "doctest",
            "scored": True,
            "setup": "",
            "teardown": "",
            "cases": [
                {{"code": {shown!r}, "points": {half}, "hidden": False, "locked": False}},
                {{"code": {unseen!r}, "points": {half}, "hidden": True, "locked": False}},
            ],
        }}
    ],
}}
"""


def module_of(path):
    key = page_key(path)
    return f"{'lesson' if key[:2].isdigit() else 'workshop'}_{key}"


def marked(solution):
    "The solution with nbgrader's marks around the body of every function."
    lines = solution.splitlines()
    for node in reversed(ast.parse(solution).body):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            begin = first.end_lineno if ast.get_docstring(node) else first.lineno - 1
            body = lines[begin : node.end_lineno]
            lines[begin : node.end_lineno] = [f"    {MARKS[0]}", *body, f"    {MARKS[1]}"]
    return "\n".join(lines)


def told(cell, name, grade, stars=None):
    "Give a cell nbgrader's metadata."
    said = dict(schema_version=3, grade_id=name, grade=grade, solution=not grade, locked=grade)
    cell["metadata"]["nbgrader"] = said | dict(task=False) | (dict(points=stars) if grade else {})
    cell["outputs"], cell["execution_count"] = [], None


def for_nbgrader(path, seed):
    "The page as nbgrader's source: solutions and hidden tests between its marks."
    nb = nbformat.read(path, 4)
    for e in exercises.exercises(nb):
        text, answer, test = nb.cells[e.at : e.at + 3]
        text["source"] = exercises.SOLUTION.sub("", text["source"])
        answer["source"] = marked(e.solution)
        more = ASKED.format(
            module=module_of(path), check=e.check, answer=e.answer, seed=seed, stars=e.stars
        )
        test["source"] += f"\n{MARKS[2]}\n{more}\n{MARKS[3]}"
        told(answer, f"{e.check}_answer", False)
        told(test, e.check, True, e.stars)
    return nb


def doctest(e, path, least, seed=None):
    "One case of otter: the answer's score is at least `least`, of unseen cases with a seed."
    lines = [f"from ect_nb.course.{module_of(path)} import {e.check} as _judge"]
    if seed is None:
        return "\n".join(f">>> {s}" for s in [*lines, f"_judge({e.answer}).score >= {least}"]) + (
            "\nTrue"
        )
    lines += ["from ect_nb.course.check import hidden"]
    asked = (
        f">>> with hidden({seed}):\n...     _said = _judge({e.answer})\n>>> _said.score >= {least}"
    )
    return "\n".join(f">>> {s}" for s in lines) + "\n" + asked + "\nTrue"


def for_otter(path, seed):
    "(a student's notebook, {name: text of its file of tests}) of a page."
    nb, tests = exercises.student(nbformat.read(path, 4)), {}
    first = nbformat.v4.new_code_cell(f'import otter\n\ngrader = otter.Notebook("{path.name}")')
    for e in exercises.exercises(nbformat.read(path, 4)):
        name = e.check.removeprefix("check_")
        half = e.stars / 2
        shown, unseen = doctest(e, path, 0.5), doctest(e, path, 1, seed)
        tests[name] = OTTER.format(name=name, stars=e.stars, half=half, shown=shown, unseen=unseen)
        nb.cells[e.at + 2]["source"] += f'\ngrader.check("{name}")'
        nb.cells[e.at + 2]["outputs"] = []
    nb.cells.insert(1, first)
    return nb, tests


def write(kind, folder, paths, seed=None):
    "Write the assignment for nbgrader or otter into the new folder `folder`."
    folder, seed = Path(folder), secrets.randbits(40) if seed is None else seed
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"exercises: {folder} is not empty: name a new folder.")
    for path in paths:
        if not list(exercises.exercises(nbformat.read(path, 4))):
            continue
        place = folder / page_key(path)
        place.mkdir(parents=True)
        if kind == "nbgrader":
            nbformat.write(for_nbgrader(path, seed), place / path.name)
            continue
        nb, tests = for_otter(path, seed)
        nbformat.write(nb, place / path.name)
        (place / "tests").mkdir()
        for name, text in tests.items():
            (place / "tests" / f"{name}.py").write_text(text, encoding="utf-8")
    print(f"exercises: {kind}, a folder for each page, in {folder}")
