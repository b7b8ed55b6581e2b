"""Batch norms folded into convolutions: how many, which not and why, and what that does to the logits.

    python -m benchmarks.fusion [--only REGEX]

The networks of this project, torchvision's for classification, and some of timm's where it is installed. Weights are
random, from a fixed seed, and so are the batch norms: their statistics are measured on random images, for activations
that neither vanish nor explode, then jittered. Each network runs on two images as it is and with its batch norms
folded. The errors are max|a - b| / max|b| of the logits, where b is the network as it is in float64; a is the folded
one in float32, the one as it is in float32 (what rounding does alone), and the folded one in float64 (what folding
does alone). Seconds are those of the folding.

Hardware: any CPU, one thread; networks of more than 300 MB are left out and listed. Time: 5 minutes.
"""

import argparse
import gc
import logging
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from project.nets import ConvNet, ResNet, ResNet9
from project.nets.fuse import fuse

LIMIT = 300e6  # bytes of parameters
SIDES = {
    "inception_v3": 96,
    "googlenet": 64,
    "alexnet": 64,
    "squeezenet": 64,
    "swin": 64,
    "maxvit": 224,
    "vit": 224,
}  # else 64
TIMM = (
    "resnet18d",
    "efficientnet_lite0",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_100",
    "regnety_002",
    "convnext_atto",
    "inception_next_atto",
    "vit_tiny_patch16_224",
    "densenet121",
    "repvgg_a0",
    "levit_128s",
    "resnetv2_50",
)


def networks() -> Iterator[tuple[str, int, Callable[[], nn.Module]]]:
    """Name, side of its images in pixels, constructor."""
    for net in (ConvNet, ResNet, ResNet9):
        yield f"ours: {net.__name__}", 32, lambda net=net: net(3, 10, 32)
    for name in torchvision.models.list_models(module=torchvision.models):
        side = next((side for start, side in SIDES.items() if name.startswith(start)), 64)
        options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        yield name, side, lambda name=name, options=options: torchvision.models.get_model(name, weights=None, **options)
    try:
        import timm
    except ImportError:
        return
    for name in TIMM:
        side = 224 if "vit" in name else 64
        yield f"timm: {name}", side, lambda name=name: timm.create_model(name, num_classes=1000)


def size(name: str) -> int:
    """Bytes of the parameters, of torchvision's networks; 0 for the others, none of which is large."""
    if name not in torchvision.models.list_models(module=torchvision.models):
        return 0
    return 4 * next(iter(torchvision.models.get_model_weights(name))).meta["num_params"]


def randomize(net: nn.Module, images: Tensor) -> None:
    """Statistics near those of these images; every factor and bias random. Fresh ones, 0 or 1, would hide faults."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            norm.weight.uniform_(0.7, 1.3)
            norm.weight.mul_(torch.randint_like(norm.weight, 2) * 2 - 1)  # either sign
            norm.bias.normal_(0, 0.3)
        net.train()(images)
        for norm in norms:
            norm.momentum = 0.1
            std = norm.running_var.sqrt()
            norm.running_mean.add_(0.3 * std * torch.randn_like(std))
            norm.running_var.mul_(torch.empty_like(std).uniform_(0.7, 1.5)).add_(1e-3)
    net.eval()


def error(logits: Tensor, exact: Tensor) -> float:
    return ((logits.double() - exact).abs().max() / exact.abs().max()).item()


@torch.no_grad()
def row(name: str, side: int, build: Callable[[], nn.Module]) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    net = build()
    images = torch.randn(8, 3, side, side)  # of which two are the example
    randomize(net, images)
    images = images[:2]
    start = time.perf_counter()
    fused, folds = fuse(net, images)
    seconds = time.perf_counter() - start
    ours, plain = fused(images), net(images)
    del fused
    net, images = net.double(), images.double()
    exact = net(images)
    alone = fuse(net, images)[0](images)
    reasons = Counter(fold.reason for fold in folds if fold.into is None)
    left = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    cells = f"{len(folds)} | {sum(fold.into is not None for fold in folds)} | {sum(reasons.values())}"
    errors = " | ".join(f"{error(logits, exact):.1e}" for logits in (ours, plain, alone))
    return f"| {name} | {side} | {cells} | {errors} | {seconds:.1f} | {left} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="networks whose name contains a match (default: all)"
    )
    only = parser.parse_args().only
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable()
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}\n")
    errors = "error, folded | error, as it is | error, folded, float64"
    print(f"| network | pixels | norms | folded | left | {errors} | seconds | why left |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---|", flush=True)
    large = []
    for name, side, build in networks():
        if not re.search(only, name):
            continue
        if size(name) > LIMIT:
            large.append(name)
            continue
        print(row(name, side, build), flush=True)
        gc.collect()
    if large:
        print(f"\nLeft out, more than {LIMIT / 1e6:.0f} MB: {', '.join(large)}")


if __name__ == "__main__":
    main()
