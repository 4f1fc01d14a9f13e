"""The house: every gate holds here and fails on a bad example; the tools that set up, run and write
do what they say."""

import base64
import json
import nbformat
import os
import pytest
import re
import shutil
import subprocess
import sys
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import address
import gates
import lab
import readme
import run_notebooks
import settings
import setup

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()
BADGE = (
    "[![Open In"
    " Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ect-nb/ect_nb/blob/main/nbs/lessons/04_schedules.ipynb)"
)


def picture(alt):
    return new_output(
        "display_data",
        data={"image/png": PNG, "text/plain": "a figure"},
        metadata={"image/png": {"alt": alt}},
    )


def exercise(stars):
    "Text, stub and check of an exercise."
    solution = 'def half(x):\n    "Half of x."\n    return x / 2'
    text = f"### Exercise {stars} · Half\n" + "".join(
        f"\n<details><summary>Hint {k}</summary>\n\nDivide.\n</details>\n" for k in (1, 2)
    )
    return [
        new_markdown_cell(
            f"{text}\n<details><summary>Solution</summary>\n\n```python\n{solution}\n```\n</details>"
        ),
        new_code_cell('def half(x):\n    "Half of x."\n    ...'),
        new_code_cell("print(check_half(half))"),
    ]


def lesson():
    """A notebook that every gate accepts, one of the theory: prompts, a panel with its questions,
    three exercises."""
    return [
        new_markdown_cell("# 04 · Schedules\n\n> which t, which r\n\n" + BADGE),
        new_markdown_cell("**You will be able to** draw t\n\n**Time.** 9 minutes; 25 more."),
        new_code_cell("#| default_exp schedules"),
        new_code_cell("#| export\nimport torch"),
        new_code_cell("#| export\ndef half(t):\n    return t / 2"),
        new_code_cell("half(torch.tensor(2))", outputs=[picture("a falling line")]),
        *(new_markdown_cell("**Predict first.** Up or down?") for _ in range(3)),
        new_code_cell("from kit import check_half, panel, show_panel"),
        new_code_cell("show_panel(panel)"),
        new_markdown_cell("**Three questions for your hands.**\n\n1. Up?\n2. Down?\n3. Why?"),
        *exercise("★"),
        *exercise("★★"),
        *exercise("★★★"),
        new_markdown_cell("## Recap\n\n| t | r |"),
        new_markdown_cell("**Next:** [the map](../index.ipynb)."),
    ]


def write(path, cells, **metadata):
    for i, cell in enumerate(cells):
        cell["id"] = f"{path.stem[:2]}{i:02d}"
    kernel = dict(display_name="python3", language="python", name="python3")
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel, **metadata}), path)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    "A small repository that every gate accepts."
    root = tmp_path_factory.mktemp("good")
    for folder in ("nbs/images", "nbs/lessons", "ect_nb", "data"):
        (root / folder).mkdir(parents=True)
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, root)
    (root / "ect_nb" / "__init__.py").write_text('__version__ = "0.1.0"\n')
    (root / "nbs" / "images" / "hero.png").write_bytes(base64.b64decode(PNG))
    write(
        root / "nbs" / "index.ipynb",
        [
            new_markdown_cell(
                "![garments](images/hero.png)\n\n# ect_nb\n\nSee [04](lessons/04_schedules.ipynb)."
            ),
            new_code_cell("print(2)", outputs=[new_output("stream", text="2\n")]),
        ],
    )
    write(root / "nbs" / "lessons" / "04_schedules.ipynb", lesson())
    for tool in ("nbdev-export", "nbdev-clean"):
        subprocess.run([Path(sys.executable).parent / tool], cwd=root, check=True)
    (root / "settings.ini").write_text(settings.text(root))
    for path, content in readme.render(root).items():
        (root / path).write_bytes(content)
    return root


