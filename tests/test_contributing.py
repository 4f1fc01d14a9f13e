"The three examples of CONTRIBUTING, followed to the letter in a copy of the repository."

import json
import os
import pytest
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = re.compile(
    r"^\*\*A (\w+)\*\*, into `([\w./]+)`.*?```python\n(.*?)```\n\n`(.*?)`", re.M | re.S
)
USE = """
import sys, torch
from ect_nb import ECT, MLP, Config, Precond, objectives, sample, train
from ect_nb.objectives import *
from ect_nb.schedules import *
from dataclasses import replace
points = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
for i, settings in enumerate(sys.argv[2:]):
    folder = f"{sys.argv[1]}_{i}"
    config = replace(eval(settings, globals()), kimg=0.32, batch=32)
    model = Precond(MLP(2, 8, 2))
    for stop in (4, None):
        for step in train(model, points, config, folder):
            assert step.loss.isfinite()
            if step.step == stop:
                break
    assert step.images == 320 and sample(step.ema, torch.randn(3, 2)).isfinite().all()
"""


def examples():
    return EXAMPLE.findall((ROOT / "CONTRIBUTING.md").read_text())


@pytest.fixture
def copy(tmp_path):
    "What an edit and an export touch."
    for name in ("nbs", "ect_nb"):
        skip = shutil.ignore_patterns("__pycache__", ".*", "images")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def add_cell(page, source):
    "Put a cell before the recap of the notebook at `page`."
    nb = json.loads(page.read_text())
    at = next(i for i, c in enumerate(nb["cells"]) if "".join(c["source"]).startswith("## Recap"))
    cell = dict(cell_type="code", execution_count=None, id="c0ffee00", metadata={}, outputs=[])
    nb["cells"].insert(at, cell | dict(source=source.splitlines(keepends=True)))
    page.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n")


def changed(copy):
    "Files of the copy that are not those of the repository."
    files = (p for name in ("nbs", "ect_nb") for p in (copy / name).rglob("*.[ip]*") if p.is_file())
    names = [p.relative_to(copy) for p in files if "__pycache__" not in str(p)]
    return {str(n) for n in names if (copy / n).read_bytes() != (ROOT / n).read_bytes()}


def test_there_are_three_examples():
    assert [what for what, *_ in examples()] == ["mapping", "metric", "method"]


def test_each_example_is_one_cell_in_one_notebook_and_trains(copy):
    pages = {page for _, page, _, _ in examples()}
    for _, page, source, _ in examples():
        add_cell(copy / page, source.rstrip("\n"))
    env = os.environ | {"PYTHONPATH": str(copy)}
    run = dict(cwd=copy, env=env, capture_output=True, text=True)
    done = subprocess.run([Path(sys.executable).parent / "nbdev-export"], **run)
    assert done.returncode == 0, done.stderr
    touched = changed(copy)
    assert {n for n in touched if n.endswith(".ipynb")} == pages
    assert len(touched) == 2 * len(pages) + 1, touched  # a module each, and the index of names
    uses = [use for *_, use in examples()]
    done = subprocess.run([sys.executable, "-c", USE, copy / "run", *uses], **run)
    assert done.returncode == 0, done.stderr
    for i, (_, _, source, _) in enumerate(examples()):
        name = re.search(r"^(?:class|def) (\w+)", source, re.M)[1]
        config = json.loads((copy / f"run_{i}" / "config.json").read_text())["config"]
        assert name in json.dumps(config)
