"""Does an augmentation turn images of one class into images of another, as a vertical flip does with 2 and 5 (advice A10)?"""

import torch
from torch import Tensor, nn

from project.data import ImageDataModule
from project.data.augment import Augment
from project.data.memory import Batch
from project.extras.check.findings import Findings

SIDE = 16  # pixels; images are compared at this size
ROUNDS = 4  # draws of each image
SKILL = 0.7  # share of images whose nearest other image is of their class; below it, pixels tell nothing about classes
ENOUGH = 15  # images of a class; fewer give no share
SUSPECT, BREAKS = 0.04, 0.1  # of the images that change; measured on the digits, docs/results.md


def check_augmentations(data: ImageDataModule, batch: Batch, found: Findings) -> None:
    """One line for those that keep the labels true, and one for each other.

    Args:
        data: Its augmentations are applied, one at a time.
        batch: Training images.
        found: Takes the lines.
    """
    images, labels = batch["image"], batch["label"]
    plain, names, fine = small(images), data.class_names, []
    nearest, _ = _nearest(plain, plain)
    skill = float((labels[nearest] == labels).float().mean())
    if data.augment.augmentations and (skill < SKILL or int(torch.bincount(labels).max()) < ENOUGH):
        words = (
            f"too few images, or pixels tell too little about classes (nearest image of the same class: {skill:.0%})"
        )
        found.add("ok", "augmentation", f"not judged: {words}; see batch.png whether labels stay true")
        return
    for augmentation in data.augment.augmentations:
        name = getattr(augmentation, "__name__", type(augmentation).__name__)
        apply = Augment([augmentation], data.seed)
        rounds = torch.stack([small(apply(images, i, batch["index"])) for i in range(ROUNDS)])
        shares = swapped(plain, rounds, labels, len(names))
        share, (a, b) = float(shares.max()), divmod(int(shares.argmax()), len(names))
        words = (
            f"{name} makes {names[a]} look like {names[b]} and vice versa ({share:.0%} of the images that it changes)"
        )
        if share >= BREAKS:
            found.add("error", "augmentation", words, f"remove {name} from data.augment")
        elif share >= SUSPECT:
            found.add("warning", "augmentation", words, f"see batch.png; remove {name} if it breaks the label")
        else:
            fine.append(name)
    if fine:
        found.add("ok", "augmentation", f"labels stay true under {', '.join(fine)}")


def swapped(plain: Tensor, augmented: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Share of each class that an augmentation turns into another class, which it turns into the first as well.

    An augmented image counts for the class of its nearest plain image (another than its own), if it is as near as 99 of 100
    plain images are to theirs: a change that only makes images strange leaves the label true. That both classes become each
    other is the mark of flips and turns; a blur that makes every 8 a 1 loses detail, which is another matter.

    Args:
        plain: (N, D).
        augmented: (rounds, N, D), rounds of the same images.
        labels: (N,).
        classes: Their number.

    Returns:
        (classes, classes), symmetric: the smaller of the two shares, above what plain images have.
    """
    limit = _nearest(plain, plain)[1].quantile(0.99)

    def shares(images: Tensor, counted: Tensor) -> Tensor:
        """Of the counted images of each class (row), those near an image of each other class (column)."""
        nearest, distance = _nearest(images, plain)
        pairs = (labels * classes + labels[nearest])[counted & (distance <= limit)]
        table = torch.bincount(pairs, minlength=classes**2).view(classes, classes)
        total = torch.bincount(labels[counted], minlength=classes)[:, None]
        return torch.where(total < ENOUGH, 0, table / total.clamp(min=1)).fill_diagonal_(0)

    changed = [shares(images, (images - plain).abs().amax(1) > 0.02) for images in augmented]
    excess = torch.stack(changed).mean(0) - shares(plain, torch.ones_like(labels, dtype=torch.bool))
    return torch.minimum(excess, excess.T)


def small(images: Tensor) -> Tensor:
    """(N, C, H, W), uint8 or float in [0, 1] -> (N, D): what is compared."""
    values = images.float() / 255 if images.dtype == torch.uint8 else images
    return nn.functional.adaptive_avg_pool2d(values, min(SIDE, images.shape[-1])).flatten(1)


def _nearest(images: Tensor, plain: Tensor) -> tuple[Tensor, Tensor]:
    """Of each image the nearest plain one but itself, and its distance."""
    distance, nearest = torch.cdist(images, plain).fill_diagonal_(torch.inf).min(1)
    return nearest, distance
