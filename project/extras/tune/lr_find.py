"""`python -m project lr_find`: a learning rate from a range test (advice A12, A13)."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from project.errors import UserError
from project.extras.tune.curve import draw, read_curve
from project.extras.tune.measure import measure, write_yaml
from project.files import output_path, written_whole
from project.optim.advice import USUAL_RATES


def find(config: dict[str, Any], out: str, steps: int, min_lr: float, max_lr: float) -> int:
    """Find a learning rate, print it, and write the YAML file and the figure. Returns the exit code.

    Where the loss does not fall, it is 1: the figure is written, the YAML file is not.

    Raises:
        UserError: an argument is out of range, a file cannot be written, or the training fails.
    """
    path, picture = output_path(out, "lr.yaml"), output_path(str(Path(out).with_suffix(".png")), "lr.png")
    if steps < 10 or max_lr < 10 * min_lr:
        raise UserError("lr_find needs steps of 10 or more, and a max_lr of at least 10 times min_lr")
    print(f"lr_find    {steps} steps from {min_lr:g} to {max_lr:g}, without schedule, warm-up and callbacks")
    rates = np.geomspace(min_lr, max_lr, steps).tolist()
    found = measure(config, rates)
    losses = found["losses"]
    smoothed, edge = read_curve(losses, steps)
    chosen = None
    if edge is not None:
        chosen, why = rates[edge] / 10, "a tenth of the highest learning rate at which the loss is still low"
        usual = USUAL_RATES.get(found["optimizer"], (0.0, math.inf))[1] / found["scaling"]
        if edge == steps - 1 and chosen > usual:
            chosen, why = usual, f"the loss stays low up to {max_lr:g}; the highest usual for {found['optimizer']}"
        chosen = float(f"{chosen:.3g}")
    with written_whole(picture) as draft:
        draw(rates[: len(losses)], losses, smoothed, chosen).savefig(draft, dpi=120)
    if chosen is None:
        print(
            f"nothing    the loss does not fall clearly (see {picture}), so {path.name} was not written.\n"
            "           Try another range, more --steps or a larger batch; or check the images and labels."
        )
        return 1
    print(f"model.lr   {chosen:g}: {why}")
    write_yaml(path, out, f"{why}; {found['batch']} images per step, {found['optimizer']}", {"model": {"lr": chosen}})
    return 0
