"""A plain PyTorch training loop that does the work of `fit` and nothing else: the yardstick of what `fit` costs.

    python -m benchmarks.raw_loop CONFIG [--epochs 3] [--seed 0] [--out result.json]

CONFIG is the config.yaml that `fit` left in its run, which has every setting in force; run.json beside it has the
threads. Network, optimizer, schedule, loss, augmentations and precision are those of the run; the training images lie
decoded in one uint8 tensor on the device. No Lightning, no metrics, no logs, no checkpoints: the sum of the losses is
all that is kept. At the end it scores the test images, if there are any, without and with test-time flips.

It prints the seconds of each epoch. A CPU or one GPU.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from project.classifier import ImageClassifier
from project.cli import build
from project.data import ImageDataModule
from project.data.load import load
from project.data.transforms import ImageFormat
from project.optim import Length

PRECISION = {"32-true": None, "bf16-mixed": torch.bfloat16}  # Lightning's name -> type of autocast
NOT_REPEATED = ("freeze", "weights", "warmup", "mixup", "cutmix")  # of the model


def images_of(data: ImageDataModule, split: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixels, uint8 (N, C, H, W), and labels, int64 (N,)."""
    form = ImageFormat(data.image_size, data.channels, data.resize, data.value_range, data.max_pixels)
    numbers = {name: i for i, name in enumerate(data.class_names)}
    rows = data.splits[split]
    labels = [numbers[data.source.samples[row].label] for row in rows]
    loaded = load(data.source, rows, labels, form, in_memory=True) if rows else None
    if loaded is None:
        return torch.empty(0), torch.empty(0)
    return loaded.images.pixels.to(device), loaded.images.labels.to(device)


def train(config: dict[str, Any], epochs: int, seed: int, batches: int | None = None) -> dict[str, Any]:
    """Train and score; the seconds of each epoch, and the accuracies."""
    config["data"] |= {"seed": seed}
    if extra := [key for key in NOT_REPEATED if config["model"].get(key)]:
        raise SystemExit(f"the raw loop has no {', '.join(extra)}")
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = build(ImageDataModule, config["data"])
    follows = {"class_names": data.class_names, "image_size": data.image_size, "in_channels": data.channels}
    follows |= {"resize": data.resize, "value_range": list(data.value_range)}
    model = build(ImageClassifier, config["model"] | follows)
    kind = PRECISION[str(config["trainer"]["precision"])]
    (pixels, labels), (tests, answers) = (images_of(data, split, device) for split in ("train", "test"))
    model.to(device).train()
    if hasattr(model.net, "prepare"):
        model.net.prepare(model.normalise(pixels[:5000]))
    batch = data.batch_size
    full, rest = divmod(len(labels), batch)
    steps = batches or full + (rest > 1)  # batch norm cannot take a last batch of a single image
    optimizer = model.recipe.optimizer(model.net, batch)
    planned, _ = model.recipe.scheduler(optimizer, lambda: Length(epochs * steps, steps))
    seconds = []
    for epoch in range(epochs):
        start, total = time.perf_counter(), torch.zeros((), device=device)
        for rows in torch.randperm(len(labels), device=device).split(batch)[:steps]:
            images = model.normalise(data.augment(pixels[rows], epoch, rows))
            with torch.autocast(device.type, kind, enabled=kind is not None):
                logits = model.net(images)  # (N, num_classes)
            loss = model.task.loss(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            planned.step()
            total += loss.detach() * len(rows)
        mean_loss = total.item() / len(labels)  # also waits for the GPU, so it belongs to the time
        seconds.append(time.perf_counter() - start)
        print(f"epoch {epoch + 1}/{epochs}  loss {mean_loss:.4f}  {seconds[-1]:.2f} s", flush=True)
    model.eval()
    right = [0, 0]
    with torch.no_grad(), torch.autocast(device.type, kind, enabled=kind is not None):
        for some, truth in zip(tests.split(500), answers.split(500), strict=True) if len(tests) else ():
            images = model.normalise(some)
            plain = model.net(images).float()
            both = plain + model.net(images.flip(-1)).float()
            for i, logits in enumerate((plain, both)):
                right[i] += (logits.argmax(1) == truth).sum().item()
    return {
        "seconds": seconds,
        "images": [min(len(labels), steps * batch)] * epochs,
        "accuracies": [n / max(1, len(tests)) for n in right],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="the config.yaml of a run")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batches", type=int, help="of each epoch (default: all)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    torch.set_num_threads(json.loads(args.config.with_name("run.json").read_text())["threads"])
    found = train(yaml.safe_load(args.config.read_text()), args.epochs, args.seed, args.batches)
    if args.out:
        args.out.write_text(json.dumps(found))
    if any(found["accuracies"]):
        print("test accuracy {:.2%}, with flips {:.2%}".format(*found["accuracies"]))


if __name__ == "__main__":
    main()
