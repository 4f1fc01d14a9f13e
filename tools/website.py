"""The site: every page of nbs/, the Lab, a model in the page, the explorer and the reference of the
package, by Sphinx, in out/site/html. Nothing is run and nothing is fetched, except that the
packages of npm that the page with the model needs are fetched once and kept; without them the
site is built without that page.

`python tools/website.py [--into DIR] [--only NAME ...]`, or `make site`; then
`python -m http.server -d out/site/html`."""

import address
import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from house import HOUSES, ROOT, pages, read
from pathlib import Path

SITE, OUT = ROOT / "site", ROOT / "out" / "site"
ORT = "onnxruntime-web@1.30.0"
ORT_FILES = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm", "ort-wasm-simd-threaded.mjs"
MATHJAX = "tex-chtml.js", "output", "input", "a11y"
BESIDE = {
    "TEACHING.md": "teaching.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "bench/study.md": "study.md",
}
BADGE = re.compile(r"\[!\[Open In Colab\]\([^)]*\)\]\(([^)]*)\)")
HIDDEN = re.compile(r"#\|\s*(hide|default_exp)\b")


def say(text):
    print("site: " + text, flush=True)


# For Sphinx


def slug(title):
    "The anchor of a heading as Jupyter writes it."
    return title.strip().replace(" ", "-")