@pytest.fixture
def tree(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "tree"))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def relesson(change, **metadata):
    "A breakage of the lesson: its cells go through `change`."

    def act(root):
        cells = lesson()
        change(cells)
        write(root / "nbs" / "lessons" / "04_schedules.ipynb", cells, **metadata)

    return act


def module(text):
    return lambda root: (root / "ect_nb" / "schedules.py").write_text(text)


def source(i, text):
    return relesson(lambda cells: cells[i].update(source=text))


def out(value):
    return relesson(lambda cells: cells[5].update(outputs=[value]))


BAD = [
    (
        "settings_ini",
        "make sync",
        lambda r: edit(r / "settings.ini", "min_python = 3.11", "min_python = 3.9"),
    ),
    (
        "address",
        "another address",
        lambda r: edit(r / "pyproject.toml", "ect-nb/ect_nb", "somebody/fork"),
    ),
    ("readme_current", "README.md differs", lambda r: edit(r / "README.md", "# ect_nb", "# other")),
    (
        "readme_current",
        "hero.png, which does not exist",
        lambda r: (r / "nbs" / "images" / "hero.png").unlink(),
    ),
    (
        "readme_current",
        "does not start with a picture",
        lambda r: edit(r / "nbs" / "index.ipynb", "![garments](images/hero.png)", "words"),
    ),
    (
        "lock",
        "no name==version",
        lambda r: edit(r / "requirements.lock", "\nsix==", "\n--find-links here\nsix=="),
    ),
    (
        "lock",
        "no name==version",
        lambda r: edit(r / "requirements.lock", "\nsix==", "\nsix @ https://example.org/six-"),
    ),
    (
        "lock",
        "does not answer torch>=99",
        lambda r: edit(r / "pyproject.toml", '"torch>=2.6"', '"torch>=99"'),
    ),
    (
        "lock",
        "does not answer unheard-of",
        lambda r: edit(r / "pyproject.toml", '"torch>=2.6"', '"torch>=2.6", "unheard-of"'),
    ),
    ("spine", "a title", source(0, "# Schedules\n\n> which t\n\n" + BADGE)),
    ("spine", "a subtitle", source(0, "# 04 · Schedules\n\n" + BADGE)),
    (
        "spine",
        "the Colab badge",
        source(0, "# 04 · Schedules\n\n> which t\n\n" + BADGE.replace("04_", "05_")),
    ),
    ("spine", "able to", source(1, "You will learn")),
    ("spine", "Recap", source(-2, "### Recap")),
    ("spine", "Next", source(-1, "That is all.")),
    ("theory", "less than three times", source(6, "Up or down?")),
    ("theory", "lacks a panel", source(10, "panel")),
    (
        "theory",
        "lacks a panel",
        source(11, "**Three questions for your hands.**\n\n1. Up?\n2. Down?"),
    ),
    (
        "theory",
        "needs three exercises",
        relesson(lambda cells: cells.__setitem__(slice(18, 21), [])),
    ),
    (
        "theory",
        "1 hints",
        relesson(
            lambda cells: cells[12].update(source=cells[12]["source"].replace("Hint 2", "Note"))
        ),
    ),
    ("theory", "not the stub", source(13, "def half(x): ...")),
    (
        "theory",
        "no block",
        relesson(
            lambda cells: cells[15].update(source=cells[15]["source"].replace("Solution", "Answer"))
        ),
    ),
    (
        "lessons_are_lessons",
        "at most 15 %",
        source(4, "#| export\n" + "\n".join(f"x{i} = {i}" for i in range(20))),
    ),
    ("lessons_are_lessons", "at most 15 %", source(4, "\n".join(["assert 1 + 1 == 2"] * 12))),
    ("keeps_its_time", "does not say", source(1, "**You will be able to** draw t")),
    ("keeps_its_time", "promises 9 minutes", source(6, "Up. " * 1000)),
    ("keeps_its_time", "25 more", source(-2, "## Recap\n\n## Further: more\n" + "Up. " * 2000)),
    ("keeps_its_time", "before the path ends", source(6, "## Further: up or down?")),
    ("keeps_its_time", "about four", source(6, "Up. " * 60_000)),
    ("first_picture", "no picture", relesson(lambda cells: cells[5].update(outputs=[]))),
    (
        "first_picture",
        "after the third",
        relesson(
            lambda cells: cells.__setitem__(slice(4, 4), [new_code_cell("x = 1") for _ in range(3)])
        ),
    ),
    ("chain", "leaves the house", source(-1, "**Next:** [far](../../README.ipynb).")),
    (
        "chain",
        "never reaches nbs/lessons/05_lost.ipynb",
        lambda r: shutil.copy(
            r / "nbs" / "lessons" / "04_schedules.ipynb", r / "nbs" / "lessons" / "05_lost.ipynb"
        ),
    ),
    ("functions", "31 lines", module("def f():\n" + "    x = 1\n" * 30)),
    ("functions", "a public name", module("from ect_nb.losses import _to")),
    ("stored_form", "another form", source(4, "#| export\ndef half(t): return t/2")),
    ("stored_form", "E501", source(4, "#| export\n# " + "x" * 99)),
    ("stored_form", "F821", source(5, "halve(torch.tensor(2))")),
    ("code_cells", "41 lines", source(5, "\n".join(f"x{i} = {i}" for i in range(41)))),
    (
        "code_cells",
        "median 9",
        relesson(
            lambda cells: cells.extend(new_code_cell("\n".join(["x = 1"] * 9)) for _ in range(99))
        ),
    ),
    ("code_cells", "imports beside", source(5, "import math\nmath.pi")),
    ("alt_text", "show_figure", out(picture(" "))),
    ("alt_text", "write ![", source(-2, "## Recap\n\n![](images/hero.png)")),
    ("light_outputs", "state of widgets", relesson(lambda cells: None, widgets={"state": {}})),
    ("light_outputs", "over 300 kB", out(new_output("stream", text="x" * 300_001))),
    ("light_outputs", "over 1 MB", source(-2, "## Recap\n" + "x" * 1_000_001)),
    (
        "light_outputs",
        "stored error",
        out(new_output("error", ename="ValueError", evalue="", traceback=[])),
    ),
    ("layers", "not in a lower layer", module("from .losses import ect_loss")),
    ("layers", "not in a lower layer", module("def f():\n    from ect_nb.networks import MLP")),
    ("layers", "not in a lower layer", module("from .training import loop")),
    ("layers", "in no layer", lambda r: (r / "ect_nb" / "stray.py").write_text("")),
    ("light_imports", "imports scipy", module("import scipy.stats")),
    (
        "light_imports",
        "imports matplotlib",
        module("try:\n    from matplotlib import pyplot\nexcept ImportError: pass"),
    ),
    (
        "pictures_opened",
        "opens a picture",
        module("from PIL import Image\ndef f(p): return Image.open(p)"),
    ),
    (
        "pictures_opened",
        "opens a picture",
        module("import PIL.Image as Image\ndef f(p): return Image.open(p, formats=FORMATS)"),
    ),
    (
        "pictures_opened",
        "opens a picture",
        module("def f(p):\n    from PIL.Image import open\n    return open(p)"),
    ),
    ("pictures_opened", "opens a picture", source(5, "PIL.Image.open('a.png')")),
    (
        "no_machine",
        "a relative path",
        lambda r: (r / "notes.md").write_text("see `/" + "tmp/notes`"),
    ),
    (
        "no_machine",
        "leave the host out",
        lambda r: (r / "notes.md").write_text("https://py" + "pi.org/simple"),
    ),
    (
        "small_data",
        "under 30 MB",
        lambda r: (r / "data" / "big.bin").write_bytes(bytes(30_000_001)),
    ),
    (
        "export_and_clean",
        "schedules.py is not what",
        lambda r: edit(r / "ect_nb" / "schedules.py", "t / 2", "t / 3"),
    ),
    (
        "export_and_clean",
        "stray.py is not what",
        lambda r: (r / "ect_nb" / "stray.py").write_text("x = 1"),
    ),
    (
        "export_and_clean",
        "04_schedules.ipynb is not what",
        lambda r: edit(
            r / "nbs" / "lessons" / "04_schedules.ipynb",
            '"execution_count": null',
            '"execution_count": 3',
        ),
    ),
]


