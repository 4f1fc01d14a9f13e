"""One table of published numbers: every row has a source, and the pages say what they said before
the numbers moved there."""

import csv
import pytest
from ect_nb.io import published as module
from ect_nb.io.data import find
from ect_nb.io.published import Row, published, table
from ect_nb.show.planner import logs, speeds
from ect_nb.training.recipes import trainings
from ect_nb.training.speed import peak

PAPERS = {  # method, data, evaluations, million pictures: FID
    ("ECT", "CIFAR-10", 1, 12.8): 4.54,
    ("ECT", "CIFAR-10", 2, 12.8): 2.20,
    ("ECT", "CIFAR-10", 1, 25.6): 3.86,
    ("ECT", "CIFAR-10", 2, 25.6): 2.15,
    ("ECT", "CIFAR-10", 1, 51.2): 3.60,
    ("ECT", "CIFAR-10", 2, 51.2): 2.11,
    ("ECT", "CIFAR-10", 2, 1.024): 2.73,
    ("EDM, Heun", "CIFAR-10", 35, 204.8): 1.97,
    ("iCT", "CIFAR-10", 1, 409.6): 2.83,
    ("iCT", "CIFAR-10", 2, 409.6): 2.46,
    ("CD with LPIPS", "CIFAR-10", 1, 409.6): 3.55,
    ("CD with LPIPS", "CIFAR-10", 2, 409.6): 2.93,
    ("ECT S", "ImageNet 64x64", 1, 12.8): 5.51,
    ("ECT S", "ImageNet 64x64", 2, 12.8): 3.18,
    ("ECT M", "ImageNet 64x64", 1, 12.8): 3.67,
    ("ECT M", "ImageNet 64x64", 2, 12.8): 2.35,
    ("ECT XL", "ImageNet 64x64", 1, 12.8): 3.35,
    ("ECT XL", "ImageNet 64x64", 2, 12.8): 1.96,
    ("ECT XL", "ImageNet 64x64", 1, 102.4): 2.49,
    ("ECT XL", "ImageNet 64x64", 2, 102.4): 1.67,
}
COLD = {  # lesson 04: thousand pictures, FID, by evaluations
    1: "16 447  32 442  64 428  256 294  256 321  1024 7.66  1024 7.775  1980 5.77",
    2: "16 282  32 315  64 338  256 46  256 281  500 8.135  1000 2.773  1024 2.676  1024 2.702"
    "  1024 2.73  1500 2.702  1980 2.446",
}
ANNEALED = {
    1: "12800 4.54  25600 3.835  25600 3.86  51200 3.60",
    2: "12800 2.20  25600 2.088  25600 2.115  25600 2.15  51200 2.11",
}
LOGS = {  # the planner: thousand pictures, evaluations: FID from, to
    (256, 1): (294, 321),
    (256, 2): (46, 281),
    (500, 2): (8.14, 8.14),
    (1000, 2): (2.77, 2.77),
    (1500, 2): (2.70, 2.70),
    (1980, 2): (2.45, 2.45),
    (1980, 1): (5.77, 5.77),
    (1024, 1): (5.06, 7.89),
    (1024, 2): (2.67, 2.75),
    (25600, 1): (3.84, 3.84),
    (25600, 2): (2.09, 2.12),
}
SPEEDS = {  # kimg an hour
    ("CPU, one core", "fashion_mnist_20k"): (154, 161),
    ("CPU, a core that others use", "fashion_mnist_20k"): (33, 33),
    ("CPU, two cores", "cifar10"): (2.7, 6.3),
    ("A100", "cifar10"): (1024, 1024),
    ("A100, as others logged", "cifar10"): (427, 640),
    ("Colab G4", "cifar10"): (1338, 1338),
}
TRAININGS = {  # million images
    "iCT, ImageNet 64": (3276.8, "4096 × 800,000; Song & Dhariwal 2023"),
    "EDM2-M, ImageNet 64": (2147.5, "Karras et al. 2024"),
    "EDM2-S, ImageNet 64": (1073.7, "Karras et al. 2024"),
    "EDM2-XL, ImageNet 64": (671.1, "Karras et al. 2024"),
    "iCT, CIFAR-10": (409.6, "1024 × 400,000; Song & Dhariwal 2023"),
    "CD, CIFAR-10": (409.6, "512 × 800,000, and a teacher's step with each; Song et al. 2023"),
    "EDM, CIFAR-10": (204.8, "512 × 400,000; Karras et al. 2022"),
}
PEAKS = {  # 10¹² operations a second: float32, tf32, bfloat16, float16
    "H100 PCIe": (51, 378, 756, 756),
    "H100": (67, 494, 989, 989),
    "H200": (67, 494, 989, 989),
    "A100": (19.5, 156, 312, 312),
    "L4": (30.3, 60, 121, 121),
    "T4": (8.1, None, None, 65),
    "V100": (15.7, None, None, 125),
}


