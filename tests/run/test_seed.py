"""Randomness of a training step: a function of its place in the run."""

import itertools
from types import SimpleNamespace

import torch

from project.run.seed import StepSeed


def draw(seed: int = 0, epoch: int = 0, batch: int = 0, rank: int = 0) -> tuple[float, ...]:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(global_rank=rank, current_epoch=epoch, strategy=strategy)
    StepSeed(seed).on_train_batch_start(trainer, None, None, batch)
    return tuple(torch.rand(4).tolist())


def test_the_same_place_draws_the_same() -> None:
    first = draw(3, 5, 7, 1)
    torch.manual_seed(99)
    torch.rand(1000)  # whatever was drawn in between
    assert draw(3, 5, 7, 1) == first


def test_every_place_draws_anew() -> None:
    places = list(itertools.product(range(4), range(4), range(13), range(3)))
    assert len({draw(*place) for place in places}) == len(places)
    assert draw(1, 11, 1) != draw(1, 1, 11) != draw(11, 1, 1)  # digits do not run together


def test_dropout_follows() -> None:
    def mask(batch: int) -> list[bool]:
        draw(batch=batch)
        return (torch.nn.functional.dropout(torch.ones(64)) > 0).tolist()

    assert mask(1) == mask(1) != mask(2)


def test_large_and_negative_seeds() -> None:
    assert len({draw(seed) for seed in (0, -1, 2**32 - 1, 2**63)}) == 4
