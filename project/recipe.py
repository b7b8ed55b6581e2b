"""How a network is trained: parameter groups, optimizer, schedule (advice A11 to A14, A16 to A20; card C3)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from project.errors import UserError
from project.optim import Constant, Interval, Length, Muon, PlannedRates, Plateau, Schedule, Warmup, param_groups
from project.optim.of_torch import scheduler_of_torch

OptimizerCallable = Callable[[Iterable, float], Optimizer]  # (parameter groups, lr) -> optimizer
SchedulerCallable = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]
Scaling = Literal["linear", "sqrt", "none"]
UNCHOSEN = {"fused": None, "foreach": None, "differentiable": False}.items()  # of torch's optimizers with a fused step


@dataclass
class Recipe:
    """Builds the optimizer and the schedule of the configuration. It holds no network and no state of a training.

    The values are the arguments of project.classifier.ImageClassifier.

    Raises:
        UserError: for values out of range, and for settings that have no effect on one another.
    """

    lr: float
    make_optimizer: OptimizerCallable | None
    lr_mult: dict[str, float] | None
    stem_lr: float
    no_weight_decay: bool
    schedule: Schedule | SchedulerCallable | None
    schedule_interval: Interval | None
    warmup: float
    warmup_start: float
    reference_batch: int | None
    lr_scaling: Scaling

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise UserError(f"model.lr must be above 0, not {self.lr}")
        if not 0 <= self.warmup < math.inf or not 0 <= self.warmup_start <= 1:
            raise UserError(
                f"model.warmup must be 0 or more, warmup_start 0 to 1, not {self.warmup} and {self.warmup_start}"
            )
        if (self.lr_scaling == "none") != (self.reference_batch is None):
            raise UserError("model.lr_scaling and model.reference_batch, the batch that lr is for, go together")
        if self.reference_batch is not None and self.reference_batch < 1:
            raise UserError(f"model.reference_batch must be 1 or more, not {self.reference_batch}")
        self.schedule = self.schedule or Constant()
        if self.schedule_interval and isinstance(self.schedule, Constant):
            raise UserError("model.schedule_interval has an effect on a model.schedule only; leave it out")
        if not self.warmup and self.warmup_start != 0.01:
            raise UserError("model.warmup_start has an effect on a model.warmup only; leave it out")
        if self.schedule_interval == "step" and isinstance(self.schedule, Plateau):
            raise UserError("model.schedule_interval: Plateau counts epochs, as its metric does; leave it out")
        if self.warmup and not isinstance(self.schedule, Schedule):
            raise UserError("model.warmup goes with schedules of project.optim only; torch has LinearLR")

    def __deepcopy__(self, _: object) -> "Recipe":
        """Itself: what the command line has built refers to the parser, that to the data, and all would be copied."""
        return self

    def scaling(self, batch: int) -> tuple[float, float]:
        """Factors on learning rate and weight decay for a batch of so many images a step (advice A12).

        Learning rate x decay grows as the batch does, so that an epoch decays as much as before (Wang & Aitchison 2024,
        arXiv:2405.13698, section 3).
        """
        ratio = batch / self.reference_batch if self.reference_batch else 1.0
        rate = ratio**0.5 if self.lr_scaling == "sqrt" else ratio
        return rate, ratio / rate

    def optimizer(self, net: nn.Module, batch: int, lr: float | None = None) -> Optimizer:
        """The optimizer of a network, with its groups.

        Args:
            net: The network.
            batch: Images of a step, over all devices and accumulated batches.
            lr: In place of `model.lr`.
        """
        rate_factor, decay_factor = self.scaling(batch)
        rate = (self.lr if lr is None else lr) * rate_factor
        make, given = self.make_optimizer or AdamW, (net, rate, self.lr_mult, self.stem_lr, self.no_weight_decay)
        try:
            optimizer = make(param_groups(*given), rate)
            if isinstance(optimizer, Muon):  # which is not known before; it has groups of its own
                optimizer = make(param_groups(*given, optimizer.defaults["rest_lr"]), rate)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise UserError(f"model.optimizer: {error}") from error
        if self.no_weight_decay and not optimizer.defaults.get("weight_decay"):
            raise UserError("model.no_weight_decay has no effect: model.optimizer has no weight_decay")
        for group in optimizer.param_groups:
            if "weight_decay" in group:
                group["weight_decay"] *= decay_factor
            # In one kernel AdamW's step takes half its time on two CPU cores, SGD's 3/4. The groups alone are told: an
            # optimizer built with fused=True undoes the scaling of 16-mixed itself, and Lightning does not clip that.
            # Adagrad has its state already, on the CPU.
            if group.items() >= UNCHOSEN and not optimizer.state:
                group["fused"] = all(p.is_floating_point() and (p.is_cpu or p.is_cuda) for p in group["params"]) or None
        return optimizer

    def scheduler(
        self, optimizer: Optimizer, length: Callable[[], Length]
    ) -> tuple[PlannedRates | LRScheduler | ReduceLROnPlateau, Interval]:
        """What sets the learning rates, and when it is stepped; `length` is asked again when a run is resumed."""
        if isinstance(self.schedule, Schedule):
            warmup = Warmup(self.warmup, self.warmup_start)
            return PlannedRates(optimizer, self.schedule, length, self.schedule_interval, warmup), "step"
        return scheduler_of_torch(self.schedule, optimizer), self.schedule_interval or "epoch"
