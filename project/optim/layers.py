"""The layers of a network in order, from the image to the logits; freezing and layer-wise learning rates use it."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from project.errors import UserError

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # subclasses too, such as ConvNormAct
LARGEST_STAGE = 0.76  # of the layers: ConvNeXt-B has 0.75 in one stage; the features of VGG, 0.8, are not a stage

Pieces = Iterator[tuple[str, list[str]]]  # path, names of tensors


@dataclass(frozen=True)
class Layer:
    """One step of a network: a block, or a single convolution or linear layer, with the norms that follow it.

    Attributes:
        name: Path of its module, such as backbone.layer1.0, stages.2.0 or head.
        stage: Path of its stage, such as backbone.layer1; its own name where it is a stage by itself.
        tensors: Names of its parameters and buffers, as in named_parameters and named_buffers.
    """

    name: str
    stage: str
    tensors: tuple[str, ...]


def layers(net: nn.Module) -> list[Layer]:
    """Every parameter and buffer of the network, in exactly one layer; the last layer is the head and nothing else.

    The head is `net.head`, or without one the last linear layer or convolution. A timm network says itself what its
    layers are (`group_matcher`). In others, the order is that of registration, which in torchvision and here is that of
    execution; `_is_trunk` says which modules are opened, any other module is one layer. Norms, parameters outside of
    layers (class token) and buffers belong to the layer before them, or to the first. Shared tensors count where they
    come first: a head that shares all its tensors is a layer without any. A stage is a part with two or more
    neighbouring layers, such as layer1 of a ResNet, but not most of the network (VGG's features, ViT's encoder).

    Raises:
        UserError: the network has no parameters.
    """
    parameters = dict(net.named_parameters())
    if not parameters:
        raise UserError(f"model.net: {type(net).__name__} has no parameters; assign lists of layers as nn.ModuleList")
    tensors = [*parameters, *dict(net.named_buffers())]
    head = _head(net, tensors)
    last = [] if head is None else _inside(head, tensors)
    rest = [name for name in tensors if name not in last]
    matrices = [name for name, parameter in parameters.items() if parameter.ndim > 1 and name not in last]

    found: list[tuple[str, list[str]]] = []
    before: list[str] = []  # what comes before the first layer belongs to it
    for path, names in _pieces("", net, rest, matrices):
        if names == [path] or set(names).isdisjoint(matrices):  # no layer
            (found[-1][1] if found else before).extend(names)
        else:
            found.append((path, [] if found else before))
            found[-1][1].extend(names)
    if before and not found:
        found.append((before[0].partition(".")[0], before))
    if head is not None:
        found.append((head or "head", last))  # the network may be a bare nn.Linear
    stages = _stages([path for path, _ in found])
    return [Layer(path, stage, tuple(names)) for (path, names), stage in zip(found, stages, strict=True)]


def _head(net: nn.Module, tensors: list[str]) -> str | None:
    if _inside("head", tensors):
        return "head"
    plain = [path for path, module in net.named_modules() if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))]
    return plain[-1] if plain else None


def _inside(path: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(f"{path}.".lstrip("."))]


def _above(path: str) -> list[str]:
    """Paths of the modules around a module or tensor, from the outside in."""
    keys = path.split(".")
    return [".".join(keys[:end]) for end in range(1, len(keys))]


def _pieces(path: str, module: nn.Module, tensors: list[str], matrices: list[str]) -> Pieces:
    """All tensors, in order and once: those of each layer with its path, and those of opened modules one by one."""
    names = _inside(path, tensors)
    if not names:
        return
    if hasattr(module, "group_matcher"):
        yield from _timm_pieces(path, module, names, matrices)
    elif path in ("", "backbone") or _is_trunk(path, module, matrices):
        yield from ((name, [name]) for name in names if name.rpartition(".")[0] == path)
        for key, child in module.named_children():
            yield from _pieces(f"{path}.{key}".lstrip("."), child, tensors, matrices)
    else:
        yield path, names


def _timm_pieces(path: str, module: nn.Module, names: list[str], matrices: list[str]) -> Pieces:
    """timm's groups, each named by the module with most of its tensors that holds no others."""
    from timm.models._manipulate import group_with_matcher  # the public group_parameters leaves buffers out

    start = len(path) + 1 if path else 0
    relative, matcher = ((name[start:], name) for name in names), module.group_matcher(coarse=False)
    for group in group_with_matcher(relative, matcher, return_values=True).values():
        outside = {above for name in set(names).difference(group) for above in _above(name)}
        weights = [name for name in group if name in matrices]
        owners = [above for name in weights or group for above in _above(name) if above not in outside | {path}]
        yield max(owners, key=owners.count, default=group[0]), group


def _is_trunk(path: str, module: nn.Module, matrices: list[str]) -> bool:
    """Whether a module is opened because its children, not itself, are layers.

    So are a container of several weights, a module that holds most of the network in parts of several weights each, and
    one with a container that repeats one class of block (a stage of MaxViT).
    """

    def weights(inner: str = "") -> int:
        return len(_inside(path + inner, matrices))

    if isinstance(module, _CONTAINERS):
        return weights() > 1
    children = dict(module.named_children())
    if 2 * weights() > len(matrices) and any(weights(f".{key}") > 1 for key in children):
        return True
    for key, child in children.items():
        if isinstance(child, _CONTAINERS):
            blocks = [type(block) for inner, block in child.named_children() if weights(f".{key}.{inner}") > 1]
            if len(blocks) > 1 and len(set(blocks)) == 1 and not issubclass(blocks[0], _CONTAINERS):
                return True
    return False


def _stages(names: list[str]) -> list[str]:
    body = names[:-1]

    def is_stage(path: str) -> bool:
        held = _inside(path, body)
        first = body.index(held[0])
        return 1 < len(held) <= LARGEST_STAGE * len(body) and held == body[first : first + len(held)]

    return [next(filter(is_stage, _above(name)), name) for name in body] + names[-1:]
