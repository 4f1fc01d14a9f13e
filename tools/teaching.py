"""Write TEACHING.md from tools/teaching.toml, the pages and tests/slips.

`offences` says what does not fit: minutes that do not add up, a heading that no page has, a poll
without its key."""

import exercises
import json
import re
import sys
import tomllib
from house import ROOT, page, pages
from pathlib import Path

OUT = ROOT / "TEACHING.md"
GRADES = """| points | an open answer |
|---|---|
| 4 | states a claim, the experiment that could have refuted it, a number with its interval or its \
seeds, and what follows |
| 3 | as 4, but the interval, the seeds or the alternative is missing |
| 2 | a number and a claim that do not quite meet |
| 1 | an observation without a claim, or a claim without an experiment |
| 0 | nothing that could be wrong |"""


def plan_file():
    return tomllib.loads((ROOT / "tools" / "teaching.toml").read_text(encoding="utf-8"))


def headings(name):
    "The level-two headings of a page."
    nb = json.loads(page(name).read_text(encoding="utf-8"))
    text = "\n".join("".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "markdown")
    return re.findall(r"^## (.+)$", text, re.M)


def link(name, heading):
    "A link to the heading of a page, or words for a break."
    if not name:
        return "–"
    at = page(name).relative_to(ROOT).as_posix()
    return f"[{page(name).stem} · {heading}]({at}#{heading.replace(' ', '-')})"


def offences(said):
    "Sentences on what does not fit."
    places = [(b[1], b[2]) for p in said["plan"] for b in p["block"] if b[1]]
    places += [(p["page"], p["heading"]) for p in said["poll"]]
    for name, heading in places:
        if page(name) is None or heading not in headings(name):
            yield f"teaching.toml names '{heading}' of {name}, which no page has: mend it."
    for p in said["plan"]:
        if (total := sum(b[0] for b in p["block"])) != p["minutes"]:
            yield f"the plan '{p['name']}' adds up to {total} minutes, not {p['minutes']}: mend it."
        for known in re.findall(r"\b[PD]\d\b", json.dumps(p)):
            if known not in {q["id"] for q in said["poll"] + said["debate"]}:
                yield f"the plan '{p['name']}' names {known}, which is no poll or debate: add it."
    for p in said["poll"]:
        if not 0 <= ord(p["key"]) - 97 < len(p["options"]):
            yield f"the poll {p['id']} has the key {p['key']}, which is none of its options."
    for o in said["open"]:
        nb = json.loads(page(o["page"]).read_text(encoding="utf-8"))
        if o["check"] not in {e.check for e in exercises.exercises(nb)}:
            yield f"teaching.toml has a rubric for {o['check']}, which {o['page']} does not have."


def clock(blocks, sitting):
    "When each block begins, in a sitting of so many minutes: 0:00, 0:08, ..."
    spent = 0
    for minutes, *_ in blocks:
        yield f"{spent % sitting // 60}:{spent % sitting % 60:02}"
        spent += minutes


def plans(said):
    for p in said["plan"]:
        rows = "\n".join(
            f"| {at} | {b[0]} | {link(b[1], b[2])} | {b[3]} |"
            for at, b in zip(clock(p["block"], p.get("sitting", p["minutes"])), p["block"])
        )
        head = "| at | minutes | project | ask, say, do |\n|---|---|---|---|"
        total = f"| | **{sum(b[0] for b in p['block'])}** | | |"
        yield f"### {p['name']}\n\n{p['needs']}\n\n{head}\n{rows}\n{total}\n"


def polls(said):
    for p in said["poll"]:
        options = "; ".join(f"({chr(97 + i)}) {o}" for i, o in enumerate(p["options"]))
        yield f"- **{p['id']}**, {link(p['page'], p['heading'])}. {p['ask']} {options}."
        yield f"  <details><summary>Key</summary>({p['key']}). {p['why']}</details>"
    for d in said["debate"]:
        yield f"- **{d['id']}**, a debate. *{d['claim']}* For: {d['for']} Against: {d['against']}"


def slips():
    "What goes wrong, a line for each slip that the checks know: generated from tests/slips."
    for file in sorted((ROOT / "tests" / "slips").glob("*.toml")):
        found = tomllib.loads(file.read_text(encoding="utf-8")).get("slip", [])
        if not found:
            continue
        rows = ["| exercise | where it should be | one writes | and is told, in part |"]
        rows += ["|---" * 4 + "|"]
        for s in found:
            old, new, says = (one_line(s[k]) for k in ("old", "new", "says"))
            rows += [f"| {s['exercise'].removeprefix('check_')} | `{old}` | `{new}` | {says} |"]
        table = "\n".join(rows)
        head = f"<details><summary>Page {file.stem}: {len(found)} slips</summary>"
        yield f"{head}\n\n{table}\n\n</details>"


def open_ones(said):
    "The open exercises, and what to look for in their claims."
    for o in said["open"]:
        nb = json.loads(page(o["page"]).read_text(encoding="utf-8"))
        e = next(e for e in exercises.exercises(nb) if e.check == o["check"])
        yield f"- {link(o['page'], 'Exercises')}, *{e.title}* {o['look']}"


def gained(folder, key):
    "What the answers in a folder say, before and after, in lines."
    from ect_nb.course import quiz

    names, before, after, wrong = quiz.of_folder(folder, key)
    yield from (f"{said}." for said in wrong)
    g, low, high = quiz.gain(before, after)
    share = "{:.0%}".format
    yield f"{len(names)} answered twice: {share(sum(before) / len(before))} right before,"
    yield f"{share(sum(after) / len(after))} after; gain {g:.2f} [{low:.2f}, {high:.2f}]"


