"""Recording what the layers of a network receive and return, and statistics of it by layer (advice A7, A24)."""

import difflib
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from project.errors import UserError

RECTIFIERS = (nn.ReLU, nn.ReLU6)  # where their output is 0, so is the gradient


@contextmanager
def watch(module: nn.Module, names: Collection[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """Records the outputs of layers while the block runs; the hooks are removed after it, also when it fails.

    Args:
        module: Any network.
        names: Layers, as `named_modules` has them; None for all modules that have no children.

    Yields:
        Layer -> a detached copy of its output in its last call, in the order of these calls. Layers that are not
        called, or that return something other than a tensor, are missing.

    Raises:
        UserError: the network has no layer of that name.
    """
    names = leaves(module) if names is None else names
    check_layers(module, names)
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.pop(name, None)
            outputs[name] = output.detach().clone()  # the next layer may work in place

    with ExitStack() as hooks:
        for name in names:
            layer = module.get_submodule(name)
            hooks.enter_context(layer.register_forward_hook(lambda _, __, output, name=name: keep(name, output)))
        yield outputs


@contextmanager
def watch_inputs(layer: nn.Module, limit: int) -> Iterator[list[Tensor]]:
    """Records the first `limit` rows that a layer receives while the block runs, a detached copy for each call."""
    rows: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        missing = limit - sum(map(len, rows))
        if missing > 0:
            rows.append(inputs[0][:missing].detach().clone())

    with layer.register_forward_pre_hook(keep):
        yield rows


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for the block; afterwards every layer has its own mode again (`train()` would undo a freeze), and every
    buffer its value (a network may count its calls).
    """
    modes = {layer: layer.training for layer in module.modules()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.eval()
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])


def leaves(module: nn.Module) -> list[str]:
    """Names of the modules that have no children, in the order of their definition."""
    return [name for name, layer in module.named_modules() if name and not any(layer.children())]


def rectifiers(module: nn.Module) -> set[str]:
    """Names of the ReLUs."""
    return {name for name, layer in module.named_modules() if isinstance(layer, RECTIFIERS)}


def first_convolution(net: nn.Module) -> nn.Conv2d | None:
    """The first 2-D convolution of a network (of a ViT, its patch embedding); None if it has none."""
    return next((layer for layer in net.modules() if isinstance(layer, nn.Conv2d)), None)


def map_layers(outputs: Mapping[str, Tensor], relus: Collection[str], count: int) -> list[str]:
    """Up to `count` layers with feature maps, evenly chosen from the first on; ReLUs only, where they have any."""
    maps = [name for name, output in outputs.items() if is_map(output)]
    maps = [name for name in maps if name in relus] or maps
    return maps[:: -(-len(maps) // count) or 1]


def is_map(output: Tensor) -> bool:
    """Whether an output has shape (N, C, h, w) with two places or more."""
    return output.ndim == 4 and output.shape[2] * output.shape[3] > 1


def check_layers(module: nn.Module, names: Collection[str]) -> None:
    """Raises UserError for a layer that the network does not have, with the nearest names."""
    known = [name for name, _ in module.named_modules() if name]
    for name in names:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, n=5, cutoff=0.0))
            raise UserError(f"the network has no layer {name!r}; the nearest names are {near}")


@dataclass(frozen=True)
class LayerSpread:
    """Statistics of a layer's outputs; `dead` is None where the layer is not a ReLU."""

    name: str
    mean: float
    std: float
    dead: float | None = None  # share of the channels (units) that are 0 for every image at every place


def layer_spread(outputs: Mapping[str, Tensor], relus: Collection[str] = ()) -> list[LayerSpread]:
    """Mean and standard deviation of each layer's outputs, over images, channels and places; the share of dead ReLUs.

    With a good initialisation the standard deviation stays about the same from layer to layer (Glorot & Bengio 2010;
    He et al. 2015, arXiv:1502.01852). The more images there are, the fewer units look dead.

    Args:
        outputs: Layer -> (N, C, ...), as `watch` yields.
        relus: Names of the ReLUs among them, see `rectifiers`.
    """
    rows = []
    for name, output in outputs.items():
        values = output.float()
        units = values.transpose(0, 1).flatten(1) if name in relus else None  # (C, N x places)
        dead = None if units is None else float((units == 0).all(1).float().mean())
        rows.append(LayerSpread(name, float(values.mean()), float(values.std(correction=0)), dead))
    return rows
