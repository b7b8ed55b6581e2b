"""SWATS: when a group goes over from Adam to SGD, and with which rate (advice A19)."""

from typing import Any

import lightning as L

from project.optim import SWATS


class SwitchLine(L.Callback):
    """Prints and logs the switch of each group."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        return {"told": sorted(self._told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._told = set(state["told"])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for group in switched(trainer):
            name = group["name"]
            if name in self._told:
                continue
            self._told.add(name)
            values = {f"swats/{name}/{key}": float(group[key]) for key in ("switch_step", "projected_rate")}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)
            if trainer.is_global_zero:
                step, rate = group["switch_step"], group["projected_rate"]
                print(f"SWATS: group {name} goes over to SGD after {step} steps, projected rate {rate:.4g}", flush=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        groups = [
            group
            for optimizer in trainer.optimizers
            if isinstance(optimizer, SWATS)
            for group in optimizer.param_groups
        ]
        left = [group["name"] for group in groups if group["name"] not in self._told]
        if left and trainer.is_global_zero:
            print(
                f"SWATS: {len(left)} of {len(groups)} groups never went over to SGD ({left[0]}{', ...' if left[1:] else ''}): the "
                "projected rate had not settled to within switch_tol; more epochs or a larger switch_tol let them"
            )


def switched(trainer: L.Trainer) -> list[dict[str, Any]]:
    """The groups that have gone over."""
    optimizers = [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, SWATS)]
    return [group for optimizer in optimizers for group in optimizer.param_groups if group["switch_step"] is not None]
