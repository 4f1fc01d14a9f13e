"""The exercises of the lessons: every check turns the stub away, accepts the solution, and names
the usual slips.

The slips of a lesson stand in slips/NN.toml: `exercise` (the check), `old` and `new` (what is
changed in the solution), `also` (more such pairs), `says` (words its sentence must hold); the
tables `right` are other right answers."""

import ast
import ect_nb.course.check
import functools
import importlib
import json
import pickle
import pytest
import re
import subprocess
import sys
import tomllib
import torch
from ect_nb.analytic import GaussianMixture
from ect_nb.course.check import hidden
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import classroom
import exercises as source
from classroom import names_of as names, page_key as key


def remembering(function):
    "The function, which answers a question that was asked before from memory."
    known = {}

    @functools.wraps(function)
    def answer(*args):
        live = any(getattr(a, "requires_grad", False) for a in args)
        try:
            key = None if live else pickle.dumps(args)
        except Exception:  # it is asked about a function
            key = None
        if key is None:
            return function(*args)
        if key not in known:
            known[key] = function(*args)
        gave = known[key]
        return gave.clone() if torch.is_tensor(gave) else gave

    return answer


@pytest.fixture(scope="module", autouse=True)
def asked_once():
    """References are asked the same for every answer, and the exact map nearly so: each question is
    worked out once."""
    folder = Path(ect_nb.course.check.__file__).parent
    names = [p.stem for pattern in ("lesson_*", "workshop_*") for p in folder.glob(f"{pattern}.py")]
    with pytest.MonkeyPatch.context() as patch:
        for module in (importlib.import_module(f"ect_nb.course.{name}") for name in names):
            for name, f in list(vars(module).items()):
                if getattr(f, "is_reference", False):
                    patch.setattr(module, name, remembering(f))
        patch.setattr(GaussianMixture, "exact_map", remembering(GaussianMixture.exact_map))
        yield


def lessons():
    "Every page with exercises: the lessons 01 to 08 first, then 00 and the workshop."
    more = ["lessons/00_*", *(f"workshop/{name}" for name in ("cifar10", "explore", "measure"))]
    for pattern in ["lessons/0[1-8]_*", *more]:
        for path in sorted((ROOT / "nbs").glob(f"{pattern}.ipynb")):
            yield path, json.loads(path.read_text(encoding="utf-8"))


ALL = [
    pytest.param(path, nb, e, id=f"{key(path)}-{e.check}")
    for path, nb in lessons()
    for e in source.exercises(nb)
]


LONG = "check_recipe", "check_stop_early", "check_best_second_time"  # seconds for every answer


def first_of_the_long(params, seen=()):
    "The `params`, of which all but the first of a long check are among the slow ones."
    seen, marked = set(seen), []
    for p in params:
        e = p.values[2]
        slow = [pytest.mark.slow] * (e.check in LONG and e.check in seen)
        marked.append(pytest.param(*p.values, id=p.id, marks=slow))
        seen.add(e.check)
    return marked


def slips_of(path, kind="slip"):
    file = ROOT / "tests" / "slips" / f"{key(path)}.toml"
    return tomllib.loads(file.read_text()).get(kind, []) if file.exists() else []


def params(kind):
    return [
        pytest.param(path, nb, e, slip, id=f"{key(path)}-{e.check}-{i}")
        for path, nb in lessons()
        for e in source.exercises(nb)
        for i, slip in enumerate(s for s in slips_of(path, kind) if s["exercise"] == e.check)
    ]


SLIPS, RIGHT = params("slip"), params("right")


def changed(e, slip):
    "The solution with what `slip` changes in it."
    text = e.solution
    for old, new in [(slip["old"], slip["new"]), *slip.get("also", [])]:
        assert old in text, f"{old!r} is not in the solution of {e.title}"
        text = text.replace(old, new)
    return text


def verdict(nb, e, answer_source):
    "What the check says of an answer in source form."
    space = names(nb)
    exec(answer_source, space)
    return space[e.check](space[e.answer])


def test_the_exercises_are_found():
    assert len(ALL) == 12 * 3 and len(SLIPS) > 200


