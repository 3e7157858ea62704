"""Feature extraction (paper, section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isfl_ros.network.config import IsflConfig
from isfl_ros.network.layers import conv_block


class Encoder(nn.Module):
    """One modality to features at every scale.

    Input (B, 1, H, W) in [0, 1], of the size that the reduction leaves, or (B, reduction^2, H, W) of a ``subpixel`` network, with
    ``validity_input`` followed by as many channels of what is invalid;
    output a list, finest first, of (B, width, H // 2^k, W // 2^k).
    """

    def __init__(self, config: IsflConfig):
        super().__init__()
        self.blocks = nn.ModuleList(
            conv_block(config.encoder_channels if k == 0 else config.width, config.width) for k in range(config.scales)
        )
        with torch.no_grad():  # a training that never masks anything would leave what is invalid to chance
            self.blocks[0][0].conv.weight[:, config.pixels_apart :] = 0.0

    def forward(self, picture: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        x = picture if torch.is_autocast_enabled(picture.device.type) else picture.to(self.blocks[0][0].conv.weight.dtype)
        for k, block in enumerate(self.blocks):
            x = block(x if k == 0 else F.max_pool2d(x, 2))
            features.append(x)
        return features
