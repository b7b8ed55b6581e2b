"""Checks of a network before its first step: first loss, standard deviation of its layers (advice A7, A15)."""

import copy
import math
from typing import get_args

import torch
from torch import Tensor, nn

from project.extras.check.findings import Findings
from project.extras.look.watch import LayerSpread, evaluating, layer_spread, watch
from project.nets.blocks import InitScheme, initialize

NEAR = 0.3  # of the loss of guessing; a first loss within it is that of a network without an opinion
GROWTH = 30  # from the smallest to the largest standard deviation; beyond it a learning rate fits some layers only


def check_first_loss(loss: float, chance: float, pretrained: bool, found: Findings) -> None:
    """Against `chance`, the loss of guessing."""
    words = f"{loss:.3f}, where guessing has {chance:.3f}"
    low, high = loss < (1 - NEAR) * chance and not pretrained, loss > (1 + NEAR) * chance
    small = "model.init kaiming_normal starts with small logits"
    rules = (
        (not math.isfinite(loss), "error", f"{loss}, not finite", "another model.init, model.mean or model.std"),
        (math.isfinite(loss) and high, "warning", f"{words}: the first steps only unlearn it", small),
        (low, "warning", f"{words}: the answer is known before training", "look for the label in the images"),
    )
    found.judge("first loss", words, rules)


def weighted(net: nn.Module, outputs: dict[str, Tensor]) -> list[LayerSpread]:
    """Statistics of the outputs of its convolutions and linear layers."""
    kinds = dict(net.named_modules())
    return layer_spread(
        {name: each for name, each in outputs.items() if isinstance(kinds[name], nn.Conv2d | nn.Linear)}
    )


def check_layers(net: nn.Module, images: Tensor, found: Findings) -> dict[str, Tensor]:
    """Standard deviation of the outputs by layer, but the head's, which is small on purpose.

    Args:
        net: In training mode, so that batch norms work as they will; their statistics change.
        images: Normalised, (N, C, H, W).
        found: Takes the line.

    Returns:
        Layer -> its outputs.
    """
    with torch.no_grad(), watch(net) as outputs:
        net(images)
    rows = [row for row in weighted(net, outputs)[:-1] if row.std > 0]
    if len(rows) > 1:
        low, high = min(rows, key=lambda row: row.std), max(rows, key=lambda row: row.std)
        words = f"standard deviation of the outputs: {low.std:.3g} ({low.name}) to {high.std:.3g} ({high.name})"
        fix = "another model.init (--compare_init draws them all), or batch norm"
        found.judge("layers", words, [(high.std > GROWTH * low.std, "warning", words, fix)])
    return outputs


def compare_init(net: nn.Module, images: Tensor) -> dict[str, list[tuple[float, float]]]:
    """Each initialisation -> (number of the layer, standard deviation of its outputs).

    In eval mode: before the first step a batch norm then passes everything through, and only the initialisation is seen.
    """
    curves = {}
    for scheme in get_args(InitScheme):
        fresh = copy.deepcopy(net)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for layer in fresh.modules():
                if hasattr(layer, "reset_parameters"):
                    layer.reset_parameters()
            initialize(fresh, scheme)
        with torch.no_grad(), evaluating(fresh), watch(fresh) as outputs:
            fresh(images)
        curves[scheme] = [(i, row.std) for i, row in enumerate(weighted(fresh, outputs), 1)]
    return curves
