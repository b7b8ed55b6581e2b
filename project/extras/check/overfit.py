"""Can the network overfit one batch, and is its learning rate one that does not blow it up (advice A13)?"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from project.extras.check.findings import Findings
from project.extras.look.watch import watch

SECONDS = 10.0  # for all attempts together
ENOUGH = 30  # steps, before which a loss that does not fall means nothing; on a slow device the batch is made smaller for them
FEWEST, FEW = 8, 16  # images: of such a smaller batch, and to see whether gradients arrive
LEARNT = 0.1  # of the loss of guessing: as good as 0
BLOWN_UP, HIGH = 4.0, 2.0  # times the first loss; measured, docs/results.md


@dataclass
class OneBatch:
    """One batch, and how it is trained on: no augmentation, mixing, warm-up or schedule, only network, optimizer and learning rate.

    Args:
        net: In training mode; copies of it are trained.
        loss: (logits, labels) -> scalar.
        optimizer: (network, learning rate) -> optimizer.
        lr: The configured learning rate.
        images: Normalised, (N, C, H, W).
        labels: (N,).
        chance: The loss of guessing.
        clip: Norm that gradients are clipped to.
    """

    net: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[[nn.Module, float], Optimizer]
    lr: float
    images: Tensor
    labels: Tensor
    chance: float
    clip: float | None = None

    def attempt(
        self, factor: float, steps: int, seconds: float = SECONDS, count: int | None = None
    ) -> tuple[nn.Module, list[float]]:
        """Train a copy with a multiple of the learning rate, on `count` images, until the loss is as good as 0.

        Returns:
            The copy, and the loss before each step.
        """
        net = copy.deepcopy(self.net)
        optimizer = self.optimizer(net, self.lr * factor)
        losses: list[float] = []
        end = time.monotonic() + seconds

        def closure() -> Tensor:  # some optimizers, such as LBFGS, call it several times in a step
            optimizer.zero_grad()
            loss = self.loss(net(self.images[:count]), self.labels[:count])
            loss.backward()
            if self.clip:
                nn.utils.clip_grad_norm_(net.parameters(), self.clip)
            return loss

        for _ in range(steps):
            losses.append(float(optimizer.step(closure)))
            if not math.isfinite(losses[-1]) or losses[-1] < LEARNT * self.chance or time.monotonic() > end:
                break
        return net, losses


def check_signal(batch: OneBatch, found: Findings) -> bool:
    """Whether weights have gradients, in the third step: a head that starts at 0 passes none to the layers below at first.

    Returns:
        Whether the network can learn.
    """
    net, _ = batch.attempt(1.0, 3, count=FEW)
    weights = [p for p in net.parameters() if p.ndim > 1 and p.requires_grad]
    moving = sum(p.grad is not None and bool(p.grad.any()) for p in weights)
    with torch.no_grad(), watch(net) as outputs:
        net(batch.images[:FEW])
    alike = [name for name, output in outputs.items() if len(output) > 1 and bool((output == output[:1]).all())]
    words = f"no layer has a gradient; all images look the same from {(alike or ['the last layer'])[0]} on"
    dead = bool(weights) and not moving
    rules = [(dead, "error", words, "model.init kaiming_normal, or weights that are not all 0")]
    found.judge("signal", f"{moving} of {len(weights)} trainable weights have a gradient", rules)
    return not dead


def check_overfit(batch: OneBatch, steps: int, words: str, found: Findings) -> None:
    """Overfit the batch at the configured learning rate; where that fails, at a tenth and a hundredth.

    Args:
        batch: What to overfit.
        steps: At most.
        words: About the learning rate.
        found: Takes the line.
    """
    batch.attempt(1.0, 1)  # the very first step is slower than the rest
    start = time.monotonic()
    batch.attempt(1.0, 1)
    affordable = int(len(batch.images) * SECONDS / 2 / ENOUGH / (time.monotonic() - start))
    few = min(len(batch.images), max(FEWEST, affordable))
    _, losses = batch.attempt(1.0, steps, SECONDS / 2, few)
    first, last, count = losses[0], losses[-1], len(losses)
    highest = max(losses) if all(map(math.isfinite, losses)) else math.inf
    learnt, falling, rise = last < LEARNT * first, last < first / 2, highest / first

    def better(factor: float) -> bool:
        """Whether a lower learning rate neither blows up nor stands still."""
        _, tried = batch.attempt(factor, min(steps, count), SECONDS / 4, few)
        return max(tried) < 2 * tried[0] and tried[-1] < 0.9 * tried[0] and (tried[-1] <= last or rise >= HIGH)

    smooth = rise < HIGH and learnt
    lower = None if smooth else next((factor for factor in (0.1, 0.01) if better(factor)), None)
    words = f"{few} images, {words}: loss {first:.3g} to {last:.3g} in {count} steps"
    top = f"{words}, rising to {highest:.3g} on the way"
    fix = f"--model.lr {batch.lr * lower:g}, at which it falls smoothly" if lower else "a lower model.lr"
    slow = count < min(steps, ENOUGH) and rise < HIGH
    device = "a smaller network or data.image_size, or a GPU"
    more = "a higher model.lr, a larger network, or more --steps"
    rules = (  # the first that applies
        (smooth, "ok", words, ""),
        (rise >= BLOWN_UP, "error", f"{top}: the learning rate is far too high", fix),
        (slow and last < 0.9 * first, "ok", f"{words}; it falls, but this device is too slow to say more", ""),
        (slow, "warning", f"{words}: too few to tell, on this device", device),
        (lower and last > 0.8 * first, "error", f"{words}: at this learning rate it learns nothing", fix),
        (lower and not falling, "warning", f"{words}: at a lower learning rate it learns sooner", fix),
        (rise >= HIGH, "warning", top, f"{fix}; or a model.warmup"),
        (falling, "ok", words, ""),
        (True, "warning", f"{words}: not even these are learnt", more),
    )
    found.judge("one batch", "", [next(rule for rule in rules if rule[0])])
