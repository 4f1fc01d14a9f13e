"""Run notebooks top to bottom, each in a fresh kernel: all of nbs/ in order, or the named ones.

The output of a cell with the line `#| tour-table` (nbdev-clean keeps comments, but not tags) is
printed at the end."""

import argparse
import ast
import base64
import copy
import nbformat
import os
import re
import sys
import time
from house import page, pages
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from pathlib import Path

VIEW = "application/vnd.jupyter.widget-view+json"
PAGE = """{% extends 'lab/index.html.j2' %}{% block extra_css %}<style>
.jp-InputArea-editor, .jp-OutputArea-output { overflow-x: auto }
img { max-width: 100%; height: auto }
</style>{% endblock %}{% block data_png %}<div class="jp-RenderedImage jp-OutputArea-output">
<img alt="{{ output | get_metadata('alt', 'image/png') | escape_html }}"
{%- set width = output | get_metadata('width', 'image/png') %}
{%- if width %} width="{{ width }}"{% endif %}
 src="data:image/png;base64,{{ output.data['image/png'] | replace('\n', '') }}">
{%- if output | get_metadata('still', 'image/png') %}<p><em>A still picture of a panel:
in the notebook its controls move.</em></p>{% endif -%}
</div>{% endblock %}"""


def execute(path, seed=None, sharp=1):
    """The notebook at `path`, run from its own folder, with `SEED = 0` replaced if a `seed` is
    given, its pictures `sharp` times as fine as they are shown, and a counter where someone is
    watching."""
    nb, start = nbformat.read(path, 4), time.time()
    environment = os.environ | {"ECT_NB_SHARP": str(sharp)}
    if seed is not None:
        for cell in nb.cells:
            cell.source = re.sub(r"^SEED = 0\b", f"SEED = {seed}", cell.source, flags=re.M)

    def count(cell, cell_index, **_):
        if sys.stderr.isatty():
            print(
                f"\r{path.stem}: cell {cell_index + 1} of {len(nb.cells)},"
                f" {time.time() - start:.0f} s ",
                end="",
                file=sys.stderr,
                flush=True,
            )

    NotebookClient(
        nb,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_start=count,
        store_widget_state=False,
        extra_arguments=["--IPKernelApp.log_level=40"],
    ).execute(env=environment)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    return nb


def outputs(nb):
    return ((i, o) for i, c in enumerate(nb.cells) if c.cell_type == "code" for o in c.outputs)


def strip_widgets(nb, mark=False):
    """Drop what needs a live kernel: views of widgets, and outputs that are nothing else.

    The picture that stands in for a panel stays as a picture, with the page of a panel that lives
    without a kernel; with `mark` the metadata of the others say that it is one."""
    for cell in nb.cells:
        for out in cell.get("outputs", []):
            data = out.get("data", {})
            if data.pop(VIEW, None) and set(data) <= {"text/plain"}:
                data.clear()
            if "ect-living" in data.get("text/html", ""):
                data["text/html"] = re.sub(r"<style>.*?</style>", "", data["text/html"], count=1)
                data["text/html"] = re.sub(r" ect-still-\w+", "", data["text/html"])
                continue
            if "ect-still" not in data.get("text/html", ""):
                continue
            del data["text/html"]
            if mark:
                out.metadata["image/png"]["still"] = True
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if "data" not in o or o.data]
    nb.metadata.pop("widgets", None)
    return nb


def save(nb, path):
    "Store the notebook, cleaned as nbdev cleans it, whole or not at all."
    from nbdev.clean import nbdev_clean

    part = path.with_name(f".{path.stem}.part.ipynb")
    nbformat.write(nb, part)
    nbdev_clean(fname=part)
    os.replace(part, path)


def plumbing(cell):
    "Whether a cell is there for the machine: set-up, the module's name, imports, lists of names."
    if cell.cell_type != "code" or cell.outputs:
        return False
    if re.match(r"#\|\s*(hide|default_exp)\b", cell.source):
        return True
    body = "\n".join(l for l in cell.source.splitlines() if not l.startswith("#|"))
    try:
        return all(
            isinstance(s, (ast.Import, ast.ImportFrom)) or ast.unparse(s).startswith("_all_ =")
            for s in ast.parse(body).body
        )
    except SyntaxError:
        return False


