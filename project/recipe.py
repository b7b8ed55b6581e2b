"""How a network is trained: groups, optimizer, schedule, freezing (advice A11 to A14, A16 to A23; card C3)."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from project.errors import UserError
from project.optim import (
    SWATS,
    Constant,
    Freeze,
    Interval,
    Length,
    PlannedRates,
    Plateau,
    Schedule,
    Warmup,
    group_table,
    param_groups,
)
from project.optim.of_torch import check_gradients, scheduler_of_torch

OptimizerCallable = Callable[[Iterable, float], Optimizer]  # (parameter groups, lr) -> optimizer
SchedulerCallable = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]
PLAIN = (bool, int, float, str, tuple, type(None))  # what may go into a checkpoint


class Recipe(L.LightningModule):
    """Trains its `net`. A subclass builds the network, calls `plan_freeze`, and defines the steps."""

    net: nn.Module

    def __init__(
        self,
        lr: float = 1e-3,
        optimizer: OptimizerCallable | None = None,
        lr_mult: dict[str, float] | None = None,
        layer_decay: float = 1.0,
        no_weight_decay: bool = False,
        schedule: Schedule | SchedulerCallable | None = None,
        schedule_interval: Interval | None = None,
        warmup: float = 0.0,
        warmup_start: float = 0.01,
        reference_batch: int | None = None,
        lr_scaling: Literal["linear", "sqrt", "none"] = "none",
        freeze: Freeze | None = None,
    ) -> None:
        """
        Args:
            lr: The learning rate, for every optimizer. It is the rate at its highest; a schedule lowers it.
            optimizer: Class of the optimizer with its arguments, the rate excepted; null takes torch.optim.AdamW.
            lr_mult: Regular expression -> factor on the rate of the parameters in whose names it is found, such as {"^head": 10};
                the first that matches counts (A14, A20).
            layer_decay: Factor on the rate from each layer to the one below it, above 0 and at most 1 (A23).
            no_weight_decay: No weight decay on norms and biases.
            schedule: How the rate changes: one of project.optim, or of torch.optim.lr_scheduler (A16).
            schedule_interval: What the schedule counts: epochs or optimizer steps; null: epochs, but steps for Cosine and OneCycle.
            warmup: Epochs in which the rate rises linearly, beside any schedule of project.optim; fractions count.
            warmup_start: Where it starts, as a share of the rate.
            reference_batch: The batch for which lr is meant; lr_scaling follows the real one (A12).
            lr_scaling: linear (Goyal et al. 2017, arXiv:1706.02677; for SGD) or sqrt (Malladi et al. 2022, arXiv:2205.10287; for
                Adam and its kin) multiplies the rate by (batch x devices x accumulation) / reference_batch, or by its root.
            freeze: Layers that do not train, for the whole run or until an epoch (A21).
        """
        super().__init__()
        if not 0 < lr < math.inf:
            raise UserError(f"model.lr must be above 0, not {lr}")
        if not 0 <= warmup < math.inf or not 0 <= warmup_start <= 1:
            raise UserError(
                f"model.warmup must be 0 or more, warmup_start a share from 0 to 1, not {warmup} and {warmup_start}"
            )
        if (lr_scaling == "none") != (reference_batch is None):
            raise UserError(
                "model.lr_scaling and model.reference_batch go together: the rule, and the batch that model.lr is for"
            )
        if reference_batch is not None and reference_batch < 1:
            raise UserError(f"model.reference_batch must be 1 or more, not {reference_batch}")
        ours = schedule is None or isinstance(schedule, Schedule)
        if schedule_interval is not None and (schedule is None or isinstance(schedule, Constant)):
            raise UserError("model.schedule_interval has an effect on a model.schedule only; leave it out")
        if not warmup and warmup_start != 0.01:
            raise UserError("model.warmup_start has an effect on a model.warmup only; leave it out")
        if schedule_interval == "step" and isinstance(schedule, Plateau):
            raise UserError(
                "model.schedule_interval: Plateau counts epochs, after which its metric is known; leave it out"
            )
        if warmup and not ours:
            raise UserError(
                "model.warmup goes with the schedules of project.optim; those of torch have torch's LinearLR instead"
            )
        self.lr, self.make_optimizer = lr, optimizer or AdamW
        self.lr_mult, self.layer_decay, self.no_weight_decay = lr_mult, layer_decay, no_weight_decay
        self.schedule, self.schedule_interval = schedule, schedule_interval
        self.warmup = Warmup(warmup, warmup_start)
        self.reference_batch, self.lr_scaling = reference_batch, lr_scaling
        self.freeze_rule = freeze
        self.trains_from: dict[str, int | None] = {}  # name in net -> epoch, None for never; see Freeze.plan
        self.planned: PlannedRates | None = None  # None with a scheduler of torch
        self._known_length: Length | None = None
        self.curve: list[tuple[float, float]] = []  # training loss, and mean rate of the fastest group, of each epoch
        self._highest: list[float] = []  # the rate of the fastest group at each batch of this epoch
        self.rates: dict[str, float] = {}  # in force, of every group
        self._asleep: list[nn.Module] = []  # modules that own what is frozen now
        self._built: list[dict[str, Any]] = []  # the optimizer's groups as the configuration has them
        self._patience: dict[EarlyStopping, int] = {}  # as configured
        self._batch_then: int | None = None  # of the run that is resumed
        self._restored: list[dict[str, Any]] | None = None  # the same, of the run that is resumed

    # Freezing

    def plan_freeze(self) -> None:
        """Say when each tensor of the network trains."""
        if self.freeze_rule is None:
            return
        self.trains_from = self.freeze_rule.plan(self.net)
        for name, parameter in self.net.named_parameters():
            # What is unfrozen later keeps its gradient until the processes are connected: they never exchange it otherwise.
            if self.trains_from.get(name, 0) is None:
                parameter.requires_grad_(False)

    def frozen(self, epoch: int) -> set[str]:
        """Names of the parameters and buffers of `net` that must not change in an epoch."""
        return {name for name, start in self.trains_from.items() if start is None or epoch < start}

    def _freeze(self, epoch: int) -> None:
        frozen = self.frozen(epoch)
        for name, parameter in self.net.named_parameters():
            if name in self.trains_from:
                parameter.requires_grad_(name not in frozen)
        self._asleep = [self.net.get_submodule(path) for path in {name.rpartition(".")[0] for name in frozen}]
        self.train(self.training)

    def train(self, mode: bool = True) -> "Recipe":
        """As in torch, but what is frozen stays in eval mode: the statistics of its norms do not move."""
        super().train(mode)
        for module in self._asleep:
            module.training = False
        return self

    # Optimizer and schedule

    @property
    def batch(self) -> int:
        """Images for one step of the optimizer: of a device, times devices, times accumulation."""
        return self.trainer.datamodule.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    @property
    def batch_ratio(self) -> float:
        """The batch over the one for which the rate is meant; 1 where the rate does not follow it."""
        return self.batch / self.reference_batch if self.reference_batch else 1.0

    def scaling(self) -> tuple[float, float]:
        """Factors on rate and weight decay: rate x decay grows as the batch does, so that an epoch decays as much as before.

        Wang & Aitchison 2024, arXiv:2405.13698, section 3.
        """
        rate = self.batch_ratio**0.5 if self.lr_scaling == "sqrt" else self.batch_ratio
        return rate, self.batch_ratio / rate

    def length(self) -> Length:
        """Of the run; known once the images are loaded."""
        if self._known_length is not None:  # asked in every step
            return self._known_length
        total = self.trainer.estimated_stepping_batches
        in_epoch = -(-self.trainer.num_training_batches // self.trainer.accumulate_grad_batches)
        self._known_length = Length(None if total in (-1, float("inf")) else int(total), max(1, in_epoch))
        return self._known_length

    def configure_optimizers(self) -> Any:
        self._known_length = None
        rate_factor, decay_factor = self.scaling()
        rate = self.lr * rate_factor
        groups = param_groups(self.net, rate, self.lr_mult, self.layer_decay, self.no_weight_decay)
        try:
            optimizer = self.make_optimizer(groups, rate)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise UserError(f"model.optimizer: {error}") from error
        check_gradients(optimizer, self.net)
        if self.no_weight_decay and not optimizer.defaults.get("weight_decay"):
            raise UserError("model.no_weight_decay has no effect: model.optimizer has no weight_decay")
        for group in optimizer.param_groups:
            if "weight_decay" in group:
                group["weight_decay"] *= decay_factor
        self._built = [{k: v for k, v in group.items() if isinstance(v, PLAIN)} for group in optimizer.param_groups]
        if self.schedule is not None and not isinstance(self.schedule, Schedule):
            return {"optimizer": optimizer, "lr_scheduler": self._scheduler_of_torch(optimizer)}
        self.planned = PlannedRates(
            optimizer, self.schedule or Constant(), self.length, self.schedule_interval, self.warmup
        )
        for plateau in self.planned.plateaus:
            self.check_metric("model.schedule", plateau.monitor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.planned, "interval": "step"}}

    def _scheduler_of_torch(self, optimizer: Optimizer) -> dict[str, Any]:
        scheduler = scheduler_of_torch(self.schedule, optimizer)
        plan = {"scheduler": scheduler, "interval": self.schedule_interval or "epoch"}
        if isinstance(scheduler, ReduceLROnPlateau):
            self.check_metric("model.schedule", scheduler.monitor)
            plan["monitor"] = scheduler.monitor
        return plan

    def metric_names(self) -> set[str]:
        """The metrics that a training logs after each epoch."""
        return {"train/loss"}

    @property
    def validates(self) -> bool:
        """Whether this run looks at validation images at all."""
        trainer = self.trainer
        last = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else math.inf
        often = (trainer.check_val_every_n_epoch or 1) <= last
        return bool(trainer.limit_val_batches) and often and bool(trainer.datamodule.splits["val"])

    def check_metric(self, key: str, name: str) -> None:
        if name not in self.metric_names():
            known = sorted(metric for metric in self.metric_names() if "/acc_class/" not in metric)
            raise UserError(f"{key}: no metric {name!r} is logged; there are {', '.join(known)}")

    def on_fit_start(self) -> None:
        for callback in self.trainer.callbacks:
            if isinstance(callback, EarlyStopping):
                self.check_metric("trainer.callbacks: EarlyStopping", callback.monitor)

    def group_table(self) -> list[dict[str, Any]]:
        """One row for each group of the optimizer: group, parameters, rate, weight_decay, trainable."""
        starts = {id(p): self.trains_from[name] for name, p in self.net.named_parameters() if name in self.trains_from}
        return group_table(self.trainer.optimizers[0].param_groups, starts)

    # Lightning's hooks

    def setup(self, stage: str) -> None:
        """Note what Lightning will overrule when it restores a checkpoint."""
        stoppers = [callback for callback in self.trainer.callbacks if isinstance(callback, EarlyStopping)]
        self._patience = {callback: callback.patience for callback in stoppers}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["groups"], checkpoint["curve"] = self._built, self.curve
        checkpoint["rates"], checkpoint["highest"] = self.rates, self._highest
        checkpoint["batch"] = self.batch if self.trainer.datamodule is not None else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._restored, self.curve = checkpoint.get("groups"), checkpoint.get("curve", [])
        self.rates, self._highest = checkpoint.get("rates", {}), checkpoint.get("highest", [])
        self._batch_then = checkpoint.get("batch")
        fit = self._trainer is not None and self._trainer.state.fn == "fit"
        averaged = fit and any(isinstance(callback, WeightAveraging) for callback in self._trainer.callbacks)
        if fit and not averaged and "current_model_state" in checkpoint:
            print(
                "The checkpoint has averaged weights, and no EMA is set any more: going on from the weights themselves."
            )
            checkpoint["state_dict"] = checkpoint["current_model_state"]

    def on_train_start(self) -> None:
        """Lightning has restored the optimizer as it was: let what the configuration has changed since take effect."""
        self._freeze(self.current_epoch)
        self._check_batch()
        for callback, patience in self._patience.items():
            if callback.patience != patience and self.trainer.is_global_zero:
                print(f"EarlyStopping's patience: {callback.patience} until here, {patience} from now on", flush=True)
            callback.patience = patience
        groups = self.trainer.optimizers[0].param_groups
        for group, now, then in zip(groups, self._built, self._restored or self._built, strict=True):
            for key in now.keys() - {"name", "lr"}:
                if now[key] != then.get(key):
                    group[key] = now[key]
        if self.planned is None:
            return
        self.planned.refresh()
        before, now = self.planned.planned_steps, self.length().steps
        if (
            before not in (None, now)
            and self.trainer.is_global_zero
            and any(part.spans_run for part in self.planned.schedules)
        ):
            print(
                f"The schedule was made for {before} steps and spans {now} from now on: the rates follow.", flush=True
            )

    def _check_batch(self) -> None:
        """A resumed run with another batch: say what follows it, or that nothing can."""
        then, self._batch_then = self._batch_then, None
        if then is None or then == self.batch:
            return
        if self.reference_batch and (self.planned is None or isinstance(self.trainer.optimizers[0], SWATS)):
            raise UserError(
                f"the batch was {then} images for one step until here and is {self.batch} now, but a rate that follows it cannot "
                "change in the middle of a scheduler of torch's or of SWATS; give the old data.batch_size, devices and accumulation"
            )
        if self.trainer.is_global_zero:
            follows = ", and the rate follows" if self.reference_batch else ""
            print(f"The batch is {self.batch} images for one step from now on, {then} until here{follows}.", flush=True)

    def on_train_epoch_start(self) -> None:
        self._freeze(self.current_epoch)

    def note_rates(self) -> None:
        """Keep the rates in force (A17): by the end of the epoch the scheduler will have set the next ones."""
        self.rates = {f"lr/{group['name']}": group["lr"] for group in self.trainer.optimizers[0].param_groups}
        self._highest.append(max(self.rates.values()))

    def end_epoch(self, metrics: dict[str, float]) -> None:
        """Log the rates, and show this epoch's metrics to the schedules that wait for them."""
        if self._highest:
            self.curve.append((metrics["train/loss"], sum(self._highest) / len(self._highest)))
            self._highest = []
        for group in self.trainer.optimizers[0].param_groups:
            if "rate_in_force" in group:  # SWATS, whose rate after the switch is its own
                self.rates[f"lr/{group['name']}"] = group["rate_in_force"]
        self.log_dict(self.rates)
        if self.planned is not None:
            self.planned.observe(metrics)
