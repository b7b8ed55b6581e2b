"""What `check` finds and what it leaves alone: augmentations of the digits; rates that are right, and 10 and 100 times too high.

    python -m benchmarks.check FOLDER

FOLDER holds train/<class>/* (`benchmarks.subset` makes it). The first table has the share of images that an augmentation of the
digits makes into another class, and the reverse, over four splits; `check` looks from 4 %, and stops from 10 %. The second has
what `check` says of networks and optimizers at a usual rate and at 10 and 100 times that rate, on two batches each.

A CPU is enough; about ten minutes on two cores.
"""

import argparse
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor, nn

from project import data
from project.data import Digits, ImageDataModule
from project.extras.check.findings import Findings
from project.extras.check.labels import ROUNDS, small, swapped
from project.extras.check.rate import check_rate
from project.nets import ConvNet, ResNet, ResNet9, TorchvisionModel

AUGMENTATIONS = {
    "VerticalFlip": data.VerticalFlip(),
    "HorizontalFlip": data.HorizontalFlip(),
    "Rotate90": data.Rotate90(),
    "Rotate, any angle": data.Rotate(180),
    "Rotate, 30 degrees": data.Rotate(30),
    "Rotate, 15 degrees": data.Rotate(15),
    "RandomCrop, 1 pixel": data.RandomCrop(1),
    "RandomCrop, 2 pixels": data.RandomCrop(2),
    "RandomResize, 0.7 to 1.3": data.RandomResize((0.7, 1.3)),
    "RandomErasing": data.RandomErasing(p=0.5),
    "Blur, 3 pixels": data.Blur(3),
    "Brightness, 0.4": data.Brightness(0.4),
    "Contrast, 0.4": data.Contrast(0.4),
    "GaussianNoise, 0.1": data.GaussianNoise(0.1),
}
Make = Callable[[nn.Module, float], torch.optim.Optimizer]


def adamw(lr: float) -> Make:
    return lambda net, factor: torch.optim.AdamW(net.parameters(), lr * factor)


def sgd(lr: float) -> Make:
    return lambda net, factor: torch.optim.SGD(net.parameters(), lr * factor, momentum=0.9)


def images_of(module: ImageDataModule) -> tuple[Tensor, Tensor, Tensor]:
    """Training images, uint8, their labels and keys."""
    module.setup("fit")
    part = module.loaded["train"]
    batch = part.images.__getitems__([(0, row) for row in part.index])
    return batch["image"], batch["label"], batch["index"]


def augmentations() -> None:
    print("| augmentation of the digits | pairs of classes swapped, four splits |\n|---|---|")
    for name, augmentation in AUGMENTATIONS.items():
        shares = []
        for seed in range(4):
            images, labels, index = images_of(
                ImageDataModule(source=Digits, image_size=8, channels=1, split_seed=seed, seed=seed)
            )
            rounds = [small(data.Augment([augmentation], seed)(images, i, index)) for i in range(ROUNDS)]
            shares.append(float(swapped(small(images), torch.stack(rounds), labels, 10).max()))
        print(f"| {name} | {', '.join(f'{share:.1%}' for share in shares)} |", flush=True)


def rates(folder: Path) -> None:
    digits = images_of(ImageDataModule(source=Digits, image_size=8, channels=1))
    photos = images_of(ImageDataModule(root=str(folder), image_size=32))
    cases = {
        "ConvNet 32-64, digits": (lambda: ConvNet(1, 10, 8, channels=[32, 64]), digits, 0.003, 0.1),
        "ConvNet 16-32, digits": (lambda: ConvNet(1, 10, 8, channels=[16, 32]), digits, 0.003, 0.1),
        "ResNet9, CIFAR-10": (lambda: ResNet9(3, 10, 32), photos, 0.01, 0.1),
        "ConvNet 32-64-128, CIFAR-10": (lambda: ConvNet(3, 10, 32, channels=[32, 64, 128]), photos, 0.003, 0.05),
        "ResNet 1-1-1 of width 32, CIFAR-10": (
            lambda: ResNet(3, 10, 32, depths=[1, 1, 1], width=32),
            photos,
            0.003,
            0.1,
        ),
        "vgg11 without norms, CIFAR-10": (lambda: TorchvisionModel(3, 10, 32, name="vgg11"), photos, 0.0003, 0.01),
    }
    print("\n| network and images | optimizer and rate | the rate | 10 times | 100 times |\n|---|---|---|---|---|")
    for name, (build, (images, labels, _), slow, fast) in cases.items():
        for title, make, lr in (("AdamW", adamw, slow), ("SGD, momentum 0.9", sgd, fast)):
            cells = []
            for factor in (1, 10, 100):
                levels = []
                for seed in range(2):
                    torch.manual_seed(seed)
                    net, rows = build().train(), torch.randperm(len(images))[:64]
                    batch = (images[rows].float() / 255 - 0.45) / 0.25
                    found = Findings()
                    with redirect_stdout(StringIO()):
                        check_rate(net, make(lr * factor), lr * factor, 1.0, batch, labels[rows], None, 100, found)
                    levels.append(found.lines[0][0])
                cells.append(" ".join(levels))
            print(f"| {name} | {title}, {lr:g} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    augmentations()
    rates(folder)


if __name__ == "__main__":
    main()
