"""The planner: budgets and distances by hand, speeds that somebody took by the clock, commands, and
what hands type."""

import html
import math
import pytest
import re
from ect_nb.measure.atlas import Atlas, Charted
from ect_nb.show import planner
from ect_nb.show.planner import (
    UNTIMED,
    break_even,
    devices,
    expected,
    logs,
    own_speed,
    plan,
    plan_words,
    preset,
    speed_of,
    speeds,
    typed,
)

VALUES = {(1, 1): 100.0, (1, 2): 40.0, (4, 1): 50.0, (4, 2): 30.0, (16, 1): 25.0, (16, 2): 24.0}
HEUN = {(0, 3): 200.0, (0, 5): 50.0, (0, 9): 12.5}


def record(run, kimg, nfe, value, method, **more):
    return (
        dict(
            run=run,
            data="toy",
            network="MLP",
            parameters=3,
            init="diffusion",
            kimg=kimg,
            nfe=nfe,
            metric="FD",
            features="toy_2",
            value=value,
            low=0.9 * value,
            high=1.1 * value,
            n_samples=200,
            seconds=0.4 * nfe,
            device="toy",
            seed=0,
            method=method,
        )
        | more
    )


def charted(name, values, method="consistency", **more):
    records = [
        record(name, kimg, nfe, value, method, **more) for (kimg, nfe), value in values.items()
    ]
    facts = {k: records[0][k] for k in ("data", "method", "init", "seed")} | dict(
        shape=[1, 4, 4], recipe=None
    )
    return Charted(name, records, facts, None)


@pytest.fixture
def atlas():
    return Atlas([charted("tuned", VALUES), charted("walked", HEUN, "heun")])


A100, LOGGED = speed_of("A100", "cifar10"), speed_of("A100, as others logged", "cifar10")

# ---- distances


def test_expected_between_two_records_by_hand(atlas):
    half = 5000**0.5  # half way from 100 to 50 in logarithms
    assert expected(atlas, "toy", 1, 2)[:3] == pytest.approx((half, 0.9 * half, 1.1 * half))
    value, *_, words = expected(atlas, "toy", 1, 17)
    assert value is None and "from 1 to 16 kimg" in words
    atlas.runs["seed1"] = charted("seed1", {k: 2 * v for k, v in VALUES.items()})
    assert expected(atlas, "toy", 1, 4)[:3] == pytest.approx((75.0, 45.0, 110.0))
    assert "2 runs" in expected(atlas, "toy", 1, 4)[3]
    atlas.runs["scratch"] = charted(
        "scratch", {k: 9 * v for k, v in VALUES.items()}, init="scratch"
    )
    assert expected(atlas, "toy", 1, 4)[0] == pytest.approx(75.0)
    assert (
        expected(atlas, "toy", 8, 4)[0] is None and "no record" in expected(atlas, "toy", 8, 4)[3]
    )


def test_published_numbers_keep_their_name(atlas):
    value, low, high, words = expected(atlas, "cifar10", 2, 12800)
    assert value == pytest.approx(2.20) and "published" in words and low <= value <= high
    assert expected(atlas, "cifar10", 1, 500)[0] is None


def test_logs_of_others_stand_beside_the_paper(atlas):
    value, low, high, words = expected(atlas, "cifar10", 2, 1024)
    assert (
        (low, high) == (2.67, 2.77)
        and low <= 2.73 <= high
        and low < value < high
        and "logged" in words
    )
    value, low, high, words = expected(atlas, "cifar10", 2, 5000)
    assert 2.20 < value < 2.45 and (low, high) == (2.20, 2.45) and "no row lies between" in words
    assert expected(atlas, "cifar10", 1, 1024)[1:3] == (5.06, 7.89)
    assert all(
        expected(atlas, "cifar10", n, k)[0] is None for n in (1, 2) for k in (10, 256, 499, 60_000)
    )
    assert all(l["low"] <= l["high"] for l in logs())


def test_records_of_a_small_network_are_not_lent_to_the_large_one(atlas):
    "A run of CIFAR-10 with few parameters leaves what is said of the released network as it was."
    before = expected(atlas, "cifar10", 2, 1500)
    run = atlas.runs["small"] = charted("small", VALUES, data="cifar10")
    assert (
        expected(atlas, "cifar10", 2, 1500) == before
        and expected(atlas, "cifar10", 1, 4)[0] is None
    )
    for r in run.records:
        r["parameters"] = 55_732_739
    assert expected(atlas, "cifar10", 1, 4)[0] is not None


# ---- speeds


