"""The three interventions (paper section 3.2) as validity masks: drawn per sample, rasterised for the batch on the device.

Masks are bool, True where a pixel is kept. Every draw depends on (seed, step, slot) alone; a slot is a sample's place in the
global batch.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isfl_ros.errors import InputError
from isfl_ros.training.config import VARIANTS, InterventionConfig
from isfl_ros.training.data import sample_rng

_STREAM_MASK = 2
_STREAM_CHOICE = 4


class Masks(NamedTuple):
    """Kept pixels of each modality, (B, 1, H, W) bool."""

    visible: Tensor
    infrared: Tensor


def draw_variants(config: InterventionConfig, seed: int, step: int) -> tuple[str, ...]:
    """Names of the interventions of a step, in a fixed order."""
    active = config.active()
    if not config.per_step or config.per_step >= len(active):
        return active
    drawn = sample_rng(seed, step, 0, _STREAM_CHOICE).choice(len(active), config.per_step, replace=False)
    return tuple(active[i] for i in sorted(drawn))


def make_masks(
    variant: str,
    config: InterventionConfig,
    size: tuple[int, int],
    seed: int,
    step: int,
    samples: Sequence[int],
    device: torch.device | str,
) -> Masks:
    """Masks of one intervention for some samples of a step.

    Args:
        variant: ``complementary``, ``identical``, ``drop_infrared`` or ``drop_visible``.
        size: (H, W).
        samples: their slots in the global batch.
    """
    b, (h, w) = len(samples), size
    everything = torch.ones((b, 1, h, w), dtype=torch.bool, device=device)
    if variant == "drop_infrared":
        return Masks(everything, torch.zeros_like(everything))
    if variant == "drop_visible":
        return Masks(torch.zeros_like(everything), everything)
    # The variant is part of the key: masks of two interventions in one step are independent draws.
    rngs = [sample_rng(seed, step, sample, _STREAM_MASK, VARIANTS.index(variant)) for sample in samples]
    if variant == "identical":
        kept = ~_squares(config, rngs, h, w, device)
        return Masks(kept, kept)
    return _complementary(config, rngs, h, w, device)


def _complementary(config: InterventionConfig, rngs: list[np.random.Generator], h: int, w: int, device) -> Masks:
    occluded_visible = _squares(config, rngs, h, w, device)
    occluded_infrared = _squares(config, rngs, h, w, device)
    both = occluded_visible & occluded_infrared
    if config.overlap == "trim":
        occluded_infrared = occluded_infrared & ~both
    else:
        coin = torch.stack([torch.from_numpy(rng.random((1, h, w), dtype=np.float32)) for rng in rngs]).to(device) < 0.5
        occluded_visible = occluded_visible & ~(both & coin)
        occluded_infrared = occluded_infrared & ~(both & ~coin)
    for probability, make_regions in ((config.large, _large_regions), (config.specks, _specks)):
        if not probability:
            continue
        chosen, in_visible = (
            torch.tensor([bool(rng.random() < share) for rng in rngs], device=device)[:, None, None, None]
            for share in (probability, 0.5)
        )
        region = make_regions(rngs, h, w, device)
        occluded_visible = torch.where(chosen, region & in_visible, occluded_visible)
        occluded_infrared = torch.where(chosen, region & ~in_visible, occluded_infrared)
    return Masks(~occluded_visible, ~occluded_infrared)


def _specks(rngs: list[np.random.Generator], h: int, w: int, device) -> Tensor:
    """Occluded pixels (B, 1, H, W): scattered single pixels, or squares of 2 or 3 px, in all .03 to about 3 % of the patch; one at
    the least, as a term that looks at missing pixels needs one."""
    regions = np.empty((len(rngs), 1, h, w), bool)
    for sample, rng in enumerate(rngs):
        side = int(rng.integers(1, 4))
        share = float(np.exp(rng.uniform(*np.log((3e-4, 0.03))))) / side**2
        seeds = rng.random((h, w), dtype=np.float32) < share
        seeds[rng.integers(h), rng.integers(w)] = True
        regions[sample, 0] = cv2.dilate(seeds.astype(np.uint8), np.ones((side, side), np.uint8))
    return torch.from_numpy(regions).to(device)


def _squares(config: InterventionConfig, rngs: list[np.random.Generator], h: int, w: int, device) -> Tensor:
    """Occluded pixels (B, 1, H, W): one to ``most_squares`` squares or disks within the allowed area."""
    size = config.square
    if size * size > config.most_area * h * w:
        raise InputError(
            "interventions.square too large for the patch", expected=f"a square within {config.most_area:g} of {h}x{w}", got=f"{size} px"
        )
    # The allowed area bounds the number drawn, so that no draw has to be rejected.
    most = max(1, min(config.most_squares, int(config.most_area * h * w / (size * size))))
    draws = np.zeros((len(rngs), most, 4), np.float32)  # top, left, present, disk
    for sample, rng in enumerate(rngs):
        count = rng.integers(1, most + 1)
        draws[sample, :, 0] = rng.integers(0, max(1, h - size + 1), most)
        draws[sample, :, 1] = rng.integers(0, max(1, w - size + 1), most)
        draws[sample, :count, 2] = 1.0
        draws[sample, :, 3] = rng.random(most) < config.disks
    top, left, present, disk = torch.from_numpy(draws).to(device).unbind(-1)  # (B, most)
    half = (size - 1) / 2
    dy = (torch.arange(h, device=device) - top[..., None] - half).abs()  # (B, most, H)
    dx = (torch.arange(w, device=device) - left[..., None] - half).abs()  # (B, most, W)
    in_square = (dy <= half)[..., :, None] & (dx <= half)[..., None, :]
    in_disk = dy[..., :, None] ** 2 + dx[..., None, :] ** 2 <= (size / 2) ** 2
    inside = torch.where(disk.bool()[..., None, None], in_disk, in_square) & present.bool()[..., None, None]
    return inside.any(dim=1, keepdim=True)


def _large_regions(rngs: list[np.random.Generator], h: int, w: int, device) -> Tensor:
    """Occluded pixels (B, 1, H, W): a border band of 3 to 50 %, thin ones as often as wide ones, a half frame, or
    irregular holes."""
    kind = torch.empty(len(rngs), dtype=torch.long)
    side = torch.empty(len(rngs), dtype=torch.long)
    extent = torch.empty(len(rngs))
    share = torch.empty(len(rngs), 1)
    noise = torch.empty(len(rngs), 1, 6, 6)
    for sample, rng in enumerate(rngs):
        kind[sample] = max(0, int(rng.integers(4)) - 1)  # 0 band, twice as often, since its width is drawn too; 1 half, 2 holes
        side[sample] = int(rng.integers(4))
        extent[sample] = float(np.exp(rng.uniform(*np.log((0.03, 0.5)))))
        share[sample] = float(rng.uniform(0.1, 0.5))
        noise[sample] = torch.from_numpy(rng.random((1, 6, 6), dtype=np.float32))
    kind, side, extent, share, noise = (t.to(device) for t in (kind, side, extent, share, noise))
    extent = torch.where(kind == 1, torch.full_like(extent, 0.5), extent)[:, None, None]
    y = ((torch.arange(h, device=device) + 0.5) / h)[None, :, None]
    x = ((torch.arange(w, device=device) + 0.5) / w)[None, None, :]
    distance = torch.stack(  # from each border, as a part of the side
        [y.expand(1, h, w), (1 - y).expand(1, h, w), x.expand(1, h, w), (1 - x).expand(1, h, w)], dim=1
    )[0]
    band = distance[side] <= extent
    smooth = F.interpolate(noise, size=(h, w), mode="bicubic", align_corners=False)[:, 0]
    holes = smooth <= _quantile(smooth.flatten(1), share[:, 0])[:, None, None]
    return torch.where((kind == 2)[:, None, None], holes, band)[:, None]


def _quantile(values: Tensor, share: Tensor) -> Tensor:
    """Quantile ``share[i]`` of row i of (B, N), interpolated: (B,). torch.quantile takes every share of every row, and no
    more than 16 million values."""
    rank = share * (values.shape[1] - 1)
    below = rank.long()
    ordered = values.sort(dim=1).values
    low, high = (ordered.gather(1, index[:, None])[:, 0] for index in (below, rank.ceil().long()))
    return torch.lerp(low, high, rank - below)
