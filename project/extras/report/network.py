"""Inside the network: filters, standard deviation by layer, feature maps (advice A7, A24, A25)."""

from typing import Any

import torch

from project.classifier import ImageClassifier
from project.errors import UserError
from project.extras.look import figures
from project.extras.look.watch import first_convolution, layer_spread, leaves, rectifiers, watch
from project.extras.report.page import picture
from project.extras.report.predictions import Predictions

IMAGES = 32  # for mean and standard deviation


def filters(trained: tuple[ImageClassifier, Any]) -> dict[str, Any]:
    """The filters of the first convolution."""
    layer = first_convolution(trained[0].net)
    if layer is None or min(layer.kernel_size) < 2:
        raise UserError("the network has no first convolution of 2x2 pixels or more")
    return {
        "patches": layer.stride == layer.kernel_size and layer.kernel_size[0] > 3,  # as in a vision transformer
        "picture": picture(
            figures.filters(layer.weight), "{} filters of {}x{} pixels".format(len(layer.weight), *layer.kernel_size)
        ),
    }


def activations(found: Predictions) -> dict[str, Any]:
    """Mean and standard deviation of each layer for some validation images, and feature maps of the first of them."""
    net = found.model.net
    images = found.batch(list(range(min(IMAGES, len(found.labels)))))
    relus = rectifiers(net)
    names = [name for name in leaves(net) if name in relus or list(net.get_submodule(name).parameters())]
    with torch.no_grad(), watch(net, names) as outputs:
        found.model(images)
    rows = layer_spread(outputs, relus)
    says = f"standard deviation {rows[0].std:.2g} in the first layer, {rows[-1].std:.2g} in the last"
    maps = {name: output[0] for name, output in outputs.items() if output.ndim == 4}  # (C, H, W) each
    choice = [name for name, each in maps.items() if name in relus and each[0].numel() > 1] or list(maps)
    chosen = dict.fromkeys([*choice[:1], *choice[len(choice) // 2 :][:1], *choice[-1:]])
    return {
        "images": len(images),
        "spread": picture(figures.layer_spread(rows), says),
        "label": found.model.class_names[int(found.labels[0])],
        "image": picture(figures.image_grid(images[:1].cpu()), "the first validation image"),
        "maps": {
            name: picture(figures.feature_maps(maps[name], limit=16), "{} channels of {}x{}".format(*maps[name].shape))
            for name in chosen
        },
    }