def printed(nb):
    """A copy of the notebook to be read as a page: plumbing left out, links between notebooks led
    to their pages."""
    nb = copy.deepcopy(nb)
    nb.cells = [c for c in nb.cells if not plumbing(c)]
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\((\w+)\.ipynb(#[\w-]*)?\)", r"](\1.html\2)", cell.source)
    return nb


def title(nb, otherwise):
    "The first heading of a notebook."
    found = (re.search(r"^# (.+)$", c.source, re.M) for c in nb.cells if c.cell_type == "markdown")
    return next((m[1] for m in found if m), otherwise)


def write_html(nb, path):
    """Write the notebook as one page, with the alternative texts that nbconvert's own template
    leaves out."""
    from nbconvert import HTMLExporter

    resources = {"metadata": {"path": str(path.parent), "name": title(nb, path.stem)}}
    html, _ = HTMLExporter(
        raw_template=PAGE, embed_images=True, language_code="en"
    ).from_notebook_node(printed(nb), resources=resources)
    path.write_text(html, encoding="utf-8")


def write_pictures(nb, folder, stem):
    for k, (i, out) in enumerate(o for o in outputs(nb) if "image/png" in o[1].get("data", {})):
        (folder / f"{stem}_{k + 1:02d}.png").write_bytes(base64.b64decode(out.data["image/png"]))


def table(nb):
    "Text of the outputs of the cells marked `#| tour-table`."
    marked = [o for i, o in outputs(nb) if "#| tour-table" in nb.cells[i].source.splitlines()]
    return "\n".join(
        o.get("text") or o.data.get("text/markdown") or o.data.get("text/plain", "")
        for o in marked
        if "text" in o or "data" in o
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", help="notebooks, such as 00_sixty_seconds (default: all)"
    )
    parser.add_argument("--save", action="store_true", help="store the outputs in nbs/")
    parser.add_argument(
        "--html", type=Path, metavar="DIR", help="leave executed copies as HTML in DIR"
    )
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="leave the pictures as PNG files in DIR"
    )
    parser.add_argument(
        "--seed",
        type=int,
        help=(
            "run with another SEED than 0, to see whether what a page says still holds (not with"
            " --save)"
        ),
    )
    args = parser.parse_args()
    if args.save and args.seed is not None:
        sys.exit("run_notebooks: stored outputs are those of SEED = 0: leave out --seed or --save.")
    paths = [page(n) for n in args.names] or pages()
    missing = [n for n, p in zip(args.names, paths) if p is None]
    if missing:
        sys.exit(
            f"run_notebooks: there is no page {', '.join(missing)} in nbs/; give names such as"
            " 00_sixty_seconds."
        )
    for folder in filter(None, (args.html, args.pictures)):
        folder.mkdir(parents=True, exist_ok=True)
    tables, failed = [], []
    for path in paths:
        start = time.time()
        sharp = 2 if args.html and not args.save else 1  # what is stored stays small
        try:
            nb = strip_widgets(
                execute(path, args.seed, sharp), mark=bool(args.html) and not args.save
            )
        except CellExecutionError as error:
            failed.append(path.stem)
            print(f"{path.stem}: stopped after {time.time() - start:.0f} s\n{error}", flush=True)
            continue
        print(f"{path.stem}: {time.time() - start:.0f} s", flush=True)
        if args.save:
            save(nb, path)
        if args.html:
            write_html(nb, args.html / f"{path.stem}.html")
            print("page:", args.html / f"{path.stem}.html")
        if args.pictures:
            write_pictures(nb, args.pictures, path.stem)
            print("pictures:", args.pictures / f"{path.stem}_*.png")
        tables.append(table(nb))
    print("\n".join(t for t in tables if t))
    if failed:
        sys.exit(
            f"run_notebooks: {', '.join(failed)} did not run to the end; the error stands above."
        )


if __name__ == "__main__":
    main()
