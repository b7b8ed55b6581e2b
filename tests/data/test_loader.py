import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from project.data.loader import EpochBatches, ResumableLoader
from project.data.memory import INDEX_LIMIT, Images
from project.data.sources import Sample, Source
from project.data.transforms import ImageFormat

sizes = st.integers(1, 60)
batch_sizes = st.integers(1, 12)


def positions(count: int) -> list[int]:
    """Some ascending positions with gaps, as a split of a larger list has them."""
    return [3 * i + i % 2 for i in range(count)]


def keys(batches: EpochBatches, epoch: int = 0) -> list[int]:
    """The keys of an epoch in order; every batch but the last is full."""
    batches.set_epoch(epoch)
    given = list(batches)
    assert len(given) == len(batches)
    assert all(len(batch) == batches.batch_size for batch in given[:-1])
    assert all(1 <= len(batch) <= batches.batch_size for batch in given)
    assert {epoch_of for batch in given for epoch_of, _ in batch} <= {epoch}
    return [key for batch in given for _, key in batch]


@settings(max_examples=50, deadline=None)
@given(sizes, batch_sizes, st.integers(0, 5))
def test_every_image_once_an_epoch(count, batch_size, epoch):
    index = positions(count)
    assert keys(EpochBatches(index, batch_size, train=False), epoch) == index
    trained = keys(EpochBatches(index, batch_size, train=True), epoch)
    alone = count % batch_size == 1 and count > batch_size  # batch norm cannot take a batch of one image
    assert len(trained) == len(set(trained)) == count - alone
    assert set(trained) <= set(index)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 60), batch_sizes, st.integers(0, 3), st.integers(1, 4), st.integers(0, 9))
