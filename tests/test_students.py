"""A student's environment and the tools around it on systems that are not here: a Scripts/ layout,
an 8-bit locale, no os.getuid; all simulated."""

import os
import pytest
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import students


def test_the_python_of_an_environment_is_found_in_both_layouts():
    assert students.python_of("x", windows=True) == Path("x/Scripts/python.exe")
    assert students.python_of("x", windows=False) == Path("x/bin/python")


@pytest.mark.parametrize(
    "platform, gpu, cpu_build",
    [
        ("linux", False, True),
        ("linux", True, False),
        ("win32", False, False),
        ("darwin", False, False),
    ],
)
def test_torch_comes_without_cuda_where_no_gpu_is_seen(platform, gpu, cpu_build):
    assert students.needs_cpu_build(platform, gpu) is cpu_build


def test_from_a_stick_no_network_is_asked():
    assert students.sources("wheels") == ["--no-index", "--find-links", "wheels"]
    assert students.sources(None) == []
    assert students.place_of("a folder")[0] == "--no-index"
    assert students.place_of("https://x/cpu") == ["--index-url", "https://x/cpu"]


def test_students_need_what_the_kit_needs_and_nothing_of_contributors():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    known = sum((extras[k] for k in ("notebooks", "metrics", "lab")), project["dependencies"])
    ours = {re.split("[<>=]", n)[0]: n for n in students.NEEDS}
    for name, need in ours.items():
        assert name == "ipykernel" or need in known, need
    contributors = {re.split("[<>=]", n)[0] for n in extras["dev"]}
    assert not set(ours) & (contributors - {"ect_nb"})
    assert {re.split("[<>=]", n)[0] for n in project["dependencies"]} <= set(ours)


@pytest.fixture
def asked(monkeypatch):
    "The commands that were run; none of them really is."
    asked = []
    monkeypatch.setattr(students.subprocess, "call", lambda c, **k: asked.append(c) or 0)
    monkeypatch.setattr(students, "needs_cpu_build", lambda: True)
    monkeypatch.setattr(students.shutil, "which", lambda name: None)
    monkeypatch.delenv("ECT_NB_TORCH", raising=False)
    return asked


def test_a_build_without_cuda_is_asked_of_uv_which_pip_installs(asked, tmp_path):
    students.make(tmp_path)
    python = str(students.python_of(tmp_path))
    assert asked[0][1:3] == ["-m", "venv"]
    assert asked[1] == [python, "-m", "pip", "install", "--quiet", "uv"]
    want = ["-m", "uv", "pip", "install", "--python", python, "--torch-backend", "cpu"]
    assert asked[2] == [python, *want, "torch>=2.6"]
    assert asked[3][3] == "install" and "jupyterlab>=4.2" in asked[3] and len(asked) == 4


def test_another_place_for_torch_is_asked_alone(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("ECT_NB_TORCH", str(tmp_path / "wheels"))
    students.make(tmp_path)
    assert asked[1][3:] == [
        *("install", "--no-deps", "--no-index", "--find-links"),
        *(str(tmp_path / "wheels"), "torch>=2.6"),
    ]


def test_without_such_a_build_the_usual_one_is_taken_and_said(asked, tmp_path, monkeypatch, capsys):
    def call(command, **k):
        asked.append(command)
        return int("uv" in command)

    monkeypatch.setattr(students.subprocess, "call", call)
    students.make(tmp_path)
    assert "some GB larger" in capsys.readouterr().out.replace("\n", " ")
    assert "jupyterlab>=4.2" in asked[-1]


def test_from_a_stick_one_command_and_a_failure_is_a_sentence(asked, tmp_path, monkeypatch):
    (tmp_path / "wheels").mkdir()
    students.make(tmp_path, tmp_path / "wheels")
    assert len(asked) == 2 and "--no-index" in asked[1]
    with pytest.raises(SystemExit, match="no folder"):
        students.make(tmp_path, tmp_path / "no_stick")
    monkeypatch.setattr(students.subprocess, "call", lambda c, **k: 1)
    with pytest.raises(SystemExit, match="could not be"):
        students.make(tmp_path / "w")


def test_a_stick_takes_torch_for_linux_from_that_place_and_the_rest_from_pip(
    asked, tmp_path, monkeypatch
):
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").write_bytes(b"")
    monkeypatch.setenv("ECT_NB_TORCH", "https://x/cpu")
    told = []

    def run(command, **k):
        told.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="numpy==2.0\ntorch==2.13.0+cpu\n")

    monkeypatch.setattr(students.subprocess, "run", run)
    assert students.gather(tmp_path, "linux", "3.11") and students.gather(tmp_path, "macos", "3.11")
    downloads = [c for c in asked if "download" in c]
    first, rest, mac = downloads
    assert first[-3:] == ["--index-url", "https://x/cpu", "torch>=2.6"]
    assert "numpy==2.0" in rest and "torch==2.13.0+cpu" not in rest and "--index-url" not in rest
    assert "torch==2.13.0+cpu" in mac and "macosx_11_0_arm64" in mac
    assert all("--no-deps" in c for c in downloads)
    assert "x86_64-manylinux_2_28" in told[0] and "macos" in told[1]
    assert (tmp_path / "torch.txt").read_text() == "torch==2.13.0+cpu\n"


