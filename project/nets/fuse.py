"""Batch norms folded into the layers before them: the same function (Jacob et al. 2017, arXiv:1712.05877, 3.2)."""

import copy
import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_weights

LAYERS = (nn.Conv2d, nn.Linear)
BOUND = 1e-3  # of the largest value; rounding alone gives about 1e-6 in float32


@dataclass(frozen=True)
class Fold:
    """What became of one batch norm."""

    norm: str  # its name in the network, such as layer1.0.bn1; empty where it is the network
    into: str | None  # name of the layer that took it in; None where it was left
    reason: str = ""  # why it was left


def fuse(net: nn.Module, images: Tensor) -> tuple[nn.Module, list[Fold]]:
    """A copy of the network for inference, its batch norms folded into the convolution or linear layer before them.

    A symbolic trace shows which norms have the output of a Conv2d, or of a Linear on (N, D), to themselves; only these
    are folded. What a trace cannot show, such as a subclass that computes something else, the images do: a norm whose
    output folding would change is left. A network that cannot be traced, because its path depends on what it is given,
    keeps all its norms.

    Args:
        net: The network. It stays as it is.
        images: An example of what the network takes, (N, C, H, W).

    Returns:
        The copy: on the CPU, in eval mode, without gradients. And one Fold for each batch norm, in order of execution;
        those that the forward pass does not call come last.
    """
    images, original = images.detach().cpu(), _copy(net)
    norms = [name for name, module in original.named_modules() if isinstance(module, _BatchNorm)]
    before = _outputs(original, images, norms)
    try:
        folds = _plan(original, before)
    except Exception as error:  # of any class, from wherever the trace is stuck
        line = textwrap.shorten(str(error).partition("\n")[0], 120, placeholder=" ...")
        return original, [Fold(name, None, f"torch.fx cannot trace the network: {line}") for name in norms]
    while planned := [fold for fold in folds if fold.into is not None]:
        fused = copy.deepcopy(original)
        for fold in planned:
            _fold(fused, fold)
        changed = _first_changed(fused, images, before, planned)
        if changed is None:
            return fused, folds
        reason = f"folding would change the output of {changed or 'the network'}"
        left = [fold for fold in planned if changed in (fold.norm, "")]
        folds = [Fold(fold.norm, None, reason) if fold in left else fold for fold in folds]
    return original, folds


class _Tracer(fx.Tracer):
    """Layers and norms stay whole, those of timm too; whatever else reads their tensors shows in the graph."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (*LAYERS, _BatchNorm)) or super().is_leaf_module(module, name)


def _plan(net: nn.Module, outputs: dict[str, Tensor]) -> list[Fold]:
    """For each norm the layer that it can be folded into, or the reason why none can take it."""
    net = copy.deepcopy(net)  # a trace may leave attributes behind
    graph = _Tracer().trace(net)
    names = {module: name for name, module in net.named_modules()}  # a module under two names is one
    modules = {node: net.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"}
    calls = Counter(modules.values())
    owners = Counter(id(tensor) for module in names for tensor in _tensors(module))
    owners.update(id(attrgetter(node.target)(net)) for node in graph.nodes if node.op == "get_attr")

    def used_elsewhere(module: nn.Module) -> bool:
        return calls[module] > 1 or any(owners[id(tensor)] > 1 for tensor in _tensors(module))

    def objection(norm: nn.Module, given: fx.Node) -> str:
        layer = modules.get(given)
        if norm.running_mean is None:
            return "it has no running statistics"
        if used_elsewhere(norm):
            return "it or one of its tensors is used more than once"
        if not isinstance(layer, LAYERS):
            given = type(layer) if layer is not None else given.target
            return f"it follows {getattr(given, '__name__', given)}, not a Conv2d or Linear"
        if len(given.users) > 1:
            return f"the output of {names[layer]} is used elsewhere too"
        if "weight" not in layer._parameters:
            return f"the weight of {names[layer]} is computed from others"
        if used_elsewhere(layer):
            return f"{names[layer]} or one of its tensors is used more than once"
        if isinstance(layer, nn.Linear) and outputs[names[norm]].ndim != 2:
            return f"{names[layer]} gives more than one vector per image"
        if any(module._forward_hooks or module._forward_pre_hooks for module in (layer, norm)):
            return f"it or {names[layer]} has hooks"
        return ""

    folds: dict[nn.Module, Fold] = {}
    for node, norm in modules.items():
        if isinstance(norm, _BatchNorm):
            given = node.all_input_nodes[0]
            reason = objection(norm, given)
            folds[norm] = Fold(names[norm], None if reason else names[modules[given]], reason)
    for module, name in names.items():
        if isinstance(module, _BatchNorm) and module not in folds:
            folds[module] = Fold(name, None, "the forward pass does not call it")
    return list(folds.values())


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    return *module.parameters(recurse=False), *module.buffers(recurse=False)


def _copy(net: nn.Module) -> nn.Module:
    # A tensor that a forward pass left on a module (pruning, features) is part of a graph, which deepcopy refuses.
    attributes = [value for module in net.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    memo = {id(tensor): tensor.detach().clone() for tensor in attributes if not tensor.is_leaf}
    with torch.no_grad():
        return copy.deepcopy(net, memo).cpu().eval().requires_grad_(False)


def _fold(net: nn.Module, fold: Fold) -> None:
    """Fold one norm, in place, in float64. Its children stay: dropout and activation of timm's BatchNormAct2d."""
    layer, norm = net.get_submodule(fold.into), net.get_submodule(fold.norm)
    rest = nn.Sequential(*norm.children()) if norm._modules else nn.Identity()
    for name in [name for name, module in net.named_modules(remove_duplicate=False) if module is norm]:
        net.set_submodule(name, rest.eval())
    dtype = layer.weight.dtype
    layer, norm = layer.double(), copy.deepcopy(norm).double()
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    layer.weight, layer.bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics)
    layer.to(dtype)


@torch.no_grad()
def _outputs(net: nn.Module, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """What the modules of these names give, and the network, named ""."""
    net, kept = copy.deepcopy(net), {}  # a forward pass may leave things behind

    def keep(module: nn.Module, inputs: tuple, output: Tensor, name: str) -> None:
        kept[name] = output.clone()  # what follows may work in place

    handles = [net.get_submodule(name).register_forward_hook(partial(keep, name=name)) for name in names]
    try:
        kept[""] = net(images)
    finally:
        for handle in handles:
            handle.remove()
    return kept


def _first_changed(net: nn.Module, images: Tensor, before: dict[str, Tensor], planned: list[Fold]) -> str | None:
    """The first of the folded norms whose output has changed, "" for the network, None where nothing has."""
    names = [fold.norm for fold in planned]
    try:
        after = _outputs(net, images, names)
    except Exception:  # of any class: a forward pass may use norm.num_features
        return ""
    for name in [*names, ""]:
        bound = max(BOUND, 30 * torch.finfo(before[name].dtype).eps) * before[name].abs().max()
        same = name in after and after[name].shape == before[name].shape
        if not same or not (after[name] - before[name]).abs().max() <= bound:  # not a number is a change as well
            return name
    return None
