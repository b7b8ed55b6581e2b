"""Proof that what was frozen has not moved: parameters and buffers (advice A21)."""

import hashlib
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from project.errors import UserError
from project.optim import layers


class FreezeAudit(L.Callback):
    """Compares checksums of the frozen tensors from the start of their freezing to its end, across resumed runs, and fails the run
    if one has changed.
    """

    def __init__(self) -> None:
        self._sums: dict[str, str] = {}  # name in net -> checksum when it was frozen

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if (
            stage == "fit"
            and any(pl_module.freezing.trains_from.values())
            and isinstance(trainer.strategy, DDPStrategy)
        ):
            # Layers that are frozen for now get no gradient, which DDP takes for an error unless it is told.
            trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        frozen = pl_module.freezing.frozen(trainer.current_epoch)
        self._check(pl_module, set(self._sums))  # of the checkpoint that was loaded
        for name, tensor in tensors(pl_module).items():
            if name in frozen:
                self._sums.setdefault(name, checksum(tensor))
        last = max((start for start in pl_module.freezing.trains_from.values() if start), default=0)
        if last and 0 < (trainer.max_epochs or 0) <= last and trainer.is_global_zero:
            waiting = f"layers that wait for epoch {last + 1} never train in {trainer.max_epochs} epochs"
            print(f"advice     model.freeze: {waiting}", flush=True)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        frozen = pl_module.freezing.frozen(trainer.current_epoch)
        free = set(self._sums) - frozen
        if free:
            self._check(pl_module, free)
            for name in free:
                del self._sums[name]
            if trainer.is_global_zero:
                stages = dict.fromkeys(layer.stage for layer in layers(pl_module.net) if free & set(layer.tensors))
                print(f"unfrozen from epoch {trainer.current_epoch + 1}: {', '.join(stages)}", flush=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(pl_module, set(self._sums))
        if self._sums and trainer.is_global_zero:
            print(f"frozen      {len(self._sums)} parameters and buffers, unchanged by their checksums", flush=True)

    def _check(self, model: L.LightningModule, names: set[str]) -> None:
        now = tensors(model)
        moved = [name for name in now if name in names and checksum(now[name]) != self._sums[name]]
        if moved:
            raise UserError(
                f"model.freeze: {len(moved)} frozen tensors have changed, for example {moved[0]}: something else writes to them, "
                "such as a callback that averages weights (project.run.EMA leaves them alone)"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self._sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums = dict(state["sums"])


def tensors(model: L.LightningModule) -> dict[str, Tensor]:
    """Parameters and buffers of the network by name."""
    return {**dict(model.net.named_parameters()), **dict(model.net.named_buffers())}


def checksum(tensor: Tensor) -> str:
    """Of the bytes of a tensor, so that a change of the last bit shows."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(data.numpy().tobytes(), digest_size=16).hexdigest()
