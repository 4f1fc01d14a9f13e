import itertools
import numpy as np
import os
import pytest
import re
import signal
import subprocess
import sys
import time
import torch
from dataclasses import replace
from ect_nb import commands
from ect_nb.diffusion import Precond
from ect_nb.io import pickles, weights
from ect_nb.io.data import Pictures
from ect_nb.networks import UNet
from ect_nb.objectives import ECT
from ect_nb.schedules import Stages
from ect_nb.training.config import Config
from ect_nb.training.recipes import (
    PRESETS,
    begin,
    follow,
    ledger,
    run,
    scaled,
    share_of,
    suited,
    trainings,
)
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TINY = dict(
    resolution=8, channels=3, model_channels=8, channel_mult=(1,), num_blocks=1, attention=()
)
ENV = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")


def pictures(n=64, labels=False):
    g = torch.Generator().manual_seed(0)
    return Pictures(
        torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=g),
        torch.arange(n) % 10 if labels else None,
        name="noise",
    )


def tiny(kimg=0.064, **kw):
    tuning = Config(
        kimg=kimg, batch=16, lr=1e-3, ema=0.9, objective=ECT(c=0.1), stages=Stages(2), **kw
    )
    return replace(
        PRESETS["cpu"],
        network=TINY,
        phases=dict(
            diffusion=Config.diffusion(kimg=0.064, batch=16, snapshot_kimg=0), tuning=tuning
        ),
    )


def all_of(model):
    return torch.cat([v.flatten() for v in model.state_dict().values()])


# ---- the constants, against the command lines and the paper as noted in the shared facts


def test_the_presets_of_cifar10_hold_the_published_constants():
    for name in ("one_hour", "iterations_200k", "iterations_400k", "conditional"):
        (c,), p = PRESETS[name].phases.values(), PRESETS[name]
        o = c.objective
        assert type(o) is ECT
        assert (c.batch, c.optimizer, c.lr, c.betas, o.c, o.weight, o.metric, c.decay) == (
            128,
            "RAdam",
            1e-4,
            (0.9, 0.999),
            0.0,
            "inverse_gap",
            "pseudo_huber",
            "constant",
        )
        assert (
            (o.p_t.mean, o.p_t.std, o.mapping.k, o.mapping.b, o.mapping.first)
            == (-1.1, 2.0, 8.0, 1.0, 1)
            and p.network["dropout"] == 0.2
            and p.times == (80.0, 0.821)
        )
    hour, day, two = (
        PRESETS[n].phases["tuning"] for n in ("one_hour", "iterations_200k", "iterations_400k")
    )
    assert (hour.objective.mapping.q, hour.ema, hour.kimg * 1000 / 128, hour.stages.at(10**7)) == (
        256,
        0.9993,
        8000,
        0,
    )
    assert (day.objective.mapping.q, day.ema, day.kimg * 1000 / 128, day.stages.every) == (
        2,
        0.9999,
        200_000,
        250 * 12_800,
    ) and {day.stages.at(i) for i in range(0, 25_600_000, 100_000)} == set(range(8))
    assert two.kimg == 2 * day.kimg and {
        two.stages.at(i) for i in range(0, 51_200_000, 100_000)
    } == set(range(8))
    for p in PRESETS.values():
        assert p.source and p.device


def test_the_narrowest_gap_of_one_hour_is_that_of_the_last_stage_of_the_long_recipe():
    t = torch.logspace(-2, 1.9, 50)
    assert torch.equal(
        PRESETS["one_hour"].phases["tuning"].objective.mapping(t, 0),
        PRESETS["iterations_200k"].phases["tuning"].objective.mapping(t, 7),
    )


def test_the_preset_of_imagenet_holds_the_published_constants_and_says_what_is_missing():
    p, c = PRESETS["imagenet64"], PRESETS["imagenet64"].phases["tuning"]
    assert (
        c.objective.mapping.q,
        c.objective.c,
        c.objective.weight,
        c.optimizer,
        c.lr,
        c.betas,
        c.decay,
        c.objective.p_t.mean,
        c.objective.p_t.std,
        p.times[1],
        c.kimg,
    ) == (4, 0.06, "edm", "Adam", 1e-3, (0.9, 0.99), "inverse_sqrt", -0.8, 1.6, 1.526, 12_800)
    with pytest.raises(FileNotFoundError, match="edm2-img64-s.*are not here.*560 MB"):
        begin(p)


