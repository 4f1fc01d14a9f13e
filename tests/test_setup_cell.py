"""The one set-up cell, in the situations of Colab, Kaggle and a class; without IPython, git or a
network: the folder and what `git` does are simulated."""

import json
import os
import pytest
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import setup_cell
from house import pages

PRELUDE = """
import importlib.abc, importlib.machinery, sys, types
sys.path[:] = [p for p in sys.path if p]
if "" not in sys.path:
    sys.path.insert(0, "")  # as a notebook has it: the folder it stands in
for name in "safetensors filelock fastcore anywidget".split():
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
"""
COLAB = """
called = []
for name in ("google", "google.colab", "google.colab.output"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["google"].colab = sys.modules["google.colab"]
sys.modules["google.colab"].output = sys.modules["google.colab.output"]
sys.modules["google.colab.output"].enable_custom_widget_manager = lambda: called.append(1)
"""
AFTER = "\nimport ect_nb.course.check as c; print('HERE', c.WHERE)"


def kit(folder):
    "A package that is found, in `folder`: as a clone has it."
    course = folder / "ect_nb" / "course"
    course.mkdir(parents=True)
    (folder / "nbs" / "lessons").mkdir(parents=True)
    (folder / "ect_nb" / "__init__.py").write_text("")
    (course / "__init__.py").write_text("")
    (course / "check.py").write_text("WHERE = __file__")
    return folder


def git(tmp_path, works):
    "A folder with a `git` that clones a kit, or finds no network; it notes each call."
    tool = tmp_path / "bin" / "git"
    tool.parent.mkdir()
    source = kit(tmp_path / "origin") if works else ""
    body = f'cp -r "{source}" ect_nb' if works else "exit 128"
    tool.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/calls"\n{body}\n')
    tool.chmod(0o755)
    return f"{tool.parent}{os.pathsep}{os.environ['PATH']}"


def run(cwd, path, cell=setup_cell.ONE, before="", after=AFTER):
    cwd.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PRELUDE + before + cell + after],
        cwd=cwd,
        env={"PATH": path},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def calls(tmp_path):
    file = tmp_path / "calls"
    return file.read_text().splitlines() if file.exists() else []


posix = pytest.mark.skipif(os.name == "nt", reason="the simulated git is a shell script")


@posix
def test_a_fresh_runtime_fetches_once_and_a_restart_and_a_second_page_find_it(tmp_path):
    path, top = git(tmp_path, True), tmp_path / "content"
    for _ in range(3):  # fresh; restarted in the same folder; a second page
        code, out, err = run(top, path)
        assert code == 0 and "HERE" in out, err
    assert len(calls(tmp_path)) == 1 and "--depth=1" in calls(tmp_path)[0]
    code, out, err = run(top / "ect_nb" / "nbs" / "lessons", path)
    assert code == 0 and "HERE" in out and len(calls(tmp_path)) == 1, err


@posix
def test_without_a_network_it_is_one_sentence(tmp_path):
    code, out, err = run(tmp_path / "content", git(tmp_path, False))
    assert code == 1 and err.strip().splitlines() == [
        "ect_nb is not here and could not be fetched: is there a network?"
    ]


@posix
def test_a_clone_on_a_laptop_opened_from_the_folder_above_is_found(tmp_path):
    kit(tmp_path / "course" / "ect_nb")
    for cwd in (tmp_path / "course", tmp_path / "course" / "ect_nb" / "nbs" / "lessons"):
        code, out, err = run(cwd, git(tmp_path, False) if cwd.name == "course" else os.defpath)
        assert code == 0 and "HERE" in out, err
    assert calls(tmp_path) == []


@posix
def test_a_students_copy_finds_its_own_package_and_never_fetches(tmp_path):
    path, copy = git(tmp_path, True), kit(tmp_path / "ect_nb_class")
    (copy / "ect_nb" / "course" / "hand_in.py").write_text("predict = report = None")
    code, out, err = run(copy / "nbs" / "lessons", path, setup_cell.STUDENT)
    assert code == 0 and "HERE" in out, err
    code, out, err = run(tmp_path / "elsewhere", path, setup_cell.STUDENT)
    assert code == 1 and "unpack the zip" in err
    assert calls(tmp_path) == [] and "clone" not in setup_cell.STUDENT


@posix
def test_colab_is_told_to_show_the_panels(tmp_path):
    kit(tmp_path / "content" / "ect_nb")
    cell = setup_cell.ONE.replace("_find(p)", "True")
    code, out, err = run(
        tmp_path / "content", os.defpath, cell, COLAB, AFTER + "; print('CALLED', called)"
    )
    assert code == 0 and "CALLED [1]" in out, err


def test_it_upgrades_nothing():
    assert "--upgrade" not in setup_cell.ONE and "-U" not in setup_cell.ONE.split()
    assert "--no-deps" in setup_cell.ONE and "torch" not in setup_cell.ONE


def test_it_is_the_same_on_every_page():
    for path in pages():
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        mine = [c for c in cells if setup_cell.is_setup(c)]
        assert all("".join(c["source"]) == setup_cell.ONE for c in mine), path.name
        others = [c for c in cells if c["cell_type"] == "code" and c not in mine]
        assert not [c for c in others if "git clone" in "".join(c["source"])], path.name
