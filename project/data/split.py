"""Train, validation and test (advice A2): stratified, by a seed of its own, the same on every machine."""

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from project.data.sources import Sample
from project.errors import UserError

SPLITS = ("train", "val", "test")
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
    """Divide the samples; what the source gives stays as given, what is missing is split off the training images.

    First the test set (`test_size` of all), then the validation set (`val_size` of the rest): 0.2 and 0.2 are the guide's 80/20,
    twice. In every class each share is met within one image, as far as groups allow. The order of images is a hash
    of (split_seed, key), so neither the file system's order nor the platform plays a part.

    Args:
        samples: All images with their labels.
        test_size: Share of the images for the test set, 0 to 1; 0 makes none, 1 makes every image a test image.
        val_size: Share of the rest for validation, 0 to below 1.
        folds: k of k-fold cross-validation over what is not test; it takes the place of val_size and of a given val split.
        fold: Which of the folds validates, 0 to folds - 1.
        split_seed: Seed of the split alone, so that several training seeds compare on one split.
        test_folds: k of the outer folds of a nested evaluation; it takes the place of test_size. A given test set is left out
            altogether, so that it stays unseen until everything has been chosen.
        test_fold: Which of the outer folds tests, 0 to test_folds - 1.

    Raises:
        UserError: for a size out of range, or a class with too few images to be split.
    """
    _check(test_size, val_size)
    _check_folds("fold", folds, fold)
    _check_folds("test_fold", test_folds, test_fold)
    given = {name: [i for i, sample in enumerate(samples) if sample.split == name] for name in SPLITS}
    pool = sorted(given["train"] + [i for i, sample in enumerate(samples) if sample.split is None])
    order = _order(samples, split_seed)

    test = given["test"]
    if test_folds is not None:
        chosen = _fold_of(samples, pool, order, test_folds, test_fold, "test_folds")
        test, pool = sorted(chosen), [i for i in pool if i not in chosen]
    elif not test and test_size > 0:
        chosen = set(pool) if test_size == 1 else _held_out(samples, pool, order, test_size, "test_size")
        test, pool = sorted(chosen), [i for i in pool if i not in chosen]
    val = given["val"]
    if folds is not None:
        pool, val = sorted(pool + val), []
        chosen = _fold_of(samples, pool, order, folds, fold)
    else:
        chosen = _held_out(samples, pool, order, val_size, "val_size") if not val and val_size > 0 and pool else set()
    val = sorted([*val, *chosen])
    splits = {"train": [i for i in pool if i not in chosen], "val": val, "test": test}
    _check_groups(samples, splits)
    return splits


def _check(test_size: float, val_size: float) -> None:
    if not 0 <= test_size <= 1:
        raise UserError(f"data.test_size must lie between 0 and 1 (a share of the images), not {test_size}")
    if not 0 <= val_size < 1:
        raise UserError(f"data.val_size must be at least 0 and below 1 (a share of the images), not {val_size}")


def _check_folds(key: str, folds: int | None, fold: int) -> None:
    """`key` is fold or test_fold."""
    if folds is not None and folds < 2:
        raise UserError(f"data.{key}s must be 2 or more, not {folds}")
    if folds is None and fold:
        raise UserError(f"data.{key} is {fold}, but there are no folds: set data.{key}s as well")
    if not 0 <= fold < (folds or 1):
        raise UserError(
            f"data.{key} must lie between 0 and {(folds or 1) - 1}, not {fold}; data.{key}s says how many there are"
        )


def _check_groups(samples: Sequence[Sample], splits: Splits) -> None:
    """A group can only cross splits where the source gives a split to some of its images."""
    home: dict[str, str] = {}
    for name, rows in splits.items():
        for group in filter(None, (samples[i].group for i in rows)):
            if home.setdefault(group, name) != name:
                raise UserError(
                    f"group {group!r} is in {home[group]} and in {name}: give all of its images the same split"
                )