@pytest.mark.parametrize("path, nb, e", ALL)
def test_the_stub_is_not_accepted_and_the_solution_is(path, nb, e):
    assert verdict(nb, e, e.stub).startswith("○")
    said = verdict(nb, e, e.solution)
    assert said.startswith("✓") and said.score == 1, said


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("path, nb, e", first_of_the_long(ALL, LONG))
def test_cases_that_nobody_has_seen_are_asked_as_well(path, nb, e, seed, monkeypatch):
    drawn, module = [], names(nb)[e.check].__wrapped__.__globals__
    cases = module["cases"]
    monkeypatch.setitem(module, "cases", lambda *a: drawn.append(found := cases(*a)) or found)
    with hidden(seed):
        assert verdict(nb, e, e.stub).score == 0
        drawn.clear()
        said = verdict(nb, e, e.solution)
        assert said.score == 1, said
    assert sum(map(len, drawn)) >= 2


@pytest.mark.parametrize("path, nb, e", ALL)
def test_whatever_is_handed_in_gets_a_sentence(path, nb, e):
    judge = names(nb)[e.check]

    def broken(*a, **k):
        raise KeyError("oops")

    nan = torch.tensor(float("nan"))
    for answer in (
        broken,
        lambda *a, **k: "text",
        lambda *a, **k: nan,
        lambda *a, **k: torch.zeros(7, 3, 5),
        lambda *a, **k: (nan, nan),
        lambda: 1.0,
        3,
        "text",
    ):
        said = judge(answer)
        assert said[0] in "✗○" and len(said) > 20 and "\n" not in said.strip(), said


@pytest.mark.parametrize("path, nb, e, slip", first_of_the_long(SLIPS))
def test_a_usual_slip_is_named(path, nb, e, slip):
    said = verdict(nb, e, changed(e, slip))
    assert said.startswith("✗") and re.search(slip["says"], said) and said.score < 1, said


@pytest.mark.slow
@pytest.mark.parametrize("path, nb, e, slip", SLIPS)
def test_a_usual_slip_earns_less_in_cases_that_nobody_has_seen(path, nb, e, slip):
    with hidden(3):
        assert verdict(nb, e, changed(e, slip)).score < 1


@pytest.mark.parametrize("path, nb, e, other", RIGHT)
def test_another_right_answer_is_accepted(path, nb, e, other):
    said = verdict(nb, e, changed(e, other))
    assert said.startswith("✓"), said


def test_every_exercise_of_a_lesson_has_a_slip():
    for path, nb in lessons():
        found = {s["exercise"] for s in slips_of(path)}
        assert found == {e.check for e in source.exercises(nb)}, path.name


def raising(error):
    """An answer that raises `error`."""

    def answer(*a, **k):
        raise error

    return answer


class Beyond(BaseException):
    """An error that is no Exception."""


@pytest.mark.parametrize(
    "error, says",
    [
        (SystemExit(3), "leaves Python"),
        (SystemExit("bye\nbye"), "leaves Python"),
        (GeneratorExit(), "ends in GeneratorExit."),
        (Beyond("x"), "ends in Beyond: x"),
        (RuntimeError("one\n  two"), "ends in RuntimeError: one two"),
        (ValueError("long " * 500), "…$"),
        (AssertionError(), "ends in AssertionError.$"),
    ],
)
def test_whatever_an_answer_raises_becomes_one_line(error, says):
    nb = next(lessons())[1]
    said = names(nb)["check_spread"](raising(error))
    assert said.startswith("✗") and re.search(says, said), said
    assert "\n" not in said and len(said) < 400


def test_an_interrupt_is_not_swallowed_by_a_check():
    nb = next(lessons())[1]
    for e in source.exercises(nb):
        with pytest.raises(KeyboardInterrupt):
            names(nb)[e.check](raising(KeyboardInterrupt()))


@pytest.mark.parametrize("path, nb, e", ALL)
def test_an_answer_that_leaves_python_does_not_end_the_page(path, nb, e):
    assert "leaves Python" in names(nb)[e.check](raising(SystemExit()))


