"""The chapter about the inside of the network: filters, spread by layer, feature maps (advice A7, A24)."""

import torch

from project.classifier import ImageClassifier
from project.extras.look import figures
from project.extras.look.watch import first_convolution, layer_spread, leaves, rectifiers, watch
from project.extras.report.page import heading, missing, paragraph, picture
from project.extras.report.predictions import Predictions

IMAGES = 32  # for mean and spread
CHOSEN = 3  # layers whose feature maps are drawn
NO_KERNEL = 2  # pixels; a smaller filter has no pattern to see


def network(model: ImageClassifier, found: Predictions | None, why: str) -> list[str]:
    """Filters, which need no image, and activations, which do; `why` there are none."""
    return [
        heading("Filters of the first layer"),
        *_filters(model),
        heading("Activations"),
        *_activations(model, found, why),
    ]


def _filters(model: ImageClassifier) -> list[str]:
    layer = first_convolution(model.net)
    if layer is None:
        return [missing("Filters", "the network has no convolution")]
    if min(layer.kernel_size) < NO_KERNEL:
        return [missing("Filters", "those of the first convolution are a single pixel")]
    if layer.stride == layer.kernel_size and layer.kernel_size[0] > 3:  # as in a ViT
        note = " They embed patches of the image, as in a vision transformer."
    else:
        note = ""
    shape = "x".join(map(str, layer.kernel_size))
    return [
        paragraph(
            "What the network looks for first: smooth, varied patterns are those of a trained layer, "
            f"noise that of a fresh one.{note}"
        ),
        picture(
            lambda: figures.filters(layer.weight),
            "First-layer filters",
            f"{len(layer.weight)} filters of {shape} pixels",
        ),
    ]


def _activations(model: ImageClassifier, found: Predictions | None, why: str) -> list[str]:
    if found is None:
        return [missing("Activations", why)]
    images = found.batch(list(range(min(IMAGES, len(found.labels)))))
    with torch.no_grad(), watch(model.net) as outputs:
        model.eval()(images.to(next(model.parameters()).device))
    relus = rectifiers(model.net)
    modules = dict(model.net.named_modules())
    names = [name for name in leaves(model.net) if list(modules[name].parameters()) or name in relus]  # what computes
    rows = layer_spread({name: outputs[name] for name in outputs if name in names}, relus)
    dead = [row.dead for row in rows if row.dead is not None]
    spread = [row.std for row in rows]
    says = f"standard deviation from {spread[0]:.2g} in the first layer to {spread[-1]:.2g} in the last" if rows else ""
    says += f"; {sum(dead) / len(dead):.1%} of the ReLU units are dead" if dead else ""
    shaped = [name for name, output in outputs.items() if output.ndim == 4 and output.shape[-2] * output.shape[-1] > 1]
    choice = [name for name in shaped if name in relus] or shaped
    if len(choice) > CHOSEN:
        choice = [choice[round(i * (len(choice) - 1) / (CHOSEN - 1))] for i in range(CHOSEN)]
    body = [
        paragraph(
            f"What the layers give for {len(images)} validation images. A spread that fades or grows from layer to layer "
            "slows the training; "
            "a dead unit is 0 for every one of these images."
        ),
        picture(lambda: figures.layer_spread(rows), "Spread of the activations by layer", says),
    ]
    if not choice:
        return [*body, missing("Feature maps", "no layer of this network gives any")]
    label = model.class_names[int(found.labels[0])]
    body += [
        paragraph(f"Feature maps: what each channel of a layer gives for one image, a {label}."),
        picture(lambda: figures.image_grid(images[:1]), "The image", f"of the class {label}"),
    ]
    for name in choice:
        maps = outputs[name][0]
        says = f"{len(maps)} channels of {maps.shape[1]}x{maps.shape[2]}"
        body.append(picture(lambda maps=maps: figures.feature_maps(maps, limit=16), f"Feature maps of {name}", says))
    return body
