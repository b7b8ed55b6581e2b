"""Diagnosis of the learning rate: what project.optim.diagnosis says of a run's loss curve, beside what its sister runs
show.

    python -m benchmarks.diagnosis CIFAR_FOLDER [--images 2000] [--epochs 10] [--seed 0] [--curves FILE]

CIFAR_FOLDER holds train/<class>/*. Six families of eight runs: a family is one network, optimizer and schedule, and
its runs differ in nothing but the rate, over five decades. The truth of a run comes from comparing it with its family
(`truth`), the diagnosis from its own curve alone. These runs did not shape the rules; those that did learned
scikit-learn's digits, clean, noisy, and with wrong labels. --curves keeps the curves in a JSON file, and reads them
from there if it exists. Hardware: any CPU, one thread is used. Time: 12 minutes on a core of an AMD EPYC.
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from project.data.augment import Augment, HorizontalFlip
from project.data.sources import ImageFolder
from project.data.transforms import ImageFormat, load_image
from project.nets import ConvNet, ResNet9
from project.optim.diagnosis import diagnose

SHAPES = ("diverging", "too high", "good", "too low", "undecided")
MARGIN = 0.1  # a run is good if it keeps at least nine tenths of the fall in loss that the best rate reaches
BATCH = 50


def constant(share: float) -> float:
    """Factor on the rate after this share of the run."""
    return 1.0


def cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


def one_cycle(share: float) -> float:
    """Up from a 25th in the first 30 %, down to nothing."""
    return 0.04 + 0.96 * (1 - cosine(share / 0.3)) if share < 0.3 else cosine((share - 0.3) / 0.7)


def step(share: float) -> float:
    """A tenth of the rate in the last third."""
    return 1.0 if share < 2 / 3 else 0.1


@dataclass(frozen=True)
class Family:
    name: str
    net: Callable[[], nn.Module]
    optimizer: Callable[..., Optimizer]
    schedule: Callable[[float], float]
    rates: list[float]
    smoothing: float = 0.0


def decades(first: float, last: float, count: int = 8) -> list[float]:
    """Rates from first to last, evenly spaced in the logarithm."""
    return [first * (last / first) ** (i / (count - 1)) for i in range(count)]


def families() -> list[Family]:
    def resnet() -> nn.Module:
        return ResNet9(3, 10, 32, widths=(8, 16, 32, 64))

    def convnet() -> nn.Module:
        return ConvNet(3, 10, 32, channels=(12, 24, 48), dropout=0.1)

    def momentum(parameters, lr: float) -> Optimizer:
        return SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4)

    return [
        Family("ResNet9, SGD with momentum, constant", resnet, momentum, constant, decades(1e-4, 1e1)),
        Family(
            "ResNet9, SGD with momentum, one-cycle, smoothing", resnet, momentum, one_cycle, decades(1e-4, 1e1), 0.1
        ),
        Family("ResNet9, AdamW, steps", resnet, AdamW, step, decades(1e-5, 1e0)),
        Family("ConvNet, Adam, cosine", convnet, Adam, cosine, decades(1e-5, 1e0)),
        Family("ConvNet, RMSprop, constant", convnet, RMSprop, constant, decades(1e-5, 1e0)),
        Family("ConvNet, plain SGD, constant, smoothing", convnet, SGD, constant, decades(1e-3, 1e2), 0.1),
    ]


def train(
    family: Family, rate: float, images: Tensor, labels: Tensor, augment: Augment, epochs: int, seed: int
) -> tuple[list[float], list[float]]:
    """One run: of each epoch the mean training loss, and the mean rate in force."""
    torch.manual_seed(seed)
    net = family.net().train()
    optimizer = family.optimizer(net.parameters(), lr=rate)
    steps = len(labels) // BATCH
    losses, rates = [], []
    for epoch in range(epochs):
        total, used = 0.0, 0.0
        for i, rows in enumerate(torch.randperm(len(labels)).split(BATCH)[:steps]):
            now = rate * family.schedule((epoch * steps + i) / (epochs * steps))
            optimizer.param_groups[0]["lr"] = now
            batch = augment(images[rows], epoch, rows).float() / 128 - 1
            loss = F.cross_entropy(net(batch), labels[rows], label_smoothing=family.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, used = total + loss.item() / steps, used + now / steps
        losses.append(total)
        rates.append(used)
        if not math.isfinite(total):  # and will stay so
            break
    return losses, rates


def truth(finals: list[float], num_classes: int) -> list[str]:
    """The shape of each run of a family from the mean loss of each one's last epoch, in the order of rising rates.

    The lowest is the best. A run is good if it keeps nine tenths of the best one's fall below the loss of guessing,
    ln(num_classes). One that does not is too low at a lower rate than the best, and at a higher one too high, or
    diverging if it is not finite or ends no better than guessing (0.98 of that loss).
    """
    guess = math.log(num_classes)
    finals = [loss if math.isfinite(loss) else math.inf for loss in finals]
    best = min(range(len(finals)), key=finals.__getitem__)
    shapes = []
    for i, loss in enumerate(finals):
        if loss - finals[best] <= MARGIN * (guess - finals[best]):
            shapes.append("good")
        elif i < best:
            shapes.append("too low")
        else:
            shapes.append("diverging" if loss >= 0.98 * guess else "too high")
    return shapes


def load(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """The first images of each class: uint8 (N, 3, 32, 32), and labels int64 (N,)."""
    source = ImageFolder(str(folder))
    names = sorted({sample.label for sample in source.samples})
    images, labels = [], []
    for number, name in enumerate(names):
        own = [sample for sample in source.samples if sample.label == name and sample.split == "train"]
        for sample in own[: count // len(names)]:
            images.append(load_image(source.content(sample), ImageFormat(32, 3, "letterbox")))
            labels.append(number)
    return torch.stack(images), torch.tensor(labels)


def run_all(folder: Path, images: int, epochs: int, seed: int) -> list[dict]:
    """The curves of every run: family, rate, losses and rates of the epochs."""
    pixels, labels = load(folder, images)
    augment = Augment([HorizontalFlip()], seed)
    runs = []
    for family in families():
        start = time.perf_counter()
        for rate in family.rates:
            losses, rates = train(family, rate, pixels, labels, augment, epochs, seed)
            runs.append({"family": family.name, "rate": rate, "losses": losses, "rates": rates})
        print(f"{family.name}: {time.perf_counter() - start:.0f} s", flush=True)
    return runs


def report(runs: list[dict], num_classes: int = 10) -> None:
    """Prints the table of each family and the confusion table."""
    counts: Counter[tuple[str, str]] = Counter()
    print("\n| family | right | otherwise, from the lowest rate up |\n|---|---:|---|")
    for name in dict.fromkeys(run["family"] for run in runs):
        own = [run for run in runs if run["family"] == name]
        truths = truth([run["losses"][-1] for run in own], num_classes)
        said = [diagnose(run["losses"], math.log(num_classes), run["rates"]).shape for run in own]
        counts.update(zip(truths, said, strict=True))
        wrong = [f"{r['rate']:.2g} {t}, said {s}" for r, t, s in zip(own, truths, said, strict=True) if t != s]
        print(f"| {name} | {len(own) - len(wrong)} of {len(own)} | {'; '.join(wrong)} |")
    print(f"\n| truth, below: diagnosis | {' | '.join(SHAPES)} |\n|---|{'---:|' * len(SHAPES)}")
    for shape in SHAPES[:-1]:  # no truth is undecided
        print(f"| {shape} | {' | '.join(str(counts[shape, said]) for said in SHAPES)} |")
    print(f"\n{sum(counts[shape, shape] for shape in SHAPES)} of {len(runs)} right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds train/<class>/*")
    parser.add_argument("--images", type=int, default=2000, help="training images (default: 2000)")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of each run (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and flips (default: 0)")
    parser.add_argument("--curves", type=Path, help="JSON file that keeps the curves; if it exists, nothing is trained")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.curves and args.curves.exists():
        runs = json.loads(args.curves.read_text())
    else:
        runs = run_all(args.folder, args.images, args.epochs, args.seed)
        if args.curves:
            args.curves.write_text(json.dumps(runs))
    report(runs)


if __name__ == "__main__":
    main()
