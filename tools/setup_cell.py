"""The one set-up cell of all pages, and that of a student's copy.

`python tools/setup_cell.py` writes it into every page that has one; a test holds them equal. It is
right on a fresh runtime of Colab or Kaggle, after a restart, for a second page of a session,
without a network, without data, and for a clone or copy on a laptop: it looks for the package in
this folder, in those above, and in the clones just below; only then it fetches. It upgrades
nothing: of the packages a page needs only the missing ones are installed, without what these would
like to have. It lets Colab show the panels."""

import json
import re
from house import pages

FIND = """_os, _sys, _sh = (__import__(name) for name in ("os", "sys", "subprocess"))
_find = __import__("importlib.util").util.find_spec
_parts = _os.getcwd().split(_os.sep)
_above = [_os.sep.join(_parts[:i]) or _os.sep for i in range(1, len(_parts) + 1)]
_has = lambda folder: _os.path.isfile(_os.path.join(folder, "ect_nb", "course", "check.py"))
_near = [p for up in _above[::-1] for p in (up, _os.path.join(up, "ect_nb")) if _has(p)]
if not getattr(_find("ect_nb"), "origin", None) and _near:
    _sys.path.insert(0, _near[0])
    _sys.modules.pop("ect_nb", None)"""
FETCH = """elif not getattr(_find("ect_nb"), "origin", None):
    _url = "git clone https://github.com/ect-nb/ect_nb"
    if _sh.call([*_url.split(), "ect_nb", "-q", "--depth=1"], stderr=-3) or not _has("ect_nb"):
        raise SystemExit("ect_nb is not here and could not be fetched: is there a network?")
    _sys.path.insert(0, _os.path.abspath("ect_nb"))
    _sys.modules.pop("ect_nb", None)"""
NO_FETCH = """elif not getattr(_find("ect_nb"), "origin", None):
    raise SystemExit("Your copy's folder ect_nb is not near: unpack the zip, open this in it.")"""
REST = """_want = "safetensors filelock fastcore anywidget".split()
if _missing := [p for p in _want if not _find(p)]:
    if _sh.call([_sys.executable, "-m", "pip", "install", "-q", "--no-deps", *_missing]):
        raise SystemExit(f"{', '.join(_missing)} could not be installed: is there a network?")
if "google.colab" in _sys.modules:
    __import__("google.colab.output").colab.output.enable_custom_widget_manager()"""
FIRST = "#| hide\n# Finds the kit, or fetches it where it is missing (Colab, Kaggle).\n"
ONE = "\n".join([FIRST + FIND, FETCH, REST])
USE = "from ect_nb.course.hand_in import predict, report"
OWN = FIND.replace('not getattr(_find("ect_nb"), "origin", None) and _near', "_near")
STUDENT = "\n".join(["#| hide\n# Finds the kit in this copy.\n" + OWN, NO_FETCH, REST, USE])
OLD = re.compile(r"#\|\s*hide\n# (On Colab|Finds the kit)")


def is_setup(cell):
    return cell["cell_type"] == "code" and bool(OLD.match("".join(cell["source"])))


def main():
    for path in pages():
        nb = json.loads(path.read_text(encoding="utf-8"))
        mine = [c for c in nb["cells"] if is_setup(c)]
        for cell in mine:
            cell["source"] = ONE.splitlines(True)
        text = json.dumps(nb, indent=1, ensure_ascii=False) + "\n"
        if mine and text != path.read_text(encoding="utf-8"):
            path.write_text(text, encoding="utf-8")
            print("setup_cell:", path.name)


if __name__ == "__main__":
    main()
