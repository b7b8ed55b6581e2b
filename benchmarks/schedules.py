"""Draw the pictures of docs/schedules: what each schedule plans for 30 epochs of 100 steps and two parameter groups.

    python -m benchmarks.schedules [--out docs/schedules]

It measures nothing; any machine, a few seconds.
"""

import argparse
import math
from pathlib import Path

import torch

from project.optim import (
    Constant,
    Cosine,
    Exponential,
    Lambda,
    Length,
    Linear,
    MultiStep,
    OneCycle,
    PerGroup,
    PlannedRates,
    Plateau,
    Schedule,
    Step,
    Warmup,
)
from project.optim.plan import draw_plan, planned_rates

LENGTH = Length(steps=3000, steps_per_epoch=100)


def wave(epoch: int) -> float:
    """An own function for Lambda: a decay that swings."""
    return math.exp(-epoch / 10) * (1 + 0.5 * math.cos(epoch))


PICTURES: dict[str, tuple[Schedule, Warmup]] = {
    "step": (Step(step_size=10), Warmup()),
    "multi_step": (MultiStep(milestones=[15, 25]), Warmup()),
    "exponential": (Exponential(gamma=0.9), Warmup()),
    "linear": (Linear(), Warmup()),
    "cosine": (Cosine(), Warmup(epochs=3)),
    "cosine_cycles": (Cosine(end=0.05, cycles=3), Warmup()),
    "plateau": (Plateau(), Warmup(epochs=3)),
    "lambda": (Lambda(wave), Warmup()),
    "one_cycle": (OneCycle(), Warmup()),
    "constant": (Constant(), Warmup(epochs=5)),
    "per_group": (PerGroup({"head": OneCycle(), ".*": Cosine()}), Warmup()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/schedules"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, (schedule, warmup) in PICTURES.items():
        groups = [
            {"name": title, "params": [torch.zeros(())], "lr": lr} for title, lr in (("backbone", 0.03), ("head", 0.1))
        ]
        scheduler = PlannedRates(torch.optim.SGD(groups), schedule, lambda: LENGTH, warmup=warmup)
        title = type(schedule).__name__ + (f", warm-up of {warmup.epochs} epochs" if warmup.epochs else "")
        draw_plan(planned_rates(scheduler, LENGTH), title).savefig(out / f"{name}.png", dpi=70)


if __name__ == "__main__":
    main()
