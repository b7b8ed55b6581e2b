"""Checks of the images: unreadable, duplicate, in two splits, too small, too long; and of the classes (advice A2, A8, A9)."""

from collections import Counter, defaultdict
from statistics import median

import torch
from PIL import Image
from torch import Tensor

from project.data import ImageDataModule
from project.data.load import Loaded, load
from project.data.memory import Batch, ImageFormat, Images, MemoryImages, Request
from project.extras.check.findings import Findings, some

FEW = 5  # training images of a class; with fewer it can hardly be learnt
UNEQUAL = 10  # ratio of the largest class to the smallest, beyond which plain training neglects the small ones
LONG = 3  # ratio of the sides, beyond which letterbox leaves little of an image and crop cuts off most
KINDS = {1: "grey", 3: "colour", 4: "colour with alpha"}  # by channels


def evenly(rows: list[int], count: int) -> list[int]:
    """`count` of the rows, evenly chosen, or all."""
    return rows if len(rows) <= count else [rows[i * len(rows) // count] for i in range(count)]


def batch_of(part: Loaded, count: int) -> Batch:
    """Up to `count` images of a split, evenly chosen."""
    return part.images.__getitems__([(0, row) for row in evenly(part.index, count)])


def check_files(data: ImageDataModule, found: Findings) -> None:
    """Load the training and validation images, and check the files of all splits.

    Test images are only decoded, to see that they can be, and compared with the others: nothing is chosen by them.

    Raises:
        UserError: where the images cannot be loaded.
    """
    strict, data.on_bad_image = data.on_bad_image == "error", "skip"  # they get a line; the rest is checked without
    data.setup("fit")
    parts = dict(data.loaded)
    if test := data.splits["test"]:
        image_format = ImageFormat(data.image_size, data.channels, data.resize)
        parts["test"] = load(data.source, test, [-1] * len(test), image_format, in_memory=False)
    count = sum(len(part.digests) for part in parts.values())
    bad = [f"{key} ({why})" for part in parts.values() for key, why in part.bad]
    words = f"{len(bad)} cannot be read: {some(bad, 5)}"
    skip = "remove them, or leave them out with --data.on_bad_image skip"
    rules = (
        (bool(bad) and strict, "error", words, skip),
        (bool(bad) and not strict, "warning", f"{words}; they are left out", "replace the files"),
    )
    found.judge("images", f"all {count:,} can be read", rules)
    _check_copies(data, parts, found)
    _check_shapes(data, [row for part in parts.values() for row in part.digests], found)


def _check_copies(data: ImageDataModule, parts: dict[str, Loaded], found: Findings) -> None:
    """Files of equal content: in two splits (leakage), in two classes, or twice in one split."""
    samples = data.source.samples
    places: dict[int, list[tuple[str, int]]] = defaultdict(list)  # identity of the content -> (split, row)
    for split, part in parts.items():
        for row, digest in part.digests.items():
            places[digest].append((split, row))
    copies = [group for group in places.values() if len(group) > 1]
    within = [group for group in copies if len({split for split, _ in group}) == 1]
    across = [group for group in copies if len({split for split, _ in group}) > 1]
    twofold = [group for group in copies if len({samples[row].label for _, row in group}) > 1]

    def names(groups: list[list[tuple[str, int]]]) -> str:
        each = [[f"{samples[row].key} ({split}, {samples[row].label})" for split, row in group] for group in groups]
        return some([" = ".join(group) for group in each])

    leak = f"{len(across)} images are in more than one split, so the score is too good: {names(across)}"
    group = "keep one copy of each, or give the copies one group in a manifest (docs/guide.md)"
    count = sum(len(part.digests) for part in parts.values())
    found.judge("leakage", f"none of {count:,} images is in two splits", [(bool(across), "error", leak, group)])
    rules = (
        (bool(twofold), "warning", f"{len(twofold)} images have two classes: {names(twofold)}", "keep the right one"),
        (bool(within), "warning", f"{len(within)} images are twice in one split: {names(within)}", "keep one of each"),
    )
    found.judge("copies", "no image is there twice", rules)


def _check_shapes(data: ImageDataModule, rows: list[int], found: Findings) -> None:
    """Too small, too long, or mostly of another kind than data.channels; read from the headers of the files."""
    small, long, kinds = [], [], Counter()
    for sample in (data.source.samples[row] for row in rows):
        path = data.source.path(sample)
        if path is None:
            height, width = data.source.content(sample).shape[:2]
        else:
            with Image.open(path) as image:
                (width, height), kind = image.size, _channels(image)
            kinds[kind] += 1
        if min(width, height) < data.image_size / 2:
            small.append(f"{sample.key} ({width}x{height})")
        if max(width, height) > LONG * min(width, height):
            long.append(f"{sample.key} ({width}x{height})")
    size, common = data.image_size, max(kinds, key=kinds.__getitem__, default=data.channels)
    too_small = f"{len(small)} are smaller than half of image_size {size}: {some(small)}"
    too_long = f"{len(long)} have sides of more than {LONG} to 1, and data.resize is {data.resize}: {some(long)}"
    kind = f"data.channels {data.channels} is {KINDS[data.channels]}, but {kinds[common]:,} are {KINDS[common]}"
    rules = (
        (bool(small), "warning", too_small, "remove what is no photo, or lower --data.image_size"),
        (bool(long), "warning", too_long, "crop them to what matters"),
        (common != data.channels, "warning", kind, f"--data.channels {common}"),
    )
    found.judge("sizes", f"none too small for image_size {size}, no sides of more than {LONG} to 1", rules)


def _channels(image: Image.Image) -> int:
    if "A" in image.getbands() or "transparency" in image.info:
        return 4
    return 1 if image.mode[0] in "1LIF" else 3


def class_table(data: ImageDataModule) -> dict[str, dict[str, int]]:
    """Split -> class -> number of images."""
    counts = {name: Counter(data.source.samples[i].label for i in rows) for name, rows in data.splits.items() if rows}
    return {name: {label: count[label] for label in data.class_names} for name, count in counts.items()}


def check_classes(table: dict[str, dict[str, int]], balanced: bool, found: Findings) -> None:
    """Nearly empty, missing in validation, unequal.

    Args:
        table: See `class_table`.
        balanced: Whether the sampler or the loss makes up for unequal classes.
        found: Takes the lines.
    """
    train = table["train"]
    few = [f"{name} ({count})" for name, count in train.items() if count < max(FEW, median(train.values()) / 50)]
    missing = [name for name, count in table.get("val", {}).items() if not count]
    low, high = min(train, key=train.__getitem__), max(train, key=train.__getitem__)
    unequal = train[high] > UNEQUAL * max(1, train[low]) and not balanced
    least = f"{len(few)} of {len(train)} have almost no training images: {some(few, 5)}"
    most = f"{high} has {train[high]:,} training images, {low} has {train[low]:,}"
    balance = "--model.task.class_weights balanced, or --data.sampler balanced"
    unseen = f"{len(missing)} have no validation image: {some(missing, 5)}"
    rules = (
        (bool(few), "warning", least, "add images, or leave these classes out"),
        (bool(missing), "warning", unseen, "add images, or raise data.val_size"),
        (unequal, "warning", most, balance),
    )
    found.judge("classes", f"{len(train)}, {train[low]:,} to {train[high]:,} training images each", rules)


class StandIns(Images):
    """The chosen images, over and over, in the place of all, so that steps, epochs and schedule are those of the whole run."""

    def __init__(self, chosen: Images, rows: list[int]) -> None:
        """
        Args:
            chosen: The images that have been loaded.
            rows: Position of every image of the split among all samples.
        """
        self.chosen, self.place = chosen, torch.arange(len(rows)) % len(chosen)
        super().__init__(rows, chosen.labels[self.place].tolist())

    def images(self, rows: Tensor, requests: list[Request]) -> Tensor:
        return self.chosen.images(self.place[rows], requests)


def stand_in(data: ImageDataModule, splits: dict[str, list[int]]) -> None:
    """Let the loaded images stand for all images of the splits."""
    if data.num_workers is None and isinstance(data.loaded["train"].images, MemoryImages):
        data.num_workers = 0  # as for images in memory
    for name, part in data.loaded.items():
        data.loaded[name] = Loaded(StandIns(part.images, splits[name]), dict.fromkeys(splits[name], 0), [])
    data.splits = splits
