"""Time of the augmentations against kornia (on the batch) and torchvision v2 (image by image), on the CPU.

    pip install kornia
    OMP_NUM_THREADS=1 python -m benchmarks.augment

Each row is one operation or pipeline at the same settings, on uint8 batches: the rivals' time includes the conversion
to float32 where they cannot do without. The three take turns, A B C A B C ..., so that a slow moment of the machine
meets all of them; the table gives the medians in milliseconds for a batch and how many times longer the rivals take.
kornia's brightness adds and its contrast only multiplies, less work than torchvision's and ours.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
from torch import Tensor
from torchvision.transforms import v2

from project.data.augment import Augment, Augmentation, HorizontalFlip, RandomCrop
from project.data.augment_color import Blur, Brightness, Contrast, GaussianNoise, Saturation
from project.data.augment_warp import Rotate

try:
    import kornia.augmentation as K
except ImportError as error:
    raise SystemExit("benchmarks.augment compares with kornia, which is missing: pip install kornia") from error

BATCHES = ((256, 32), (64, 224))  # (images, side)
Step = tuple[Augmentation, list, list]  # ours, kornia's, torchvision's


def steps(side: int) -> dict[str, Step]:
    """The same operations three times. Ours and torchvision's flip and crop stay uint8, kornia takes floats alone."""
    padding, span = side // 8, (0.8, 1.2)
    return {
        "flip": (HorizontalFlip(), [K.RandomHorizontalFlip(p=0.5)], [v2.RandomHorizontalFlip()]),
        "crop": (
            RandomCrop(padding),
            [K.RandomCrop((side, side), padding=padding, padding_mode="reflect")],
            [v2.RandomCrop(side, padding=padding, padding_mode="reflect")],
        ),
        "rotate": (
            Rotate(10, mode="constant"),
            [K.RandomRotation(10.0, p=1.0, align_corners=False)],
            [v2.RandomRotation(10, interpolation=v2.InterpolationMode.BILINEAR)],
        ),
        "brightness": (Brightness(0.2), [K.RandomBrightness(span)], [v2.ColorJitter(brightness=0.2)]),
        "contrast": (Contrast(0.2), [K.RandomContrast(span)], [v2.ColorJitter(contrast=0.2)]),
        "saturation": (Saturation(0.2), [K.RandomSaturation(span)], [v2.ColorJitter(saturation=0.2)]),
        "blur": (
            Blur(5, (0.1, 2.0), p=1.0),
            [K.RandomGaussianBlur((5, 5), (0.1, 2.0), p=1.0)],
            [v2.GaussianBlur(5, (0.1, 2.0))],
        ),
        "noise": (GaussianNoise(0.05, p=1.0), [K.RandomGaussianNoise(std=0.05, p=1.0)], [v2.GaussianNoise(sigma=0.05)]),
    }


PIPELINES = {
    "flip + crop": ("flip", "crop"),
    "flip + crop + colour": ("flip", "crop", "brightness", "contrast", "saturation"),
    "all eight": ("flip", "crop", "rotate", "brightness", "contrast", "saturation", "blur", "noise"),
}


def contestants(names: tuple[str, ...], images: Tensor) -> list[Callable[[], Tensor]]:
    """One call for each of ours, kornia's and torchvision's pipeline of these steps."""
    available = steps(images.shape[-1])
    chosen, index = [available[name] for name in names], torch.arange(len(images))
    ours = Augment([step[0] for step in chosen], seed=0)
    rival = K.AugmentationSequential(*[layer for step in chosen for layer in step[1]], same_on_batch=False)
    layers = [layer for step in chosen for layer in step[2]]
    moves = [layer for layer in layers if isinstance(layer, v2.RandomHorizontalFlip | v2.RandomCrop)]
    rest = layers[len(moves) :]  # every pipeline moves first
    each = v2.Compose([*moves, v2.ToDtype(torch.float32, scale=True), *rest] if rest else moves)
    return [
        lambda: ours(images, 0, index),
        lambda: rival(images.float() / 255),
        lambda: torch.stack([each(image) for image in images]),
    ]


def medians(calls: list[Callable[[], Tensor]], rounds: int) -> list[float]:
    """Median milliseconds of each call, after one round to warm up; the calls alternate."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, kept in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if number:
                kept.append((time.perf_counter() - start) * 1000)
    return [statistics.median(kept) for kept in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of each contestant (default: 9)")
    rounds = parser.parse_args().rounds
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "kornia"))
    print(f"{versions}, {torch.get_num_threads()} thread(s), {rounds} rounds\n")
    print("| batch | operations | ours, ms | kornia, ms | torchvision, ms | kornia / ours | torchvision / ours |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for count, side in BATCHES:
        images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
        rows = {**{name: (name,) for name in steps(side)}, **PIPELINES}
        for title, names in rows.items():
            ours, rival, single = medians(contestants(names, images), rounds)
            cells = f"{ours:.1f} | {rival:.1f} | {single:.1f} | {rival / ours:.1f} | {single / ours:.1f}"
            print(f"| {count} x 3 x {side} x {side} | {title} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
