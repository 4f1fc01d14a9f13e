"""The contest: honest entries are measured, others get a sentence; ranks part with intervals."""

import csv
import io
import json
import pytest
import torch
from ect_nb.course import contest
from ect_nb.diffusion import Precond
from ect_nb.io import data, weights
from ect_nb.measure import metrics
from ect_nb.measure.metrics import Distance
from ect_nb.networks import UNet
from PIL import Image

SMALL = dict(resolution=28, channels=1, model_channels=8, channel_mult=(1,), num_blocks=1)


def unet(**kw):
    torch.manual_seed(0)
    return Precond(UNet(**SMALL | dict(attention=(), patch=4) | kw)).eval()


@pytest.fixture(scope="module")
def against():
    return contest.reference()


def test_an_honest_entry_is_counted_and_measured_by_the_judge(tmp_path, against):
    file = tmp_path / "honest.safetensors"
    weights.save(unet(), file, times=[80.0, 2.0], distance=0.0, evaluations=0)
    entry = contest.evaluate(file, seed=3, n=60, against=against)
    again = contest.evaluate(file, seed=3, n=60, against=against)
    assert entry.error == "" and entry.steps == 2 and entry.one.low < entry.one.value
    assert entry.parameters == sum(p.numel() for p in unet().parameters())
    assert (entry.one, entry.few) == (again.one, again.few) and entry.one.value > 10


def bad_files(tmp_path):
    "Files that claim too much: {name: (file, words of the sentence)}."
    many, wide, nan, text, cut, late = (
        tmp_path / f"{n}.safetensors" for n in ("many", "wide", "nan", "text", "cut", "rising")
    )
    weights.save(unet(), many, times=[80.0, 9.0, 4.0, 2.0, 1.0])
    weights.save(unet(model_channels=96, channel_mult=(1, 2), patch=1), wide, parameters=1, steps=1)
    model = unet()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    weights.save(model, nan)
    weights.save(unet(), text, times=["x"])
    cut.write_bytes(many.read_bytes()[:-4000])
    weights.save(unet(), late, times=[1.0, 80.0])
    pickle = tmp_path / "model.pt"
    pickle.write_bytes(b"\x80\x04K\x01.")
    return {
        many: "at most four",
        wide: "the cap is 2,000,000",
        nan: "NaN",
        text: "no numbers",
        cut: "",
        late: "fall",
        pickle: "no safetensors",
    }


def test_what_the_rules_do_not_allow_is_a_sentence_and_no_rank(tmp_path, against):
    for file, words in bad_files(tmp_path).items():
        entry = contest.evaluate(file, seed=1, n=60, against=against)
        assert entry.one is None and entry.error, file.name
        assert (
            words in entry.error and str(tmp_path) not in entry.error and "\n" not in entry.error
        ), entry.error


def test_pictures_by_heart_earn_what_they_are_worth(tmp_path, against):
    """An entry that draws one picture whatever the noise is farther away than the start, and the
    same weights under another name, with other claims, get the same rank."""
    garment = data.load("fashion_mnist_20k").batch(torch.tensor([0]))
    fixed, start = (
        tmp_path / "by_heart.safetensors",
        data.find("fashion_mnist_diffusion.safetensors"),
    )
    model = unet()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        for p in model.parameters():
            if p.shape == (16,):  # the last layer's: a patch of 4 by 4
                p.copy_(garment[0, 0, 12:16, 12:16].flatten())
    weights.save(model, fixed)
    weights.save(model, tmp_path / "again.safetensors", distance=0.0, rank=1)
    files = fixed, tmp_path / "again.safetensors", start
    entries = [contest.evaluate(f, seed=2, n=60, against=against) for f in files]
    assert all(e.error == "" for e in entries)
    assert entries[0].few == entries[1].few and contest.ranks([e.few for e in entries]) == [2, 2, 1]


def test_an_entry_that_never_ends_is_ended(tmp_path, against, monkeypatch):
    file = tmp_path / "slow.safetensors"
    weights.save(unet(), file)
    monkeypatch.setattr(contest, "SECONDS", 0)
    assert "too long" in contest.evaluate(file, seed=1, n=60, against=against).error


def distance(value, half):
    return Distance(value, value - half, value + half, 0.0, 100, "eye")


def test_ranks_part_only_where_intervals_do():
    found = contest.ranks([distance(5, 1), distance(6, 1), distance(9, 1), None, distance(3, 0.5)])
    assert found == [2, 2, 4, None, 1]


def test_a_name_on_the_board_is_no_formula():
    rows = list(csv.reader(io.StringIO(contest.board([contest.Entry("=1+1", error="no")]))))
    assert rows[1][0] == "'=1+1" and rows[1][1] == "" and rows[1][-1] == "no"


def test_the_judge_may_bring_pictures_that_nobody_has(tmp_path, against):
    test = data.load("fashion_mnist_20k", split="test")
    for i, picture in enumerate(test.images[:40]):
        Image.fromarray(picture.squeeze().numpy()).save(tmp_path / f"{i:02}.png")
    own, _ = contest.reference(tmp_path)
    assert own.n == 40 and against[0].n == len(test)


def test_where_the_judge_has_the_full_set_no_picture_of_the_kit_is_asked(monkeypatch):
    kit = data.load("fashion_mnist_20k", split="test")
    more = torch.cat([kit.images, 255 - kit.images[:30]])
    full = data.Pictures(more, name="fashion_mnist")
    monkeypatch.setattr(contest.data, "load", lambda name, **k: kit if "20k" in name else full)
    own, eye = contest.reference()
    assert own.n == 30
    want = metrics.moments(eye, full.subset(list(range(len(kit), len(full)))))
    assert torch.equal(own.mean, want.mean)


def test_three_entries_to_be_measured_against(tmp_path, monkeypatch):
    sets = data.load("fashion_mnist_20k").subset(64)
    monkeypatch.setattr(contest.data, "load", lambda *a, **k: sets)
    files = list(contest.references(tmp_path, kimg=0.096))
    assert len(files) == 3 and all(f.is_file() for f in files)
    told = [weights.header(f)["provenance"] for f in files]
    assert [round(p["kimg"], 3) for p in told] == [0, 0.032, 0.096]
    first, _, last = (weights.load(f).state_dict() for f in files)
    assert any(not torch.equal(first[k], last[k]) for k in first)
    assert json.dumps(told[0]["times"]) == "[80.0, 2.5]"
