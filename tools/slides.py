"""Slides from a page: `python tools/slides.py 00_sixty_seconds DIR` writes one file of HTML.

A slide for each heading and each picture, one file without anything from elsewhere; arrow keys or
Page Down go on. Laid out for 1920 by 1080: type of at least 30 px, and pictures 2.25 times as large
as on the page, so that their smallest type, 8 points, is 24 px; one wider than 853 px on the page
is fitted to the screen. `--run` runs the page first, with pictures twice as fine (00 takes
minutes), in which type that would be smaller than 24 px is drawn larger; else the stored ones are
shown."""

import argparse
import html
import nbformat
import re
from house import page
from pathlib import Path

GROW = 2.25  # 8 points at 96 dots an inch are 10.7 px, and 24 px so
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>
html{{scroll-snap-type:y mandatory;font:34px/1.45 sans-serif;color:#000;background:#fff}}
body{{margin:0}}
section{{min-height:100vh;box-sizing:border-box;padding:3vh 4vw;scroll-snap-align:start;
display:flex;flex-direction:column;justify-content:center}}
h1,h2{{font-size:56px;margin:0 0 .6em}}
img{{display:block;margin:0 auto;max-width:100vw;max-height:100vh;object-fit:contain}}
.picture{{padding:0}}
.ask{{border-left:12px solid #0072B2;padding-left:1em}}code{{font-size:30px}}
</style>{slides}<script>
addEventListener("keydown", e => {{
  const step = {{ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1,
    PageUp: -1}}[e.key];
  if (!step) return;
  e.preventDefault();
  scrollTo({{top: (Math.round(scrollY / innerHeight) + step) * innerHeight}});
}});</script></html>
"""


def words(text):
    "Markdown as plain HTML: emphasis and code; formulas stay as they are written."
    text = html.escape(re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text), quote=False)
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    text = re.sub(r"(?<!\w)[*_]([^*_]+)[*_](?!\w)", r"<i>\1</i>", text)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)


def pictures(cell):
    "(base64, alternative text, width on a page) of the pictures of a cell."
    for out in cell.get("outputs", []):
        if image := out.get("data", {}).get("image/png"):
            said = out.get("metadata", {}).get("image/png", {})
            yield image.replace("\n", ""), said.get("alt", ""), said.get("width") or across(image)


def across(image):
    import base64

    return int.from_bytes(base64.b64decode(image[:44])[16:20], "big")


def slide(inside, kind=""):
    return f'<section class="{kind}"><div class="{kind}">{inside}</div></section>'


def of_text(source):
    "Slides of a cell of text: headings with their first paragraph, predictions, and nothing else."
    for part in re.split(r"^(?=#{1,2} )", source, flags=re.M):
        head = re.match(r"#{1,2} (.+)\n*([^\n]*)", part)
        if head and not re.match(r"(Recap|Further|Exercises)", head[1]):
            said = "" if re.match(r"[$|\[!]", head[2]) else f"<p>{words(head[2].lstrip('> '))}</p>"
            yield slide(f"<h2>{words(head[1])}</h2>{said}")
        if ask := re.search(r"\*\*Predict first\.\*\*[^\n]*", part):
            yield slide(f"<p>{words(ask[0])}</p>", "ask")


def slides(nb):
    "The slides of a page, in order."
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            yield from of_text(cell.source)
        for image, alt, width in pictures(cell) if cell.cell_type == "code" else ():
            source = f'src="data:image/png;base64,{image}" alt="{html.escape(alt)}"'
            yield slide(f'<img style="width:{GROW * width:.0f}px" {source}>', "picture")


def main(args=None):
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("page")
    a.add_argument("folder", type=Path)
    a.add_argument("--run", action="store_true", help="run the page, with finer pictures")
    a = a.parse_args(args)
    path = page(a.page)
    if path is None:
        raise SystemExit(f"slides: there is no page {a.page}: name one, 03_consistency say.")
    if a.run:
        import run_notebooks

        nb = run_notebooks.strip_widgets(run_notebooks.execute(path, sharp=2))
    else:
        nb = nbformat.read(path, 4)
    found = list(slides(nb))
    a.folder.mkdir(parents=True, exist_ok=True)
    out = a.folder / f"{path.stem}.html"
    out.write_text(PAGE.format(title=path.stem, slides="\n".join(found)), encoding="utf-8")
    print(f"slides: {len(found)} in {out}")


if __name__ == "__main__":
    main()
