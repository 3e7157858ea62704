"""Launches the Triton kernels of ``kernels.py``: checks, block sizes, memory, autograd.

Inference is three launches (partial pooling of both maps, tokens, attention of both directions). With gradients the map
from pooled tokens to keys and values is plain torch in float32 between two ``autograd.Function``s.

Shapes: B batch, C channels, H height, W width, N = H*W pixels, T = grid*grid pooled tokens, S splits of a bin's rows.
CP is C and TP is T padded to what the kernels take. Importing this file does not import Triton.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isfl_ros.errors import InputError
from isfl_ros.ops import triton_support
from isfl_ros.ops.triton_support import KernelCase

if TYPE_CHECKING:
    from isfl_ros.ops.pooled_cross_attention.api import FoldedProjections

MAX_CHANNELS = 64
MAX_GRID = 16


def fused_attention(
    visible: Tensor, infrared: Tensor, for_visible: FoldedProjections, for_infrared: FoldedProjections, grid: int
) -> Tensor:
    """Same value as ``folded``; output in the memory format of ``visible``. Autocast does not change what it does.

    With gradients, those of both feature maps are computed even if only one of them requires one.

    Raises:
        InputError: width, grid, dtype or device that the kernels do not support; the message says what they do.
    """
    _check(visible, for_visible, for_infrared, grid)
    triton_support.require_triton()
    setting = Setting.of(visible, grid)
    visible, infrared = setting.dense(visible), setting.dense(infrared)
    with torch.cuda.device_of(visible):
        if torch.is_grad_enabled() and any(t.requires_grad for t in (visible, infrared, *for_visible, *for_infrared)):
            pooled = _Pool.apply(visible, infrared, setting)  # B 2 T C
            with torch.autocast(visible.device.type, enabled=False):
                tokens = torch.stack(  # B 2 T 2C+1
                    (_project(pooled[:, 1], for_visible), _project(pooled[:, 0], for_infrared)), dim=1
                )
            return _Attend.apply(visible, infrared, tokens, setting)
        partial = _partial_pool(visible, infrared, setting)
        return _attend(visible, infrared, _finish_tokens(partial, visible, for_visible, for_infrared, setting), setting)


def _project(pooled: Tensor, folded: FoldedProjections) -> Tensor:
    return F.linear(pooled, folded.matrix.float(), folded.bias.float())


def _check(visible: Tensor, for_visible: FoldedProjections, for_infrared: FoldedProjections, grid: int) -> None:
    if not 1 <= visible.shape[1] <= MAX_CHANNELS:
        raise InputError(
            "width not supported by the triton attention",
            expected=f"1 to {MAX_CHANNELS} channels",
            got=str(visible.shape[1]),
        )
    if not 1 <= grid <= MAX_GRID:
        raise InputError(
            "pooled grid not supported by the triton attention", expected=f"1 to {MAX_GRID}", got=str(grid)
        )
    for name, tensor in (
        ("features", visible),
        *((f"for_visible {field}", tensor) for field, tensor in for_visible._asdict().items()),
        *((f"for_infrared {field}", tensor) for field, tensor in for_infrared._asdict().items()),
    ):
        if tensor.dtype not in triton_support.TRITON_TYPES:
            raise InputError(
                f"dtype of {name} not supported by the triton attention",
                expected=", ".join(_name(dtype) for dtype in triton_support.TRITON_TYPES),
                got=_name(tensor.dtype),
            )
    if visible.numel() == 0:
        raise InputError("the triton attention needs at least one pixel", got=f"features {tuple(visible.shape)}")
    triton_support.require_device("triton attention", visible, otherwise="folded")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- Which variant of a kernel runs ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Setting:
    """All that decides which compiled variant of a kernel runs."""

    channels: int
    grid: int
    dtype: torch.dtype
    tf32: bool
    """Products of float32 features may be rounded to tf32, where the chip can."""
    capability: int
    """Compute capability as one number, for example 90."""
    channels_last: bool
    aligned: bool
    """Contiguous layout only: H*W is a multiple of 16, so that 16 bytes of one channel can be loaded at a time."""

    @classmethod
    def of(cls, features: Tensor, grid: int) -> Setting:
        _, channels, height, width = features.shape
        channels_last = features.is_contiguous(memory_format=torch.channels_last)
        return cls(
            channels=channels,
            grid=grid,
            dtype=features.dtype,
            tf32=triton_support.tf32_allowed(features.dtype),
            capability=triton_support.capability(features.device),
            channels_last=channels_last,
            aligned=not channels_last and height * width % 16 == 0,
        )

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def dense(self, features: Tensor) -> Tensor:
        """The features in the kernels' layout, beginning at a multiple of 16 bytes; a copy only if need be."""
        return triton_support.dense(features, self.memory_format)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One variant of one kernel."""

    constants: dict[str, Any]
    """Values of the kernel's ``constexpr`` arguments."""
    options: dict[str, Any]
    """What Triton is told: warps, stages, fused multiply-adds."""
    programs_per_multiprocessor: int
    """For a kernel whose programs loop over tiles: how many of them are started per multiprocessor."""


