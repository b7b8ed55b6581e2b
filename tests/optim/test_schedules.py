"""Each schedule against torch's own scheduler, at every optimizer step of a run and for every group."""

import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt
from torch import nn
from torch.optim import SGD, Optimizer, lr_scheduler

from project.errors import UserError
from project.optim.rates import Length, PlannedRates
from project.optim.schedules import (
    Constant,
    Cosine,
    Exponential,
    Lambda,
    Linear,
    MultiStep,
    OneCycle,
    PerGroup,
    Plateau,
    Schedule,
    Step,
)

BASES = (0.3, 0.02, 4.0)  # the rates of three groups
Table = list[list[float]]  # the rate of every group at each optimizer step


def groups(bases: Iterable[float] = BASES) -> Optimizer:
    return SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": base, "name": f"group {base}"} for base in bases])


def run(scheduler: PlannedRates, metrics: list[float] | None = None) -> Table:
    """The rates of a whole run. The metrics, one an epoch, come after its last step, as in a training."""
    length, table = scheduler.length(), []
    for step in range(length.steps):
        table.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
        if metrics and (step + 1) % length.steps_per_epoch == 0:
            scheduler.observe({"val/loss": metrics[step // length.steps_per_epoch]})
    return table


def torchs(build: Callable, steps: int, every: int, metrics: list[float] | None = None) -> Table:
    """The same of torch's scheduler, (optimizer, base rate) -> scheduler, stepped after `every` steps: one for each
    group."""
    columns = []
    for base in BASES:
        optimizer, column = groups([base]), []
        scheduler = build(optimizer, base)
        for step in range(steps):
            column.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if (step + 1) % every == 0:
                scheduler.step(*([metrics[step // every]] if metrics else []))
        columns.append(column)
    return [list(rates) for rates in zip(*columns, strict=True)]


def assert_equal(ours: Table, oracle: Table) -> None:
    assert np.array(ours) == pytest.approx(np.array(oracle), rel=1e-9, abs=1e-15)


def wave(done: int) -> float:
    return 1 + math.sin(done)


# (ours, torch's: optimizer, base rate and number of epochs or steps -> scheduler)
CASES: dict[str, tuple[Schedule, Callable]] = {
    "constant": (Constant(), lambda o, base, total: lr_scheduler.ConstantLR(o, factor=1.0)),
    "step": (Step(3), lambda o, base, total: lr_scheduler.StepLR(o, 3)),
    "slow step": (Step(5, 0.7), lambda o, base, total: lr_scheduler.StepLR(o, 5, 0.7)),
    "milestones": (MultiStep([4, 9]), lambda o, base, total: lr_scheduler.MultiStepLR(o, [4, 9])),
    "a milestone twice": (
        MultiStep([7, 2, 7, 99], 0.5),
        lambda o, base, total: lr_scheduler.MultiStepLR(o, [7, 2, 7, 99], 0.5),
    ),
    "exponential": (Exponential(0.8), lambda o, base, total: lr_scheduler.ExponentialLR(o, 0.8)),
    "line": (Linear(), lambda o, base, total: lr_scheduler.LinearLR(o, 1.0, 0.0, total)),
    "line to a share": (Linear(0.2), lambda o, base, total: lr_scheduler.LinearLR(o, 1.0, 0.2, total)),
    "cosine": (Cosine(), lambda o, base, total: lr_scheduler.CosineAnnealingLR(o, total)),
    "cosine to a share": (
        Cosine(0.1),
        lambda o, base, total: lr_scheduler.CosineAnnealingLR(o, total, eta_min=0.1 * base),
    ),
    "three cosines": (
        Cosine(0.2, cycles=3),
        lambda o, base, total: lr_scheduler.CosineAnnealingWarmRestarts(o, total // 3, eta_min=0.2 * base),
    ),
    "one cycle": (
        OneCycle(),
        lambda o, base, total: lr_scheduler.OneCycleLR(o, base, total_steps=total, cycle_momentum=False),
    ),
    "steep cycle": (
        OneCycle(0.5, 10, 100),
        lambda o, base, total: lr_scheduler.OneCycleLR(
            o, base, total_steps=total, pct_start=0.5, div_factor=10, final_div_factor=100, cycle_momentum=False
        ),
    ),
    "function": (Lambda(wave), lambda o, base, total: lr_scheduler.LambdaLR(o, wave)),
}


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("per_epoch", [1, 5])
@pytest.mark.parametrize("name", CASES)
def test_rates_are_torchs(name, per_epoch, interval) -> None:
    """Per epoch means that torch's scheduler is stepped after each epoch."""
    schedule, build = CASES[name]
    length = Length(12 * per_epoch, per_epoch)
    every, total = (per_epoch, 12) if interval == "epoch" else (1, length.steps)
    oracle = torchs(lambda optimizer, base: build(optimizer, base, total), length.steps, every)
    assert_equal(run(PlannedRates(groups(), schedule, lambda: length, interval)), oracle)


@pytest.mark.parametrize("name", CASES)
def test_each_counts_in_its_usual_unit(name) -> None:
    schedule, build = CASES[name]
    by_step = isinstance(schedule, Cosine | Linear | OneCycle)
    oracle = torchs(lambda optimizer, base: build(optimizer, base, 36 if by_step else 12), 36, 1 if by_step else 3)
    assert_equal(run(PlannedRates(groups(), schedule, lambda: Length(36, 3))), oracle)


@pytest.mark.parametrize("name", [name for name in CASES if name != "three cosines"])
def test_a_run_that_ends_within_an_epoch(name) -> None:
    """20 steps of 6 an epoch: the fourth epoch, the last, is cut short."""
    schedule, build = CASES[name]
    oracle = torchs(lambda optimizer, base: build(optimizer, base, 4), 20, every=6)
    assert_equal(run(PlannedRates(groups(), schedule, lambda: Length(20, 6), "epoch")), oracle)


@settings(max_examples=25, deadline=None)
@given(
    metrics=st.lists(st.sampled_from([0.5, 0.9, 0.9999, 1.0, 1.1, 3.0, -1.0, math.nan]), min_size=8, max_size=25),
    mode=st.sampled_from(["min", "max"]),
    factor=st.sampled_from([0.1, 0.5, 0.9]),
    patience=st.integers(0, 3),
    threshold=st.sampled_from([0.0, 1e-4, 0.2]),
    cooldown=st.integers(0, 3),
    lowest=st.sampled_from([0.0, 0.3]),
)
def test_plateau_is_torchs(metrics, mode, factor, patience, threshold, cooldown, lowest) -> None:
    schedule = Plateau("val/loss", mode, factor, patience, threshold, cooldown, lowest)
    length = Length(2 * len(metrics), 2)

    def build(optimizer: Optimizer, base: float) -> lr_scheduler.ReduceLROnPlateau:
        return lr_scheduler.ReduceLROnPlateau(
            optimizer, mode, factor, patience, threshold, cooldown=cooldown, min_lr=lowest * base, eps=0.0
        )

    oracle = torchs(build, length.steps, 2, metrics)
    assert_equal(run(PlannedRates(groups(), schedule, lambda: length), metrics), oracle)


@pytest.mark.parametrize(
    ("monitor", "values"), [("val/loss", [1, 2, 3]), ("val/acc", [3, 2, 1]), ("train/loss", [1, 2, 3])]
)
def test_plateau_knows_which_way_is_better(monitor, values) -> None:
    worse, better = Plateau(monitor, patience=0), Plateau(monitor, patience=0)
    for value in values:
        worse.observe(value)
        better.observe(-value)
    assert worse.factor(0, 1) == pytest.approx(0.01) and better.factor(0, 1) == 1.0


def test_cycles_that_do_not_divide_the_run() -> None:
    """Equation 5 of Loshchilov & Hutter 2017 with T_i = 10 / 3 steps."""
    schedule, period = Cosine(0.1, cycles=3), 10 / 3
    for step in range(10):
        assert schedule.factor(step, 10) == pytest.approx(
            0.1 + 0.45 * (1 + math.cos(math.pi * (step % period) / period))
        )


def test_the_state_of_a_plateau_is_plain_numbers() -> None:
    """The command line gives numbers of jsonargparse's own types, which a checkpoint must not contain."""
    schedule = Plateau(patience=NonNegativeInt(0), cooldown=NonNegativeInt(2), min_factor=ClosedUnitInterval(0.5))
    for value in (1.0, 2.0):
        schedule.observe(value)
    state = schedule.state_dict()
    assert state["factor"] == 0.5 and state["counts"] == [1.0, 0, 2]
    assert {type(value) for value in [state["factor"], *state["counts"]]} == {int, float}


TOTALS = st.integers(1, 500)
ANY = st.one_of(
    st.builds(Step, st.integers(1, 600), st.floats(0.001, 1)),
    st.builds(MultiStep, st.lists(st.integers(1, 600), min_size=1, max_size=6), st.floats(0.001, 1)),
    st.builds(Exponential, st.floats(0.001, 1)),
    st.builds(Linear, st.floats(0, 1)),
    st.builds(Cosine, st.floats(0, 0.99), st.integers(1, 9)),
    st.builds(OneCycle, st.floats(0.001, 0.999), st.floats(1, 1e6), st.floats(1, 1e6)),
)


@settings(max_examples=60, deadline=None)
@given(schedule=ANY, total=TOTALS, data=st.data())
def test_every_factor_is_finite_and_at_most_1(schedule, total, data) -> None:
    for done in {0, total - 1, total, total + 3, data.draw(st.integers(0, total))}:
        assert 0 <= schedule.factor(done, total) <= 1 + 1e-12
    assert schedule.factor(0, total) == schedule.factor(0, 1_000_000)  # before the length is known


@pytest.mark.parametrize("schedule", [Cosine(0.2), Linear(0.2), Cosine(0.2, cycles=3), OneCycle(0.3, 5, 10)])
def test_steps_beyond_the_end_keep_the_last_rate(schedule) -> None:
    """Lightning's estimate can be short by a step; the rate must not rise again."""
    last = 0.2 if isinstance(schedule, Cosine | Linear) else 1 / 5 / 10
    assert [schedule.factor(done, 12) for done in (12, 13, 40)] == pytest.approx([last] * 3)


def test_the_length_is_asked_for_after_the_first_step_only() -> None:
    asked = []
    scheduler = PlannedRates(groups(), Cosine(), lambda: asked.append(True) or Length(9, 3))
    scheduler.state_dict()
    assert not asked
    scheduler.optimizer.step()
    scheduler.step()
    assert asked


def test_a_schedule_of_ones_own_is_one_method() -> None:
    class Own(Schedule):
        def factor(self, done: int, total: int) -> float:
            return 1 - done / total

    found = run(PlannedRates(groups([0.3]), Own(), lambda: Length(10, 2)))
    assert found == [[pytest.approx(0.3 * (1 - epoch / 5))] for epoch in range(5) for _ in range(2)]
    with pytest.raises(TypeError):
        Schedule()


@pytest.mark.parametrize("value", [True, 1, 0, 0.25, np.float64(0.5), np.float32(0.5), np.int64(2)])
def test_a_function_may_return_any_number(value) -> None:
    assert Lambda(lambda done: value).factor(3, 9) == float(value)


def fail(done: int) -> float:
    raise RuntimeError("no such epoch")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (fail, "the function failed for 4: no such epoch"),
        (lambda: 1, "failed for 4"),
        (lambda n: None, "failed for 4"),
        *((lambda n, value=value: value, "must return 0 or more") for value in (-0.1, math.inf, math.nan)),
    ],
)
def test_bad_functions(function, words) -> None:
    with pytest.raises(UserError) as caught:
        Lambda(function).factor(4, 9)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("model.schedule: Lambda: ")


class Holder:
    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule


@pytest.mark.parametrize(
    ("name", "argument", "bad"),
    [
        ("Cosine", "end", "1.1"),
        ("Cosine", "cycles", "0"),
        ("Linear", "end", "-0.1"),
        ("OneCycle", "pct_start", "1"),
        ("OneCycle", "div", "0"),
        ("Step", "step_size", "0"),
        ("Step", "gamma", "1.1"),
        ("MultiStep", "milestones", "[3, 0]"),
        ("Exponential", "gamma", "0"),
        ("Plateau", "factor", "1"),
        ("Plateau", "patience", "-1"),
        ("Plateau", "cooldown", "-1"),
        ("Plateau", "threshold", "-0.1"),
        ("Plateau", "min_factor", "2"),
    ],
)
def test_types_state_the_ranges(name, argument, bad) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Holder, "model")
    parser.parse_args(["--model.schedule=project.optim.Cosine"])
    given = [f"--model.schedule=project.optim.{name}", f"--model.schedule.{argument}={bad}"]
    with pytest.raises(ArgumentError, match="does not conform to restriction"):
        parser.parse_args(given)


def test_per_group_cannot_be_nested() -> None:
    with pytest.raises(UserError, match=r"^model.schedule: PerGroup cannot be inside another"):
        run(PlannedRates(groups(), PerGroup({".": PerGroup({".": Constant()})}), lambda: Length(4, 2)))
