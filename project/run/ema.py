"""An exponential moving average of the weights, which is validated and saved in their place."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from project.errors import UserError


class EMA(WeightAveraging):
    """Lightning's averaging, with a decay that follows the batch and the age of the average.

    Frozen weights stay bit-identical: decay * mean + (1 - decay) * new would round, and they would drift.
    """

    def __init__(self, decay: float = 0.999, update_starting_at_step: int | None = None) -> None:
        """
        Args:
            decay: Share of the average that is kept at each optimizer step, 0 to below 1, for model.reference_batch.
                A batch k times as large keeps decay ** k, so that the average covers as many images (Busbridge et al.
                2023, arXiv:2307.13813). After n steps at most (1 + n) / (10 + n) is kept, so that the first weights are
                soon forgotten (TensorFlow's tf.train.ExponentialMovingAverage with num_updates).
            update_starting_at_step: Optimizer steps before the average begins, null for none; until then it is the
                weights themselves.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay must be at least 0 and below 1, not {decay}")
        super().__init__(avg_fn=self._average)
        self.decay, self.start = decay, update_starting_at_step or 0
        self.keep = decay  # for the batch of the run

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        # The first update copies the weights: with the last step alone there is nothing to average.
        if self.start and 0 < trainer.estimated_stepping_batches <= self.start + 1 and not trainer.fast_dev_run:
            raise UserError(f"EMA: update_starting_at_step {self.start} leaves nothing of the run to average; lower it")
        if trainer.precision.endswith("16-true"):
            raise UserError("EMA: the small steps of an average are lost in 16 bits; use trainer.precision bf16-mixed")
        self.keep = self.decay ** (pl_module.batch / (pl_module.recipe.reference_batch or pl_module.batch))
        if not self._average_model.n_averaged:  # it was copied before model.weights were loaded
            self._average_model.module.load_state_dict(pl_module.state_dict())

    def _average(self, mean: Tensor, new: Tensor, updates: Tensor) -> Tensor:
        n = min(int(updates), self._latest_update_step - self.start)
        keep = min(self.keep, (1 + n) / (10 + n)) if n > 0 else 0.0
        return mean.lerp(new, 1 - keep) if mean.is_floating_point() else new
