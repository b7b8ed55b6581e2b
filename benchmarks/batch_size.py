"""Do powers of two run faster (advice A11)? Time for an image of one training step, by batch size.

    python -m benchmarks.batch_size [--rounds 15]

ResNet9 (`configs/model/resnet9.yaml`) and the network of `configs/digits.yaml` with AdamW, on random images. Of each
power of two P the batches P, P - 4, P - 1, P + 1 and P + 4 take turns, in another order each round, so that a slow
moment of the machine meets them all. The table has the median over the rounds of (time an image at this batch) / (time
an image at P in the same round), and the middle half of the rounds. If powers of two were faster, the others would be
above 1 on both sides.

A CPU or one GPU that does nothing else; four minutes on two CPU cores.
"""

import argparse
import random
import time
from statistics import median, quantiles

import torch
from torch import nn

from project.nets import ConvNet, ResNet9

POWERS = (16, 32, 64, 128)
OFFSETS = (-4, -1, 0, 1, 4)
SECONDS = 0.15  # that one measurement lasts at least
NETWORKS = {
    "ResNet9, 3 x 32 x 32": (lambda: ResNet9(3, 10, 32, widths=[32, 64, 128, 256]), (3, 32, 32)),
    "ConvNet, 1 x 8 x 8": (lambda: ConvNet(1, 10, 8), (1, 8, 8)),
}


class Step:
    """Training steps on one batch."""

    def __init__(self, net: nn.Module, images: torch.Tensor) -> None:
        self.net, self.images = net.train(), images
        self.labels = torch.randint(10, (len(images),), device=images.device)
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.net(self.images), self.labels).backward()
        self.optimizer.step()

    def seconds(self) -> float:
        """For an image: as many steps as fill SECONDS."""
        self.wait()
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            self()
            steps += 1
            self.wait()
        return (time.perf_counter() - start) / (steps * len(self.images))

    def wait(self) -> None:
        if self.images.is_cuda:
            torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="of each batch size (default: 15)")
    rounds = parser.parse_args().rounds
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {rounds} rounds\n")
    print("| network | batch | time an image / the power's | middle half |\n|---|---:|---:|---:|")
    for title, (make, shape) in NETWORKS.items():
        net = make().to(device, memory_format=torch.channels_last)
        for power in POWERS:
            images = torch.randn(power + max(OFFSETS), *shape, device=device)
            images = images.contiguous(memory_format=torch.channels_last)
            steps = {offset: Step(net, images[: power + offset].clone()) for offset in OFFSETS}
            for step in steps.values():
                step.seconds()  # warm-up
            ratios: dict[int, list[float]] = {offset: [] for offset in OFFSETS if offset}
            for _ in range(rounds):
                order = random.sample(OFFSETS, len(OFFSETS))
                times = {offset: steps[offset].seconds() for offset in order}
                for offset, values in ratios.items():
                    values.append(times[offset] / times[0])
            for offset, values in ratios.items():
                low, _, high = quantiles(values, n=4)
                print(f"| {title} | {power + offset} : {power} | {median(values):.3f} | {low:.3f} to {high:.3f} |")


if __name__ == "__main__":
    main()