GRIDS = {
    **{
        f"log to 1e{d}, {n}": f"torch.logspace(math.log10(t), {d}, {n}, dtype=x.dtype)"
        for d, n in ((-1, 50), (-2, 200), (-3, 400))
    },
    "even in t, 200": "torch.linspace(t, 1e-3, 200, dtype=x.dtype)",
}
STEPS = {
    "x - (r - s) * (x - D) / s": "leads away",
    "x + (s - r) * (x - D)": "leads away",
    "x + (r - s) * (x - D)": "without that division",
    "x + (r - s) * (x - D) / s": "^✓",
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("step", STEPS)
def test_the_slip_of_a_walk_is_named_on_whatever_grid_it_is_made(grid, step):
    nb = next(lessons())[1]
    e = list(source.exercises(nb))[2]
    body = (
        "def end_of_path(x, t, data, n=200):\n"
        f"    levels = {GRIDS[grid]}\n"
        "    for s, r in zip(levels[:-1], levels[1:]):\n"
        "        D = ideal_denoiser(x, s, data)\n"
        f"        x = {step}\n"
        "    return torch.cdist(x, data).argmin(1)"
    )
    assert re.search(STEPS[step], verdict(nb, e, body))


def test_other_right_answers_of_01_are_accepted():
    nb = next(lessons())[1]
    spread, variance, ends = source.exercises(nb)
    by_parts = (
        "def spread(mix, t):\n"
        "    away = mix.means - mix.weights @ mix.means\n"
        "    return (mix.weights @ (mix.stds**2 + t**2 + away**2)) ** 0.5"
    )
    by_differences = (
        "def posterior_variance(denoise, x, t, h=1e-4):\n"
        "    return t**2 * (denoise(x + h, t) - denoise(x - h, t)) / (2 * h)"
    )
    by_heun = (
        "from ect_nb.diffusion import heun\n"
        "def end_of_path(x, t, data):\n"
        "    levels = torch.linspace(t**0.2, 1e-3**0.2, 80, dtype=x.dtype) ** 5\n"
        "    x = heun(lambda x, s: ideal_denoiser(x, s, data), x / t, levels)\n"
        "    return torch.cdist(x, data).argmin(1)"
    )
    for e, answer in ((spread, by_parts), (variance, by_differences), (ends, by_heun)):
        assert verdict(nb, e, answer).startswith("✓"), verdict(nb, e, answer)


# The tool


def notebook(
    solution='def f(x):\n    "Half."\n    return x / 2', answer='def f(x):\n    "Half."\n    ...'
):
    text = (
        "### Exercise ★ · Half\nHalve it.\n\n<details><summary>Hint"
        f" 1</summary>\n\nDivide.\n</details>\n\n<details><summary>Solution</summary>\n\n"
        f"```python\n{solution}\n```\n</details>"
    )
    return dict(
        cells=[
            dict(cell_type="markdown", source=text),
            dict(cell_type="code", source=answer, outputs=[]),
            dict(cell_type="code", source="print(check_f(f))", outputs=["○"]),
        ]
    )


def test_a_stub_keeps_signature_and_docstring_only():
    solution = (
        'import math\n\n\ndef f(x, y=2):\n    """One.\n\n    Two."""\n    z = x\n    return z\n\n\n'
        "def g(\n    a,\n):\n    return a"
    )
    stub = (
        'import math\n\n\ndef f(x, y=2):\n    """One.\n\n    Two."""\n    ...\n\n\n'
        "def g(\n    a,\n):\n    ..."
    )
    assert source.stub(solution) == stub


def test_student_and_teacher_copies_come_from_the_one_source():
    nb = notebook()
    student, teacher = source.student(nb), source.teacher(nb)
    assert "return x / 2" not in json.dumps(student) and "Hint 1" in json.dumps(student)
    assert (
        teacher["cells"][1]["source"] == 'def f(x):\n    "Half."\n    return x / 2'
        and teacher["cells"][2]["outputs"] == []
    )
    assert "Solution" in nb["cells"][0]["source"]  # the source itself is untouched


def statements(code):
    """The lines of a function that say something, without those that any answer would hold."""
    common = ("def ", '"', "import ", "for ", "with torch.no_grad():", "return dict(", "p_t=Log")
    lines = {line.strip() for line in code.splitlines()}
    return {s for s in lines if len(s) >= 12 and not s.startswith(common)}


@pytest.mark.parametrize("path, nb, e", ALL)
def test_no_statement_of_a_solution_stands_in_the_code_of_a_student(path, nb, e):
    code = [c["source"] for c in source.student(nb)["cells"] if c["cell_type"] == "code"]
    code = "\n".join("".join(c) for c in code)
    assert f"def {e.check}" not in code and f"print({e.check}(" in code
    assert not [s for s in statements(e.solution) - statements(e.stub) if s in code]


def tokens(text):
    return re.findall(r"[A-Za-z_][\w.]*|\d+\.?\d*|[-+*/@<>=]+", text)


@pytest.mark.parametrize("path, nb, e", ALL)
def test_hints_are_nudges_and_hold_less_than_four_fifths_of_a_solution(path, nb, e):
    hints = " ".join(classroom.HINT.findall("".join(nb["cells"][e.at]["source"])))
    functions = [n for n in ast.parse(e.solution).body if isinstance(n, ast.FunctionDef)]
    lines = [s for f in functions for s in f.body if not isinstance(s, ast.Expr)]
    wanted = [t for s in lines for t in tokens(ast.unparse(s))]
    known = sum(t in set(tokens(hints)) for t in wanted)
    assert known < 0.8 * len(wanted), f"{known} of {len(wanted)}"
    assert not [s for s in classroom.statements(e.solution, e.stub) if s in classroom.bare(hints)]


def test_a_stub_that_drifted_is_seen_and_renewed():
    nb = notebook(answer="def f(x): ...")
    assert not next(source.exercises(nb)).ready and next(source.exercises(source.renew(nb))).ready


@pytest.mark.parametrize(
    "change, says",
    [
        (("Solution</summary>", "Answer</summary>"), "no block"),
        (("### Exercise", "### Exercise"), None),
    ],
)
def test_an_exercise_that_is_not_whole_is_a_sentence(change, says):
    nb = notebook()
    nb["cells"][0]["source"] = nb["cells"][0]["source"].replace(*change)
    if says is None:
        nb["cells"].pop()
        says = "print"
    with pytest.raises(ValueError, match=says):
        list(source.exercises(nb))


HONEST = """
import ect_nb.course.lesson_07 as L
print(L.check_two_steps(lambda f, z1, z2, t1, t2: f(f(t1 * z1, t1) + t2 * z2, t2)).score)
print(L.check_two_steps(lambda f, z1, z2, t1, t2: f(f(t1 * z1, t1), t2)).score)
"""


SHORT = "03_consistency", "07_sampling"


@pytest.mark.parametrize("some", [SHORT, pytest.param(None, marks=pytest.mark.slow)])
def test_copies_for_a_class_are_written_whole_and_never_over_anything(some, tmp_path, capsys):
    pages = [(path, nb) for path, nb in lessons() if not some or path.stem in some]
    if some:
        classroom.write(tmp_path / "class", [path for path, _ in pages])
    else:
        source.main("class", str(tmp_path / "class"))
    student = tmp_path / "class" / "student"
    for path, nb in pages:
        assert (tmp_path / "class" / "teacher" / path.parent.name / path.name).exists()
        text = (student / "nbs" / path.parent.name / path.name).read_text(encoding="utf-8")
        assert "<summary>Solution</summary>" not in text and "What we saw" not in text
        assert "git clone" not in text and "colab-badge" not in text
        cells = json.loads(text)["cells"]
        assert not any(c.get("outputs") for c in cells) and "report(" in str(cells[-1])
        predictions = sum("print(predict(" in "".join(c["source"]) for c in cells)
        assert predictions == sum("**Predict first.**" in "".join(c["source"]) for c in cells) > 0
    assert classroom.leaks(student, [path for path, _ in pages]) == []
    key = tomllib.loads((ROOT / "tools" / "teaching.toml").read_text("utf-8"))["quiz"]["key"]
    assert (student / "nbs" / "questions.ipynb").exists()
    assert not [path for path, text in classroom.texts(student) if key in text]
    checks = "".join(p.read_text("utf-8") for p in (student / "ect_nb/course").glob("lesson_*.py"))
    for gone in ("_exact_ends", "_borders", "_through", "_fewest_steps", "def _twice"):
        assert gone not in checks
    ran = f"import sys; sys.path.insert(0, {str(student)!r}); " + HONEST
    done = subprocess.run([sys.executable, "-c", ran], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["1.0", "0.5"], done.stderr
    with pytest.raises(SystemExit, match="nothing of yours is overwritten"):
        source.main("class", str(tmp_path / "class"))
