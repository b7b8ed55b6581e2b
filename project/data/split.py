"""Train, validation and test (advice A2): stratified, with a seed of its own, the same on every machine."""

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from project.data.sources import Sample
from project.errors import UserError

Splits = dict[str, list[int]]  # split -> positions in the list of samples, ascending


def split_samples(
    samples: Sequence[Sample],
    test_size: float = 0.2,
    val_size: float = 0.2,
    folds: int | None = None,
    fold: int = 0,
    split_seed: int = 0,
    test_folds: int | None = None,
    test_fold: int = 0,
) -> Splits:
    """Split the samples. A split given by the source stays as it is; a missing one is split off the training images.

    First the test set (`test_size` of all), then validation (`val_size` of the rest). In every class each share is met
    within one image, as far as groups allow. The order of images is a hash of (split_seed, key), so it depends neither
    on the file system nor on the platform.

    The arguments are those of ImageDataModule.

    Raises a UserError for a fold out of range, or a class with too few images to be split.
    """
    for key, count, number in (("fold", folds, fold), ("test_fold", test_folds, test_fold)):
        if count in (0, 1) or not 0 <= number < (count or 1):
            raise UserError(
                f"data.{key}s must be 2 or more, and data.{key} from 0 to below it, not {count} and {number}"
            )
    given = {
        name: [i for i, sample in enumerate(samples) if sample.split == name] for name in ("train", "val", "test", None)
    }
    pool, test, val = sorted(given["train"] + given[None]), given["test"], given["val"]
    if test_folds is not None:
        test = _fold_of(samples, pool, split_seed, test_folds, test_fold, "test_folds")
    elif not test:
        test = pool if test_size == 1 else _held_out(samples, pool, split_seed, test_size, "test_size")
    pool = sorted(set(pool).difference(test))
    if folds is not None:
        pool = sorted(pool + val)
        val = _fold_of(samples, pool, split_seed, folds, fold, "folds")
    elif not val:
        val = _held_out(samples, pool, split_seed, val_size, "val_size")
    splits = {"train": sorted(set(pool).difference(val)), "val": val, "test": test}
    homes = Counter(group for rows in splits.values() for group in {samples[i].group for i in rows} if group)
    for group, count in homes.items():
        if count > 1:  # only where the source gives a split to some of its images
            raise UserError(
                f"group {group!r} is in {count} of train, val and test: give all of its images the same split"
            )
    return splits


def _units(samples: Sequence[Sample], pool: list[int], seed: int) -> list[list[int]]:
    """What may not be divided: the groups, and every image without one; in seeded order."""
    units = defaultdict(list)
    for i in pool:
        units[f"group/{samples[i].group}" if samples[i].group else f"image/{samples[i].key}"].append(i)
    # blake2b, because Python's own hash differs from process to process
    order = sorted(units, key=lambda name: hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest())
    return [units[name] for name in order]


def _count(samples: Sequence[Sample], rows: list[int]) -> Counter[str | None]:
    """Images of each class."""
    return Counter(samples[i].label for i in rows)


def _held_out(samples: Sequence[Sample], pool: list[int], seed: int, size: float, key: str) -> list[int]:
    """The positions held out: per class the nearest whole number of images to `size`, at least one on either side."""
    if size == 0:
        return []
    counts, taken, chosen = _count(samples, pool), Counter(), []
    target = {label: min(max(round(count * size), 1), count - 1) for label, count in counts.items()}
    for unit in _units(samples, pool, seed):
        images = _count(samples, unit)
        # A single image is taken while its class lacks one; a group when its classes come nearer to their targets.
        if sum(abs(target[c] - taken[c]) - abs(target[c] - taken[c] - n) for c, n in images.items()) > 0:
            chosen += unit
            taken += images
    for label, count in counts.items():
        if not 0 < taken[label] < count:
            raise UserError(
                f"class {label!r} has too few images, or groups of them, to split: {count}; add images, give the split "
                f"yourself (root/train, root/val, root/test), or set data.{key} to 0"
            )
    return sorted(chosen)


def _fold_of(samples: Sequence[Sample], pool: list[int], seed: int, folds: int, fold: int, key: str) -> list[int]:
    """The positions of one fold. Every unit goes to the fold that has the fewest images of its classes so far."""
    units, counts = _units(samples, pool, seed), _count(samples, pool)
    label = min(counts, key=counts.__getitem__, default="")
    if min(len(units), counts[label]) < folds:
        raise UserError(
            f"data.{key} is {folds}, but class {label!r} has {counts[label]} images, and there are {len(units)} images "
            f"or groups in all; add images or lower data.{key}"
        )
    parts, have = [[] for _ in range(folds)], [Counter() for _ in range(folds)]
    for unit in sorted(units, key=len, reverse=True):  # the large groups first: the small ones then even out
        images = _count(samples, unit)
        home = min(range(folds), key=lambda f: (sum(have[f][c] * n for c, n in images.items()), len(parts[f])))
        have[home] += images
        parts[home] += unit
    return sorted(parts[fold])


def fingerprint(samples: Sequence[Sample], splits: Splits) -> str:
    """Twelve hexadecimal digits that name the split: equal exactly when keys, labels and their splits are."""
    lines = sorted(f"{samples[i].key}\t{samples[i].label}\t{name}" for name, rows in splits.items() for i in rows)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=6).hexdigest()


def save_split(path: Path, samples: Sequence[Sample], splits: Splits) -> None:
    """Write split.csv (path,label,split,group), which the source Manifest reads once it lies in the images' folder."""
    home = {i: name for name, rows in splits.items() for i in rows}
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "split", "group"])
        table.writerows([samples[i].key, samples[i].label, home[i], samples[i].group or ""] for i in sorted(home))