def pairs(text):
    numbers = [float(v) for v in text.split()]
    return sorted(zip(numbers[::2], numbers[1::2]))


def test_what_the_papers_say():
    rows = published("FID", kind="paper")
    assert {(r.method, r.data, r.nfe, r.kimg / 1000): r.value for r in rows} == PAPERS
    assert len(rows) == len(PAPERS) and len({r.source for r in rows}) == 5


@pytest.mark.parametrize(
    "recipe, wanted", [("one hour, q = 256", COLD), ("staged, q = 2", ANNEALED)]
)
def test_what_lesson_04_shows(recipe, wanted):
    for nfe, text in wanted.items():
        rows = published("FID", data="CIFAR-10", method="ECT", recipe=recipe, nfe=nfe)
        shown = [(r.kimg, v) for r in rows for v in (r.ends if r.value is None else (r.value,))]
        assert sorted(shown) == pairs(text)


def test_what_the_recipes_page_shows_of_logs():
    of = lambda **facts: published("FID", kind="log", method="ECT", **facts)
    for nfe, hour, early in ((1, (5.06, 6.60), (294, 321)), (2, (2.67, 2.75), (46, 281))):
        assert [r.ends for r in of(recipe="one hour, q = 128", nfe=nfe)] == [hour]
        assert [r.ends for r in of(kimg=256, nfe=nfe)] == [early]


def test_what_the_planner_says():
    found = logs()
    assert {(l["kimg"], l["nfe"]): (l["low"], l["high"]) for l in found} == LOGS
    assert len(found) == len(LOGS) and all(l["source"] for l in found)
    rows = {(r["device"], r["data"]): (r["low"], r["high"]) for r in speeds()}
    assert rows == SPEEDS and len(speeds()) == len(SPEEDS)
    how = {r["device"]: r["how"] for r in speeds()}
    assert {d for d, h in how.items() if h == "measured"} == {d for d in how if d[:3] == "CPU"}
    assert [r.value for r in published("pictures a second")] == [1149]


def test_trainings_and_peaks():
    assert trainings() == TRAININGS and list(trainings()) == list(TRAININGS)
    for name, row in PEAKS.items():
        found = [peak(name, p) for p in ("float32", "tf32", "bfloat16", "float16")]
        assert found == [v and v * 1e12 for v in row], name


def test_every_row_has_a_source_a_kind_and_a_number():
    with find("published.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(table()) == 175
    for r in rows:
        assert r["source"] and r["kind"] in ("paper", "log", "data sheet", "measured here"), r
        assert r["value"] or r["low"] and r["high"] or r["metric"] == "training" and r["kimg"], r
        assert bool(r["low"]) == bool(r["high"])
    assert all(r.low <= r.high for r in table() if r.low is not None)
    assert all(r.low <= r.value <= r.high for r in table() if None not in (r.low, r.value))


@pytest.mark.parametrize(
    "change, word", [(dict(source=""), "source"), (dict(kind=""), "kind"), (dict(value="x"), "'x'")]
)
def test_a_row_that_is_wrong_is_refused_by_its_line(change, word, tmp_path, monkeypatch):
    path = tmp_path / "published.csv"
    with find("published.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rows[3] |= change
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    monkeypatch.setattr(module, "find", lambda name: path)
    with pytest.raises(ValueError, match="line 5") as e:
        table.__wrapped__()
    assert word in str(e.value)


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="no metric 'fid': ask for one of .*FID"):
        published("fid")
    assert published("FID", data="nothing") == []
    assert isinstance(published("FID")[0], Row)
