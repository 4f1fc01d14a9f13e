"""What a user of the wheel gets: little, and one sentence for the rest."""

import os
import pytest
import re
import subprocess
import sys
import sysconfig
import tomllib
from ect_nb import EXTRAS
from ect_nb.io.files import needed
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMES = dict(cleanfid="clean-fid", IPython="ipython")  # where a package is called otherwise


def test_little_is_asked_for():
    wanted = {re.match(r"[\w-]+", d)[0] for d in PROJECT["dependencies"]}
    assert wanted == {"torch", "numpy", "safetensors", "filelock", "tqdm", "pillow", "fastcore"}
    assert PROJECT["scripts"] == {"ect_nb": "ect_nb.__main__:main"}


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_sentence_names_an_extra_that_brings_it(extra):
    for name in EXTRAS[extra].split():
        brought = [re.match(r"[\w-]+", d)[0] for d in PROJECT["optional-dependencies"][extra]]
        assert NAMES.get(name, name) in brought, (extra, name)


ASKED = re.compile(
    r'^ *from (\w+)[\w.]* import |^ *import (\w+)(?:[\w.]*)(?: as |$)|needed\(f?"(\w+)', re.M
)
AT_HAND = sys.stdlib_module_names | {"ect_nb", "PIL"}


def wanted():
    "{package: the files of the kit that ask for it} for all that may be missing."
    brought = {re.match(r"[\w-]+", d)[0] for d in PROJECT["dependencies"]} | AT_HAND
    found = {}
    for path in (ROOT / "ect_nb").rglob("*.py"):
        for names in ASKED.findall(path.read_text(encoding="utf-8")):
            if (name := "".join(names)) not in brought:
                found.setdefault(name, set()).add(path.relative_to(ROOT).as_posix())
    return found


WITH_ANOTHER = {"traitlets"}  # comes with anywidget, which is imported before it
NOWHERE = {"transformers", "wandb", "trackio"}  # no extra brings them


@pytest.mark.parametrize("name", sorted(wanted().keys() - WITH_ANOTHER))
def test_what_is_missing_is_told_with_one_command_that_brings_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError) as caught:
        needed(name, "somebody wants it")
    told = re.fullmatch(rf"{name} is not installed, and .* it: pip install (.*)", str(caught.value))
    extra = re.fullmatch(r'"ect_nb\[(\w+)\]"', told[1])
    assert bool(extra) == (name not in NOWHERE), told[0]
    lines = PROJECT["optional-dependencies"][extra[1]] if extra else [told[1]]
    assert NAMES.get(name, name) in [re.match(r"[\w-]+", line)[0] for line in lines]


def test_whoever_measures_is_told_of_the_extra_for_measuring():
    inside = {name for name, places in wanted().items() if any("/measure/" in p for p in places)}
    told = {k for k, names in EXTRAS.items() if inside & set(names.split())}
    assert told == {"metrics"} and "scipy" in inside


@pytest.fixture(scope="module")
def slim(tmp_path_factory):
    "The packages of this environment but those of extras, and the kit as a wheel brings it."
    folder = tmp_path_factory.mktemp("slim")
    leave = {n for names in EXTRAS.values() for n in names.split()}
    site = Path(sysconfig.get_paths()["purelib"])
    for path in site.iterdir():
        if path.name.split(".")[0] not in leave and not path.name.endswith((".pth", ".egg-link")):
            (folder / path.name).symlink_to(path)
    if not (folder / "ect_nb").exists():
        (folder / "ect_nb").symlink_to(ROOT / "ect_nb")
    return folder


@pytest.fixture(scope="module")
def said(slim):
    "What a process says that trains and samples, and then asks for more than it has."
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    start = f"import sys; sys.path.insert(0, {str(slim)!r})\n"
    run = [sys.executable, "-S", "-c", start + USER]
    return subprocess.run(run, env=env, cwd=slim, capture_output=True, text=True)


USER = """
import torch
from ect_nb import ECT, Config, MLP, Precond, Stages, sample, train
from ect_nb.commands import main
f = Precond(MLP(dim=2, width=8))
for p in train(f, torch.randn(64, 2), Config(ECT(c=0.03), kimg=0.1, batch=32, stages=Stages(2))):
    pass
assert sample(p.ema, torch.randn(3, 2), (80.0, 1.0)).shape == (3, 2)
assert main(["list"]) == 0
import ect_nb.io.export, ect_nb.io.datasets, ect_nb.training.logs, ect_nb.measure.kernels
heavy = {"matplotlib", "scipy", "torchvision", "plotly", "ipywidgets", "IPython"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
print("done")
from ect_nb.io.export import to_onnx
from ect_nb.show.pictures import show_images
from ect_nb.training.logs import tensorboard_log
for ask in (
    lambda: show_images(torch.zeros(1, 1, 4, 4), alt="none"),
    lambda: to_onnx(torch.nn.Linear(1, 1), "x.onnx", (1, 4, 4)),
    lambda: tensorboard_log("x"),
):
    try:
        ask()
    except ImportError as e:
        print(e)
"""


def test_training_and_sampling_need_no_more(said):
    assert "done" in said.stdout.splitlines(), said.stderr


def test_one_sentence_for_what_is_missing(said):
    lines = said.stdout.partition("done\n")[2].splitlines()
    assert len(lines) == 3, said.stderr
    for line, extra in zip(lines, ("notebooks", "export", "logs")):
        assert "is not installed" in line and line.endswith(f'pip install "ect_nb[{extra}]"')
