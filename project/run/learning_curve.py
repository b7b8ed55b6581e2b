"""After the training: what its loss curve says about the rate (advice A15)."""

import json

import lightning as L

from project.optim.diagnosis import diagnose
from project.recipe import Recipe
from project.run.paths import read
from project.run.plan import run_of
from project.run.record import write


class LearningCurve(L.Callback):
    """Prints the diagnosis of the training-loss curve and keeps it in the run."""

    def on_train_end(self, trainer: L.Trainer, pl_module: Recipe) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run or not pl_module.curve:
            return
        losses, rates = zip(*pl_module.curve, strict=True)
        found = diagnose(losses, pl_module.num_classes, rates)
        print(
            f"\nlearning curve: {found.shape}: {found.evidence}{'; ' + found.advice if found.advice else ''}",
            flush=True,
        )
        run = run_of(trainer)
        if run is not None:
            words = {"shape": found.shape, "evidence": found.evidence, "advice": found.advice}
            write(run / "run.json", json.dumps(read(run / "run.json") | {"learning_curve": words}, indent=2))
