"""Exercises of the lessons: one source each, the block under **Solution**; the cell below it is its
stub, and every copy for a class is made from both.

`python tools/exercises.py class DIR` writes DIR/student (without solutions) and DIR/teacher
(solved), `... nbgrader DIR` and `... otter DIR` what those graders take; `... stubs` renews the
stubs in nbs/ after a solution was edited."""

import ast
import copy
import nbformat
import re
import sys
from dataclasses import dataclass
from house import pages
from pathlib import Path

HEAD = re.compile(r"^### Exercise (★{1,3}) · (\S.*)$", re.M)
SOLUTION = re.compile(
    r"\n*<details><summary>Solution</summary>\s*```python\n(.*?)\n?```\s*</details>", re.S
)
CHECK = re.compile(r"print\((check_\w+)\((\w+)\)\)")


@dataclass
class Exercise:
    "One exercise: the text in cell `at`, the stub in the next, the check in the one after."

    at: int
    stars: int
    title: str
    hints: int
    solution: str
    stub: str
    check: str
    answer: str

    @property
    def ready(self):
        return self.stub == stub(self.solution)


def stub(solution):
    "The solution with the body of every function cut down to its docstring and three dots."
    lines, parts = solution.splitlines(), []
    for node in ast.parse(solution).body:
        start, end = node.lineno - 1, node.end_lineno
        if not isinstance(node, ast.FunctionDef):
            parts.append(lines[start:end])
            continue
        first = node.body[0]
        said = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        parts.append(lines[start : first.end_lineno if said else first.lineno - 1] + ["    ..."])
    return "\n\n\n".join("\n".join(p) for p in parts)


def exercises(nb):
    """The exercises of a notebook (dict or nbformat), in order.

    ValueError with a sentence for one that is not whole."""
    cells = nb["cells"]
    text = lambda i: (
        "".join(cells[i]["source"]) if i < len(cells) and cells[i]["cell_type"] == "code" else ""
    )
    for i, cell in enumerate(cells):
        source = "".join(cell["source"])
        head = HEAD.search(source) if cell["cell_type"] == "markdown" else None
        if not head:
            continue
        solution, check = SOLUTION.search(source), CHECK.search(text(i + 2))
        if not solution:
            raise ValueError(
                f"the exercise '{head[2]}' has no block <details><summary>Solution</summary> with"
                " python code: add it"
            )
        if not check:
            raise ValueError(
                f"the exercise '{head[2]}' needs the cell of its answer and then"
                " print(check_...(answer)) below its text"
            )
        yield Exercise(
            i,
            len(head[1]),
            head[2],
            source.count("<summary>Hint"),
            solution[1],
            text(i + 1),
            check[1],
            check[2],
        )


def student(nb):
    "A copy without solutions."
    nb = copy.deepcopy(nb)
    for e in exercises(nb):
        nb["cells"][e.at]["source"] = SOLUTION.sub("", "".join(nb["cells"][e.at]["source"]))
    return nb


def teacher(nb):
    "A copy in which every answer is the solution."
    nb = copy.deepcopy(nb)
    for e in exercises(nb):
        nb["cells"][e.at + 1]["source"], nb["cells"][e.at + 2]["outputs"] = e.solution, []
    return nb


def renew(nb):
    "A copy in which every answer is the stub of its solution."
    nb = copy.deepcopy(nb)
    for e in exercises(nb):
        nb["cells"][e.at + 1]["source"] = stub(e.solution)
    return nb


def main(what=None, folder=None):
    paths = [p for p in pages() if p.parent.name in ("lessons", "workshop")]
    if what == "stubs":
        for p in paths:
            nb = nbformat.read(p, 4)
            if any(not e.ready for e in exercises(nb)):
                nbformat.write(renew(nb), p)
                print("renewed", p.name)
    elif what == "class" and folder:
        import classroom

        classroom.write(Path(folder), paths)
    elif what in ("nbgrader", "otter") and folder:
        import graders

        graders.write(what, folder, paths)
    else:
        sys.exit(
            "exercises: say `class DIR`, `nbgrader DIR` or `otter DIR` for a class, or `stubs` to"
            " renew the stubs in nbs/."
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
