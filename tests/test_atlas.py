"The atlas: records that are refused, files that are damaged, and what belongs to the user."

import json
import numpy as np
import pytest
import shutil
import subprocess
import sys
import torch
from ect_nb.diffusion import Precond
from ect_nb.io import data, weights
from ect_nb.measure import metrics
from ect_nb.measure.atlas import FIELDS, Atlas, check_record, read_run, survey
from ect_nb.measure.features import random_features, small_features
from ect_nb.networks import UNet
from ect_nb.sampling import sample
from ect_nb.schedules import Stages
from ect_nb.show.tradeoff import strip
from ect_nb.training.config import Config
from ect_nb.training.loop import train
from pathlib import Path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A small run, measured at two budgets with one and two evaluations."
    folder, pictures = tmp_path_factory.mktemp("runs") / "small", data.load("fashion_mnist_20k")
    torch.manual_seed(0)
    model = Precond(UNet(28, 1, 8, (1,), num_blocks=1, attention=(), patch=4))
    for p in train(
        model,
        pictures,
        Config(kimg=2, batch=64, lr=2e-3, snapshot_kimg=1, stages=Stages(2)),
        folder,
    ):
        pass
    assert (
        len(
            list(
                survey(
                    folder,
                    pictures,
                    small_features(),
                    times={1: (80.0,), 2: (80.0, 2.5)},
                    n=100,
                    init="scratch",
                )
            )
        )
        == 4
    )
    return folder, p.ema


@pytest.fixture
def packed(run, tmp_path):
    atlas = Atlas()
    atlas.add(run[0])
    atlas.save(tmp_path)
    return tmp_path


