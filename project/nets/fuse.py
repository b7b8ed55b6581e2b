"""Batch norms folded into the layers before them: the same function (Jacob et al. 2017, arXiv:1712.05877, 3.2)."""

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_weights

LAYERS = (nn.Conv2d, nn.Linear)
BOUND = 1e-3  # of the largest value; rounding alone gives about 1e-6 in float32


@dataclass(frozen=True)
class Fold:
    """What became of one batch norm."""

    norm: str  # its name in the network, such as layer1.0.bn1
    into: str | None  # name of the layer that took it in; None where it was left
    reason: str = ""  # why it was left


def fuse(net: nn.Module, images: Tensor) -> tuple[nn.Module, list[Fold]]:
    """A copy of the network for inference, its batch norms folded into the convolution or linear layer before them.

    Only norms that, in a symbolic trace, have the output of a Conv2d or Linear to themselves are folded, a MaxPool2d
    between them where no scale is negative, since max(a x + b) = a max(x) + b for a >= 0; and of these
    none whose output for `images` folding would change, as with a hook, or a subclass that computes something else. A
    network that cannot be traced, because its path depends on what it is given, keeps all its norms.

    Args:
        net: The network. It stays as it is.
        images: An example of what the network takes, (N, C, H, W).

    Returns:
        The copy, on the CPU, in eval mode, without gradients; and a Fold for each norm, in order of execution.
    """
    images, original = images.detach().cpu(), _copy(net)
    norms = [name for name, module in original.named_modules() if isinstance(module, _BatchNorm)]
    before = _outputs(original, images, norms)
    try:
        folds = _plan(copy.deepcopy(original))  # a trace may leave attributes behind
    except Exception as error:  # of any class, from wherever the trace is stuck
        line = str(error).partition("\n")[0]
        return original, [Fold(name, None, f"torch.fx cannot trace the network: {line}") for name in norms]
    while planned := [fold for fold in folds if fold.into]:
        fused = copy.deepcopy(original)
        for fold in planned:
            _fold(fused, fold.into, fold.norm)
        changed = _first_changed(fused, images, before, [fold.norm for fold in planned])
        if changed is None:
            return fused, folds
        reason = f"folding would change the output of {changed or 'the network'}"
        folds = [Fold(f.norm, None, reason) if f.into and changed in (f.norm, "") else f for f in folds]
    return original, folds


class _Tracer(fx.Tracer):
    """Layers and norms stay whole, those of timm too; whatever else reads their tensors shows in the graph."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (*LAYERS, _BatchNorm)) or super().is_leaf_module(module, name)


def _plan(net: nn.Module) -> list[Fold]:
    """For each norm the layer that it can be folded into, or the reason why none can take it."""
    graph = _Tracer().trace(net)
    names = {module: name for name, module in net.named_modules()}  # a module under two names is one
    modules = {node: net.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"}
    uses = Counter(modules.values())
    uses.update(net.get_submodule(node.target.rpartition(".")[0]) for node in graph.nodes if node.op == "get_attr")

    def source(norm: nn.Module, given: fx.Node) -> fx.Node:
        """What the norm may as well normalise: it and a max pooling change places, unless a scale is negative."""
        positive = norm.weight is None or bool((norm.weight >= 0).all())
        while positive and isinstance(modules.get(given), nn.MaxPool2d) and len(given.users) == 1:
            given = given.all_input_nodes[0]
        return given

    def objection(norm: nn.Module, given: fx.Node) -> str:
        layer = modules.get(given)
        if isinstance(layer, nn.MaxPool2d) and len(given.users) == 1:
            return f"it follows the max pooling {names[layer]}, and has negative scales"
        if not isinstance(layer, LAYERS):
            before = given.target if layer is None else type(layer)
            return f"it follows {getattr(before, '__name__', before)}, not a Conv2d or Linear"
        if norm.running_mean is None:
            return "it has no running statistics"
        if "weight" not in layer._parameters:
            return f"the weight of {names[layer]} is computed from others"
        if max(len(given.users), uses[layer], uses[norm]) > 1:
            return f"it, {names[layer]} or the output between them is used more than once"
        if len(layer.weight) != norm.num_features:
            return f"its channels are not those of {names[layer]}"
        return ""

    folds = {}
    for node, norm in modules.items():
        if isinstance(norm, _BatchNorm):
            given = source(norm, node.all_input_nodes[0])
            reason = objection(norm, given)
            folds[norm] = Fold(names[norm], None if reason else names[modules[given]], reason)
    for module, name in names.items():
        if isinstance(module, _BatchNorm):
            folds.setdefault(module, Fold(name, None, "the forward pass does not call it"))
    return list(folds.values())


def _copy(net: nn.Module) -> nn.Module:
    # A tensor that a forward pass left on a module (pruning, features) is part of a graph, which deepcopy refuses.
    left = [value for module in net.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    memo = {id(tensor): tensor.detach() for tensor in left if not tensor.is_leaf}
    return copy.deepcopy(net, memo).cpu().eval().requires_grad_(False)


def _fold(net: nn.Module, into: str, name: str) -> None:
    """Fold in place, in float64, into new parameters: the old may be shared. Children of timm's BatchNormAct2d stay."""
    layer, norm = net.get_submodule(into), net.get_submodule(name)
    rest = nn.Sequential(*norm.children()) if norm._modules else nn.Identity()
    for alias in [alias for alias, module in net.named_modules(remove_duplicate=False) if module is norm]:
        net.set_submodule(alias, rest.eval())
    conv, bn = copy.deepcopy(layer).double(), copy.deepcopy(norm).double()
    folded = fuse_conv_bn_weights(conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
    layer.weight, layer.bias = (nn.Parameter(tensor.to(layer.weight.dtype), False) for tensor in folded)


@torch.no_grad()
def _outputs(net: nn.Module, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """What the modules of these names give, and the network, named ""."""
    net, kept = copy.deepcopy(net), {}  # a forward pass may leave things behind

    for name in names:  # a clone, as what follows may work in place
        net.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: kept.update({name: output.clone()})
        )
    return kept | {"": net(images)}


def _first_changed(net: nn.Module, images: Tensor, before: dict[str, Tensor], names: list[str]) -> str | None:
    """The first of the folded norms whose output has changed, "" for the network, None where nothing has."""
    try:
        after = _outputs(net, images, names)
    except Exception:  # of any class: a forward pass may use norm.num_features
        return ""
    for name in [*names, ""]:
        if name not in after or after[name].shape != before[name].shape:
            return name
        if not (after[name] - before[name]).abs().max() <= BOUND * before[name].abs().max():  # NaN is a change as well
            return name
    return None
