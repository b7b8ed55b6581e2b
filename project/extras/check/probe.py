"""A callback that examines a training that has been set up but not started, times its first steps, and ends it."""

import contextlib
import copy
import itertools
import os
import sys
import time
from datetime import timedelta
from statistics import median
from typing import Any

import lightning as L
import torch

from project.classifier import Batch, ImageClassifier
from project.extras.check.findings import Findings
from project.extras.check.images import batch_of
from project.extras.check.overfit import OneBatch, check_overfit, check_signal
from project.extras.check.start import check_first_loss, check_layers, compare_init
from project.extras.look import figures
from project.extras.look.watch import layer_spread, rectifiers
from project.optim.plan import draw_plan
from project.run.plan import advice_for, make_plan
from project.run.terminal import optimizer_lines

WARM, TIMED = 2, 20  # steps
SECONDS = 6.0  # of timing, at most
LEARNT = 64  # images to overfit, at most
LONG_RUN = timedelta(days=1)  # worth a second look before it starts


class Measured(Exception):
    """Everything is known, and the training is to end."""


class Probe(L.Callback):
    """Before the first step: the network's start and the plan. Then a few timed steps; then it raises Measured."""

    def __init__(self, found: Findings, steps: int, compare: bool) -> None:
        """
        Args:
            found: Takes lines and pictures.
            steps: To overfit one batch in.
            compare: Compare the initialisations.
        """
        self.found, self.steps, self.compare = found, steps, compare
        self._times: list[float] = []  # before the first step, and after each

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: ImageClassifier) -> None:
        # Not in on_train_start, which for callbacks comes before the model freezes its layers.
        with torch.random.fork_rng(devices=[pl_module.device] if pl_module.device.type == "cuda" else []):
            self._check_start(trainer, pl_module)
        self._check_plan(trainer, pl_module)
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._times.append(time.perf_counter())

    def _check_start(self, trainer: L.Trainer, model: ImageClassifier) -> None:
        data, recipe = trainer.datamodule, model.recipe
        batch = batch_of(data.loaded["train"], data.batch_size)
        images, labels = model.normalise(batch["image"].to(model.device)), batch["label"].to(model.device)
        net, freezing = copy.deepcopy((model.net, model.freezing))  # together, so that one holds the other
        freezing.apply(sys.maxsize)  # all that trains at any time of the run
        net.train()
        freezing.hold()
        one = OneBatch(
            net,
            lambda logits, targets: model.task.losses(logits.float(), targets).mean(),
            lambda net, lr: recipe.optimizer(net, model.batch, lr),
            recipe.lr,
            images[:LEARNT],
            labels[:LEARNT],
            model.task.chance_loss,
            trainer.gradient_clip_val if trainer.gradient_clip_algorithm in (None, "norm") else None,
        )
        with torch.no_grad():
            loss = float(one.loss(copy.deepcopy(net)(images), labels))
        check_first_loss(loss, one.chance, model.weights is not None, self.found)
        outputs = check_layers(copy.deepcopy(net), images, self.found)
        drawn = figures.layer_spread(layer_spread(outputs, rectifiers(net)))
        self.found.picture("layers.png", "outputs of the layers before training", drawn)
        if check_signal(one, self.found) and loss < float("inf"):
            factor = recipe.scaling(model.batch)[0]
            words = f"model.lr {recipe.lr:g}" + (f" (x {factor:.3g} by lr_scaling)" if factor != 1 else "")
            check_overfit(one, self.steps, words, self.found)
        if self.compare:
            drawn = figures.curves(compare_init(net, images), "layer with weights", "standard deviation of its outputs")
            drawn.axes[0].set_yscale("log", nonpositive="mask")
            self.found.picture("initialisations.png", "each model.init, before batch norms act (A7)", drawn)

    def _check_plan(self, trainer: L.Trainer, model: ImageClassifier) -> None:
        print("\n".join(optimizer_lines(model, type(trainer.optimizers[0]).__name__)))
        plan = make_plan(model)
        if plan is None:
            print("           the run has no known end, so its learning rates are not drawn")
            return
        self.found.picture("rates.png", "the planned learning rates", draw_plan(plan))
        lines = [line.partition("; ") for line in advice_for(trainer, model, plan)]
        rules = [(True, "warning", words, fix or "see docs/training.md") for words, _, fix in lines]
        self.found.judge("advice", "batch size, learning rate and schedule are within the guide's usual ranges", rules)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: ImageClassifier, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self._times.append(time.perf_counter())
        done = batch_idx + 1 in (WARM + TIMED, trainer.num_training_batches)
        if done or self._times[-1] - self._times[0] > SECONDS:
            names = [pl_module.class_names[label] for label in batch["label"][:32].tolist()]
            drawn = figures.image_grid(batch["image"][:32], names)
            self.found.picture("batch.png", "a training batch, augmented (mixup and cutmix come later)", drawn)
            self._check_cost(trainer, pl_module)
            raise Measured

    def _check_cost(self, trainer: L.Trainer, model: ImageClassifier) -> None:
        """Time and memory of the whole run."""
        taken = [after - before for before, after in itertools.pairwise(self._times)]
        step, length, cuda = median(taken[WARM:] or taken), model.length(), model.device.type == "cuda"
        device = torch.cuda.get_device_name() if cuda else f"the CPU, {torch.get_num_threads()} threads"
        words = f"{1000 * step:.0f} ms a batch on {device}"
        if length.steps is None:
            self.found.add("ok", "time", f"{words}; the run has no known end")
        else:
            batches, splits = trainer.num_training_batches * length.epochs, trainer.datamodule.splits
            # The forward pass is about a third of a step.
            share = len(splits["val"]) / len(splits["train"]) / 3 / (trainer.check_val_every_n_epoch or 1)
            total = timedelta(seconds=round(batches * step * (1 + share * model.validates)))
            words = f"about {total} for {batches:,} batches and validation; {words}"
            fix = "a faster device, a smaller data.image_size, or fewer trainer.max_epochs"
            self.found.judge("time", words, [(total > LONG_RUN, "warning", words, fix)])
        if cuda:
            used, size = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(model.device).total_memory
            self.found.add("ok", "memory", f"{used / 1e9:.2f} GB at most, of the GPU's {size / 1e9:.0f} GB")
            return
        with contextlib.suppress(ImportError):
            import resource  # not on Windows

            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            self.found.add("ok", "memory", f"{used / 1e9:.2f} GB at most, of this machine's {size / 1e9:.0f} GB")
