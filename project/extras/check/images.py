"""Check the images: damaged, twice there, in two splits, small, long; and the classes (advice A2, A8, A9)."""

from collections import Counter, defaultdict
from statistics import median

from PIL import Image

from project.data import ImageDataModule
from project.data.load import Loaded
from project.data.memory import FileImages, MemoryImages
from project.data.verify import Verdicts, survey
from project.extras.check.findings import Findings, some

FEW = 5  # training images of a class, below which it can hardly be learnt
UNEQUAL = (
    10  # times as many images in the largest class as in the smallest: plain training then neglects the small ones
)
LONG = 3  # times as long as wide: letterbox leaves little of it, crop cuts most off


def take_some(data: ImageDataModule, limit: int) -> int:
    """Leave evenly chosen images of each split in the data module where there are more than `limit`.

    Returns:
        How many there were.
    """
    total = sum(map(len, data.splits.values()))
    if total > limit:
        few = {name: max(1, round(limit * len(rows) / total)) for name, rows in data.splits.items() if rows}
        data.splits = {
            name: [rows[i * len(rows) // few[name]] for i in range(few[name])] if rows else []
            for name, rows in data.splits.items()
        }
    return total


def check_files(data: ImageDataModule, found: Findings, total: int) -> None:
    """Load the training and validation images, and judge all files.

    Test images are read for their identity, and to see whether they can be read at all: no figure of them is used for a choice.

    Raises:
        UserError: where the images cannot be loaded.
    """
    level, data.on_bad_image = data.on_bad_image, "skip"  # the damaged ones have a line of their own; the rest goes on
    data.setup("fit")
    samples = data.source.samples
    bad = list(data.bad)
    places = [(name, row, digest) for name, part in data.loaded.items() for row, digest in part.digests.items()]
    rows = data.splits["test"]
    if rows:
        folder = data.source.path(samples[rows[0]])
        known, some_of = Verdicts(str(folder and folder.parent)), [samples[i] for i in rows]
        verdicts = survey(data.source, some_of, data.channels, known, hint=data.image_size)
        bad += [(samples[row].key, verdict.fault) for row, verdict in zip(rows, verdicts, strict=True) if verdict.fault]
        places += [
            ("test", row, verdict.digest) for row, verdict in zip(rows, verdicts, strict=True) if not verdict.fault
        ]
    if bad:
        words = f"{len(bad)} cannot be read: {some([f'{key} ({why})' for key, why in bad], 5)}"
        if level == "skip":
            found.look("images", f"{words}; they are left out", "put whole files in their place")
        else:
            found.stop("images", words, "remove them, or leave them out with --data.on_bad_image skip")
    else:
        found.ok("images", f"all {len(places):,} can be read")
    _check_copies(
        data, places, found, f" of the {len(places):,} looked at" if total > sum(map(len, data.splits.values())) else ""
    )
    _check_shapes(data, [row for _, row, _ in places], found)


def _check_copies(data: ImageDataModule, places: list[tuple[str, int, int]], found: Findings, of: str) -> None:
    """Files of equal content: across splits (leakage), under two names of classes, or merely twice."""
    samples = data.source.samples
    copies: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for split, row, digest in places:
        copies[digest].append((split, row))
    twice = [group for group in copies.values() if len(group) > 1]
    across = [group for group in twice if len({split for split, _ in group}) > 1]
    named_twice = [group for group in twice if len({samples[row].label for _, row in group}) > 1]
    within = [group for group in twice if group not in across]

    def words(groups: list[list[tuple[str, int]]]) -> str:
        return some([" = ".join(f"{samples[row].key} ({split})" for split, row in group) for group in groups])

    if across:
        found.stop(
            "leakage",
            f"{len(across)} images{of} are in more than one split, so the score flatters: {words(across)}",
            "keep one copy of each, or give the copies one group in a manifest (docs/guide.md)",
        )
    else:
        found.ok("leakage", f"no image{of} is in two splits")
    if named_twice:
        labels = sorted({str(samples[row].label) for group in named_twice for _, row in group})
        found.look(
            "copies",
            f"{len(named_twice)} have two classes ({some(labels)}): {words(named_twice)}",
            "keep the right one",
        )
    if within:
        found.look("copies", f"{len(within)} images are there twice in one split: {words(within)}", "keep one of each")


def _check_shapes(data: ImageDataModule, rows: list[int], found: Findings) -> None:
    """Small, long, and of another kind than data.channels; from the headers of the files."""
    small, long, kinds = [], [], Counter()
    for row in rows:
        sample = data.source.samples[row]
        path = data.source.path(sample)
        if path is None:
            height, width = data.source.content(sample).shape[:2]
        else:
            with Image.open(path) as image:  # reads the header only
                width, height = image.size
                kinds[_kind(image)] += 1
        if min(width, height) < data.image_size / 2:
            small.append(f"{sample.key} ({width}x{height})")
        if max(width, height) > LONG * min(width, height):
            long.append(f"{sample.key} ({width}x{height})")
    if small:
        words = f"{len(small)} of {len(rows):,} are smaller than half of image_size {data.image_size}: {some(small)}"
        found.look("sizes", words, "remove what is no photo, or lower --data.image_size")
    if long:
        words = f"{len(long)} are more than {LONG} times as long as wide: {some(long)}"
        found.look("sizes", words, f"cut them to what matters; data.resize is {data.resize}")
    if not small and not long:
        found.ok(
            "sizes", f"none too small for image_size {data.image_size}, none more than {LONG} times as long as wide"
        )
    wanted = {1: "grey", 3: "colour", 4: "colour with alpha"}[data.channels]
    others = {kind: count for kind, count in kinds.items() if kind != wanted}
    if others and kinds[wanted] < sum(kinds.values()) / 2:
        words = ", ".join(f"{count:,} are {kind}" for kind, count in others.items())
        found.look(
            "channels", f"data.channels {data.channels} is {wanted}, but {words}", "set data.channels to what they are"
        )


def _kind(image: Image.Image) -> str:
    if image.mode in ("1", "L", "I", "F", "I;16"):
        return "grey"
    alpha = image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info
    return "colour with alpha" if alpha else "colour"


def class_table(data: ImageDataModule) -> dict[str, dict[str, int]]:
    """Split -> class -> images, of all images."""
    table = {}
    for name, rows in data.splits.items():
        if rows:
            counts = Counter(data.source.samples[i].label for i in rows)
            table[name] = {label: counts[label] for label in data.class_names}
    return table


def check_classes(table: dict[str, dict[str, int]], sampler: str, weighted: bool, found: Findings) -> None:
    """Nearly empty, missing in validation, unequal.

    Args:
        table: See `class_table`.
        sampler: data.sampler.
        weighted: Whether the loss is weighted by class.
        found: Takes the lines.
    """
    train = table.get("train", {})
    if not train:
        return
    few = [f"{name} ({count})" for name, count in train.items() if count < max(FEW, median(train.values()) / 50)]
    if few:
        found.look(
            "classes",
            f"{len(few)} of {len(train)} have next to no training images: {some(few, 5)}",
            "add images, or leave them out",
        )
    missing = [name for name, count in table.get("val", {}).items() if not count]
    if missing:
        found.look(
            "classes",
            f"{len(missing)} have no validation image: {some(missing, 5)}",
            "add images, or raise data.val_size",
        )
    low, high = min(train, key=train.__getitem__), max(train, key=train.__getitem__)
    if train[high] > UNEQUAL * max(1, train[low]) and sampler != "balanced" and not weighted:
        words = f"{high} has {train[high]:,} training images, {low} {train[low]:,}"
        found.look("classes", words, "--model.class_weights balanced, or --data.sampler balanced")
    elif not few and not missing:
        found.ok("classes", f"{len(train)}, {train[low]:,} to {train[high]:,} training images each")


def stand_ins(data: ImageDataModule, splits: dict[str, list[int]]) -> None:
    """Put all images in the place of the chosen ones, unread, so that a step takes the time that it will take.

    In memory the chosen images stand for all; from files each is read when its batch comes.
    """
    for name in list(data.loaded):
        rows, chosen = splits[name], data.loaded[name].images
        if isinstance(chosen, MemoryImages):
            places = [i % len(chosen) for i in range(len(rows))]
            images = MemoryImages(chosen.pixels[places], rows, chosen.labels[places].tolist())
        else:
            number = {label: i for i, label in enumerate(data.class_names)}
            labels = [number[data.source.samples[i].label] for i in rows]
            samples = [data.source.samples[i] for i in rows]
            images = FileImages(data.source, samples, rows, labels, chosen.format, chosen.seed, chosen.area)
        data.loaded[name] = Loaded(images, dict.fromkeys(rows, 0), [])
    data.splits = splits
