"""Time the ways to run one network on this machine."""

import copy
import logging
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from project.extras.export.runtime import open_exported

BATCHES = (1, 64)
SECONDS = 0.2  # that each measurement lasts at least


def measure(trained: nn.Module, fused: nn.Module, path: Path, image: Tensor) -> str:
    """A table of times: a row for each way, a column for each batch size, filled with copies of image (1, C, H, W)."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns where there is no GPU
    from torch.utils.benchmark import Compare, Timer

    file = open_exported(path)
    ways = {
        "eager, unfused": copy.deepcopy(trained).to(memory_format=torch.contiguous_format),
        "eager, fused": copy.deepcopy(fused).to(memory_format=torch.contiguous_format),
        "fused + channels_last": copy.deepcopy(fused).to(memory_format=torch.channels_last),
        "the exported file": lambda images: file(images.numpy()),
    }
    timings = []
    for size, (name, run) in product(BATCHES, ways.items()):
        timer = Timer(
            "run(images)",
            globals={"run": run, "images": image.repeat(size, 1, 1, 1)},
            label="Speed on this CPU",
            sub_label=name,
            description=f"batch of {size}",
            num_threads=torch.get_num_threads(),
        )
        with torch.inference_mode():
            timings.append(timer.blocked_autorange(min_run_time=SECONDS))
    return str(Compare(timings))