def test_every_speed_was_taken_by_the_clock():
    "Each source says what took how long, and the numbers of the row follow from it."
    hours = dict(s=1 / 3600, min=1 / 60, minutes=1 / 60, hour=1)
    for r in speeds():
        assert r["how"] in ("measured", "published") and 0 < r["low"] <= r["high"]
        assert (
            re.search(r"\b(s|min|minutes|hour)\b", r["source"])
            and "TFLOPS" not in r["source"]
            and "GB/s" not in r["source"]
        )
    by = {(r["device"], r["data"]): (r["low"], r["high"]) for r in speeds()}
    assert by["CPU, one core", "fashion_mnist_20k"] == pytest.approx(
        (24 / 561 * 3600, 24 / 537 * 3600), rel=0.005
    )
    assert by["CPU, a core that others use", "fashion_mnist_20k"] == pytest.approx(
        (24 / 2590 * 3600,) * 2, rel=0.02
    )
    assert by["CPU, two cores", "cifar10"] == pytest.approx(
        (8 / 10.5 * 3.6, 8 / 4.6 * 3.6), rel=0.02
    )
    assert by["A100", "cifar10"] == (8000 * 128 / 1000,) * 2
    assert by["A100, as others logged", "cifar10"] == pytest.approx(
        (256 / 36 * 60, 256 / 24 * 60), rel=0.005
    )
    assert by["Colab G4", "cifar10"] == pytest.approx((3600 / 2.69,) * 2, rel=0.005) and hours
    assert not hasattr(planner, "SHEETS")


def test_a_device_that_nobody_timed_has_no_number(atlas):
    for device in UNTIMED:
        assert all(speed_of(device, data) is None for data in planner.DATA.values())
    assert {"RTX 4090", "RTX 3090", "RTX 4070", "T4", "Apple M"} <= set(devices())


@pytest.mark.parametrize(
    "value, unit, data, rate",
    [
        (800, "kimg an hour", "cifar10", 800),
        (450, "ms a step", "cifar10", 1024),
        (3600, "ms a step", "cifar10", 128),
        (3600, "ms a step", "fashion_mnist_20k", 16),
        (373, "ms a step", "fashion_mnist_20k", 154.4),
    ],
)
def test_a_speed_of_ones_own_by_hand(value, unit, data, rate):
    row = own_speed("RTX 4090", data, value, unit)
    assert (
        row["low"] == row["high"] == pytest.approx(rate, rel=1e-3)
        and row["how"] == "yours"
        and f"{value:g}" in row["source"]
    )


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
def test_what_is_not_above_0_and_finite_is_refused(bad, atlas):
    for call in (
        lambda: own_speed("T4", "cifar10", bad),
        lambda: plan(atlas, A100, bad, 2),
        lambda: plan(atlas, A100, 1, 2, bad),
        lambda: plan(atlas, A100 | dict(low=bad), 1, 2),
        lambda: break_even(1, bad, 1),
        lambda: break_even(1, 2, bad),
    ):
        with pytest.raises(ValueError, match="above 0"):
            call()
    with pytest.raises(ValueError, match="ms a step"):
        own_speed("T4", "cifar10", 3, "miles")


# ---- plans


def test_a_plan_by_hand(atlas):
    speed = dict(device="toy", data="toy", low=1.0, high=4.0, how="measured", source="a clock")
    p = plan(atlas, speed, 2.0, 1)
    assert (p.kimg, p.least, p.most, p.at) == (4.0, 2.0, 8.0, 4.0) and p.value == pytest.approx(50)
    assert p.low == pytest.approx(0.9 * (50 * 25) ** 0.5) and p.high == pytest.approx(
        1.1 * (100 * 50) ** 0.5
    )
    assert p.pays_after == pytest.approx(
        7200 / ((5 * 2 - 2) / 1000)
    )  # Heun's five evaluations are as good: 10 ms against 2 ms


def test_a_budget_beyond_the_records_stops_at_the_last_and_says_so(atlas):
    "Nineteen minutes of one core: the recorded recipe is done after nine."
    real = Atlas.load()
    p = plan(real, speed_of("CPU, one core", "fashion_mnist_20k"), 19 / 60, 2)
    words = plan_words(p)
    assert p.least == pytest.approx(154 * 19 / 60) and p.kimg > 48 and p.at == 24
    last = [
        r.record(24, 2)
        for r in real.where(init="diffusion", method="consistency")
        if r.facts["data"] == "fashion_mnist_20k" and (24, 2) in r.points
    ]
    assert p.value == pytest.approx(sum(r["value"] for r in last) / len(last))
    assert p.low == min(r["low"] for r in last) and p.high == max(r["high"] for r in last)
    assert "nothing longer is recorded" in words and re.search(
        r"24 kimg take 8\.9\d min to 9\.3\d min", words
    )
    assert p.pays_after == pytest.approx(
        break_even(3600 * 24 / math.sqrt(154 * 161), p.walk_ms, p.ms)
    )
    assert plan(atlas, own_speed("x", "cifar10", 1024), 1000, 2).at == 51_200