@functools.lru_cache(maxsize=None)
def launch_configuration(setting: Setting, kernel: str) -> Launch:
    """The one place that decides block sizes, warps and stages; the launcher and the ahead-of-time proof both ask here.

    Args:
        setting: what runs where.
        kernel: name of a kernel in ``kernels.py`` without ``_kernel``.
    """
    channels, tokens = max(16, _power_of_two(setting.channels)), setting.grid**2
    # Triton multiplies on tensor cores from 8.0 on.
    half = setting.dtype != torch.float32
    tensor_cores = setting.capability >= 80 and (half or setting.tf32)
    block_n, block_t, warps, stages, programs = 64, min(64, max(16, _power_of_two(tokens))), 4, 1, 1
    if kernel in ("attend", "finish_tokens"):  # these two share the padding of tokens
        if tensor_cores:
            # The next tile is loaded during the work on this one, where shared memory and registers allow it.
            stages = 1 if tokens > 64 or (not half and setting.capability in (86, 89)) else 2
            programs = 2 if channels > 32 else 6 if half and setting.capability >= 90 else 3
        else:
            # Every thread holds whole rows of both operands: wide features leave registers for few tokens.
            block_t = min(block_t, 16 if channels > 32 else 32 if half else 64)
            warps, programs = 8, 2
    elif kernel == "partial_pool":
        stages = 3
    elif kernel == "attend_backward_pixels":
        if not tensor_cores:
            block_n, block_t = 32, 16
        elif not half and channels > 32:
            block_t = min(block_t, 32)
    elif kernel == "attend_backward_tokens":
        programs = 4
        if not tensor_cores:
            block_n, block_t, warps = 32, min(block_t, 32), 8
        elif not half and channels > 32:
            block_n = 32
    constants = {
        "C": setting.channels,
        "CP": channels,
        "R": setting.grid,
        "TP": -(-tokens // block_t) * block_t,
        "ROWS": 4,
        "COLS": 16,
        "BLOCK_S": 16,
        "BLOCK_N": block_n,
        "BLOCK_T": block_t,
        "CHANNELS_LAST": setting.channels_last,
        "ALIGNED": setting.aligned,
        "PRECISION": "tf32" if tensor_cores and not half else "ieee",
        "STAGES": stages,
    }
    return Launch(
        constants={name: constants[name] for name in _kernel(kernel).arg_names if name in constants},
        options={"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True},
        programs_per_multiprocessor=programs,
    )


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


@functools.lru_cache(maxsize=None)
def _kernel(name: str) -> Any:
    from isfl_ros.ops.pooled_cross_attention import kernels

    return getattr(kernels, f"{name}_kernel")


# Pointers that do not have the dtype of the features.
_FLOAT32 = {"p_partial", "p_pooled", "p_offsets", "p_lse", "p_delta", "p_grad_pooled"}
# Weights of inference are prepared in float32.
_FLOAT32 |= {"p_matrix_visible", "p_bias_visible", "p_matrix_infrared", "p_bias_infrared"}
_FORWARD = ("partial_pool", "finish_tokens", "attend")
_TRAINING = ("finish_pool", "attend_backward_pixels", "attend_backward_tokens", "pool_backward")


def ahead_of_time_cases(
    channels: int,
    grid: int,
    dtype: torch.dtype,
    tf32: bool,
    capability: int,
    *,
    channels_last: bool = True,
    aligned: bool = False,
    training: bool = False,
) -> list[KernelCase]:
    """What :func:`fused_attention` launches for features of this kind, for compilation without a GPU.

    Args:
        channels, grid, dtype, tf32, capability, channels_last, aligned: as in :class:`Setting`.
        training: also the kernels that only training launches.
    """
    setting = Setting(
        channels=channels,
        grid=grid,
        dtype=dtype,
        tf32=tf32,
        capability=capability,
        channels_last=channels_last,
        aligned=aligned,
    )
    layout = "channels-last" if channels_last else f"contiguous{' aligned' if aligned else ''}"
    precision = "tf32" if tf32 else triton_support.TRITON_TYPES[dtype]
    cases = []
    for name in _FORWARD + (_TRAINING if training else ()):
        launch, kernel = launch_configuration(setting, name), _kernel(name)
        pointers = {
            argument: "*fp32" if argument in _FLOAT32 else f"*{triton_support.TRITON_TYPES[dtype]}"
            for argument in kernel.arg_names
            if argument.startswith("p_")
        }
        kinds = pointers | dict.fromkeys(launch.constants, "constexpr")
        cases.append(
            KernelCase(
                name=f"{name} {precision} C{channels} r{grid} {layout}",
                kernel=kernel,
                signature={argument: kinds.get(argument, "i32") for argument in kernel.arg_names},
                constants=launch.constants,
                divisible_by_16=tuple(pointers),  # Setting.dense and the allocator see to it
                options=launch.options,
            )
        )
    return cases


# --- Launches --------------------------------------------------------------------------------------------------------


def _run(kernel: str, programs: tuple[int, ...], setting: Setting, *arguments: Tensor | int) -> None:
    launch = launch_configuration(setting, kernel)
    _kernel(kernel)[programs](*arguments, **launch.constants, **launch.options)


def _uninitialised(
    shape: tuple[int, ...], dtype: torch.dtype, like: Tensor, layout: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """Memory that the kernels fill entirely; tests replace this to find out that they do."""
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=layout)


def _programs(tiles: int, batch: int, setting: Setting, kernel: str, device: torch.device) -> int:
    """How many programs share the tiles of a picture: what the chip holds at once, and as evenly as that allows."""
    at_once = triton_support.multiprocessors(device) * launch_configuration(setting, kernel).programs_per_multiprocessor
    return -(-tiles // -(-tiles * batch // at_once))


# Programs of the pooling kernel that keep a large chip busy (132 multiprocessors with eight each).
_POOL_PROGRAMS = 1024


def _partial_pool(visible: Tensor, infrared: Tensor, setting: Setting) -> Tensor:
    """Sums (B, 2, T, S, C) float32 over the S row ranges of every bin of both maps."""
    b, c, h, w = visible.shape
    bins = setting.grid**2
    tallest_bin = -(-h // setting.grid) + 1
    row_tiles = -(-tallest_bin // launch_configuration(setting, "partial_pool").constants["ROWS"])
    row_tiles_per_split = -(-row_tiles * bins * b // _POOL_PROGRAMS)
    splits = -(-row_tiles // row_tiles_per_split)
    partial = _uninitialised((b, 2, bins, splits, c), torch.float32, visible)
    _run("partial_pool", (bins, splits, b), setting, visible, infrared, partial, h, w, splits)
    return partial


def _finish_pool(partial: Tensor, features: Tensor, setting: Setting) -> Tensor:
    """Pooled tokens (B, 2, T, C) float32."""
    b, _, bins, splits, c = partial.shape
    pooled = _uninitialised((b, 2, bins, c), torch.float32, partial)
    _run("finish_pool", (bins, 2, b), setting, partial, pooled, *features.shape[2:], splits)
    return pooled


def _finish_tokens(
    partial: Tensor,
    features: Tensor,
    for_visible: FoldedProjections,
    for_infrared: FoldedProjections,
    setting: Setting,
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys (B, 2, TP, CP), offsets (B, 2, TP) float32 and values (B, 2, TP, CP) as the attention kernel reads them."""
    b, splits = partial.shape[0], partial.shape[3]
    constants = launch_configuration(setting, "finish_tokens").constants
    tp, cp = constants["TP"], constants["CP"]
    keys = _uninitialised((b, 2, tp, cp), setting.dtype, partial)
    offsets = _uninitialised((b, 2, tp), torch.float32, partial)
    values = _uninitialised((b, 2, tp, cp), setting.dtype, partial)
    weights = [t.contiguous() for t in (*for_visible, *for_infrared)]
    _run("finish_tokens", (tp, 2, b), setting, partial, *weights, keys, offsets, values, *features.shape[2:], splits)
    return keys, offsets, values


def _padded(tokens: Tensor, setting: Setting, kernel: str) -> tuple[Tensor, Tensor, Tensor]:
    """The same in torch, from tokens (B, 2, T, 2C+1) float32."""
    constants = launch_configuration(setting, kernel).constants
    t, c = setting.grid**2, setting.channels
    bottom, right = constants["TP"] - t, constants["CP"] - c
    keys, offsets, values = tokens.split((c, 1, c), dim=-1)
    log2_e = 1.0 / math.log(2.0)
    keys = F.pad(keys * log2_e, (0, right, 0, bottom)).to(setting.dtype)
    offsets = F.pad(offsets[..., 0] * log2_e, (0, bottom), value=-math.inf)
    values = F.pad(values, (0, right, 0, bottom)).to(setting.dtype)
    return keys, offsets, values


def _attend(visible: Tensor, infrared: Tensor, tokens: tuple[Tensor, Tensor, Tensor], setting: Setting) -> Tensor:
    b, _, h, w = visible.shape
    out = _uninitialised(tuple(visible.shape), setting.dtype, visible, setting.memory_format)
    tiles = -(-h * w // launch_configuration(setting, "attend").constants["BLOCK_N"])
    programs = _programs(tiles, b, setting, "attend", visible.device)
    _run("attend", (programs, b), setting, visible, infrared, *tokens, out, h * w)
    return out


class _Pool(torch.autograd.Function):
    """Adaptive average pooling of both maps (B, C, H, W) to tokens (B, 2, T, C) float32."""

    @staticmethod
    def forward(ctx: Any, visible: Tensor, infrared: Tensor, setting: Setting) -> Tensor:
        ctx.shape, ctx.setting = tuple(visible.shape), setting
        return _finish_pool(_partial_pool(visible, infrared, setting), visible, setting)

    @staticmethod
    def backward(ctx: Any, grad_pooled: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if not any(ctx.needs_input_grad):
            return None, None, None
        setting: Setting = ctx.setting
        b, _, h, w = ctx.shape
        grads = [_uninitialised(ctx.shape, setting.dtype, grad_pooled, setting.memory_format) for _ in range(2)]
        tiles = -(-h * w // launch_configuration(setting, "pool_backward").constants["BLOCK_N"])
        bins = [1 if size % setting.grid == 0 else -(-setting.grid // size) + 1 for size in (h, w)]
        with torch.cuda.device_of(grad_pooled):
            _run("pool_backward", (tiles, b), setting, grad_pooled.contiguous(), *grads, h, w, *bins)
        return (*_wanted(ctx, grads), None)


class _Attend(torch.autograd.Function):
    """Both directions of the attention from tokens (B, 2, T, 2C+1) float32."""

    @staticmethod
    def forward(ctx: Any, visible: Tensor, infrared: Tensor, tokens: Tensor, setting: Setting) -> Tensor:
        ctx.save_for_backward(visible, infrared, tokens)
        ctx.setting = setting
        return _attend(visible, infrared, _padded(tokens, setting, "attend"), setting)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        visible, infrared, tokens = ctx.saved_tensors
        setting: Setting = ctx.setting
        b, c, h, w = visible.shape
        grad_out = setting.dense(grad_out)
        with torch.cuda.device_of(grad_out):
            padded = _padded(tokens, setting, "attend_backward_pixels")
            shape = tuple(visible.shape)
            grads = [_uninitialised(shape, setting.dtype, visible, setting.memory_format) for _ in range(2)]
            statistics = [_uninitialised((b, 2, h * w), torch.float32, visible) for _ in range(2)]  # lse, delta
            tiles = -(-h * w // launch_configuration(setting, "attend_backward_pixels").constants["BLOCK_N"])
            shared = (visible, infrared, *padded, grad_out)
            _run("attend_backward_pixels", (tiles, b), setting, *shared, *grads, *statistics, h * w)
            if not ctx.needs_input_grad[2]:
                return (*_wanted(ctx, grads), None, None)

            padded = _padded(tokens, setting, "attend_backward_tokens")
            constants = launch_configuration(setting, "attend_backward_tokens").constants
            tiles, blocks = -(-h * w // constants["BLOCK_N"]), constants["TP"] // constants["BLOCK_T"]
            chunks = _programs(tiles, b * 2 * blocks, setting, "attend_backward_tokens", visible.device)
            partial = _uninitialised((chunks, *tokens.shape), torch.float32, visible)
            shared = (visible, infrared, *padded, grad_out)
            _run("attend_backward_tokens", (chunks, 2 * blocks, b), setting, *shared, *statistics, partial, h * w)
        return (*_wanted(ctx, grads), partial.sum(0), None)


def _wanted(ctx: Any, grads: list[Tensor]) -> list[Tensor | None]:
    return [grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad)]
