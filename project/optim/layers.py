"""The layers of a network in order, from the image to the logits; freezing and layer-wise learning rates use it."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import accumulate
from statistics import mode

from torch import nn

from project.errors import UserError

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # subclasses too, such as ConvNormAct
LARGEST_STAGE = 0.76  # of the layers: ConvNeXt-B has 0.75 in one stage; the features of VGG, 0.8, are not a stage


@dataclass(frozen=True)
class Layer:
    """One step of a network: a block, or a single convolution or linear layer, with the norms that follow it.

    Attributes:
        name: Path of its module, such as backbone.layer1.0, stages.2.0 or head.
        stage: Path of its stage, such as backbone.layer1; its own name where it is a stage by itself.
        tensors: Names of its parameters and buffers, as named_parameters and named_buffers give them.
    """

    name: str
    stage: str
    tensors: tuple[str, ...]


def layers(net: nn.Module) -> list[Layer]:
    """Every parameter and buffer of the network, each in exactly one layer; the last layer is the head alone.

    The head is `net.head`, or without one the last linear layer or convolution. A timm network says itself what its
    layers are (`group_matcher`). In others, the order is that of registration, which in torchvision and here is that of
    execution; `_is_trunk` says which modules are opened, any other module is one layer. Norms, parameters outside of
    layers (class token, position embedding) and buffers belong to the layer before them, or to the first. Shared
    tensors count where they come first: a head that shares all its tensors is a layer without any.

    A stage is a part with two or more layers, such as layer1 of a ResNet, but not most of the network (VGG's features).

    Raises:
        UserError: the network has no parameters.
    """
    parameters = dict(net.named_parameters())
    if not parameters:
        raise UserError(f"model.net: {type(net).__name__} has no parameters; lists of layers belong in nn.ModuleList")
    tensors = parameters | dict(net.named_buffers())
    plain = [path for path, module in net.named_modules() if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))]
    head = "head" if inside("head", parameters) else ["", *plain][-1]  # without any, the whole network
    last = inside(head, tensors)
    body = [name for name in tensors if name not in last]
    # Norms and biases have none; a weight that does not train, such as FastNet's first, is a buffer.
    matrices = {n for n in body if tensors[n].ndim > 1 and (n in parameters or n.endswith(".weight"))}

    pieces = [(path, names) for path, names in _pieces("", net, body, matrices) if names]
    current = next((path for path, _ in pieces if path), "stem")  # what comes before the first layer belongs to it
    found: dict[str, list[str]] = {}
    for path, names in pieces:
        current = path or current
        found.setdefault(current, []).extend(names)
    name = head or "head"  # the network may be a bare nn.Linear
    return [*(Layer(path, _stage(path, found), tuple(found[path])) for path in found), Layer(name, name, tuple(last))]


def inside(path: str, names: Collection[str]) -> list[str]:
    """The names of what is in a module: of tensors or other modules."""
    return [name for name in names if name.startswith(f"{path}.".lstrip("."))]


def _above_of(path: str) -> list[str]:
    """Paths of the modules around a module or tensor, from the outside in."""
    return list(accumulate(path.split(".")[:-1], "{}.{}".format))


def _pieces(path: str, module: nn.Module, tensors: list[str], matrices: set[str]) -> Iterator[tuple[str, list[str]]]:
    """All tensors, in order and once: those of each layer with its path, what is between layers with ""."""
    names = inside(path, tensors)
    if hasattr(module, "group_matcher"):
        yield from _timm_pieces(path, module, names, matrices)
    elif not path or _is_trunk(module, len(matrices)):
        yield "", [name for name in names if name.rpartition(".")[0] == path]
        for key, child in module.named_children():
            yield from _pieces(f"{path}.{key}".lstrip("."), child, tensors, matrices)
    else:
        yield "" if matrices.isdisjoint(names) else path, names


def _timm_pieces(path: str, module: nn.Module, names: list[str], matrices: set[str]) -> Iterator[tuple[str, list[str]]]:
    """timm's groups, each named by the module with most of its weights that holds no others."""
    from timm.models._manipulate import group_with_matcher  # the public group_parameters leaves buffers out

    relative = ((name.removeprefix(f"{path}."), name) for name in names)
    for group in group_with_matcher(relative, module.group_matcher(coarse=False), return_values=True).values():
        outside = {above for name in set(names).difference(group) for above in _above_of(name)}
        owners = [above for name in group if name in matrices for above in _above_of(name) if above not in outside]
        yield mode(owners or [""]), group


def _weights(module: nn.Module) -> int:
    return sum(parameter.ndim > 1 for parameter in module.parameters())


def _is_trunk(module: nn.Module, total: int) -> bool:
    """Whether a module is opened because its children, not itself, are layers.

    So are a container of several weights, a module that holds most of the network's `total` weights in parts of several
    each, and one with a part that repeats one class of block (a stage of MaxViT).
    """
    if isinstance(module, _CONTAINERS):
        return _weights(module) > 1
    children = list(module.children())
    if 2 * _weights(module) > total and any(_weights(child) > 1 for child in children):
        return True
    kinds = [[type(block) for block in child.children() if _weights(block) > 1] for child in children]
    return any(len(set(blocks)) == 1 < len(blocks) for blocks in kinds)


def _stage(name: str, body: Collection[str]) -> str:
    return next((path for path in _above_of(name) if 1 < len(inside(path, body)) <= LARGEST_STAGE * len(body)), name)
