"""Gates: what must hold of the form of notebooks, package and files.

One function each; it yields a sentence for every offence.

`python tools/gates.py` runs them all on this repository and ends with 1 if any has something to
say."""

import address as addresses
import ast
import exercises
import filecmp
import form
import json
import minutes
import re
import readme
import settings
import shutil
import statistics
import subprocess
import sys
import tempfile
import tomllib
from house import HOUSES, ROOT, pages
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from pathlib import Path

LAYERS = [
    "exact devices io.files course.needed",
    "analytic schedules networks course.check show.pictures show.lab show.living io.data"
    " io.datasets",
    "asking branches wrapping edm2",
    "diffusion losses io.pickles io.published io.consistency_files",
    "consistency sampling objectives io.weights",
    "edit family training.runs training.processes training.muon training.logs io.export",
    "training.speed",
    "training.config",
    "training.loop",
    "training.recipes measure.features measure.bulk",
    "measure.metrics measure.sweeps",
    "measure.atlas measure.kernels",
    "show.panels",
    "show.flow show.tuning",
    "show.tradeoff show.live",
    "show.planner",
    "show.explorer course.lesson_01 course.lesson_02 course.lesson_03 course.lesson_04"
    " course.lesson_05 course.lesson_06 course.lesson_07 course.lesson_08 course.lesson_00"
    " course.workshop_measure course.workshop_explore course.workshop_cifar10 course.hand_in"
    " course.far course.contest course.quiz commands",
    "course.sealed course.grade",
]  # lowest first; within a layer nobody imports a neighbour
HEAVY = {
    "torchvision",
    "plotly",
    "cleanfid",
    "matplotlib",
    "IPython",
    "ipywidgets",
    "scipy",
    "jupyterlab",
    "nbdev",
}

# What the gates read


def notebooks(root, house=None):
    "(name, notebook) of all notebooks, or of one house."
    for path in pages(root, house):
        yield str(path.relative_to(root)), json.loads(path.read_text(encoding="utf-8"))


def in_houses(root):
    "(house, name, notebook) of all notebooks but the index."
    return ((house, *page) for house in HOUSES for page in notebooks(root, house))


def cells(nb, kind):
    return [
        (i, "".join(c["source"]), c) for i, c in enumerate(nb["cells"]) if c["cell_type"] == kind
    ]


def outputs(nb):
    for i, _, cell in cells(nb, "code"):
        for out in cell["outputs"]:
            yield i, out


def statements(source):
    "Top-level statements of a cell, magics and shell lines left out."
    body = ast.parse(TransformerManager().transform_cell(source)).body
    return [s for s in body if not ast.unparse(s).startswith("get_ipython()")]


def is_import(node):
    return isinstance(node, (ast.Import, ast.ImportFrom))


def imported(node, module=""):
    """Dotted names that an import statement of `module` (dotted, under ect_nb) refers to: for `from
    .x import y` both ect_nb.x and ect_nb.x.y."""
    if isinstance(node, ast.Import):
        return [a.name for a in node.names]
    start = node.module or ""
    if node.level:
        above = ["ect_nb", *module.split(".")][: -node.level]
        start = ".".join([*above, *filter(None, [node.module])])
    return [start, *(f"{start}.{a.name}" for a in node.names)]


def files(root):
    "{dotted name under ect_nb: path} of its modules."
    top = root / "ect_nb"
    found = {p.relative_to(top).with_suffix(""): p for p in sorted(top.rglob("[!_]*.py"))}
    return {".".join(name.parts): path for name, path in found.items()}


def modules(root):
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files(root).items()}


def tracked(root):
    "Files that git tracks or would add; without git, all outside hidden folders."
    git = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True
    )
    if git.returncode == 0:
        return [root / f for f in sorted(set(git.stdout.splitlines())) if (root / f).is_file()]
    return [
        p
        for p in sorted(root.rglob("*"))
        if p.is_file()
        and not re.search(r"/(\.venv|\.git|out|runs|__pycache__|[^/]*\.egg-info)/", str(p))
    ]


# The gates


def settings_ini(root):
    "settings.ini says what pyproject.toml says"
    path = root / "settings.ini"
    if not path.exists() or path.read_text(encoding="utf-8") != settings.text(root):
        yield "settings.ini differs from pyproject.toml: run make sync."


def address(root):
    "the repository's address is the one in pyproject.toml"
    for path in addresses.sources(root):
        text = path.read_text(encoding="utf-8")
        if addresses.rewrite(text, *addresses.address(root)) != text:
            yield (
                f"{path.relative_to(root)} names another address than [project.urls] Repository:"
                " run make sync."
            )