def test_uv_is_asked_where_the_builds_without_cuda_lie(asked, monkeypatch):
    said = "torch==2.15.0+cpu\n    # from https://x/cpu\n"
    done = subprocess.CompletedProcess([], 0, stdout=said)
    monkeypatch.setattr(students.subprocess, "run", lambda *a, **k: done)
    assert students.cpu_place() == "https://x/cpu"


def test_an_old_python_is_told_which_is_needed(monkeypatch, tmp_path):
    monkeypatch.setattr(students.sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit, match="3.11 to 3.14"):
        students.make(tmp_path)


def test_the_launcher_runs_where_there_is_no_getuid(monkeypatch):
    told = []
    monkeypatch.delattr(os, "getuid", raising=False)
    monkeypatch.setattr(os, "execv", lambda path, command: told.append(command))
    monkeypatch.setattr(sys, "argv", ["lab.py", "--projector"])
    monkeypatch.setenv("ECT_NB_SHARP", "1")
    runpy.run_path(str(ROOT / "tools" / "lab.py"), run_name="__main__")
    assert "--allow-root" not in told[0] and "--projector" not in told[0]
    assert os.environ["ECT_NB_SHARP"] == "2"


def test_the_tools_read_and_write_under_an_8_bit_locale():
    """No text is read or written in the locale's encoding: every call in tools names its own."""
    for path in (ROOT / "tools").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert ".read_text()" not in text, path.name
        if path.stem.startswith("make_"):
            continue
        for line in re.findall(r"^.*\.write_text\(.*\)$", text, re.M):
            assert "encoding=" in line or 'write_text("")' in line, (path.name, line)


def test_teaching_is_current_and_its_minutes_add_up_under_an_8_bit_locale(tmp_path):
    code = (
        "import sys; sys.path.insert(0, 'tools'); import teaching; s = teaching.plan_file(); "
        "assert not list(teaching.offences(s)), list(teaching.offences(s)); "
        "assert teaching.OUT.read_text(encoding='utf-8') == teaching.text(s), 'make sync'"
    )
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_a_plan_that_does_not_add_up_is_told():
    import teaching

    said = teaching.plan_file()
    said["plan"][0]["block"][0][0] += 1
    said["poll"][0]["heading"] = "No such heading"
    told = "\n".join(teaching.offences(said))
    assert "adds up to 91 minutes" in told and "No such heading" in told


def test_every_heading_of_teaching_stands_between_blank_lines_and_every_link_leads_somewhere():
    text = (ROOT / "TEACHING.md").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "(code)", text, flags=re.S)
    assert not re.findall(r"[^\n]\n#{1,4} .*|^#{1,4} .*\n[^\n]", prose, re.M)
    assert not re.findall(r"\n\n\n", prose)
    for target, heading in re.findall(r"\]\((nbs/[^)#]+)#([^)]+)\)", text):
        nb = (ROOT / target).read_text(encoding="utf-8")
        assert f"## {heading.replace('-', ' ')}" in nb.replace("-", " "), (target, heading)


def test_every_day_of_the_week_has_ninety_minutes():
    import teaching

    days = {}
    for minutes, _, _, words in teaching.plan_file()["plan"][2]["block"]:
        days[words[:5]] = days.get(words[:5], 0) + minutes
    assert days == {f"Day {k}": 90 for k in range(1, 6)}


def test_the_key_of_the_poll_on_steps_and_budget_is_what_the_atlas_says():
    from ect_nb.measure.atlas import Atlas
    from ect_nb.show.tradeoff import setting

    atlas = Atlas.load()
    for run in atlas.family(atlas.runs["fashion-ect-seed0"]):
        far = lambda kimg, nfe, run=run: setting(run, kimg, nfe).value
        for kimg in (1, 2, 4, 8):
            assert far(kimg, 2) < far(2 * kimg, 1)
        assert 55 < far(4, 1) < 65 and 15 < far(4, 2) < 18 and 29 < far(8, 1) < 36
        assert max(far(8, 2) - far(8, 4), far(8, 2) - far(16, 2)) < 2
