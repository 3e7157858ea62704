"""The paired bootstrap against its exact distribution, and what is counted as won."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from isfl_ros.errors import InputError
from isfl_ros.evaluation import tables
from isfl_ros.evaluation.bootstrap import BootstrapConfig, bootstrap_interval
from isfl_ros.evaluation.compare import HEADLINE, PERSON, summarize
from isfl_ros.evaluation.metrics import METRICS
from isfl_ros.evaluation.scoring import Scores
from isfl_ros.evaluation.sets import LeftOut, PairSet
from isfl_ros.io.folders import Pair


def _exact(numerators, weights, confidence):
    """Every draw of n out of n with replacement is equally likely: all n^n of them."""
    draws = [list(draw) for draw in itertools.product(range(len(numerators)), repeat=len(numerators))]
    ratios = [numerators[draw].sum() / weights[draw].sum() for draw in draws if weights[draw].sum() > 0]
    tail = (1 - confidence) / 2
    return np.quantile(ratios, (tail, 1 - tail), method="inverted_cdf")


# Levels that do not fall on a step of the exact distribution, where the drawn quantile could be on either side of it.
@pytest.mark.parametrize(
    ("values", "confidence"), [([-3.0, 1.0], 0.3), ([0.0, 1.0, 5.0], 0.9), ([0.1, -0.7, 2.0, 3.5, 1.1], 0.9)]
)
def test_the_interval_is_that_of_all_draws(values, confidence):
    values = np.array(values)
    config = BootstrapConfig(resamples=40_000, confidence=confidence)
    low, high = bootstrap_interval(values[:, None], np.ones(len(values)), config)
    expected = _exact(values, np.ones(len(values)), confidence)
    step = np.ptp(values) / len(values) / 4
    assert (low[0], high[0]) == pytest.approx(expected, abs=max(step, 1e-12))


def test_a_ratio_is_drawn_by_pairs_of_pictures():
    sums, people = np.array([0.9, -0.5, 4.0, 0.0]), np.array([3.0, 1.0, 8.0, 0.0])
    config = BootstrapConfig(resamples=60_000, confidence=0.9)
    low, high = bootstrap_interval(sums[:, None], people, config)
    assert (low[0], high[0]) == pytest.approx(_exact(sums, people, 0.9), abs=0.03)


def test_many_pairs_give_the_normal_interval():
    values = np.random.default_rng(5).normal(0.3, 2.0, (400, 2))
    low, high = bootstrap_interval(values, np.ones(400), BootstrapConfig(resamples=20_000))
    half = 1.959964 * values.std(axis=0) / math.sqrt(400)  # the bootstrap's variance is the population variance over n
    np.testing.assert_allclose(low, values.mean(axis=0) - half, atol=0.05 * half.max())
    np.testing.assert_allclose(high, values.mean(axis=0) + half, atol=0.05 * half.max())


def test_the_seed_decides():
    values = np.random.default_rng(1).normal(size=(30, 3))

    def interval(**options):
        return np.array(bootstrap_interval(values, np.ones(30), BootstrapConfig(resamples=1500, **options)))

    np.testing.assert_array_equal(interval(), interval())
    assert (interval() != interval(seed=1)).all()
    assert (interval(confidence=0.5)[0] > interval()[0]).all() and (interval(confidence=0.5)[1] < interval()[1]).all()


@pytest.mark.parametrize("options", [{"resamples": 0}, {"confidence": 1.0}, {"confidence": 0.0}, {"seed": -1}])
def test_options_out_of_range(options):
    with pytest.raises(InputError, match="out of range"):
        BootstrapConfig(**options)


def _pair_set(stems, left_out=(), label=None):
    pairs = tuple(Pair(stem, stem, stem, label) for stem in stems)
    items = tuple(LeftOut(set="s", stem=stem, cause="unpaired", why=f"{stem}.png has no partner") for stem in left_out)
    return PairSet(name="s", spec="s", pairs=pairs, left_out=items)


def _summary(values, people=(), *, stems="abcd", references=("theirs",), **options):
    """`values`: method -> metric -> one value a pair; metrics that are not named are 1 everywhere."""
    images = [
        {"method": method, "set": "s", "stem": stem} | {m: metrics.get(m, [1.0] * len(stems))[k] for m in METRICS}
        for k, stem in enumerate(stems)
        for method, metrics in values.items()
    ]
    rows = [dict(zip(("method", "set", "stem", "person", "contrast"), row)) for row in people]
    pair_set = _pair_set(stems, label="label.png" if people else None, **options)
    bootstrap = BootstrapConfig(resamples=200)
    return summarize(Scores(images, rows), [pair_set], list(values), references=references, bootstrap=bootstrap)["s"]


def test_wins_by_direction():
    summary = _summary(
        {
            "theirs": {"AG": [1, 2, 3, 4], "Nabf": [1, 2, 3, 4], "EN": [1, 2, 3, 4]},
            "ours": {"AG": [2, 2, 4, 3], "Nabf": [2, 2, 4, 3], "EN": [2, 2, 4, 3]},
        }
    )
    assert list(summary.differences) == ["theirs"] and list(summary.differences["theirs"]) == ["ours"]
    found = summary.differences["theirs"]["ours"]
    assert (found["AG"].wins, found["AG"].losses, found["AG"].ties) == (2, 1, 1)
    assert (found["Nabf"].wins, found["Nabf"].losses, found["Nabf"].ties) == (1, 2, 1)  # down is better
    assert (found["EN"].wins, found["EN"].losses, found["EN"].ties) == (None, None, None)
    assert found["AG"].mean == found["Nabf"].mean == 0.25
    assert (found["SF"].mean, found["SF"].low, found["SF"].high, found["SF"].clear) == (0, 0, 0, False)
    verdict = summary.verdict("ours", "theirs")
    assert verdict.better_on == ["AG"] and verdict.lost == [m for m in HEADLINE if m != "AG"]
    assert not verdict.nabf_not_worse and set(HEADLINE) < set(METRICS)


def test_every_reference_has_its_own_comparison():
    summary = _summary(
        {"theirs": {"AG": [1] * 4, "Nabf": [2] * 4}, "free": {"AG": [5] * 4, "Nabf": [1] * 4}, "ours": {"AG": [3] * 4}},
        references=("theirs", "free"),
    )
    assert {reference: list(methods) for reference, methods in summary.differences.items()} == {
        "theirs": ["free", "ours"], "free": ["theirs", "ours"]
    }
    assert summary.differences["theirs"]["ours"]["AG"].mean == 2
    assert summary.differences["free"]["ours"]["AG"].mean == -2
    won, lost = summary.verdict("ours", "theirs"), summary.verdict("ours", "free")
    assert won.better_on == ["AG"] and won.nabf_not_worse
    assert lost.better_on == [] and lost.nabf_not_worse  # equal is not worse
    found = summary.as_dict()["verdicts"]["free"]["theirs"]
    assert found == {"better_on": [], "lost": list(HEADLINE), "nabf_not_worse": False}
    assert tables.verdict_lines(summary) == [
        ("free against theirs", "better mean on 1 of 8 (not SF, PSNR, CC, Qabf, MI, VIF, SSIM), Nabf not worse (-1)"),
        ("ours against theirs", "better mean on 1 of 8 (not SF, PSNR, CC, Qabf, MI, VIF, SSIM), Nabf not worse (-1)"),
        ("theirs against free", f"better mean on 0 of 8 (not {', '.join(HEADLINE)}), Nabf worse (+1)"),
        ("ours against free", f"better mean on 0 of 8 (not {', '.join(HEADLINE)}), Nabf not worse (+0)"),
    ]


def test_clear_only_where_the_interval_leaves_out_zero():
    summary = _summary({"theirs": {"AG": [0] * 4, "SF": [0] * 4}, "ours": {"AG": [1, 2, 3, 1], "SF": [-9, 2, 3, 8]}})
    found = summary.differences["theirs"]["ours"]
    assert found["AG"].clear and not found["SF"].clear


def test_infinite_and_single_values_have_no_interval():
    inf = float("inf")
    summary = _summary({"theirs": {"PSNR": [inf, 9, 9, 9]}, "ours": {"PSNR": [inf, 9, inf, 9], "AG": [2, 2, 2, 2]}})
    psnr = summary.differences["theirs"]["ours"]["PSNR"]
    assert (psnr.mean, psnr.low, psnr.high) == (inf, None, None)
    assert (psnr.wins, psnr.losses, psnr.ties) == (1, 0, 3) and not psnr.clear
    assert summary.differences["theirs"]["ours"]["AG"].low == 1  # the others are not spoilt
    one = _summary({"theirs": {}, "ours": {"AG": [5]}}, stems="a").differences["theirs"]["ours"]["AG"]
    assert (one.mean, one.low, one.high, one.wins) == (4, None, None, 1)


def test_people_are_compared_one_by_one():
    people = [
        ("theirs", "s", "a", 1, 0.5), ("theirs", "s", "a", 2, 0.7), ("theirs", "s", "c", 1, 0.9),
        ("ours", "s", "a", 1, 0.6), ("ours", "s", "a", 2, 0.9), ("ours", "s", "c", 1, 0.3),
    ]
    summary = _summary({"theirs": {}, "ours": {}}, people)
    person = summary.differences["theirs"]["ours"][PERSON]
    assert person.mean == pytest.approx((0.1 + 0.2 - 0.6) / 3)
    assert (person.wins, person.losses, person.ties) == (2, 1, 0)
    # Pictures are drawn whole: the ends are picture a alone and picture c alone.
    assert (person.low, person.high) == (pytest.approx(-0.6), pytest.approx(0.15))
    assert summary.methods["ours"]["person_median"] == 0.6 and summary.methods["ours"]["people"] == 3


def test_pairs_left_out_are_counted():
    summary = _summary({"theirs": {}, "ours": {}}, left_out=("x", "y"))
    assert (summary.pairs, summary.total) == (4, 6)
    assert [item["stem"] for item in summary.left_out] == ["x", "y"]