def test_the_networks_of_the_presets_have_the_published_sizes():
    with torch.device("meta"):
        sizes = {
            n: sum(q.numel() for q in UNet(**PRESETS[n].network).parameters())
            for n in ("one_hour", "conditional")
        }
    assert sizes == dict(one_hour=55_732_739, conditional=55_732_739 + 11 * 128)


# ---- the ledger


def test_the_fractions_that_people_quote():
    images = 12.8e6
    assert {n: f"{share_of(images, n):.2%}" for n in trainings()} == {
        "iCT, ImageNet 64": "0.39%",
        "EDM2-M, ImageNet 64": "0.60%",
        "EDM2-S, ImageNet 64": "1.19%",
        "EDM2-XL, ImageNet 64": "1.91%",
        "iCT, CIFAR-10": "3.12%",
        "CD, CIFAR-10": "3.12%",
        "EDM, CIFAR-10": "6.25%",
    }


def test_the_ledger_counts_every_image_once_and_the_second_passes_of_a_real_draw():
    rows = ledger(PRESETS["iterations_200k"], flops=1.0)
    assert sum(r["images"] for r in rows) == 25_600_000 and [r["stage"] for r in rows] == list(
        range(8)
    )
    c = PRESETS["iterations_200k"].phases["tuning"]
    t = c.objective.p_t.sample(200_000, torch.Generator().manual_seed(0))
    for r in rows:
        assert r["share"] == pytest.approx(
            (c.objective.mapping(t, r["stage"]) > 0).double().mean().item(), abs=0.004
        ) and r["flops"] == pytest.approx(r["images"] * (3 + r["share"]))
    assert [r["flops"] for r in ledger(PRESETS["small"], 2.0) if r["phase"] == "diffusion"] == [
        2_400_000 * 6.0
    ]


# ---- the start


def test_a_start_is_a_model_a_file_or_fresh_weights_and_its_dropout_is_the_presets(tmp_path):
    fresh, again = begin(tiny(), seed=3), begin(tiny(), seed=3)
    assert torch.equal(all_of(fresh), all_of(again)) and not torch.equal(
        all_of(fresh), all_of(begin(tiny(), seed=4))
    )
    path = weights.save(fresh, tmp_path / "start.safetensors")
    wet = begin(replace(tiny(), network=TINY | dict(dropout=0.3)), path)
    assert torch.equal(all_of(wet), all_of(fresh)) and {
        m.p for m in wet.modules() if hasattr(m, "tape") or type(m).__name__ == "Dropout"
    } == {0.3}
    assert weights.describe(wet)["net"]["dropout"] == 0.3
    model = begin(tiny(), fresh)
    assert model is fresh


def test_a_missing_teacher_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setenv("ECT_NB_DATA", "")
    with pytest.raises((FileNotFoundError, ValueError), match="edm-cifar10-32x32-uncond-vp"):
        begin(PRESETS["one_hour"])


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
def test_a_teacher_serves_as_it_was_released_and_converted(suffix, tmp_path, monkeypatch):
    monkeypatch.setenv("ECT_NB_DATA", str(tmp_path))
    name, theirs = "edm-cifar10-32x32-uncond-vp", begin(tiny(), seed=3)
    pickles.imitate(theirs, tmp_path / f"{name}.pkl")
    if suffix == ".safetensors":
        (
            weights.convert(tmp_path / f"{name}.pkl", tmp_path / f"{name}.safetensors"),
            (tmp_path / f"{name}.pkl").unlink(),
        )
    assert torch.equal(all_of(begin(replace(tiny(), teacher=name), seed=4)), all_of(theirs))


# ---- the run


