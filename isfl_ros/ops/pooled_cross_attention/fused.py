"""Launches the Triton kernels of ``kernels.py``: checks, block sizes, memory, autograd.

Inference is three launches (partial pooling of both maps, tokens, attention of both directions). With gradients the map from
pooled tokens to keys and values is plain torch in float32 between two ``autograd.Function``s.

Shapes: B batch, C channels, H height, W width, N = H*W pixels, T = grid*grid pooled tokens, D = 2 directions.
CP is C and TP is T padded to what the kernels take. Importing this file does not import Triton.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isfl_ros.errors import InputError
from isfl_ros.ops.triton_support import KernelCase, interpreter_is_on

if TYPE_CHECKING:
    from isfl_ros.ops.pooled_cross_attention.api import FoldedProjections

CHANNELS = range(1, 65)
GRIDS = range(1, 17)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Compute capability from which tensor cores multiply tf32; below it float32 is always IEEE.
_TF32_CAPABILITY = 80
_LOG2_E = 1.4426950408889634


def fused_attention(
    visible: Tensor, infrared: Tensor, for_visible: FoldedProjections, for_infrared: FoldedProjections, grid: int
) -> Tensor:
    """Same value as ``folded``; output in the memory format of ``visible``. Autocast does not change what it does.

    With gradients, the gradients of both feature maps are computed even if only one of them requires one.

    Raises:
        InputError: width, grid, dtype or device that the kernels do not support; the message says what they do.
    """
    _check(visible, for_visible, for_infrared, grid)
    if infrared.device.type == "cuda":
        context = torch.cuda.device(infrared.device)
    else:
        context = contextlib.nullcontext()
    with context:
        if torch.is_grad_enabled() and any(t.requires_grad for t in (visible, infrared, *for_visible, *for_infrared)):
            pooled = _Pool.apply(visible, infrared, grid)  # B 2 T C
            with torch.autocast(visible.device.type, enabled=False):
                tokens = torch.stack(  # B 2 T 2C+1
                    (_project(pooled[:, 1], for_visible), _project(pooled[:, 0], for_infrared)), dim=1
                )
            return _Attend.apply(visible, infrared, tokens, grid)
        setting = Setting.of(visible, grid)
        visible, infrared = setting.dense(visible), setting.dense(infrared)
        partial = _partial_pool(visible, infrared, setting)
        return _attend(visible, infrared, _finish_tokens(partial, for_visible, for_infrared, visible, setting), setting)


def _project(pooled: Tensor, folded: FoldedProjections) -> Tensor:
    return F.linear(pooled, folded.matrix.float(), folded.bias.float())


def _check(visible: Tensor, for_visible: FoldedProjections, for_infrared: FoldedProjections, grid: int) -> None:
    channels = visible.shape[1]
    if channels not in CHANNELS:
        raise InputError(
            "the triton attention does not support this width", expected="1 to 64 channels", got=str(channels)
        )
    if grid not in GRIDS:
        raise InputError("the triton attention does not support this pooled grid", expected="1 to 16", got=str(grid))
    for name, dtype in (
        ("features", visible.dtype),
        ("for_visible", for_visible.matrix.dtype),
        ("for_infrared", for_infrared.matrix.dtype),
    ):
        if dtype not in DTYPES:
            raise InputError(
                f"the triton attention does not support the dtype of {name}",
                expected="float32, float16 or bfloat16",
                got=str(dtype).removeprefix("torch."),
            )
    if visible.numel() == 0:
        raise InputError("the triton attention needs at least one pixel", got=f"features {tuple(visible.shape)}")
    if visible.device.type != "cuda" and not interpreter_is_on():
        raise InputError(
            "the triton attention needs tensors on a CUDA device",
            expected="cuda",
            got=str(visible.device),
            do="move model and pictures there, or ask for the implementation 'folded'",
        )


# --- Which kernel variant runs ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Setting:
    """All that decides which compiled variant of a kernel runs."""

    channels: int
    grid: int
    dtype: torch.dtype
    tf32: bool
    capability: int
    """Compute capability, 90 for 9.0."""
    channels_last: bool

    @classmethod
    def of(cls, features: Tensor, grid: int) -> Setting:
        return cls(
            channels=features.shape[1],
            grid=grid,
            dtype=features.dtype,
            tf32=torch.backends.cuda.matmul.allow_tf32,
            capability=_capability(features.device),
            channels_last=_is_channels_last(features),
        )

    def dense(self, features: Tensor) -> Tensor:
        """The features in the layout that the kernels run on; a copy only if they are not in it already."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return features.contiguous(memory_format=layout)

    def launch(self, kernel: str) -> Launch:
        """Block sizes, warps and stages of a kernel. The launcher and the ahead-of-time proof both ask here."""
        return _launch(self, kernel)


@dataclass(frozen=True, kw_only=True)
class Launch:
    constants: dict[str, Any]
    """Values of the kernel's ``constexpr`` arguments."""
    num_warps: int
    num_stages: int = 1
    programs_per_multiprocessor: int = 1
    """Of a kernel whose programs loop over tiles: how many of them are started per multiprocessor."""

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


