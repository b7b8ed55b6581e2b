"""What `check` finds: augmentations that change labels, and learning rates that are 10 and 100 times too high.

    python -m benchmarks.check FOLDER

FOLDER holds train/<class>/* (`benchmarks.subset` makes it). The first table has the share of images that an
augmentation of the digits turns into another class, and vice versa, over four splits; `check` warns from 4 %, and makes
it an error from 10 %. The second has what `check` says of networks and optimizers at a usual learning rate and at 10
and 100 times that rate, on two batches each.

A CPU is enough; about ten minutes on two cores.
"""

import argparse
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from project import data
from project.data import Digits, ImageDataModule
from project.extras.check.augmentations import ROUNDS, small, swapped
from project.extras.check.findings import Findings
from project.extras.check.network import check_overfit
from project.nets import ConvNet, ResNet, ResNet9, TorchvisionModel
from project.recipe import OptimizerCallable, Recipe
from project.tasks import MultiClass

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
Images = tuple[Tensor, Tensor, Tensor]  # uint8 (N, C, H, W), labels (N,), keys (N,)
# network, images, learning rate of AdamW, of SGD with momentum 0.9
Case = tuple[Callable[[], nn.Module], Images, float, float]


def images_of(module: ImageDataModule) -> Images:
    """Its training images."""
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
            shares.append(float(swapped(small(images), rounds, labels, 10).max()))
        print(f"| {name} | {', '.join(f'{share:.1%}' for share in shares)} |", flush=True)


def level(net: nn.Module, images: Images, optimizer: OptimizerCallable, lr: float, seed: int) -> str:
    """What `check` says of one batch of 64 images."""
    rows = torch.randperm(len(images[0]), generator=torch.Generator().manual_seed(seed))[:64]
    model = SimpleNamespace(
        recipe=Recipe(lr, optimizer, None, 1.0, False, None, None, 0.0, 0.01, None, "none"),
        task=MultiClass([str(i) for i in range(10)]),
        batch=64,
        clip_gradients=lambda optimizer: None,
    )
    found = Findings(Path())
    with redirect_stdout(StringIO()):
        check_overfit(model, net, (images[0][rows].float() / 255 - 0.45) / 0.25, images[1][rows], 100, found)
    return found.levels[0]


def rates(cases: dict[str, Case]) -> None:
    print("\n| network and images | optimizer and learning rate | that rate | 10 times | 100 times |")
    print("|---|---|---|---|---|")
    for name, (build, images, slow, fast) in cases.items():
        momentum: OptimizerCallable = lambda groups, lr: torch.optim.SGD(groups, lr, momentum=0.9)  # noqa: E731
        for title, optimizer, lr in (("AdamW", torch.optim.AdamW, slow), ("SGD, momentum 0.9", momentum, fast)):
            cells = []
            for factor in (1, 10, 100):
                levels = []
                for seed in range(2):
                    torch.manual_seed(seed)
                    levels.append(level(build().train(), images, optimizer, lr * factor, seed))
                cells.append(" ".join(levels))
            print(f"| {name} | {title}, {lr:g} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    augmentations()
    digits = images_of(ImageDataModule(source=Digits, image_size=8, channels=1))
    photos = images_of(ImageDataModule(root=str(folder), image_size=32))
    rates(
        {
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
    )


if __name__ == "__main__":
    main()
