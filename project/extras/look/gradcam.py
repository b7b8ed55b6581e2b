"""Grad-CAM: which places of an image speak for a class (advice A25; Selvaraju et al. 2017, arXiv:1610.02391)."""

from typing import Any

import torch
from torch import Tensor, nn

from project.errors import UserError
from project.extras.look.watch import evaluating, is_map, watch


def grad_cam(net: nn.Module, layer: str, images: Tensor, classes: Tensor) -> Tensor:
    """Maps of the places that speak for a class (equations 1 and 2 of the paper).

    The network runs in eval mode; its modes, gradients and buffers are left as they were. Works under `no_grad` and
    `inference_mode` too.

    Args:
        net: images -> logits (N, K).
        layer: Name of the layer to look at, with outputs (N, C, h, w); `cam_layer` finds one.
        images: (N, ., H, W), as `net` takes them.
        classes: int64 (N,): the class to explain, for each image.

    Returns:
        float32 (N, H, W), each map scaled to a maximum of 1; all 0 where nothing speaks for the class.

    Raises:
        UserError: the layer's output is no such map.
        AttributeError: the network has no such layer.
        RuntimeError: the logits do not depend on it.
    """
    kept: list[Tensor] = []

    def cut(_: nn.Module, __: Any, output: Any) -> Tensor:
        if not is_map(output):
            raise UserError(f"Grad-CAM: {layer} gives no map of 2 places or more")
        # The graph begins here: nothing below is differentiated, and it works for frozen layers.
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()  # the next layer may work in place

    with torch.inference_mode(False), torch.enable_grad(), evaluating(net):
        with net.get_submodule(layer).register_forward_hook(cut):
            logits = net(images.detach().clone())
        score = logits.float().gather(1, classes[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, kept[-1])
    weights = gradient.float().mean((2, 3), keepdim=True)  # (N, C, 1, 1), equation 1
    maps = (weights * kept[-1].detach().float()).sum(1, keepdim=True).relu()  # equation 2
    maps = nn.functional.interpolate(maps, images.shape[-2:], mode="bilinear")[:, 0]  # (N, H, W)
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-30)


def cam_layer(net: nn.Module, images: Tensor) -> str | None:
    """Where Grad-CAM looks: the last convolution with a map of 2 places or more, after its norm and activation.

    Args:
        net: The network.
        images: As `net` takes them; one is enough.

    Returns:
        A name for `grad_cam`; None without such a convolution, or where attention follows it, as in a ViT.
    """
    modules = dict(net.named_modules())
    with torch.no_grad(), evaluating(net), watch(net) as outputs:
        net(images[:1])
    maps = [name for name, output in outputs.items() if is_map(output)]
    convolutions = [name for name in maps if isinstance(modules[name], nn.Conv2d)]
    if not convolutions:
        return None
    last, names = convolutions[-1], list(modules)
    if any("attention" in type(modules[name]).__name__.lower() for name in names[names.index(last) :]):
        return None
    # Up to the end of its block: after the norm, the activation, and what a residual block adds.
    return [name for name in maps[maps.index(last) :] if outputs[name].shape == outputs[last].shape][-1]
