"""The objective: paper equations 9 to 13 with their readings, and the terms that a vehicle needs besides.

Pictures are (B, 1, H, W) float32 in [0, 1]; norms are means over pixels, so that weights keep their meaning at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

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
    ) -> dict[str, Tensor]:
        """Weighted terms.

        Args:
            visible, infrared: the pair without intervention.
            original: pass on that pair.
            variants: intervention name -> its masks and pass.
            variant_weight: factor on terms of the interventions (inverse of the part of them that was drawn).
        """
        config = self.config
        out = self.fusion_terms(original.fused, visible, infrared)
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
        return out

    def fusion_terms(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> dict[str, Tensor]:
        """Fusion fidelity L_f (equation 10) and what is added to it, weighted, by name."""
        config = self.config
        out: dict[str, Tensor] = {}
        if config.intensity:
            out["intensity"] = config.intensity * (_l1(fused - visible) + _l1(fused - infrared))
        if config.structure:
            out["structure"] = config.structure * self._structure(fused, visible, infrared)
        if config.ssim:
            out["ssim"] = config.ssim * (2.0 - ssim(fused, visible).mean() - ssim(fused, infrared).mean())
        if config.target:
            out["target"] = config.target * hot_target(fused, infrared)
        if config.base:
            difference = fused - 0.5 * (visible + infrared)
            out["base"] = config.base * _l1(_box_mean(difference, _SURROUNDINGS // 2))
        return out

    def _structure(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
        total = fused.new_zeros(())
        for scale in range(self.config.structure_scales):
            if scale:
                fused, visible, infrared = (F.avg_pool2d(x, 2) for x in (fused, visible, infrared))
            total = total + self._structure_at_one_scale(fused, visible, infrared)
        return total / self.config.structure_scales

    def _structure_at_one_scale(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
        d_fused, d_visible, d_infrared = (derivative(x, self.config.structure_operator) for x in (fused, visible, infrared))
        reading = self.config.structure_reading
        if reading == "signed_max":
            wanted = torch.maximum(d_visible, d_infrared)
        elif reading == "absolute":
            d_fused, wanted = d_fused.abs(), torch.maximum(d_visible.abs(), d_infrared.abs())
        else:  # both components of a gradient come from one picture, or its direction would belong to neither
            stronger = (d_visible**2).sum(1, keepdim=True) >= (d_infrared**2).sum(1, keepdim=True)
            wanted = torch.where(stronger, d_visible, d_infrared)
        return _l1(d_fused - self.config.structure_gain * wanted) * d_fused.shape[1]

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
            difference = _l1(original.fused - variants[name][1].fused)
            if self.config.necessity == "contrast":
                difference = F.relu(self.config.necessity_margin - difference)
            total = total + difference
        return total

    def _fidelity(self, visible: Tensor, infrared: Tensor, variants: dict[str, tuple[Masks, Output]]) -> Tensor:
        """Mean |F - surviving modality| over the pixels where exactly one is valid, summed over the passes."""
        total = visible.new_zeros(())
        for name in VARIANTS:
            if name not in variants:
                continue
            masks, output = variants[name]
            single = masks.visible ^ masks.infrared
            survivor = torch.where(masks.visible, visible, infrared)
            # Per pass, so that a small hole weighs as much a pixel as a whole missing picture.
            total = total + ((output.fused - survivor).abs() * single).sum() / single.sum().clamp(min=1)
        return total


def derivative(picture: Tensor, operator: str) -> Tensor:
    """A named derivative with replicated borders: (B, 1, H, W) to (B, 1 or 2, H, W)."""
    kernel = torch.tensor(_OPERATORS[operator], dtype=picture.dtype, device=picture.device)[:, None]
    return F.conv2d(F.pad(picture, (1, 1, 1, 1), mode="replicate"), kernel)


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


def gate_entropy(gate: Tensor, kind: str) -> Tensor:
    """Entropy of gates (B, 1, H, W) in (0, 1), in [0, 1]: ``pixel`` -> (B, 1, H, W) bits; ``spatial`` -> (B,)."""
    eps = 1e-6
    if kind == "pixel":
        g = gate.clamp(eps, 1 - eps)
        return -(g * g.log2() + (1 - g) * (1 - g).log2())
    p = gate.flatten(1) + eps
    p = p / p.sum(dim=1, keepdim=True)
    return -(p * p.log()).sum(dim=1) / torch.log(torch.tensor(float(p.shape[1]), device=p.device))


def _box_mean(picture: Tensor, radius: int) -> Tensor:
    side = 2 * radius + 1  # one direction after the other: 2 * side additions a pixel instead of side squared
    rows = F.avg_pool2d(picture, (1, side), stride=1, padding=(0, radius), count_include_pad=False)
    return F.avg_pool2d(rows, (side, 1), stride=1, padding=(radius, 0), count_include_pad=False)


def _l1(x: Tensor) -> Tensor:
    return x.abs().mean()
