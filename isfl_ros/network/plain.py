"""The network a second time, from a table of tensors: plain NCHW, nothing pooled early, folded or fused.

Oracle of the network tests and opponent of the benchmarks, written as one would write the paper down in torch. It shares
no code with the rest of the package.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-5


def shape_of(config) -> dict[str, object]:
    """What :func:`plain_forward` has to know of an ``IsflConfig`` besides the weights."""
    return {name: getattr(config, name) for name in ("scales", "grid", "head", "reduction", "subpixel", "validity_input")}


def plain_forward(
    p: dict[str, Tensor],
    visible: Tensor,
    infrared: Tensor,
    *,
    scales: int = 3,
    grid: int = 8,
    head: str = "sigmoid",
    reduction: int = 1,
    subpixel: bool = False,
    validity_input: bool = False,
    valid: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, list[Tensor]]:
    """Networks of the shape of ``isfl-release``, with either head and any reduction, in evaluation mode (paper, section 3.3).

    Args:
        p: state dictionary of such a network, all of one dtype and device.
        visible, infrared: (B, 1, H, W) in [0, 1], of that dtype and device, exactly 0 where invalid.
        scales, grid, head, reduction, subpixel, validity_input: of the network.
        valid: bool masks of the shape of the pictures, visible first; None: all valid.

    Returns:
        Fused luma (B, 1, H, W) and the gates (B, 1, h, w), coarsest first.
    """

    def conv(name: str, x: Tensor, padding: int) -> Tensor:
        return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], padding=padding)

    def unit(name: str, x: Tensor) -> Tensor:
        x = conv(f"{name}.conv", x, 1)
        mean, var = p[f"{name}.norm.running_mean"], p[f"{name}.norm.running_var"]
        x = F.batch_norm(x, mean, var, p[f"{name}.norm.weight"], p[f"{name}.norm.bias"], eps=_EPS)
        return F.leaky_relu(x, 0.01)

    def encode(name: str, x: Tensor) -> list[Tensor]:
        out = []
        for k in range(scales):
            if k:
                x = F.max_pool2d(x, 2)
            x = unit(f"{name}.blocks.{k}.1", unit(f"{name}.blocks.{k}.0", x))
            out.append(x)
        return out

    def project(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, p[f"{name}.weight"][:, :, None, None], p[f"{name}.bias"])

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, c, h, w = q.shape
        k, v = F.adaptive_avg_pool2d(k, grid).flatten(2), F.adaptive_avg_pool2d(v, grid).flatten(2)
        scores = torch.einsum("bcn,bct->bnt", q.flatten(2), k) / math.sqrt(c)
        return torch.einsum("bnt,bct->bcn", scores.softmax(-1), v).reshape(b, c, h, w)

    def shrink(x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        if subpixel:
            rows = [min(y, h - 1) for y in range(h + -h % reduction)]
            columns = [min(y, w - 1) for y in range(w + -w % reduction)]
            x = x[:, :, rows][:, :, :, columns]
            return torch.cat([x[:, :, i::reduction, j::reduction] for i in range(reduction) for j in range(reduction)], dim=1)
        padding = (0, -w % reduction, 0, -h % reduction)
        inside = F.avg_pool2d(F.pad(torch.ones_like(x), padding), reduction)
        return F.avg_pool2d(F.pad(x, padding), reduction) / inside

    def enter(x: Tensor, mask: Tensor | None) -> Tensor:
        if not validity_input:
            return shrink(x)
        mask = torch.ones_like(x) if mask is None else mask.to(x.dtype)
        return torch.cat([shrink(x), shrink(1 - mask)], dim=1)

    features_v = encode("encoder_visible", enter(visible, valid[0]))
    features_i = encode("encoder_infrared", enter(infrared, valid[1]))
    gates, result = [], None
    for k in reversed(range(scales)):
        cfi, v, i = f"integrators.{k}", features_v[k], features_i[k]
        qkv_v = [project(f"{cfi}.visible.{part}", v) for part in ("query", "key", "value")]
        qkv_i = [project(f"{cfi}.infrared.{part}", i) for part in ("query", "key", "value")]
        complementary = attend(qkv_v[0], *qkv_i[1:]) + attend(qkv_i[0], *qkv_v[1:])
        gate = torch.sigmoid(conv(f"{cfi}.gate.layers.1", unit(f"{cfi}.gate.layers.0", complementary), 0))
        gates.append(gate)
        integrated = unit(f"{cfi}.refine", gate * complementary + (1 - gate) * (v + i))
        if result is None:
            result = integrated
            continue
        raised = F.interpolate(result, size=integrated.shape[-2:], mode="bilinear", align_corners=False)
        result = unit(f"decoders.{k}.convs.1", unit(f"decoders.{k}.convs.0", raised + integrated))
    if validity_input and head == "affine":
        masks = [torch.ones_like(visible) if mask is None else mask.to(visible.dtype) for mask in valid]
        result = torch.cat([result, *(shrink(1 - mask) for mask in masks)], dim=1)
    last = conv("head.conv", result, 1)
    if head == "affine":
        size = [reduction * side for side in last.shape[-2:]]
        if subpixel:
            small, last = last, last.new_empty(last.shape[0], 3, *size)
            for k in range(reduction**2):
                last[:, :, k // reduction :: reduction, k % reduction :: reduction] = small[:, k :: reduction**2]
        else:
            last = F.interpolate(last, size=size, mode="bilinear", align_corners=False)
        last = last[:, :, : visible.shape[-2], : visible.shape[-1]]
        return torch.clamp(last[:, :1] * visible + last[:, 1:2] * infrared + last[:, 2:], 0, 1), gates
    return torch.sigmoid(last), gates
