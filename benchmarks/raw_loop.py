"""A plain PyTorch training loop that does the work of `fit` and nothing else: the yardstick of `benchmarks.speed`.

    python -m benchmarks.raw_loop CONFIG --root FOLDER [--epochs 3] [--out times.json]

CONFIG is a config of the project (configs/folder.yaml), or the config.yaml that `fit` left in its run, which has every
setting in force. Network, optimizer, schedule, loss, precision, batch size and augmentations are those that it names;
the images of FOLDER/train/<class> lie decoded in one uint8 tensor on the device, and are normalised batch by batch. No
Lightning, no metrics, no logs, no checkpoints: the sum of the losses is all that is kept.

It prints the training speed in images per second, without the first epoch, which warms up. A CPU or one GPU; on two CPU
cores an epoch of 10,000 images of 32 pixels takes about half a minute with configs/folder.yaml.
"""

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from project.data import Augment, ImageFolder
from project.data.load import measure
from project.data.transforms import MAX_PIXELS, ImageFormat, load_image

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PRECISION = {"32": None, "32-true": None, "bf16-mixed": torch.bfloat16}  # Lightning's name -> type of autocast
# What the loop repeats, or what makes no difference to it. A setting beyond these is reported, if it is on.
REPEATED = {
    "model": "net class_names mean std init lr optimizer schedule warmup_start reference_batch lr_scaling "
    "task channels_last",
    "data": "root source image_size channels resize batch_size augment val_size test_size split_seed fold sampler "
    "on_bad_image on_seen_image cache num_workers class_names seed",
}


def read_config(path: Path) -> dict[str, dict[str, Any]]:
    """The parts data, model and trainer of a config; each may lie in a file of its own."""
    config = yaml.safe_load(path.read_text())
    parts = {name: config.get(name) or {} for name in ("data", "model", "trainer")}
    return {
        name: yaml.safe_load((path.parent / part).read_text()) if isinstance(part, str) else part
        for name, part in parts.items()
    }


def report_unequal(config: dict[str, dict[str, Any]]) -> None:
    """Say on stderr which settings the loop leaves out, because its work is then less than that of `fit`.

    Raises:
        SystemExit: for a precision that it does not have.
    """
    if (precision := str(config["trainer"].get("precision") or 32)) not in PRECISION:
        raise SystemExit(f"the raw loop has no precision {precision}; it has {', '.join(PRECISION)}")
    trainer = {"gradient_clip_val": None, "accumulate_grad_batches": 1}
    left_out = [f"trainer.{key}" for key, off in trainer.items() if config["trainer"].get(key, off) != off]
    for part, known in REPEATED.items():
        given = {key: value for key, value in config[part].items() if value not in (None, False, 0, 1.0)}
        left_out += [f"{part}.{key}" for key in given if key not in known.split()]
    if config["model"].get("reference_batch") not in (None, config["data"].get("batch_size", 64)):
        left_out.append("model.lr_scaling")
    if config["data"].get("sampler", "shuffle") != "shuffle":
        left_out.append("data.sampler")
    if left_out:
        print(f"warning: the raw loop does not repeat {', '.join(left_out)}", file=sys.stderr)


def build(spec: str | dict[str, Any], *arguments: Any) -> Any:
    """Call the class that {class_path, init_args} names, or a class path alone."""
    spec = {"class_path": spec} if isinstance(spec, str) else spec
    module, name = spec["class_path"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(*arguments, **(spec.get("init_args") or {}))


def load_folder(root: Path | str, data: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """root/train/<class>/* -> pixels, uint8 (N, C, H, W), and labels, int64 (N,)."""
    source = ImageFolder(str(root))
    rows = [i for i, sample in enumerate(source.samples) if sample.split == "train"]
    if not rows:
        raise SystemExit(f"{root} has no images in train/<class>/")
    samples, (size, value_range) = [source.samples[row] for row in rows], measure(source, rows, MAX_PIXELS)
    given = data.get("image_size") or size, data.get("channels", 3), data.get("resize", "letterbox")
    image_format = ImageFormat(*given, data.get("value_range") or value_range)
    pixels = torch.stack([load_image(source.content(sample), image_format) for sample in samples])
    number = {name: i for i, name in enumerate(sorted({sample.label for sample in samples}))}
    return pixels, torch.tensor([number[sample.label] for sample in samples])


def train(config: dict[str, dict[str, Any]], pixels: Tensor, labels: Tensor, epochs: int) -> list[float]:
    """Train, and return the seconds of each epoch."""
    model, data, device = config["model"], config["data"], pixels.device
    memory_format = torch.channels_last if model.get("channels_last", True) else torch.contiguous_format
    net = build(model["net"], pixels.shape[1], int(labels.max()) + 1, pixels.shape[-1])
    net = net.to(device, memory_format=memory_format).train()
    lr = float(model.get("lr", 1e-3))
    smoothing = model.get("task", {}).get("init_args", {}).get("label_smoothing", 0.0)
    optimizer = build(model.get("optimizer") or "torch.optim.AdamW", net.parameters(), lr)
    batch_size = data.get("batch_size", 64)
    augment = Augment([build(spec) for spec in data.get("augment") or []], seed=0)
    mean = torch.tensor(model.get("mean") or IMAGENET_MEAN, device=device).view(1, -1, 1, 1)
    std = torch.tensor(model.get("std") or IMAGENET_STD, device=device).view(1, -1, 1, 1)
    precision = PRECISION[str(config["trainer"].get("precision") or 32)]

    full, rest = divmod(len(labels), batch_size)
    steps = full + (rest > 1)  # batch norm cannot take a last batch of a single image
    schedule = None
    if model.get("schedule"):
        factor = build(model["schedule"]).factor
        schedule = LambdaLR(optimizer, lambda step: factor(step, epochs * steps))
    seconds = []
    for epoch in range(epochs):
        start = time.perf_counter()
        order = torch.randperm(len(labels), device=device)
        total = torch.zeros((), device=device)
        for rows in order.split(batch_size)[:steps]:
            images = augment(pixels[rows], epoch, rows)  # uint8, or float in [0, 1], (N, C, H, W)
            if images.dtype == torch.uint8:
                images = images.float() / 255
            images = ((images - mean) / std).contiguous(memory_format=memory_format)
            with torch.autocast(device.type, precision, enabled=precision is not None):
                logits = net(images)  # (N, num_classes)
            loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule:
                schedule.step()
            total += loss.detach() * len(rows)
        mean_loss = total.item() / len(labels)  # also waits for the GPU, so it belongs to the time
        seconds.append(time.perf_counter() - start)
        print(f"epoch {epoch + 1}/{epochs}  loss {mean_loss:.4f}  {seconds[-1]:.2f} s", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="configs/folder.yaml, or the config.yaml of a run")
    parser.add_argument("--root", type=Path, help="folder with train/<class>/* (default: data.root of the config)")
    parser.add_argument("--epochs", type=int, default=3, help="the first one does not count (default: 3)")
    parser.add_argument("--out", type=Path, help="JSON file for the images and seconds of each epoch")
    args = parser.parse_args()
    config = read_config(args.config)
    root = args.root or config["data"].get("root")
    if root is None:
        parser.error("the config names no data.root: give --root")
    report_unequal(config)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels, labels = load_folder(root, config["data"])
    seconds = train(config, pixels.to(device), labels.to(device), args.epochs)
    if args.out:
        args.out.write_text(json.dumps({"images": [len(labels)] * args.epochs, "seconds": seconds}))
    counted = seconds[1:] or seconds
    print(f"{len(labels) * len(counted) / sum(counted):.0f} images/s")


if __name__ == "__main__":
    main()