def test_two_phases_each_in_a_folder_of_its_own_and_the_second_starts_from_the_average_of_the_first(
    tmp_path,
):
    seen = list(run(tiny(), tmp_path / "run", pictures()))
    assert [name for name, _ in seen] == ["diffusion"] * 4 + ["tuning"] * 4 and {
        p.name for p in tmp_path.iterdir()
    } == {"run", "run-diffusion"}
    first = seen[3][1].ema
    alone = list(run(tiny(), tmp_path / "alone", pictures(), start=first))
    assert [name for name, _ in alone] == ["tuning"] * 4 and torch.equal(
        all_of(alone[-1][1].model), all_of(seen[-1][1].model)
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "Where the two phases end when nothing stops them."
    return list(run(tiny(), tmp_path_factory.mktemp("whole") / "run", pictures()))[-1][1]


@pytest.mark.parametrize("stop", [1, 4, 5, 7])
def test_stopped_anywhere_and_continued_it_ends_with_the_same_weights(tmp_path, whole, stop):
    for _ in itertools.islice(run(tiny(), tmp_path / "parts", pictures()), stop):
        pass
    *_, (name, last) = run(tiny(), tmp_path / "parts", pictures())
    assert (
        name == "tuning"
        and last.done == 1
        and torch.equal(all_of(whole.model), all_of(last.model))
        and torch.equal(all_of(whole.ema), all_of(last.ema))
    )


def test_a_time_limit_ends_a_session_and_sessions_add_up(tmp_path, whole):
    sessions, last = 0, None
    while last is None or last[0] != "tuning" or last[1].done < 1:
        for last in run(tiny(), tmp_path / "parts", pictures(), time_limit=1e-6):
            pass
        sessions += 1
        assert sessions < 30
    assert sessions > 2 and torch.equal(all_of(whole.model), all_of(last[1].model))


def test_follow_shows_samples_at_the_end_of_each_phase(tmp_path):
    z = torch.randn(4, 3, 8, 8)
    shown = [
        (name, p.kimg, x.shape)
        for name, p, x in follow(
            run(tiny(), tmp_path / "run", pictures()), z, (80.0, 0.8), every=1e9
        )
        if x is not None
    ]
    assert shown == [("diffusion", 0.064, z.shape), ("tuning", 0.064, z.shape)]


def test_scaled_keeps_the_shape_of_a_recipe():
    p, s = PRESETS["iterations_200k"], scaled(PRESETS["iterations_200k"], 1e-3, lr=3e-4)
    a, b = p.phases["tuning"], s.phases["tuning"]
    assert b.kimg == pytest.approx(25.6) and [
        b.stages.at(int(i * b.kimg * 1000)) for i in np.arange(0.03, 1, 0.1)
    ] == [a.stages.at(int(i * a.kimg * 1000)) for i in np.arange(0.03, 1, 0.1)]
    assert (b.lr, a.lr, b.batch) == (3e-4, 1e-4, 128) and PRESETS["iterations_200k"] == p


def test_a_class_conditional_recipe_is_trained_with_the_classes(tmp_path):
    "The gradient reaches the label map only if labels do, and other labels give another model."
    preset = replace(
        tiny(),
        network=TINY | dict(label_dim=10),
        phases=dict(tuning=replace(tiny().phases["tuning"], optimizer="Adam")),
    )
    start = begin(preset)
    for p in start.parameters():
        p.data.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    *_, (_, p) = run(preset, tmp_path / "a", pictures(labels=True), start)
    *_, (_, q) = run(
        preset,
        tmp_path / "b",
        Pictures(pictures().images, 9 - torch.arange(64) % 10, name="other"),
        start,
    )
    assert not torch.equal(
        p.model.net.map_label.weight, start.net.map_label.weight
    ) and not torch.equal(all_of(p.model), all_of(q.model))
    with pytest.raises(ValueError, match="label"):
        list(run(preset, tmp_path / "c", pictures(), start))


# ---- the command


def command(capsys, *args):
    "What the command says when it ends well."
    code, (out, err) = commands.main([str(a) for a in args]), capsys.readouterr()
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    from PIL import Image

    home = tmp_path_factory.mktemp("files")
    (home / "pictures").mkdir()
    for i, x in enumerate(pictures(64).images):
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(home / "pictures" / f"{i:02d}.png")
    torch.manual_seed(0)
    weights.save(Precond(UNet(**TINY), 0.5), home / "start.safetensors")
    return home


SHORT = ("--scale", 1, "--set", "kimg=0.064", "batch=16", "snapshot_kimg=1", "precision=float32")


def order(files, folder, *more):
    "The words of a run of the start in `files` on its pictures."
    told = ("--data", files / "pictures", "--start", files / "start.safetensors")
    return ("run", "cpu", folder, *told, "--device", "cpu", *more)


def test_the_command_lists_runs_continues_and_samples(files, tmp_path, capsys):
    listed = command(capsys, "list")
    assert [l.split()[0] for l in listed.splitlines()] == list(PRESETS)
    args = order(files, tmp_path / "run", *SHORT)
    assert "the same command goes on" in command(capsys, *args, "--hours", 1e-9)
    assert "done: 0.064 of 0.064 kimg" in command(capsys, *args)
    assert list((tmp_path / "run" / "samples").glob("tuning-*.png"))
    (snapshot,) = (tmp_path / "run" / "snapshots").iterdir()
    to = ("--n", 40, "--times", 80, 0.8, "--device", "cpu")
    assert "40 pictures" in command(capsys, "sample", snapshot, tmp_path / "x.npz", *to)
    with np.load(tmp_path / "x.npz") as f:
        assert f["arr_0"].shape == (40, 8, 8, 3) and f["arr_0"].dtype == np.uint8


@pytest.mark.parametrize(
    "args, says",
    [
        (
            ("run", "cpu", "{tmp}/run", "--data", "no-such-folder", "--device", "cpu"),
            "neither a set .* nor a folder",
        ),
        (
            (
                "run",
                "cpu",
                "{tmp}/run",
                "--data",
                "{files}/pictures",
                "--start",
                "{files}/none.safetensors",
                "--device",
                "cpu",
            ),
            "no checkpoint at",
        ),
        (
            (
                "run",
                "cpu",
                "{tmp}/run",
                "--data",
                "{files}/pictures",
                "--start",
                "{files}/start.safetensors",
                "--device",
                "cpu",
                "--set",
                "lr=-1",
            ),
            "learning rate lr is -1",
        ),
        (
            (
                "run",
                "cpu",
                "{tmp}/run",
                "--data",
                "{files}/pictures",
                "--start",
                "{files}/start.safetensors",
                "--device",
                "cpu",
                "--set",
                "speed=3",
            ),
            "speed is no setting",
        ),
        (
            ("run", "imagenet64", "{tmp}/run", "--data", "{files}/pictures", "--device", "cpu"),
            "edm2-img64-s.* are not here",
        ),
        (("sample", "{files}/none.safetensors", "{tmp}/x.npz"), "no checkpoint at"),
    ],
)
def test_the_command_says_in_one_sentence_what_is_wrong(args, says, files, tmp_path, capsys):
    assert commands.main([str(a).format(tmp=tmp_path, files=files) for a in args]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("ect_nb: ") and re.search(says, said) and len(said) < 500


@pytest.mark.slow  # tests/test_commands.py kills the same command, forked, in either phase
@pytest.mark.skipif(os.name == "nt", reason="kills with SIGKILL")
def test_the_command_killed_in_the_middle_goes_on_to_the_same_weights(files, tmp_path, capsys):
    "Killed in a process of its own, as a shell starts it; the rest is done here."
    more = ("--set", "kimg=1", "batch=16", "snapshot_kimg=1", "precision=float32")
    args = lambda f: order(files, tmp_path / f, *more, "state_seconds=0.01")
    child = subprocess.Popen(
        [sys.executable, "-m", "ect_nb", *map(str, args("killed"))],
        env=ENV,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until, killed = time.monotonic() + 120, tmp_path / "killed"
    while not list((killed / "state").glob("step-*.safetensors")) and time.monotonic() < until:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it was done before it could be killed"
    assert not list((killed / "snapshots").glob("*001.safetensors"))
    for f in ("killed", "whole"):
        command(capsys, *args(f))
    a, b = (
        weights.load(tmp_path / f / "snapshots" / "kimg-000001.safetensors")
        for f in ("killed", "whole")
    )
    assert torch.equal(all_of(a), all_of(b))


# ---- a fresh network is told the classes that the pictures have


def test_the_preset_cpu_is_told_the_classes_there_are():
    cpu = PRESETS["cpu"]
    assert suited(cpu, pictures(labels=True)).label_dim == 10 == cpu.label_dim
    assert suited(cpu, pictures()).label_dim == 0
    two = Pictures(pictures().images, torch.arange(64) % 2, ["cats", "dogs"])
    assert suited(cpu, two).label_dim == 2
    for name in ("small", "conditional"):  # told none; fixed by its teacher
        assert suited(PRESETS[name], pictures()) is PRESETS[name]


@pytest.mark.parametrize("labels", [False, True])
def test_a_fresh_run_fits_pictures_with_and_without_classes(tmp_path, labels):
    preset = tiny()
    preset = replace(preset, network=TINY | dict(label_dim=10))
    ends = [p for _, p in run(preset, tmp_path / "run", pictures(labels=labels))]
    assert ends[-1].done == 1 and ends[-1].model.net.config["label_dim"] == 10 * labels
