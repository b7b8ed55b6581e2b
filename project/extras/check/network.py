"""Checks of a network before its first step: first loss, layers, overfitting one batch (advice A7, A13, A15)."""

import copy
import math
import sys
import time
from typing import get_args

import torch
from torch import Tensor, nn

from project.classifier import Batch, ImageClassifier
from project.extras.check.findings import Findings
from project.extras.look import figures
from project.extras.look.watch import LayerSpread, layer_spread, rectifiers, watch
from project.nets.blocks import InitScheme, initialize

IMAGES = 64  # to overfit, and in the picture of a batch
NEAR = 0.3  # of the loss of guessing; a first loss within it is that of a network without an opinion
GROWTH = 30  # from the smallest to the largest standard deviation; beyond it a learning rate fits some layers only
SECONDS = 10.0  # of overfitting at the configured learning rate; at lower ones half of it each
ENOUGH = 30  # steps that there should be time for: on a slow device with fewer images
FEW = 16  # images that show whether gradients arrive; half of them is the least to overfit
LEARNT = 0.1  # of the loss of guessing: as good as 0
BLOWN_UP, HIGH = 4.0, 2.0  # times the first loss; measured, docs/results.md


def check_network(model: ImageClassifier, batch: Batch, steps: int, compare: bool, found: Findings) -> None:
    """Check the network of a training that is about to start.

    Args:
        model: Attached to its trainer.
        batch: The first one, augmented; it is drawn.
        steps: To overfit one in.
        compare: Compare the initialisations.
        found: Takes lines and pictures.
    """
    part, task = model.trainer.datamodule.loaded["train"], model.task
    drawn = figures.image_grid(batch["image"][:IMAGES], [model.class_names[i] for i in batch["label"][:IMAGES]])
    found.picture("batch.png", "training images, augmented (mixup and cutmix come later): do the names fit?", drawn)
    every = -(-len(part.index) // IMAGES)  # evenly chosen, so that all classes are there
    plain = part.images.whole(part.index[::every])
    images, labels = model.normalise(plain["image"].to(model.device)), plain["label"].to(model.device)
    net, freezing = copy.deepcopy((model.net, model.freezing))  # together, so that one holds the other
    freezing.apply(sys.maxsize)  # what trains at any time of the run
    net.train()
    freezing.hold()
    with torch.no_grad(), watch(fresh := copy.deepcopy(net), [*weighted(net), *rectifiers(net)]) as outputs:
        loss = task.losses(fresh(images), labels).mean().item()
    rows = layer_spread(outputs, rectifiers(net))
    found.picture("layers.png", "outputs of the layers before training", figures.layer_spread(rows))
    check_first_loss(loss, task.chance_loss, model.weights is not None, found)
    check_layers([row for row in rows if row.dead is None], found)
    if math.isfinite(loss):
        check_overfit(model, net, images, labels, steps, found)
    if compare:
        drawn = figures.curves(compare_init(net, images), "layer with weights", "standard deviation of its outputs")
        drawn.axes[0].set_yscale("log", nonpositive="mask")
        found.picture("initialisations.png", "each model.init, before batch norms act", drawn)


def check_first_loss(loss: float, chance: float, pretrained: bool, found: Findings) -> None:
    """Against `chance`, the loss of guessing."""
    words = f"{loss:.3f}, where guessing has {chance:.3f}"
    low = loss < (1 - NEAR) * chance and not pretrained
    found.judge(
        "first loss",
        words,
        (not math.isfinite(loss), "error", words, "another model.init, or a mean and std that fit the images"),
        (
            loss > (1 + NEAR) * chance,
            "warning",
            f"{words}: the first steps only unlearn it",
            "model.init kaiming_normal",
        ),
        (low, "warning", f"{words}: it knows the answers already", "look for the label in the images, and for leakage"),
    )


def weighted(net: nn.Module) -> list[str]:
    """Names of the convolutions and linear layers."""
    return [name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def check_layers(rows: list[LayerSpread], found: Findings) -> None:
    """Standard deviation of the outputs by layer, but the head's, which is small on purpose.

    Args:
        rows: Of the convolutions and linear layers, in training mode, so that batch norms work as they will.
        found: Takes the line.
    """
    stds = {row.std: row.name for row in rows[:-1] if row.std > 0}
    if stds:
        low, high = min(stds), max(stds)
        words = f"standard deviation of the outputs: {low:.3g} ({stds[low]}) to {high:.3g} ({stds[high]})"
        fix = "another model.init (--compare_init draws them all), or batch norm"
        found.judge("layers", words, (high > GROWTH * low, "warning", words, fix))


def compare_init(net: nn.Module, images: Tensor) -> dict[str, list[tuple[float, float]]]:
    """Each initialisation -> (number of the layer, standard deviation of its outputs).

    In eval mode: before the first step a batch norm then passes everything through.
    """
    curves = {}
    for scheme in get_args(InitScheme):
        torch.manual_seed(0)
        fresh = copy.deepcopy(net).eval()
        for layer in fresh.modules():
            if hasattr(layer, "reset_parameters") and "weight" not in layer._buffers:
                layer.reset_parameters()
        initialize(fresh, scheme)
        with torch.no_grad(), watch(fresh, weighted(fresh)) as outputs:
            fresh(images)
        curves[scheme] = [(i, row.std) for i, row in enumerate(layer_spread(outputs), 1)]
    return curves


def check_overfit(
    model: ImageClassifier, net: nn.Module, images: Tensor, labels: Tensor, steps: int, found: Findings
) -> None:
    """Whether one batch is overfitted at the configured learning rate; if not, at a tenth or a hundredth of it.

    Args:
        model: Has the task and the recipe; no mixing, warm-up or schedule is used.
        net: In training mode; copies of it are trained.
        images: Normalised, (N, C, H, W).
        labels: (N,).
        steps: At most.
        found: Takes the line.
    """
    learnt = LEARNT * model.task.chance_loss

    def train(lr: float, count: int, steps: int, seconds: float = math.inf) -> tuple[list[float], bool]:
        """The loss before each step, until it is as good as 0; and whether any weight had a gradient in the last."""
        trained, end, losses = copy.deepcopy(net), time.monotonic() + seconds, []
        optimizer = model.recipe.optimizer(trained, model.batch, lr)

        def closure() -> Tensor:  # some optimizers, such as LBFGS, call it several times in a step
            optimizer.zero_grad()
            loss = model.task.losses(trained(images[:count]), labels[:count]).mean()
            loss.backward()
            model.clip_gradients(optimizer)  # as the trainer is configured
            return loss

        while len(losses) < steps and time.monotonic() < end:
            losses.append(optimizer.step(closure).item())
            if not learnt <= losses[-1] < math.inf:
                break
        return losses, any(p.grad.any() for p in trained.parameters() if p.ndim > 1 and p.grad is not None)

    lr, start = model.recipe.lr, time.monotonic()
    _, moves = train(lr, FEW, 3)  # not 1: a head that starts at 0 passes no gradient on
    affordable = 3 * FEW * SECONDS / ENOUGH / (time.monotonic() - start)
    count = min(len(images), max(FEW // 2, int(affordable)))
    losses, _ = train(lr, count, steps, SECONDS)
    first, last = losses[0], losses[-1]
    rise = max(losses) / (first or 1) if math.isfinite(sum(losses)) else math.inf
    fine = rise < HIGH and last < max(first / 2, learnt)

    def better(lower: float) -> bool:
        """Whether it neither blows up nor stands still."""
        tried, _ = train(lower, count, len(losses), SECONDS / 2)
        return max(tried) < HIGH * tried[0] and tried[-1] < 0.9 * tried[0] and (tried[-1] <= last or rise >= HIGH)

    lower = None if fine else next(filter(better, (lr / 10, lr / 100)), None)
    words = f"{count} images, model.lr {lr:g}: loss {first:.3g} to {last:.3g} in {len(losses)} steps"
    top = f"{words}, up to {rise:.3g} times as much"
    fix = f"--model.lr {lower:g}, at which it falls smoothly" if lower else "a lower model.lr"
    rules = (
        (not moves, "error", f"{words}: no layer has a gradient", "model.init kaiming_normal"),
        (fine, "ok", words, ""),
        (rise >= BLOWN_UP, "error", f"{top}: the learning rate is far too high", fix),
        (lower and last > 0.8 * first, "error", f"{words}: at this learning rate it learns nothing", fix),
        (rise >= HIGH, "warning", top, f"{fix}, or a model.warmup"),
        (lower, "warning", f"{words}: a lower learning rate learns faster", fix),
        (True, "warning", f"{words}: it does not overfit them", "a higher model.lr, a larger network, or more --steps"),
    )
    found.judge("one batch", "", next(rule for rule in rules if rule[0]))
