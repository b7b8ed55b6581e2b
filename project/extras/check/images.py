"""Checks of the images: unreadable, duplicate, too small, too long; and of the classes (advice A2, A8, A9)."""

from collections import Counter, defaultdict
from itertools import count, islice
from statistics import median

from project.data import ImageDataModule
from project.data.load import Loaded, load
from project.data.memory import INDEX_LIMIT
from project.data.transforms import open_image
from project.extras.check.findings import Findings, some
from project.extras.look import figures

FEW = 5  # training images of a class; with fewer it can hardly be learnt
UNEQUAL = 10  # ratio of the largest class to the smallest, beyond which plain training neglects the small ones
LONG = 3  # ratio of the sides, beyond which letterbox leaves little of an image and crop cuts off most


def stand_in(data: ImageDataModule, splits: dict[str, list[int]]) -> None:
    """Let the loaded images, over and over, stand for all, so that steps and schedule are those of the whole run."""
    for name, part in data.loaded.items():
        keys = (row + turn * INDEX_LIMIT for turn in count() for row in part.index)
        part.digests = dict.fromkeys(islice(keys, len(splits[name])), 0)
    data.splits = splits


def check_files(data: ImageDataModule, found: Findings) -> None:
    """Load the training and validation images, and check the files of all splits.

    Test images are only decoded, to see that they can be, and compared with the others: nothing is chosen by them.

    Raises:
        UserError: where the images cannot be loaded.
    """
    level = "error" if data.on_bad_image == "error" else "warning"
    data.on_bad_image = "skip"  # they get a line; the rest is checked without them
    data.setup("fit")
    parts = dict(data.loaded)
    if test := data.splits["test"]:
        image_format = parts["train"].images.format
        parts["test"] = load(data.source, test, [-1] * len(test), image_format, cache="none")
    bad = [f"{key}: {why}" for part in parts.values() for key, why in part.bad]
    fix = "replace or remove them, or leave them out with --data.on_bad_image skip"
    found.judge("images", "all can be read", (bad, level, f"unreadable: {some(bad)}", fix))
    _check_copies(data, parts, found)
    _check_shapes(data, [row for part in parts.values() for row in part.digests], found)


def _check_copies(data: ImageDataModule, parts: dict[str, Loaded], found: Findings) -> None:
    """Files of equal content: in two splits (leakage), or twice in one."""
    places = defaultdict(list)  # identity of the content -> (split, file) of each
    for split, part in parts.items():
        for row, digest in part.digests.items():
            sample = data.source.samples[row]
            places[digest].append((split, f"{sample.key} ({split}, {sample.label})"))
    leaks, copies = [], []
    for splits, names in (zip(*group, strict=True) for group in places.values() if len(group) > 1):
        (leaks if len(set(splits)) > 1 else copies).append(" = ".join(names))
    leak = f"images in more than one split, so that scores are too good: {some(leaks)}"
    rule = (leaks, "error", leak, "keep one copy of each, or give the copies one group in a manifest (docs/guide.md)")
    found.judge("leakage", "no image that was checked is in two splits", rule)
    found.judge(
        "copies",
        "no image is there twice",
        (copies, "warning", f"images that are there twice: {some(copies)}", "keep the one in the right class"),
    )


def _check_shapes(data: ImageDataModule, rows: list[int], found: Findings) -> None:
    """Too small, too long; read from the headers of the files."""
    small, long, size = [], [], data.image_size
    for sample in [data.source.samples[row] for row in rows]:
        if path := data.source.path(sample):
            with open_image(path, data.max_pixels) as image:
                name = f"{sample.key}: {image.width}x{image.height}"
                if min(image.size) < size / 2:
                    small.append(name)
                if max(image.size) > LONG * min(image.size):
                    long.append(name)
    found.judge(
        "sizes",
        f"none too small for image_size {size}, no sides of more than {LONG} to 1",
        (small, "warning", f"smaller than half of image_size {size}: {some(small)}", "lower --data.image_size"),
        (long, "warning", f"sides of more than {LONG} to 1: {some(long)}", f"crop them; data.resize is {data.resize}"),
    )


def check_classes(data: ImageDataModule, weighted: bool, found: Findings) -> None:
    """Nearly empty, missing in validation, unequal.

    Args:
        data: All its images count.
        weighted: Whether the loss makes up for unequal classes.
        found: Takes the lines.
    """
    samples, names = data.source.samples, data.class_names
    table = {name: Counter(samples[i].label for i in rows) for name, rows in data.splits.items()}
    found.picture("classes.png", "images of each class in each split", figures.class_counts(table))
    train, val = table["train"], table["val"]
    few = [f"{name}: {train[name]}" for name in names if train[name] < max(FEW, median(train.values()) / 50)]
    missing = [name for name in names if val and not val[name]]
    low, high = min(names, key=train.__getitem__), max(names, key=train.__getitem__)
    alike = sorted(set(names).difference({name.casefold(): name for name in names}.values()))
    unequal = train[high] > UNEQUAL * train[low] and not weighted and data.sampler != "balanced"
    words = f"{high} has {train[high]:,} training images, {low} has {train[low]:,}"
    found.judge(
        "classes",
        f"{len(names)}, {train[low]:,} to {train[high]:,} training images each",
        (few, "warning", f"almost without training images: {some(few)}", "add images, or data.rare_classes"),
        (missing, "warning", f"without validation images: {some(missing)}", "add images of them"),
        (alike, "warning", f"like another but for upper and lower case: {some(alike)}", "make one folder of both"),
        (unequal, "warning", words, "--model.task.class_weights balanced, or --data.sampler balanced"),
    )