def test_intervals_hold_what_was_measured_in_reach_and_no_noise(atlas):
    """At the slow end of what others logged lies one run's 8.14; the noise of 256 kimg is said, and
    not averaged in."""
    p = plan(atlas, LOGGED, 2.0, 2)
    assert (p.low, p.high) == (2.67, 8.14) and "Near the edge" in p.warning
    p = plan(atlas, LOGGED, 1.0, 2)
    assert (
        p.least < 500 < p.kimg
        and p.high <= 8.14
        and "noise" in p.warning
        and "knows nothing" in p.source
    )
    p = plan(atlas, A100, 0.25, 2)
    assert p.value is None and "would reach the first" in p.source


def test_the_cold_start_is_warned_of(atlas):
    short, edge, whole = (plan(atlas, A100, h, 2) for h in (0.25, 0.6, 1.0))
    assert "noise" in short.warning and short.value is None and "60 min" in short.warning
    assert [words.split(",")[0] for words, _ in short.choices] == ["small", "iterations_200k"]
    assert (
        "Near the edge" in edge.warning and whole.warning == "" and "noise" not in plan_words(whole)
    )
    assert plan(atlas, dict(A100, data="fashion_mnist_20k"), 0.01, 2).warning == ""


def test_few_pictures_are_walked_and_many_tuned_for(atlas):
    few, many = (plan_words(plan(atlas, LOGGED, 1, 2, n)) for n in (100, 1_000_000))
    assert "walk, unless more" in few and "Your 100 take 3.05 s" in few and "tune, if" in many
    assert plan(atlas, LOGGED, 1, 2).pays_after == pytest.approx(
        3600 / (33 / 1149), rel=1e-6
    )  # 35 evaluations against 2, 1,149 a second
    assert (
        break_even(3600, 100, 10) == 40_000
        and break_even(10, 5, 5) == math.inf
        and break_even(0, 2, 1) == 0
    )


@pytest.mark.parametrize(
    "hours, said",
    [(0.33, "0.33 h"), (8, "8 h"), (0.5, "0.5 h"), (19 / 60, "0.3167 h"), (100, "100 h")],
)
def test_the_hours_are_those_that_were_asked(atlas, hours, said):
    p = plan(atlas, A100, hours, 2)
    assert p.hours == hours and f"Budget: {said} on A100" in plan_words(p)


@pytest.mark.parametrize(
    "kimg", [1, 99, 300, 499, 500, 1024, 2999, 3000, 12_800, 25_600, 51_200, 200_000]
)
@pytest.mark.parametrize("device", ["A100", "T4", "CPU, two cores"])
def test_every_command_is_one_that_recipes_take(kimg, device):
    """The shell's own parser reads it, and a scaled run is as long as the budget;
    tests/test_commands.py runs it."""
    from ect_nb.commands import asked, parser

    for words, command in preset("cifar10", kimg, device):
        a = parser().parse_args(command.removeprefix("python -m ect_nb ").split())
        p, _ = asked(a)
        c = list(p.phases.values())[-1]
        assert words.split(",")[0] == a.preset
        if a.preset.startswith("iterations"):
            assert 0.9 < p.kimg / kimg < 1.1
        if a.preset != "cpu":
            assert (
                c.ema ** (1000 * c.kimg / c.batch) < 0.02
            )  # nearly nothing of the start is left in the average
    assert (
        device != "T4"
        or not 500 <= kimg < 3000
        or preset("cifar10", kimg, device)[0][0].startswith("t4")
    )


def test_a_plan_is_short_lines_with_each_command_alone_on_one(atlas):
    for speed in (A100, LOGGED, own_speed("RTX 4090", "cifar10", 300)):
        for hours in (0.25, 1, 30):
            p = plan(atlas, speed, hours, 2)
            lines = plan_words(p).splitlines()
            assert [l.split(":")[0] for l in lines if not l.startswith("python")][
                0
            ] == "Budget" and lines[-1].startswith("Pays: ")
            assert [l for l in lines if "python -m" in l] == [command for _, command in p.choices]
            assert all(len(l) < 400 for l in lines)


# ---- the panel