def one_line(text):
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'") or "(nothing)"


def answers():
    "Where each exercise stands, its stars, and its solution folded."
    for path in [*pages(ROOT, "lessons"), *pages(ROOT, "workshop")]:
        for e in exercises.exercises(json.loads(path.read_text(encoding="utf-8"))):
            yield f"<details><summary>{path.stem} {'★' * e.stars} {e.title}</summary>\n"
            yield f"```python\n{e.solution}\n```\n</details>\n"


def text(said):
    "TEACHING.md."
    parts = [
        "# Teaching with ect_nb",
        "The pages are the lecture: project them, ask before every reveal, let the class run them. "
        "`make class` writes what students get (`out/class/student.zip`, no answer in it) and a "
        "solved copy for you.",
        "## The room in five lines",
        "1. Students need Python 3.11 to 3.14, no administrator, no git, no make.\n"
        "2. They unpack `student.zip` and run `python tools/students.py` (Windows: `py "
        "tools\\students.py`).\n"
        "3. Poor wifi: `make stick` gathers the wheels of three systems; then `python "
        "tools/students.py --stick FOLDER`.\n"
        "4. Lesson 00 tunes for a minute and takes two in all: run it before the hour too.\n"
        "5. Collect the files `hand_in_….json` in one folder and run `python -m ect_nb grade "
        "FOLDER`.",
        "## Plans",
        *plans(said),
        "## Polls and debates",
        "Hands, cards or one screen; note the counts before you reveal.",
        *polls(said),
        "## Projecting",
        "`python tools/slides.py 00_sixty_seconds out/slides` makes slides of a page, a heading, a "
        "prediction or a picture each; `--run` runs the page for pictures twice as fine, whose "
        "type is at least 24 px on 1080 lines. `python tools/lab.py --projector` (or "
        "`ECT_NB_SHARP=2` before Jupyter starts) draws such pictures; with the browser at 200 % "
        "type of 9 points is 24 sharp pixels on 1080 lines.",
        "## Grading",
        "A check gives 1 for a right answer, a half for a slip that it knows by name, 0 otherwise; "
        "points are that times the stars. What a hand-in says of itself is not read: the answers "
        "are asked again about cases drawn when you grade, each hand-in in a process of its own, "
        "which sees no check. `grades/grades.csv` is the table, a page each lies beside it, and "
        "`grades/seed.txt` repeats the same cases. A hundred hand-ins took three minutes of a "
        "processor on Linux, where one process loads PyTorch and forks for each; elsewhere each "
        "loads it anew, some seconds more. On Windows the memory of an answer is not bounded, "
        "only its time.",
        GRADES,
        "The open exercises have numbers that the check sees to, and a claim that you read:",
        *open_ones(said),
        "nbgrader and otter take the same exercises: `python tools/exercises.py nbgrader DIR` "
        "writes its `source`, `... otter DIR` notebooks and files of tests. There answers run "
        "beside their tests, as always with those; `grade` is stricter.",
        "## Before and after",
        "Ten questions, ten minutes, on the first day and the last: in the student's copy `nbs/"
        "questions.ipynb`. Each sheet has an order of its own and writes a file; collect them, and "
        "`python tools/teaching.py gain FOLDER` prints what the class gained of what there was to "
        "gain (Hake's g), with a 95 % interval over students.",
        "## The contest",
        "From the shipped start to garments in one evaluation and in at most four: at most 24,000 "
        "pictures of tuning or 60 s, at most two million parameters, one safetensors file. `python "
        "-m ect_nb contest evaluate FILE` judges one, `... board FOLDER` all with the same unseen "
        "noise, and prints ranks that differ only where intervals do; `... references FOLDER` "
        "tunes three entries to compare with. Pictures that no entry was tuned on: `--pictures "
        "FOLDER` names garments of 28 by 28 that only you have; without it the 8,000 test pictures "
        "that do not come with the kit are asked where `ECT_NB_DATA` has the full Fashion-MNIST "
        "(Debian's `dataset-fashion-mnist`), and else the kit's own 2,000, which students have.",
        "## What goes wrong",
        *slips(),
        "## Answers",
        *answers(),
        "<!-- Written by tools/teaching.py from teaching.toml, pages and tests/slips. -->",
    ]
    return joined(parts)


def joined(parts):
    "The parts with a blank line between them, but where one item of a list follows another."
    goes_on = lambda part: part.startswith(("- ", "  <"))
    out = ""
    for part, after in zip(parts, [*parts[1:], ""]):
        part = part.strip("\n")
        out += part + ("\n" if goes_on(part) and goes_on(after) else "\n\n")
    return out.rstrip("\n") + "\n"


def main(what=None, folder=None):
    said = plan_file()
    if what == "gain" and folder:
        sys.path.insert(0, str(ROOT))
        try:
            return print(*gained(folder, said["quiz"]["key"]), sep="\n")
        except ValueError as error:
            sys.exit(f"teaching: {error}")
    if what:
        sys.exit("teaching: say `gain FOLDER`, or nothing to write TEACHING.md.")
    if found := list(offences(said)):
        sys.exit("teaching: " + "\n".join(found))
    Path(OUT).write_text(text(said), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:3])
