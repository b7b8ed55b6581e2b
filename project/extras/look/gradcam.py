"""Where in an image a class was seen (advice A25): Grad-CAM, Selvaraju et al. 2017, arXiv:1610.02391.

Our own, because it is a forward, a gradient and a weighted sum; a library of attributions would be one more dependency.
"""

from typing import Any

import torch
from torch import Tensor, nn

from project.errors import UserError
from project.extras.look.watch import check_layers, evaluating, watch


def grad_cam(model_net: nn.Module, layer: str, images: Tensor, classes: Tensor) -> Tensor:
    """Maps of the places that speak for a class (equations 1 and 2 of the paper).

    The network runs in eval mode, with whatever mode, gradients and buffers it had left as they were; also under `no_grad` and
    `inference_mode`.

    Args:
        model_net: images -> logits (N, K).
        layer: Its layer to look at, by its name, with outputs (N, C, h, w); `cam_layer` finds one.
        images: (N, ., H, W), as `model_net` takes them.
        classes: int64 (N,): the class that is asked about, for each image.

    Returns:
        float32 (N, H, W), each map scaled so that its highest place is 1; all 0 where nothing speaks for the class.

    Raises:
        UserError: no such layer, or one whose output has no height and width.
    """
    check_layers(dict(model_net.named_modules()), [layer])
    kept: list[Tensor] = []

    def cut(_: nn.Module, __: Any, output: Any) -> Tensor:
        fits = isinstance(output, Tensor) and output.is_floating_point() and output.ndim == 4
        if not fits or output.shape[-2] * output.shape[-1] < 2:
            raise UserError(
                f"Grad-CAM: {layer} gives no map of 2 places or more; cam_layer(net, images) finds a layer that does"
            )
        # The graph begins here: nothing below is differentiated, and it works for frozen layers.
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()  # the next layer may work in place

    with torch.inference_mode(False), torch.enable_grad(), evaluating(model_net):
        handle = model_net.get_submodule(layer).register_forward_hook(cut)
        try:
            logits = model_net(images.detach().clone())
        finally:
            handle.remove()
        if not kept:
            raise UserError(f"Grad-CAM: {layer} is not called in the forward pass")
        score = logits.float().gather(1, classes.to(logits.device)[:, None]).sum()
        gradient = torch.autograd.grad(score, kept[-1], allow_unused=True)[0] if score.requires_grad else None
        if gradient is None:
            raise UserError(f"Grad-CAM: the logits do not depend on {layer}")
    activation = kept[-1].detach().float()
    weights = gradient.float().mean((2, 3), keepdim=True)  # (N, C, 1, 1), equation 1
    maps = (weights * activation).sum(1, keepdim=True).relu().nan_to_num(0, 0, 0)  # equation 2
    maps = nn.functional.interpolate(maps, images.shape[-2:], mode="bilinear")[:, 0]  # (N, H, W)
    highest = maps.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, maps / highest.clamp(min=torch.finfo(maps.dtype).tiny), 0.0).clamp(0, 1)


def cam_layer(net: nn.Module, images: Tensor | None = None) -> str | None:
    """Where Grad-CAM looks: at the last convolution whose output is a map of 2 places or more, after its norm and activation.

    Args:
        net: The network.
        images: A few, as `net` takes them; one is enough. None: without a pass, sizes and what follows are not known, and it is the
            convolution that was made last, whose map may be 1x1 for small images.

    Returns:
        A name for `grad_cam`; None without a convolution, or where attention follows the last one, as in a ViT.
    """
    modules = dict(net.named_modules())
    outputs: dict[str, Tensor] = {}
    if images is None:
        order = list(modules)
    else:
        with torch.no_grad(), evaluating(net), watch(net) as outputs:
            net(images[:1])
        order = [
            name for name, output in outputs.items() if output.ndim == 4 and output.shape[-2] * output.shape[-1] > 1
        ]
    convolution = next((name for name in reversed(order) if isinstance(modules[name], nn.Conv2d)), None)
    if convolution is None:
        return None
    later = list(modules)[list(modules).index(convolution) :]
    if any("attention" in type(modules[name]).__name__.lower() for name in later):
        return None
    if images is None:
        return convolution
    # What its norm and activation give, and what a residual block adds: what the paper calls feature maps.
    after = order[order.index(convolution) :]
    alike = [name for name in after if outputs[name].shape == outputs[convolution].shape]
    return next((name for name in reversed(alike) if _works(net, name, images[:1])), None)


def _works(net: nn.Module, layer: str, images: Tensor) -> bool:
    """Whether the layer gives one map that the logits depend on."""
    try:
        grad_cam(net, layer, images, torch.zeros(len(images), dtype=torch.int64))
    except UserError:
        return False
    return True
