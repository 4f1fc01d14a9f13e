import math
import numpy as np
import pytest
import torch
from ect_nb.schedules import (
    ConstantMapping,
    LogNormal,
    SigmoidMapping,
    Stages,
    design,
    paper_exponent,
    plan,
    stage_facts,
)
from scipy import stats


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def r_by_hand(t, q, exponent, k=8.0, b=1.0):
    "Geng et al. 2024 in NumPy float64; k = 0 is the constant mapping."
    t = np.asarray(t, np.float64)
    return np.maximum(0, t * (1 - (1 + k / (1 + np.exp(b * t))) / q**exponent))


T = torch.logspace(-4, 2, 61, dtype=torch.float64)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("stage", [0, 1, 3, 7])
@pytest.mark.parametrize("q, k, b", [(2.0, 8.0, 1.0), (4, 8.0, 1.0), (3.0, 2.5, 0.3)])
def test_the_mappings_are_the_formula(q, k, b, stage, first):
    for mapping, k_ in (
        (SigmoidMapping(q=q, first=first, k=k, b=b), k),
        (ConstantMapping(q=q, first=first), 0),
    ):
        assert np.allclose(
            mapping(T, stage), r_by_hand(T, q, stage + first, k_, b), rtol=1e-12, atol=0
        )


@pytest.mark.parametrize(
    "mapping", [SigmoidMapping(), SigmoidMapping(q=256), ConstantMapping(), SigmoidMapping(first=0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_r_stays_between_0_and_t_with_the_shape_and_type_of_t(mapping, dtype):
    t = torch.cat(
        [torch.tensor([0.0, 1e-30, 1e-8], dtype=dtype), torch.logspace(-4, 4, 97, dtype=dtype)]
    ).view(4, 25)
    for stage in range(13):
        r = mapping(t, stage)
        assert r.shape == t.shape and r.dtype == dtype and bool(((r >= 0) & (r <= t)).all())


# stage: share of rows with r > 0, mean Δt/t, median 1/(t - r), as published for q = 2; half a unit
# of the last printed digit and the
# sampling error of 200,000 draws (0.001 in a share, 0.5 % in a median) make the tolerances
@pytest.mark.parametrize(
    "stage, share, gap, weight",
    [
        (0, 0.19, 0.929, 3.0),
        (1, 0.41, 0.823, 3.0),
        (2, 1, 0.462, 5.6),
        (3, 1, 0.231, 11),
        (4, 1, 0.115, 22),
        (5, 1, 0.058, 44),
        (6, 1, 0.029, 89),
        (7, 1, 0.0144, 178),
    ],
)
def test_the_table_of_stages(stage, share, gap, weight):
    t = LogNormal().sample(200_000, seeded()).double()
    r = SigmoidMapping()(t, stage)
    assert (r > 0).double().mean() == pytest.approx(share, abs=0.007)
    assert ((t - r) / t).mean() == pytest.approx(gap, abs=0.0015)
    assert (1 / (t - r)).median() == pytest.approx(weight, rel=0.03)


@pytest.mark.parametrize("stage, edge", [(0, math.log(7)), (1, math.log(5 / 3))])
def test_early_stages_compare_with_another_noise_level_only_above_a_known_one(stage, edge):
    below, above = SigmoidMapping()(
        torch.tensor([edge * (1 - 1e-9), edge * (1 + 1e-9)], dtype=torch.float64), stage
    )
    assert below == 0 < above
    share = stats.lognorm(s=2.0, scale=math.exp(-1.1)).sf(edge)
    r = SigmoidMapping()(LogNormal().sample(100_000, seeded(1)), stage)
    assert (r > 0).double().mean() == pytest.approx(
        share, abs=4 * math.sqrt(share * (1 - share) / 1e5)
    )


def test_q_256_at_stage_0_is_q_2_at_stage_7_bit_for_bit():
    t = LogNormal().sample(10_000, seeded(2))
    for kind in (SigmoidMapping, ConstantMapping):
        assert torch.equal(kind(q=256)(t, 0), kind(q=2)(t, 7))
    share = 1 - SigmoidMapping()(t.double(), 7) / t.double()
    assert (
        share.min() >= 1 / 256 - 1e-12 and share.max() <= 5 / 256 + 1e-12
    )  # n(t) runs from 5 to 1


def test_the_paper_starts_in_pure_diffusion():
    for mapping in (SigmoidMapping(first=0), ConstantMapping(first=0)):
        assert (mapping(T, 0) == 0).all()
    assert torch.equal(SigmoidMapping(first=0)(T, 5), SigmoidMapping()(T, 4))


def test_steps_shrink_from_stage_to_stage():
    r = torch.stack([SigmoidMapping()(T, stage) for stage in range(10)])
    assert (r.diff(dim=0) >= 0).all() and (r[2:].diff(dim=0) > 0).all()


@pytest.mark.parametrize(
    "stages, images, stage",
    [
        (Stages(), 10**9, 0),
        (Stages(3), 10**9, 3),
        (Stages(every=100), 0, 0),
        (Stages(every=100), 99, 0),
        (Stages(every=100), 100, 1),
        (Stages(2, 100), 350, 5),
        (Stages(2, 100, 4), 350, 4),
        (Stages(2, 100, 4), 0, 2),
        (
            Stages(every=3_200_000),
            25_599_999,
            7,
        ),  # run_ecm.sh: 25.6 Mimg in stages of 250 ticks of 12.8 kimg
        (Stages(every=250 * 12_800), 25_600_000 - 128, 7),
    ],
)
def test_a_stage_follows_from_the_number_of_images(stages, images, stage):
    assert stages.at(images) == stage


@pytest.mark.parametrize(
    "iteration, exponent",
    [(0, 0), (1, 1), (24_999, 1), (25_000, 1), (25_001, 2), (175_000, 7), (175_001, 8)],
)
def test_the_exponent_of_the_paper_is_rounded_up(iteration, exponent):
    assert paper_exponent(iteration, 25_000) == exponent


@pytest.mark.parametrize("mean, std", [(-1.1, 2.0), (-1.2, 1.2)])
def test_draws_and_quantiles_of_t_are_lognormal(mean, std):
    p, dist = LogNormal(mean, std), stats.lognorm(s=std, scale=math.exp(mean))
    t, levels = (
        p.sample(20_000, seeded(3)),
        torch.tensor([1e-6, 0.01, 0.05, 0.5, 0.95, 0.99, 1 - 1e-6], dtype=torch.float64),
    )
    assert (
        t.shape == (20_000,)
        and t.dtype == torch.float32
        and stats.kstest(t.numpy(), dist.cdf).pvalue > 0.01
    )
    assert np.allclose(p.quantile(levels), dist.ppf(levels), rtol=1e-9)
    assert float(p.quantile(0.5)) == pytest.approx(math.exp(mean))


def test_ect_draws_t_as_published_and_does_not_truncate_it():
    found = LogNormal().quantile(torch.tensor([0.01, 0.05, 0.5, 0.95, 0.99]))
    assert np.allclose(
        found, [0.0032, 0.012, 0.333, 8.9, 34.8], rtol=0.04
    )  # printed with two or three digits
    t = LogNormal().sample(200_000, seeded(4))
    for edge in (0.002, 80.0):
        share = stats.lognorm(s=2.0, scale=math.exp(-1.1)).cdf(edge)
        assert (t < edge).double().mean() == pytest.approx(
            share, abs=4 * math.sqrt(share * (1 - share) / 2e5)
        )
    assert t.min() < 0.002 and t.max() > 80


def test_the_generator_decides_the_draw():
    assert torch.equal(LogNormal().sample(9, seeded(5)), LogNormal().sample(9, seeded(5)))
    assert not torch.equal(LogNormal().sample(9, seeded(5)), LogNormal().sample(9, seeded(6)))


# What a batch is made of, against SciPy's lognormal and quadrature


def integrals(mapping, mean, std, stage):
    """share of r > 0, mean Δt/t by the trapezoid rule on a fine grid of ln t, and the weight at the
    median t (t - r grows with t)."""
    u = np.linspace(mean - 9 * std, mean + 9 * std, 400_001)
    r = r_by_hand(np.exp(u), mapping.q, stage + mapping.first, mapping.k, mapping.b)
    p = stats.norm(mean, std).pdf(u)
    median = math.exp(mean)
    return (
        np.trapezoid(p * (r > 0), u),
        np.trapezoid(p * (1 - r / np.exp(u)), u),
        1
        / (
            median
            - float(r_by_hand(median, mapping.q, stage + mapping.first, mapping.k, mapping.b))
        ),
    )


@pytest.mark.parametrize("stage", [0, 1, 2, 7])
@pytest.mark.parametrize(
    "mapping, p_t",
    [
        (SigmoidMapping(), LogNormal()),
        (SigmoidMapping(first=0), LogNormal()),
        (SigmoidMapping(3.0, k=5.0, b=0.5), LogNormal(0.7, 1.3)),
    ],
)
def test_stage_facts_are_the_integrals(mapping, p_t, stage):
    facts = stage_facts(mapping, p_t, stage)
    assert tuple(facts) == ("share", "gap", "weight")
    assert np.allclose(
        list(facts.values()), integrals(mapping, p_t.mean, p_t.std, stage), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("mean, std", [(-1.1, 2.0), (0.4, 0.7)])
def test_the_share_below_a_level_is_scipys(mean, std):
    t = np.array([1e-4, 0.3, 1.0, 80.0])
    assert np.allclose(
        LogNormal(mean, std).cdf(torch.from_numpy(t)),
        stats.lognorm(s=std, scale=math.exp(mean)).cdf(t),
        rtol=1e-12,
    )
    assert float(LogNormal(mean, std).cdf(math.exp(mean))) == pytest.approx(0.5)


# Designs


@pytest.mark.parametrize("stages, kimg", [(1, 0.5), (3, 1.0), (7, 64), (8, 25_600)])
def test_a_plan_counts_every_picture_in_the_stage_that_the_trainer_gives_it(stages, kimg):
    d = design(stages=stages, kimg=kimg)
    rows = plan(**d)
    assert [r["stage"] for r in rows] == list(range(stages)) and sum(
        r["images"] for r in rows
    ) == kimg * 1000
    if kimg < 100:
        seen = [d["stages"].at(i) for i in range(int(kimg * 1000))]
        assert [r["images"] for r in rows] == [seen.count(s) for s in range(stages)]


@pytest.mark.parametrize(
    "stages, expected",
    [
        (Stages(2), {2: 10_000}),
        (Stages(0, 4_000), {0: 4_000, 1: 4_000, 2: 2_000}),
        (Stages(3, 2_000, 4), {3: 2_000, 4: 8_000}),
        (Stages(5, 99_999), {5: 10_000}),
    ],
)
def test_a_plan_follows_any_stages(stages, expected):
    assert {
        r["stage"]: r["images"] for r in plan(SigmoidMapping(), stages, LogNormal(), 10)
    } == expected


def test_a_design_is_what_ect_and_config_take():
    from ect_nb.objectives import ECT
    from ect_nb.training.config import Config

    d = design(q=4, k=3.0, b=2.0, stages=4, kimg=64, P_mean=-0.8, P_std=1.6)
    objective = ECT(mapping=d["mapping"], p_t=d["p_t"])
    config = Config(objective=objective, stages=d["stages"], kimg=d["kimg"])
    assert (config.objective.mapping, config.objective.p_t, config.kimg) == (
        SigmoidMapping(4, k=3.0, b=2.0),
        LogNormal(-0.8, 1.6),
        64,
    )
    assert [config.stages.at(i) for i in (0, 15_999, 16_000, 63_999, 10**9)] == [0, 0, 1, 3, 3]
    assert plan(**d)[-1]["gap"] == pytest.approx(
        plan(**design(q=256, k=3.0, b=2.0, stages=1, P_mean=-0.8, P_std=1.6))[0]["gap"]
    )


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(q=1), "q must be above 1"),
        (dict(k=-1), "k at least 0"),
        (dict(b=0), "b above 0"),
        (dict(stages=0), "whole number"),
        (dict(stages=2.5), "whole number"),
        (dict(kimg=0), "above 0"),
        (dict(P_std=0), "above 0"),
        (dict(q=math.nan), "q must be above 1"),
    ],
)
def test_a_design_that_makes_no_schedule_is_a_sentence(wrong, says):
    with pytest.raises(ValueError, match=says):
        design(**wrong)
