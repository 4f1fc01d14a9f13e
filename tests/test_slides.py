"""Slides of a page: few, whole, and large enough to be read."""

import nbformat
import pytest
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import slides


@pytest.mark.parametrize("name", ["00_sixty_seconds", "03_consistency", "06_training"])
def test_a_page_becomes_few_slides_with_all_its_pictures_and_predictions(name, tmp_path, capsys):
    slides.main([name, str(tmp_path)])
    text = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
    nb = nbformat.read(ROOT / "nbs" / "lessons" / f"{name}.ipynb", 4)
    code = [c for c in nb.cells if c.cell_type == "code"]
    assert text.count("<img") == sum(1 for c in code for _ in slides.pictures(c)) > 3
    asked = sum("**Predict first.**" in c.source for c in nb.cells if c.cell_type == "markdown")
    assert text.count('<section class="ask">') == asked
    assert "Solution" not in text and "What we saw" not in text and "http" not in text
    sizes = [int(px) for px in re.findall(r"font(?:-size)?:(\d+)px", text)]
    assert len(sizes) >= 3 and min(sizes) >= 24
    assert name != "00_sixty_seconds" or len(re.findall("<section", text)) <= 25


def test_the_smallest_type_of_a_picture_is_24_px():
    assert slides.GROW * 8 * 96 / 72 >= 24


def test_another_page_is_a_sentence(tmp_path):
    with pytest.raises(SystemExit, match="no page nothing"):
        slides.main(["nothing", str(tmp_path)])
