"""An exponential moving average of the weights, which is validated and saved in their place."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor


class EMA(EMAWeightAveraging):
    """Lightning's own, with two additions: the decay follows the batch, and frozen weights stay bit-identical."""

    def __init__(self, decay: float = 0.999, update_starting_at_step: int | None = None) -> None:
        """
        Args:
            decay: Share of the average that is kept at each optimizer step, 0 to below 1, for model.reference_batch.
                A batch k times as large keeps decay ** k, so that the average covers as many images (Busbridge et al.
                2023, arXiv:2307.13813).
            update_starting_at_step: Optimizer steps before the average begins; null begins at once.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay must be at least 0 and below 1, not {decay}")
        super().__init__(decay=decay, update_starting_at_step=update_starting_at_step)
        self.decay = decay

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            keep = self.decay ** (pl_module.batch / (pl_module.recipe.reference_batch or pl_module.batch))

            def average(mean: Tensor, new: Tensor, _: Tensor | int) -> Tensor:
                # decay * mean + (1 - decay) * new would round: frozen weights would drift by their last bits.
                return mean.lerp(new, 1 - keep) if mean.is_floating_point() else new

            self._kwargs["avg_fn"] = average
        super().setup(trainer, pl_module, stage)
