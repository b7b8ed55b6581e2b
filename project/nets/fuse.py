"""Batch norms folded into the layers before them: the same function with fewer steps (Jacob et al. 2017, arXiv:1712.05877, 3.2)."""

import copy
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from project.nets.trace import Trace, is_batch_norm_act

_SAMPLE = 4096  # values of each output that are compared


@dataclass(frozen=True)
class Fold:
    """What became of one batch norm.

    Attributes:
        norm: Name of the norm in the network, such as layer1.0.bn1; empty where it is the network.
        into: Name of the layer that took it in; None where it was left.
        reason: Why it was left; empty where it was folded.
    """

    norm: str
    into: str | None
    reason: str


def fuse(net: nn.Module, images: Tensor) -> tuple[nn.Module, list[Fold]]:
    """A copy of the network for inference, whose batch norms are folded into the convolution or linear layer before them.

    The network is traced, for images of this size in batches of any, to find which layer feeds which norm. A norm is folded only
    where that is sure to keep the network's function: into a Conv2d, or a Linear on (N, D), whose output nothing else uses. Then
    network and copy run on the images, and on the first of them alone (a trace cannot tell whether a single one takes another
    path), and are compared at every norm. Where they differ, nothing is folded.

    Args:
        net: The network. It stays as it is.
        images: An example (N, C, H, W), N >= 2, of the kind that the network takes.

    Returns:
        The copy: on the CPU, in eval mode, without gradients. And one Fold for each batch norm, in order of execution, those that
        the forward pass does not use last. If the network cannot be traced, or would do something else once folded, all are left,
        in order of registration.

    Raises:
        ValueError: for a single image.
    """
    if len(images) < 2:
        raise ValueError(f"fuse needs an example of 2 images or more, not {len(images)}")
    images, original = images.detach().cpu(), net
    net = _copy(original)
    names = {module: name for name, module in net.named_modules()}
    try:
        trace = Trace(net, images)
    except Exception as error:  # of any class
        with torch.no_grad():
            net(images)  # where the network itself fails, its own error says more
        line = str(error).partition("\n")[0].partition(" For more information")[0] or type(error).__name__
        reason = textwrap.shorten(f"the network cannot be traced: {line}", 150, placeholder=" ...")
        return net, _all_left(net, reason)

    folds, planned = [], {}
    for norm, layer in trace.norms().items():
        if isinstance(layer, nn.Module):
            weight, bias = folded(layer, norm)
            if weight.isfinite().all() and bias.isfinite().all():
                planned[norm] = layer, weight, bias
                folds.append(Fold(names[norm], names[layer], ""))
                continue
            layer = f"the weights of {names[layer]} would not be finite in {weight.dtype}"
        folds.append(Fold(names[norm], None, layer))
    if not planned:
        return net, folds
    try:
        with _same_outputs(net, images, [names[norm] for norm in planned]):
            for norm, (layer, weight, bias) in planned.items():
                layer.weight, layer.bias = (
                    nn.Parameter(weight, requires_grad=False),
                    nn.Parameter(bias, requires_grad=False),
                )
                rest = nn.Sequential(norm.drop, norm.act) if is_batch_norm_act(norm) else nn.Identity()
                _replace(net, norm, rest.eval())
    except _ChangedError as error:
        net = _copy(original)
        return net, _all_left(net, str(error))
    return net, folds


class _ChangedError(Exception):
    """Folding changes what the network does."""


def _all_left(net: nn.Module, reason: str) -> list[Fold]:
    return [Fold(name, None, reason) for name, module in net.named_modules() if isinstance(module, _BatchNorm)]


def _copy(net: nn.Module) -> nn.Module:
    # A tensor that a forward pass left on a module (weight norm, pruning, features) belongs to a graph and cannot be deep-copied.
    attributes = [value for module in net.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    memo = {id(tensor): tensor.detach().clone() for tensor in attributes if not tensor.is_leaf}
    with torch.no_grad():
        return copy.deepcopy(net, memo).cpu().eval().requires_grad_(False)


def folded(layer: nn.Conv2d | nn.Linear, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one layer that does the work of both, computed in float64 and returned in the layer's dtype.

    With s = gamma / sqrt(var + eps): norm(W x + b) = (s W) x + s (b - mean) + beta. The weight keeps its memory format.
    """
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double()
    if layer.bias is not None:
        bias = bias + layer.bias.double()
    bias = scale * bias
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = layer.weight.double() * scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    return torch.empty_like(layer.weight).copy_(weight), bias.to(layer.weight.dtype)


def _replace(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(net.modules()):
        for key, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, key, new)


@contextmanager
def _same_outputs(net: nn.Module, images: Tensor, names: list[str]) -> Iterator[None]:
    """Raises _ChangedError if what happens inside changes the outputs of the network or of these modules."""
    expected = [(images, _samples(net, images, names))]
    try:
        expected.append((images[:1], _samples(net, images[:1], names)))
    except Exception:  # some take no single image: statistics of one value, say
        pass
    yield
    for batch, before in expected:
        try:
            after = _samples(net, batch, names)
        except Exception as error:  # of any class: a forward may use norm.num_features, or the class of a module
            raise _ChangedError(f"the network fails once its batch norms are folded: {error}") from error
        for name, value in before.items():
            bound = max(1e-3, 30 * torch.finfo(value.dtype).eps)  # rounding alone gives about 1e-6 in float32
            same = name in after and after[name].shape == value.shape
            if not same or (after[name] - value).abs().max() > bound * value.abs().max():
                raise _ChangedError(
                    f"folding batch norms changes the output of {name or 'the network'} for a batch of {len(batch)}: the forward"
                    " pass does what its trace does not show"
                )


def _samples(net: nn.Module, images: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Some values of the outputs of these modules, and of the network, named ""; in order of execution."""
    kept = {}

    def keep(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
                kept[name] = output.flatten()[:: 1 + output.numel() // _SAMPLE].clone()

        return hook

    handles = [net.get_submodule(name).register_forward_hook(keep(name)) for name in [*names, ""]]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            net(images)
    finally:
        for handle in handles:
            handle.remove()
    return kept
