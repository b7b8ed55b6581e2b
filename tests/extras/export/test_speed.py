"""Timings of ways that are known to be slow, and counts of operations that a formula gives."""

import time
from itertools import pairwise

import pytest
import torch
from torch import nn

from project.extras.export import speed
from project.extras.export.speed import eager, flops, measure


def test_a_way_that_takes_twice_as_long_is_half_as_fast(monkeypatch) -> None:
    monkeypatch.setattr(speed, "SAMPLE", 0.02)
    seen = []

    def sleep(seconds: float):
        def run(batch: torch.Tensor) -> None:
            seen.append(tuple(batch.shape))
            time.sleep(seconds)

        return run

    rows = measure({"first": sleep(0.01), "slow": sleep(0.02)}, torch.zeros(3, 1, 2, 2, dtype=torch.uint8))
    assert [(row.way, row.batch) for row in rows] == [("first", 1), ("slow", 1), ("first", 64), ("slow", 64)]
    assert set(seen) == {(1, 1, 2, 2), (64, 1, 2, 2)}
    for first, slow in (rows[:2], rows[2:]):
        assert first.ratio == 1
        assert slow.ratio == pytest.approx(0.5, abs=0.15)
        assert 0.01 <= first.low <= first.median <= first.high and 0.02 <= slow.low <= slow.median <= slow.high


def test_the_ways_take_turns_and_slow_ones_have_three_rounds(monkeypatch) -> None:
    monkeypatch.setattr(speed, "SAMPLE", 0.0)
    monkeypatch.setattr(speed, "PATIENCE", 0.0)
    monkeypatch.setattr(speed, "BATCHES", (2,))
    calls = []
    measure({name: lambda batch, name=name: calls.append(name) for name in "ab"}, torch.zeros(1, 1, 2, 2))
    timed = calls[4:]  # after two calls of each to warm up
    assert len(timed) == 6 and all(before != after for before, after in pairwise(timed))


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_module_is_timed_on_a_copy(channels_last) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten()).eval()
    images = torch.randn(3, 4, 5, 5)
    before = module[0].weight.stride()
    found = eager(module, channels_last)(images)
    assert module[0].weight.stride() == before and module[0].weight.requires_grad
    assert torch.allclose(found, module(images), atol=1e-5) and not found.requires_grad


def test_operations_of_a_linear_layer_and_of_convolutions() -> None:
    assert flops(nn.Linear(30, 7), torch.zeros(5, 30)) == 2 * 30 * 7  # of one image, whatever the batch
    conv = nn.Conv2d(4, 6, (3, 5), stride=2, padding=1)
    images = torch.zeros(2, 4, 11, 13)
    height, width = (11 + 2 - 3) // 2 + 1, (13 + 2 - 5) // 2 + 1
    assert flops(conv, images) == 2 * height * width * 6 * 4 * 3 * 5
    assert flops(nn.Conv2d(4, 6, 1, groups=2), images) == 2 * 11 * 13 * 6 * 2
    assert flops(nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(6 * height * width, 3)), images) == (
        2 * height * width * 6 * 4 * 3 * 5 + 2 * 6 * height * width * 3
    )