@pytest.mark.parametrize("gate", gates.GATES, ids=lambda g: g.__name__)
def test_gate_holds_here(gate):
    assert list(gate(ROOT)) == []


@pytest.mark.parametrize("gate", gates.GATES, ids=lambda g: g.__name__)
def test_gate_accepts_a_good_repository(gate, good):
    assert list(gate(good)) == []


@pytest.mark.parametrize(
    "gate, says, break_it", BAD, ids=[f"{g}-{i}" for i, (g, _, _) in enumerate(BAD)]
)
def test_gate_fails_on_a_bad_example(gate, says, break_it, tree):
    break_it(tree)
    offences = list(getattr(gates, gate)(tree))
    assert offences and says in " ".join(offences)


def test_every_gate_has_a_bad_example():
    assert {g.__name__ for g in gates.GATES} == {name for name, _, _ in BAD}


def test_what_the_gates_allow(tree):
    "Imports inside functions, shell lines in set-up cells, and the heavy ones where they are used."
    relesson(
        lambda cells: cells.insert(
            3,
            new_code_cell(
                "#| hide\ntry: import ect_nb\nexcept ImportError:\n    %pip install -q ect_nb"
            ),
        )
    )(tree)
    module("import torch\ndef f():\n    import scipy\n    return scipy")(tree)
    for gate in (gates.code_cells, gates.first_picture, gates.layers, gates.light_imports):
        assert list(gate(tree)) == []


