"""What a trained model can still change, and what it cannot: nothing is overruled in silence."""

import re
from typing import Any

from project.errors import UserError

# Read anew when a fit goes on. Everything else of the model is in its weights, or in the order of its optimizer's groups.
CHANGEABLE = re.compile(
    r"lr|optimizer\.init_args\..*|schedule(\..*)?|schedule_interval|warmup|warmup_start|reference_batch|lr_scaling"
    r"|label_smoothing|mixup|cutmix"
)
ALSO_ELSEWHERE = ("label_smoothing",)  # of validate and test: it is part of the loss
RATE = re.compile(r"lr|schedule(\..*)?|schedule_interval|warmup|warmup_start|reference_batch|lr_scaling")


def check_changes(command: str, now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Compare the model's settings with its checkpoint's.

    Args:
        command: fit, validate, test or predict.
        now: Settings in force, key -> value, the keys below `model`.
        then: Those of the checkpoint.

    Returns:
        A line for each change that takes effect.

    Raises:
        UserError: for a change that cannot.
    """
    for part in ("lr_mult.", "schedule.init_args.schedules."):
        orders = [[key for key in settings if key.startswith(part)] for settings in (then, now)]
        if command == "fit" and orders[0] != orders[1] and set(orders[0]) == set(orders[1]):
            raise UserError(
                f"model.{part[:-1]}: the order of its patterns cannot be changed for a trained model, since the first counts"
            )
    lines = []
    for key in sorted(now.keys() | then.keys()):
        if now.get(key) == then.get(key):
            continue
        was, is_now = then.get(key), now.get(key)
        if command == "fit" and (reason := _obstacle(key, now, then)):
            raise UserError(f"model.{key} cannot be changed from {was} to {is_now} {reason}")
        if not (CHANGEABLE.fullmatch(key) if command == "fit" else key in ALSO_ELSEWHERE):
            raise UserError(
                f"model.{key} cannot be changed for a trained model: the checkpoint says {was}, not {is_now}; "
                "leave it out, or start a new fit"
            )
        if key.split(".")[0] != "schedule":
            lines.append(f"model.{key}: {was} until here, {is_now} from now on")
    was, is_now = _schedule(then), _schedule(now)
    return lines if was == is_now else [*lines, f"model.schedule: {was} until here, {is_now} from now on"]


def _schedule(settings: dict[str, Any]) -> str:
    """A schedule in a few words, such as Step(step_size 30, gamma 0.1)."""
    arguments = [
        f"{key.split('.', 2)[2]} {value}" for key, value in settings.items() if key.startswith("schedule.init_args.")
    ]
    name = str(settings.get("schedule.class_path") or settings.get("schedule") or "none").rpartition(".")[2]
    return f"{name}({', '.join(arguments)})" if arguments else name


def _obstacle(key: str, now: dict[str, Any], then: dict[str, Any]) -> str | None:
    """Why a setting that could be changed otherwise cannot be."""
    optimizer, _, name = key.rpartition(".")
    needs_state = (
        "amsgrad",
        "centered",
        *(("momentum",) if str(now.get("optimizer.class_path")).endswith("RMSprop") else ()),
    )
    if optimizer == "optimizer.init_args" and name in needs_state:
        return "for a trained model: the optimizer has not collected what it needs for that"
    if optimizer == "optimizer.init_args" and name == "initial_accumulator_value":
        return "for a trained model: it counts at the start alone"
    if not RATE.fullmatch(key):
        return None
    for settings in (then, now):
        schedule = settings.get("schedule.class_path") or settings.get("schedule") or "project.optim."
        if not schedule.startswith("project."):
            return f"in the middle of {schedule}, which works its rates out from the ones before; a schedule of project.optim can"
    if str(now.get("optimizer.class_path")).endswith("SWATS") and not key.startswith(("schedule", "warmup")):
        return "under SWATS, which finds the rate of its second part from the one of its first"
    return None
