"""Metrics against slow, plain oracles and against the golden values."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from isfl_ros.errors import InputError
from isfl_ros.evaluation.baselines import BASELINES
from isfl_ros.evaluation.metrics import METRICS, MIN_SIZE, score

SHARED = Path(__file__).resolve().parents[3] / "shared"
REFERENCE = Path(os.environ.get("ISFL_REFERENCE", SHARED / "reference"))
DATA = Path(os.environ.get("ISFL_DATA", SHARED / "data"))
GOLDEN = REFERENCE / "metrics_golden.json"
TOLERANCE = {"VIF": 1e-4, "Qabf": 1e-4}


# Oracles: one pixel or one window at a time, nothing but the definition.


def _pearson(x, y):
    x, y = x.ravel().tolist(), y.ravel().tolist()
    mx, my = math.fsum(x) / len(x), math.fsum(y) / len(y)
    cov = math.fsum((p - mx) * (q - my) for p, q in zip(x, y))
    return cov / math.sqrt(math.fsum((p - mx) ** 2 for p in x) * math.fsum((q - my) ** 2 for q in y))


def _slope(line, i):
    if i == 0:
        return line[1] - line[0]
    if i == len(line) - 1:
        return line[-1] - line[-2]
    return (line[i + 1] - line[i - 1]) / 2


def _ag(f, a, b):
    total = 0.0
    for y in range(f.shape[0]):
        for x in range(f.shape[1]):
            total += math.sqrt((_slope(f[y, :], x) ** 2 + _slope(f[:, x], y) ** 2) / 2)
    return total / f.size


def _sf(f, a, b):
    height, width = f.shape
    dx = [(f[y, x] - f[y, x - 1]) ** 2 for y in range(height) for x in range(1, width)]
    dy = [(f[y, x] - f[y - 1, x]) ** 2 for y in range(1, height) for x in range(width)]
    return math.sqrt(sum(dx) / len(dx) + sum(dy) / len(dy)) / 2.55


def _psnr_db(f, a, b):
    errors = [((p - q) / 255) ** 2 for source in (a, b) for p, q in zip(f.ravel(), source.ravel())]
    return 10 * math.log10(1 / (math.fsum(errors) / len(errors)))


def _bits(symbols):
    counts = Counter(symbols)
    total = sum(counts.values())
    return -sum(n / total * math.log2(n / total) for n in counts.values())


def _mi(f, a, b):
    f, a, b = (x.ravel().tolist() for x in (f, a, b))
    return sum(_bits(f) + _bits(s) - _bits(zip(f, s)) for s in (a, b))


def _sobel_at(padded, y, x):
    """Right minus left, above minus below, around pixel (y, x) of the picture inside a one pixel frame."""
    w = padded[y : y + 3, x : x + 3]
    right, left = w[0, 2] + 2 * w[1, 2] + w[2, 2], w[0, 0] + 2 * w[1, 0] + w[2, 0]
    above, below = w[0, 0] + 2 * w[0, 1] + w[0, 2], w[2, 0] + 2 * w[2, 1] + w[2, 2]
    return right - left, above - below


def _qabf(f, a, b):
    def edge(padded, y, x):
        sx, sy = _sobel_at(padded, y, x)
        return math.sqrt(sx * sx + sy * sy), math.atan(sy / sx) if sx else math.pi / 2

    pf, pa, pb = (np.pad(x, 1) for x in (f, a, b))
    above = below = 0.0
    for y in range(f.shape[0]):
        for x in range(f.shape[1]):
            gf, tf = edge(pf, y, x)
            for padded in (pa, pb):
                g, t = edge(padded, y, x)
                change = g if g == gf else min(g, gf) / max(g, gf)
                turn = 1 - abs(t - tf) / (math.pi / 2)
                q_change = 0.9994 / (1 + math.exp(-15 * (change - 0.5)))
                q_turn = 0.9879 / (1 + math.exp(-22 * (turn - 0.8)))
                above += q_change * q_turn * g
                below += g
    return above / below


def _nabf(f, a, b):
    def edge(padded, y, x):
        sx, sy = (s / 8 for s in _sobel_at(padded, y, x))
        angle = math.atan(sy / sx) if sx else math.copysign(math.pi / 2, sy) if sy else 0.0
        return math.sqrt(sx * sx + sy * sy), angle

    pf, pa, pb = (np.pad(x, 1, mode="reflect") for x in (f, a, b))
    above = below = 0.0
    for y in range(f.shape[0]):
        for x in range(f.shape[1]):
            gf, tf = edge(pf, y, x)
            sources = [edge(padded, y, x) for padded in (pa, pb)]
            new = all(gf > g for g, _ in sources)
            for g, t in sources:
                weight = g**1.5 if g >= 2 else 0.0
                change = min(g, gf) / max(g, gf) if g and gf else 0.0
                turn = abs(abs(t - tf) - math.pi / 2) / (math.pi / 2)
                q = math.sqrt(
                    0.9999 / (1 + math.exp(-19 * (change - 0.5))) * 0.9995 / (1 + math.exp(-22 * (turn - 0.5)))
                )
                below += weight
                above += (1 - q) * weight if new else 0.0
    return above / below


def _window(size, sigma):
    i = np.arange(size) - size // 2
    weights = np.exp(-(i[:, None] ** 2 + i[None, :] ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def _windows(image, size):
    for y in range(image.shape[0] - size + 1):
        for x in range(image.shape[1] - size + 1):
            yield image[y : y + size, x : x + size]


def _moments(x, y, weights):
    """Mean x, mean y, variance x, variance y, covariance of one window, from the deviations."""
    mx, my = (weights * x).sum(), (weights * y).sum()
    dx, dy = x - mx, y - my
    return mx, my, (weights * dx * dx).sum(), (weights * dy * dy).sum(), (weights * dx * dy).sum()


def _ssim(f, a, b, c1=6.5025, c2=58.5225):
    weights = _window(11, 1.5)
    total = 0.0
    for source in (a, b):
        values = []
        for x, y in zip(_windows(source, 11), _windows(f, 11)):
            mx, my, vx, vy, cov = _moments(x, y, weights)
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2)))
        total += sum(values) / len(values)
    return total


def _vif(f, a, b):
    total = 0.0
    for source in (a, b):
        x, y = source, f
        kept = there = 0.0
        for size in (17, 9, 5, 3):
            weights = _window(size, size / 5)
            if size < 17:
                shape = tuple(n - size + 1 for n in x.shape)
                x, y = (
                    np.array([(weights * w).sum() for w in _windows(p, size)]).reshape(shape)[::2, ::2] for p in (x, y)
                )
            for wx, wy in zip(_windows(x, size), _windows(y, size)):
                _, _, vx, vy, cov = _moments(wx, wy, weights)
                gain = max(cov / vx, 0.0)
                residual = vy - gain * cov
                kept += math.log10(1 + gain**2 * vx / (residual + 2))
                there += math.log10(1 + vx / 2)
        total += kept / there
    return total


ORACLES = {
    "AG": _ag,
    "SF": _sf,
    "PSNR": lambda f, a, b: _psnr_db(f, a, b) + 48.1308036086791,
    "PSNR_dB": _psnr_db,
    "CC": lambda f, a, b: (_pearson(f, a) + _pearson(f, b)) / 2,
    "Qabf": _qabf,
    "MI": _mi,
    "VIF": _vif,
    "SSIM": _ssim,
    "SSIM_mean0": lambda f, a, b: _ssim(f, a, b, 1e-4, 1e-4) / 2,
    "EN": lambda f, a, b: _bits(f.ravel().tolist()),
    "SD": lambda f, a, b: math.sqrt(sum((f.ravel() - f.mean()) ** 2) / f.size),
    "SCD": lambda f, a, b: _pearson(f - b, a) + _pearson(f - a, b),
    "Nabf": _nabf,
}


def _triple(height, width, seed):
    """Fused, infrared and visible pictures with edges, flat parts and noise in common."""
    random = np.random.default_rng(seed)
    a, b = (cv2.GaussianBlur(random.uniform(-900, 1100, (height, width)), (0, 0), 3) for _ in range(2))
    a[:, width // 3 :] += 60  # an upright edge: Sx alone
    b[height // 2 :, :] -= 50  # a level edge: Sy alone
    a[: height // 3, : width // 3] = 40  # flat in all three
    b[: height // 3, : width // 3] = 90
    f = 0.55 * a + 0.5 * b + random.normal(0, 4, a.shape) * (np.arange(width) > width // 2)
    return tuple(np.clip(np.rint(x), 0, 255).astype(np.uint8) for x in (f, a, b))


@pytest.mark.parametrize("size", [(43, 57), (64, 41)])
@pytest.mark.parametrize("metric", METRICS)
def test_metric_is_its_definition(metric, size):
    fused, infrared, visible = (x.astype(np.float64) for x in _triple(*size, seed=sum(size)))
    expected = ORACLES[metric](fused, infrared, visible)
    assert expected != 0
    assert METRICS[metric].function(fused, infrared, visible) == pytest.approx(expected, rel=1e-9)


def test_every_metric_has_an_oracle_and_a_direction():
    assert set(ORACLES) == set(METRICS)
    assert [name for name, metric in METRICS.items() if metric.better == "down"] == ["Nabf"]
    assert [name for name, metric in METRICS.items() if metric.better == "shown"] == ["EN", "SD"]


def test_score_gives_all_metrics_and_leaves_its_input_alone():
    pictures = _triple(45, 49, seed=1)
    before = [picture.copy() for picture in pictures]
    values = score(*pictures)
    assert list(values) == list(METRICS)
    for picture, copy in zip(pictures, before):
        np.testing.assert_array_equal(picture, copy)
    levels = [picture.astype(np.float64) for picture in pictures]
    assert values == {name: metric.function(*levels) for name, metric in METRICS.items()}


def test_score_takes_views_as_well_as_whole_arrays():
    fused, infrared, visible = _triple(45, 98, seed=2)
    strided = score(fused[:, ::2], infrared[:, ::2], visible[:, ::2])
    assert strided == score(*(np.ascontiguousarray(x[:, ::2]) for x in (fused, infrared, visible)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("constant", ["all", "fused", "infrared", "visible", "sources"])
@pytest.mark.parametrize("level", [0, 77])
def test_constant_pictures_give_numbers(constant, level):
    pictures = dict(zip(("fused", "infrared", "visible"), _triple(47, 43, seed=3)))
    flat = {"all": ("fused", "infrared", "visible"), "sources": ("infrared", "visible")}.get(constant, (constant,))
    for name in flat:
        pictures[name] = np.full((47, 43), level, np.uint8)
    values = score(*pictures.values())
    assert not any(math.isnan(value) for value in values.values()), values
    if constant == "all":
        assert values["PSNR"] == values["PSNR_dB"] == math.inf
        assert [values[name] for name in ("AG", "SF", "CC", "MI", "VIF", "EN", "SD", "SCD", "Nabf")] == [0] * 9
        assert values["SSIM"] == pytest.approx(2)
    if constant == "fused":
        assert values["CC"] == values["EN"] == values["SD"] == 0
        assert values["VIF"] == pytest.approx(0, abs=1e-9)


def test_smallest_picture():
    assert all(math.isfinite(value) for value in score(*_triple(MIN_SIZE, MIN_SIZE, seed=4)).values())
    with pytest.raises(InputError, match=f"at least {MIN_SIZE} pixels"):
        score(*_triple(MIN_SIZE - 1, 60, seed=4))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.zeros((50, 50), np.float64), "float64"),
        (np.zeros((50, 50, 3), np.uint8), r"\(50, 50, 3\)"),
        (np.zeros((50, 51), np.uint8), "another size"),
        ([[0]], "list"),
    ],
)
@pytest.mark.parametrize("place", [1, 2])
def test_wrong_pictures_are_refused(wrong, said, place):
    pictures = [np.zeros((50, 50), np.uint8)] * 3
    pictures[place] = wrong
    with pytest.raises(InputError, match=said):
        score(*pictures)


def _golden_cases():
    return json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else []


@pytest.mark.skipif(not GOLDEN.is_file(), reason=f"no reference values at {GOLDEN}")
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real pairs at {DATA}")
@pytest.mark.parametrize("case", _golden_cases(), ids=lambda c: f"{c['set']}-{Path(c['infrared']).stem}-{c['fused']}")
def test_golden_values(case):
    infrared = cv2.imread(str(DATA / case["set"] / "ir" / case["infrared"]), cv2.IMREAD_GRAYSCALE)
    visible = cv2.imread(str(DATA / case["set"] / "vi" / case["visible"]), cv2.IMREAD_COLOR)
    luma = cv2.cvtColor(visible, cv2.COLOR_BGR2YCrCb)[:, :, 0]
    values = score(BASELINES[case["fused"]](infrared, luma), infrared, luma)
    wanted = {name: case[name] for name in METRICS if name in case}
    assert len(wanted) == 12
    for name, value in wanted.items():
        assert values[name] == pytest.approx(value, rel=TOLERANCE.get(name, 1e-6), abs=0), name