# Address, settings.ini, README


def test_address_changes_in_one_line():
    text = (
        f'{BADGE}\\n git clone https://github.com/ect-nb/ect_nb ect_nb\\n pip install "ect_nb @'
        ' git+https://github.com/ect-nb/ect_nb" https://github.com/locuslab/ect'
    )
    moved = address.rewrite(text, "https://github.com/a/b", "trunk")
    assert (
        moved.count("github.com/a/b") == 2
        and "github/a/b/blob/trunk/nbs/lessons/04_schedules.ipynb" in moved
    )
    assert (
        "ect-nb" not in moved
        and "https://github.com/locuslab/ect" in moved
        and address.rewrite(moved, "https://github.com/a/b", "trunk") == moved
    )


def test_settings_ini_as_configparser_reads_it():
    "nbdev 2.4 reads settings.ini with configparser; pip's own parser must accept the requirements."
    from configparser import ConfigParser
    from packaging.requirements import Requirement

    parser = ConfigParser()
    parser.read(ROOT / "settings.ini")
    facts = parser["DEFAULT"]
    assert (
        facts["lib_name"] == "ect_nb"
        and facts["nbs_path"] == "nbs"
        and facts.getboolean("update_pyproject") is False
    )
    assert "torch" in {Requirement(r).name for r in facts["requirements"].split()} and {
        Requirement(r).name for r in facts["dev_requirements"].split()
    } >= {"nbdev", "jupyterlab"}


def test_readme_stores_pictures_and_moves_links(tree):
    write(
        tree / "nbs" / "index.ipynb",
        [
            new_markdown_cell(
                "[a](01.ipynb) [b](../LICENSE) [c](https://example.org) [d](#here)"
                " ![e](images/e.png)"
            ),
            new_code_cell("#| eval: false\nshow()", outputs=[picture("a garment")]),
        ],
    )
    files = readme.render(tree)
    text = files["README.md"].decode()
    assert (
        "[a](nbs/01.ipynb) [b](LICENSE) [c](https://example.org) [d](#here) ![e](nbs/images/e.png)"
        in text
    )
    assert "```python\nshow()\n```\n\n![a garment](nbs/images/index_1_0.png)" in text and files[
        "nbs/images/index_1_0.png"
    ] == base64.b64decode(PNG)


