"""Time ways to run one network against each other, on this machine."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

BATCHES = (1, 64)
ROUNDS = 7
SAMPLE = 0.05  # seconds that a measurement lasts at least: a single small batch is over too soon to be timed
PATIENCE = 15.0  # seconds for a batch size; slow networks get fewer rounds, three at least


@dataclass(frozen=True)
class Timing:
    """Of one way to run one batch.

    Attributes:
        way: What ran.
        batch: Images in the batch.
        median: Seconds a batch.
        low: The fastest round, seconds a batch.
        high: The slowest round.
        ratio: How many times as fast as the first way: the median over the rounds.
    """

    way: str
    batch: int
    median: float
    low: float
    high: float
    ratio: float


def eager(module: nn.Module, channels_last: bool) -> Callable[[Tensor], object]:
    """A module as torch runs it, on a copy with its weights in that order."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    module = copy.deepcopy(module).to(memory_format=layout)

    def run(images: Tensor) -> object:
        with torch.inference_mode():
            return module(images.contiguous(memory_format=layout))

    return run


def measure(ways: dict[str, Callable[[Tensor], object]], images: Tensor) -> list[Timing]:
    """Time all ways in turn, round after round, so that what else the machine does meets them alike.

    Args:
        ways: Name -> function of a batch of images. Ratios are to the first.
        images: (N, C, H, W); repeated to fill the batches.

    Returns:
        For each batch size, a row for each way.
    """
    return [row for size in BATCHES for row in _measure(ways, images.repeat(-(-size // len(images)), 1, 1, 1)[:size])]


def _measure(ways: dict[str, Callable[[Tensor], object]], batch: Tensor) -> list[Timing]:
    times: dict[str, list[float]] = {way: [] for way in ways}
    repeats = {}
    for way, run in ways.items():
        run(batch)  # the first call plans and allocates
        repeats[way] = max(1, round(SAMPLE / _seconds(run, batch, 1)))
    begin = time.perf_counter()
    for done in range(ROUNDS):
        if done >= 3 and (time.perf_counter() - begin) * (done + 1) / done > PATIENCE:
            break
        for way, run in ways.items():
            times[way].append(_seconds(run, batch, repeats[way]))
    first = times[next(iter(ways))]
    return [
        Timing(
            way,
            len(batch),
            statistics.median(own),
            min(own),
            max(own),
            statistics.median(a / b for a, b in zip(first, own, strict=True)),
        )
        for way, own in times.items()
    ]


def _seconds(run: Callable[[Tensor], object], batch: Tensor, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        run(batch)
    return (time.perf_counter() - begin) / repeats


def flops(module: nn.Module, images: Tensor) -> int:
    """Floating-point operations for one image; a multiplication and its addition count as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(images[:1])
    return counter.get_total_flops()
