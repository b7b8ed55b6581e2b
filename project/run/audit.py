"""Proof that frozen parameters and buffers have not changed (advice A21)."""

import hashlib
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from project.errors import UserError
from project.messages import say
from project.optim import layers


class FreezeAudit(L.Callback):
    """Compares checksums of the frozen tensors until they are unfrozen, in resumed runs too; a change fails the run."""

    def __init__(self) -> None:
        self._sums: dict[str, str] = {}  # name in net -> checksum when it was frozen

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        ddp = stage == "fit" and isinstance(trainer.strategy, DDPStrategy)
        if ddp and any(pl_module.freezing.trains_from.values()):
            # For DDP, a parameter without a gradient is an error unless it is told.
            trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(pl_module, self._sums)  # those of the checkpoint that was loaded
        frozen = pl_module.freezing.frozen(trainer.current_epoch)
        self._sums |= {name: checksum(data) for name, data in pl_module.net.state_dict().items() if name in frozen}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        free = self._sums.keys() - pl_module.freezing.frozen(trainer.current_epoch)
        if free:
            self._check(pl_module, free)
            for name in free:
                del self._sums[name]
            stages = dict.fromkeys(layer.stage for layer in layers(pl_module.net) if free & set(layer.tensors))
            say(f"unfrozen from epoch {trainer.current_epoch + 1}: {', '.join(stages)}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(pl_module, self._sums)
        if self._sums:
            say(f"frozen      {len(self._sums)} parameters and buffers, unchanged by their checksums")

    def _check(self, model: L.LightningModule, names: Iterable[str]) -> None:
        tensors = model.net.state_dict()
        changed = [name for name in names if checksum(tensors[name]) != self._sums[name]]
        if changed:
            hint = "something else writes to them, such as a callback that averages weights (project.run.EMA does not)"
            raise UserError(f"model.freeze: {len(changed)} frozen tensors have changed, such as {changed[0]}: {hint}")

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums = state["sums"]


def checksum(tensor: Tensor) -> str:
    """Of a tensor's bytes: a change of one bit changes it."""
    data = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(data.numpy(), digest_size=16).hexdigest()
