"""Check a network before its first step: first loss, dead layers, the spread of its layers (advice A7)."""

import copy
import math
from typing import get_args

import torch
from torch import Tensor, nn

from project.extras.check.findings import Findings
from project.extras.look.watch import evaluating, layer_spread, watch
from project.nets.blocks import InitScheme, initialize

NEAR = 0.3  # of ln(classes): a first loss within it is that of a network that has no opinion yet
GROWTH = 30  # times from the smallest to the largest spread of the layers; beyond it rates fit some layers only


def check_first_loss(loss: float, classes: int, pretrained: bool, found: Findings) -> None:
    """Against ln(classes), which guessing would have."""
    guess = math.log(classes)
    words = f"{loss:.3f}, where guessing among {classes} classes has ln({classes}) = {guess:.3f}"
    if not math.isfinite(loss):
        found.stop("first loss", f"it is {loss}", "another model.init, or a mean and deviation that fit the images")
    elif loss <= (1 + NEAR) * guess and (pretrained or loss >= (1 - NEAR) * guess):
        found.ok("first loss", words)
    elif loss > guess:
        found.look(
            "first loss",
            f"{words}: the first steps only unlearn it",
            "model.init kaiming_normal starts with small logits",
        )
    else:
        found.look(
            "first loss",
            f"{words}: it knows the answer before training",
            "look for the label in the images, and for leakage",
        )


def check_signal(
    net: nn.Module, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer, found: Findings
) -> bool:
    """Whether the weights have gradients, after two steps too: a head that begins at 0 passes none to the layers below at first.

    Args:
        net: In training mode; it is changed.
        images: Normalised, (N, C, H, W).
        labels: (N,).
        optimizer: Of this network.
        found: Takes the line.

    Returns:
        Whether the network can learn.
    """
    with watch(net) as outputs:
        moving: list[str] = []

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images).float(), labels)
            loss.backward()
            moving[:] = [
                name for name, p in net.named_parameters() if p.ndim > 1 and p.grad is not None and bool(p.grad.any())
            ]
            return loss

        for _ in range(3):
            optimizer.step(closure)
    weights = [name for name, p in net.named_parameters() if p.ndim > 1 and p.requires_grad]
    first = outputs.items()
    if weights and not moving:
        flat = next((name for name, output in first if _alike(output)), "the last layer")
        mend = "model.init: kaiming_normal, or weights that are not all 0"
        found.stop("signal", f"dead: no layer has a gradient, and from {flat} on every image gives the same", mend)
        return False
    found.ok("signal", f"{len(moving)} of {len(weights)} weights that train have a gradient")
    return True


def _alike(output: Tensor) -> bool:
    return output.ndim > 1 and len(output) > 1 and bool((output == output[:1]).all())


def check_spread(net: nn.Module, images: Tensor, found: Findings) -> dict[str, Tensor]:
    """Standard deviation of the outputs by layer; returns the outputs, for the picture.

    Args:
        net: In training mode, so that batch norms work as they will.
        images: Normalised, (N, C, H, W).
        found: Takes the line.
    """
    with torch.no_grad(), watch(net) as outputs:
        net(images)
    kinds = dict(net.named_modules())
    layers = [name for name in outputs if isinstance(kinds[name], nn.Conv2d | nn.Linear)][
        :-1
    ]  # the head is small on purpose
    spread = {row.name: row.std for row in layer_spread({name: outputs[name] for name in layers}) if row.std > 0}
    if len(spread) < 2:
        return outputs
    low, high = min(spread, key=spread.__getitem__), max(spread, key=spread.__getitem__)
    words = f"standard deviation of the layers: {spread[low]:.3g} ({low}) to {spread[high]:.3g} ({high})"
    if spread[high] > GROWTH * spread[low]:
        found.look("spread", words, "another model.init (--compare_init true shows them all), or batch norm")
    else:
        found.ok("spread", words)
    return outputs


def compare_init(net: nn.Module, images: Tensor) -> dict[str, list[tuple[float, float]]]:
    """The guide's comparison: spread by layer under each initialisation, scheme -> (layer, standard deviation).

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
        kinds = dict(fresh.named_modules())
        rows = layer_spread(
            {name: output for name, output in outputs.items() if isinstance(kinds[name], nn.Conv2d | nn.Linear)}
        )
        curves[scheme] = [(i + 1, row.std) for i, row in enumerate(rows)]
    return curves
