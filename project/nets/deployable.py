"""What is deployed: normalisation, network, temperature and softmax in one module."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from project.nets.fuse import Fold


class Deployable(nn.Module):
    """A network with what belongs around it: uint8 images in, probabilities out.

    Args:
        net: Normalised images (N, C, H, W) -> logits (N, classes).
        mean: Of each channel, in [0, 1]; any shape with C values.
        std: Standard deviation of each channel, likewise.
        temperature: The logits are divided by it before the softmax; None gives logits instead of probabilities.
        folds: What became of the network's batch norms, see `project.nets.fuse`.
    """

    def __init__(
        self, net: nn.Module, mean: Tensor, std: Tensor, temperature: float | None = None, folds: Sequence[Fold] = ()
    ) -> None:
        super().__init__()
        self.net, self.temperature, self.folds = net, temperature, list(folds)
        mean, std = (values.detach().double().cpu().view(1, -1, 1, 1) for values in (mean, std))
        self.register_buffer(
            "scale", (1 / (255 * std)).float()
        )  # one multiplication and one addition instead of three steps
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), uint8 or float in [0, 1] -> probabilities, or logits, (N, classes)."""
        scale = self.scale if images.dtype == torch.uint8 else 255 * self.scale
        logits = self.net(images.to(scale.dtype) * scale + self.shift)
        return logits if self.temperature is None else (logits / self.temperature).softmax(dim=1)


class NetworkOnly(nn.Module):
    """The network alone, for those who normalise in code of their own: normalised float32 images in, logits out."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) -> logits (N, classes)."""
        return self.net(images)
