"""What a resumed run may change, what it may not, and how a change takes effect: nothing is overruled in silence."""

import re
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping

from project.errors import UserError
from project.optim import SWATS

# Read anew when a fit is resumed. All else of the model is in its weights, or in the order of its optimizer's groups.
LEARNING_RATE = r"lr|schedule(\..*)?|schedule_interval|warmup|warmup_start|reference_batch|lr_scaling"
CHANGEABLE = re.compile(rf"{LEARNING_RATE}|optimizer\.init_args\..*|task\.init_args\.label_smoothing|mixup|cutmix")
ALSO_ELSEWHERE = ("task.init_args.label_smoothing",)  # of validate and test: it is part of the loss
NOT_SETTINGS = {"name", "lr", "initial_lr"}  # of a group: the schedule sets its learning rates
PLAIN = (bool, int, float, str, tuple, type(None))  # what may go into a checkpoint


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
                f"model.{part[:-1]}: the order of its patterns cannot be changed for a trained model: the first match counts"
            )
    lines = []
    for key in sorted(now.keys() | then.keys()):
        was, is_now = then.get(key), now.get(key)
        if was == is_now:
            continue
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
    start = "schedule.init_args."
    arguments = [f"{key[len(start) :]} {value}" for key, value in settings.items() if key.startswith(start)]
    name = str(settings.get("schedule.class_path") or settings.get("schedule") or "none").rpartition(".")[2]
    return f"{name}({', '.join(arguments)})" if arguments else name


def _obstacle(key: str, now: dict[str, Any], then: dict[str, Any]) -> str | None:
    """Why a setting that could be changed otherwise cannot be."""
    optimizer, _, name = key.rpartition(".")
    kind = str(now.get("optimizer.class_path"))
    if optimizer == "optimizer.init_args":
        if name in ("amsgrad", "centered") or (name == "momentum" and kind.endswith("RMSprop")):
            return "for a trained model: the optimizer has not collected what it needs for that"
        if name == "initial_accumulator_value":
            return "for a trained model: it counts at the start alone"
    if not re.fullmatch(LEARNING_RATE, key):
        return None
    for settings in (then, now):
        schedule = settings.get("schedule.class_path") or settings.get("schedule") or "project.optim."
        if not schedule.startswith("project."):
            return f"in the middle of {schedule}, which derives each rate from the one before; a schedule of project.optim can"
    if kind.endswith("SWATS") and not key.startswith(("schedule", "warmup")):
        return "under SWATS, which derives the learning rate of its second part from that of its first"
    return None


class ResumeChanges(L.Callback):
    """Lightning restores optimizer and callbacks as they were: what the configuration has changed since takes effect here."""

    def __init__(self) -> None:
        self._groups: list[dict[str, Any]] = []  # of the optimizer, as the configuration has them
        self._patience: dict[EarlyStopping, int] = {}  # likewise
        self._batch = 0
        self._then: dict[str, Any] = {}  # groups and batch of the run that is resumed

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        stoppers = [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]
        self._patience = {callback: callback.patience for callback in stoppers}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The optimizer has been built, and is not restored yet."""
        for callback in self._patience:
            pl_module.check_metric("trainer.callbacks: EarlyStopping", callback.monitor)
        groups = trainer.optimizers[0].param_groups
        self._groups = [{key: value for key, value in group.items() if isinstance(value, PLAIN)} for group in groups]
        self._batch = pl_module.batch

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        lines = self._patience_lines() + self._batch_lines(trainer, pl_module)
        groups = trainer.optimizers[0].param_groups
        for group, now, then in zip(groups, self._groups, self._then.get("groups", self._groups), strict=True):
            group |= {key: now[key] for key in now.keys() - NOT_SETTINGS if now[key] != then.get(key)}
        if planned := pl_module.planned:
            planned.refresh()
            before, now = planned.planned_steps, pl_module.length().steps
            if before not in (None, now) and any(part.spans_run for part in planned.schedules):
                lines.append(f"The schedule was made for {before} steps and spans {now} from now on: the rates follow.")
        if trainer.is_global_zero:
            print(*lines, sep="\n", end="\n" if lines else "", flush=True)
        self._then = {}

    def _patience_lines(self) -> list[str]:
        lines = []
        for callback, patience in self._patience.items():
            if callback.patience != patience:
                lines.append(f"EarlyStopping's patience: {callback.patience} until here, {patience} from now on")
            callback.patience = patience
        return lines

    def _batch_lines(self, trainer: L.Trainer, model: L.LightningModule) -> list[str]:
        """Another batch: say what follows it, or that nothing can."""
        then = self._then.get("batch")
        if then in (None, self._batch):
            return []
        follows = model.recipe.reference_batch is not None
        if follows and (model.planned is None or isinstance(trainer.optimizers[0], SWATS)):
            raise UserError(
                f"the batch was {then} images a step until here and is {self._batch} now, but a learning rate that follows it "
                "cannot change in the middle of a scheduler of torch or of SWATS; give the old data.batch_size, devices and "
                "accumulation"
            )
        also = ", and the learning rate follows" if follows else ""
        return [f"The batch is {self._batch} images a step from now on, {then} until here{also}."]

    def state_dict(self) -> dict[str, Any]:
        return {"groups": self._groups, "batch": self._batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._then = state