def readme_current(root):
    "README.md is made from nbs/index.ipynb, and every file it shows or links to exists"
    for path, content in readme.render(root).items():
        if not (root / path).exists() or (root / path).read_bytes() != content:
            yield f"{path} differs from nbs/index.ipynb: run make sync."
    text = readme.render(root)["README.md"].decode()
    if not text.startswith("!["):
        yield "nbs/index.ipynb does not start with a picture: put one at its very top."
    for link in re.findall(r"\]\(([^)\s#]+)|src=\"([^\"]+)", text):
        link = "".join(link)
        if not re.match(r"\w+:", link) and not (root / link).exists():
            yield (
                f"README.md refers to {link}, which does not exist: mend the link in"
                " nbs/index.ipynb or make the file."
            )


def lock(root):
    "requirements.lock has names, versions and markers only, and fits pyproject.toml"
    pins = {}
    for line in (root / "requirements.lock").read_text(encoding="utf-8").splitlines():
        m = re.fullmatch(r"([\w.-]+)==([\w.]+)( ; [\w.<>=!*' ()]+)?", line)
        if m:
            pins.setdefault(re.sub(r"[-_.]+", "-", m[1]).lower(), []).append(m[2])
        else:
            yield (
                f"requirements.lock has the line {line[:60]!r}, which is no name==version ; marker:"
                " run make lock."
            )
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for need in map(
        Requirement, project["dependencies"] + sum(project["optional-dependencies"].values(), [])
    ):
        versions = pins.get(re.sub(r"[-_.]+", "-", need.name).lower(), [])
        if need.name != project["name"] and not (
            versions and all(v in need.specifier for v in versions)
        ):
            yield f"requirements.lock does not answer {need}: run make lock."


def spine(root):
    "every page has title, subtitle, badge, objectives, recap and Next; lessons are numbered"
    for house, name, nb in in_houses(root):
        texts = [s for _, s, _ in cells(nb, "markdown")] or [""]
        stem, (url, branch) = Path(name).stem, addresses.address(root)
        slug = "/".join(url.split("/")[-2:])
        link = f"https://colab.research.google.com/github/{slug}/blob/{branch}/{name}"
        number = f"{stem[:2]} · " if stem[:2].isdigit() else ""
        parts = {
            f"a title '# {number}...' in its first cell": re.match(rf"# {number}\w", texts[0]),
            "a subtitle '> ...' under its title": re.search(r"^> \S", texts[0], re.M),
            f"the Colab badge of {name} in its first cell": f"colab-badge.svg)]({link})"
            in texts[0],
            "a cell beginning '**You will be able to**'": any(
                t.startswith("**You will be able to**") for t in texts
            ),
            "a '## Recap'": any(re.search(r"^## Recap\b", t, re.M) for t in texts),
            "a last cell with a line '**Next:** ...'": re.search(
                r"^\*\*Next:\*\* \S", texts[-1], re.M
            ),
        }
        for part, there in parts.items():
            if not there:
                yield f"{name} lacks {part}: add it."


def chain(root):
    "from every page the first links after **Next:** lead through its house to the index"
    for house in HOUSES:
        after = {}
        for name, nb in notebooks(root, house):
            last = [s for _, s, _ in cells(nb, "markdown")][-1]
            link = re.search(r"^\*\*Next:\*\*.*?\]\(([\w./-]+\.ipynb)", last, re.M)
            after[name] = link and str((root / name).parent.joinpath(link[1]).resolve())
        here = {str((root / name).resolve()): name for name in after}
        ends = [name for name in after if after[name] not in here]
        wanted = str((root / "nbs" / "index.ipynb").resolve())
        for name in ends:
            if after[name] != wanted:
                yield f"{name}: its Next leaves the house for {after[name]}: end at the index."
        followed = [here[a] for a in after.values() if a in here]
        first = [name for name in after if name not in followed]
        walked, name = [], first[0] if first else None
        while name and name not in walked:
            walked.append(name)
            name = here.get(after[name])
        if lost := sorted(set(after) - set(walked)):
            yield f"nbs/{house}: following Next from {first[:1]} never reaches {', '.join(lost)}."


