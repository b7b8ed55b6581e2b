"""Looks at a training that has been set up but not begun, times its first steps, and ends it; for `check`."""

import copy
import math
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from project.classifier import Batch, ImageClassifier
from project.extras.check.findings import Findings
from project.extras.check.rate import check_rate
from project.extras.check.start import check_first_loss, check_signal, check_spread, compare_init
from project.extras.look import figures
from project.extras.look.watch import layer_spread, rectifiers
from project.optim import param_groups
from project.optim.plan import draw_plan
from project.run.plan import advice_for, make_plan
from project.run.terminal import optimizer_lines

WARM, TIMED = 2, 20  # steps
SECONDS = 6.0  # of timing, at most
FEW = 16  # images that show whether gradients arrive
LEARNT = 64  # images that are to be learnt by heart, at most
LONG_RUN = 24 * 3600  # seconds; worth a second look before it starts

Keep = Callable[[str, str, Figure], None]  # file name, what it shows, figure


class Measured(Exception):
    """All is known, and the training is to end."""


class Probe(L.Callback):
    """Before the first step: the start, the rate, the plan. Then a few timed steps; then it raises Measured."""

    def __init__(self, found: Findings, keep: Keep, steps: int, compare: bool) -> None:
        """
        Args:
            found: Takes the lines.
            keep: Takes the pictures.
            steps: In which one batch is to be learnt by heart.
            compare: Compare the initialisations.
        """
        self.found, self.keep, self.steps, self.compare = found, keep, steps, compare
        self._times: list[float] = []
        self._start = 0.0
        self._alive = True

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: ImageClassifier) -> None:
        # Not in on_train_start, which for callbacks comes before what the model freezes.
        data = trainer.datamodule
        part = data.loaded["train"]
        rows = part.index[:: max(1, len(part.index) // data.batch_size)][: data.batch_size]
        batch = part.images.__getitems__([(0, row) for row in rows])
        images, labels = batch["image"].to(pl_module.device), batch["label"].to(pl_module.device)
        inputs = pl_module.normalise(images)
        self._look_at_start(trainer, pl_module, inputs, labels)
        self._look_at_plan(trainer, pl_module)
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._start = time.perf_counter()

    def _look_at_start(self, trainer: L.Trainer, model: ImageClassifier, inputs: Tensor, labels: Tensor) -> None:
        net = trainable_copy(model)
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            with torch.no_grad():
                loss = float(nn.functional.cross_entropy(net(inputs).float(), labels))
            check_first_loss(loss, model.num_classes, model.weights is not None, self.found)
            outputs = check_spread(copy.deepcopy(net), inputs, self.found)
            rows = layer_spread(outputs, rectifiers(net))
            self.keep("spread.png", "outputs of the layers before training", figures.layer_spread(rows))
            self._alive = check_signal(
                other := copy.deepcopy(net), inputs[:FEW], labels[:FEW], self._make(model)(other, 1.0), self.found
            )
            if self._alive and math.isfinite(loss):
                clip = trainer.gradient_clip_val if trainer.gradient_clip_algorithm in (None, "norm") else None
                some = slice(min(LEARNT, len(labels)))
                check_rate(
                    net,
                    self._make(model),
                    model.lr,
                    model.scaling()[0],
                    inputs[some],
                    labels[some],
                    clip,
                    self.steps,
                    self.found,
                )
            if self.compare:
                curves = compare_init(net, inputs)
                figure = figures.curves(curves, "layer with weights", "standard deviation of its outputs")
                figure.axes[0].set_yscale("log", nonpositive="mask")
                self.keep(
                    "initialisations.png", "spread by layer under each model.init (A7), before batch norms act", figure
                )

    def _make(self, model: ImageClassifier) -> Callable[[nn.Module, float], torch.optim.Optimizer]:
        rate = model.lr * model.scaling()[0]

        def make(net: nn.Module, factor: float) -> torch.optim.Optimizer:
            groups = param_groups(net, rate * factor, model.lr_mult, model.layer_decay, model.no_weight_decay)
            return model.make_optimizer(groups, rate * factor)

        return make

    def _look_at_plan(self, trainer: L.Trainer, model: ImageClassifier) -> None:
        print("\n".join(optimizer_lines(model, type(trainer.optimizers[0]).__name__)))
        plan = make_plan(model)
        if plan is None:
            print("           the run has no end that is known, so its rates are not drawn")
            return
        self.keep("rates.png", "the planned rates", draw_plan(plan))
        advice = advice_for(trainer, model, plan)
        for line in advice:
            words, _, mend = line.partition("; ")
            self.found.look("advice", words, mend or "see docs/training.md")
        if not advice:
            self.found.ok("advice", "batch, rate and schedule are within the guide's usual ranges")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: ImageClassifier, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx:
            return
        shown: list[Tensor] = []
        handle = pl_module.net.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].detach().clone()))
        self._remove = handle.remove
        self._shown, self._names = shown, [pl_module.class_names[label] for label in batch["label"][:32].tolist()]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: ImageClassifier, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self._remove()
            seen = self._shown[0][:32].float() * pl_module.std + pl_module.mean
            self.keep(
                "batch.png",
                "a batch as the network sees it, augmented",
                figures.image_grid(seen.clamp(0, 1), self._names),
            )
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if batch_idx >= WARM or trainer.num_training_batches <= WARM:
            self._times.append(now - self._start)
        if len(self._times) >= TIMED or sum(self._times) > SECONDS or batch_idx + 1 >= trainer.num_training_batches:
            self._tell(trainer, pl_module)
            raise Measured
        self._start = time.perf_counter()

    def on_exception(self, trainer: L.Trainer, pl_module: ImageClassifier, exception: BaseException) -> None:
        if hasattr(self, "_remove"):
            self._remove()

    def _tell(self, trainer: L.Trainer, model: ImageClassifier) -> None:
        """Time and memory of the whole run."""
        step = median(self._times)
        evaluated = _time_to_validate(trainer, model)
        length = model.length()
        device = (
            torch.cuda.get_device_name()
            if model.device.type == "cuda"
            else f"the CPU, {torch.get_num_threads()} threads"
        )
        if length.steps is None:
            self.found.ok("time", f"{1000 * step:.0f} ms for a step on {device}; the run ends when it is told to")
        else:
            batches = trainer.num_training_batches * length.epochs
            total = batches * step + length.epochs / (trainer.check_val_every_n_epoch or 1) * evaluated
            words = f"about {duration(total)}: {batches:,} batches of {1000 * step:.0f} ms, and validation, on {device}"
            if total > LONG_RUN:
                self.found.look(
                    "time", words, "a faster device, a smaller data.image_size, or fewer trainer.max_epochs"
                )
            else:
                self.found.ok("time", words)
        self.found.ok("memory", memory_words(model.device))


