"""Check that a network learns one batch by heart, and that the rate is none of those that blow it up (advice A13)."""

import copy
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from project.extras.check.findings import Findings

SECONDS = 10.0  # for all attempts together
ENOUGH = 30  # steps, below which nothing is said of a loss that does not fall; on a slow device fewer images are learnt instead
FEWEST = 8  # images
LEARNT = 0.1  # of ln(classes): as good as nothing
BLOWN_UP, HIGH = 4.0, 2.0  # times the first loss; measured in docs/results.md

MakeOptimizer = Callable[[nn.Module, float], torch.optim.Optimizer]  # network, factor on its rates -> optimizer


class Attempt:
    """One batch learnt by heart at one rate; `losses` of each step, and whether every image was right at its end."""

    def __init__(self, net: nn.Module, make: MakeOptimizer, factor: float, clip: float | None) -> None:
        self.net = copy.deepcopy(net)
        self.optimizer, self.clip = make(self.net, factor), clip
        self.losses: list[float] = []
        self.right = 0.0

    def run(self, images: Tensor, labels: Tensor, steps: int, seconds: float) -> None:
        """Train until all is right and the loss next to nothing, or the steps, or the seconds are over."""
        enough = LEARNT * math.log(int(labels.max()) + 1 or 2)
        end = time.monotonic() + seconds
        seen: list[tuple[float, float]] = []  # of this step: loss and share that is right

        def closure() -> Tensor:  # some optimizers, such as LBFGS, call it several times
            logits = self.net(images).float()
            loss = nn.functional.cross_entropy(logits, labels)
            seen.append((float(loss.detach()), float((logits.argmax(1) == labels).float().mean())))
            self.optimizer.zero_grad()
            loss.backward()
            if self.clip:
                nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
            return loss

        for _ in range(steps):
            seen.clear()
            self.optimizer.step(closure)
            loss, self.right = seen[0]
            self.losses.append(loss)
            if not math.isfinite(loss) or loss < enough or time.monotonic() > end:
                break

    @property
    def highest(self) -> float:
        return max(self.losses) if all(map(math.isfinite, self.losses)) else math.inf

    @property
    def learnt(self) -> bool:
        return math.isfinite(self.losses[-1]) and (self.right == 1 or self.losses[-1] < LEARNT * self.losses[0])

    @property
    def falling(self) -> bool:
        return math.isfinite(self.losses[-1]) and self.losses[-1] < self.losses[0] / 2


def check_rate(
    net: nn.Module,
    make: MakeOptimizer,
    rate: float,
    scaling: float,
    images: Tensor,
    labels: Tensor,
    clip: float | None,
    steps: int,
    found: Findings,
) -> None:
    """Learn one batch by heart with the configured optimizer at its highest rate; where that fails, at a tenth and a hundredth.

    No augmentation, no warm-up, no mixing, plain cross-entropy: what is left is network, optimizer and rate.

    Args:
        net: In training mode; copies of it are trained.
        make: See `MakeOptimizer`.
        rate: model.lr, for the words.
        scaling: What lr_scaling makes of it, for the words.
        images: Normalised, (N, C, H, W).
        labels: (N,).
        clip: Norm that gradients are clipped to.
        steps: At most.
        found: Takes the line.
    """
    few = _affordable(net, make, images, labels, clip)
    images, labels = images[:few], labels[:few]
    first = Attempt(net, make, 1.0, clip)
    first.run(images, labels, steps, SECONDS / 2)
    count, start, end = len(first.losses), first.losses[0], first.losses[-1]
    scaled = "" if scaling == 1 else f" (x {scaling:.3g} by lr_scaling)"
    words = f"{len(images)} images, model.lr {rate:g}{scaled}: loss {start:.3g} to {end:.3g} in {count} steps, {first.right:.0%} right"
    times = first.highest / max(start, 1e-9)
    if times < HIGH and first.learnt:
        found.ok("one batch", words)
        return
    lower = next(
        (
            factor
            for factor in (0.1, 0.01)
            if _better(net, make, factor, images, labels, clip, min(steps, count), first)
        ),
        None,
    )
    mend = f"--model.lr {rate * lower:g}, at which it falls smoothly" if lower else "a lower model.lr"
    if times >= BLOWN_UP:
        top = "no number" if math.isinf(first.highest) else f"{first.highest:.3g}"
        found.stop("one batch", f"{words}; on the way the loss rises to {top}: the rate is far too high", mend)
    elif count < min(steps, ENOUGH) and not first.learnt and times < HIGH:
        if first.losses[-1] < 0.9 * first.losses[0]:
            found.ok("one batch", f"{words}; it falls, and this device is too slow to say more in {SECONDS / 2:.0f} s")
        else:
            found.look(
                "one batch",
                f"{words}: too few to tell, on this device",
                "a smaller network or data.image_size, or a GPU",
            )
    elif lower and first.losses[-1] > 0.8 * first.losses[0]:
        found.stop("one batch", f"{words}: at this rate it learns nothing", mend)
    elif lower and not first.falling:
        found.look("one batch", f"{words}: a lower rate learns it sooner", mend)
    elif times >= HIGH:
        found.look(
            "one batch", f"{words}; on the way the loss rises to {first.highest:.3g}", f"{mend}; or a model.warmup"
        )
    elif first.falling or first.learnt:
        found.ok("one batch", words)
    else:
        found.look(
            "one batch",
            f"{words}: it does not learn even these",
            "a higher model.lr, a larger network, or --steps for more steps",
        )


def _affordable(net: nn.Module, make: MakeOptimizer, images: Tensor, labels: Tensor, clip: float | None) -> int:
    """As many images as leave time for enough steps."""
    trial = Attempt(net, make, 1.0, clip)
    trial.run(images, labels, 1, SECONDS)  # the first step of all is slower than the rest
    start = time.monotonic()
    trial.run(images, labels, 1, SECONDS)
    share = SECONDS / 2 / ENOUGH / max(1e-9, time.monotonic() - start)
    return len(images) if share >= 1 else max(min(FEWEST, len(images)), int(len(images) * share))


def _better(
    net: nn.Module,
    make: MakeOptimizer,
    factor: float,
    images: Tensor,
    labels: Tensor,
    clip: float | None,
    steps: int,
    first: Attempt,
) -> bool:
    """Whether a lower rate neither blows up nor stands still."""
    attempt = Attempt(net, make, factor, clip)
    attempt.run(images, labels, steps, SECONDS / 4)
    last, before = attempt.losses[-1], first.losses[-1]
    better = last <= before or first.highest >= HIGH * first.losses[0]
    return attempt.highest < 2 * attempt.losses[0] and last < 0.9 * attempt.losses[0] and better