def test_the_strip_is_what_the_snapshot_draws(run):
    folder, model = run
    noise = torch.randn(16, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    x = sample(model, noise, (80.0, 2.5), torch.Generator().manual_seed(4))
    drawn = ((x + 1) * 127.5 + 0.5).clamp(0, 255).floor().permute(0, 2, 3, 1).numpy()
    assert np.abs(read_run(folder).pictures(2, 2).astype(float) - drawn).max() <= 1


def test_packed_and_loaded_it_is_the_same(run, packed):
    was, now = read_run(run[0]), Atlas.load(packed).runs["small"]
    assert now.records == was.records and now.points == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert all((now.pictures(*p) == was.pictures(*p)).all() for p in was.points)


def test_packing_again_deletes_its_own_sheets_only(run, packed):
    (packed / "holiday.png").write_bytes(b"mine")
    atlas = Atlas.load(packed)
    atlas.add(run[0], name="again")
    del atlas.runs["small"]
    atlas.save(packed)
    assert (packed / "holiday.png").read_bytes() == b"mine" and list(Atlas.load(packed).runs) == [
        "again"
    ]
    assert len(list(packed.glob("*.png"))) == 2


@pytest.mark.parametrize("field", FIELDS)
def test_a_record_without_a_field_is_refused(run, field):
    record = read_run(run[0]).records[0]
    with pytest.raises(ValueError, match=field):
        check_record({k: v for k, v in record.items() if k != field})


def test_a_value_outside_its_interval_is_refused(run):
    with pytest.raises(ValueError, match="outside its interval"):
        check_record(read_run(run[0]).records[0] | dict(low=1e9, high=2e9))


def test_another_version_a_torn_file_and_a_damaged_sheet_are_sentences(packed):
    whole = (packed / "atlas.json").read_text()
    (packed / "atlas.json").write_text(json.dumps(json.loads(whole) | dict(version=99)))
    with pytest.raises(ValueError, match="version 99"):
        Atlas.load(packed)
    (packed / "atlas.json").write_text(whole[:200])
    with pytest.raises(ValueError, match="cannot be read"):
        Atlas.load(packed)
    (packed / "atlas.json").write_text(whole)
    sheet = next(packed.glob("*.png"))
    sheet.write_bytes(sheet.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged"):
        Atlas.load(packed).runs["small"].pictures(1, 1)
    sheet.unlink()
    with pytest.raises(ValueError, match="missing"):
        Atlas.load(packed).runs["small"].pictures(1, 1)


def test_a_run_that_is_still_growing_is_read_as_far_as_it_goes(run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "growing")
    with (folder / "metrics.jsonl").open("a") as f:
        f.write('{"run": "growing", "kimg": 2, "nf')  # a line cut short
    (folder / "samples" / "kimg-000002-nfe-02.png").unlink()  # a record without its strip
    assert read_run(folder).points == [(1, 1), (1, 2), (2, 1)]
    with pytest.raises(ValueError, match="no measurement"):
        read_run(tmp_path / "nothing")


def test_what_was_not_measured_is_named(run):
    with pytest.raises(KeyError, match="not measured after 7 kimg"):
        read_run(run[0]).pictures(7, 1)


def test_a_record_is_what_its_snapshot_gives_with_the_same_seed(run):
    from ect_nb.training.runs import RunFolder

    folder, _ = run
    was = read_run(folder).record(2, 2)
    again = metrics.measure(
        weights.load(RunFolder(folder).snapshots()[2]),
        data.load("fashion_mnist_20k"),
        small_features(),
        times=was["times"],
        n=was["n_samples"],
        seed=was["seed"],
        batch=was["batch"],
    )
    assert {
        k: again[k] for k in ("value", "low", "high", "nfe", "features", "parameters", "data")
    } == {k: was[k] for k in ("value", "low", "high", "nfe", "features", "parameters", "data")}
    other = metrics.measure(
        weights.load(RunFolder(folder).snapshots()[2]),
        data.load("fashion_mnist_20k"),
        small_features(),
        times=was["times"],
        n=was["n_samples"],
        seed=was["seed"] + 1,
    )
    assert other["value"] != was["value"]


def test_a_run_of_ones_own_is_added_to_the_shipped_atlas_and_found(run):
    atlas = Atlas.load()
    shipped = dict(atlas.runs)
    mine = atlas.add(run[0], name="mine")
    assert (
        atlas.runs == shipped | dict(mine=mine)
        and mine in atlas.where(init="scratch", data=mine.facts["data"])
        and atlas.family(mine) == [mine]
    )
    assert (
        all(r in atlas.records for r in mine.records)
        and mine.facts["recipe"]
        and "mine" not in Atlas.load().runs
    )


def test_a_half_written_or_corrupted_run_folder_gives_what_is_whole(run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "torn")
    whole = read_run(folder)
    (folder / "config.json").write_text('{"format": 1, "conf')
    with (folder / "metrics.jsonl").open("a") as f:
        f.write("17\n\x00\x00\n[1, 2]\n" + json.dumps(whole.records[0] | dict(value="low")) + "\n")
    with pytest.warns(UserWarning, match="of the wrong kind"):
        torn = read_run(folder)
    assert torn.records == whole.records and torn.facts == whole.facts | dict(recipe=None)
    (folder / "samples" / "kimg-000001-nfe-01.png").write_bytes(b"")
    with pytest.warns(UserWarning):
        torn = read_run(folder)
    assert (torn.pictures(2, 2) == whole.pictures(2, 2)).all()
    with pytest.raises(ValueError, match="cannot be read"):
        strip(torn, 1, 1)
    for file in (folder / "samples").iterdir():
        file.write_bytes(file.read_bytes()[:20])
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no strip in"):
        read_run(folder)


def test_other_features_are_measured_anew_and_never_mixed(run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "twice")
    new = list(
        survey(
            folder,
            data.load("fashion_mnist_20k"),
            random_features(1, 8),
            times={1: (80.0,)},
            kimgs=[2],
            n=50,
            init="scratch",
        )
    )
    assert [r["features"] for r in new] == ["random_8_seed0"]
    with pytest.warns(UserWarning, match="4 older records of twice"):
        now = read_run(folder)
    assert now.points == [(2, 1)] and now.unit != read_run(run[0]).unit


def test_the_tool_packs_every_measured_run_whatever_its_data(run, tmp_path):
    for name in ("fashion-one", "cifar10-one", "holiday"):
        shutil.copytree(run[0], tmp_path / "runs" / name)
    (tmp_path / "runs" / "cifar10-unmeasured").mkdir()
    tool = Path(__file__).resolve().parent.parent / "tools" / "make_atlas.py"
    said = subprocess.run(
        [
            sys.executable,
            tool,
            "--pack",
            "--folder",
            tmp_path / "runs",
            "--out",
            tmp_path / "atlas",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert (
        list(Atlas.load(tmp_path / "atlas").runs) == ["cifar10-one", "fashion-one"]
        and "left out" in said
        and "cifar10-unmeasured" in said
    )
    empty = subprocess.run(
        [
            sys.executable,
            tool,
            "--pack",
            "--folder",
            tmp_path / "atlas",
            "--out",
            tmp_path / "none",
        ],
        capture_output=True,
        text=True,
    )
    assert (
        empty.returncode and "no measured run" in empty.stderr and not (tmp_path / "none").exists()
    )


def test_the_shipped_atlas_compares_seeds_and_starts():
    atlas = Atlas.load()
    assert any(len(f) >= 3 for f in atlas.families(init="diffusion", method="consistency")) and any(
        len(f) >= 3 for f in atlas.families(init="scratch")
    )
    for f in atlas.families():
        assert len({r.facts["seed"] for r in f}) == len(f)
        longest = max(f, key=lambda r: len(r.points)).points
        assert all(r.points == longest[: len(r.points)] for r in f)  # some seeds go further
        assert all(len(r.pictures(*p)) == 16 for r in f for p in r.points)
