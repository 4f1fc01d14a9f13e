"""Open JupyterLab on 00_sixty_seconds; as root and without a display too.

Further arguments go to JupyterLab."""

import os
import subprocess
import sys
import webbrowser
from pathlib import Path


def has_browser():
    "True where a graphical browser can open."
    if sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        return False
    try:
        return bool(webbrowser.get())
    except webbrowser.Error:
        return False


def arguments(root, uid, browser):
    "The command that starts JupyterLab for user `uid`."
    args = [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--ServerApp.root_dir={root}",
        "--LabApp.default_url=/lab/tree/nbs/lessons/00_sixty_seconds.ipynb",
        "--ServerApp.log_level=WARN",
        "--LabApp.log_level=WARN",
    ]
    return args + ["--allow-root"] * (uid == 0) + ["--no-browser"] * (not browser)


if __name__ == "__main__":
    browser = has_browser()
    where = "in your browser" if browser else "at the address below (there is no display here)"
    print(
        f"lab: opening nbs/lessons/00_sixty_seconds.ipynb {where}; Ctrl-C twice ends it", flush=True
    )
    more = [word for word in sys.argv[1:] if word != "--projector"]
    if len(more) < len(sys.argv) - 1:
        os.environ["ECT_NB_SHARP"] = "2"  # type of 9 points is then 24 sharp pixels at 200 %
        print("lab: for a projector, pictures twice as fine: set the browser to 200 %", flush=True)
    uid = os.getuid() if hasattr(os, "getuid") else -1  # Windows has none
    command = arguments(Path(__file__).resolve().parent.parent, uid, browser) + more
    if os.name == "nt":
        sys.exit(subprocess.call(command))
    os.execv(command[0], command)
