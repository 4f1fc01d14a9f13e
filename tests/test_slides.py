"""Slides of a page: few, whole, and large enough to be read."""

import matplotlib.pyplot as plt
import nbformat
import pytest
import re
import sys
from ect_nb.measure.atlas import Atlas
from ect_nb.show.pictures import draw_png, png_bytes, png_size
from ect_nb.show.tradeoff import explorer_figure, setting, walk_of
from matplotlib.text import Text
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


def shown_type(fig, dpi):
    "The smallest type of a figure, in pixels of a screen 1920 wide."
    across = fig.get_figwidth() * dpi
    sizes = [t.get_fontsize() for t in fig.findobj(Text) if t.get_text()]
    return min(sizes) * dpi / 72 * min(slides.GROW, 1920 / across)


def test_on_a_projector_the_widest_panel_is_readable_and_nothing_of_it_is_cut_off(monkeypatch):
    atlas = Atlas.load()
    run = atlas.runs["fashion-ect-seed0"]
    walk, kin = walk_of(atlas, run), atlas.family(run)[1:]
    here, there = setting(run, 24, 2), setting(walk, 0, 35)
    drawn = lambda: explorer_figure(run, here, walk, there, kin)
    monkeypatch.setenv("ECT_NB_SHARP", "1")
    draw_png(before := drawn())
    assert shown_type(before, 100) < 24
    monkeypatch.setenv("ECT_NB_SHARP", "2")
    draw_png(fig := drawn())
    assert shown_type(fig, 100) >= 24
    for ax in fig.axes:
        if legend := ax.get_legend():
            box, whole = legend.get_window_extent(), fig.bbox
            assert 0 <= box.x0 and box.x1 <= whole.x1 and 0 <= box.y0 and box.y1 <= whole.y1


@pytest.mark.parametrize("size, legend", [((4, 3), (1, 1)), ((5, 8), (0, 0)), ((12, 3), (1.02, 1))])
def test_type_of_8_points_is_24_px_however_wide_or_tall_a_picture_comes_out(
    size, legend, monkeypatch
):
    monkeypatch.setenv("ECT_NB_SHARP", "2")
    fig, ax = plt.subplots(figsize=size)
    ax.plot([0, 1], label="a line that has a rather long name in its legend")
    ax.set_title("a title", fontsize=8)
    ax.legend(loc="upper left", bbox_to_anchor=legend, fontsize=8)
    across, down = (side / 2 for side in png_size(png_bytes(fig)))
    sizes = [t.get_fontsize() for t in fig.findobj(Text) if t.get_text()]
    assert min(sizes) * 96 / 72 * min(slides.GROW, 1920 / across, 1080 / down) >= 24


def test_another_page_is_a_sentence(tmp_path):
    with pytest.raises(SystemExit, match="no page nothing"):
        slides.main(["nothing", str(tmp_path)])
