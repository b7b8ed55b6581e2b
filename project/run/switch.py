"""SWATS: when a parameter group switches from Adam to SGD, and to which learning rate (advice A19)."""

from typing import Any

import lightning as L

from project.messages import say
from project.optim import SWATS


class SwitchLine(L.Callback):
    """Prints and logs the switch of each group."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        # Before the next step, not after this one: of a run that is stopped in between, the resumed one says it.
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._say(trainer)

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._say(trainer)
        groups = _groups(trainer)
        left = [group["name"] for group in groups if group["switch_step"] is None]
        if left:
            say(f"SWATS: {len(left)} of {len(groups)} groups never switched to SGD, e.g. {left[0]}; raise switch_tol")

    def _say(self, trainer: L.Trainer) -> None:
        """Of the groups whose last step was the switch."""
        for group in _groups(trainer):
            name, step, rate = group["name"], group["switch_step"], group["projected_rate"]
            if step is None or step != group["steps"]:
                continue
            values = {f"swats/{name}/switch_step": float(step), f"swats/{name}/projected_rate": float(rate)}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)
            say(f"SWATS: group {name} switches to SGD after {step} steps, projected learning rate {rate:.4g}")


def _groups(trainer: L.Trainer) -> list[dict[str, Any]]:
    optimizer = trainer.optimizers[0]
    return optimizer.param_groups if isinstance(optimizer, SWATS) else []
