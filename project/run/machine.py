"""What suits network and machine: precision and threads, by rules, so that a seed's result depends on no timing."""

import copy
import os
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from jsonargparse.typing import PositiveInt
from lightning.fabric.connector import _PRECISION_INPUT
from lightning.pytorch.plugins import Precision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from project.errors import UserError
from project.messages import say
from project.processor import crowded

# Both are operations of a step's forward pass; `benchmarks.machine steps` measures them.
BF16_FROM = 3e9  # bfloat16 starts to gain: 1.2e9 takes as long in both, 12e9 takes two thirds of the time, 30e9 half
THREADS_FROM = 0.3e9  # several threads start to gain: 0.07e9 takes as long with one
OWN_THREADS = torch.get_num_threads()  # as torch has it, before any run has changed it
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # the user's, or Lightning's for the ranks that share a machine
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


class Trainer(L.Trainer):
    """Lightning's, whose precision and length may be left to us."""

    def __init__(
        self,
        *,
        precision: Literal["auto"] | _PRECISION_INPUT | None = "auto",
        max_epochs: Literal["auto"] | int | None = "auto",
        **kwargs: Any,
    ) -> None:
        """
        Args:
            precision: auto: bf16-mixed on GPUs of Ampere and newer, 16-mixed on older ones; on the CPU bf16-mixed where
                it has avx512_bf16 and the network gains; else 32-true. The run keeps what was chosen.
            max_epochs: auto: by the number of images, for a training from random weights: as many as take 800 optimizer
                steps on one device, from 8 to 100; the run keeps the number. -1: no end.
        """
        precision, max_epochs = (None if value == "auto" else value for value in (precision, max_epochs))
        super().__init__(precision=precision, max_epochs=max_epochs, **kwargs)


class Work(NamedTuple):
    """The forward pass of a training step on one device."""

    flops: float  # a multiplication and an addition are two
    convolutions: float  # their share of it
    depthwise: bool  # whether some convolve each channel by itself


def work_of(model: L.LightningModule, batch: int) -> Work | None:
    """Count a classifier's work, without computing or changing anything; None where it cannot be."""
    # On torch's device without values, where a tensor is its shape.
    shapes = {id(each): each.detach().to("meta") for each in [*model.parameters(), *model.buffers()]}
    try:
        model, size = copy.deepcopy(model, shapes), (2, model.in_channels, model.image_size, model.image_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.random.fork_rng([]):
            model.net(model.normalise(torch.empty(size, device="meta")))
        total, kinds = counter.get_total_flops(), counter.get_flop_counts()["Global"]
        share = kinds.get(torch.ops.aten.convolution, 0) / total
    except Exception:  # of any network
        return None
    depthwise = any(isinstance(each, nn.Conv2d) and 1 < each.in_channels == each.groups for each in model.modules())
    return Work(total / 2 * batch, share, depthwise)


def choose(settings: Mapping[str, Any], work: Work | None) -> tuple[Any, str]:
    """The precision for a trainer with these settings, and why; what was asked for stays."""
    asked, plugins = settings["precision"], settings["plugins"]
    found = settings["accelerator"] != "cpu" and torch.accelerator.current_accelerator(True)
    device = found.type if found else "cpu"
    native = device == "cpu" and torch.cpu._is_avx512_bf16_supported()  # every processor with AMX has it
    if device == "cuda":
        native = min(map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))) >= (8, 0)
    if device == "cpu" and str(asked) in ("16", "16-mixed"):
        return "bf16-mixed", "16-mixed is for GPUs"
    if asked not in ("auto", None):
        slow = device == "cpu" and not native and "16" in str(asked)
        return asked, "slow: the processor lacks avx512_bf16; 32-true is not" if slow else ""
    if any(isinstance(each, Precision) for each in (plugins if isinstance(plugins, list) else [plugins])):
        return None, "of trainer.plugins"
    precision, why = precision_for(device, native, work)
    return precision, f"auto: {why}"


def precision_for(device: str, native: bool, work: Work | None) -> tuple[str, str]:
    """A precision, and why.

    Args:
        device: cpu, cuda, mps or another of torch's.
        native: Whether it computes in bfloat16.
        work: None where it is not known.
    """
    if device == "cuda":
        return ("bf16-mixed", "a GPU of Ampere or newer") if native else ("16-mixed", "a GPU of before Ampere")
    size = f"{work.flops / 1e9:.2g} GFLOP a step" if work else ""
    if device != "cpu":
        why = f"16 bits are not measured on {device}"
    elif not native:
        why = "the processor lacks avx512_bf16"
    elif work is None:
        why = "the network's work cannot be counted"
    elif work.depthwise:
        why = "depthwise convolutions lose with 16 bits"
    elif work.convolutions < 0.5:
        why = "mostly other layers than convolutions"
    elif work.flops < BF16_FROM:
        why = f"too little work for 16 bits, {size}"
    else:
        return "bf16-mixed", f"the processor has avx512_bf16, convolutions of {size} gain"
    return "32-true", why


def threads_for(asked: int | None, given: Mapping[str, str], kept: int | None, work: Work | None) -> int | None:
    """Threads of torch on the CPU; None leaves them as they are.

    Args:
        asked: By the user.
        given: Environment variables.
        kept: Of the run that is resumed.
        work: None where it is not known.
    """
    if asked or given.keys() & THREADS:
        return asked
    return min(kept, OWN_THREADS) if kept else 1 if work and work.flops < THREADS_FROM else OWN_THREADS


class Machine(L.Callback):
    """Sets the threads, compiles, and says on what the run runs."""

    def __init__(self, work: Work | None, why: str, threads: PositiveInt | None = None, compile: bool = False) -> None:
        """
        Args:
            work: Of a step. The command line sets it, and `why` the precision is what it is.
            threads: Threads of torch on the CPU. Null: one where a step is too small for more, else torch's own number;
                a resumed run keeps it. OMP_NUM_THREADS and MKL_NUM_THREADS overrule null.
            compile: Compile the network with torch.compile, which takes a minute at the start and needs a C++ compiler;
                the checkpoints are the same.
        """
        self.work, self.why, self.threads, self.compile = work, why, threads, compile
        self._kept: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        self._set_threads(None)
        if stage != "fit" and self.why:
            say(f"precision {trainer.precision}: {self.why}")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._set_threads(self._kept)
        if self.compile:
            pl_module.net.compile()
        same = trainer.strategy.broadcast(trainer.precision) == trainer.precision
        if not trainer.strategy.reduce_boolean_decision(same):
            raise UserError("trainer.precision: the machines choose different ones; give one")
        why, layout = self.why and f" ({self.why})", pl_module.hparams.get("channels_last")
        given = [f"{name} {os.environ[name]}" for name in THREADS + WAITING if name in os.environ]
        say(
            f"device     {trainer.world_size} x {pl_module.device.type}, precision {trainer.precision}{why}\n"
            f"           {'channels last' if layout else 'contiguous'}{', compiled' * self.compile}, "
            + ", ".join([f"threads {torch.get_num_threads()}", *given])
        )
        if pl_module.device.type == "cpu" and torch.get_num_threads() > 1 and crowded():
            say("advice     other processes use these cores: --machine.threads 1 may be twice as fast beside them")

    def _set_threads(self, kept: int | None) -> None:
        if number := threads_for(self.threads, os.environ, kept, self.work):
            torch.set_num_threads(int(number))

    def state_dict(self) -> dict[str, int]:
        return {"threads": torch.get_num_threads()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._kept = state["threads"]
