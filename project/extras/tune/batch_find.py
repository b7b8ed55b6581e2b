"""How fast and how large training is at each batch size, and which size the guide's rule picks (advice A11)."""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

SMALLEST, LARGEST = (
    16,
    256,
)  # A11: rarely below 16; larger ones are hard to optimise and generalise worse (Keskar et al. 2017)
STEPS_PER_EPOCH = 10  # fewer make an epoch a handful of updates
OUT_OF_MEMORY = (
    *(
        "can't allocate memory",
        "cannot allocate memory",
        "not enough memory",
        "out of memory",
        "bad_alloc",
        "memoryerror",
    ),
    *("can't start new thread", "failed to map segment", "killed by signal: killed"),
)
NEARLY = 0.9  # share of the highest speed that counts as fast: what is above is not worth a larger batch


@dataclass(frozen=True)
class Measurement:
    """One batch size: what it took, or why it failed.

    Images per second on one device; bytes, on a GPU of tensors, on a CPU of the whole process; the rate that the model makes of
    `model.lr`, and its factor on the weight decay.
    """

    batch: int
    speed: float = 0.0
    memory: int = 0
    rate: float = 0.0
    decay_factor: float = 1.0
    failure: str = ""


class StepTimer(L.Callback):
    """Times optimizer steps, from the end of one to the end of the next: loading, augmentation, forward, backward, update."""

    def __init__(self, batch: int, steps: int) -> None:
        """
        Args:
            batch: Images of a full batch; a step with fewer counts only where there are no others.
            steps: Full ones to time, after one that is not timed.
        """
        self.batch, self.steps = batch, steps
        self.speeds: list[float] = []  # images per second of each step
        self._partial: list[float] = []
        self._images, self._full, self._done, self._start = 0, True, -1, 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        size = len(batch["label"])
        self._images, self._full = self._images + size, self._full and size == self.batch
        if trainer.global_step <= max(self._done, 0):
            return  # gradients still accumulate
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._done >= 0:  # the first step warms up
            (self.speeds if self._full else self._partial).append(self._images / (now - self._start))
        self._images, self._full, self._done, self._start = 0, True, trainer.global_step, now
        if len(self.speeds) == self.steps or len(self._partial) >= 4 * self.steps:
            trainer.should_stop = True

    def median(self) -> float:
        return statistics.median(self.speeds or self._partial)


def peak_memory(device: torch.device) -> int:
    """Bytes: of tensors on a GPU, else the largest resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # getrusage would count what the parent had when it started this process
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        import resource  # here, because Windows has none

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is lacking: torch has one for GPUs, and a plain RuntimeError for CPUs."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError, ImportError)) and says_out_of_memory(str(error))


def says_out_of_memory(text: str) -> bool:
    """By the words of torch, of Python, of the operating system, and of a worker that the kernel has killed."""
    return any(word in text.lower() for word in OUT_OF_MEMORY)


def free_memory() -> int | None:
    """Bytes that this process may still take on a CPU, by the machine and by its control group; None where neither says."""
    found = []
    try:
        meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(meminfo["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    groups = (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    )  # versions 2, 1
    for limit, used in groups:
        root = Path("/sys/fs/cgroup")
        try:
            found.append(int((root / limit).read_text()) - int((root / used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            pass
    return min(found) if found else None


def sizes(smallest: int, largest: int) -> list[int]:
    """Powers of two, from a power of two up."""
    return [smallest << i for i in range(64) if smallest << i <= largest]


def recommend(measured: Sequence[Measurement], images: int, accumulated: int = 1) -> tuple[Measurement, str]:
    """The size that the guide's rule picks among those that fit, and why.

    The smallest one from 16 to 256 that is nearly as fast as the fastest of them, and leaves an epoch at least ten steps.

    Args:
        measured: In ascending order; at least one fits.
        images: Number of training images.
        accumulated: Batches of a step.
    """
    fit = [m for m in measured if not m.failure]
    usable = [m for m in fit if m.batch >= SMALLEST]
    if not usable:
        return fit[-1], f"the largest that was measured and fits; below {SMALLEST} gradients are noisy (A11)"
    few = [m for m in usable if m.batch <= LARGEST and m.batch * accumulated * STEPS_PER_EPOCH <= images]
    if not few:
        why = f"it is above {LARGEST}" if usable[0].batch > LARGEST else f"{images} images give few steps an epoch"
        return usable[0], f"the smallest one measured from {SMALLEST} up, though {why}"
    best = max(m.speed for m in few)
    chosen = next(m for m in few if m.speed >= NEARLY * best)
    if len(few) == 1 and few[0] is fit[-1]:
        return chosen, f"the only one from {SMALLEST} up that " + ("fits" if measured[-1].failure else "was measured")
    if len(few) == 1:
        return chosen, f"the smallest one from {SMALLEST} up, because {images} images give few steps an epoch"
    span = f"from {few[0].batch} to {few[-1].batch}"
    if few[-1] is not usable[-1] and few[-1].batch < LARGEST:
        span += " (ten steps an epoch or more)"
    return (
        chosen,
        f"the smallest one {span} with {NEARLY:.0%} of their highest speed; a larger one generalises worse (A11)",
    )


def save(path: Path, measurement: Measurement) -> None:
    path.write_text(json.dumps(vars(measurement)))


def read(path: Path) -> Measurement | None:
    """What a process has measured; None when it died before it could say."""
    try:
        return Measurement(**json.loads(path.read_text()))
    except (OSError, ValueError):
        return None
