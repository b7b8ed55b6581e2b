import dataclasses
import json
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from project.data.sources import Sample
from project.data.split import Splits, fingerprint, split_samples
from project.errors import UserError

ROOT = Path(__file__).parents[2]
counts = st.lists(st.integers(4, 40), min_size=1, max_size=5)  # images of each class
seeds = st.integers(0, 2**32)
# which patient and which class each image shows; a patient may have images of several classes
patients = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 2)), min_size=1, max_size=120)


@contextmanager
def one_line(*words: str):
    with pytest.raises(UserError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def make(class_sizes: list[int], split: str | None = None) -> list[Sample]:
    return [Sample(f"{c}/{i:03d}.png", f"c{c}", split) for c, size in enumerate(class_sizes) for i in range(size)]


def grouped(images: list[tuple[int, int]]) -> list[Sample]:
    return [Sample(f"{i:03d}.png", f"c{c}", None, f"p{patient}") for i, (patient, c) in enumerate(images)]


def by_class(samples: list[Sample], rows: list[int]) -> Counter:
    return Counter(samples[i].label for i in rows)


def keys(samples: list[Sample], splits: Splits) -> dict[str, set[str]]:
    return {name: {samples[i].key for i in rows} for name, rows in splits.items()}


def assert_complete(samples: list[Sample], splits: Splits) -> None:
    """Every image in exactly one split, positions ascending."""
    assert sorted(i for rows in splits.values() for i in rows) == list(range(len(samples)))
    assert all(rows == sorted(rows) for rows in splits.values())
    assert list(splits) == ["train", "val", "test"]


def assert_share(total: Counter, part: Counter, size: float) -> None:
    """Of every class within one image of the share, and at least one image on either side."""
    for label, count in total.items():
        assert abs(part[label] - count * size) < 1 + 1e-9
        assert 1 <= part[label] <= count - 1


def assert_whole_groups(samples: list[Sample], splits: Splits) -> None:
    homes = defaultdict(set)
    for name, rows in splits.items():
        for i in rows:
            homes[samples[i].group].add(name)
    assert all(len(home) == 1 for home in homes.values())


@settings(max_examples=40, deadline=None)
@given(counts, st.floats(0.001, 0.5), st.floats(0.001, 0.999), seeds)
def test_stratified_disjoint_and_complete(class_sizes, test_size, val_size, seed):
    samples = make(class_sizes)
    splits = split_samples(samples, test_size, val_size, split_seed=seed)
    assert_complete(samples, splits)
    everything = by_class(samples, range(len(samples)))
    test = by_class(samples, splits["test"])
    assert_share(everything, test, test_size)
    assert_share(everything - test, by_class(samples, splits["val"]), val_size)


@settings(max_examples=25, deadline=None)
@given(counts, st.floats(0.001, 0.999), seeds)
def test_sizes_of_zero_and_one(class_sizes, size, seed):
    samples = make(class_sizes)
    everything = by_class(samples, range(len(samples)))
    no_val = split_samples(samples, size, 0, split_seed=seed)
    assert_complete(samples, no_val)
    assert no_val["val"] == []
    assert_share(everything, by_class(samples, no_val["test"]), size)
    no_test = split_samples(samples, 0, size, split_seed=seed)
    assert_complete(samples, no_test)
    assert no_test["test"] == []
    assert_share(everything, by_class(samples, no_test["val"]), size)
    assert split_samples(samples, 0, 0)["train"] == list(range(len(samples)))
    assert split_samples(samples, 1, size) == {"train": [], "val": [], "test": list(range(len(samples)))}


def test_the_default_is_80_20_twice():
    samples = make([100, 50])
    assert {name: len(rows) for name, rows in split_samples(samples).items()} == {"train": 96, "val": 24, "test": 30}


def test_all_of_one_class_may_be_tested():
    assert split_samples(make([1, 1]), 1)["test"] == [0, 1]


def test_which_images_are_held_out_is_random():
    """Over many seeds each image is tested about equally often: no place in the list is preferred."""
    tested = Counter(i for seed in range(400) for i in split_samples(make([20]), 0.2, 0.2, split_seed=seed)["test"])
    assert sum(tested.values()) == 400 * 4
    chi_square = sum((tested[i] - 80) ** 2 / 80 for i in range(20))
    assert chi_square < 19 + 4 * (2 * 19) ** 0.5 + 8


@settings(max_examples=25, deadline=None)
@given(counts, seeds, st.randoms(use_true_random=False))
def test_the_order_of_the_samples_plays_no_part(class_sizes, seed, shuffler):
    samples = make(class_sizes)
    shuffled = shuffler.sample(samples, len(samples))
    for options in ({}, {"folds": 3, "fold": 1}):
        one, other = (split_samples(each, split_seed=seed, **options) for each in (samples, shuffled))
        assert keys(samples, one) == keys(shuffled, other)
        assert fingerprint(samples, one) == fingerprint(shuffled, other)


def test_groups_are_split_alike_in_any_order():
    samples = grouped([(i // 3, (i // 3) % 2) for i in range(90)])
    shuffled = random.Random(1).sample(samples, len(samples))
    for options in ({}, {"folds": 3, "fold": 1}):
        one, other = (split_samples(each, **options) for each in (samples, shuffled))
        assert keys(samples, one) == keys(shuffled, other)


def test_the_split_is_the_same_in_every_process():
    """With other hash seeds of Python; the package's own __init__ is left out, because it imports Lightning."""
    code = """
import json, sys, types
package = types.ModuleType("project.data")
package.__path__ = ["project/data"]
sys.modules["project.data"] = package
from project.data.sources import Sample
from project.data.split import fingerprint, split_samples
samples = [Sample(f"ä/{i}.png", str(i % 3), None, f"g{i // 2}" if i % 5 == 0 else None) for i in range(90)]
splits = [split_samples(samples), split_samples(samples, folds=4, fold=2, split_seed=7)]
print(json.dumps([splits, [fingerprint(samples, each) for each in splits]]))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    outputs = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    samples = [Sample(f"ä/{i}.png", str(i % 3), None, f"g{i // 2}" if i % 5 == 0 else None) for i in range(90)]
    splits = [split_samples(samples), split_samples(samples, folds=4, fold=2, split_seed=7)]
    here = [splits, [fingerprint(samples, each) for each in splits]]
    assert outputs[0] == outputs[1] == here


def test_another_seed_is_another_split_of_the_same_sizes():
    samples = make([30, 30])
    splits = [split_samples(samples, split_seed=seed) for seed in range(20)]
    assert len({tuple(split["test"]) for split in splits}) == 20
    assert len({tuple(split["val"]) for split in splits}) == 20
    assert len({tuple(map(len, split.values())) for split in splits}) == 1
    folds = {tuple(split_samples(samples, folds=5, split_seed=seed)["val"]) for seed in range(20)}
    assert len(folds) == 20


@settings(max_examples=30, deadline=None)
@given(counts, st.lists(st.sampled_from(["train", "val", "test", None]), min_size=200, max_size=200), seeds)
def test_what_is_given_stays_as_given(class_sizes, given_splits, seed):
    plain = make(class_sizes)
    samples = [dataclasses.replace(s, split=split) for s, split in zip(plain, given_splits, strict=False)]
    try:
        splits = split_samples(samples, split_seed=seed)
    except UserError as error:  # only for a class that the rest has too little of
        pool = Counter(s.label for s in samples if s.split in ("train", None))
        assert "too few images" in str(error) and min(pool.values()) < 4
        return
    assert_complete(samples, splits)
    for name in ("val", "test"):
        if stated := [i for i, s in enumerate(samples) if s.split == name]:
            assert splits[name] == stated
    assert not {samples[i].split for i in splits["train"]} & {"val", "test"}


def test_only_what_is_missing_is_split_off():
    train, val, test = (make([40, 40], split) for split in ("train", "val", "test"))
    rename = {"val": [dataclasses.replace(s, key="v" + s.key) for s in val[::4]]}
    rename["test"] = [dataclasses.replace(s, key="t" + s.key) for s in test[::4]]
    for names, sizes in ((["val"], (64, 20, 16)), (["test"], (64, 16, 20)), (["val", "test"], (80, 20, 20))):
        samples = train + [sample for name in names for sample in rename[name]]
        splits = split_samples(samples)
        assert tuple(len(splits[name]) for name in ("train", "val", "test")) == sizes
        assert_complete(samples, splits)


@settings(max_examples=40, deadline=None)
@given(patients, st.floats(0.05, 0.6), seeds)
def test_groups_never_cross(images, size, seed):
    samples = grouped(images)
    everything = by_class(samples, range(len(samples)))
    try:
        splits = split_samples(samples, size, 0, split_seed=seed)
    except UserError as error:
        assert any(f"{label} ({count})" in str(error) for label, count in everything.items())
        return
    assert_complete(samples, splits)
    assert_whole_groups(samples, splits)
    for part in ("train", "test"):
        assert set(by_class(samples, splits[part])) == set(everything)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 1)), min_size=60, max_size=80), seeds)
def test_shares_are_met_within_one_group(sizes, seed):
    """Patients with 1 to 5 images of one class each."""
    samples = grouped([(patient, c) for patient, (size, c) in enumerate(sizes) for _ in range(size)])
    everything = by_class(samples, range(len(samples)))
    assume(len(everything) == 2 and min(everything.values()) >= 40)
    splits = split_samples(samples, 0.2, 0.2, split_seed=seed)
    assert_whole_groups(samples, splits)
    test = by_class(samples, splits["test"])
    for label, count in everything.items():
        assert abs(test[label] - 0.2 * count) <= 5
        assert abs(by_class(samples, splits["val"])[label] - 0.2 * (count - test[label])) <= 5


def test_a_group_across_given_splits_is_an_error():
    samples = [dataclasses.replace(s, group=s.key) for s in make([20, 20])]
    across = [
        dataclasses.replace(samples[0], split="test", group="p7"),
        dataclasses.replace(samples[1], group="p7"),
        *samples[2:],
    ]
    with one_line("group 'p7'", "test", "same split"):
        split_samples(across)
    with one_line("group 'p7'", "test", "same split"):
        split_samples(across, folds=2)
    together = [dataclasses.replace(across[1], split="test"), across[0], *samples[2:]]
    assert split_samples(together)["test"] == [0, 1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(8, 40), min_size=1, max_size=5), st.integers(2, 6), st.sampled_from([0, 0.2]), seeds)
def test_folds_partition_what_is_not_test(class_sizes, folds, test_size, seed):
    samples = make(class_sizes)
    parts = [split_samples(samples, test_size, 0.5, folds, fold, seed) for fold in range(folds)]
    rest = set(range(len(samples))) - set(parts[0]["test"])
    total = by_class(samples, rest)
    for splits in parts:
        assert_complete(samples, splits)
        assert splits["test"] == parts[0]["test"]
        for label, count in total.items():
            assert abs(by_class(samples, splits["val"])[label] - count / folds) < 1
    assert sorted(i for splits in parts for i in splits["val"]) == sorted(rest)
    sizes = [len(splits["val"]) for splits in parts]
    assert max(sizes) - min(sizes) <= len(class_sizes)


@settings(max_examples=30, deadline=None)
@given(patients, st.integers(2, 4), seeds)
def test_groups_never_cross_folds(images, folds, seed):
    samples = grouped(images)
    groups = {label: {s.group for s in samples if s.label == label} for label in by_class(samples, range(len(samples)))}
    few = [label for label, names in groups.items() if len(names) < folds]  # they would be missing from a fold
    try:
        parts = [split_samples(samples, 0, 0, folds, fold, seed) for fold in range(folds)]
    except UserError as error:
        assert few and all(f"{label} (" in str(error) for label in few)
        return
    assert not few
    assert sorted(i for splits in parts for i in splits["val"]) == list(range(len(samples)))
    for splits in parts:
        assert_complete(samples, splits)
        assert_whole_groups(samples, splits)
        assert splits["val"] and splits["train"]


def test_folds_of_large_and_small_groups_are_even():
    """Two bursts of ten and ten single images: the single ones make up for the third burst that is not there."""
    samples = grouped([(0, 0)] * 10 + [(1, 0)] * 10 + [(patient, 0) for patient in range(2, 12)])
    for seed in range(20):
        assert [len(split_samples(samples, 0, 0, 3, fold, seed)["val"]) for fold in range(3)] == [10, 10, 10]


def test_folds_take_the_place_of_a_given_validation_set_but_leave_the_test_set():
    samples = make([20, 20])
    samples = [dataclasses.replace(s, split=("val", "test", None, "train")[i % 4]) for i, s in enumerate(samples)]
    test = [i for i in range(40) if i % 4 == 1]
    parts = [split_samples(samples, folds=3, fold=fold) for fold in range(3)]
    assert all(splits["test"] == test for splits in parts)
    assert sorted(i for splits in parts for i in splits["val"]) == [i for i in range(40) if i % 4 != 1]


@settings(max_examples=30, deadline=None)
@given(counts, seeds, st.data())
def test_fingerprint_changes_exactly_with_keys_labels_and_splits(class_sizes, seed, data):
    samples = make(class_sizes)
    splits = split_samples(samples, split_seed=seed)
    before = fingerprint(samples, splits)
    assert len(before) == 12 and int(before, 16) >= 0
    assert fingerprint([dataclasses.replace(s, group="g", split="val") for s in samples], splits) == before
    assert fingerprint(samples, {name: rows[::-1] for name, rows in reversed(splits.items())}) == before

    i = data.draw(st.integers(0, len(samples) - 1))
    for change in ({"key": "new.png"}, {"label": "new"}):
        assert (
            fingerprint([*samples[:i], dataclasses.replace(samples[i], **change), *samples[i + 1 :]], splits) != before
        )
    home = next(name for name, rows in splits.items() if i in rows)
    for other in set(splits) - {home}:
        moved = {**splits, home: [row for row in splits[home] if row != i], other: [*splits[other], i]}
        assert fingerprint(samples, moved) != before
    assert fingerprint(samples, {**splits, home: [row for row in splits[home] if row != i]}) != before


def test_all_classes_with_too_few_images_are_named_with_all_their_images():
    with one_line("too few images", "split off: c1 (1);", "data.rare_classes"):
        split_samples(make([9, 1]))
    with one_line("too few images", "split off: c1 (2), c3 (1), c10 (2);"):  # the test set has taken one of two
        split_samples(make([9, 2, 9, 1, *[9] * 6, 2]))
    with one_line("too few images", "split off: c1 (4), c2 (3);"):
        split_samples(make([9, 4, 3]), 0, folds=5)


@pytest.mark.parametrize("options", [{}, {"folds": 4}, {"test_folds": 4}, {"val_size": 0}, {"test_size": 0}])
def test_rare_classes_are_trained_on_or_left_out(options):
    samples = make([20, 1, 20, 2, 0, 3])
    plain = [s for s in samples if s.label in ("c0", "c2")]
    few = {s.label for s in samples if s.label not in ("c0", "c2")}
    for choice in ("train", "leave_out"):
        splits = split_samples(samples, **options, rare_classes=choice)
        alone = split_samples(plain, **options)
        for name in ("val", "test"):  # the other classes are split as if they were alone
            here = [samples[i] for i in splits[name] if samples[i].label in ("c0", "c2")]
            assert options in ({"folds": 4}, {"test_folds": 4}) or here == [plain[i] for i in alone[name]]
        trained = by_class(samples, splits["train"])
        assert trained["c1"] == (choice == "train")
        for label in few:  # trained on, or nowhere; what is large enough is everywhere
            homes = {name for name, rows in splits.items() if label in by_class(samples, rows)}
            assert not homes or "train" in homes
        if choice == "train":
            assert sorted(i for rows in splits.values() for i in rows) == list(range(len(samples)))
        else:
            homes = {name for name, rows in splits.items() for i in rows if samples[i].label == "c1"}
            assert not homes


def test_nothing_but_rare_classes_is_an_error_of_the_classes():
    assert split_samples(make([1, 1]), rare_classes="leave_out") == {"train": [], "val": [], "test": []}


def test_too_few_groups_name_the_class():
    samples = make([20]) + [dataclasses.replace(s, label="c9", key="9" + s.key, group="p") for s in make([20])]
    for size in (0.2, 0):
        with one_line("groups", "c9 (20)", "data.rare_classes"):
            split_samples(samples, size)
        splits = split_samples(samples, size, rare_classes="train")
        assert by_class(samples, splits["train"])["c9"] == 20 and by_class(samples, splits["val"])["c0"]
    with one_line("too few images, or groups", "c0 (20)"):  # in two groups
        split_samples([dataclasses.replace(s, group=s.key[2:4]) for s in make([20])], 0, folds=3)


@pytest.mark.parametrize("name", ["fold", "test_fold"])
@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (0, 0), (-2, 0), (5, 5), (5, -1), (None, 1)])
def test_folds_out_of_range(name, folds, fold):
    with one_line(f"data.{name}s", f"not {folds} and {fold}"):
        split_samples(make([20, 20]), **{f"{name}s": folds, name: fold})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(12, 30), min_size=2, max_size=4), st.integers(2, 5), seeds)
def test_outer_folds_partition_all_images_and_each_keeps_a_validation_part(class_sizes, folds, seed):
    samples = make(class_sizes)
    parts = [
        split_samples(samples, 0.5, 0.25, split_seed=seed, test_folds=folds, test_fold=fold) for fold in range(folds)
    ]
    assert sorted(i for splits in parts for i in splits["test"]) == list(range(len(samples)))
    for splits in parts:
        assert sorted([*splits["train"], *splits["val"], *splits["test"]]) == list(range(len(samples)))
        tested = Counter(samples[i].label for i in splits["test"])
        validated = Counter(samples[i].label for i in splits["val"])
        for label, count in Counter(sample.label for sample in samples).items():
            assert abs(tested[label] - count / folds) < 1
            assert abs(validated[label] - 0.25 * (count - tested[label])) <= 0.5


def test_inner_folds_lie_inside_an_outer_training_part():
    samples = make([30, 30])
    inner = [split_samples(samples, folds=3, fold=fold, test_folds=5, test_fold=2) for fold in range(3)]
    assert len({tuple(splits["test"]) for splits in inner}) == 1 and len(inner[0]["test"]) == 12
    assert sorted(i for splits in inner for i in splits["val"]) == sorted(set(range(60)) - set(inner[0]["test"]))


@settings(max_examples=30, deadline=None)
@given(patients, st.integers(2, 4), seeds)
def test_groups_never_cross_outer_folds(images, folds, seed):
    samples = grouped(images)
    try:
        parts = [
            split_samples(samples, 0, 0, split_seed=seed, test_folds=folds, test_fold=fold) for fold in range(folds)
        ]
    except UserError as error:
        assert "data.test_folds" in str(error) or "too few images" in str(error)
        return
    for splits in parts:
        assert not {samples[i].group for i in splits["test"]} & {samples[i].group for i in splits["train"]}


def test_a_given_test_set_stays_out_of_outer_folds():
    samples = make([10, 10], "train") + [Sample(f"t/{i}.png", f"c{i % 2}", "test") for i in range(8)]
    for fold in range(2):
        splits = split_samples(samples, test_folds=2, test_fold=fold)
        assert max(i for rows in splits.values() for i in rows) < 20 and len(splits["test"]) == 10
