"""What a run reports of pairs that it does not train on."""

from __future__ import annotations

from typing import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from isfl_ros.network.model import mean_gate
from isfl_ros.training.data import LoadedPair
from isfl_ros.training.losses import Objective, Output

_PICTURES = 3


@torch.no_grad()
def validate(
    pairs: list[LoadedPair],
    forward: Callable[[Tensor, Tensor], Output],
    objective: Objective,
    writer: SummaryWriter,
    *,
    step: int,
    device: torch.device,
) -> None:
    """Writes the fusion loss over whole pairs, by term, and pictures of the first: infrared, visible, fused, gate.

    Args:
        pairs: at least one.
        forward: the network in evaluation mode.
    """
    totals: dict[str, float] = {}
    for index, pair in enumerate(pairs):
        visible, infrared = (
            torch.tensor(plane, device=device).to(torch.float32)[None, None] / 255.0
            for plane in (pair.visible, pair.infrared)
        )
        output = forward(visible, infrared)
        people = None if pair.people is None else torch.tensor(pair.people.astype(np.int32), device=device)[None, None]
        for name, value in objective.fusion_terms(output.fused, visible, infrared, people).items():
            totals[name] = totals.get(name, 0.0) + float(value) / len(pairs)
        if index < _PICTURES:
            panels = [infrared, visible, output.fused]
            if output.gates:
                panels.append(mean_gate(output.gates, tuple(output.fused.shape[-2:])))
            writer.add_image(f"validation/{pair.stem}", torch.cat([p[0] for p in panels], dim=-1), step)
    for name, value in totals.items():
        writer.add_scalar(f"validation/{name}", value, step)
    writer.add_scalar("validation/loss", sum(totals.values()), step)
