"""Does an augmentation turn images of one class into images of another, as a vertical flip does with 2 and 5 (A10)?"""

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_dtype

from project.data import ImageDataModule
from project.data.augment import Augment
from project.data.transforms import GREY
from project.extras.check.findings import Findings

FEW = 32  # grey levels; with half of them little is left to see, as of 12 bits in a file of 16
SIDE = 16  # pixels; images are compared at this size
ROUNDS = 4  # draws of each image
SKILL = 0.7  # share of images whose nearest other image is of their class; below it, pixels tell nothing about classes
ENOUGH = 15  # images of a class; fewer give no share
SUSPECT, BREAKS = 0.04, 0.1  # of the images that change; measured on the digits, docs/results.md


def check_augmentations(data: ImageDataModule, found: Findings) -> None:
    """A line for the grey levels of the training images, and one for each augmentation, applied to them."""
    part, names = data.loaded["train"], data.class_names
    every = 1 + data.image_size // 64  # of large images fewer, for the time and memory that they take
    batch = part.images.whole(part.index[::every])
    pixels = batch["image"][:, :3, ::4, ::4]
    span = np.ptp(np.percentile(pixels[pixels != GREY], (1, 99)))  # without letterbox bars
    level = "error" if any(data.value_range) or span < FEW / 2 else "warning"  # drawings may be meant so
    words = f"98 % of the pixels are within {span:.0f} of the 255 levels"
    fix = f"set --data.value_range (now {data.value_range}) to the values in use, or save images that use all 8 bits"
    found.judge("brightness", words, (span < FEW, level, words, fix))
    labels, plain = batch["label"], small(batch["image"])
    skill = (labels[_nearest(plain, plain)[1]] == labels).float().mean()
    if skill < SKILL or labels.bincount().max() < ENOUGH:
        words = f"not judged, since pixels do not tell the classes apart (nearest image of the same class: {skill:.0%})"
        found.add("ok", "augmentation", f"{words}; see batch.png")
        return
    for augmentation in data.augment.augmentations:
        name, augment = type(augmentation).__name__, Augment([augmentation], data.seed)
        rounds = [small(augment(batch["image"], i, batch["index"])) for i in range(ROUNDS)]
        shares = swapped(plain, rounds, labels, len(names))
        share, (a, b) = shares.max(), divmod(int(shares.argmax()), len(names))
        words = f"{name} makes {names[a]} look like {names[b]} and vice versa ({share:.0%} of the images it changes)"
        level, fix = "error" if share >= BREAKS else "warning", f"remove {name}, if it breaks the label"
        found.judge("augmentation", f"labels stay true under {name}", (share >= SUSPECT, level, words, fix))


def swapped(plain: Tensor, augmented: list[Tensor], labels: Tensor, classes: int) -> Tensor:
    """Share of each class that an augmentation turns into another class, which it turns into the first as well.

    An augmented image counts for the class of its nearest plain image (another than its own), if it is as near as 99 of
    100 plain images are to theirs: a change that only makes images strange leaves the label true. Flips and turns make
    two classes each other; a blur that makes every 8 a 1 loses detail, which is another matter.

    Args:
        plain: (N, D).
        augmented: Rounds of the same images, each (N, D).
        labels: (N,).
        classes: Their number.

    Returns:
        (classes, classes), symmetric: the smaller of the two shares, above what plain images have.
    """
    limit = _nearest(plain, plain)[0].quantile(0.99)

    def shares(images: Tensor, counted: Tensor) -> Tensor:
        """Of the counted images of each class (row), those near an image of each class (column)."""
        distance, nearest = _nearest(images, plain)
        guess = torch.where(distance <= limit, labels[nearest], labels)
        table = (labels * classes + guess).bincount(counted.float(), classes**2).view(classes, classes)
        total = table.sum(1, keepdim=True)
        return torch.where(total < ENOUGH, 0, table / total)

    changed = [shares(images, (images - plain).abs().amax(1) > 0.02) for images in augmented]
    excess = (sum(changed) / len(changed) - shares(plain, labels >= 0)).fill_diagonal_(0)
    return torch.minimum(excess, excess.T)


def small(images: Tensor) -> Tensor:
    """(N, C, H, W), uint8 or float in [0, 1] -> (N, D): what is compared."""
    return nn.functional.adaptive_avg_pool2d(to_dtype(images, scale=True), SIDE).flatten(1)


def _nearest(images: Tensor, plain: Tensor) -> tuple[Tensor, Tensor]:
    """Of each image the distance of the nearest plain one but itself, and which it is."""
    return torch.cdist(images, plain).fill_diagonal_(torch.inf).min(1)
