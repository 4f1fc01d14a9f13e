"""Make .venv and install ect_nb in it from requirements.lock; instant when nothing has changed.

Standard library only, and readable by any Python from 3.6 on, so that an old one can say which is
needed."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV, LOCK = ROOT / ".venv", ROOT / "requirements.lock"
PROGRAMS, DOT_EXE = ("Scripts", ".exe") if os.name == "nt" else ("bin", "")
PYTHON, STAMP = VENV / PROGRAMS / ("python" + DOT_EXE), VENV / "ect_nb.stamp"
SUPPORTED = (3, 11), (3, 12), (3, 13), (3, 14)
QUIET = [] if sys.stderr.isatty() else ["--quiet"]


def say(text):
    print("setup: " + text, flush=True)


def stop(text):
    sys.exit("setup: " + text)


def run(*command, env=None):
    "True if the command could run and ended well."
    try:
        return subprocess.call([str(c) for c in command], cwd=str(ROOT), env=env) == 0
    except OSError:
        return False


def answer(*command):
    "What the command prints, or '' if it cannot run."
    try:
        return subprocess.run(
            [str(c) for c in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            universal_newlines=True,
        ).stdout.strip()
    except OSError:
        return ""


def version(python):
    "(major, minor) of the Python at this path, () if it does not run."
    return tuple(map(int, answer(python, "-c", "import sys; print(*sys.version_info[:2])").split()))


def find_python():
    """A Python that the kit supports: the one running this file, else the first on the PATH; None
    if there is none."""
    for name in (
        getattr(sys, "_base_executable", sys.executable),
        "python3.12",
        "python3.13",
        "python3.11",
        "python3.14",
        "python3",
        "python",
    ):
        path = shutil.which(name)
        if path and version(path) in SUPPORTED:
            return path


def find_uv():
    "A uv that runs, on the PATH or in .venv, or None."
    return next(
        (
            u
            for u in (shutil.which("uv"), VENV / PROGRAMS / ("uv" + DOT_EXE))
            if u and answer(u, "--version")
        ),
        None,
    )


def create(python, uv):
    "Make .venv with the standard library's venv, or with uv where Python or its venv is lacking."
    shutil.rmtree(str(VENV), ignore_errors=True)
    say(
        "making .venv with " + (python or "a Python that uv finds")
        if python or uv
        else "looking for Python"
    )
    if python and answer(python, "-c", "import ensurepip, venv; print('yes')"):
        made = run(python, "-m", "venv", VENV)
    else:
        made = uv and run(uv, "venv", "--quiet", "--python", python or ">=3.11,<3.15", VENV)
    if made:
        return
    if python:
        stop(
            f"{python} could not make .venv: install its venv package (Debian and Ubuntu: apt-get"
            " install python3-venv), see that the disk has room, and run make again."
        )
    stop(
        "ect_nb needs Python 3.11 to 3.14 and none was found: install one (Debian and Ubuntu:"
        " apt-get install python3 python3-venv) and run make again."
    )


def plain_pip():
    """The environment without pip's configuration files and extra sources: one that offers another
    build of torch would break torchvision."""
    env = {
        k: v for k, v in os.environ.items() if k not in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL")
    }
    return {**env, "PIP_CONFIG_FILE": os.devnull}


def install(*what):
    """Install with uv, else with pip from its default source, else with pip as this machine
    configures it. Bytecode is written now: importing torch without it takes three times as long."""
    pip = [PYTHON, "-m", "pip", "install", "--retries", "1", *QUIET]
    if not find_uv():
        answer(*pip, "uv")
    uv = find_uv()
    return (
        (uv and run(uv, "pip", "install", "--compile-bytecode", *QUIET, "--python", PYTHON, *what))
        or run(*pip, *what, env=plain_pip())
        or run(*pip, *what)
    )


def main():
    stamp = [
        str(ROOT),
        hashlib.sha256(LOCK.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest(),
    ]
    known = (
        STAMP.read_text(encoding="utf-8").splitlines() if STAMP.exists() and PYTHON.exists() else []
    )
    if known == stamp:
        return
    moved = known and known[0] != stamp[0]  # an environment works only where it was made
    whole = version(PYTHON) in SUPPORTED and (find_uv() or answer(PYTHON, "-m", "pip", "--version"))
    if moved or not whole:
        create(find_python(), find_uv())
    say(
        f"installing {len(LOCK.read_bytes().splitlines())} tested packages from requirements.lock"
        " (the first time this downloads a few GB)"
    )
    if not install("-r", LOCK):
        stop(
            "the packages could not be installed (see above): check that the package registry can"
            " be reached from here (network, proxy) and run make again."
        )
    say("installing ect_nb itself, so that changes to it count at once")
    if not install("--no-deps", "--no-build-isolation", "-e", ROOT):
        stop(
            "ect_nb itself could not be installed (see above): mend pyproject.toml or delete .venv,"
            " and run make again."
        )
    say("checking that torch and torchvision load together")
    if not run(PYTHON, "-c", "import torch, torchvision, ect_nb"):
        stop(
            "torch and torchvision do not load together (see above): remove find-links and"
            " extra-index-url from pip's configuration (pip config list shows them), delete .venv"
            " and run make again."
        )
    STAMP.write_text("\n".join(stamp), encoding="utf-8")
    say("done")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        stop("interrupted; run make again to go on.")
