"""The convolution block: what it is in evaluation mode stays, however its norm is stored."""

from __future__ import annotations

import pytest
import torch

from isfl_ros.network.layers import ConvNormAct


@pytest.fixture
def block():
    block = ConvNormAct(3, 6).double().eval()
    with torch.no_grad():
        block.norm.running_mean.normal_()
        block.norm.running_var.copy_(torch.tensor([1e-9, 1e-4, 0.3, 1.0, 20.0, 3e3]))
        block.norm.weight.copy_(torch.tensor([0.5, -1.3, 0.0, 1.0, 2.0, 0.1]))
        block.norm.bias.normal_()
    return block


def test_the_norm_can_be_folded_into_the_convolution(block):
    x = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    before = block(x)
    for _ in range(2):  # and once more changes nothing
        block.fold_norm()
        torch.testing.assert_close(block(x), before, rtol=1e-9, atol=1e-9)
