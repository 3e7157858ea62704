"""Configurations of the networks, ISFL and BAFFM, and their named architectures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from isfl_ros.errors import InputError

DECODER_ORDERS = ("add_then_conv", "conv_then_add")
HEADS = ("sigmoid", "affine")
REDUCTIONS = (1, 2, 4)
ADJUSTMENTS = ("backdoor", "conventional")
MINIMUM_SIZE = 32  # pixels; below that three scales leave nothing to pool


@dataclass(frozen=True, kw_only=True)
class IsflConfig:
    """Everything that decides the shape of an ISFL network.

    Raises:
        InputError: on construction, when a value is out of range.
    """

    siamese: bool = False
    """One encoder for both modalities (the paper) or two of equal shape (the authors' release)."""
    width: int = 32
    """Channels of every feature map."""
    scales: int = 3
    """Encoder blocks; scale k works at 1 / 2^(k-1) of the size that ``reduction`` leaves."""
    grid: int = 8
    """Side r of the pooled key/value grid of the cross-attention."""
    gate_width: int = 16
    """Hidden channels of the gate; 0 is the paper's single 3x3 convolution."""
    refine: bool = True
    """A 3x3 convolution block after the blend of each scale (the release has it)."""
    decoder_order: str = "add_then_conv"
    """``add_then_conv``: up-sample, add, convolve (release); ``conv_then_add``: up-sample, convolve, add (paper)."""
    head: str = "sigmoid"
    """``sigmoid``: one channel and a sigmoid (paper, release); ``affine``: per pixel the coefficients a, b, c of
    ``a * visible + b * infrared + c`` (:class:`~isfl_ros.network.decoder.AffineHead`)."""
    head_kernel: int = 3
    """Kernel of the last convolution: 3 (release) or 1 (paper)."""
    reduction: int = 1
    """Features are computed on squares of this side, 1, 2 or 4, on their means if not ``subpixel``, and what the head gives is
    raised to full size. Above 1 the head must be ``affine``, which brings the detail of the full size back."""
    subpixel: bool = False
    """With a reduction: the pixels of a square enter as channels (pixel unshuffle) instead of as their mean, and the head gives
    every full-size pixel its own coefficients (pixel shuffle) instead of raising those of the square."""
    validity_input: bool = False
    """Beside its picture each encoder gets the map of what is invalid in it, 1 there and 0 elsewhere, reduced as the picture is:
    with the zeros of equations 2 to 4 alone a missing modality and a black scene are one and the same. An affine head gets the
    maps of both too, since a single dead pixel hardly reaches it through the features. Not in the paper."""
    cfi: bool = True
    """False replaces the Causal Feature Integrator by the local feature alone (ablation; such a network has no gates)."""

    def __post_init__(self) -> None:
        def require(ok: bool, key: str, expected: str) -> None:
            if not ok:
                raise InputError(f"network.{key} out of range", expected=expected, got=repr(getattr(self, key)))

        require(isinstance(self.width, int) and 1 <= self.width <= 256, "width", "an integer from 1 to 256")
        require(isinstance(self.scales, int) and 1 <= self.scales <= 4, "scales", "an integer from 1 to 4")
        require(isinstance(self.grid, int) and 1 <= self.grid <= 32, "grid", "an integer from 1 to 32")
        require(isinstance(self.gate_width, int) and 0 <= self.gate_width <= 256, "gate_width", "an integer from 0 to 256")
        require(self.decoder_order in DECODER_ORDERS, "decoder_order", f"one of {', '.join(DECODER_ORDERS)}")
        require(self.head in HEADS, "head", f"one of {', '.join(HEADS)}")
        require(self.head_kernel in (1, 3), "head_kernel", "1 or 3")
        require(
            self.reduction in (REDUCTIONS if self.head == "affine" else REDUCTIONS[:1]),
            "reduction",
            "1, or with head affine 2 or 4",
        )
        require(not self.subpixel or self.reduction > 1, "subpixel", "false with reduction 1, which leaves no pixels to tell apart")
        for key in ("siamese", "refine", "cfi", "subpixel", "validity_input"):
            require(isinstance(getattr(self, key), bool), key, "true or false")

    @property
    def pixels_apart(self) -> int:
        """Pixels of a square that the encoders and the head tell apart: 1, or those of a ``subpixel`` network's square."""
        return self.reduction**2 if self.subpixel else 1

    @property
    def encoder_channels(self) -> int:
        """Channels of what enters an encoder."""
        return self.pixels_apart * (2 if self.validity_input else 1)

    @property
    def head_inputs(self) -> int:
        """Channels of what enters the last convolution: the features, and in an affine head the maps of what is invalid."""
        return self.width + (2 * self.pixels_apart if self.validity_input and self.head == "affine" else 0)


@dataclass(frozen=True, kw_only=True)
class BaffmConfig:
    """Everything that decides the shape of a BAFFM network (second paper).

    Raises:
        InputError: on construction, when a value is out of range.
    """

    siamese: bool = False
    """One encoder for both modalities or two of equal shape."""
    width: int = 16
    """Channels of every feature map."""
    scales: int = 3
    """Encoder blocks; scale k works at 1 / 2^(k-1) of the size. Their sum, raised to full size, is X of equation 4."""
    adjustment: str = "backdoor"
    """``backdoor``: equations 4 to 6. ``conventional``: without the dictionaries (``w/o BAFFM``), the same number of
    learned parameters spent on the features alone (:class:`~isfl_ros.network.baffm.ConventionalAdjustment`)."""
    prototypes: int = 25
    """N: prototypes in each modality's confounder dictionary."""
    entries: int = 32
    """Entries of a prototype: principal components of the backbone's features that are kept."""
    query: int = 32
    """d: entries of queries and keys."""
    mixing: int = 1
    """Convolution blocks between the concatenated features and the reconstructing convolution. 0 is what the paper
    says: then no layer sees both modalities before the tanh."""
    gate: bool = False
    """ISFL's invariance gate over the adjusted features: where it is closed the features are taken as they were before
    the adjustment. In neither paper."""
    gate_width: int = 16
    """Hidden channels of that gate."""

    def __post_init__(self) -> None:
        def require(ok: bool, key: str, expected: str) -> None:
            if not ok:
                raise InputError(f"network.{key} out of range", expected=expected, got=repr(getattr(self, key)))

        ranges = {
            "width": (1, 256), "scales": (1, 4), "prototypes": (2, 256), "entries": (1, 256), "query": (1, 256),
            "mixing": (0, 3), "gate_width": (1, 256),
        }
        for key, (low, high) in ranges.items():
            value = getattr(self, key)
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(whole and low <= value <= high, key, f"an integer from {low} to {high}")
        require(self.adjustment in ADJUSTMENTS, "adjustment", f"one of {', '.join(ADJUSTMENTS)}")
        for key in ("siamese", "gate"):
            require(isinstance(getattr(self, key), bool), key, "true or false")

    @property
    def pixels_apart(self) -> int:
        """As of :class:`IsflConfig`: here nothing is reduced."""
        return 1

    @property
    def encoder_channels(self) -> int:
        """As of :class:`IsflConfig`: the picture alone."""
        return 1

    @property
    def needs_dictionary(self) -> bool:
        """Whether the network cannot do without confounder dictionaries."""
        return self.adjustment == "backdoor"


ARCHITECTURES: dict[str, IsflConfig | BaffmConfig] = {
    # Two encoders, because a symmetric network cannot tell a hot pedestrian from a bright lamp. Features at half size, because
    # the head brings the detail back: a quarter of the arithmetic for hardly less (docs/log.md).
    "isfl": IsflConfig(head="affine", reduction=2, subpixel=True, validity_input=True),
    # What the authors released; kept apart so that our default may move without touching the comparison.
    "isfl-release": IsflConfig(
        siamese=False,
        width=32,
        scales=3,
        grid=8,
        gate_width=16,
        refine=True,
        decoder_order="add_then_conv",
        head="sigmoid",
        head_kernel=3,
        reduction=1,
        subpixel=False,
        validity_input=False,
    ),
    # What the text and the figures of the paper say: one encoder, a gate of a single 3x3 convolution, no refinement, a decoder that
    # convolves before it adds, a 1x1 head. The number of the gate's channels is not said: one, as in the release.
    "isfl-paper": IsflConfig(
        siamese=True,
        width=32,
        scales=3,
        grid=8,
        gate_width=0,
        refine=False,
        decoder_order="conv_then_add",
        head="sigmoid",
        head_kernel=1,
        reduction=1,
        subpixel=False,
        validity_input=False,
    ),
    # For CPU-only machines and small boards: a quarter of the channels.
    "isfl-edge": IsflConfig(
        width=8, gate_width=4, grid=4, head="affine", reduction=2, subpixel=True, validity_input=True
    ),
    # The second paper's network around our encoder (docs/baffm.md says what is ours in it).
    "baffm": BaffmConfig(),
}


def config_from_dict(cls: type, values: dict, where: str):
    """Builds a frozen configuration from a mapping, refusing keys it does not have.

    Raises:
        InputError: ``values`` is not a mapping or has an unknown key.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where} is not a mapping", expected="keys and values", got=type(values).__name__)
    names = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(values) - set(names), key=str)
    if unknown:
        raise InputError(f"{where} has unknown key {unknown[0]!r}", expected=f"one of {', '.join(names)}")
    return cls(**values)
