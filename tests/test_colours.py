"""Nothing is told by colour alone: two colours of a picture are 20 ΔE apart for a colour-blind eye,
or something else tells them apart as well."""

import itertools
import json
import pytest
import re
import torch
from ect_nb.show.pictures import COLORS
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Machado, Oliveira & Fernandes 2009, severity 1, for linear RGB
SEEN = {
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = torch.tensor(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
).double()
CLOSE = {  # by deuteranopia or protanopia, then by tritanopia alone, which is rare
    *(("orange", "yellow"), ("orange", "vermillion"), ("green", "purple")),
    *(("orange", "purple"), ("sky", "green"), ("green", "blue")),
}
# line styles, markers, hatching, words at the thing itself, or a place of its own in a row
SECOND = re.compile(
    r"\bls=|linestyle|marker|hatch|bar_label|\.text\(|annotate|barh|mark\b|styles?\b|fmt=|MARKS"
    r"""|["'](--|-\.|:)["']|_LOOKS|["'][-.:]+[os^D]["']|i \+ shift"""
)


def linear(color):
    v = torch.tensor([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]).double()
    return torch.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    "CIE L*a*b* of linear RGB, white D65."
    v = XYZ @ rgb.clamp(0, 1) / torch.tensor([0.95047, 1.0, 1.08883]).double()
    x, y, z = torch.where(v > 0.008856, v ** (1 / 3), 7.787 * v + 16 / 116)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def apart(a, b, kind):
    eye = torch.tensor(SEEN[kind]).double()
    return float((lab(eye @ linear(COLORS[a])) - lab(eye @ linear(COLORS[b]))).norm())


def test_the_measure_is_that_of_the_eye_where_nothing_is_missing():
    whole = torch.eye(3).double()
    white, black = (lab(whole @ torch.full((3,), v).double()) for v in (1.0, 0.0))
    assert torch.allclose(white, torch.tensor([100.0, 0, 0]).double(), atol=0.1)
    assert abs(float((white - black).norm()) - 100) < 0.1


def test_the_close_pairs_of_the_palette_are_these():
    found = {
        pair
        for pair in itertools.combinations(COLORS, 2)
        for kind in SEEN
        if apart(*pair, kind) < 20
    }
    assert found == CLOSE


def cells():
    for path in sorted((ROOT / "nbs").glob("*/*.ipynb")):
        for i, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            text = "".join(cell["source"])
            if cell["cell_type"] == "code":
                used = set(re.findall(rf"""["']({"|".join(COLORS)})["']""", text))
                close = [pair for pair in sorted(CLOSE) if set(pair) <= used]
                if close:
                    name = f"{path.stem}-{i}-{'-'.join(close[0])}"
                    yield pytest.param(text, id=name)


@pytest.mark.parametrize("text", list(cells()))
def test_where_two_close_colours_meet_something_else_tells_them_apart(text):
    assert SECOND.search(text), text


def test_that_rule_would_see_a_picture_that_tells_by_colour_alone():
    text = 'for c in ("orange", "vermillion"):\n    ax.plot(x, y, color=COLORS[c], label=c)'
    assert not SECOND.search(text)