def _order(samples: Sequence[Sample], seed: int) -> Callable[[str], str]:
    """A seeded pseudo-random rank for a name; blake2b, because Python's own hash differs from process to process."""
    return lambda name: hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).hexdigest()


def _units(samples: Sequence[Sample], pool: list[int], order: Callable[[str], str]) -> list[list[int]]:
    """What may not be divided: the groups, and every image without one; in seeded order."""
    units: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i in pool:
        sample = samples[i]
        units[("group", sample.group) if sample.group else ("image", sample.key)].append(i)
    return [units[name] for name in sorted(units, key=lambda name: order("/".join(name)))]


def _held_out(
    samples: Sequence[Sample], pool: list[int], order: Callable[[str], str], size: float, key: str
) -> set[int]:
    """The positions held out: per class the nearest whole number of images to `size`, at least one on either side."""
    counts = Counter(samples[i].label for i in pool)
    target = {label: _share(count, size) for label, count in counts.items()}
    for label, count in counts.items():
        if count < 2:
            raise UserError(
                f"class {label!r} has too few images to split: {count}; add images, or give the split yourself "
                f"(root/train, root/val, root/test), or set data.{key} to 0"
            )
    taken: Counter[str | None] = Counter()
    chosen: set[int] = set()
    for unit in _units(samples, pool, order):
        want = Counter(samples[i].label for i in unit)
        # A single image is taken while its class lacks one; a group when that brings the classes nearer to their targets.
        gain = sum(abs(target[c] - taken[c]) - abs(target[c] - taken[c] - n) for c, n in want.items())
        if gain > 0:
            chosen.update(unit)
            taken.update(want)
    left = Counter(samples[i].label for i in pool if i not in chosen)
    for label in counts:
        if not taken[label] or not left[label]:
            raise UserError(
                f"class {label!r} cannot be split: its {counts[label]} images form too few groups; add some, or set data.{key} to 0"
            )
    return chosen


def _share(count: int, size: float) -> int:
    return min(max(round(count * size), 1), count - 1)


def _fold_of(
    samples: Sequence[Sample], pool: list[int], order: Callable[[str], str], folds: int, fold: int, key: str = "folds"
) -> set[int]:
    """The positions of one fold. Every unit goes to the fold that has the fewest images of its classes so far."""
    counts = Counter(samples[i].label for i in pool)
    for label, count in counts.items():
        if count < folds:
            raise UserError(
                f"class {label!r} has too few images for {folds} folds: {count}; add images or lower data.{key}"
            )
    have: list[Counter[str | None]] = [Counter() for _ in range(folds)]
    members: list[list[int]] = [[] for _ in range(folds)]
    units = _units(samples, pool, order)
    for unit in sorted(units, key=len, reverse=True):  # the large groups first: the small ones then even out
        want = Counter(samples[i].label for i in unit)
        where = min(range(folds), key=lambda f: (sum(have[f][c] * n for c, n in want.items()), len(members[f])))
        have[where].update(want)
        members[where] += unit
    if any(not part for part in members):
        raise UserError(f"data.{key} is {folds}, but there are only {len(units)} groups; lower data.{key}")
    return set(members[fold])


def fingerprint(samples: Sequence[Sample], splits: Splits) -> str:
    """Twelve hexadecimal digits that name the split: equal exactly when keys, labels and their splits are."""
    lines = sorted(f"{samples[i].key}\t{samples[i].label}\t{name}" for name, rows in splits.items() for i in rows)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=6).hexdigest()


def save_split(path: Path, samples: Sequence[Sample], splits: Splits) -> None:
    """Write split.csv (path,label,split,group), which the source Manifest reads once it lies in the images' folder."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "split", "group"])
        where = {i: name for name, rows in splits.items() for i in rows}
        for i in sorted(where):
            table.writerow([samples[i].key, samples[i].label, where[i], samples[i].group or ""])
