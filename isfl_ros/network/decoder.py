"""Feature reconstruction (paper, section 3.3, and algorithm 1 of the supplement)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isfl_ros.network.config import IsflConfig
from isfl_ros.network.layers import conv_block


class DecoderStage(nn.Module):
    """Joins a coarser result with the finer integrated feature: (B, C, h, w) and (B, C, H, W) to (B, C, H, W)."""

    def __init__(self, config: IsflConfig):
        super().__init__()
        self.order = config.decoder_order
        self.convs = conv_block(config.width, config.width)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        raised = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        if self.order == "add_then_conv":
            return self.convs(raised + fine)
        return self.convs(raised) + fine


class _Bounded(torch.autograd.Function):
    """A picture bounded to [0, 1] whose pixels beyond feel what pulls them back, and not what pushes them further.

    With the gradient of a clamp a pixel that has left the range never comes back. With all of the gradient passed, whatever
    wants more contrast pushes it on for ever, since what it gets stays the same: the coefficients grow until training diverges.
    """

    @staticmethod
    def forward(ctx, picture: Tensor) -> Tensor:
        ctx.save_for_backward(picture)
        return picture.clamp(0.0, 1.0)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (picture,) = ctx.saved_tensors
        away = ((picture > 1.0) & (gradient < 0.0)) | ((picture < 0.0) & (gradient > 0.0))
        return gradient.masked_fill(away, 0.0)


class SigmoidHead(nn.Module):
    """Last convolution and sigmoid (paper, section 3.3): features (B, C, H, W) to fused luma (B, 1, H, W) in (0, 1).

    The pictures and the maps of what is invalid are not looked at; they are arguments because :class:`AffineHead` needs them.
    """

    def __init__(self, config: IsflConfig):
        super().__init__()
        self.conv = nn.Conv2d(config.width, 1, kernel_size=config.head_kernel, padding=config.head_kernel // 2)

    def forward(self, x: Tensor, visible: Tensor, infrared: Tensor, invalid: Sequence[Tensor] = ()) -> Tensor:
        # Half precision would quantise the picture itself: near white, bfloat16 steps by a full grey level.
        with torch.autocast(x.device.type, enabled=False):
            logits = self.conv(x.to(self.conv.weight.dtype))
            return torch.sigmoid(logits if logits.dtype == torch.float64 else logits.float())


class AffineHead(nn.Module):
    """Fused luma as a local affine combination of the two pictures, with the coefficients that the network gives.

    ``a * visible + b * infrared + c``, with a, b, c from the last convolution, (B, 3, h, w), raised to the size of the
    pictures (of a ``subpixel`` network: (B, 3 reduction^2, h, w), rearranged to it), bounded to [0, 1]. Not in the paper.
    A sigmoid head has to carry every grey level of the sources through the features to be faithful to them; here the features
    only say what is taken from where, by how much it is strengthened, and what is added. Where a modality is invalid its picture is 0, and it is the network that has to
    answer with the coefficients of the other one; with ``validity_input`` the convolution sees the maps of what is invalid, reduced as the
    pictures are.
    """

    def __init__(self, config: IsflConfig):
        super().__init__()
        self.reduction, self.subpixel = config.reduction, config.subpixel
        of_each = config.pixels_apart
        self.conv = nn.Conv2d(config.head_inputs, 3 * of_each, kernel_size=config.head_kernel, padding=config.head_kernel // 2)
        with torch.no_grad():  # training starts near the average of the two pictures
            self.conv.weight.mul_(0.1)
            self.conv.weight[:, config.width :] = 0.0  # as in the encoders
            self.conv.bias.copy_(torch.tensor([0.5, 0.5, 0.0]).repeat_interleave(of_each))

    def forward(self, x: Tensor, visible: Tensor, infrared: Tensor, invalid: Sequence[Tensor] = ()) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # in bfloat16 a coefficient near 1 steps by a grey level
            weight, padding = self.conv.weight, self.conv.padding
            width = x.shape[1]
            coefficients = F.conv2d(x.to(weight.dtype), weight[:, :width], self.conv.bias, padding=padding).to(visible.dtype)
            if invalid:  # a sum of two convolutions: the features need not be copied to stand beside the maps
                maps = torch.cat(tuple(invalid), dim=1).to(weight.dtype)
                coefficients = coefficients + F.conv2d(maps, weight[:, width:], padding=padding).to(visible.dtype)
            if self.subpixel:
                coefficients = F.pixel_shuffle(coefficients, self.reduction)
            elif self.reduction > 1:
                coefficients = F.interpolate(coefficients, scale_factor=self.reduction, mode="bilinear", align_corners=False)
            coefficients = coefficients[..., : visible.shape[-2], : visible.shape[-1]]
            of_visible, of_infrared, offset = coefficients.split(1, dim=1)
            fused = of_visible * visible + of_infrared * infrared + offset
            return _Bounded.apply(fused) if self.training else fused.clamp(0.0, 1.0)


def reduce_picture(picture: Tensor, reduction: int, *, subpixel: bool = False) -> Tensor:
    """Squares of side ``reduction``, each as one pixel: their means, (B, 1, H, W) to (B, 1, ceil(H / reduction),
    ceil(W / reduction)), or with ``subpixel`` their pixels, (B, reduction^2, ...), row after row.

    Squares that reach over the edge are means of what lies inside; their pixels outside are those of the edge once more.
    """
    if reduction == 1:
        return picture
    if subpixel:
        height, width = picture.shape[-2:]
        if height % reduction or width % reduction:
            picture = F.pad(picture, (0, -width % reduction, 0, -height % reduction), mode="replicate")
        return F.pixel_unshuffle(picture, reduction)
    return F.avg_pool2d(picture, reduction, ceil_mode=True, count_include_pad=False)


HEADS: dict[str, type[nn.Module]] = {"sigmoid": SigmoidHead, "affine": AffineHead}
