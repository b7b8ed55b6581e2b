"""The layers of a network in order, from the image to the logits; freezing and layer-wise learning rates both use it."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from project.errors import UserError

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # subclasses too, such as ConvNormAct
_PLAIN = (nn.Linear, nn.modules.conv._ConvNd)
_LOOSE = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.ParameterList,
    nn.ParameterDict,
)  # may hold matrices, yet are no layers of their own


@dataclass(frozen=True)
class Layer:
    """One step of a network: a block, or a single convolution or linear layer, with the norms that follow it.

    Attributes:
        name: Path of its module, such as backbone.layer1.0, stages.2.0 or head.
        stage: Path of the stage that it belongs to, such as backbone.layer1; its own name where it is a stage by itself.
        tensors: Names of its parameters and buffers (persistent or not), as named_parameters and named_buffers give them.
    """

    name: str
    stage: str
    tensors: tuple[str, ...]


def layers(net: nn.Module) -> list[Layer]:
    """Every parameter and every buffer of the network, in exactly one layer; the last layer is the head and nothing else.

    The head is `net.head`, or where there is none the last linear layer or convolution. A timm network says itself what its layers
    are (`group_matcher`). Of others, the order is that of registration, in torchvision and here also that of execution; opened are
    the network, its `backbone`, containers (nn.Sequential, nn.ModuleList, nn.ModuleDict) and modules that mostly hold a list of
    blocks (ViT's encoder). Any other module is one layer, and so is a container around a single convolution. Norms, parameters
    outside of layers (class token, position embedding) and buffers belong to the layer before them, or to the first. Shared tensors
    count where they come first: a head that shares all it has is a layer without tensors.

    A stage is a part of two or more layers, such as layer1 of a ResNet. Its layers are neighbours. What holds more than half of the
    network's layers (VGG's features, ViT's encoder) is no stage, unless one beside it has layers of the same class (ResNet-101).

    Raises:
        UserError: the network has no parameters.
    """
    if next(net.parameters(), None) is None:
        raise UserError(
            f"model.net: {type(net).__name__} has no parameters, so nothing can learn; assign its layers to attributes"
            " of the module, lists of them as nn.ModuleList"
        )
    paths = {module: path for path, module in net.named_modules()}
    head = _head(net)
    inside = set(head.modules()) if head else set()
    weighty = {module: path for module, path in paths.items() if module not in inside and _multiplies(module)}
    left = set(_tensors("", net))  # the first name of each
    last = [name for name in _tensors(paths[head], head) if name in left] if head else []
    left.difference_update(last)

    pieces = list(_pieces("", net, left, weighty))
    first = next((i for i, (_, _, is_layer) in enumerate(pieces) if is_layer), 0)
    found: list[tuple[str, list[str]]] = []
    for i, (path, names, is_layer) in enumerate(pieces):
        if i == 0:
            found.append((pieces[first][0], []))
        elif is_layer and i > first:
            found.append((path, []))
        found[-1][1].extend(names)
    if head:
        found.append((paths[head] or "head", last))  # the network may be a bare nn.Linear
    stages = [*_stages(net, [path for path, _ in found[:-1]]), found[-1][0]]
    return [Layer(path, stage, tuple(names)) for (path, names), stage in zip(found, stages, strict=True)]


def _head(net: nn.Module) -> nn.Module | None:
    named = getattr(net, "head", None)
    if isinstance(named, nn.Module) and next(named.parameters(), None) is not None:
        return named
    return next((module for module in reversed(list(net.modules())) if isinstance(module, _PLAIN)), None)


def _multiplies(module: nn.Module) -> bool:
    """Whether the module itself, not one inside it, has a matrix or a kernel: norms and scales have none."""
    if isinstance(module, _LOOSE):
        return False
    own = module.parameters(recurse=False)
    return isinstance(module, _PLAIN) or any(sum(size > 1 for size in parameter.shape) > 1 for parameter in own)


def _tensors(path: str, module: nn.Module, recurse: bool = True) -> list[str]:
    return [name for name, _ in [*module.named_parameters(path, recurse), *module.named_buffers(path, recurse)]]


Piece = tuple[str, list[str], bool]  # path, names of tensors, whether that is a layer or belongs to one


def _pieces(path: str, module: nn.Module, left: set[str], weighty: dict[nn.Module, str]) -> Iterator[Piece]:
    """Everything in `left`, in order and once."""
    names = [name for name in _tensors(path, module) if name in left]
    weights = _weights(module, weighty)
    if names and hasattr(module, "group_matcher"):
        yield from _timm_pieces(path, module, names, set(weighty.values()))
    elif path in ("", "backbone") or (weights > 1 and (isinstance(module, _CONTAINERS) or _is_trunk(module, weighty))):
        yield from ((name, [name], False) for name in _tensors(path, module, recurse=False) if name in left)
        for key, child in module.named_children():
            yield from _pieces(f"{path}.{key}" if path else key, child, left, weighty)
    elif names:
        yield path, names, weights > 0


def _timm_pieces(path: str, module: nn.Module, names: list[str], weighty: set[str]) -> Iterator[Piece]:
    """timm's groups, each named by the module with most of its tensors that holds no others."""
    from timm.models._manipulate import group_with_matcher  # the public group_parameters leaves buffers out

    start = len(path) + 1 if path else 0
    groups = group_with_matcher(
        ((name[start:], name) for name in names), module.group_matcher(coarse=False), return_values=True
    )
    for group in groups.values():
        outside = {above for name in set(names).difference(group) for above in _above(name)}
        weights = [name for name in group if name.rpartition(".")[0] in weighty]
        owners = [
            above for name in weights or group for above in _above(name) if above not in outside and len(above) >= start
        ]
        yield max(owners, key=owners.count, default=group[0]), group, bool(weights)


def _weights(module: nn.Module, weighty: dict[nn.Module, str]) -> int:
    return sum(inner in weighty for inner in module.modules())


def _is_trunk(module: nn.Module, weighty: dict[nn.Module, str]) -> bool:
    """Whether containers in the module repeat one class of block, and so hold most of its parameters; or a child is such a trunk.

    A block has two or more weights: the inner nn.Sequential of a residual block is made of single convolutions. A trunk inside must
    hold most of the network: experts in each block of a transformer are none.
    """
    if any(2 * _weights(child, weighty) > len(weighty) and _is_trunk(child, weighty) for child in module.children()):
        return True
    units = [unit for child in module.children() if isinstance(child, _CONTAINERS) for unit in _units(child)]
    blocks = [unit for unit in units if _weights(unit, weighty) > 1]
    return (
        len(blocks) > 1 and len({type(block) for block in blocks}) == 1 and 2 * sum(map(_size, blocks)) > _size(module)
    )


def _units(module: nn.Module) -> list[nn.Module]:
    return (
        [unit for child in module.children() for unit in _units(child)] if isinstance(module, _CONTAINERS) else [module]
    )


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _stages(net: nn.Module, names: list[str]) -> list[str]:
    classes = {path: type(module) for path, module in net.named_modules()}
    held: dict[str, list[str]] = {}  # path of a part -> the layers in it, however deep
    for name in names:
        for above in _above(name):
            held.setdefault(above, []).append(name)

    def alike(one: str, other: str) -> bool:
        beside = one != other and one.rpartition(".")[0] == other.rpartition(".")[0]
        return beside and not {classes.get(name) for name in held[one]}.isdisjoint(
            classes.get(name) for name in held[other]
        )

    def is_run(path: str) -> bool:
        first = names.index(held[path][0])
        return len(held[path]) > 1 and held[path] == names[first : first + len(held[path])]

    runs = [path for path in held if is_run(path)]
    similar = [path for path in runs if any(alike(path, other) for other in held)]
    stages = {path for path in similar if not any(path in _above(other) for other in similar)}
    for path in runs:  # from the outside in
        nested = any(path in _above(stage) or stage in _above(path) for stage in stages)
        if not nested and 2 * len(held[path]) <= len(names):
            stages.add(path)
    return [next((path for path in _above(name) if path in stages), name) for name in names]


def _above(path: str) -> list[str]:
    keys = path.split(".")
    return [".".join(keys[:end]) for end in range(1, len(keys))]
