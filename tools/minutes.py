"""How long a lesson takes: read and done, panels and exercises included, by counting.

`python tools/minutes.py [NAME ...]` prints it section by section. Folded text is counted beside the
path, hints and solutions not at all; headings that begin with Further, and the exercises of two and
three stars, are beside the path."""

import ast
import exercises
import re
import sys
from dataclasses import dataclass
from house import page, pages, read
from IPython.core.inputtransformer2 import TransformerManager

WORDS = 175  # of prose a minute, formulas among them
LINES = 40  # of code that is to be read
SKIMMED = 120  # lines that draw, hold numbers to what is said, or are set-up
PICTURE, PANEL = 1, 3  # minutes; the questions below a panel are prose
EXERCISE = {1: 5, 2: 10, 3: 15}
FOLD = re.compile(r"<details>.*?</details>", re.S)
HELP = re.compile(r"<details>\s*<summary>(Hint|Solution).*?</details>", re.S)
DRAWS = re.compile(r"\b(plt\.|ax\.|axes\[|show_(figure|images|panel)|Figure\(|figure_panel)")
HIDDEN = re.compile(r"#\|\s*(hide|default_exp)\b")


@dataclass
class Section:
    "A heading, whether it is on the path, its minutes, and its minutes of folded text."

    title: str
    level: int
    further: bool
    minutes: float = 0.0
    folded: float = 0.0


def statements(source):
    return ast.parse(TransformerManager().transform_cell(source)).body


def skimmed(source):
    "Whether nothing of a cell needs to be read: it imports, draws, or only asserts."
    if DRAWS.search(source):
        return True
    quiet = (ast.Import, ast.ImportFrom, ast.Assert)
    return all(isinstance(s, quiet) for s in statements(source))


def of_code(source):
    "Minutes of a code cell: its lines, its picture or its panel."
    if HIDDEN.match(source) or exercises.CHECK.search(source):
        return 0.0
    lines = len([line for line in source.splitlines() if line.strip()])
    minutes = lines / (SKIMMED if skimmed(source) else LINES)
    shown = len(re.findall(r"\bshow_(?:figure|images)\(", source))
    return minutes + PICTURE * shown + PANEL * ("show_panel(" in source)


def of_prose(text):
    "(minutes of a cell of text, minutes of what is folded in it): hints and solutions left out."
    text = HELP.sub("", text)
    words = len(FOLD.sub("", text).split()) / WORDS
    return words, len(text.split()) / WORDS - words


def sections(nb):
    "The `Section`s of a page, in order; exercises are sections of their own."
    found = [Section("", 1, False)]
    stubs = {e.at + 1 for e in exercises.exercises(nb)}
    for i, cell in enumerate(nb["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            found[-1].minutes += 0.0 if i in stubs else of_code(source)
            continue
        if cell["cell_type"] != "markdown":
            continue
        for part in re.split(r"^(?=##)", source, flags=re.M):
            if head := re.match(r"(#{2,3}) (.*)", part):
                stars = len(re.match(r"Exercise (★*)|", head[2])[1] or "")
                inner = head[1] == "###" and found[-1].further and not stars
                further = head[2].startswith("Further: ") or stars > 1 or inner
                found.append(Section(head[2], len(head[1]), further, EXERCISE.get(stars, 0)))
            reading, folded = of_prose(part)
            found[-1].minutes += reading
            found[-1].folded += folded
    return found


def minutes(nb):
    "(minutes of the path, minutes of all that is beside it)."
    parts = sections(nb)
    path = sum(s.minutes for s in parts if not s.further)
    return path, sum(s.minutes + s.folded for s in parts) - path


def promised(nb):
    """(path, beside it) as the page says it: '**Time.** 30 minutes; 25 more ...'; None if it is
    silent."""
    text = "\n".join("".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "markdown")
    said = re.search(r"^\*\*Time\.\*\* (\d+) minutes\b.*?\b(\d+) more\b", text, re.M | re.S)
    return said and (int(said[1]), int(said[2]))


if __name__ == "__main__":
    total = 0.0
    for path in map(page, sys.argv[1:]) if sys.argv[1:] else pages(house="lessons"):
        nb = read(path)
        here, beside = minutes(nb)
        total += here
        print(f"{path.stem}: {here:.0f} on the path, {beside:.0f} beside it; says {promised(nb)}")
        for s in sections(nb) if sys.argv[1:] else ():
            mark = "further" if s.further else ""
            print(f"  {s.minutes:5.1f} +{s.folded:4.1f}  {mark:8} {s.title}")
    print(f"the path takes {total / 60:.1f} hours")
