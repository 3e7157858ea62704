"""The teacher of a distillation: a trained network that answers and does not change."""

from __future__ import annotations

import torch
from torch import Tensor

from isfl_ros.errors import InputError
from isfl_ros.network.checkpoint import load_model, weights_sha256
from isfl_ros.resources import resolve_model


class Teacher:
    """A model folder's network, frozen, in evaluation mode, on the student's device.

    Args:
        name: name of a shipped model, or a model folder.
        device: where it runs.
        implementation: who computes its Causal Feature Integrator, where it has one.
        patch: side of the patches that it will see.

    Raises:
        InputError: there is no such model, its files are damaged, or it cannot take patches of that side.
    """

    def __init__(self, name: str, *, device: torch.device, implementation: str, patch: int):
        directory = resolve_model(name)
        self.digest = weights_sha256(directory)
        """SHA-256 of the weights' file."""
        network, self.info = load_model(directory)
        self._network = network.to(device, memory_format=torch.channels_last).requires_grad_(False)
        if hasattr(network, "set_implementation"):
            # The student's may be one that the teacher's network does not have; every network has the folded one.
            obstacle = network.why_not(implementation) if hasattr(network, "why_not") else None
            network.set_implementation("folded" if obstacle else implementation)
        try:
            self(*torch.zeros((2, 1, 1, patch, patch), device=device))
        except InputError as error:
            raise InputError(f"teacher {name} cannot take patches of {patch} px", got=str(error)) from error

    @torch.no_grad()
    def __call__(self, visible: Tensor, infrared: Tensor, **masks: Tensor) -> Tensor:
        """Fused luma (B, 1, H, W) float32 of what the student sees."""
        return self._network(visible, infrared, **masks).float()

    def facts(self) -> dict[str, str]:
        """What a student's description says of it."""
        info = self.info
        return {
            "model": info.name,
            "architecture": info.architecture,
            "recipe": info.recipe,
            "sha256": self.digest,
        }
