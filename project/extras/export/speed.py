"""Time the ways to run one network on this machine."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Compare, Timer

BATCHES = (1, 64)
SECONDS = 0.5  # that each measurement lasts at least


def measure(trained: nn.Module, fused: nn.Module, file: Callable[[Tensor], object] | None, images: Tensor) -> Compare:
    """A table of times, to be printed: a row for each way, a column for each batch size.

    Args:
        trained: The network, unfused.
        fused: The same, fused.
        file: Runs the exported file; None where it cannot run.
        images: (N, C, H, W); repeated to fill the batches.
    """
    ways = {
        "eager, unfused": copy.deepcopy(trained).to(memory_format=torch.contiguous_format),
        "eager, fused": copy.deepcopy(fused).to(memory_format=torch.contiguous_format),
        "fused + channels_last": copy.deepcopy(fused).to(memory_format=torch.channels_last),
    }
    if file is not None:
        ways["the exported file"] = file
    timings = []
    for size in BATCHES:
        batch = images.repeat(-(-size // len(images)), 1, 1, 1)[:size]
        for name, run in ways.items():
            layout = torch.channels_last if "channels_last" in name else torch.contiguous_format
            given = {"run": run, "images": batch.contiguous(memory_format=layout)}
            column, threads = f"batch of {size}", torch.get_num_threads()
            timer = Timer("run(images)", "", "", given, label="Speed", sub_label=name, description=column, num_threads=threads)
            with torch.inference_mode():
                timings.append(timer.blocked_autorange(min_run_time=SECONDS))
    return Compare(timings)