def theory(root):
    """the lessons of the theory, 01 to 08, ask before they show, have a panel with questions, and
    three exercises with hints and checks"""
    for name, nb in notebooks(root, "lessons"):
        if not re.match(r"0[1-8]_", Path(name).name):
            continue
        prose, code = (
            "\n\n".join(s for _, s, _ in cells(nb, kind)) for kind in ("markdown", "code")
        )
        if prose.count("**Predict first.**") < 3:
            yield (
                f"{name} asks '**Predict first.**' less than three times: ask before every reveal."
            )
        if not (
            "show_panel(" in code
            and re.search(r"^\*\*Three questions\b.*?^1\. .*?^2\. .*?^3\. ", prose, re.M | re.S)
        ):
            yield (
                f"{name} lacks a panel (show_panel) with '**Three questions ...' numbered 1 to 3:"
                " add them."
            )
        try:
            found = list(exercises.exercises(nb))
        except ValueError as error:
            yield f"{name}: {error}."
            continue
        if [e.stars for e in found] != [1, 2, 3]:
            yield (
                f"{name} needs three exercises, '### Exercise ★ · title', then ★★, then ★★★; it has"
                f" {[e.stars for e in found]}."
            )
        for e in found:
            if e.hints < 2:
                yield (
                    f"{name}: the exercise '{e.title}' has {e.hints} hints: give a ladder of at"
                    " least two, <details><summary>Hint 1</summary>."
                )
            if not e.ready:
                yield (
                    f"{name}: the cell of '{e.title}' is not the stub of its solution: run python"
                    " tools/exercises.py stubs."
                )


def machinery(nb):
    """(words of exported code and of checks, all words) of what a student sees of a page.

    A word is what stands between blanks in the source of a cell; the student's copy has no
    solutions, and hidden cells and the name of the module are not seen. Exported cells count whole.
    Checks are every `assert`, wherever it stands, and the cells that print what a check says."""
    ours = everything = 0
    for cell in exercises.student(nb)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and minutes.HIDDEN.match(source):
            continue
        everything += len(source.split())
        if cell["cell_type"] != "code":
            continue
        if re.match(r"#\|\s*export", source) or exercises.CHECK.search(source):
            ours += len(source.split())
            continue
        asserts = [n for s in statements(source) for n in ast.walk(s) if isinstance(n, ast.Assert)]
        ours += sum(len(ast.get_source_segment(source, n).split()) for n in asserts)
    return ours, everything


def lessons_are_lessons(root):
    """in lessons exported code and checks are at most 15 % of the words that a student sees"""
    for name, nb in notebooks(root, "lessons"):
        ours, everything = machinery(nb)
        if ours > 0.15 * everything:
            yield (
                f"{name}: {ours} of {everything} words are exported code or checks,"
                f" {ours / everything:.0%}; move machinery to a page of nbs/inside (at most 15 %)."
            )


def keeps_its_time(root):
    """lessons 00 to 07 say within a fifth how long they take, path and rest, as counted by
    tools/minutes.py; the whole path is about four hours; what is Further comes after the path"""
    total = 0.0
    for name, nb in notebooks(root, "lessons"):
        if not re.match(r"0[0-7]_", Path(name).name):
            continue
        found, said = minutes.minutes(nb), minutes.promised(nb)
        total += found[0]
        if said is None:
            yield f"{name} does not say '**Time.** N minutes ...; M more ...': add it."
        elif any(abs(a - b) > 0.2 * max(a, b, 10) for a, b in zip(found, said)):
            yield (
                f"{name} promises {said[0]} minutes and {said[1]} more, and takes"
                f" {found[0]:.0f} and {found[1]:.0f} by tools/minutes.py: say so, or cut."
            )
        heads = [s.title for s in minutes.sections(nb) if s.level == 2]
        further = [h.startswith("Further: ") for h in heads]
        if further != sorted(further):
            yield f"{name}: '{heads[further.index(True)]}' stands before the path ends: move it."
    if total > 260:
        yield f"the path of the lessons takes {total / 60:.1f} hours: cut it to about four."


def first_picture(root):
    """in lessons and workshop the first picture comes by the third code cell after set-up and
    imports"""
    for house, name, nb in in_houses(root):
        if house == "inside":
            continue
        pictures = {i for i, out in outputs(nb) if "image/png" in out.get("data", {})}
        work = [
            i
            for i, source, _ in cells(nb, "code")
            if not re.match(r"#\|\s*(hide|default_exp)", source)
            and not all(map(is_import, statements(source)))
        ]
        if not pictures:
            stem = Path(name).stem
            yield f"{name} stores no picture: run make notebooks NAMES={stem}, or add one."
        elif len(work) >= 3 and min(pictures) > work[2]:
            yield (
                f"{name} shows its first picture in cell {min(pictures)}, after the third code"
                " cell: bring one forward."
            )


