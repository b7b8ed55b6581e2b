"""Warm-up, schedules per group and resuming, against torch's own schedulers and a plain training loop."""

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from project.errors import UserError
from project.optim import (
    Constant,
    Cosine,
    Exponential,
    Lambda,
    Length,
    MultiStep,
    OneCycle,
    PerGroup,
    PlannedRates,
    Plateau,
    Schedule,
    Step,
    Warmup,
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
                scheduler.step(*([METRICS[step // every]] if isinstance(scheduler, ReduceLROnPlateau) else []))
    return np.array(rates)


def planned(schedule: Schedule, epochs: float = 0.0, start: float = 0.1, interval: str | None = None, length: Length = LENGTH):
    return PlannedRates(groups(), schedule, lambda: length, interval, Warmup(epochs, start))


def assert_equal(ours: np.ndarray, factors: np.ndarray) -> None:
    """Every group's rate is its base rate times the factors."""
    assert ours == pytest.approx(np.outer(factors, list(BASES.values())), rel=1e-9, abs=1e-15)


def wave(done: int) -> float:
    return 1 + math.sin(done)


# Warm-up


@pytest.mark.parametrize(("epochs", "start"), [(1, 0.1), (2.5, 0.01), (5.75, 0.9)])
@pytest.mark.parametrize(
    ("schedule", "build"),
    [
        (Step(3, 0.5), lambda o: StepLR(o, 3, 0.5)),
        (MultiStep([2, 11]), lambda o: MultiStepLR(o, [2, 11])),
        (Exponential(0.9), lambda o: ExponentialLR(o, 0.9)),
    ],
)
def test_warm_up_is_chained_with_what_counts_from_the_start(schedule, build, epochs, start) -> None:
    rise = int(4 * epochs)
    by_step = torchs((lambda o: ChainedScheduler([LinearLR(o, start, total_iters=rise), build(o)]), 1))
    assert_equal(run(planned(schedule, epochs, start, "step")), by_step)
    by_epoch = torchs((lambda o: LinearLR(o, start, total_iters=rise), 1), (build, 4))
    assert_equal(run(planned(schedule, epochs, start, "epoch")), by_epoch)


@pytest.mark.parametrize(
    ("schedule", "build", "every"),
    [
        (Constant(), lambda o: LambdaLR(o, lambda n: 1.0), 1),
        (Lambda(wave), lambda o: LambdaLR(o, wave), 4),
        (Plateau(patience=0, factor=0.3), lambda o: ReduceLROnPlateau(o, factor=0.3, patience=0, eps=0), 4),
    ],
)
def test_warm_up_multiplies_what_torch_cannot_chain(schedule, build, every) -> None:
    expected = torchs((lambda o: LinearLR(o, 0.1, total_iters=10), 1)) * torchs((build, every))
    assert len(set(expected)) > 10
    assert_equal(run(planned(schedule, 2.5)), expected)


@pytest.mark.parametrize(
    ("schedule", "build"),
    [
        (Cosine(0.1), lambda o, total: CosineAnnealingLR(o, total, eta_min=0.1)),
        (OneCycle(0.4, 5, 20), lambda o, total: OneCycleLR(o, 1.0, total, None, None, 0.4, "cos", False, 0, 0, 5, 20)),
    ],
)
@pytest.mark.parametrize("epochs", [1, 2.5])
def test_what_fills_the_run_begins_after_the_warm_up(schedule, build, epochs) -> None:
    def sequence(optimizer: Optimizer) -> LRScheduler:
        rise = int(4 * epochs)
        both = [LinearLR(optimizer, 0.1, total_iters=rise), build(optimizer, 24 - rise)]
        return SequentialLR(optimizer, both, milestones=[rise])

    assert_equal(run(planned(schedule, epochs, 0.1)), torchs((sequence, 1)))


def test_cosine_by_epoch_begins_with_the_first_epoch_after_the_warm_up() -> None:
    rise = [min(1.0, 0.1 + 0.9 * step / 6) for step in range(24)]
    cosine = [(1 + math.cos(math.pi * max(0, step // 4 - 2) / 4)) / 2 for step in range(24)]
    assert_equal(run(planned(Cosine(), 1.5, interval="epoch")), np.array(rise) * cosine)


@pytest.mark.parametrize("start", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("epochs", [0.1, 0.3, 1.7])
def test_fractions_of_a_step(epochs, start) -> None:
    rise = 4 * epochs
    expected = [start + (1 - start) * step / rise if step < rise else 1.0 for step in range(24)]
    assert_equal(run(planned(Constant(), epochs, start)), np.array(expected))


def test_a_warm_up_of_whole_steps_is_not_prolonged_by_rounding() -> None:
    """1.1 epochs of 10 steps are 11 steps, though 1.1 * 10 > 11 in floating point."""
    length = Length(30, 10)
    found = run(planned(Cosine(), 1.1, length=length), length)[:, 1] / 0.3
    assert found[11:] == pytest.approx([(1 + math.cos(math.pi * step / 19)) / 2 for step in range(19)])


@pytest.mark.parametrize("schedule", [Constant(), Step(1), Cosine(), OneCycle(), Plateau()])
@pytest.mark.parametrize(
    ("epochs", "length", "interval"),
    [
        (6, LENGTH, None),
        (7.5, LENGTH, None),
        (1.25, Length(5, 4), None),  # a run of five steps, which ends in its second epoch
        (1.5, Length(5, 4), None),
    ],
)
def test_warm_up_as_long_as_the_run(schedule, epochs, length, interval) -> None:
    scheduler = planned(schedule, epochs, interval=interval, length=length)
    scheduler.optimizer.step()
    with pytest.raises(UserError, match=r"^model.warmup of [\d.]+ epochs leaves nothing of a run of \d") as caught:
        scheduler.step()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_warm_up_that_leaves_less_than_a_step_or_an_epoch(interval) -> None:
    """What is left for a cosine is the full rate it starts from, not the one it ends at."""
    found = run(planned(Cosine(), 5.9, 0.1, interval))
    assert found == pytest.approx(run(planned(Constant(), 5.9, 0.1)))


# Each group its own


def test_per_group() -> None:
    schedule = PerGroup({"^st": Step(2, 0.5), "stem": Constant(), "head$": Cosine()} | {})
    with pytest.raises(UserError, match="'stem' decides no group"):  # the first match counts
        planned(schedule)
    schedule = PerGroup({"stem": Step(2, 0.5), "^st": Lambda(wave), ".*": Cosine(0.1)})
    columns = [
        torchs((lambda o: StepLR(o, 2, 0.5), 4), base=0.01),
        torchs((lambda o: LambdaLR(o, wave), 4), base=0.3),
        torchs((lambda o: CosineAnnealingLR(o, 24, eta_min=0.2), 1), base=2.0),
    ]
    assert run(planned(schedule)) == pytest.approx(np.stack(columns, 1), rel=1e-9)


@pytest.mark.parametrize(
    ("schedules", "words"),
    [
        ({"stem|stage": Constant()}, "no schedule for group 'head'"),
        ({".*": Constant(), "head": Cosine()}, "'head' decides no group; the groups are stem, stage, head"),
        ({"tail": Cosine(), ".*": Constant()}, "'tail' decides no group"),
        ({"(": Cosine(), ".*": Constant()}, "'(' is no regular expression"),
    ],
)
def test_bad_patterns(schedules, words) -> None:
    with pytest.raises(UserError) as caught:
        planned(PerGroup(schedules))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_groups_that_share_a_plateau_count_a_metric_once() -> None:
    shared = Plateau(patience=1, factor=0.5)
    oracle = torchs((lambda o: ReduceLROnPlateau(o, patience=1, factor=0.5, eps=0), 4))
    assert len(set(oracle)) == 2 + 1 - 1 + (oracle[-1] < 0.5)
    assert_equal(run(planned(shared)), oracle)
    own = PerGroup({"stem|stage": Plateau(patience=1, factor=0.5), "head": Plateau("train/loss")})
    found = run(planned(own))
    assert found[:, :2] == pytest.approx(np.outer(oracle, [0.01, 0.3])) and set(found[:, 2]) == {2.0}  # its metric never came


# Resuming

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "constant": Constant,
    "step": lambda: Step(2),
    "exponential": lambda: Exponential(0.77),
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
            record.append([group["lr"] for group in self.optimizer.param_groups] + [weight.item() for weight in self.weights])
            self.scheduler.step()
            if (step + 1) % 4 == 0:
                self.scheduler.observe({"val/loss": METRICS[step // 4]})
        return record

    def save(self) -> io.BytesIO:
        torch.save([self.optimizer.state_dict(), self.scheduler.state_dict(), self.weights], file := io.BytesIO())
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> None:
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
    for stop in range(24):
        before, after = Loop(SCHEDULES[name](), warmup), Loop(SCHEDULES[name](), warmup)
        before.train(0, stop)
        after.load(before.save())
        assert after.train(stop, 24) == whole[stop:]


@pytest.mark.parametrize("stop", [0, 3, 9, 23])
def test_a_change_takes_effect_at_once(stop) -> None:
    bases = {name: 3 * rate for name, rate in BASES.items()}
    for new in (Exponential(0.5), Plateau(), Constant()):
        before, after, whole = (
            Loop(Cosine(), Warmup(1)),
            Loop(new, Warmup(2), bases),
            Loop(type(new)(**args(new)), Warmup(2), bases),
        )
        before.train(0, stop)
        after.load(before.save())
        rates = [row[:3] for row in whole.train(0, 24)]
        assert [group["lr"] for group in after.optimizer.param_groups] == rates[stop] == after.scheduler.get_last_lr()
        if not isinstance(new, Plateau):  # which has not seen the metrics of before
            assert [row[:3] for row in after.train(stop, 24)] == rates[stop:]


def args(schedule: Schedule) -> dict[str, float]:
    return {"gamma": schedule.gamma} if isinstance(schedule, Exponential) else {}


def test_the_length_is_asked_for_after_the_first_step_only() -> None:
    asked = []
    scheduler = PlannedRates(groups(), Cosine(), lambda: asked.append(True) or LENGTH, None, Warmup(1))
    scheduler.state_dict()
    assert not asked
    scheduler.optimizer.step()
    scheduler.step()
    assert asked
