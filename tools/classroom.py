"""The copies for a class: student/ (and student.zip), in which no answer stands, and teacher/,
solved.

A student's copy is whole by itself: notebooks, package, data and `tools/students.py`; it runs in
an empty folder without a network. Its checks know the values of the cases shown and not how they
come about (nbs/inside/sealed.ipynb), its pages have no outputs, no answers to their questions, no
badge that leads to the solved page, and a cell below each prediction that keeps it."""

import ast
import exercises
import importlib
import json
import nbformat
import posixpath
import re
import setup_cell
import shutil
import sys
import tomllib
import zipfile
from house import ROOT
from pathlib import Path

SAW = re.compile(r"\n*<details>\s*<summary>What we saw.*?</details>", re.S)
BADGE = re.compile(r"\n*\[!\[Open In Colab\][^\n]*")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
HINT = re.compile(r"<details>\s*<summary>Hint.*?</details>", re.S)
PAGES = "lessons", "workshop"
NOT_PACKED = "grade.py", "_modidx.py", "__pycache__"
READ_ME = """# For the class

1. Unpack this folder wherever you may write. You need Python 3.11 to 3.14, nothing else.
2. `python tools/students.py` (Windows: `py tools\\students.py`) makes `.venv`, once. From a \
stick, without a network: `python tools/students.py --stick FOLDER`, the wheels of your system.
3. It prints the command that opens the lessons; begin with 00.
4. Below each *Predict first* stands a cell that keeps what you expect, in a file beside the page.
5. The last cell of a page prints what its checks said; with your name in it, it writes the file \
to hand in.
"""


def cell(source, kind="code"):
    make = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
    return make(source)


def questions():
    "A page for the ten questions before and after."
    use = "from ect_nb.course.quiz import answered, sheet"
    ask = "print(sheet(WHEN, NAME))"
    keep = 'print(answered(WHEN, NAME, "----------"), "is what you hand in")'
    return nbformat.v4.new_notebook(
        cells=[
            cell("# Before and after\n\nTen questions, now and after the course.", "md"),
            cell(setup_cell.STUDENT),
            cell(use),
            cell('WHEN, NAME = "before", "your name"  # the second time "after"'),
            cell(ask),
            cell("A letter for each question, in this order; a dash where you leave it out.", "md"),
            cell(keep),
        ]
    )


def page_key(path):
    "'03' for 03_consistency, 'measure' for measure: how checks and hand-ins name a page."
    return path.stem.split("_")[0] if path.stem[:2].isdigit() else path.stem


def inside_links(text, page, names):
    "Links to pages that the copy has not become their words."

    def kept(m):
        target = m[2].split("#")[0]
        if not target or re.match(r"\w+:", m[2]):
            return m[0]
        return (
            m[0] if posixpath.normpath(posixpath.join(page.parent.name, target)) in names else m[1]
        )

    return LINK.sub(kept, text)


def for_student(nb, page, names):
    "The page for a student: see above."
    nb, cells, asked = exercises.student(nb), [], 0
    has = any("### Exercise" in "".join(c["source"]) for c in nb["cells"])
    for c in nb["cells"]:
        source = "".join(c["source"])
        if c["cell_type"] == "code":
            if setup_cell.is_setup(c):
                source = setup_cell.STUDENT
            c["source"], c["outputs"], c["execution_count"] = source, [], None
            cells.append(c)
            continue
        c["source"] = inside_links(BADGE.sub("", SAW.sub("", source)), page, names)
        c.pop("attachments", None)
        cells.append(c)
        if "**Predict first.**" in source:
            asked += 1
            cells.append(cell(f'print(predict("{page_key(page)}, {asked}", """\n"""))'))
    if has:
        cells.append(cell("## Hand in", "markdown"))
        name = "  # your name between the quotes writes the file to hand in"
        cells.append(cell(f'report("{page_key(page)}", name=""){name}'))
    nb["cells"] = cells
    return nb


def names_of(nb):
    "What an answer of a page may use: what the page imports, and what its module exports."
    space = {}
    for c in nb["cells"]:
        text = "".join(c["source"])
        if c["cell_type"] != "code" or re.search(r"^\s*[!%]", text, re.M):
            continue
        for node in ast.parse(text).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                exec(ast.unparse(node), space)
        if m := re.search(r"^#\| default_exp ([\w.]+)", text, re.M):
            module = vars(importlib.import_module(f"ect_nb.{m[1]}"))
            space |= {k: v for k, v in module.items() if not k.startswith("__")}
    return space


def slips_of(path, check):
    file = ROOT / "tests" / "slips" / f"{page_key(path)}.toml"
    found = tomllib.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return [s for s in found.get("slip", []) if s["exercise"] == check]


