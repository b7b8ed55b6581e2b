"""Does an augmentation turn images of one class into images of another, as a vertical flip does with 2 and 5 (advice A10)?"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from project.extras.check.findings import Findings

SIDE = 16  # pixels that are compared
ROUNDS = 4  # draws of each image
SKILL = 0.7  # share of images whose nearest other image is of their class; below it pixels cannot judge
ENOUGH = 15  # images of a class: fewer give no share
LOOK, STOP = 0.04, 0.1  # measured on the digits: docs/results.md


def swapped(plain: Tensor, augmented: Tensor, labels: Tensor, number: int) -> Tensor:
    """Share of each class that an augmentation turns into a genuine member of another, where the other is turned into it as well.

    An augmented image counts for the class of its nearest plain image (another than its own), if it is as near as 99 of 100 plain
    images are to theirs: a change that only makes images strange lowers the accuracy, but leaves the label true. That both
    classes become each other is the mark of flips and turns; a blur that makes every 8 a 1 loses detail, which is another matter.

    Args:
        plain: (N, D).
        augmented: (rounds, N, D), rounds of the same images.
        labels: (N,).
        number: Of classes.

    Returns:
        (number, number), symmetric: the smaller of the two shares, above what plain images have.
    """
    own = torch.arange(len(plain))
    nearest, distance = _nearest(plain, plain, own)
    limit = distance.quantile(0.99)
    usual = _shares(labels, labels[nearest], distance <= limit, torch.ones_like(labels, dtype=torch.bool), number)
    tables = torch.zeros(number, number)
    for images in augmented:
        nearest, distance = _nearest(images, plain, own)
        changed = (images - plain).abs().amax(1) > 0.02
        tables += _shares(labels, labels[nearest], distance <= limit, changed, number) / len(augmented)
    excess = tables - usual
    return torch.minimum(excess, excess.T)


def skill(plain: Tensor, labels: Tensor) -> float:
    """Share of images whose nearest other image is of their class."""
    nearest, _ = _nearest(plain, plain, torch.arange(len(plain)))
    return float((labels[nearest] == labels).float().mean())


def check_augmentations(
    augmentations: Sequence[Callable],
    apply: Callable[[Callable, Tensor, int], Tensor],
    images: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    found: Findings,
) -> None:
    """One line for each augmentation.

    Args:
        augmentations: Of the configuration.
        apply: (augmentation, images, round) -> augmented images.
        images: Training images, uint8 (N, C, H, W).
        labels: (N,).
        class_names: In the order of the labels.
        found: Takes the lines.
    """
    if not augmentations:
        return
    plain = small(images)
    right = skill(plain, labels)
    why = ""
    if int(torch.bincount(labels).max()) < ENOUGH:
        why = f"fewer than {ENOUGH} images of a class"
    elif right < SKILL:
        why = f"the nearest image is of the same class for {right:.0%} only"
    if why:
        found.ok(
            "augmentation", f"whether it keeps the labels true, pixels cannot tell here ({why}): look at batch.png"
        )
        return
    fine = []
    for augmentation in augmentations:
        name = getattr(augmentation, "__name__", type(augmentation).__name__)
        rounds = torch.stack([small(apply(augmentation, images, i)) for i in range(ROUNDS)])
        shares = swapped(plain, rounds, labels, len(class_names))
        worst = int(shares.argmax())
        share, (a, b) = float(shares.flatten()[worst]), divmod(worst, len(class_names))
        words = f"{name} makes {class_names[a]} look like {class_names[b]} and the reverse ({share:.0%} of the images that it changes)"
        if share >= STOP:
            found.stop("augmentation", words, f"take {name} out of data.augment")
        elif share >= LOOK:
            found.look(
                "augmentation", words, f"look at batch.png; take {name} out of data.augment if it breaks the label"
            )
        else:
            fine.append(name)
    if fine:
        found.ok("augmentation", f"labels stay true under {', '.join(fine)}")


def small(images: Tensor) -> Tensor:
    """(N, C, H, W), uint8 or float in [0, 1] -> (N, D): what is compared."""
    values = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    side = min(SIDE, images.shape[-1])
    return nn.functional.adaptive_avg_pool2d(values, side).flatten(1)


def _nearest(images: Tensor, plain: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Of each image the nearest plain one but itself, and how far it is."""
    distances = torch.cdist(images, plain)
    distances[own, own] = torch.inf
    distance, nearest = distances.min(1)
    return nearest, distance


def _shares(labels: Tensor, guess: Tensor, near: Tensor, counted: Tensor, number: int) -> Tensor:
    """Share of the counted images of each class (rows) that are near one of another class (columns)."""
    pairs = torch.bincount((labels * number + guess)[near & counted], minlength=number**2).view(number, number)
    total = torch.bincount(labels[counted], minlength=number)
    shares = pairs / total.clamp(min=1)[:, None]
    shares[total < ENOUGH] = 0
    return shares.fill_diagonal_(0)