@functools.lru_cache(maxsize=None)
def _launch(setting: Setting, kernel: str) -> Launch:
    channels = max(16, _power_of_two(setting.channels))
    tokens = setting.grid**2
    half = setting.dtype != torch.float32
    tf32 = not half and setting.tf32 and setting.capability >= _TF32_CAPABILITY
    shape = {"C": setting.channels, "CP": channels}
    layout = {"CHANNELS_LAST": setting.channels_last}
    precision = {"PRECISION": "tf32" if tf32 else "ieee"}

    if kernel == "partial_pool":
        return Launch(constants=shape | {"R": setting.grid, "ROWS": 4, "COLS": 16} | layout, num_warps=4)
    if kernel == "finish_pool":
        return Launch(constants=shape | {"R": setting.grid, "BLOCK_S": 16}, num_warps=4)
    if kernel == "pool_backward":
        return Launch(constants=shape | {"R": setting.grid, "BLOCK_N": 64} | layout, num_warps=4)
    if kernel in ("attend", "finish_tokens"):
        block_n, block_t, warps, stages, programs = _attend_blocks(setting.capability, half, tf32, channels, tokens)
        padded = {"TP": _multiple(tokens, block_t)}
        if kernel == "finish_tokens":
            return Launch(constants=shape | {"R": setting.grid} | padded | {"BLOCK_S": 16}, num_warps=4)
        blocks = {"BLOCK_N": block_n, "BLOCK_T": block_t}
        return Launch(
            constants=shape | padded | blocks | layout | precision | {"STAGES": stages},
            num_warps=warps,
            num_stages=stages,
            programs_per_multiprocessor=programs,
        )
    block_n, block_t, warps = 64, min(64, max(16, _power_of_two(tokens))), 4
    blocks = {"TP": _multiple(tokens, block_t), "BLOCK_N": block_n, "BLOCK_T": block_t}
    if kernel == "attend_backward_pixels":
        return Launch(constants=shape | blocks | layout | precision, num_warps=warps)
    if kernel == "attend_backward_tokens":
        return Launch(
            constants=shape | {"R": setting.grid} | blocks | layout | precision,
            num_warps=warps,
            programs_per_multiprocessor=4,
        )
    raise KeyError(kernel)


def _attend_blocks(
    capability: int, half: bool, tf32: bool, channels: int, tokens: int
) -> tuple[int, int, int, int, int]:
    """BLOCK_N, BLOCK_T, warps, stages, programs per multiprocessor of the attention kernel."""
    block_t = min(64, max(16, _power_of_two(tokens)))
    if half or tf32:
        return 64, block_t, 4, 2, 3
    return 64, 16, 4, 1, 4


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _multiple(n: int, of: int) -> int:
    return -(-n // of) * of


def _is_channels_last(features: Tensor) -> bool:
    return features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()


@functools.lru_cache(maxsize=None)
def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 90  # Triton's interpreter runs what the newest tested chip would
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.lru_cache(maxsize=None)
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # in Triton's interpreter: few programs, so that they loop
    return torch.cuda.get_device_properties(device).multi_processor_count


# --- Launches --------------------------------------------------------------------------------------------------------


def _run(kernel: str, programs: tuple[int, ...], setting: Setting, *arguments: Tensor | int) -> None:
    launch = setting.launch(kernel)
    _kernel(kernel)[programs](*arguments, **launch.constants, **launch.options)


@functools.lru_cache(maxsize=None)
def _kernel(name: str) -> Any:
    try:
        from isfl_ros.ops.pooled_cross_attention import kernels
    except ImportError as error:
        raise InputError(
            "the triton attention needs Triton", got=str(error), do="pip install triton, or ask for 'folded'"
        ) from error
    return getattr(kernels, f"{name}_kernel")


def _uninitialised(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Every output and buffer of the kernels comes from here, so that a test can hand out poisoned memory."""
    return torch.empty(shape, dtype=dtype, device=device)


def _like(features: Tensor, setting: Setting) -> Tensor:
    b, c, h, w = features.shape
    if setting.channels_last:
        return _uninitialised((b, h, w, c), features.dtype, features.device).permute(0, 3, 1, 2)
    return _uninitialised((b, c, h, w), features.dtype, features.device)


def _programs(tiles: int, batch: int, setting: Setting, kernel: str, device: torch.device) -> int:
    """How many programs share the tiles of a picture: as many as the device holds, all with equally many tiles."""
    at_once = _multiprocessors(device) * setting.launch(kernel).programs_per_multiprocessor
    tiles_per_program = -(-tiles * batch // at_once)
    return -(-tiles // tiles_per_program)


# Programs of the pooling kernel that keep every chip busy (132 multiprocessors with eight each).
_POOL_PROGRAMS = 1024


def _partial_pool(visible: Tensor, infrared: Tensor, setting: Setting) -> Tensor:
    """Sums (B, 2, T, S, C) fp32 over the S row ranges of every bin."""
    b, c, h, w = visible.shape
    bins = setting.grid**2
    rows = setting.launch("partial_pool").constants["ROWS"]
    tallest = -(-h // setting.grid) + 1
    splits = min(-(-_POOL_PROGRAMS // (bins * b)), -(-tallest // rows))
    partial = _uninitialised((b, 2, bins, splits, c), torch.float32, visible.device)
    _run("partial_pool", (bins, splits, b), setting, visible, infrared, partial, h, w, splits)
    return partial, h, w


def _finish_tokens(
    partial: tuple[Tensor, int, int],
    for_visible: FoldedProjections,
    for_infrared: FoldedProjections,
    features: Tensor,
    setting: Setting,
) -> tuple[Tensor, Tensor, Tensor]:
    sums, h, w = partial
    b, splits = sums.shape[0], sums.shape[3]
    launch = setting.launch("finish_tokens").constants
    keys = _uninitialised((b, 2, launch["TP"], launch["CP"]), features.dtype, features.device)
    offsets = _uninitialised((b, 2, launch["TP"]), torch.float32, features.device)
    values = _uninitialised((b, 2, launch["TP"], launch["CP"]), features.dtype, features.device)
    weights = [t.contiguous() for t in (*for_visible, *for_infrared)]
    _run("finish_tokens", (launch["TP"], 2, b), setting, sums, *weights, keys, offsets, values, h, w, splits)
