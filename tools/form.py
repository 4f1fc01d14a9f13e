"""The form of stored code: ruff at 100 columns over notebooks, tools, tests and bench, imports
sorted,
nothing unused.

`python tools/form.py` writes it; the gate compares."""

import json
import shutil
import subprocess
import sys
import tempfile
from house import ROOT
from pathlib import Path

FOLDERS = "nbs", "tools", "tests", "bench"


def marked(path, old, new):
    "Lines of code cells that begin with `old` begin with `new`: ruff leaves a comment #: as it is."
    nb = json.loads(path.read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell["source"] = [
                new + line[len(old) :] if line.startswith(old) else line for line in cell["source"]
            ]
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def ruff(folder, *arguments):
    command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "--quiet", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.stdout + done.stderr


def formed(root):
    "({path: text} of the files whose form is another, what ruff cannot mend by itself)."
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)
        shutil.copy(root / "pyproject.toml", copy)
        for folder in FOLDERS:
            if (root / folder).exists():
                skip = shutil.ignore_patterns(".*", "__pycache__", "images")
                shutil.copytree(root / folder, copy / folder, ignore=skip)
        pages = sorted((copy / "nbs").rglob("*.ipynb"))
        for page in pages:
            marked(page, "#|", "#:|")
        complaints = ruff(copy, "check", "--fix", "--output-format=concise") + ruff(copy, "format")
        for page in pages:
            marked(page, "#:|", "#|")
        now = {
            p.relative_to(copy): p.read_text(encoding="utf-8")
            for p in [*pages, *copy.rglob("*.py")]
        }
    return {
        p: text for p, text in now.items() if (root / p).read_text(encoding="utf-8") != text
    }, complaints


if __name__ == "__main__":
    changed, complaints = formed(ROOT)
    for path, text in changed.items():
        (ROOT / path).write_text(text, encoding="utf-8")
        print("form:", path)
    print(complaints, end="")
