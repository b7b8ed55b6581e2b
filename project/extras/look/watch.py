"""Recording what the layers of a network receive and return, and statistics of it by layer (advice A7, A25)."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

RECTIFIERS = (nn.ReLU, nn.ReLU6)  # where their output is 0, so is the gradient
PASSING = (nn.Identity, nn.Dropout, nn.Flatten)  # return what they receive


@contextmanager
def watch(module: nn.Module, names: Collection[str] | None = None, inputs: bool = False) -> Iterator[dict[str, Tensor]]:
    """Records what layers return while the block runs; the hooks are removed after it, also when it fails.

    Args:
        module: Any network.
        names: Layers, as `named_modules` has them, "" for the network itself; None for all `leaves`.
        inputs: Record what they receive instead, the first argument.

    Yields:
        Layer -> a detached copy of the tensor in its last call, in the order of these calls. Layers that are not
        called, or that return something other than a tensor, are missing.

    Raises:
        AttributeError: the network has no layer of that name.
    """
    tensors: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, received: Any, returned: Any) -> None:
        tensor = received[0] if inputs else returned
        if isinstance(tensor, Tensor):
            tensors.pop(name, None)
            tensors[name] = tensor.detach().clone()  # the next layer may work in place

    with ExitStack() as hooks:
        for name in leaves(module) if names is None else names:
            hooks.enter_context(module.get_submodule(name).register_forward_hook(partial(keep, name)))
        yield tensors


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
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])


def leaves(module: nn.Module) -> list[str]:
    """Names of the modules without children that compute something, in the order of their definition."""
    modules = module.named_modules()
    return [name for name, layer in modules if name and not any(layer.children()) and not isinstance(layer, PASSING)]


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
        dead = float((values == 0).transpose(0, 1).flatten(1).all(1).float().mean()) if name in relus else None
        rows.append(LayerSpread(name, float(values.mean()), float(values.std(correction=0)), dead))
    return rows
