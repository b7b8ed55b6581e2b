"""Warm-up, schedules per group and resuming, against torch's own schedulers and a plain training loop."""

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer, lr_scheduler

from project.errors import UserError
from project.optim.rates import Length, PlannedRates, Warmup
from project.optim.schedules import (
    Constant,
    Cosine,
    Exponential,
    Lambda,
    MultiStep,
    OneCycle,
    PerGroup,
    Plateau,
    Schedule,
    Step,
)

LENGTH = Length(24, 4)  # six epochs of four steps
BASES = {"stem": 0.01, "stage": 0.3, "head": 2.0}
METRICS = [1.0, 1.0, 1.5, 0.2, 0.3, 0.3]  # of the epochs


def groups(bases: dict[str, float] = BASES, kind: type[Optimizer] = SGD) -> Optimizer:
    return kind([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate, "name": name} for name, rate in bases.items()])


def run(scheduler: PlannedRates, length: Length = LENGTH) -> np.ndarray:
    """The rates of a whole run, (steps, groups), with a metric after each epoch."""
    table = []
    for step in range(length.steps):
        table.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
        if (step + 1) % length.steps_per_epoch == 0:
            scheduler.observe({"val/loss": METRICS[step // length.steps_per_epoch]})
    return np.array(table)


def torchs(*builds: tuple[Callable[[Optimizer], Any], int], base: float = 1.0) -> np.ndarray:
    """The rates of one group under torch's schedulers, each with the number of steps after which it is stepped."""
    optimizer, rates = groups({"one": base}), []
    schedulers = [(build(optimizer), every) for build, every in builds]
    for step in range(LENGTH.steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler, every in schedulers:
            if (step + 1) % every == 0:
                scheduler.step(
                    *([METRICS[step // every]] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else [])
                )
    return np.array(rates)


def planned(
    schedule: Schedule, epochs: float = 0.0, start: float = 0.1, interval: str | None = None, length: Length = LENGTH
):
    return PlannedRates(groups(), schedule, lambda: length, interval, Warmup(epochs, start))


def assert_equal(ours: np.ndarray, factors: np.ndarray) -> None:
    assert ours == pytest.approx(np.outer(factors, list(BASES.values())), rel=1e-9, abs=1e-15)


def wave(done: int) -> float:
    return 1 + math.sin(done)


@pytest.mark.parametrize(("epochs", "start"), [(1, 0.1), (2.5, 0.01), (5.75, 0.9)])
@pytest.mark.parametrize(
    ("schedule", "build"),
    [
        (Step(3, 0.5), lambda o: lr_scheduler.StepLR(o, 3, 0.5)),
        (MultiStep([2, 11]), lambda o: lr_scheduler.MultiStepLR(o, [2, 11])),
        (Exponential(0.9), lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
    ],
)
def test_warm_up_is_chained_with_what_counts_from_the_start(schedule, build, epochs, start) -> None:
    rise = int(4 * epochs)
    by_step = torchs(
        (lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.LinearLR(o, start, total_iters=rise), build(o)]), 1)
    )
    assert_equal(run(planned(schedule, epochs, start, "step")), by_step)
    by_epoch = torchs((lambda o: lr_scheduler.LinearLR(o, start, total_iters=rise), 1), (build, 4))
    assert_equal(run(planned(schedule, epochs, start, "epoch")), by_epoch)


@pytest.mark.parametrize(
    ("schedule", "build", "every"),
    [
        (Constant(), lambda o: lr_scheduler.LambdaLR(o, lambda n: 1.0), 1),
        (Lambda(wave), lambda o: lr_scheduler.LambdaLR(o, wave), 4),
        (
            Plateau(patience=0, factor=0.3),
            lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.3, patience=0, eps=0),
            4,
        ),
    ],
)
def test_warm_up_multiplies_what_torch_cannot_chain(schedule, build, every) -> None:
    expected = torchs((lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=10), 1)) * torchs((build, every))
    assert_equal(run(planned(schedule, 2.5)), expected)


@pytest.mark.parametrize(
    ("schedule", "build"),
    [
        (Cosine(0.1), lambda o, total: lr_scheduler.CosineAnnealingLR(o, total, eta_min=0.1)),
        (OneCycle(0.4), lambda o, total: lr_scheduler.OneCycleLR(o, 1.0, total, pct_start=0.4, cycle_momentum=False)),
    ],
)
@pytest.mark.parametrize("epochs", [1, 2.5])
def test_what_fills_the_run_begins_after_the_warm_up(schedule, build, epochs) -> None:
    def sequence(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
        rise = int(4 * epochs)
        both = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=rise), build(optimizer, 24 - rise)]
        return lr_scheduler.SequentialLR(optimizer, both, milestones=[rise])

    assert_equal(run(planned(schedule, epochs, 0.1)), torchs((sequence, 1)))


def test_cosine_by_epoch_begins_with_the_first_epoch_after_the_warm_up() -> None:
    rise = [min(1.0, 0.1 + 0.9 * step / 6) for step in range(24)]
    cosine = [(1 + math.cos(math.pi * max(0, step // 4 - 2) / 4)) / 2 for step in range(24)]
    assert_equal(run(planned(Cosine(), 1.5, interval="epoch")), np.array(rise) * cosine)


@pytest.mark.parametrize("start", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("epochs", [0.1, 0.3, 1.7])
def test_fractions_of_a_step(epochs, start) -> None:
    expected = [min(1.0, start + (1 - start) * step / (4 * epochs)) for step in range(24)]
    assert_equal(run(planned(Constant(), epochs, start)), np.array(expected))


def test_a_warm_up_of_whole_steps_is_not_prolonged_by_rounding() -> None:
    """2.2 epochs of 25 steps are 55 steps, though 2.2 * 25 > 55 in floating point."""
    length = Length(75, 25)
    found = run(planned(Cosine(), 2.2, length=length), length)[:, 1] / 0.3
    assert found[55:] == pytest.approx([(1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)])


@pytest.mark.parametrize("schedule", [Constant(), Step(1), Cosine(), OneCycle(), Plateau()])
@pytest.mark.parametrize(("epochs", "length"), [(6, LENGTH), (7.5, LENGTH), (1.25, Length(5, 4)), (1.5, Length(5, 4))])
def test_warm_up_as_long_as_the_run(schedule, epochs, length) -> None:
    scheduler = planned(schedule, epochs, length=length)
    scheduler.optimizer.step()
    with pytest.raises(UserError, match=r"^model.warmup: [\d.]+ epochs do not fit into the run") as caught:
        scheduler.step()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_warm_up_that_leaves_less_than_a_step_or_an_epoch(interval) -> None:
    """What is left for a cosine is the full rate it starts from, not the one it ends at."""
    assert run(planned(Cosine(), 5.9, 0.1, interval)) == pytest.approx(run(planned(Constant(), 5.9, 0.1)))


# Each group its own


def test_per_group() -> None:
    schedule = PerGroup({"stem": Step(2, 0.5), "^st": Lambda(wave), ".*": Cosine(0.1)})  # the first match counts
    columns = [
        torchs((lambda o: lr_scheduler.StepLR(o, 2, 0.5), 4), base=0.01),
        torchs((lambda o: lr_scheduler.LambdaLR(o, wave), 4), base=0.3),
        torchs((lambda o: lr_scheduler.CosineAnnealingLR(o, 24, eta_min=0.2), 1), base=2.0),
    ]
    assert run(planned(schedule)) == pytest.approx(np.stack(columns, 1), rel=1e-9)


@pytest.mark.parametrize(
    ("schedules", "words"),
    [
        ({"stem|stage": Constant()}, "no schedule for group 'head'"),
        ({".*": Constant(), "head": Cosine()}, "'head' applies to none of stem, stage, head"),
        ({"tail": Cosine(), ".*": Constant()}, "'tail' applies to none of"),
        ({"(": Cosine(), ".*": Constant()}, "not a regular expression"),
    ],
)
def test_bad_patterns(schedules, words) -> None:
    with pytest.raises(UserError) as caught:
        planned(PerGroup(schedules))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_groups_that_share_a_plateau_count_a_metric_once() -> None:
    oracle = torchs((lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.5, eps=0), 4))
    assert list(oracle) == [1.0] * 12 + [0.5] * 12
    assert_equal(run(planned(Plateau(patience=1, factor=0.5))), oracle)
    found = run(planned(PerGroup({"stem|stage": Plateau(patience=1, factor=0.5), "head": Plateau("train/loss")})))
    assert found[:, :2] == pytest.approx(np.outer(oracle, [0.01, 0.3])) and set(found[:, 2]) == {
        2.0
    }  # its metric never came


# Resuming

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "step": lambda: Step(2),
    "cosines": lambda: Cosine(0.03, cycles=2),
    "one cycle": lambda: OneCycle(0.3, 7, 13),
    "plateau": lambda: Plateau(patience=0, factor=0.3, cooldown=1),
    "per group": lambda: PerGroup({"stem": Plateau(patience=0), "stage": Lambda(wave), "head": Plateau(patience=1)}),
}


class Loop:
    """A plain training of three weights, one in each group."""

    def __init__(self, schedule: Schedule, warmup: Warmup, bases: dict[str, float] = BASES) -> None:
        self.optimizer = groups(bases, Adam)
        self.scheduler = PlannedRates(self.optimizer, schedule, lambda: LENGTH, None, warmup)
        self.weights = [group["params"][0] for group in self.optimizer.param_groups]

    def train(self, first: int, last: int) -> list[list[float]]:
        """Steps from the first to the one before the last; rates and weights of each."""
        record = []
        for step in range(first, last):
            for i, weight in enumerate(self.weights):
                weight.grad = torch.full((1,), math.sin(step + i))
            self.optimizer.step()
            record.append(
                [group["lr"] for group in self.optimizer.param_groups] + [weight.item() for weight in self.weights]
            )
            self.scheduler.step()
            if (step + 1) % 4 == 0:
                self.scheduler.observe({"val/loss": METRICS[step // 4]})
        return record

    def resume(self, before: "Loop") -> None:
        """Through a file, as a checkpoint does it."""
        torch.save([before.optimizer.state_dict(), before.scheduler.state_dict(), before.weights], file := io.BytesIO())
        file.seek(0)
        optimizer, scheduler, weights = torch.load(file, weights_only=True)
        self.optimizer.load_state_dict(optimizer)
        self.scheduler.load_state_dict(scheduler)
        for weight, value in zip(self.weights, weights, strict=True):
            weight.data.copy_(value)
        self.scheduler.refresh()


@pytest.mark.parametrize("epochs", [0.0, 2.6])
@pytest.mark.parametrize("name", SCHEDULES)
def test_resuming_at_any_step_is_exact(name, epochs) -> None:
    warmup = Warmup(epochs, 0.05)
    whole = Loop(SCHEDULES[name](), warmup).train(0, 24)
    for stop in range(0, 24, 5):
        before, after = Loop(SCHEDULES[name](), warmup), Loop(SCHEDULES[name](), warmup)
        before.train(0, stop)
        after.resume(before)
        assert after.train(stop, 24) == whole[stop:]


@pytest.mark.parametrize("make", [lambda: Exponential(0.5), Constant, Plateau])
@pytest.mark.parametrize("stop", [0, 3, 9, 23])
def test_a_change_takes_effect_at_once(stop, make) -> None:
    """Schedule, warm-up and base rates are those of now, not of the checkpoint."""
    warmup, bases = Warmup(2), {name: 3 * rate for name, rate in BASES.items()}
    before, after = Loop(Cosine(), Warmup(1)), Loop(make(), warmup, bases)
    before.train(0, stop)
    after.resume(before)
    rates = [row[:3] for row in Loop(Constant() if make is Plateau else make(), warmup, bases).train(0, 24)]
    assert [group["lr"] for group in after.optimizer.param_groups] == after.scheduler.get_last_lr() == rates[stop]
    if make is not Plateau:  # which sees the metrics from now on
        assert [row[:3] for row in after.train(stop, 24)] == rates[stop:]
