"""What a resumed run may change, what it may not, and how a change takes effect: never in silence."""

import re
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping

from project.errors import UserError
from project.messages import say
from project.optim import SWATS

# Read anew when a fit is resumed. All else of the model is in its weights, or in its optimizer's groups and state.
SCHEDULE = r"schedule(\..*)?|schedule_interval|warmup|warmup_start"
LEARNING_RATE = rf"{SCHEDULE}|lr|reference_batch|lr_scaling|optimizer\.init_args\.rest_lr"
OPTIMIZER = r"optimizer\.init_args\.(?!amsgrad|centered|initial_accumulator_value|fused|capturable|rest$).*"
CHANGEABLE = rf"{LEARNING_RATE}|{OPTIMIZER}|task\.init_args\.label_smoothing|mixup|cutmix"
NOT_SETTINGS = {"name", "lr", "initial_lr", "fused"}  # of a group: the schedule sets its rates, its state fits `fused`
PLAIN = (int, float, str, tuple, type(None))  # what may go into a checkpoint


def check_changes(command: str, now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """A line for each change of the model's settings that takes effect.

    Args:
        command: fit, validate, test, predict or export.
        now: Settings below `model`, flat, without those that are null.
        then: Those of the checkpoint.

    Raises:
        UserError: for a change that cannot take effect.
    """
    for part in ("lr_mult.", "schedule.init_args.schedules."):
        before, after = ([key for key in settings if key.startswith(part)] for settings in (then, now))
        if before != after and sorted(before) == sorted(after):
            raise UserError(f"model.{part[:-1]}: the order of its patterns cannot be changed for a trained model")
    lines = []
    for key in sorted(now.keys() | then.keys()):
        default = "none" if key == "tta" else "null"  # of a checkpoint of before there was the key
        was, is_now = then.get(key, default), now.get(key, default)
        if was == is_now:
            continue
        if key == "tta" and command != "fit":  # it changes no weight
            lines.append(f"model.tta: {is_now} here, {was} in the training")
            continue
        reason = _obstacle(key, now, then)
        if reason or command != "fit" or not re.fullmatch(CHANGEABLE, key):
            hint = f"the checkpoint says {was}, not {is_now}; leave it out, or start a new fit"
            raise UserError(f"model.{key} cannot be changed for a trained model{reason}: {hint}")
        lines.append(_change(f"model.{key}", was, is_now))
    return lines


def _change(name: str, was: Any, now: Any) -> str:
    return f"{name}: {was} until here, {now} from now on"


def _obstacle(key: str, now: dict[str, Any], then: dict[str, Any]) -> str:
    """Why a setting that can be changed otherwise cannot be: the end of a sentence."""
    optimizer, rate = now.get("optimizer.class_path", ""), re.fullmatch(LEARNING_RATE, key)
    schedules = [settings.get("schedule.class_path") or settings.get("schedule") for settings in (then, now)]
    if rate and not all(schedule.startswith("project.") for schedule in schedules if schedule):
        return " with a scheduler of torch, which derives each learning rate from the one before"
    if rate and optimizer.endswith("SWATS") and not re.fullmatch(SCHEDULE, key):
        return " with SWATS, which derives the learning rate of SGD from that of Adam"
    if key == "optimizer.init_args.momentum" and optimizer.endswith("RMSprop"):
        return " with RMSprop, whose state depends on it"
    return ""


class ResumeChanges(L.Callback):
    """Lightning restores optimizer and callbacks as they were: here, what has been changed since takes effect."""

    def __init__(self) -> None:
        self._groups: list[dict[str, Any]] = []  # settings of the optimizer's groups, as configured now
        self._batch = 0  # images of a step
        self._patience: dict[EarlyStopping, int] = {}
        self._then: dict[str, Any] = {}  # groups and batch of the run that is resumed

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Before the callbacks are restored."""
        self._patience = {each: each.patience for each in trainer.callbacks if isinstance(each, EarlyStopping)}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the optimizer is restored."""
        for callback in self._patience:
            pl_module.check_metric("trainer.callbacks: EarlyStopping", callback.monitor)
        self._groups = [
            {key: value for key, value in group.items() if isinstance(value, PLAIN)}
            for group in trainer.optimizers[0].param_groups
        ]
        self._batch = pl_module.batch

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        planned, optimizer = pl_module.planned, trainer.optimizers[0]
        for callback, patience in self._patience.items():
            if callback.patience != patience:
                say(_change("EarlyStopping's patience", callback.patience, patience))
                callback.patience = patience
        batch = self._then.get("batch", self._batch)
        if batch != self._batch:
            if pl_module.recipe.reference_batch and (planned is None or isinstance(optimizer, SWATS)):
                hint = "the learning rate cannot follow with SWATS or a scheduler of torch"
                raise UserError(f"the batch was {batch} images a step, and is {self._batch} now: {hint}; keep it")
            say(_change("images per step", batch, self._batch))
        groups = self._then.get("groups", self._groups)
        for group, now, before in zip(optimizer.param_groups, self._groups, groups, strict=True):
            group |= {key: now[key] for key in now.keys() - NOT_SETTINGS if now[key] != before.get(key)}
        if planned:
            planned.refresh()
            steps, length = planned.planned_steps, pl_module.length().steps
            if steps not in (None, length) and any(part.spans_run for part in planned.schedules):
                say(_change("steps of the schedule", steps, length))

    def state_dict(self) -> dict[str, Any]:
        return {"groups": self._groups, "batch": self._batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._then = state
