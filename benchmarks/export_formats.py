"""One network of each family, folded and written as .onnx and .pt2, and what the files compute beside the network.

    python -m benchmarks.export_formats [--only REGEX]

Needs `pip install -e ".[export,timm]"`, no data, about 15 minutes on two cores. Weights are random, so are the
statistics of the batch norms; networks take 64 pixels where they can. Prints a table: batch norms folded, then for each
format the file's size and the largest difference of the logits of three images, run as one image and two, relative to
the largest logit; or why there is no file.
"""

import argparse
import re
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.fusion import randomize
from project.classifier import ImageClassifier
from project.errors import UserError
from project.extras.export.files import write
from project.extras.export.proof import open_layers, relative_difference
from project.nets import ConvNet, ResNet, ResNet9, TimmModel, TorchvisionModel
from project.nets.deployable import Deployable

SIZE = 64
SIZES = {"inception_v3": 128, "maxvit_t": 224, "vit_tiny_patch16_224": 224, "vit_b_16": 64}
TORCHVISION = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet1_0",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x1_0",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_16",
    "wide_resnet50_2",
]
TIMM = [
    "resnet18d",
    "efficientnet_lite0",
    "mobilenetv3_small_100",
    "regnety_002",
    "convnext_atto",
    "vit_tiny_patch16_224",
]
OWN = {"ConvNet": ConvNet, "ResNet": ResNet, "ResNet9": ResNet9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression: the networks to run")
    only = re.compile(parser.parse_args().only)
    networks = {f"torchvision {name}": partial(TorchvisionModel, name=name) for name in TORCHVISION}
    networks |= {f"timm {name}": partial(TimmModel, name=name) for name in TIMM} | OWN
    print("| network | pixels | batch norms folded | .onnx | .pt2 |\n|---|---:|---:|---|---|", flush=True)
    for title, net in networks.items():
        if only.search(title):
            print(row(title, net), flush=True)


def row(title: str, net: object) -> str:
    """A line of the table."""
    size = SIZES.get(title.split()[-1], SIZE)
    torch.manual_seed(0)
    model = ImageClassifier(net, [f"class {i}" for i in range(10)], image_size=size).eval()
    images = torch.randint(256, (8, 3, size, size), dtype=torch.uint8)
    randomize(model.net, model.normalise(images))
    images = images[:3]
    for parameter in model.parameters():
        if not parameter.any():  # a head of zeros would make any two networks agree
            nn.init.normal_(parameter, std=0.02)
    with torch.no_grad():
        reference = model(images).numpy()
    fused = model.fused()
    deployable = Deployable(fused.net, model.mean, model.std, probabilities=model.task.probabilities).eval()
    folded = sum(fold.into is not None for fold in fused.folds)
    cells = [outcome(deployable, images, reference, suffix) for suffix in (".onnx", ".pt2")]
    return f"| {title} | {size} | {folded} of {len(fused.folds)} | {' | '.join(cells)} |"


def outcome(module: Deployable, images: torch.Tensor, reference: np.ndarray, suffix: str) -> str:
    """Size and difference of one kind of file, or why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        try:
            write(module, images[:2], path, {})
        except UserError as error:
            return str(error)
        run = open_layers(path, only="net")
        logits = np.concatenate([run(part.numpy())["net"] for part in (images[:1], images[1:])])
        return f"{path.stat().st_size / 1e6:.1f} MB, {relative_difference(logits, reference):.1e}"


if __name__ == "__main__":
    main()