def shown(panel):
    "The text of the panel's words, without marks."
    text = next(c.value for c in panel.children if "ect-readout" in getattr(c, "value", ""))
    return html.unescape(re.sub(r"<[^>]+>", "\n", text))


def alert(panel):
    return next(
        (c.value for c in panel.children if 'role="alert"' in getattr(c, "value", "")), None
    )


def test_the_panel_at_every_device_and_evaluation(atlas):
    panel = planner.planner(atlas)
    c = panel.controls
    for data in c["data"].options:
        for device in c["device"].options:
            for nfe in (1, 2, 4, 8):
                c["data"].value, c["device"].value, c["evaluations"].value = data, device, nfe
                assert alert(panel) is None and panel.still()[0].startswith(b"\x89PNG")
                timed = speed_of(device, planner.DATA[data])
                assert ("nobody has timed" in shown(panel)) == (
                    timed is None
                ) and "python -m ect_nb" in shown(panel)
                assert c["data"].value == data  # the device does not pick the data


@pytest.mark.parametrize("hours", ["0.33", "8", "0.1", "10,000"])
def test_what_is_typed_stays(atlas, hours):
    panel = planner.planner(atlas)
    panel.controls["hours"].value = hours
    assert panel.controls["hours"].value == hours and alert(panel) is None
    assert f"{hours} h on A100" in shown(panel)


def test_a_speed_of_ones_own_is_typed_for_any_device(atlas):
    panel = planner.planner(atlas, "RTX 4090", hours=1)
    c = panel.controls
    assert "nobody has timed RTX 4090" in shown(panel) and "--hours 0.02" in shown(panel)
    c["speed"].value = "1,000"
    assert "1,000 kimg of cifar10" in shown(panel) and "yours" in shown(panel)
    c["speed"].value, c["unit"].value = "450", "ms a step"
    assert "1,024 kimg of cifar10" in shown(panel) and "450 ms a step of 128 pictures" in shown(
        panel
    )
    c["device"].value = "A100"  # typed goes before recorded
    assert "450 ms a step" in shown(panel)
    c["speed"].value = ""
    assert "published" in shown(panel)


@pytest.mark.parametrize("name", ["hours", "pictures", "speed"])
@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "abc", "1e999", "0,33", "1 2", "9" * 30])
def test_what_is_no_number_is_said_and_mended(atlas, name, text):
    panel = planner.planner(atlas)
    before = panel.controls[name].value
    panel.controls[name].value = text
    assert "is not a number above 0" in alert(panel) and "none, for the reason below" in shown(
        panel
    )
    panel.controls[name].value = before
    assert alert(panel) is None and "kimg" in shown(panel)
    with pytest.raises(ValueError, match="choose among"):
        planner.planner(atlas, "abacus")


@pytest.mark.parametrize(
    "text, value",
    [
        ("0.33", 0.33),
        (" 8 ", 8),
        ("10,000", 10_000),
        (".5", 0.5),
        ("2e3", 2000),
        ("1,234.5", 1234.5),
    ],
)
def test_numbers_are_read_as_they_are_written(text, value):
    assert typed("hours", text, 1e6) == value


def test_rates_of_a_trial_and_of_a_run(tmp_path):
    import torch
    from ect_nb import ECT, MLP, Config, Precond, Stages
    from ect_nb.show.planner import of_run, timed, trial
    from ect_nb.training.runs import RunFolder

    points, config = torch.randn(64, 2), Config(ECT(c=0.03), batch=32, stages=Stages(1, 500, 3))
    row = trial(Precond(MLP(dim=2, width=8)), points, config, "fashion_mnist_20k", 0.3)
    assert 0 < row["low"] <= row["high"] and row["how"] == "measured" and "trial" in row["source"]
    spans = [0.1] * 8 + [0.2] * 2
    assert timed(spans, 128, "d", "cifar10", "s")["high"] == pytest.approx(3.6 * 128 / 0.1)
    assert timed(spans, 128, "d", "cifar10", "s")["low"] == pytest.approx(3.6 * 128 / 0.2)
    with pytest.raises(ValueError, match="no step"):
        timed([], 128, "d", "cifar10", "s")
    run = RunFolder(tmp_path / "run")
    for k in range(1, 21):  # an early stage at half the time, then 36 s a kimg
        seconds = 18.0 * min(k, 10) + 36.0 * max(k - 10, 0)
        run.record(metric="loss", value=1.0, kimg=float(k), stage=int(k > 10), seconds=seconds)
    row = of_run(tmp_path / "run")
    assert row["low"] == row["high"] == pytest.approx(100.0) and "records" in row["source"]
    with pytest.raises(ValueError, match="no records"):
        of_run(tmp_path / "none")
