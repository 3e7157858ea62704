"""Launch side of the fused gated blend: layouts, block sizes and the list of what the launcher can ask for.

Shapes: B batch, C channels, H height, W width, G channels of the gate's 3x3 convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isfl_ros.errors import InputError
from isfl_ros.ops import triton_support
from isfl_ros.ops.triton_support import KernelCase

if TYPE_CHECKING:
    from isfl_ros.ops.gated_blend.api import PreparedWeights

MAX_CHANNELS = 64
MAX_GATE_CHANNELS = 32

# Programs per multiprocessor below which strips are cut shorter, and the longest strip in tiles. A strip shares its
# halo rows and loads its weights once; programs fill the chip.
_PROGRAMS_PER_MULTIPROCESSOR = 4
_LONGEST_STRIP = 8


@dataclass(frozen=True, kw_only=True)
class BlendLaunch:
    """Block sizes and options of one variant of the kernel; the names are those of its ``constexpr`` arguments."""

    padded: int
    gate: int
    tile_height: int
    tile_width: int
    k_block: int
    unroll: bool
    keep_taps: bool
    precision: str
    options: dict[str, int]


def launch_configuration(
    channels: int, gate_width: int, dtype: torch.dtype, tf32: bool, capability: int, channels_last: bool
) -> BlendLaunch:
    """The one place that decides block sizes; the launcher and the ahead-of-time proof both ask here.

    Args:
        channels, gate_width: C and G.
        dtype: of the features.
        tf32: float32 products may be rounded to tf32.
        capability: compute capability as one number, for example 90.
        channels_last: memory layout of the features.
    """
    from isfl_ros.ops.gated_blend.api import padded

    # Without tensor cores (IEEE products; Triton uses none below 8.0 either) every thread holds whole rows of both
    # operands: few channels at a time. Contiguous features cost an address per element: the same.
    tensor_cores = capability >= 80 and (dtype != torch.float32 or tf32)
    c_padded = padded(channels)
    half = dtype != torch.float32
    unroll = tensor_cores and channels_last and c_padded <= (64 if half else 32)
    return BlendLaunch(
        padded=c_padded,
        gate=padded(gate_width),
        tile_height=4,
        tile_width=16,
        k_block=c_padded if unroll else min(c_padded, 32 if tensor_cores and channels_last else 16),
        unroll=unroll,
        keep_taps=unroll and half,
        precision="tf32" if tensor_cores and not half else "ieee",
        options={"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True},
    )


def fused_blend(
    complementary: Tensor, visible: Tensor, infrared: Tensor, weights: PreparedWeights, negative_slope: float
) -> tuple[Tensor, Tensor]:
    """Same value as the reference in one launch that reads three feature maps and writes one and the gate."""
    b, c, h, w = complementary.shape
    gate_width = weights.plain.conv_weight.shape[0]
    if not 1 <= c <= MAX_CHANNELS:
        raise InputError("channels not supported by the fused blend", expected=f"1 to {MAX_CHANNELS}", got=str(c))
    if not 1 <= gate_width <= MAX_GATE_CHANNELS:
        raise InputError(
            "gate channels not supported by the fused blend", expected=f"1 to {MAX_GATE_CHANNELS}", got=str(gate_width)
        )
    if complementary.dtype not in triton_support.TRITON_TYPES:
        raise InputError(
            "dtype not supported by the fused blend",
            expected=", ".join(str(dtype) for dtype in triton_support.TRITON_TYPES),
            got=str(complementary.dtype),
        )
    triton_support.require_device("fused blend", complementary, otherwise="reference")
    device = complementary.device
    capability = triton_support.capability(device)
    kernels = _kernels()

    last = complementary.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    complementary, visible, infrared = (triton_support.dense(t, layout) for t in (complementary, visible, infrared))
    blended = _uninitialised((b, c, h, w), complementary, layout)
    gate = _uninitialised((b, 1, h, w), complementary, torch.contiguous_format)
    if blended.numel() == 0:
        return blended, gate

    tf32 = triton_support.tf32_allowed(complementary.dtype)
    launch = launch_configuration(c, gate_width, complementary.dtype, tf32, capability, last)
    tiles_x = -(-w // launch.tile_width)
    tiles_y = -(-h // launch.tile_height)
    programs_wanted = _PROGRAMS_PER_MULTIPROCESSOR * triton_support.multiprocessors(device)
    tiles_per_strip = max(1, min(_LONGEST_STRIP, tiles_y, b * tiles_x * tiles_y // programs_wanted))
    strips = -(-tiles_y // tiles_per_strip)
    with torch.cuda.device_of(complementary):
        kernels.gated_blend_kernel[(b * tiles_x * strips,)](
            complementary,
            visible,
            infrared,
            weights.taps,
            weights.head,
            blended,
            gate,
            h,
            w,
            tiles_x,
            strips,
            tiles_per_strip,
            **_constants(launch, c, last, negative_slope),
            **launch.options,
        )
    return blended, gate


def ahead_of_time_cases(
    channels: int,
    grid: int,
    dtype: torch.dtype,
    tf32: bool,
    capability: int,
    *,
    gate_width: int | None = None,
    channels_last: bool = True,
) -> list[KernelCase]:
    """What :func:`fused_blend` launches for features of this kind, for compilation without a GPU.

    Args:
        channels, dtype, tf32, capability: as for :func:`launch_configuration`.
        grid: not used; the attention's cases are asked for with the same arguments.
        gate_width: G; half the channels, as in the shipped architectures, unless given.
        channels_last: memory layout of the features.
    """
    from isfl_ros.ops.gated_blend.api import NEGATIVE_SLOPE

    kernel = _kernels().gated_blend_kernel
    gate_width = gate_width or max(1, channels // 2)
    launch = launch_configuration(channels, gate_width, dtype, tf32, capability, channels_last)
    constants = _constants(launch, channels, channels_last, NEGATIVE_SLOPE)
    features = f"*{triton_support.TRITON_TYPES[dtype]}"
    pointers = {name: features for name in kernel.arg_names if name.startswith("p_")} | {"p_head": "*fp32"}
    kinds = pointers | dict.fromkeys(constants, "constexpr")
    precision = "tf32" if launch.precision == "tf32" else triton_support.TRITON_TYPES[dtype]
    layout = "channels-last" if channels_last else "contiguous"
    return [
        KernelCase(
            name=f"gated blend {precision} C{channels} G{gate_width} {layout}",
            kernel=kernel,
            signature={name: kinds.get(name, "i32") for name in kernel.arg_names},
            constants=constants,
            divisible_by_16=tuple(pointers),  # triton_support.dense sees to it; integers are not specialised on
            options=launch.options,
        )
    ]


def _constants(launch: BlendLaunch, channels: int, channels_last: bool, negative_slope: float) -> dict[str, object]:
    return {
        "CHANNELS": channels,
        "PADDED": launch.padded,
        "GATE": launch.gate,
        "TILE_HEIGHT": launch.tile_height,
        "TILE_WIDTH": launch.tile_width,
        "K_BLOCK": launch.k_block,
        "UNROLL": launch.unroll,
        "KEEP_TAPS": launch.keep_taps,
        "CHANNELS_LAST": channels_last,
        "PRECISION": launch.precision,
        "SLOPE": negative_slope,
    }


def _uninitialised(shape: tuple[int, ...], like: Tensor, layout: torch.memory_format) -> Tensor:
    """Memory that the kernel fills entirely; tests replace this to find out that it does."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _kernels() -> ModuleType:
    triton_support.require_triton()
    from isfl_ros.ops.gated_blend import kernels

    return kernels
