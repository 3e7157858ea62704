"""Feature reconstruction (paper, section 3.3, and algorithm 1 of the supplement)."""

from __future__ import annotations

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


class Head(nn.Module):
    """Last convolution and sigmoid: features (B, C, H, W) to fused luma (B, 1, H, W) in (0, 1)."""

    def __init__(self, config: IsflConfig):
        super().__init__()
        self.conv = nn.Conv2d(config.width, 1, kernel_size=config.head_kernel, padding=config.head_kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        # Half precision would quantise the picture itself: near white, bfloat16 steps by a full grey level.
        with torch.autocast(x.device.type, enabled=False):
            logits = self.conv(x.to(self.conv.weight.dtype))
            return torch.sigmoid(logits if logits.dtype == torch.float64 else logits.float())
