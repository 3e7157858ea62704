"""The one convolution block that all parts share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from isfl_ros.ops.gated_blend import NEGATIVE_SLOPE


class ConvNormAct(nn.Module):
    """3x3 convolution, BatchNorm, LeakyReLU; height and width are kept.

    Inference folds the norm into the convolution (:meth:`fold_norm`), after which ``norm`` is the identity.
    """

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1)
        self.norm: nn.Module = nn.BatchNorm2d(channels_out)
        self.act = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))

    def fold_norm(self) -> None:
        """Folds the running statistics into the convolution: exact in evaluation mode, and one-way."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()


def conv_block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Two convolution blocks in a row: the unit of encoder and decoder."""
    return nn.Sequential(ConvNormAct(channels_in, channels_out), ConvNormAct(channels_out, channels_out))