# Running notebooks


def test_run_a_notebook_and_store_it(tmp_path):
    path = tmp_path / "05_toy.ipynb"
    write(
        path,
        [
            new_code_cell("import os\nfrom IPython.display import display, Image, Markdown"),
            new_code_cell(
                f"import base64\ndisplay(Image(base64.b64decode('{PNG}'), format='png'),"
                " metadata={'image/png': {'alt': 'dots'}})"
            ),
            new_code_cell("import ipywidgets\nipywidgets.IntSlider()"),
            new_code_cell("#| tour-table\nMarkdown('| a | b |')"),
            new_code_cell("print(os.getcwd())"),
        ],
    )
    nb = run_notebooks.strip_widgets(run_notebooks.execute(path))
    assert (
        run_notebooks.table(nb) == "| a | b |"
        and nb.cells[2].outputs == []
        and nb.cells[4].outputs[0].text.strip() == str(tmp_path)
    )
    run_notebooks.write_pictures(nb, tmp_path, path.stem)
    assert (tmp_path / "05_toy_01.png").read_bytes() == base64.b64decode(PNG)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    run_notebooks.save(nb, path)
    stored = json.loads(path.read_text())
    assert (
        "widgets" not in stored["metadata"]
        and stored["cells"][1]["execution_count"] is None
        and stored["cells"][1]["outputs"][0]["metadata"]["image/png"] == {"alt": "dots"}
    )
    assert [p.name for p in tmp_path.glob(".*")] == []
    run_notebooks.write_html(nb, tmp_path / "05_toy.html")
    assert 'alt="dots"' in (tmp_path / "05_toy.html").read_text()


def test_a_page_to_be_read(tmp_path):
    """As HTML: a title and a language, links between pages, no plumbing; a panel is its picture,
    sharp, and says that it does not move. As stored: the picture alone."""
    view = (
        '{"application/vnd.jupyter.widget-view+json": {"version_major": 2, "version_minor": 0,'
        ' "model_id": "m"}}'
    )
    html = "<div class='ect-still'>a ghost</div>"
    still = f"""{{"image/png": "{PNG}", "text/plain": "a ghost", "text/html": "{html}"}}"""
    width = "dict(alt='a ghost') | ({} if os.environ['ECT_NB_SHARP'] == '1' else dict(width=400))"
    cells = [
        new_markdown_cell(
            """# 05 · Toy\n\nSee [04](04_schedules.ipynb),
            [there](04_schedules.ipynb#there), [the"""
            " study](../bench/study.md)."
        ),
        new_code_cell("#| hide\nsecret = 1"),
        new_code_cell("#| default_exp toy"),
        new_code_cell("import os\nfrom IPython.display import display"),
        new_code_cell("#| export\nimport math"),
        new_code_cell("#| export\n_all_ = ['math']"),
        new_code_cell("#| export\ndef half(x): return x / 2"),
        new_code_cell(
            f"display({view}, raw=True)\ndisplay({still}, raw=True, metadata={{'image/png':"
            f" {width}}})"
        ),
    ]
    path = tmp_path / "05_toy.ipynb"
    write(path, cells)
    stored = run_notebooks.strip_widgets(run_notebooks.execute(path))
    assert [(set(o.data), o.metadata) for o in stored.cells[-1].outputs] == [
        ({"image/png", "text/plain"}, {"image/png": {"alt": "a ghost"}})
    ]
    run_notebooks.write_html(
        run_notebooks.strip_widgets(run_notebooks.execute(path, sharp=2), mark=True),
        tmp_path / "05_toy.html",
    )
    page = (tmp_path / "05_toy.html").read_text()
    assert "<title>05 · Toy</title>" in page and '<html lang="en">' in page
    assert (
        'href="04_schedules.html"' in page
        and 'href="04_schedules.html#there"' in page
        and 'href="../bench/study.md"' in page
    )
    body = page[page.index("<body") :]
    assert not any(word in body for word in ("secret", "default_exp", "_all_")) and "half" in body
    image = re.search(r"<img[^>]*>", body)[0]
    assert (
        'alt="a ghost"' in image
        and 'width="400"' in image
        and body.count("A still picture of a panel") == 1
    )


