"""Write requirements.lock: the newest versions that fit pyproject.toml, for Python 3.11 to 3.14 on
every system, as names, versions and markers."""

import setup
import subprocess
import sys

uv = setup.find_uv()
if not uv:
    sys.exit("lock: this needs uv; install it (pip install uv) and run make lock again.")
sys.exit(
    subprocess.call(
        [
            str(uv),
            "pip",
            "compile",
            "pyproject.toml",
            "--quiet",
            "--upgrade",
            "--universal",
            "--python-version",
            "3.11",
            "--extra",
            "dev",
            "--no-emit-package",
            "ect_nb",
            "--no-header",
            "--no-annotate",
            "--no-emit-index-url",
            "--no-emit-find-links",
            "--output-file",
            str(setup.LOCK),
        ],
        cwd=str(setup.ROOT),
    )
)
