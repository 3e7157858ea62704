"""How many floating-point operations and bytes the network needs: arithmetic on paper, nothing is measured here.

Shapes: C channels (``width``), N = H*W pixels of a scale, T = grid*grid pooled tokens, G channels of the gate's 3x3
convolution, e bytes of an element. A multiply-add is two operations. Counted are convolutions and matrix products, as
``torch.utils.flop_counter`` counts them; norms, activations, exponentials, pooling and resizing are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from isfl_ros.network.config import BaffmConfig, IsflConfig

BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2}
"""e: bytes of an element of a feature map."""


@dataclass(frozen=True)
class Cost:
    """Least work of something."""

    flops: int
    bytes: int
    """To and from memory, every input read once and every output written once by each pass over a picture."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


def scale_pixels(config: IsflConfig | BaffmConfig, height: int, width: int) -> list[int]:
    """N of every scale, finest first: each is half of the one before, rounded down; ``reduction`` rounds up."""
    reduction = getattr(config, "reduction", 1)
    height, width = -(-height // reduction), -(-width // reduction)
    return [(height >> k) * (width >> k) for k in range(config.scales)]


def head_channels(config: IsflConfig) -> int:
    """Channels of the last convolution: the picture itself, or the coefficients of an affine head, of every pixel of a square."""
    return {"sigmoid": 1, "affine": 3 * config.pixels_apart}[config.head]


def convolution(channels_in: int, channels_out: int, kernel: int, pixels: int, element: int) -> Cost:
    """``2 * kernel^2 * channels_in * channels_out`` operations a pixel; reads the input map, writes the output map."""
    return Cost(
        flops=2 * kernel**2 * channels_in * channels_out * pixels, bytes=(channels_in + channels_out) * pixels * element
    )


def pool(config: IsflConfig, pixels: int, element: int) -> Cost:
    """Average pooling of both maps: reads ``2 C N e``; what it writes (T tokens) is too little to count."""
    return Cost(flops=0, bytes=2 * config.width * pixels * element)


def attend(config: IsflConfig, pixels: int, element: int) -> Cost:
    """Both directions from pooled, folded tokens, in one pass.

    Per pixel and direction ``2 C T`` for the scores and ``2 C T`` for the values: ``8 C T N`` in all, 16.4 k a pixel
    for C = 32 and T = 64. Reads two maps, writes their sum: ``3 C N e``, 384 bytes a pixel in float32, 192 in float16.
    """
    tokens = config.grid**2
    return Cost(flops=8 * config.width * tokens * pixels, bytes=3 * config.width * pixels * element)


def fold(config: IsflConfig) -> Cost:
    """Keys, score offsets and values of the T tokens of both directions: ``2 * 2 C (2C+1) T``."""
    return Cost(flops=4 * config.width * (2 * config.width + 1) * config.grid**2, bytes=0)


def project(config: IsflConfig, pixels: int) -> Cost:
    """What folding saves: query, key and value of every pixel of both maps, ``6 * 2 C^2 N``."""
    return Cost(flops=12 * config.width**2 * pixels, bytes=0)


def blend(config: IsflConfig, pixels: int, element: int) -> Cost:
    """Gate and blend in one pass.

    3x3 convolution to G channels and 1x1 to one: ``(18 C G + 2 G) N``; with ``gate_width`` 0 one 3x3: ``18 C N``.
    Reads three maps, writes one and the gate: ``(4 C + 1) N e``.
    """
    c, g = config.width, config.gate_width
    return Cost(flops=(18 * c * g + 2 * g if g else 18 * c) * pixels, bytes=(4 * c + 1) * pixels * element)


def integrator(config: IsflConfig, pixels: int, element: int) -> Cost:
    """Pool, attend and blend, without the refining convolution: three passes, ``(9 C + 1) N e`` bytes.

    Three is the least: the tokens need every pixel before the first score, and the gate needs its neighbours.
    """
    return (
        pool(config, pixels, element) + fold(config) + attend(config, pixels, element) + blend(config, pixels, element)
    )


def adjustment(config: BaffmConfig, pixels: int, element: int, *, folded: bool = True) -> Cost:
    """One modality's back-door adjustment, or what stands in its place: reads a map, writes one.

    With P prototypes of D entries and queries of d: folded ``2 C (C + 2 P)`` operations a pixel (the tables are made
    before), term by term ``2 (C (C + d + D) + P (d + D))`` and the keys; conventional ``2 (C (C + d + D) + d D)``.
    """
    c, p, d, e = config.width, config.prototypes, config.query, config.entries
    keys = 0
    if not config.needs_dictionary:
        pixel = c * (c + d + e) + d * e
    elif folded:
        pixel = c * (c + 2 * p)
    else:
        pixel, keys = c * (c + d + e) + p * (d + e), p * d * e
    return Cost(flops=2 * (pixel * pixels + keys), bytes=2 * c * pixels * element)


def network(
    config: IsflConfig | BaffmConfig, height: int, width: int, element: int, *, folded: bool = True
) -> Cost:
    """The whole network on one pair, without the maps for people (gates of ISFL are part of it).

    Bytes are those of one pass a layer, with norm and activation inside the convolution before them and the up-sampling
    inside the sum after it; weights are read once a frame. ``folded`` counts the exact algebra of the attention, which
    is the least; without, query, key and value are projected for every pixel, as the paper writes it (the bytes are
    then still the least).
    """
    total = Cost(0, 0)
    if isinstance(config, BaffmConfig):
        for part in _baffm_parts(config, scale_pixels(config, height, width), element, folded):
            total = total + part
        return total
    for part in _parts(config, scale_pixels(config, height, width), height * width, element):
        total = total + part
    if config.cfi and not folded:
        for pixels in scale_pixels(config, height, width):
            total = total + project(config, pixels) + Cost(-fold(config).flops, 0)
    return total


def _parts(config: IsflConfig, pixels: list[int], size: int, element: int) -> Iterator[Cost]:
    """``pixels`` of every scale, ``size`` of the pictures."""
    c = config.width
    entering = config.encoder_channels
    if config.reduction > 1 or config.validity_input:
        yield Cost(0, 2 * (size + entering * pixels[0]) * element)  # averaging, rearranging, joining both pictures and maps
    if config.validity_input:
        yield Cost(0, 2 * size)  # two masks of a byte a pixel
    for k, n in enumerate(pixels):
        for _ in ("visible", "infrared"):
            if k:
                yield Cost(0, c * (pixels[k - 1] + n) * element)  # max-pooling
            yield convolution(c if k else entering, c, 3, n, element)
            yield convolution(c, c, 3, n, element)
        yield integrator(config, n, element) if config.cfi else Cost(0, 3 * c * n * element)
        if config.refine:
            yield convolution(c, c, 3, n, element)
        if k + 1 < len(pixels):
            yield Cost(0, c * (pixels[k + 1] + 2 * n) * element)  # up-sampling and sum
            yield convolution(c, c, 3, n, element)
            yield convolution(c, c, 3, n, element)
    outputs = head_channels(config)
    yield convolution(config.head_inputs, outputs, config.head_kernel, pixels[0], element)
    if config.head == "affine":
        yield Cost(0, (outputs * pixels[0] + 3 * size) * element)  # coefficients, both pictures, the fused one
    yield Cost(0, _parameters(config) * element)


def _baffm_parts(config: BaffmConfig, pixels: list[int], element: int, folded: bool) -> Iterator[Cost]:
    """``pixels`` of every scale, finest first."""
    c, n = config.width, pixels[0]
    for _ in ("visible", "infrared"):
        for k, here in enumerate(pixels):
            if k:
                yield Cost(0, c * (pixels[k - 1] + here) * element)  # max-pooling
                yield Cost(0, c * (here + 2 * pixels[k - 1]) * element)  # up-sampling and sum
            yield convolution(c if k else 1, c, 3, here, element)
            yield convolution(c, c, 3, here, element)
        yield adjustment(config, n, element, folded=folded)
    if config.gate:
        g = config.gate_width
        yield Cost(flops=(18 * c * g + 2 * g) * n, bytes=(6 * c + 1) * n * element)  # reads four maps, writes two
    inputs = 2 * c
    for _ in range(config.mixing):
        yield convolution(inputs, c, 3, n, element)
        inputs = c
    yield convolution(inputs, 1, 3, n, element)
    yield Cost(0, _baffm_parameters(config) * element)


def _baffm_parameters(config: BaffmConfig) -> int:
    """As :func:`_parameters`; the dictionaries are not learned and not among them."""
    c, g = config.width, config.gate_width
    encoder = 9 * c + 9 * c * c * (2 * config.scales - 1)
    adjust = c * c + config.query * c + config.entries * (c + config.query)
    gate = 9 * c * g + g if config.gate else 0
    mixing = 9 * c * c * (config.mixing + 1) if config.mixing else 0
    head = 9 * (c if config.mixing else 2 * c)
    return (1 if config.siamese else 2) * encoder + 2 * adjust + gate + mixing + head


def _parameters(config: IsflConfig) -> int:
    """Weights of convolutions and projections, biases and norms left out: they are under 2 %."""
    c, g = config.width, config.gate_width
    encoder = 9 * config.encoder_channels * c + 9 * c * c * (2 * config.scales - 1)
    cfi = 6 * c * c + (9 * c * g + g if g else 9 * c) if config.cfi else 0
    refine = 9 * c * c if config.refine else 0
    decoders = 18 * c * c * (config.scales - 1)
    return (
        (1 if config.siamese else 2) * encoder
        + (cfi + refine) * config.scales
        + decoders
        + config.head_kernel**2 * config.head_inputs * head_channels(config)
    )


def floor_ms(cost: Cost, *, bytes_per_s: float, flops_per_s: float) -> tuple[float, str]:
    """Least milliseconds at measured rates of copying and of matrix products, and which of the two decides.

    Returns:
        ``max(bytes / bytes_per_s, flops / flops_per_s)`` and ``memory`` or ``arithmetic``.
    """
    memory, arithmetic = 1e3 * cost.bytes / bytes_per_s, 1e3 * cost.flops / flops_per_s
    return max(memory, arithmetic), "memory" if memory >= arithmetic else "arithmetic"