def test_run_notebooks_names_what_is_missing():
    result = subprocess.run(
        [sys.executable, ROOT / "tools" / "run_notebooks.py", "99_nowhere"],
        capture_output=True,
        text=True,
    )
    assert (
        result.returncode == 1
        and "there is no page 99_nowhere in nbs/" in result.stderr
        and "Traceback" not in result.stderr
    )


# Setting up


def test_setup_says_that_python_is_missing(tmp_path):
    "On a PATH that holds only make and a shell."
    for tool in ("make", "sh"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    result = subprocess.run(
        ["make", "setup"], cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert result.returncode and "no Python was found: install Python 3.11 to 3.14" in result.stderr


def told(act):
    "What setup says when it stops."
    with pytest.raises(SystemExit) as stop:
        act()
    return str(stop.value)


def test_setup_with_an_old_python_only(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup, "version", lambda python: (3, 10))
    assert setup.find_python() is None
    assert "needs Python 3.11 to 3.14 and none was found" in told(lambda: setup.create(None, None))


def test_setup_with_a_python_without_venv(tmp_path, monkeypatch):
    python = tmp_path / "python3"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *ensurepip*|*venv*) exit 1;; esac\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")
    assert setup.version(python) == sys.version_info[:2]
    assert "install its venv package" in told(lambda: setup.create(str(python), None))


def test_setup_with_an_unreachable_registry(tmp_path):
    "A real run, whose package index is a closed port."
    for folder in ("tools", "ect_nb"):
        (tmp_path / folder).mkdir()
    for name in ("pyproject.toml", "requirements.lock", "tools/setup.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    closed = "http://127.0.0.1:9/simple"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_"))}
    env |= dict(
        PIP_CONFIG_FILE=os.devnull,
        PIP_INDEX_URL=closed,
        UV_DEFAULT_INDEX=closed,
        UV_INDEX_URL=closed,
        UV_HTTP_RETRIES="0",
        UV_CACHE_DIR=str(tmp_path / "cache"),
    )
    result = subprocess.run(
        [sys.executable, "tools/setup.py"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert (
        result.returncode == 1
        and "check that the package registry can be reached" in result.stderr.splitlines()[-1]
        and "Traceback" not in result.stderr
    )


def test_setup_shields_torch_from_a_machine_wide_pip_configuration(monkeypatch):
    "pip itself, asked in that environment, knows neither find-links nor extra-index-url."
    monkeypatch.setenv("PIP_FIND_LINKS", "somewhere")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "file:elsewhere")
    env = setup.plain_pip()
    assert (
        not {"PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"} & set(env)
        and env["PIP_CONFIG_FILE"] == os.devnull
    )


@pytest.fixture
def installed(tmp_path, monkeypatch):
    "setup, pointed at a folder that has an environment; what it would run is not run."
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    places = dict(
        ROOT=tmp_path,
        VENV=tmp_path,
        LOCK=tmp_path / "requirements.lock",
        PYTHON=tmp_path / "bin" / "python",
        STAMP=tmp_path / "stamp",
    )
    for name, value in places.items():
        monkeypatch.setattr(setup, name, value)
    monkeypatch.setattr(setup, "answer", lambda *command: "yes")
    monkeypatch.setattr(setup, "run", lambda *command, env=None: True)
    return tmp_path


def test_setup_is_instant_when_nothing_changed(installed, monkeypatch):
    "With a matching stamp no program is started; a changed lock makes it work again."
    started = []
    monkeypatch.setattr(setup, "version", lambda python: started.append(python) or (3, 12))
    setup.main()
    assert len(started) == 1
    setup.main()
    assert len(started) == 1
    with open(installed / "requirements.lock", "a") as f:
        f.write("one-more==1\n")
    setup.main()
    assert len(started) == 2


def test_setup_starts_afresh_where_the_folder_was_moved(installed, monkeypatch):
    "Scripts in an environment name its folder, so a moved one is made again."
    (installed / "stamp").write_text("elsewhere\n0")
    made = []
    monkeypatch.setattr(setup, "version", lambda python: (3, 12))
    monkeypatch.setattr(setup, "create", lambda python, uv: made.append(python))
    setup.main()
    assert len(made) == 1


def test_lab_as_root_and_without_a_display(monkeypatch):
    root = lab.arguments(ROOT, uid=0, browser=False)
    assert (
        "--allow-root" in root
        and "--no-browser" in root
        and any("00_sixty_seconds" in a for a in root)
    )
    user = lab.arguments(ROOT, uid=1000, browser=True)
    assert "--allow-root" not in user and "--no-browser" not in user
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(lab.sys, "platform", "linux")
    assert lab.has_browser() is False


def test_make_help_lists_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    targets = re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split()
    assert {"lab", "test", "tour", "bench", "gates", "help"} <= set(targets) and all(
        re.search(rf"^make {t} +\S", shown, re.M) for t in targets
    )


# The package


def test_importing_the_package_is_light():
    """All modules together load nothing but themselves, NumPy, PyTorch, fastcore (for @patch) and
    the standard library, and not PyTorch's compiler, which takes seconds."""
    names = [f"ect_nb.{name}" for name in gates.files(ROOT)]
    code = (
        f"import sys, importlib, torch, numpy\nwas = set(sys.modules)\nfor n in {names}:"
        " importlib.import_module(n)\nprint(*set(sys.modules) - was)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert set(names) <= loaded and "torch._dynamo" not in loaded
    assert {n.split(".")[0] for n in loaded} <= {
        "ect_nb",
        "fastcore",
        "torch",
        "numpy",
    } | sys.stdlib_module_names


def test_metadata_of_the_installed_package():
    import ect_nb
    from importlib.metadata import metadata, version

    assert (
        version("ect_nb") == ect_nb.__version__ == "0.2.0"
        and metadata("ect_nb")["License-Expression"] == "Apache-2.0"
    )


# The study of the start and of 00's recipe


def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return __import__("study")


def test_the_table_of_the_study_is_made_from_its_trials(tmp_path, monkeypatch):
    bench = study(monkeypatch)
    shutil.copy(ROOT / "bench" / "study.jsonl", tmp_path)
    monkeypatch.setattr(bench, "HERE", tmp_path)
    bench.tables()
    assert (tmp_path / "study.md").read_text() == (ROOT / "bench" / "study.md").read_text(), (
        "run python bench/study.py table"
    )


def test_settings_of_a_trial_are_values_and_never_code(monkeypatch):
    from ect_nb.schedules import SigmoidMapping, Stages

    bench = study(monkeypatch)
    assert bench.settings(
        "batch=16, betas=(0.9, 0.99), stages=Stages(2, every=10), mapping=SigmoidMapping(2, k=2)"
    ) == dict(
        batch=16, betas=(0.9, 0.99), stages=Stages(2, every=10), mapping=SigmoidMapping(2, k=2)
    )
    for text in ("batch=open('x')", "batch=(1).__class__", "batch=[i for i in range(9)]"):
        with pytest.raises((ValueError, KeyError, AttributeError)):
            bench.settings(text)
