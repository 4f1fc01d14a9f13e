"""A student's environment, in one command and without make, git or administrator rights:

    python tools/students.py              # beside the notebooks: makes .venv, from the network
    python tools/students.py --stick DIR  # the same from a folder of wheels, without any network
    python tools/students.py --gather DIR # for the teacher: fill such a folder (make stick)

On Windows `py tools/students.py`. Standard library only. It installs what the lessons need, with a
build of torch for the processor where no GPU is seen, and nothing that only contributors need.

Only on Linux does the registry's torch bring CUDA; the smaller builds lie elsewhere, and uv, which
pip installs, knows where. ECT_NB_TORCH, an address or a folder of wheels, names another place."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDS = (
    "torch>=2.6",
    "numpy>=1.26",
    "scipy>=1.12",
    "safetensors>=0.4.3",
    "filelock>=3.13",
    "tqdm>=4.66",
    "fastcore>=1.7",
    "matplotlib>=3.8",
    "pillow>=10",
    "plotly>=5.24",
    "ipython>=8",
    "ipykernel>=6.17",
    "ipywidgets>=7.7",
    "anywidget>=0.9",
    "jupyterlab>=4.2",
)
TORCH = "torch>=2.6"
SYSTEMS = {
    "linux": ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"],
    "windows": ["win_amd64"],
    "macos": ["macosx_14_0_arm64", "macosx_12_0_arm64", "macosx_11_0_arm64"],
}
CHOSEN = {"linux": "x86_64-manylinux_2_28", "windows": "windows", "macos": "macos"}
LEAST, MOST = (3, 11), (3, 14)


def stop(text):
    sys.exit("students: " + text)


def python_of(venv, windows=None):
    "The Python of an environment: Scripts/python.exe on Windows, bin/python elsewhere."
    windows = os.name == "nt" if windows is None else windows
    return Path(venv) / ("Scripts/python.exe" if windows else "bin/python")


def has_gpu():
    "Whether an NVIDIA driver answers."
    tool = shutil.which("nvidia-smi")
    try:
        return bool(tool) and subprocess.call([tool], stdout=-3, stderr=-3, timeout=20) == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def needs_cpu_build(platform=sys.platform, gpu=None):
    "Whether torch must be told to come without CUDA: on Linux, where no GPU is seen."
    return platform == "linux" and not (has_gpu() if gpu is None else gpu)


def sources(stick):
    "The arguments of pip that say where packages come from."
    return ["--no-index", "--find-links", str(stick)] if stick else []


def place_of(where):
    "The arguments of pip for a place, an address or a folder, that alone is asked."
    if re.match(r"\w+://", where):
        return ["--index-url", where]
    return ["--no-index", "--find-links", where]


def uv_of(python):
    "The command of uv: on the PATH, else in this environment, where pip puts it; None without it."
    if found := shutil.which("uv"):
        return [found]
    install = [str(python), "-m", "pip", "install", "--quiet", "uv"]
    return [str(python), "-m", "uv"] if subprocess.call(install) == 0 else None


def cpu_torch(python):
    "Install a build of torch without CUDA, or say in a line that the usual one will come."
    where = os.environ.get("ECT_NB_TORCH")
    if where:
        command = [str(python), "-m", "pip", "install", "--no-deps", *place_of(where), TORCH]
    elif uv := uv_of(python):
        command = [*uv, "pip", "install", "--python", str(python), "--torch-backend", "cpu", TORCH]
    if not (where or uv) or subprocess.call(command):
        print(
            "students: no build of torch without CUDA could be had (see above); the usual one, some"
            " GB larger, is taken. ECT_NB_TORCH names a place that has one, or take the stick."
        )


def pip(python, *what):
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *what]
    if subprocess.call(command):
        stop(
            "the packages could not be installed (see above). Without a network ask your teacher "
            "for the stick and give --stick FOLDER."
        )


def size(folder):
    "Megabytes of the files below a folder."
    return sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()) / 1e6


def make(venv, stick=None):
    "Make the environment `venv`; returns its Python."
    if not LEAST <= sys.version_info[:2] <= MOST:
        stop(
            "this is Python {}.{}; ect_nb needs 3.11 to 3.14: install one of them for yourself "
            "alone (the installer asks; no administrator is needed) and run this again with "
            "it.".format(*sys.version_info)
        )
    if stick and not Path(stick).is_dir():
        stop(f"there is no folder {stick}: name the folder of wheels on the stick.")
    python, cpu = python_of(venv), needs_cpu_build()
    if not python.exists() and subprocess.call([sys.executable, "-m", "venv", str(venv)]):
        stop(
            f"{venv} could not be made: is there room on the disk? (Debian and Ubuntu also need "
            "python3-venv; a Python from elsewhere, uv's say, needs nothing.)"
        )
    if cpu and not stick:
        cpu_torch(python)
    pip(python, *sources(stick), *NEEDS)
    (Path(venv) / "ect_nb.txt").write_text("students\n", encoding="utf-8")
    return python


def place(python, folder):
    "Let Python find the package beside the notebooks: a line in its own site-packages."
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = subprocess.check_output([str(python), "-c", ask], text=True).strip()
    (Path(site) / "ect_nb_here.pth").write_text(str(folder) + "\n", encoding="utf-8")


def cpu_place():
    "The place of builds without CUDA: ECT_NB_TORCH, else what uv says; None if nobody knows."
    if where := os.environ.get("ECT_NB_TORCH"):
        return where
    compile_ = ["pip", "compile", "-", "--no-deps", "--torch-backend", "cpu"]
    if uv := uv_of(sys.executable):
        command = [*uv, *compile_, "--emit-index-annotation", "--no-header", "--quiet"]
        said = subprocess.run(command, input=TORCH, capture_output=True, text=True).stdout
        return next(iter(re.findall(r"# from (\S+)", said)), None)


def pins(system, version, *more):
    """The packages of a system and Python, one exact version a line: pip would ask the machine it
    runs on which it needs, and uv asks the one they are for."""
    uv = uv_of(sys.executable) or stop("choosing wheels for other systems needs uv: pip install uv")
    command = [*uv, "pip", "compile", "-", "--quiet", "--no-header", "--no-annotate", *more]
    command += ["--python-platform", CHOSEN[system], "--python-version", version]
    command += ["--only-binary", ":all:"]
    done = subprocess.run(command, input="\n".join(NEEDS), stdout=subprocess.PIPE, text=True)
    return done.stdout.split()


def gather(folder, system, version):
    "Download the wheels of one system and Python into `folder`; True if all are there."
    where = [part for p in SYSTEMS[system] for part in ("--platform", p)]
    command = [sys.executable, "-m", "pip", "download", "--only-binary=:all:", "-d", str(folder)]
    command += [*where, "--python-version", version, "--implementation", "cp", "--no-deps"]
    more = []
    if system == "linux":
        place = cpu_place()
        if not place or subprocess.call([*command, *place_of(place), TORCH]):
            return False
        more = ["--find-links", str(folder), "--constraint", str(only(folder))]
    chosen = [pin for pin in pins(system, version, *more) if not more or pin[:7] != "torch=="]
    return bool(chosen) and subprocess.call([*command, *chosen]) == 0


def only(folder):
    "A file that says which torch the folder has."
    file = Path(folder) / "torch.txt"
    file.write_text("torch==" + torch_in(folder) + "\n", encoding="utf-8")
    return file


def torch_in(folder):
    "The version of the wheel of torch in a folder."
    wheel = sorted(Path(folder).glob("torch-*.whl"))[-1]
    return wheel.name.split("-")[1].replace("%2B", "+")


def fill(folder, version, systems):
    "A stick: wheels for each system, and this script with the notebooks beside them."
    folder = Path(folder)
    done = [s for s in systems if gather(folder / "wheels" / s, s, version)]
    for missing in sorted(set(systems) - set(done)):
        print(f"students: the wheels for {missing} could not be had (see above).")
    if not done:
        stop("nothing was gathered.")
    print(f"students: {size(folder):.0f} MB in {folder}, for {', '.join(done)}, Python {version}")
    print("students: put student.zip beside them (make class writes it in out/class)")


def main(args=None):
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("--stick", help="a folder of wheels; nothing is downloaded")
    a.add_argument("--gather", help="fill this folder with wheels, for a stick")
    a.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    a.add_argument("--python", default="3.12", help="version the wheels of a stick are for")
    a.add_argument("--venv", default=str(ROOT / ".venv"))
    a = a.parse_args(args)
    if a.gather:
        return fill(a.gather, a.python, a.systems)
    python = make(a.venv, a.stick)
    place(python, ROOT)
    if subprocess.call([str(python), "-c", "import torch, ect_nb"], cwd=str(ROOT)):
        stop("torch or ect_nb does not load (see above): delete .venv and run this again.")
    print(f"students: done, {size(a.venv):.0f} MB in {a.venv}. Open the lessons with\n")
    print(f"    {python} -m jupyterlab {Path('nbs') / 'lessons'}\n")


if __name__ == "__main__":
    main()