def trainable_copy(model: ImageClassifier) -> nn.Module:
    """The network in training mode, with all that trains at any time of the run."""
    net = copy.deepcopy(model.net).train()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(model.trains_from.get(name, 0) is not None)
    for path in {name.rpartition(".")[0] for name, start in model.trains_from.items() if start is None}:
        net.get_submodule(path).training = False
    return net


def _time_to_validate(trainer: L.Trainer, model: ImageClassifier) -> float:
    """Seconds for all validation images, from one batch of them."""
    part = trainer.datamodule.loaded.get("val")
    if part is None:
        return 0.0
    rows = part.index[: trainer.datamodule.batch_size]
    model.eval()
    start = time.perf_counter()
    with torch.no_grad():
        model(part.images.__getitems__([(0, row) for row in rows])["image"].to(model.device))
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    model.train()
    return (time.perf_counter() - start) * len(part.index) / len(rows)


def duration(seconds: float) -> str:
    """In words, to about two digits."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def memory_words(device: torch.device) -> str:
    """The most that was needed so far."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB at most, of the {total / 1e9:.0f} GB of the GPU"
    try:
        import resource  # not on Windows
    except ImportError:
        return "cannot be measured on this system"
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    try:
        all_of_it = f", of the {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f} GB of this machine"
    except (ValueError, OSError):
        all_of_it = ""
    return f"{used / 1e9:.2f} GB at most{all_of_it}"
