"""The schedules against torch's own schedulers and the papers' formulas, step by step."""

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from project.errors import UserError
from project.optim import Cosine, OneCycle, Schedule

LR = 0.3


def optimizer(*rates: float) -> Optimizer:
    return SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates or (LR,)])


def rates_of(scheduler: LRScheduler, steps: int) -> list[float]:
    """The rate that each of the optimizer's steps uses."""
    rates = []
    for step in range(steps):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        if step < steps - 1:  # torch's OneCycleLR may not be stepped once more
            scheduler.step()
    return rates


@pytest.mark.parametrize("end", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("total", [2, 3, 17, 100])
def test_cosine_is_torchs(total, end) -> None:
    ours = rates_of(Cosine(end).build(optimizer(), lambda: total), total)
    assert ours == pytest.approx(rates_of(CosineAnnealingLR(optimizer(), T_max=total - 1, eta_min=end * LR), total))
    # equation 5 of Loshchilov & Hutter, with T_i the last step
    for step, rate in enumerate(ours):
        assert rate == pytest.approx(end * LR + 0.5 * (LR - end * LR) * (1 + math.cos(math.pi * step / (total - 1))))
    assert ours[0] == LR and ours[-1] == pytest.approx(end * LR)


@pytest.mark.parametrize("total", [5, 18, 101])
@pytest.mark.parametrize(("pct_start", "div", "final_div"), [(0.3, 25.0, 1e4), (0.5, 10.0, 100.0), (0.25, 1.0, 1.0)])
def test_one_cycle_is_torchs_with_the_same_peak(total, pct_start, div, final_div) -> None:
    """Torch peaks at step pct_start * total - 1, ours at pct_start * (total - 1), the share of the way to the last step.

    With torch's pct_start moved by that part of a step, the two are equal at every step.
    """
    ours = rates_of(OneCycle(pct_start, div, final_div).build(optimizer(), lambda: total), total)
    same_peak = (pct_start * (total - 1) + 1) / total
    torchs = OneCycleLR(
        optimizer(),
        max_lr=LR,
        total_steps=total,
        pct_start=same_peak,
        div_factor=div,
        final_div_factor=final_div,
        anneal_strategy="cos",
        cycle_momentum=False,
    )
    assert ours == pytest.approx(rates_of(torchs, total), rel=1e-9)


def test_one_cycle_by_hand() -> None:
    """Eleven steps, peak at the fourth: up over 3 steps and down over 7."""
    ours = rates_of(OneCycle(pct_start=0.3, div=10, final_div=100).build(optimizer(), lambda: 11), 11)
    up = [0.03 + (0.3 - 0.03) * (1 - math.cos(math.pi * i / 3)) / 2 for i in range(3)]
    down = [0.0003 + (0.3 - 0.0003) * (1 + math.cos(math.pi * i / 7)) / 2 for i in range(8)]
    assert ours == pytest.approx(up + down)
    assert max(ours) == ours[3] == pytest.approx(LR)
    assert ours == sorted(ours[:4]) + sorted(ours[4:], reverse=True)


@pytest.mark.parametrize("schedule", [Cosine(0.2), OneCycle(0.3, 5, 10)])
def test_every_group_follows_in_proportion(schedule) -> None:
    several = optimizer(0.1, 0.02, 3.0)
    scheduler = schedule.build(several, lambda: 9)
    for step in range(9):
        rates = [group["lr"] for group in several.param_groups]
        assert rates == pytest.approx([base * schedule.factor(step / 8) for base in (0.1, 0.02, 3.0)])
        several.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", [Cosine(0.2), OneCycle(0.3, 5, 10)])
@pytest.mark.parametrize("total", [1, 4])
def test_steps_beyond_the_end_keep_the_last_rate(schedule, total) -> None:
    """Lightning's estimate can be short by a step; the rate must not rise again."""
    rates = rates_of(schedule.build(optimizer(), lambda: total), total + 5)
    assert rates[0] == pytest.approx(LR * schedule.factor(0.0))
    assert rates[max(1, total) :] == pytest.approx([LR * schedule.factor(1.0)] * 5)


def test_the_length_is_asked_for_after_the_first_step_only() -> None:
    asked = []

    def total() -> int:
        asked.append(True)
        return 10

    used = optimizer()
    scheduler = Cosine().build(used, total)
    assert not asked
    used.step()
    scheduler.step()
    assert asked


def test_a_schedule_of_ones_own_is_one_method() -> None:
    class Linear(Schedule):
        def factor(self, done: float) -> float:
            return 1 - done

    assert rates_of(Linear().build(optimizer(), lambda: 5), 5) == pytest.approx([0.3, 0.225, 0.15, 0.075, 0.0])
    with pytest.raises(TypeError):
        Schedule()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Cosine(end=1.0), "Cosine: end"),
        (lambda: Cosine(end=-0.1), "not -0.1"),
        (lambda: OneCycle(pct_start=0.0), "OneCycle: pct_start"),
        (lambda: OneCycle(pct_start=1.0), "between 0 and 1"),
        (lambda: OneCycle(div=0.5), "OneCycle: div and final_div"),
        (lambda: OneCycle(final_div=0.0), "1 or more"),
    ],
)
def test_bad_arguments(build, words) -> None:
    with pytest.raises(UserError) as caught:
        build()
    assert words in str(caught.value) and "\n" not in str(caught.value)