def docstring(app, what, name, thing, options, lines):
    "Docstrings are plain English with `names`; in reStructuredText names take two backticks."
    named = lambda m: f"``{' '.join(m[1].split())}``" + "\\ " * bool(m[2])  # `Setting`s
    text = re.sub(r"(?<!`)`([^`]+)`(?!`)(?=(\w?))", named, "\n".join(lines))
    parts = re.split(r"(``[^`]+``)", text)
    parts[::2] = [re.sub(r"([*|]|_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


# From a notebook to a page


def relative(file, folder):
    "The way from `folder` to `file`, as a link."
    return Path(os.path.relpath(file, folder)).as_posix()


def outside(markdown, path, repository, to=None):
    """`markdown` of the file at `path` with links that lead on the site, or to the repository; it
    will stand in the folder `to`, which is its own unless given."""

    def lead(m):
        target, _, anchor = m[2].partition("#")
        if not target or re.match(r"\w+:", target):
            return m[0]
        file, here = Path(os.path.normpath(path.parent / target)), to or path.parent
        known = file.relative_to(ROOT).as_posix()
        if known in BESIDE:
            found = relative(ROOT / "nbs" / BESIDE[known], here)
        elif known == "nbs/index.ipynb":
            found = relative(ROOT / "nbs" / "overview.ipynb", here)
        elif known.startswith("nbs/images"):
            found = relative(ROOT / "nbs" / "_static" / known[4:], here)
        elif known.endswith(".ipynb"):
            found = relative(file, here)
        else:
            found = f"{repository}/{known}"
        return m[1] + found + ("#" + anchor if anchor else "")

    return re.sub(r"(\]\(|src=\"|href=\")([^)\"\s]+)", lead, markdown)


def prose(source, path, repository):
    "A cell of words as the site wants it: its badge without a picture from elsewhere."
    source = BADGE.sub(r"[Open in Colab](\1){.colab}", source)
    return outside(source, path, repository)


def picture(png, metadata, name, folder, up):
    """HTML of a stored picture, as a file of its own in `folder` that is loaded when it comes in
    sight; `up` leads from the page to the top."""
    content = base64.b64decode(png)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    (folder / "pictures" / f"{name}.png").write_bytes(content)
    wide, high = struct.unpack(">II", content[16:24])
    width = int(metadata.get("width", wide))
    alt = metadata.get("alt", "").replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return (
        f'<img loading="lazy" src="{up}_static/pictures/{name}.png" alt="{alt}" width="{width}"'
        f' height="{round(width * high / wide)}">'
    )


def output(out, name, folder, up):
    "An output as the site wants it: living where it can be, a file where it is a picture."
    data = out.get("data", {})
    if "image/png" not in data:
        return out
    png, html = "".join(data["image/png"]), "".join(data.get("text/html", ""))
    if "ect-living" not in html:
        html = picture(png, out["metadata"].get("image/png", {}), name, folder, up)
    return {"output_type": "display_data", "data": {"text/html": html}, "metadata": {}}


def page(path, source, repository):
    "Write the notebook at `path` into the folder `source` of Sphinx."
    nb, kept = read(path), []
    inside = path.relative_to(ROOT / "nbs").with_suffix("")
    name, up = "_".join(inside.parts), "../" * (len(inside.parts) - 1)
    for i, cell in enumerate(nb["cells"]):
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            if HIDDEN.match(text):
                continue
            text = re.sub(r"^#\|.*\n?", "", text, flags=re.M)
            outs = [
                output(o, f"{name}_{i}_{j}", source / "_static", up)
                for j, o in enumerate(cell["outputs"])
            ]
            cell["outputs"] = outs
        else:
            text = prose(text, path, repository)
        kept.append(cell | {"source": text})
    to = source / path.relative_to(ROOT / "nbs")
    to = to.with_stem("overview") if to.parent == source else to
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(json.dumps(nb | {"cells": kept}, ensure_ascii=False), encoding="utf-8")
    return to


# What stands beside the pages


def reference(source, only=None):
    "A page for every module of the package, or for those called `only`."
    (source / "api").mkdir(parents=True, exist_ok=True)
    top, names = ROOT / "ect_nb", []
    for path in sorted(top.rglob("[!_]*.py")):
        name = ".".join(["ect_nb", *path.relative_to(top).with_suffix("").parts])
        if only and path.stem not in only:
            continue
        text = f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n"
        (source / "api" / f"{name}.rst").write_text(text, encoding="utf-8")
        names.append(name)
    listed = "\n".join(f"   {name}" for name in names)
    (source / "api" / "index.rst").write_text(
        "Reference\n=========\n\nEvery module and what it offers, from its own docstrings.\n\n"
        f".. toctree::\n   :maxdepth: 1\n\n{listed}\n",
        encoding="utf-8",
    )


def chain(house):
    "The pages of a house in the order of their **Next**."
    names, after = [p.stem for p in pages(ROOT, house)], {}
    for path in pages(ROOT, house):
        last = "".join(
            [c for c in read(path)["cells"] if c["cell_type"] == "markdown"][-1]["source"]
        )
        found = re.search(r"^\*\*Next:\*\*.*?\]\(([\w./-]+)\.ipynb", last, re.M)
        after[path.stem] = found and Path(found[1]).name
    first = [n for n in names if n not in after.values()]
    walked, name = [], (first or names)[0]
    while name in names and name not in walked:
        walked.append(name)
        name = after[name]
    return walked + [n for n in names if n not in walked]


def contents(source, house, words, have):
    "The front page of one house."
    listed = "\n".join(n for n in chain(house) if n in have)
    (source / house / "index.md").write_text(
        f"# {house.capitalize()}\n\n{words}\n\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n",
        encoding="utf-8",
    )


WORDS = dict(
    lessons="Read in order: 00 to 07, and 08 for what else there is.",
    workshop="What one does with it; each page stands on its own.",
    inside="How it is built, for the curious and for those who add to it.",
)


def fetched(package, inside, names, into):
    """The folder `into` with the files `names` that a `package` of npm has in its folder `inside`,
    fetched once and kept; None where npm cannot."""
    if all((into / name).exists() for name in names):
        return into
    npm = shutil.which("npm")
    if npm is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        quiet = ["--no-audit", "--no-fund", "--ignore-scripts", "--silent", "--prefix", folder]
        soon = ["--fetch-retries=1", "--fetch-timeout=60000"]
        done = subprocess.run([npm, "install", *quiet, *soon, package], capture_output=True)
        have = Path(folder) / "node_modules" / package.split("@")[0] / inside
        if done.returncode or not all((have / name).exists() for name in names):
            return None
        into.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(have / name, into / name)
    return into


def first_picture(name, source, file):
    """What the model `name` at `source` draws from the noise of seed 3, as a sheet of four times
    four in a PNG: the page shows it until someone draws there."""
    import torch
    from ect_nb.diffusion import heun, karras_times
    from ect_nb.io import weights
    from ect_nb.sampling import sample, told
    from PIL import Image

    f = told(weights.load(source))
    z = torch.randn(16, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    x = sample(f, z) if name == "tuned" else heun(f, z, karras_times(18))
    sheet = x.view(4, 4, 28, 28).transpose(1, 2).reshape(112, 112)
    Image.fromarray((127.5 * (sheet + 1)).round().clamp(0, 255).byte().numpy()).save(file)


def models(static, kept):
    "The shipped models as ONNX, for the page that asks them; `kept` holds them for the next time."
    from ect_nb.io import data
    from ect_nb.io.export import export

    (static / "models").mkdir(parents=True, exist_ok=True)
    names = "io/export.py", "networks.py", "diffusion.py", "sampling.py"
    code = [*(ROOT / "ect_nb" / name for name in names), Path(__file__)]
    for name, source in (("diffusion", "classes"), ("tuned", "classes_tuned")):
        source = Path(data.find(f"fashion_mnist_{source}.safetensors"))
        made_of = b"".join(p.read_bytes() for p in [source, *code])
        file = kept / f"{name}-{hashlib.sha256(made_of).hexdigest()[:8]}.onnx"
        picture = file.with_suffix(".png")
        if not (file.exists() and picture.exists()):
            export(source, file)
            first_picture(name, source, picture)
        shutil.copy(file, static / "models" / f"{name}.onnx")
        shutil.copy(picture, static / "models" / f"{name}.png")


def point(atlas, run, walk, row):
    "One record of a run for the explorer: its numbers, its words, the row of its strip."
    from ect_nb.show.explorer import explorer_words
    from ect_nb.show.tradeoff import curve, over_seeds, say, setting

    s = setting(run, *run.recorded[row])
    about = {k: getattr(s, k) for k in ("kimg", "nfe", "value", "low", "high", "ms")}
    about |= dict(row=row, say=say(s))
    if run is not walk:
        there = curve(walk, walk.points[-1][0])[-1]
        seeds = over_seeds(atlas, run, s.kimg, s.nfe)
        words = explorer_words(s, there, walk, seeds)
        about["words"], about["like"] = words.split(f" {say(there)}. ")
    return about


def records(static):
    "The atlas for the explorer: records and words in one file, strips as they are."
    from ect_nb.io import data
    from ect_nb.measure.atlas import Atlas
    from ect_nb.show.tradeoff import everything, measured_as, settings_table, walk_of

    folder, atlas, found = Path(data.find("atlas")), Atlas.load(), {}
    shutil.copytree(folder, static / "atlas", ignore=shutil.ignore_patterns("*.json"))
    sheets = json.loads((folder / "atlas.json").read_text(encoding="utf-8"))["runs"]
    for name, run in atlas.runs.items():
        walk = walk_of(atlas, run)
        rows = everything(run, None if walk is run else walk)
        found[name] = dict(
            points=sorted(
                (point(atlas, run, walk, i) for i in range(len(run.recorded))),
                key=lambda p: (p["kimg"], p["nfe"]),
            ),
            method=run.facts["method"],
            shape=run.facts["shape"],
            sheet=sheets[name]["sheet"],
            walk=walk.name,
            title=f"All {len(rows)} settings as a table ({measured_as(rows[0])})",
            table=settings_table(rows),
        )
    (static / "atlas" / "atlas.json").write_text(json.dumps(found), encoding="utf-8")


def parts_of_pages(static):
    "The Lab as a page of its own that the front page holds, what panels live by, the records."
    from ect_nb.show.lab import write_lab
    from ect_nb.show.living import living_source

    write_lab(static / "lab")
    (static / "living.js").write_text(living_source(), encoding="utf-8")
    records(static)


def lay_out(source, only=None, ort=None):
    "Everything that Sphinx reads, in the folder `source`."
    repository = "{}/blob/{}".format(*address.address(ROOT))
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(SITE, source, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "nbs" / "images", source / "_static" / "images")
    chosen = [p for p in pages(ROOT) if not only or p.stem in only or p.stem == "index"]
    for path in chosen:
        page(path, source, repository)
    have = {p.stem for p in chosen}
    for house in HOUSES:
        (source / house).mkdir(exist_ok=True)
        contents(source, house, WORDS[house], have)
    for file, name in BESIDE.items():
        beside = (ROOT / file).read_text(encoding="utf-8")
        moved = outside(beside, ROOT / file, repository, ROOT / "nbs")
        (source / name).write_text(moved, encoding="utf-8")
    reference(source, only)
    parts_of_pages(source / "_static")
    model_page(source, ort)
    return source


def model_page(source, ort):
    "The page with a model, if ONNX Runtime Web is in the folder `ort`; else one that says so."
    if ort is None:
        say("onnxruntime-web is not at hand (npm could not fetch it): no model in the page")
        shutil.copy(SITE / "model_missing.md", source / "model.md")
        return
    static = source / "_static"
    (static / "ort").mkdir(exist_ok=True)
    for file in ORT_FILES:
        shutil.copy(ort / file, static / "ort" / file)
    models(static, ort)


def build(into, only=None, ort=None):
    """Lay out and build the site in the folder `into`; returns the folder of its pages. SystemExit
    where Sphinx complains of an error."""
    from sphinx.cmd.build import build_main

    sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
    source, html = lay_out(into / "source", only, ort), into / "html"
    quiet = ["-q", "-b", "html", "-d", str(into / "trees")]
    if code := build_main([*quiet, str(source), str(html)]):
        sys.exit(f"site: Sphinx ended with {code} (see above)")
    mathjax = html / "_static" / "mathjax"
    for spare in [p for p in mathjax.iterdir() if p.name not in MATHJAX]:
        shutil.rmtree(spare) if spare.is_dir() else spare.unlink()
    return html


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    args.add_argument("--into", type=Path, default=OUT, help="folder to build in")
    args.add_argument("--only", nargs="+", help="build these pages alone, for a quick look")
    args = args.parse_args()
    ort = fetched(ORT, "dist", ORT_FILES, args.into / "npm")
    html = build(args.into, args.only, ort)
    say(f"built; look at it with: python -m http.server -d {html}")


if __name__ == "__main__":
    main()
