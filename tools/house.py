"""Where the pages stand: the index and three houses under nbs/, each read in its own order."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOUSES = "lessons", "workshop", "inside"


def pages(root=ROOT, house=None):
    "Paths of the notebooks of one house, or of all with the index first."
    nbs = root / "nbs"
    if house:
        return sorted((nbs / house).glob("[!._]*.ipynb"))
    return [*sorted(nbs.glob("[!._]*.ipynb")), *(p for h in HOUSES for p in pages(root, h))]


def page(name, root=ROOT):
    "The path of the page `name` (07_sampling, lessons/07_sampling); None if there is none."
    return next((p for p in pages(root) if name in (p.stem, f"{p.parent.name}/{p.stem}")), None)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))