def code_cells(root):
    "code cells have at most 40 lines, half of them at most 8; imports stand in cells of their own"
    lengths = []
    for name, nb in notebooks(root):
        for i, source, _ in cells(nb, "code"):
            lines = [l for l in source.splitlines() if l.strip() and not l.startswith("#|")]
            lengths += [len(lines)] * bool(lines)
            if len(lines) > 40:
                yield f"{name}, cell {i}: {len(lines)} lines of code; split it (at most 40)."
            imports = [is_import(s) for s in statements(source)]
            if any(imports) and not all(imports):
                yield f"{name}, cell {i}: imports beside other code; give them a cell of their own."
    if lengths and statistics.median(lengths) > 8:
        yield f"half of the code cells have over 8 lines (median {statistics.median(lengths)})."


def functions(root):
    "exported functions have at most 30 lines, and no private name is imported elsewhere"
    for module, tree in modules(root).items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                n = node.end_lineno - node.lineno + 1
                if n > 30:
                    yield f"ect_nb.{module}: {node.name} has {n} lines; split it (at most 30)."
            if is_import(node) and any(re.match(r"_[a-z]", a.name) for a in node.names):
                yield (
                    f"ect_nb.{module} imports {', '.join(a.name for a in node.names)}: give what"
                    " others use a public name."
                )


def stored_form(root):
    "stored code has one form: ruff at 100 columns, imports sorted, nothing unused"
    changed, complaints = form.formed(root)
    for path in changed:
        yield f"{path} has another form: run make sync."
    yield from (f"{line}: mend it by hand." for line in complaints.splitlines())


def alt_text(root):
    "every picture says in words what is seen"
    for name, nb in notebooks(root):
        for i, out in outputs(nb):
            for mime in out.get("data", {}):
                if (
                    mime.startswith("image/")
                    and not out["metadata"].get(mime, {}).get("alt", "").strip()
                ):
                    yield (
                        f"{name}, cell {i}: a picture without alternative text; show it with"
                        " show_figure or show_images and say what is seen."
                    )
                said = out["metadata"].get(mime, {}) if mime.startswith("image/") else {}
                if len(said.get("alt", "")) > 300:
                    yield (
                        f"{name}, cell {i}: an alternative text of {len(said['alt'])} characters;"
                        " say it in 300, and give numbers in text or a table beside the picture."
                    )
        for i, text, _ in cells(nb, "markdown"):
            if re.search(r"!\[\s*\]\(|<img(?![^>]*alt=\"[^\"])", text):
                yield (
                    f"{name}, cell {i}: a picture without alternative text; write ![what is"
                    " seen](file)."
                )


def light_outputs(root):
    "no widget state, no output over 300 kB, no notebook over 1 MB, no stored error"
    for name, nb in notebooks(root):
        again = f"run make notebooks NAMES={Path(name).stem}"
        if "widgets" in nb["metadata"]:
            yield f"{name} stores the state of widgets: {again}, which drops it."
        if (root / name).stat().st_size > 1_000_000:
            yield f"{name} is over 1 MB: make its pictures smaller or fewer."
        for i, out in outputs(nb):
            if len(json.dumps(out)) > 300_000:
                yield f"{name}, cell {i}: an output over 300 kB; make the picture smaller."
            if out["output_type"] == "error":
                yield (
                    f"{name}, cell {i}: a stored error ({out['ename']}); mend the cell and {again}."
                )


def layers(root):
    "exported modules import only from lower layers"
    level = {module: k for k, layer in enumerate(LAYERS) for module in layer.split()}
    for module, tree in modules(root).items():
        if module not in level:
            yield f"ect_nb.{module} stands in no layer: add it to LAYERS in tools/gates.py."
            continue
        found = {n for node in ast.walk(tree) if is_import(node) for n in imported(node, module)}
        for name in sorted(n.removeprefix("ect_nb.") for n in found):
            if level.get(name, -1) >= level[module]:
                yield (
                    f"ect_nb.{module} imports {name}, which is not in a lower layer: move one of"
                    " the two."
                )


def light_imports(root):
    "importing a module loads nothing heavy"

    def top(node):
        for child in ast.iter_child_nodes(node):
            if is_import(child):
                yield child
            elif not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                yield from top(child)

    for module, tree in modules(root).items():
        for name in sorted({n.split(".")[0] for node in top(tree) for n in imported(node)} & HEAVY):
            yield (
                f"ect_nb.{module} imports {name} at its top: import it inside the functions that"
                " use it."
            )