def test_sequential_training_keeps_the_order(count, batch_size, epoch, ranks, start):
    """In every epoch, on one rank or shared out, and from where an interrupted epoch stopped."""
    index = positions(count)
    whole = [
        keys(EpochBatches(index, batch_size, True, 1, None, rank, ranks, shuffle=False), epoch) for rank in range(ranks)
    ]
    for rank, mine in enumerate(whole):
        expected = [*index, *(key + INDEX_LIMIT for key in index)][rank::ranks][
            : -(-count // ranks)
        ]  # a few come twice
        assert mine == (
            expected if len(mine) == len(expected) else expected[:-1]
        )  # one image left over cannot be a batch
        assert len(expected) - len(mine) == (len(expected) % batch_size == 1 and len(expected) > batch_size)
        resumed = EpochBatches(index, batch_size, True, 1, None, rank, ranks, shuffle=False)
        resumed.set_epoch(epoch)
        resumed.start = start % len(resumed)
        assert [key for batch in resumed for _, key in batch] == mine[(start % len(resumed)) * batch_size :]
        assert [key for batch in resumed for _, key in batch] == mine  # the next pass is whole again


def test_a_last_image_alone_is_left_out_in_training_only():
    for count, batches in ((9, 2), (10, 3), (12, 3), (1, 1), (4, 1), (5, 1)):
        assert len(EpochBatches(positions(count), 4, train=True)) == batches
        assert len(EpochBatches(positions(count), 4, train=False)) == -(-count // 4)
    assert len(EpochBatches(positions(7), 1, train=True)) == 7  # where a single image is what was asked for
    left_out = {(set(range(9)) - set(keys(EpochBatches(range(9), 4, True), epoch))).pop() for epoch in range(60)}
    assert left_out == set(range(9))  # another one each epoch


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 60), st.integers(0, 2**32 - 1), st.integers(0, 1000), batch_sizes, st.booleans())
def test_the_order_depends_on_seed_and_epoch_alone(count, seed, epoch, batch_size, weighted):
    index, weights = positions(count), torch.arange(1.0, count + 1) if weighted else None
    used = EpochBatches(index, batch_size, True, seed, weights)
    for before in range(3):
        keys(used, before)
    torch.manual_seed(epoch)  # the global generator plays no part
    fresh = EpochBatches(index, batch_size, True, seed, weights)
    assert keys(used, epoch) == keys(fresh, epoch) == keys(fresh, epoch)
    whole = keys(EpochBatches(index, count, True, seed, weights), epoch)
    assert keys(fresh, epoch) == whole[: len(keys(fresh, epoch))]


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(keys(EpochBatches(range(30), 8, True, seed), epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100
    firsts = Counter(keys(EpochBatches(range(10), 5, True, seed=3), epoch)[0] for epoch in range(1000))
    assert sum((firsts[i] - 100) ** 2 / 100 for i in range(10)) < 9 + 4 * 18**0.5 + 8


@settings(max_examples=50, deadline=None)
@given(sizes, batch_sizes, st.integers(1, 7))
def test_evaluation_shares_out_every_image_exactly_once(count, batch_size, ranks):
    index = positions(count)
    parts = [keys(EpochBatches(index, batch_size, False, rank=rank, world_size=ranks)) for rank in range(ranks)]
    assert sorted(itertools.chain(*parts)) == index
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(max_examples=50, deadline=None)
@given(sizes, st.integers(2, 12), st.integers(1, 7), st.integers(0, 3))
def test_training_gives_every_rank_equally_many(count, batch_size, ranks, epoch):
    """DDP waits for ever for a rank that has fewer batches."""
    index = positions(count)
    samplers = [EpochBatches(index, batch_size, True, rank=rank, world_size=ranks) for rank in range(ranks)]
    parts = [keys(sampler, epoch) for sampler in samplers]
    assert len({len(sampler) for sampler in samplers}) == 1
    assert len({len(part) for part in parts}) == 1
    each = -(-count // ranks)
    alone = each % batch_size == 1 and each > batch_size
    assert len(parts[0]) == each - alone
    drawn = list(itertools.chain(*parts))
    assert len(drawn) == len(set(drawn))  # an image that is drawn again has a key of its own
    assert {key % INDEX_LIMIT for key in drawn} <= set(index)
    if not alone:
        times = Counter(key % INDEX_LIMIT for key in drawn)
        assert set(times) == set(index) and max(times.values()) - min(times.values()) <= 1
        order = [key for together in zip(*parts, strict=True) for key in together]
        assert order[:count] == [key for _, key in next(iter_whole(index, count, epoch))]


def iter_whole(index, count, epoch):
    whole = EpochBatches(index, count, True)
    whole.set_epoch(epoch)
    return iter(whole)


def test_weights_draw_the_classes_evenly():
    labels = torch.tensor([0] * 10 + [1] * 100 + [2] * 890)
    sampler = EpochBatches(range(1000), 50, True, weights=(1 / torch.bincount(labels))[labels])
    classes, images = Counter(), Counter()
    for epoch in range(20):
        drawn = keys(sampler, epoch)
        assert len(drawn) == 1000
        images.update(key % INDEX_LIMIT for key in drawn)
        classes.update(labels[key % INDEX_LIMIT].item() for key in drawn)
    expected = 20_000 / 3
    assert sum((classes[c] - expected) ** 2 / expected for c in range(3)) < 2 + 4 * 2 + 8
    rare = [images[i] for i in range(10)]
    assert sum((n - expected / 10) ** 2 / (expected / 10) for n in rare) < 9 + 4 * 18**0.5 + 8


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 3), st.integers(0, 100))
def test_repeats_are_counted(count, ranks, epoch):
    index = positions(count)
    weights = torch.tensor([1000.0] + [1.0] * (count - 1))  # the first image again and again
    parts = [keys(EpochBatches(index, 1, True, 0, weights, rank, ranks), epoch) for rank in range(ranks)]
    drawn = [key for together in zip(*parts, strict=True) for key in together]
    seen = Counter()
    for key in drawn:  # in the order of the epoch the n-th time carries the number n
        repeat, image = divmod(key, INDEX_LIMIT)
        assert image in index and repeat == seen[image]
        seen[image] += 1
    assert len(set(drawn)) == len(drawn)


def loader(count: int, batch_size: int, train: bool = True, trained=int, **options) -> ResumableLoader:
    index = positions(count)
    pixels = torch.arange(count).to(torch.uint8).view(-1, 1, 1, 1)
    images = Images(None, index, torch.arange(count), None, pixels)
    return wrapped(images, EpochBatches(index, batch_size, train, **options), 0, trained)


def wrapped(images: Images, batches: EpochBatches, workers: int, trained) -> ResumableLoader:
    """As the data module makes it."""
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    return ResumableLoader(DataLoader(images, batch_sampler=batches, collate_fn=dict, **options), trained)


def epoch_of(some: ResumableLoader, epoch: int) -> list[dict[str, list]]:
    some.batch_sampler.set_epoch(epoch)
    return [{name: tensor.tolist() for name, tensor in batch.items()} for batch in some]


def test_workers_wait_until_epoch_and_place_are_known() -> None:
    """Lightning makes an iterator before it sets the epoch, and another after."""
    index = positions(40)
    images = Images(None, index, torch.arange(40), None, torch.arange(40).to(torch.uint8).view(-1, 1, 1, 1))
    many, one = (wrapped(images, EpochBatches(index, 4, True), workers, int) for workers in (2, 0))
    iter(many)
    for some in (many, one):
        some.load_state_dict({"trained": 3})
    assert epoch_of(many, 5) == epoch_of(one, 5)
    assert epoch_of(many, 6) == epoch_of(one, 6)


@settings(max_examples=60, deadline=None)
@given(sizes, batch_sizes, st.booleans(), st.data())
def test_a_resumed_epoch_gives_exactly_the_rest(count, batch_size, weighted, data):
    options = {"weights": torch.ones(count)} if weighted else {}
    whole = loader(count, batch_size, **options)
    epochs = [epoch_of(whole, epoch) for epoch in range(3)]
    stop = data.draw(st.integers(1, len(whole)))
    interrupted = loader(count, batch_size, trained=lambda: stop, **options)
    assert epoch_of(interrupted, 0) == epochs[0]
    interrupted.batch_sampler.set_epoch(1)
    iterator = iter(interrupted)
    begun = [{name: tensor.tolist() for name, tensor in next(iterator).items()} for _ in range(stop)]
    assert begun == epochs[1][:stop]

    state = interrupted.state_dict()
    resumed = loader(count, batch_size, **options)
    resumed.load_state_dict(state)
    if stop == len(whole):  # saved after the last batch: the next pass is a new epoch, from its front
        assert epoch_of(resumed, 2) == epochs[2]
        return
    assert epoch_of(resumed, 1) == epochs[1][stop:]
    assert epoch_of(resumed, 2) == epochs[2]  # and the next epoch is whole again


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_that_was_given_but_not_trained_comes_again(workers):
    """The step failed, or was stopped: the state counts what was trained, whatever was handed out or prepared."""
    whole = [batch["index"] for batch in epoch_of(crops(0), 0)]
    steps = []
    some = crops(workers, trained=lambda: len(steps))
    iterator = iter(some)
    for expected in whole[:3]:
        assert next(iterator)["index"].tolist() == expected
        steps.append(expected)
    steps.pop()  # the third batch was never trained on
    resumed = crops(0)
    resumed.load_state_dict(some.state_dict())
    assert [batch["index"] for batch in epoch_of(resumed, 0)] == whole[2:]


def test_interrupted_twice_in_one_epoch():
    whole = epoch_of(loader(20, 3), 4)
    first = loader(20, 3, trained=lambda: 2)
    second = loader(20, 3, trained=lambda: 4)  # of the epoch, the two before the first interruption among them
    second.load_state_dict(first.state_dict())
    second.batch_sampler.set_epoch(4)
    assert next(iter(second))["index"].tolist() == whole[2]["index"]
    third = loader(20, 3)
    third.load_state_dict(second.state_dict())
    assert epoch_of(third, 4) == whole[4:]


class Noise(Source):
    """Large enough that a random crop of it is never that of another box."""

    def __init__(self, count: int) -> None:
        self.samples = [Sample(f"{i:03d}") for i in range(count)]

    def content(self, sample: Sample) -> np.ndarray:
        return np.random.default_rng(int(sample.key)).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def crops(workers: int, trained=int) -> ResumableLoader:
    source, index = Noise(70), positions(22)
    image_format = ImageFormat(16, 3, "squash", crop=True)
    images = Images(source, index, torch.arange(22), image_format, seed=1, area=(0.2, 1.0))
    return wrapped(images, EpochBatches(index, 4, True, seed=1), workers, trained)


def test_workers_change_nothing():
    """Order, random crops, later epochs and a resumed one; the workers live on from epoch to epoch."""
    alone, shared = crops(0), crops(2)
    epochs = [epoch_of(alone, epoch) for epoch in range(3)]
    assert [epoch_of(shared, epoch) for epoch in range(3)] == epochs
    shared.load_state_dict(crops(0, trained=lambda: 2).state_dict())
    assert epoch_of(shared, 1) == epochs[1][2:]
    assert epoch_of(shared, 2) == epochs[2]
    by_image = [
        {i: pixels for batch in epoch for i, pixels in zip(batch["index"], batch["image"], strict=True)}
        for epoch in epochs
    ]
    assert len(by_image[0]) == 22
    assert all(by_image[0][i] != by_image[1][i] for i in by_image[0])


def test_batches_hold_image_label_and_index_together():
    for batch in epoch_of(loader(23, 5), 0):
        assert batch["label"] == [positions(23).index(i) for i in batch["index"]]
        assert np.array(batch["image"]).flatten().tolist() == batch["label"]


@pytest.mark.parametrize("train", [True, False])
def test_lightning_finds_the_sampler_and_the_length(train):
    some = loader(10, 4, train)
    assert len(some) == len(some.batch_sampler) == 3
    assert some.sampler is some.batch_sampler and len(some.dataset) == 10
