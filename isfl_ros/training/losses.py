"""The objective: paper equations 9 to 13 with their readings, and the terms that a vehicle needs besides.

Pictures are (B, 1, H, W) float32 in [0, 1]; norms are means over pixels, so that weights keep their meaning at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from isfl_ros.io.labels import PERSON_CONTRAST, PERSON_RING_PX
from isfl_ros.network.model import mean_gate
from isfl_ros.training.config import VARIANTS, LossConfig
from isfl_ros.training.interventions import Masks

_OPERATORS = {
    "laplacian4": [[[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]],
    "laplacian8": [[[1.0, 1.0, 1.0], [1.0, -8.0, 1.0], [1.0, 1.0, 1.0]]],
    # An eighth, so that a step of one grey level a pixel measures one.
    "sobel": [
        [[-0.125, 0.0, 0.125], [-0.25, 0.0, 0.25], [-0.125, 0.0, 0.125]],
        [[-0.125, -0.25, -0.125], [0.0, 0.0, 0.0], [0.125, 0.25, 0.125]],
    ],
}
# Surroundings against which a hot target must stand out: a window of 41 px holds a pedestrian at 20 m and its background.
_SURROUNDINGS = 41
# What counts as near the edge of a mask, in pixels, and how much more it weighs.
_NEAR_EDGE = 12
_EDGE_WEIGHT = 7.0
# Window in which the detail term compares gradients, and what keeps the root differentiable: a quarter of a grey level a pixel.
_DETAIL_WINDOW = 11
_SMOOTH = 0.25 / 255.0
# Sharpness (below) at which the detail term asks for just what its factors say, and overshoot costs just its weight.
_USUAL_SHARPNESS = 0.72
# Half a grey level a pixel: that much edge of the usual sharpness is imputed to every picture, so that a flat one is neither sharp nor
# soft, and a faint one nearly neither.
_IMPUTED = 0.5 / 255.0
# Factors in the softest pictures: least of the detail that is asked for, most of what overshoot costs.
_LEAST_DETAIL = 0.5
_MOST_OVERSHOOT = 1.5
# Smallest part of a labelled person that is looked at: half of what the evaluation asks for, since a patch may cut the rest off.
_PERSON_AREA = 40
# Standard deviation at which a source counts half in the correlation term.
_FLAT = 8.0 / 255.0
# Thermal contrast against the surroundings that counts as fully salient: 20 grey levels.
_TARGET_CONTRAST = 20.0 / 255.0


@dataclass(frozen=True)
class Output:
    """What one pass gave: fused luma (B, 1, H, W) and gates, coarsest first (empty without CFI)."""

    fused: Tensor
    gates: list[Tensor]

    @cached_property
    def gate(self) -> Tensor:
        """Mean gate at the size of the picture, (B, 1, H, W); several terms want it, one computation serves them."""
        return mean_gate(self.gates, tuple(self.fused.shape[-2:]))


class Objective:
    """Sums the terms of one step.

    ``terms(...)`` returns every weighted term by name; the loss is their sum.
    """

    def __init__(self, config: LossConfig):
        self.config = config

    def terms(
        self,
        visible: Tensor,
        infrared: Tensor,
        original: Output,
        variants: dict[str, tuple[Masks, Output]],
        *,
        variant_weight: float = 1.0,
        people: Tensor | None = None,
        people_counts: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Weighted terms.

        Args:
            visible, infrared: the pair without intervention.
            original: pass on that pair.
            variants: intervention name -> its masks and pass.
            variant_weight: factor on terms of the interventions (inverse of the part of them that was drawn).
            people: (B, 1, H, W) integer numbers of labelled persons, 0 elsewhere; None: no labels.
            people_counts: see :func:`people_contrast`.

        Every term is a mean over the samples of the batch: parts of it can be computed apart and averaged.
        """
        config = self.config
        out = self.fusion_terms(original.fused, visible, infrared, people)
        if config.people and people is not None:
            out["people"] = config.people * people_contrast(
                original.fused, visible, infrared, people, people_counts
            )
        if config.alpha:
            consistency = self._consistency(original, variants) * variant_weight
            out["consistency"] = config.alpha * consistency
            if config.regularizer and original.gates:
                out["gate"] = config.alpha * config.regularizer * self._gate_regularizer(original, variants)
        if config.stability and original.gates and variants:
            out["stability"] = config.stability * self._stability(original, variants)
        if config.beta:
            out["necessity"] = config.beta * variant_weight * self._necessity(original, variants)
        if config.fidelity:
            out["fidelity"] = config.fidelity * variant_weight * self._fidelity(visible, infrared, variants)
        if config.undisturbed:
            out["undisturbed"] = config.undisturbed * variant_weight * self._undisturbed(original, variants)
        return out

    def fusion_terms(
        self, fused: Tensor, visible: Tensor, infrared: Tensor, people: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Fusion fidelity L_f (equation 10) and what is added to it, weighted, by name; arguments as of :meth:`terms`."""
        config = self.config
        out: dict[str, Tensor] = {}
        if config.intensity:
            out["intensity"] = config.intensity * self._intensity(fused, visible, infrared)
        if config.structure:
            out["structure"] = config.structure * self._structure(fused, visible, infrared)
        sharper: Tensor | float = 0.0  # than usual; both terms want it
        if (config.detail and config.detail_sharp) or (config.overshoot and config.overshoot_sharp):
            sharper = sharpness(visible) - _USUAL_SHARPNESS
        if config.detail:
            out["detail"] = config.detail * self._detail(fused, visible, infrared, sharper)
        if config.overshoot:
            beyond = overshoot(fused, visible, infrared)
            if config.overshoot_sharp:
                factor = 1.0 - config.overshoot_sharp * sharper
                beyond = beyond * factor.clamp(config.overshoot_sharp_least, _MOST_OVERSHOOT)
            out["overshoot"] = config.overshoot * beyond.mean()
        if config.ssim:
            out["ssim"] = config.ssim * (2.0 - ssim(fused, visible).mean() - ssim(fused, infrared).mean())
        if config.target:
            out["target"] = config.target * hot_target(fused, infrared)
        if config.correlation:
            lost = uncorrelated(fused, visible) + uncorrelated(fused, infrared)
            out["correlation"] = config.correlation * lost.mean()
        if config.base:
            out["base"] = config.base * base_difference(fused, visible, infrared, people)
        return out

    def _intensity(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
        if self.config.intensity_target == "maximum":
            return _l1(fused - torch.maximum(visible, infrared))
        return _l1(fused - visible) + _l1(fused - infrared)

    def _structure(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
        total = fused.new_zeros(())
        for scale in range(self.config.structure_scales):
            if scale:
                fused, visible, infrared = (F.avg_pool2d(x, 2) for x in (fused, visible, infrared))
            gain = self.config.structure_gain if scale < self.config.structure_gain_scales else 1.0
            weight = self.config.structure_decay**scale
            total = total + weight * self._structure_at_one_scale(fused, visible, infrared, gain)
        return total / self.config.structure_scales

    def _structure_at_one_scale(self, fused: Tensor, visible: Tensor, infrared: Tensor, gain: float) -> Tensor:
        d_fused, d_visible, d_infrared = (derivative(x, self.config.structure_operator) for x in (fused, visible, infrared))
        reading = self.config.structure_reading
        if reading == "signed_max":
            wanted = torch.maximum(d_visible, d_infrared)
        elif reading == "absolute":
            d_fused, wanted = d_fused.abs(), torch.maximum(d_visible.abs(), d_infrared.abs())
        else:  # both components of a gradient share one weight, or its direction would belong to neither picture
            e_visible, e_infrared = ((x**2).sum(1, keepdim=True) for x in (d_visible, d_infrared))
            stronger = e_visible >= e_infrared
            wanted = torch.where(stronger, d_visible, d_infrared)
            if self.config.structure_gain_conflict and gain != 1.0:
                conflict = edge_conflict(wanted, torch.where(stronger, d_infrared, d_visible))
                gain = gain + (self.config.structure_gain_conflict - gain) * conflict
            if reading == "weighted":
                e_visible, e_infrared = (_box_mean(x, 2) for x in (e_visible, e_infrared))
                share = e_visible / (e_visible + e_infrared).clamp(min=1e-8)
                wanted = torch.lerp(d_infrared, d_visible, share)
        return _l1(d_fused - gain * wanted) * d_fused.shape[1]

    def _detail(self, fused: Tensor, visible: Tensor, infrared: Tensor, sharper: Tensor | float) -> Tensor:
        """Difference of the root mean square of the gradient magnitude around each pixel to the one asked for.

        The structure term alone leaves a network too soft: where it is unsure of an edge, the smallest expected difference
        is that of a weaker one. The energy of edges has no phase to be unsure of. The plain mean asks for the same of grain
        as of outlines; the energy is that of the strong edges. By Sobel, as
        overshoot is: what one of the two terms sees and the other does not is drawn at no cost (docs/log.md: a chequerboard).
        """
        s_fused, s_visible, s_infrared = (gradient_strength(x) for x in (fused, visible, infrared))
        strong, weak = torch.maximum(s_visible, s_infrared), torch.minimum(s_visible, s_infrared)
        wanted = F.relu(self.config.detail_keep * strong - self.config.detail_yield * weak)
        if self.config.detail_sharp:
            factor = 1.0 + self.config.detail_sharp * sharper
            wanted = wanted * factor.clamp(_LEAST_DETAIL, self.config.detail_sharp_most)
        r_fused, r_wanted = ((_box_mean(x**2, _DETAIL_WINDOW // 2) + _SMOOTH**2).sqrt() for x in (s_fused, wanted))
        return _l1(r_fused - r_wanted)

    def _consistency(self, original: Output, variants: dict[str, tuple[Masks, Output]]) -> Tensor:
        """First term of equation 11: differences to the masked passes, where the gates select."""
        total = original.fused.new_zeros(())
        for name in ("complementary", "identical"):
            if name not in variants:
                continue
            masks, output = variants[name]
            difference = (output.fused - original.fused).abs()
            chosen = original if self.config.consistency_gates == "original" else output
            if chosen.gates:
                difference = difference * (chosen.gate.detach() if self.config.consistency_detach else chosen.gate)
            if self.config.consistency_region == "both_valid":
                difference = difference * (masks.visible & masks.infrared)
            total = total + difference.mean()
        return total

    def _gate_regularizer(self, original: Output, variants: dict[str, tuple[Masks, Output]]) -> Tensor:
        """R of equation 12."""
        passes = [original]
        if self.config.consistency_gates == "masked":
            passes = [variants[name][1] for name in ("complementary", "identical") if name in variants]
        total = original.fused.new_zeros(())
        for output in passes:
            gate = output.gate
            total = total + (gate.mean(dim=(1, 2, 3)) - self.config.eta).abs().mean()
            if self.config.entropy != "off":
                entropy = self.config.entropy_weight * gate_entropy(gate, self.config.entropy).mean()
                total = total - entropy if self.config.entropy_sign == "reward" else total + entropy
        return total / max(1, len(passes))  # equation 11 has R once, however many gates it is taken from

    def _stability(self, original: Output, variants: dict[str, tuple[Masks, Output]]) -> Tensor:
        """Mean of gate times (relative difference to the passes with something missing - 1): the covariance of the two.
        Only the gate gets a gradient.

        Where the mean gate is held at eta, this opens it where the picture does not depend on what was taken away: the
        meaning that the paper gives to the gate below equation 8. The first term of equation 11 asks the same, but its
        weight is the difference itself, which shrinks to nothing long before the gate has moved.
        """
        difference = torch.stack([(output.fused - original.fused).detach().abs() for _, output in variants.values()]).mean(0)
        relative = difference / difference.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
        return (original.gate * (relative - 1.0)).mean()  # less its mean, so that it moves no gate on average

    def _necessity(self, original: Output, variants: dict[str, tuple[Masks, Output]]) -> Tensor:
        """Equation 13 in one of its two readings."""
        total = original.fused.new_zeros(())
        for name in ("drop_infrared", "drop_visible"):
            if name not in variants:
                continue
            difference = (original.fused - variants[name][1].fused).abs().mean(dim=(1, 2, 3))
            if self.config.necessity == "contrast":
                difference = F.relu(self.config.necessity_margin - difference)
            total = total + difference.mean()
        return total

    def _undisturbed(self, original: Output, variants: dict[str, tuple[Masks, Output]]) -> Tensor:
        """Mean |F under a mask - F| over the pixels of a sample where both modalities are valid, summed over the passes.

        The original picture is what is right there and gets no gradient. Pixels near the edge of a mask weigh more: they are
        few, and a line along the edge is what one sees.
        """
        total = original.fused.new_zeros(())
        for name in ("complementary", "identical"):
            if name not in variants:
                continue
            masks, output = variants[name]
            both = (masks.visible & masks.infrared).to(original.fused.dtype)
            near = F.max_pool2d(1.0 - both, 2 * _NEAR_EDGE + 1, stride=1, padding=_NEAR_EDGE)
            weight = both * (1.0 + _EDGE_WEIGHT * near)
            error = ((output.fused - original.fused.detach()).abs() * weight).sum(dim=(1, 2, 3))
            total = total + (error / weight.sum(dim=(1, 2, 3)).clamp(min=1)).mean()
        return total

    def _fidelity(self, visible: Tensor, infrared: Tensor, variants: dict[str, tuple[Masks, Output]]) -> Tensor:
        """Mean |F - surviving modality| over the pixels of a sample where exactly one is valid, summed over the passes."""
        total = visible.new_zeros(())
        for name in VARIANTS:
            if name not in variants:
                continue
            masks, output = variants[name]
            single = masks.visible ^ masks.infrared
            survivor = torch.where(masks.visible, visible, infrared)
            # Per sample and pass, so that a small hole weighs as much as a whole missing picture.
            error = ((output.fused - survivor).abs() * single).sum(dim=(1, 2, 3))
            total = total + (error / single.sum(dim=(1, 2, 3)).clamp(min=1)).mean()
        return total


def derivative(picture: Tensor, operator: str) -> Tensor:
    """A named derivative with replicated borders: (B, 1, H, W) to (B, 1 or 2, H, W)."""
    return F.conv2d(F.pad(picture, (1, 1, 1, 1), mode="replicate"), _kernel(operator, picture.dtype, picture.device))


@lru_cache
def _kernel(operator: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Made once: a copy to the device at every call would make the host wait for it."""
    return torch.tensor(_OPERATORS[operator], dtype=dtype, device=device)[:, None]


def sharpness(picture: Tensor) -> Tensor:
    """How much of the detail of a picture (B, 1, H, W) lies in the finest octave: mean strength of the edges around a pixel
    over that of the edges of the halved picture. (B, 1, H, W) in [0.4, 1.4].

    Of visible pictures: about 0.7 behind JPEG at ordinary quality (roadscene, msrs), 0.8 by night or with grain (llvip, tno), 0.95 from a
    good lens and raw pixels by day (m3fd). Thermal ones tell nothing: their lenses blur them all to 0.6 to 0.8. A constant picture
    has 0.72, what is usual, and a faint one tends to it. Strong grain has up to 1.4: this says how fine the structure is, not what it shows.
    """
    coarse = _box_mean(gradient_strength(F.avg_pool2d(picture, 2)), _SURROUNDINGS // 4)
    coarse = F.interpolate(coarse, size=picture.shape[-2:], mode="bilinear", align_corners=False)
    fine = _box_mean(gradient_strength(picture), _SURROUNDINGS // 2)
    # The smooth strength of a constant picture is no edge.
    fine, coarse = (F.relu(strength - _SMOOTH) for strength in (fine, coarse))
    return ((fine + _USUAL_SHARPNESS * _IMPUTED) / (coarse + _IMPUTED)).clamp(0.4, 1.4)


def gradient_strength(picture: Tensor) -> Tensor:
    """Magnitude of the Sobel gradient, (B, 1, H, W), smooth at 0."""
    return ((derivative(picture, "sobel") ** 2).sum(1, keepdim=True) + _SMOOTH**2).sqrt()


def edge_conflict(strong: Tensor, weak: Tensor) -> Tensor:
    """How much two gradients (B, 2, H, W), the second nowhere the stronger, disagree: (B, 1, H, W) in [0, 1].

    0 where the weaker is no edge (below one grey level a pixel) or runs along the stronger at half its strength or more;
    1 where it is one (two grey levels and more) that the stronger would bury.
    """
    along = (strong * weak).sum(1, keepdim=True).abs() / (strong**2).sum(1, keepdim=True).clamp(min=1e-8)
    edge = (255.0 * (weak**2).sum(1, keepdim=True).sqrt() - 1.0).clamp(0.0, 1.0)
    return edge * (1.0 - 2.0 * along).clamp(0.0, 1.0)


def overshoot(fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
    """Gradient magnitude above the stronger source's where the two conflict (:func:`edge_conflict`), (B, 1, H, W): false edges,
    Nabf."""
    d_fused, d_visible, d_infrared = (derivative(x, "sobel") for x in (fused, visible, infrared))
    stronger = (d_visible**2).sum(1, keepdim=True) >= (d_infrared**2).sum(1, keepdim=True)
    strong, weak = torch.where(stronger, d_visible, d_infrared), torch.where(stronger, d_infrared, d_visible)
    s_fused, s_strong = (((x**2).sum(1, keepdim=True) + _SMOOTH**2).sqrt() for x in (d_fused, strong))
    return edge_conflict(strong, weak) * F.relu(s_fused - s_strong)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity map (Wang et al. 2004): 11x11 Gaussian of sigma 1.5, valid borders, range 1.

    (B, 1, H, W) float32 each to (B, 1, H - 10, W - 10).
    """
    offsets = torch.arange(11, dtype=a.dtype, device=a.device) - 5
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = window / window.sum()
    stacked = torch.cat((a, b, a * a, b * b, a * b), dim=1)  # five pictures, one pair of convolutions
    groups = stacked.shape[1]
    stacked = F.conv2d(stacked, window.view(1, 1, 11, 1).repeat(groups, 1, 1, 1), groups=groups)
    stacked = F.conv2d(stacked, window.view(1, 1, 1, 11).repeat(groups, 1, 1, 1), groups=groups)
    mean_a, mean_b, aa, bb, ab = stacked.split(1, dim=1)
    c1, c2 = 0.01**2, 0.03**2
    covariance = ab - mean_a * mean_b
    variances = aa - mean_a**2 + bb - mean_b**2
    return ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))


def uncorrelated(fused: Tensor, source: Tensor) -> Tensor:
    """1 minus Pearson's correlation of two pictures (B, 1, H, W) in [0, 1], times how much the source counts, sample by
    sample: (B,) in [0, 2].

    Unlike a difference it asks nothing of brightness and contrast. The flatter a source, the less it counts, down to 0 where it is
    constant: what a dark, empty patch correlates with is noise, and the gradient would grow as the picture gets flatter.
    """
    a, b = (x.flatten(1) - x.flatten(1).mean(dim=1, keepdim=True) for x in (fused, source))
    var_a, var_b = (a**2).mean(1), (b**2).mean(1)
    floor = (0.1 * _FLAT) ** 2
    correlation = (a * b).mean(1) / ((var_a + floor) * (var_b + floor)).sqrt()
    return (1.0 - correlation) * var_b / (var_b + _FLAT**2)


def hot_target(fused: Tensor, infrared: Tensor) -> Tensor:
    """Loss of local contrast where the thermal picture is salient: what is hot must stand out as it does in infrared.

    Contrast is the difference to the mean of the surroundings. A pixel weighs as much as the hottest contrast near it,
    so that the ring around a person counts like the person: contrast is lost on either side.
    """
    radius = _SURROUNDINGS // 2
    contrast_infrared = infrared - _box_mean(infrared, radius)
    contrast_fused = fused - _box_mean(fused, radius)
    saliency = (contrast_infrared / _TARGET_CONTRAST - 0.5).clamp(0.0, 1.0)
    near = F.max_pool2d(saliency, 2 * (radius // 4) + 1, stride=1, padding=radius // 4)
    return ((contrast_fused - contrast_infrared).abs() * near).mean()


def base_difference(fused: Tensor, visible: Tensor, infrared: Tensor, people: Tensor | None = None) -> Tensor:
    """Mean absolute difference of the surroundings' brightness to that of the mean of the two pictures.

    Labelled persons (B, 1, H, W; 0 where nobody is) are no surroundings: where the two cameras disagree about a person, the mean of
    both is the grey in which nobody sees them.
    """
    difference = fused - 0.5 * (visible + infrared)
    radius = _SURROUNDINGS // 2
    if people is None:
        return _l1(_box_mean(difference, radius))
    free = (people == 0).to(fused.dtype)
    # A window weighs as much as there is to compare in it: its few pixels beside a person must not count like a whole one.
    return _box_mean(difference * free, radius).abs().sum() / _box_mean(free, radius).sum().clamp(min=1.0)


def people_contrast(
    fused: Tensor, visible: Tensor, infrared: Tensor, people: Tensor, counts: Sequence[int] | None = None
) -> Tensor:
    """Loss of the contrast of labelled persons: sum over the persons of the batch, over its size.

    Contrast is mean inside minus mean of the ring outside (a square one, where the evaluation has a disk). A person costs the part of the
    better source's contrast that is missing in the fused picture: 0 where nothing is lost, 1 where the person is gone, 2
    where it has turned from bright to dark. Bright or dark is what infrared says wherever it sees the person: by day most
    people are dark to one camera and bright to the other, and a network that should follow the stronger of two nearly
    equal ones hedges between them, at no contrast at all.

    Args:
        fused, visible, infrared: (B, 1, H, W) in [0, 1].
        people: (B, 1, H, W) integers, 0 where nobody is, else a number for each person of the sample.
        counts: largest number of each sample; None looks it up, for which a GPU has to be waited for.
    """
    if counts is None:
        counts = people.flatten(1).amax(dim=1).tolist()
    total = fused.new_zeros(())
    for number in range(1, max(counts) + 1):
        # The n-th persons of all samples at once. Nothing here asks the device for a value: what does not count is masked.
        samples = [sample for sample, count in enumerate(counts) if count >= number]
        numbers = people[samples]
        inside = (numbers == number).to(fused.dtype)
        ring = _dilate(inside, PERSON_RING_PX) * (numbers == 0)
        area, ring_area = inside.sum(dim=(1, 2, 3)), ring.sum(dim=(1, 2, 3))
        in_fused, in_visible, in_infrared = (
            (x[samples] * inside).sum(dim=(1, 2, 3)) / area.clamp(min=1)
            - (x[samples] * ring).sum(dim=(1, 2, 3)) / ring_area.clamp(min=1)
            for x in (fused, visible, infrared)
        )
        contrast = torch.maximum(in_visible.abs(), in_infrared.abs())
        sign = torch.where(in_infrared.abs() >= PERSON_CONTRAST / 255.0, in_infrared, in_visible).sign()
        wanted = contrast * sign
        counted = (area >= _PERSON_AREA) & (ring_area > 0) & (contrast >= PERSON_CONTRAST / 255.0)
        lost = F.relu(1.0 - in_fused / torch.where(counted, wanted, 1.0))
        total = total + torch.where(counted, lost, 0.0).sum()
    return total / fused.shape[0]


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Difference of two fused pictures (B, 1, H, W): mean absolute value, and that of the gradient, which carries detail."""
    difference = student - teacher
    return _l1(difference) + 4.0 * _l1(derivative(difference, "sobel"))


def gate_entropy(gate: Tensor, kind: str) -> Tensor:
    """Entropy of gates (B, 1, H, W) in (0, 1), in [0, 1]: ``pixel`` -> (B, 1, H, W) bits; ``spatial`` -> (B,)."""
    eps = 1e-6
    if kind == "pixel":
        g = gate.clamp(eps, 1 - eps)
        return -(g * g.log2() + (1 - g) * (1 - g).log2())
    p = gate.flatten(1) + eps
    p = p / p.sum(dim=1, keepdim=True)
    return -(p * p.log()).sum(dim=1) / torch.log(torch.tensor(float(p.shape[1]), device=p.device))


def _dilate(mask: Tensor, radius: int) -> Tensor:
    side = 2 * radius + 1  # one direction after the other, as below
    rows = F.max_pool2d(mask, (1, side), stride=1, padding=(0, radius))
    return F.max_pool2d(rows, (side, 1), stride=1, padding=(radius, 0))


def _box_mean(picture: Tensor, radius: int) -> Tensor:
    side = 2 * radius + 1  # one direction after the other: 2 * side additions a pixel instead of side squared
    rows = F.avg_pool2d(picture, (1, side), stride=1, padding=(0, radius), count_include_pad=False)
    return F.avg_pool2d(rows, (side, 1), stride=1, padding=(radius, 0), count_include_pad=False)


def _l1(x: Tensor) -> Tensor:
    return x.abs().mean()
