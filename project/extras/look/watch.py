"""What the layers of a network give: hooks that are always removed, and numbers by layer (advice A7, A24)."""

import difflib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from project.errors import UserError

RECTIFIERS = (nn.ReLU, nn.ReLU6)  # what they set to 0 has no gradient


@contextmanager
def watch(module: nn.Module, names: Collection[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """Collects the outputs of layers while the block runs; the hooks are gone after it, also when it fails.

    Args:
        module: Any network.
        names: Layers, as `named_modules` has them; None takes every module that has no children.

    Yields:
        Layer -> its output in its last call, in the order of these calls: detached, a copy (the next layer may work in place), of
        the first tensor where it gives several. A layer that is not called, or gives no tensor, is not there.

    Raises:
        UserError: a name that the network does not have; it lists the near ones.
    """
    layers = dict(module.named_modules())
    names = leaves(module) if names is None else list(names)
    check_layers(layers, names)
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                outputs.pop(name, None)
                outputs[name] = tensor.detach().clone()

        return hook

    handles = []
    try:
        for name in names:
            handles.append(layers[name].register_forward_hook(keep(name)))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards for each layer the mode and the buffers that it had: `train()` would wake up what is frozen, and a
    network may count its forward passes.
    """
    modes = [(layer, layer.training) for layer in module.modules()]
    owners = [(layer._buffers, name, buffer) for layer, _ in modes for name, buffer in layer._buffers.items()]
    buffers = [(owner, name, buffer, buffer.detach().clone()) for owner, name, buffer in owners if buffer is not None]
    try:
        for layer, _ in modes:
            layer.training = False
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode
        with torch.no_grad():
            for owner, name, buffer, before in buffers:
                owner[name] = buffer
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def leaves(module: nn.Module) -> list[str]:
    """Names of the modules that have no children, in the order in which they were made."""
    return [name for name, layer in module.named_modules() if name and not any(layer.children())]


def rectifiers(module: nn.Module) -> set[str]:
    """Names of the ReLUs."""
    return {name for name, layer in module.named_modules() if isinstance(layer, RECTIFIERS)}


def check_layers(known: Collection[str], names: Collection[str]) -> None:
    """Raises UserError for a name that is not known, with the near ones."""
    for name in names:
        if name in known and name:
            continue
        near = difflib.get_close_matches(name, [each for each in known if each], n=5, cutoff=0.4)
        some = near or [each for each in known if each][:5]
        raise UserError(f"the network has no layer {name!r}; {'near' if near else 'some'}: {', '.join(some)}")


def first_tensor(output: Any) -> Tensor | None:
    """The tensor, or the first of a tuple, list or dict of them."""
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        output = next((each for each in output if isinstance(each, Tensor)), None)
    return output if isinstance(output, Tensor) else None


@dataclass(frozen=True)
class LayerSpread:
    """A layer's outputs in three numbers; `dead` is None where the layer is no ReLU."""

    name: str
    mean: float
    std: float
    dead: float | None = None  # share of the channels (units) that are 0 for every image at every place


def layer_spread(outputs: Mapping[str, Tensor], relus: Collection[str] = ()) -> list[LayerSpread]:
    """Mean and standard deviation of each layer's outputs, over images, channels and places; the dead share of ReLUs.

    Under a good initialisation the deviation stays about the same from layer to layer (Glorot & Bengio 2010; He et al. 2015,
    arXiv:1502.01852). How many units look dead depends on the images: the more there are, the fewer.

    Args:
        outputs: Layer -> (N, C, ...), as `watch` yields; channels at dimension 1.
        relus: Names of the ReLUs among them, see `rectifiers`.
    """
    rows = []
    for name, output in outputs.items():
        values = output.float()
        dead = None
        if name in relus and values.ndim > 1 and values.numel():
            dead = float((values.transpose(0, 1).flatten(1) == 0).all(1).float().mean())
        mean, std = (
            (float(values.mean()), float(values.std(correction=0))) if values.numel() else (torch.nan, torch.nan)
        )
        rows.append(LayerSpread(name, mean, std, dead))
    return rows


def first_convolution(net: nn.Module) -> nn.Conv2d | None:
    """The first 2-D convolution of a network, of a ViT its patch embedding; None if it has none."""
    return next((layer for layer in net.modules() if isinstance(layer, nn.Conv2d)), None)