def slipped(solution, slip):
    for old, new in [(slip["old"], slip["new"]), *slip.get("also", [])]:
        solution = solution.replace(old, new)
    return solution


def notes_of(path, nb):
    "What the references of a page gave when its checks were run with the teacher's answers."
    from ect_nb.course import sealed

    key = page_key(path)
    kind = "lesson" if key[:2].isdigit() else "workshop"
    name = f"{kind}_{key}"
    module = importlib.import_module(f"ect_nb.course.{name}")
    with sealed.recording(module) as notes:
        for e in exercises.exercises(nb):
            check = getattr(module, e.check)
            tries = [e.solution]
            if "_weight_slips" in vars(module) and e.check == "check_fitting_weight":
                tries += [slipped(e.solution, s) for s in slips_of(path, e.check)]
            for text in tries:
                space = names_of(nb)
                exec(text, space)
                check(space[e.answer])
    return name, notes


def package(folder, paths):
    "The package for students, in `folder`: without references, with their records."
    from ect_nb.course import sealed

    left_out = shutil.ignore_patterns(*NOT_PACKED, "lesson_*.py", "workshop_*.py")
    shutil.copytree(ROOT / "ect_nb", folder / "ect_nb", ignore=left_out)
    course, notes = folder / "ect_nb" / "course", {}
    for path in paths:
        nb = nbformat.read(path, 4)
        if any(True for _ in exercises.exercises(nb)):
            name, found = notes_of(path, nb)
            text = (ROOT / "ect_nb" / "course" / f"{name}.py").read_text(encoding="utf-8")
            sealed_text = sealed.sealed(text, name)
            (course / f"{name}.py").write_text(sealed_text, encoding="utf-8")
            notes[name] = found
    (course / "recorded.json").write_text(sealed.as_text(notes), encoding="utf-8")


def bare(text):
    return re.sub(r"\s+|,(?=\s*[)\]}])", "", text).replace("'", '"')


def statements(solution, stub):
    "Statements of a solution, bare of blanks, of twelve characters or more, not in its stub."
    whole = ast.FunctionDef | ast.For | ast.While | ast.If | ast.With | ast.Import | ast.ImportFrom
    said = [n for n in ast.walk(ast.parse(solution)) if isinstance(n, ast.stmt)]
    simple = {bare(ast.get_source_segment(solution, n)) for n in said if not isinstance(n, whole)}
    return sorted(s for s in simple if len(s) >= 12 and s not in bare(stub))


def texts(folder):
    "(path, text) of all that a student can read in `folder`; hints left out."
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".ipynb":
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            yield path, HINT.sub("", "\n".join("".join(c["source"]) for c in cells))
        elif path.suffix in (".py", ".md", ".json", ".txt", ".js"):
            yield path, path.read_text(encoding="utf-8")


def leaks(folder, paths):
    "(file, check, statement) where a statement of a solution stands in what students get."
    wanted = [
        (e.check, s)
        for path in paths
        for e in exercises.exercises(nbformat.read(path, 4))
        for s in statements(e.solution, e.stub)
    ]
    return [
        (str(path.relative_to(folder)), check, s)
        for path, text in texts(folder)
        for look in [bare(text)]
        for check, s in wanted
        if s in look
    ]


def zipped(folder):
    "The folder as a zip beside it, every path below one folder of its name."
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            file.write(path, Path("ect_nb_class") / path.relative_to(folder))
    return target


def write(folder, paths):
    "student/, student.zip and teacher/ in the new folder `folder`."
    if folder.exists() and any(folder.iterdir()):
        sys.exit(
            f"exercises: {folder} is not empty, and nothing of yours is overwritten: name a new"
            " folder."
        )
    sys.path.insert(0, str(ROOT))
    student, teacher = folder / "student", folder / "teacher"
    names = {str(p.relative_to(ROOT / "nbs").as_posix()) for p in paths}
    for p in paths:
        nb, at = nbformat.read(p, 4), p.relative_to(ROOT / "nbs")
        for copied, made in (
            (student / "nbs" / at, for_student(nb, p, names)),
            (teacher / at, exercises.teacher(nb)),
        ):
            copied.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(made, copied)
    nbformat.write(questions(), student / "nbs" / "questions.ipynb")
    package(student, paths)
    shutil.copytree(ROOT / "data", student / "data")
    (student / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "students.py", student / "tools")
    (student / "README.md").write_text(READ_ME, encoding="utf-8")
    if found := leaks(student, paths):
        said = "\n".join(f"  {file}: {check}: {s}" for file, check, s in found)
        sys.exit(f"exercises: statements of solutions stand in the student's copy:\n{said}")
    print(
        f"{len(paths)} notebooks each in {student} (without solutions; {zipped(student)} to hand"
        f" out) and {teacher} (solved)"
    )