def pictures_opened(root):
    "pictures are opened by data.open_picture alone, which names the formats it means"
    sources = [
        (f"ect_nb.{name}", path.read_text(encoding="utf-8")) for name, path in files(root).items()
    ]
    sources += [
        (f"{name} cell {i}", source)
        for name, nb in notebooks(root)
        for i, source, _ in cells(nb, "code")
    ]
    for name, source in sources:
        lines = TransformerManager().transform_cell(source)
        for node in ast.walk(ast.parse(lines)):
            opens = (
                isinstance(node, ast.Attribute)
                and node.attr == "open"
                and ast.unparse(node.value).split(".")[-1] == "Image"
            )
            taken = (
                isinstance(node, ast.ImportFrom)
                and node.module == "PIL.Image"
                and any(a.name == "open" for a in node.names)
            )
            if (
                taken
                or opens
                and not (
                    re.match(r"ect_nb\.io\.data|nbs/workshop/your_pictures", name)
                    and "formats=FORMATS" in source
                )
            ):
                yield (
                    f"{name} opens a picture by itself: use data.open_picture, for some formats are"
                    " programs."
                )


def no_machine(root):
    "no tracked file names a path of one machine or the host of a package registry"
    path = re.compile(
        r"""(?:^|[\s"'`(=:,>\[]|\\n)[/](?:work|tmp|farm|home|root|Users|mnt)\b""", re.M
    )
    host = re.compile(
        r"py[p]i\.org|python[h]osted\.org|npm[j]s\.(?:org|com)|deb\.deb[i]an\.org|download\.py[t]orch\.org"
    )
    for file in tracked(root):
        content = file.read_bytes()
        found = b"\0" not in content and (
            path.search(text := content.decode(errors="replace")) or host.search(text)
        )
        if found:
            yield (
                f"{file.relative_to(root)} contains {found[0].strip()!r}: write a relative path, or"
                " leave the host out."
            )


def small_data(root):
    "data/ stays under 30 MB"
    size = sum(p.stat().st_size for p in tracked(root) if p.is_relative_to(root / "data"))
    if size >= 30e6:
        yield f"data/ holds {size / 1e6:.1f} MB: bring it under 30 MB."


def export_and_clean(root):
    "nbdev-export and nbdev-clean change nothing"
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp).resolve()
        shutil.copy(root / "pyproject.toml", copy)
        for folder in ("nbs", "ect_nb"):
            shutil.copytree(
                root / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", ".*")
            )
        for generated in (copy / "ect_nb").rglob("[!_]*.py"):
            generated.write_text("")  # `#| export other.module` wants its file to be there
        for tool in ("nbdev-export", "nbdev-clean"):
            subprocess.run(
                [Path(sys.executable).parent / tool], cwd=copy, check=True, capture_output=True
            )
        for folder, pattern in (("nbs", "[!._]*.ipynb"), ("ect_nb", "*.py")):
            names = {
                str(p.relative_to(top / folder))
                for top in (root, copy)
                for p in (top / folder).rglob(pattern)
                if not re.search(r"/(\.|__pycache__)", str(p.relative_to(top)))
            }
            _, changed, missing = filecmp.cmpfiles(
                root / folder, copy / folder, names, shallow=False
            )
            for name in sorted(changed + missing):
                yield (
                    f"{folder}/{name} is not what the notebooks export, or not clean: run make sync"
                    " (and edit notebooks, never ect_nb/)."
                )


GATES = [
    settings_ini,
    address,
    readme_current,
    lock,
    spine,
    chain,
    theory,
    lessons_are_lessons,
    keeps_its_time,
    first_picture,
    code_cells,
    functions,
    stored_form,
    alt_text,
    light_outputs,
    layers,
    light_imports,
    pictures_opened,
    no_machine,
    small_data,
    export_and_clean,
]

if __name__ == "__main__":
    failed = 0
    for gate in GATES:
        try:
            offences = list(gate(ROOT))
        except Exception as error:
            offences = [
                f"this gate could not finish ({type(error).__name__}: {error}): mend what it names."
            ]
        failed += bool(offences)
        print(
            "FAIL " if offences else "ok   ",
            gate.__doc__,
            *("\n      " + o for o in offences),
            sep="",
            flush=True,
        )
    sys.exit(failed > 0)
