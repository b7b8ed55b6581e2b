"""Train, validation and test (advice A2): stratified, with a seed of its own, the same on every machine."""

import csv
import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from project.data.sources import Sample, natural
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
    rare_classes: str = "error",
) -> Splits:
    """Split the samples. A split given by the source stays as it is; a missing one is split off the training images.

    First the test set (`test_size` of all), then validation (`val_size` of the rest), each class by itself, in order
    of a hash of (split_seed, key). A UserError for a fold out of range, and for classes with too few images, unless
    `rare_classes` keeps them in training (train) or leaves them out (leave_out) instead of an error.
    """
    few = more = set()
    pool, test, val = (
        [i for i, sample in enumerate(samples) if (sample.split or "train") == name]
        for name in ("train", "test", "val")
    )
    counts = Counter(samples[i].label for i in pool)
    if test_folds is not None or not test:
        test, few = _hold_out(samples, pool, split_seed, "data.test_fold", test_size, test_folds, test_fold)
    pool = sorted(set(pool).difference(test))
    if folds is not None:
        pool, val = sorted(pool + val), []
    if not val:
        val, more = _hold_out(samples, pool, split_seed, "data.fold", val_size, folds, fold)
    if (rare := few | more) and rare_classes == "error":
        raise UserError(
            "classes with too few images, or groups of them, for training and each set or fold that is split off: "
            f"{', '.join(f'{label} ({counts[label]})' for label in sorted(rare, key=natural))}; add images, or set "
            "data.rare_classes to train (to keep them in training) or to leave_out"
        )
    splits = {"train": sorted(set(pool).difference(val)), "val": val, "test": test}
    if rare_classes == "leave_out":
        splits = {name: [i for i in rows if samples[i].label not in rare] for name, rows in splits.items()}
    homes = Counter(group for rows in splits.values() for group in {samples[i].group for i in rows} if group)
    for group, count in homes.items():
        if count > 1:  # only where the source gives a split to some of its images
            raise UserError(f"group {group!r} is in {count} of train, val and test: give its images the same split")
    return splits


def _hold_out(
    samples: Sequence[Sample], pool: list[int], seed: int, key: str, size: float, folds: int | None, fold: int
) -> tuple[list[int], set]:
    """The positions in the pool of one fold, or of a share: of each class the nearest whole number to `size`.

    And the classes that are too small, so that none would be there, or none in the rest: they are all in the rest.
    """
    if folds in (0, 1) or not 0 <= fold < (folds or 1):
        raise UserError(f"{key}s must be 2 or more and above {key} (0 or more), not {folds} and {fold}")
    if folds is None and size in (0, 1):
        return (pool if size else []), set()

    def order(i: int) -> bytes:
        unit = f"group/{samples[i].group}" if samples[i].group else f"image/{samples[i].key}"
        # blake2b, because Python's own hash differs from process to process
        return hashlib.blake2b(f"{seed}/{unit}".encode(), digest_size=16).digest()

    # What may not be divided: the groups, and every image without one; in seeded order.
    units = [list(unit) for _, unit in groupby(sorted(pool, key=order), order)]
    units = [(unit, Counter(samples[i].label for i in unit)) for unit in units]
    chosen, taken = [], Counter()
    if folds is None:
        counts = Counter(samples[i].label for i in pool)
        target = {label: min(max(round(count * size), 1), count - 1) for label, count in counts.items()}
        for unit, images in units:
            # A single image is taken while its class lacks one; a group when its classes come nearer to their targets.
            if sum(abs(target[c] - taken[c]) - abs(target[c] - taken[c] - n) for c, n in images.items()) > 0:
                chosen += unit
                taken += images
    else:
        counts = Counter(label for _, images in units for label in images)  # units with images of the class
        # Every unit goes to the fold with the fewest images of its classes so far; large ones first, to come out even.
        parts = [Counter() for _ in range(folds)]
        for unit, images in sorted(units, key=lambda unit: -len(unit[0])):
            home = min(parts, key=lambda part: (sum(part[c] * n for c, n in images.items()), part.total()))
            home.update(images)
            if home is parts[fold]:
                chosen += unit
    few = {label for label, count in counts.items() if (count < folds if folds else not 0 < taken[label] < count)}
    return sorted(i for i in chosen if samples[i].label not in few), few


def fingerprint(samples: Sequence[Sample], splits: Splits) -> str:
    """Twelve hexadecimal digits that name the split: equal exactly when keys, labels and their splits are."""
    lines = sorted(f"{samples[i].key}\t{samples[i].label}\t{name}" for name, rows in splits.items() for i in rows)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=6).hexdigest()


def save_split(path: Path, samples: Sequence[Sample], splits: Splits) -> None:
    """Write split.csv (path,label,split,group), which the source Manifest reads once it lies in the images' folder."""
    table = [(samples[i].key, samples[i].label, name, samples[i].group) for name, rows in splits.items() for i in rows]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split", "group"), *sorted(table)])
