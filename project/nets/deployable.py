"""What is deployed: normalisation, network and temperature in one module."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from project.nets.fuse import Fold

TestTime = Literal["none", "flip"]


def logits_of(net: nn.Module, images: Tensor, tta: TestTime) -> Tensor:
    """Normalised images (N, C, H, W) -> logits (N, outputs); with flip the mean of those of each image and its mirror.

    One call of the network with all of them, the images first, so that hooks see the images.
    """
    if tta == "none":
        return net(images)
    return net(torch.cat([images, images.flip(-1)])).unflatten(0, (2, -1)).mean(0)


class NetworkOnly(nn.Module):
    """The network alone, for those who normalise in code of their own: normalised float32 images in, logits out."""

    def __init__(self, net: nn.Module, tta: TestTime = "none") -> None:
        super().__init__()
        self.net, self.tta = net, tta

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) -> logits (N, outputs)."""
        return logits_of(self.net, images, self.tta)


class Deployable(NetworkOnly):
    """A network with what belongs around it: uint8 images in, logits or probabilities out.

    Args:
        net: Normalised images (N, C, H, W) -> logits (N, outputs).
        mean: Of each channel, in [0, 1]; any shape with C values.
        std: Standard deviation of each channel, likewise.
        temperature: The logits are divided by it (Guo et al. 2017, arXiv:1706.04599).
        probabilities: Logits (N, outputs) -> probabilities (N, classes), such as those of a task; None gives logits.
        folds: What became of the network's batch norms, see `project.nets.fuse`.
        tta: As `logits_of` has it.
    """

    def __init__(
        self,
        net: nn.Module,
        mean: Tensor,
        std: Tensor,
        temperature: float = 1.0,
        probabilities: Callable[[Tensor], Tensor] | None = None,
        folds: Sequence[Fold] = (),
        tta: TestTime = "none",
    ) -> None:
        super().__init__(net, tta)
        self.temperature, self.probabilities, self.folds = temperature, probabilities, list(folds)
        mean, std = (values.detach().double().cpu().view(1, -1, 1, 1) for values in (mean, std))
        # One multiplication and one addition instead of three steps.
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), uint8 or float in [0, 1] -> logits / temperature, or probabilities of them."""
        scale = self.scale if images.dtype == torch.uint8 else 255 * self.scale
        logits = super().forward(images.to(scale.dtype) * scale + self.shift) / self.temperature
        return logits if self.probabilities is None else self.probabilities(logits)
