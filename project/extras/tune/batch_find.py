"""`python -m project batch_find`: how fast training is at each batch size, and which one to take (advice A11, A12)."""

import statistics
from typing import Any

from project.extras.tune.measure import OutOfMemoryError, measure, write_yaml
from project.files import output_path

SMALLEST, LARGEST = 16, 256  # A11: below it gradients are noisy; 256 is our choice
STEPS_PER_EPOCH = 10  # fewer make an epoch a handful of updates
NEARLY = 0.9  # share of the highest speed that counts as fast: what is above is not worth a larger batch


def find(config: dict[str, Any], out: str, smallest: int, largest: int, steps: int, memory_limit: float | None) -> int:
    """Print a table of the batch sizes and write the recommended one to a YAML file.

    Returns:
        1 where no size fits.

    Raises:
        UserError: a file cannot be written, or the training fails for lack of anything but memory.
    """
    path = output_path(out, "batch.yaml")
    print(f"batch_find median of {steps} steps on one device, without schedule, warm-up and callbacks")
    print(f"           {'batch':>6}  {'images/s':>9}  {'memory':>10}")
    trainer = config["trainer"] | {"devices": 1}
    speeds: dict[int, float] = {}  # batch size -> images per second
    images, size = largest, smallest
    while size <= min(largest, images):
        changed = config | {"data": config["data"] | {"batch_size": size}, "trainer": trainer}
        try:
            found = measure(changed, [config["model"]["lr"]] * (steps + 1), memory_limit)
        except OutOfMemoryError:
            print(f"           {size:>6}  out of memory")
            break
        images, speeds[size] = found["images"], statistics.median(found["speeds"][1:])  # the first step warms up
        print(f"           {size:>6}  {speeds[size]:>9,.0f}  {found['memory'] / 1e9:>7.2f} GB")
        size *= 2
    if not speeds:
        print(f"nothing    no batch size fits; {path.name} was not written")
        return 1
    chosen, why = recommend(speeds, images, trainer["accumulate_grad_batches"])
    print(f"recommend  {chosen}: {why}")
    write_yaml(path, out, f"{why}; {speeds[chosen]:,.0f} images/s", {"data": {"batch_size": chosen}})
    return 0


def recommend(speeds: dict[int, float], images: int, accumulated: int) -> tuple[int, str]:
    """The smallest size from 16 to 256 that is nearly as fast as the fastest of them and gives an epoch ten steps; and
    why.

    Args:
        speeds: Batch size, in ascending order -> images per second.
        images: In training.
        accumulated: Batches of a step.
    """
    usable = [size for size in speeds if size >= SMALLEST]
    good = [size for size in usable if size <= LARGEST and size * accumulated * STEPS_PER_EPOCH <= images]
    if not good:
        return (usable or [max(speeds)])[0], f"none from {SMALLEST} to {LARGEST} gives an epoch {STEPS_PER_EPOCH} steps"
    fast = NEARLY * max(speeds[size] for size in good)
    why = f"the smallest from {good[0]} to {good[-1]} with {NEARLY:.0%} of their highest speed"
    return next(size for size in good if speeds[size] >= fast), why
