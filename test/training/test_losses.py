"""Every term of the objective against a plain formula in float64."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from isfl_ros.training import losses
from isfl_ros.training.config import LossConfig
from isfl_ros.training.interventions import Masks
from isfl_ros.training.losses import Objective, Output

SIZE = (37, 45)
OFF = LossConfig(intensity=0.0, structure=0.0, alpha=0.0, beta=0.0)


def picture(batch=2):
    return torch.rand(batch, 1, *SIZE, dtype=torch.float64)


def mask(share=0.5):
    return torch.rand(2, 1, *SIZE) < share


def gates():
    return [torch.rand(2, 1, SIZE[0] // s, SIZE[1] // s, dtype=torch.float64) for s in (4, 2, 1)]


def only(**values):
    return Objective(dataclasses.replace(OFF, **values))


@pytest.fixture()
def scene():
    everything = torch.ones(2, 1, *SIZE, dtype=torch.bool)
    visible, infrared = picture(), picture()
    complementary = Masks(mask(0.7), everything)
    variants = {
        "complementary": (complementary, Output(picture(), gates())),
        "identical": (Masks(complementary.visible, complementary.visible), Output(picture(), gates())),
        "drop_infrared": (Masks(everything, ~everything), Output(picture(), gates())),
        "drop_visible": (Masks(~everything, everything), Output(picture(), gates())),
    }
    return visible, infrared, Output(picture(), gates()), variants


def value(terms, name):
    assert set(terms) == {name}, "every other term is switched off"
    return float(terms[name].detach())


def test_intensity(scene):
    visible, infrared, original, variants = scene
    f = original.fused
    wanted = (f - visible).abs().mean() + (f - infrared).abs().mean()
    assert value(only(intensity=2.0).terms(*scene), "intensity") == pytest.approx(2 * float(wanted), rel=1e-12)
    brighter = (f - torch.where(visible > infrared, visible, infrared)).abs().mean()
    terms = only(intensity=2.0, intensity_target="maximum").terms(*scene)
    assert value(terms, "intensity") == pytest.approx(2 * float(brighter), rel=1e-12)


def test_operators_equal_opencv():
    x = picture(1)
    array = x[0, 0].numpy()
    got = losses.derivative(x, "laplacian4")[0, 0].numpy()
    np.testing.assert_allclose(got, cv2.Laplacian(array, cv2.CV_64F, ksize=1, borderType=cv2.BORDER_REPLICATE), atol=1e-12)
    gx, gy = losses.derivative(x, "sobel")[0].numpy()
    np.testing.assert_allclose(gx, cv2.Sobel(array, cv2.CV_64F, 1, 0, borderType=cv2.BORDER_REPLICATE) / 8, atol=1e-12)
    np.testing.assert_allclose(gy, cv2.Sobel(array, cv2.CV_64F, 0, 1, borderType=cv2.BORDER_REPLICATE) / 8, atol=1e-12)
    kernel = np.ones((3, 3))
    kernel[1, 1] = -8
    wanted = cv2.filter2D(array, cv2.CV_64F, kernel, borderType=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(losses.derivative(x, "laplacian8")[0, 0].numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize("operator", ["laplacian4", "laplacian8", "sobel"])
@pytest.mark.parametrize("reading", ["signed_max", "absolute", "larger"])
def test_structure_readings(scene, operator, reading):
    visible, infrared, original, _ = scene
    df, dv, di = (losses.derivative(x, operator).numpy() for x in (original.fused, visible, infrared))
    if reading == "signed_max":
        error = np.abs(df - np.maximum(dv, di))
    elif reading == "absolute":
        error = np.abs(np.abs(df) - np.maximum(np.abs(dv), np.abs(di)))
    else:
        stronger = (dv**2).sum(1, keepdims=True) >= (di**2).sum(1, keepdims=True)
        error = np.abs(df - np.where(stronger, dv, di))
    wanted = error.sum(axis=1).mean()
    objective = only(structure=1.0, structure_operator=operator, structure_reading=reading)
    assert value(objective.terms(*scene), "structure") == pytest.approx(wanted, rel=1e-9)


def test_structure_over_octaves_is_the_mean_over_halved_pictures(scene):
    visible, infrared, original, variants = scene
    half = [torch.nn.functional.avg_pool2d(x, 2) for x in (original.fused, visible, infrared)]
    one = only(structure=1.0)
    wanted = (
        float(one.fusion_terms(original.fused, visible, infrared)["structure"]) + float(one.fusion_terms(*half)["structure"])
    ) / 2
    assert value(only(structure=1.0, structure_scales=2).terms(*scene), "structure") == pytest.approx(wanted, rel=1e-12)


def test_structure_gain_scales_the_target(scene):
    visible, infrared, original, variants = scene
    objective = only(structure=1.0, structure_operator="sobel", structure_reading="larger", structure_gain=1.5)
    perfect = Output(1.5 * visible, original.gates)
    assert value(objective.terms(visible, torch.zeros_like(infrared), perfect, variants), "structure") == pytest.approx(0, abs=1e-12)


def test_structure_weighted_by_the_energy_around(scene):
    visible, infrared, original, _ = scene
    objective = only(structure=1.0, structure_operator="sobel", structure_reading="weighted")
    dv, di = (losses.derivative(x, "sobel").numpy() for x in (visible, infrared))
    ev, ei = ((d**2).sum(1) for d in (dv, di))
    error = 0.0
    df = losses.derivative(original.fused, "sobel").numpy()
    for b in range(2):
        # Windows that reach over the border are means of what lies inside.
        inside = cv2.boxFilter(np.ones(SIZE), -1, (5, 5), normalize=False, borderType=cv2.BORDER_CONSTANT)
        mv, mi = (cv2.boxFilter(e[b], -1, (5, 5), normalize=False, borderType=cv2.BORDER_CONSTANT) / inside for e in (ev, ei))
        share = mv / (mv + mi)
        error += np.abs(df[b] - (share * dv[b] + (1 - share) * di[b])).sum(0).mean() / 2
    assert value(objective.terms(*scene), "structure") == pytest.approx(error, rel=1e-9)


def test_octaves_weigh_less_and_less_and_the_gain_ends(scene):
    visible, infrared, original, variants = scene
    half = [torch.nn.functional.avg_pool2d(x, 2) for x in (original.fused, visible, infrared)]
    values = {"structure": 1.0, "structure_operator": "sobel", "structure_reading": "larger"}
    strengthened, plain = only(**values, structure_gain=1.5), only(**values)
    wanted = float(strengthened.fusion_terms(original.fused, visible, infrared)["structure"])
    wanted += 0.25 * float(plain.fusion_terms(*half)["structure"])
    objective = only(**values, structure_gain=1.5, structure_gain_scales=1, structure_scales=2, structure_decay=0.25)
    assert value(objective.terms(*scene), "structure") == pytest.approx(wanted / 2, rel=1e-12)


def test_edges_conflict_where_the_weaker_would_be_buried():
    level = 1.0 / 255.0

    def conflict(strong, weak):
        tensors = (torch.tensor(v, dtype=torch.float64).view(1, 2, 1, 1) * level for v in (strong, weak))
        return float(losses.edge_conflict(*tensors))

    assert conflict((10.0, 0.0), (0.0, 0.9)) == 0.0  # no edge
    assert conflict((10.0, 0.0), (0.0, 1.5)) == pytest.approx(0.5)
    assert conflict((10.0, 0.0), (0.0, 8.0)) == 1.0  # across
    assert conflict((10.0, 0.0), (6.0, 0.0)) == 0.0  # along, and strong enough to show
    assert conflict((10.0, 0.0), (-6.0, 0.0)) == 0.0
    assert conflict((10.0, 0.0), (2.5, 0.0)) == pytest.approx(0.5)
    assert conflict((0.0, 0.0), (0.0, 0.0)) == 0.0


def test_gain_where_edges_conflict(scene):
    visible, infrared, original, variants = scene
    values = {"structure": 1.0, "structure_operator": "sobel", "structure_reading": "larger", "structure_gain": 1.4}
    objective = only(**values, structure_gain_conflict=0.9)
    dv, di = (losses.derivative(x, "sobel") for x in (visible, infrared))
    stronger = (dv**2).sum(1, keepdim=True) >= (di**2).sum(1, keepdim=True)
    strong, weak = torch.where(stronger, dv, di), torch.where(stronger, di, dv)
    gain = 1.4 - 0.5 * losses.edge_conflict(strong, weak)
    wanted = float((losses.derivative(original.fused, "sobel") - gain * strong).abs().mean()) * 2
    assert value(objective.terms(*scene), "structure") == pytest.approx(wanted, rel=1e-9)


def magnitude(x):
    return np.sqrt((losses.derivative(x, "sobel").numpy() ** 2).sum(1) + (0.25 / 255) ** 2)


def box_mean(pictures, side):
    kind = {"normalize": False, "borderType": cv2.BORDER_CONSTANT}
    inside = cv2.boxFilter(np.ones(pictures.shape[-2:]), -1, (side, side), **kind)
    return np.stack([cv2.boxFilter(x, -1, (side, side), **kind) / inside for x in pictures])


def test_detail_compares_the_energy_of_edges(scene):
    visible, infrared, original, _ = scene
    f, v, i = (magnitude(x) for x in (original.fused, visible, infrared))
    wanted = np.maximum(1.2 * np.maximum(v, i) - 0.4 * np.minimum(v, i), 0)
    rms = [np.sqrt(box_mean(x**2, 11) + (0.25 / 255) ** 2) for x in (f, wanted)]
    objective = only(detail=3.0, detail_keep=1.2, detail_yield=0.4)
    assert value(objective.terms(*scene), "detail") == pytest.approx(3 * np.abs(rms[0] - rms[1]).mean(), rel=1e-9)


def test_more_detail_is_asked_for_in_sharper_pictures():
    x = torch.linspace(0, 24 * np.pi, 160, dtype=torch.float64)
    soft = (0.5 + 0.3 * torch.sin(x)).expand(1, 1, 96, 160)  # a period of 13 px
    sharp = (0.5 + 0.05 * torch.sin(5 * x)).expand(1, 1, 96, 160)  # 2.7 px: halving averages it away
    flat = torch.full_like(soft, 0.5)
    inner = (..., slice(8, -8), slice(24, -24))
    found = {}
    for name, shown in (("soft", soft), ("sharp", sharp)):
        found[name] = losses.sharpness(shown)
        asked = only(detail=1.0, detail_keep=1.0, detail_yield=0.0, detail_sharp=0.5)
        factor = min(1.2, 1 + 0.5 * (found[name][inner].mean() - 0.72))
        right = Output(0.5 + factor * (shown - 0.5), [])
        off = Output(0.5 + (factor + 0.2) * (shown - 0.5), [])
        loss = [float(asked.fusion_terms(o.fused[inner], shown[inner], flat[inner])["detail"]) for o in (right, off)]
        assert loss[0] < 0.25 * loss[1], name
    # The mean slope of a sine sampled at steps of h, by central differences: sin(2 pi h / T) / h.
    slope = lambda period, step: np.sin(2 * np.pi * step / period) / step
    period = 160 / 12
    # Averaging two samples weakens a wave by cos(pi / T); in halved pixels the period is half as long.
    expected = slope(period, 1) / (2 * slope(period, 2) * np.cos(np.pi / period))
    assert float(found["soft"][inner].mean()) == pytest.approx(expected, rel=0.03)
    assert float(found["sharp"][inner].min()) == 1.4, "the limit"
    assert torch.allclose(losses.sharpness(flat), torch.tensor(0.72, dtype=torch.float64)), "nothing to be seen is neither"


def test_base_leaves_labelled_persons_out(scene):
    visible, infrared, _, variants = scene
    mean = 0.5 * (visible + infrared)
    people = torch.zeros(2, 1, *SIZE, dtype=torch.int16)
    people[0, 0, 10:22, 12:24], people[0, 0, 12:20, 30:33] = 1, 2
    standing_out = torch.where(people > 0, mean + 0.4, mean)
    objective = only(base=2.0)
    assert float(objective.fusion_terms(standing_out, visible, infrared)["base"]) > 0.05
    free = objective.fusion_terms(standing_out, visible, infrared, people)["base"]
    assert float(free) == pytest.approx(0.0, abs=1e-12)
    # Around them it asks what it always asks: an oracle window by window.
    fused = mean + 0.1 * torch.rand_like(mean)
    difference, outside = ((x[:, 0]).numpy() for x in (fused - mean, (people == 0).double()))
    # A window counts by what of it is free.
    expected = 2 * np.abs(box_mean(difference * outside, 41)).sum() / box_mean(outside, 41).sum()
    assert float(objective.fusion_terms(fused, visible, infrared, people)["base"]) == pytest.approx(expected, rel=1e-9)
    everywhere = torch.ones_like(people)
    assert float(objective.fusion_terms(fused, visible, infrared, everywhere)["base"]) == 0.0


def test_correlation(scene):
    visible, infrared, original, variants = scene
    expected = 0.0
    for source in (visible, infrared):
        for f, x in zip(original.fused.flatten(1).numpy(), source.flatten(1).numpy()):
            expected += (1 - np.corrcoef(f, x)[0, 1]) * x.var() / (x.var() + (8 / 255) ** 2) / 2
    objective = only(correlation=3.0)
    assert value(objective.terms(*scene), "correlation") == pytest.approx(3 * expected, rel=1e-4)
    # Neither brightness nor contrast is asked for.
    same = objective.terms(visible, 0.5 * visible + 0.3, Output(0.2 + 0.4 * visible, []), variants)
    assert value(same, "correlation") < 5e-3  # what keeps the roots off 0
    opposite = objective.terms(visible, visible, Output(1 - visible, []), variants)
    assert value(opposite, "correlation") == pytest.approx(3 * 4, rel=0.02)


def test_correlation_of_flat_pictures_has_a_gradient_that_is_a_number(scene):
    visible, *_, variants = scene
    objective, flat = only(correlation=1.0), torch.full_like(visible, 0.3)
    for sources in ((flat, flat), (visible, flat), (flat + 0.5 / 255 * visible, flat)):
        fused = flat.clone().requires_grad_(True)
        loss = objective.terms(*sources, Output(fused, []), variants)["correlation"]
        loss.backward()
        assert torch.isfinite(fused.grad).all()
        if sources[0] is not visible:
            assert float(loss.detach()) < 0.01, "there is nothing to be seen"


def test_overshoot_counts_false_edges_only(scene):
    visible, infrared, original, variants = scene
    objective = only(overshoot=1.0)
    flat = torch.full_like(infrared, 0.5)
    # Nothing is buried where the other camera sees nothing, and nothing overshoots in the stronger source itself.
    assert value(objective.terms(visible, flat, Output(3 * visible, []), variants), "overshoot") == 0.0
    assert value(objective.terms(visible, 0.1 * visible, Output(visible, []), variants), "overshoot") == 0.0
    ramp = torch.linspace(0, 1, SIZE[1], dtype=torch.float64).expand(2, 1, *SIZE)  # along x, 5.8 levels a pixel
    across = 0.5 * torch.linspace(0, 1, SIZE[0], dtype=torch.float64)[:, None].expand(2, 1, *SIZE)  # along y, 3.5
    conflicting = value(objective.terms(ramp, across, Output(1.5 * ramp, []), variants), "overshoot")
    inner = 0.5 / (SIZE[1] - 1)
    assert conflicting == pytest.approx(inner, rel=0.05)  # replicated borders halve the slope there
    assert value(objective.terms(ramp, across, Output(ramp, []), variants), "overshoot") == 0.0
    # The halved ramp is twice as steep a pixel: a sharpness of 0.5, softer than usual.
    relieved = value(only(overshoot=1.0, overshoot_sharp=2.0).terms(ramp, across, Output(1.5 * ramp, []), variants), "overshoot")
    assert relieved / conflicting == pytest.approx(1 - 2 * (0.5 - 0.72), rel=0.05)


def test_price_of_overshoot_and_detail_asked_for_stay_within_limits_and_follow_the_visible_picture():
    x = torch.linspace(0, 24 * np.pi, 160, dtype=torch.float64)
    sharp = (0.5 + 0.1 * torch.sin(5 * x)).expand(1, 1, 96, 160)  # 2.7 px: sharpness at its limit of 1.4
    soft = torch.linspace(0.2, 0.8, 96, dtype=torch.float64)[:, None].expand(1, 1, 96, 160)  # across: 0.5
    for visible, infrared, least, factor in ((sharp, soft, 0.35, 0.35), (sharp, soft, 0.6, 0.6), (soft, sharp, 0.35, 1.5)):
        strong = sharp if visible is sharp else infrared
        fused = Output(0.5 + 1.5 * (strong - 0.5), [])
        plain = only(overshoot=1.0).fusion_terms(fused.fused, visible, infrared)["overshoot"]
        objective = only(overshoot=1.0, overshoot_sharp=9.0, overshoot_sharp_least=least)
        priced = objective.fusion_terms(fused.fused, visible, infrared)["overshoot"]
        assert float(plain) > 1e-3
        assert float(priced / plain) == pytest.approx(factor, rel=1e-6)
    flat = torch.full_like(sharp, 0.5)
    inner = (..., slice(8, -8), slice(24, -24))
    for visible, infrared, factor in ((sharp, flat, 1.3), (soft, flat, 0.5)):
        shown = visible[inner], infrared[inner]
        objective = only(detail=1.0, detail_keep=1.0, detail_yield=0.0, detail_sharp=9.0, detail_sharp_most=1.3)
        fused = (0.5 + f * (shown[0] - 0.5) for f in (factor, factor + 0.1))
        right, off = (float(objective.fusion_terms(f, *shown)["detail"]) for f in fused)
        assert right < 0.25 * off, factor


def person_scene(inside_visible, inside_infrared, inside_fused):
    """A square person of 12 px on a ground of 0.5 in every picture."""
    pictures = []
    for level in (inside_visible, inside_infrared, inside_fused):
        x = torch.full((2, 1, *SIZE), 0.5, dtype=torch.float64)
        x[0, 0, 10:22, 12:24] = level
        pictures.append(x)
    people = torch.zeros(2, 1, *SIZE, dtype=torch.uint8)
    people[0, 0, 10:22, 12:24] = 3
    return *pictures, people


@pytest.mark.parametrize(
    ("visible", "infrared", "fused", "lost"),
    [
        (0.5, 0.9, 0.9, 0.0),
        (0.5, 0.9, 1.0, 0.0),  # more than the source is no loss
        (0.5, 0.9, 0.6, 0.75),
        (0.5, 0.9, 0.5, 1.0),
        (0.5, 0.9, 0.1, 2.0),  # dark instead of bright
        (0.1, 0.6, 0.1, 2.0),  # dark clothes by day: still bright, as infrared says, with the contrast that visible light has
        (0.1, 0.6, 0.7, 0.5),
        (0.1, 0.6, 0.9, 0.0),
        (0.1, 0.52, 0.1, 0.0),  # a dark silhouette that only the camera for visible light sees
        (0.1, 0.52, 0.5, 1.0),
        (0.51, 0.52, 0.1, 0.0),  # neither shows the person
    ],
)
def test_people_keep_the_contrast_of_the_better_source(visible, infrared, fused, lost):
    v, i, f, people = person_scene(visible, infrared, fused)
    assert float(losses.people_contrast(f, v, i, people)) == pytest.approx(lost / 2, abs=1e-12)  # two samples


def test_people_term_leaves_out_others_from_the_ring_and_small_parts():
    v, i, f, people = person_scene(0.5, 0.9, 0.9)
    for x in (i, f):
        x[0, 0, 10:22, 24:36] = 0.9  # a second person, touching
    people[0, 0, 10:22, 24:36] = 4
    assert float(losses.people_contrast(f, v, i, people)) == pytest.approx(0.0, abs=1e-12)
    f[0, 0, 10:22, 24:36] = 0.5
    assert float(losses.people_contrast(f, v, i, people)) == pytest.approx(0.5, abs=1e-12)
    people[people == 4] = 0
    people[0, 0, 12:22, 12:24] = 0  # two rows of 12 px are left
    assert float(losses.people_contrast(f, v, i, people)) == 0.0


def test_people_of_a_batch_cost_what_they_cost_one_by_one():
    random = np.random.default_rng(3)
    v, i, f = (torch.from_numpy(random.uniform(0.3, 0.7, (3, 1, 64, 72))) for _ in range(3))
    numbers = np.zeros((3, 64, 72), np.int16)
    boxes = {0: [(4, 4, 12, 9), (40, 30, 8, 8), (20, 60, 20, 12)], 2: [(0, 0, 10, 10), (50, 60, 3, 3)]}  # height, width last
    expected = 0.0
    for sample, of_sample in boxes.items():
        for number, (top, left, height, width) in enumerate(of_sample, 1):
            numbers[sample, top : top + height, left : left + width] = number
            for x in (v, i, f):
                x[sample, 0, top : top + height, left : left + width] += random.uniform(-0.3, 0.3)
    for sample, of_sample in boxes.items():
        for number, (top, left, height, width) in enumerate(of_sample, 1):
            inside = numbers[sample] == number
            ring = cv2.dilate(inside.astype(np.uint8), np.ones((21, 21))).astype(bool) & (numbers[sample] == 0)
            contrasts = [float(x[sample, 0][inside].mean() - x[sample, 0][ring].mean()) for x in (f, v, i)]
            wanted = max(map(abs, contrasts[1:])) * np.sign(contrasts[2] if abs(contrasts[2]) >= 10 / 255 else contrasts[1])
            if inside.sum() >= 40 and abs(wanted) >= 10 / 255:
                expected += max(0.0, 1 - contrasts[0] / wanted)
    assert expected > 0.5, "somebody must be lost here"
    people = torch.from_numpy(numbers)[:, None]
    for counts in (None, (3, 0, 2)):
        assert float(losses.people_contrast(f, v, i, people, counts)) == pytest.approx(expected / 3, rel=1e-9)


def test_people_term_is_in_the_sum_where_there_are_labels():
    v, i, f, people = person_scene(0.5, 0.9, 0.6)
    objective = only(people=2.0, intensity=1.0)
    assert set(objective.terms(v, i, Output(f, []), {})) == {"intensity"}
    assert float(objective.terms(v, i, Output(f, []), {}, people=people)["people"]) == pytest.approx(2.0 * 0.75 / 2)


def test_distillation_wants_grey_levels_and_gradients():
    a, b = picture(), picture()
    slope = np.abs(losses.derivative(a, "sobel").numpy() - losses.derivative(b, "sobel").numpy()).mean()
    assert float(losses.distillation(a, b)) == pytest.approx(float((a - b).abs().mean()) + 4 * slope, rel=1e-9)
    assert float(losses.distillation(a, a)) == 0.0


@pytest.mark.parametrize("which", ["original", "masked"])
@pytest.mark.parametrize("region", ["all", "both_valid"])
def test_consistency(scene, which, region):
    visible, infrared, original, variants = scene
    wanted = 0.0
    for name in ("complementary", "identical"):
        masks, output = variants[name]
        chosen = original.gates if which == "original" else output.gates
        upsampled = [torch.nn.functional.interpolate(g, size=SIZE, mode="bilinear") for g in chosen]
        weight = sum(upsampled) / 3
        difference = (output.fused - original.fused).abs() * weight
        if region == "both_valid":
            difference = difference * (masks.visible & masks.infrared)
        wanted += float(difference.mean())
    objective = only(alpha=0.7, regularizer=0.0, consistency_gates=which, consistency_region=region)
    # Gates are averaged in float32.
    assert value(objective.terms(*scene), "consistency") == pytest.approx(0.7 * wanted, rel=1e-6)


def test_detached_gates_get_no_gradient_from_consistency(scene):
    visible, infrared, original, variants = scene
    for detach in (False, True):
        leaves = [g.clone().requires_grad_(True) for g in original.gates]
        fused = original.fused.clone().requires_grad_(True)
        objective = only(alpha=1.0, regularizer=0.0, consistency_detach=detach)
        objective.terms(visible, infrared, Output(fused, leaves), variants)["consistency"].backward()
        assert all((leaf.grad is None) == detach for leaf in leaves)
        assert fused.grad is not None


@pytest.mark.parametrize("sign", ["reward", "penalise"])
@pytest.mark.parametrize("weight", [1.0, 0.2])
def test_gate_regularizer(scene, sign, weight):
    original = scene[2]
    gate = sum(torch.nn.functional.interpolate(g, size=SIZE, mode="bilinear") for g in original.gates) / 3
    distance = (gate.mean(dim=(1, 2, 3)) - 0.3).abs().mean()
    entropy = -weight * (gate * gate.log2() + (1 - gate) * (1 - gate).log2()).mean()
    wanted = 0.1 * float(distance - entropy if sign == "reward" else distance + entropy)
    terms = only(alpha=0.1, entropy_sign=sign, entropy_weight=weight).terms(*scene)
    assert set(terms) == {"consistency", "gate"}
    assert float(terms["gate"]) == pytest.approx(wanted, rel=1e-5)


def test_base_asks_for_the_mean_brightness_of_the_surroundings(scene):
    visible, infrared, original, variants = scene
    objective = only(base=2.0)
    mean = (visible + infrared) / 2
    assert value(objective.terms(visible, infrared, Output(mean, []), variants), "base") == pytest.approx(0.0, abs=1e-12)
    assert value(objective.terms(visible, infrared, Output(mean + 0.1, []), variants), "base") == pytest.approx(0.2, rel=1e-9)
    checks = torch.ones_like(mean)
    checks[..., ::2, 1::2] = checks[..., 1::2, ::2] = -1
    detail = value(objective.terms(visible, infrared, Output(mean + 0.1 * checks, []), variants), "base")
    assert detail < 0.01, "detail is free"


def test_regularizer_of_masked_gates_is_a_mean_over_the_passes(scene):
    visible, infrared, original, variants = scene
    objective = only(alpha=1.0, consistency_gates="masked", entropy="off")
    both = float(objective.terms(*scene)["gate"])
    each = [
        float(objective.terms(visible, infrared, original, {name: variants[name]})["gate"])
        for name in ("complementary", "identical")
    ]
    assert both == pytest.approx(sum(each) / 2, rel=1e-6)


def test_stability_opens_gates_where_nothing_changes_and_moves_nothing_else(scene):
    visible, infrared, original, variants = scene
    fused = original.fused.clone().requires_grad_(True)
    gate = torch.full((2, 1, *SIZE), 0.3, dtype=torch.float64, requires_grad=True)
    changed = original.fused.clone()
    changed[..., :10] += 0.5
    pass_with_loss = {"drop_visible": (variants["drop_visible"][0], Output(changed, []))}
    terms = only(stability=2.0).terms(visible, infrared, Output(fused, [gate]), pass_with_loss)
    assert value(terms, "stability") == pytest.approx(0.0, abs=1e-9), "an even gate has no covariance with anything"
    terms["stability"].backward()
    assert fused.grad is None
    assert float(gate.grad[..., :10].min()) > 0 and float(gate.grad[..., 10:].max()) < 0
    assert float(gate.grad.sum()) == pytest.approx(0.0, abs=1e-9)


def test_entropies_at_their_ends():
    half = torch.full((1, 1, 8, 8), 0.5)
    assert float(losses.gate_entropy(half, "pixel").mean()) == pytest.approx(1.0)
    assert float(losses.gate_entropy((half > 0.7).float(), "pixel").mean()) < 1e-3
    assert float(losses.gate_entropy(half, "spatial")) == pytest.approx(1.0)
    peak = torch.zeros(1, 1, 8, 8)
    peak[0, 0, 3, 4] = 1.0
    assert float(losses.gate_entropy(peak, "spatial")) < 1e-2


def test_necessity_readings(scene):
    original, variants = scene[2], scene[3]
    distances = [float((original.fused - variants[n][1].fused).abs().mean()) for n in ("drop_infrared", "drop_visible")]
    literal = value(only(beta=0.5, necessity="literal").terms(*scene), "necessity")
    assert literal == pytest.approx(0.5 * sum(distances), rel=1e-12)
    margin = max(distances) + 0.1
    contrast = value(only(beta=0.5, necessity="contrast", necessity_margin=margin).terms(*scene), "necessity")
    assert contrast == pytest.approx(0.5 * sum(margin - d for d in distances), rel=1e-9)
    assert value(only(beta=0.5, necessity="contrast", necessity_margin=0.0).terms(*scene), "necessity") == 0.0


def test_fidelity_is_zero_for_the_surviving_picture_and_counts_only_there(scene):
    visible, infrared, original, variants = scene
    objective = only(fidelity=1.0)
    faithful = {}
    for name, (masks, _) in variants.items():
        survivor = torch.where(masks.visible, visible, infrared)
        single = masks.visible ^ masks.infrared
        faithful[name] = (masks, Output(torch.where(single, survivor, torch.rand_like(survivor)), original.gates))
    assert value(objective.terms(visible, infrared, original, faithful), "fidelity") == 0.0
    wanted = 0.0
    for masks, output in variants.values():
        single = masks.visible ^ masks.infrared
        survivor = torch.where(masks.visible, visible, infrared)
        for sample in range(2):  # a mean over the samples: a small hole weighs as much as a whole missing picture
            if single[sample].any():
                wanted += float((output.fused - survivor).abs()[sample][single[sample]].mean()) / 2
    assert value(objective.terms(*scene), "fidelity") == pytest.approx(wanted, rel=1e-9)


def test_undisturbed_wants_the_same_picture_where_both_are_valid(scene):
    visible, infrared, original, variants = scene
    objective = only(undisturbed=2.0)
    wanted = 0.0
    for name in ("complementary", "identical"):
        masks, output = variants[name]
        both = (masks.visible & masks.infrared).numpy()
        for sample in range(2):
            lost = (~both[sample, 0]).astype(np.uint8)
            near = cv2.dilate(lost, np.ones((25, 25), np.uint8))
            weight = both[sample, 0] * (1.0 + 7.0 * near)
            error = (output.fused - original.fused).abs()[sample, 0].numpy()
            wanted += (error * weight).sum() / weight.sum() / 2
    assert value(objective.terms(*scene), "undisturbed") == pytest.approx(2 * wanted, rel=1e-9)
    # What is right there is the picture without a mask, which must not be drawn towards the one with it.
    fused = original.fused.clone().requires_grad_(True)
    masked = {n: (m, Output(o.fused.clone().requires_grad_(True), o.gates)) for n, (m, o) in variants.items()}
    objective.terms(visible, infrared, Output(fused, original.gates), masked)["undisturbed"].backward()
    assert fused.grad is None and masked["complementary"][1].fused.grad is not None


def test_variant_weight_scales_the_terms_of_interventions(scene):
    objective = only(intensity=1.0, beta=1.0, fidelity=1.0, alpha=1.0)
    once, thrice = objective.terms(*scene), objective.terms(*scene, variant_weight=3.0)
    for name in once:
        factor = 1.0 if name in ("intensity", "gate") else 3.0
        assert float(thrice[name]) == pytest.approx(factor * float(once[name]), rel=1e-12), name


def test_ssim_against_the_formula_at_every_window():
    a, b = picture(1), picture(1)
    x = np.arange(11) - 5
    window = np.exp(-(x**2) / 4.5)
    window = np.outer(window, window) / window.sum() ** 2
    got = losses.ssim(a, b)[0, 0].numpy()
    assert got.shape == (SIZE[0] - 10, SIZE[1] - 10)
    pa, pb = a[0, 0].numpy(), b[0, 0].numpy()
    for top, left in [(0, 0), (5, 17), (26, 34)]:
        wa, wb = pa[top : top + 11, left : left + 11], pb[top : top + 11, left : left + 11]
        ma, mb = (window * wa).sum(), (window * wb).sum()
        va, vb = (window * (wa - ma) ** 2).sum(), (window * (wb - mb) ** 2).sum()
        cov = (window * (wa - ma) * (wb - mb)).sum()
        wanted = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
        assert got[top, left] == pytest.approx(wanted, rel=1e-9)


def test_hot_target_wants_thermal_contrast_and_nothing_elsewhere():
    infrared = torch.full((1, 1, 96, 96), 0.3, dtype=torch.float64)
    infrared[..., 40:60, 44:52] = 0.9
    fused = infrared.clone().mul(0.5).add(0.2)
    assert float(losses.hot_target(infrared, infrared)) == pytest.approx(0.0, abs=1e-12)
    assert float(losses.hot_target(infrared + 0.1, infrared)) == pytest.approx(0.0, abs=1e-9), "brightness is free"
    assert float(losses.hot_target(fused, infrared)) > 1e-3
    flat = torch.full_like(infrared, 0.3)
    assert float(losses.hot_target(torch.rand_like(flat), flat)) == 0.0, "nothing hot, nothing asked"
