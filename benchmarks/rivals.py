"""Other libraries on the same images for the same seconds, each as its documentation trains from random weights.

    python benchmarks/rivals.py NAME FOLDER --seconds 70 [--seed 0] [--out result.json]

NAME is timm, fastai or ultralytics; `benchmarks.time_to_accuracy --peers` runs them, in an environment that it makes.
FOLDER holds train/<class>/* and test/<class>/*. One epoch is timed first, and then a new network trained for as many
whole epochs as fit into the seconds, at least one, with the whole schedule. The time is that of the training, in which
they read the files; the test images are scored once, at the end.

- fastai: resnet18, batches of 64, aug_transforms(), Adam, one cycle up to 1e-2.
- timm: resnet18 with a 3x3 stem, its loader's own crops, flips and colours, SGD with Nesterov at 0.1, cosine, batches
  of 128.
- ultralytics: yolo11n-cls.yaml at 32 pixels, the size of the images; its `time` option counts the seconds itself.

All compute in float32 on a CPU, as is their default.

A CPU or one GPU. Whoever publishes a program with Ultralytics in it should read its licence first, the AGPL.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

WORKERS = min(4, os.cpu_count() or 1)


class Result(NamedTuple):
    """Seconds of training, epochs, accuracy on the test images."""

    seconds: float
    epochs: float
    accuracy: float


def within(seconds: float, train: Callable[[int], tuple[float, Callable[[], float]]]) -> Result:
    """Time an epoch, then train for as many as fit.

    Args:
        seconds: To be filled.
        train: Trains a new network for so many epochs; gives the seconds, and what scores it.
    """
    epochs = max(1, int(seconds / train(1)[0]))
    taken, score = train(epochs)
    return Result(taken, epochs, score())


def fastai(folder: Path, seconds: float, seed: int) -> Result:
    from fastai.vision import all as vision

    class NoValidation(vision.Callback):
        def before_validate(self) -> None:
            raise vision.CancelValidException

    def train(epochs: int) -> tuple[float, Callable[[], float]]:
        vision.set_seed(seed)
        data = vision.ImageDataLoaders.from_folder(
            folder, train="train", valid="test", bs=64, seed=seed, batch_tfms=vision.aug_transforms()
        )
        learner = vision.vision_learner(data, vision.resnet18, pretrained=False, metrics=vision.accuracy)
        start = time.perf_counter()
        with learner.no_bar(), learner.no_logging():
            learner.fit_one_cycle(epochs, 1e-2, cbs=NoValidation())
            taken = time.perf_counter() - start

        def score() -> float:
            with learner.no_bar():
                return float(learner.validate()[1])

        return taken, score

    return within(seconds, train)


def timm(folder: Path, seconds: float, seed: int) -> Result:
    import torch
    from timm import create_model
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def loader(split: str) -> torch.utils.data.DataLoader:
        train = split == "train"
        images = create_dataset("", str(folder), split=split, is_training=train)
        return create_loader(
            images, (3, 32, 32), 128, is_training=train, device=device, num_workers=WORKERS, use_prefetcher=False
        )

    def train(epochs: int) -> tuple[float, Callable[[], float]]:
        torch.manual_seed(seed)
        batches = loader("train")
        net = create_model("resnet18", num_classes=10)
        net.conv1, net.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
        net.to(device)
        optimizer = create_optimizer_v2(net, opt="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4)  # Nesterov's
        schedule, _ = create_scheduler_v2(
            optimizer, "cosine", epochs, step_on_epochs=False, updates_per_epoch=len(batches), warmup_epochs=0
        )
        start, step = time.perf_counter(), 0
        for _ in range(epochs):
            for images, labels in batches:
                loss = torch.nn.functional.cross_entropy(net(images.to(device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                schedule.step_update(step)
        loss.item()  # waits for a GPU
        taken = time.perf_counter() - start

        @torch.no_grad()
        def score() -> float:
            net.eval()
            right = [(net(images.to(device)).argmax(1).cpu() == labels).float() for images, labels in loader("test")]
            return torch.cat(right).mean().item()

        return taken, score

    return within(seconds, train)


def ultralytics(folder: Path, seconds: float, seed: int) -> Result:
    with tempfile.TemporaryDirectory() as name:
        os.environ |= {"YOLO_CONFIG_DIR": name, "YOLO_OFFLINE": "true"}  # nothing is fetched
        from ultralytics import YOLO

        images, start, marks = Path(name) / "images", 0.0, []
        images.mkdir()
        for split in ("train", "test"):  # it leaves files beside them
            (images / split).symlink_to(folder / split)

        def begin(_: object) -> None:
            nonlocal start
            start = time.perf_counter()

        model = YOLO("yolo11n-cls.yaml")
        model.add_callback("on_train_start", begin)
        model.add_callback("on_train_epoch_end", lambda _: marks.append(time.perf_counter() - start))
        model.train(
            data=str(images), imgsz=32, time=seconds / 3600, seed=seed, pretrained=False, val=False, plots=False,
            workers=WORKERS, project=name, exist_ok=True,
        )  # fmt: skip
        scores = model.val(data=str(images), imgsz=32, split="test", plots=False, project=name, exist_ok=True)
        return Result(marks[-1], len(marks), float(scores.top1))


RIVALS = {"timm": timm, "fastai": fastai, "ultralytics": ultralytics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(RIVALS))
    parser.add_argument("folder", type=Path, help="holds train/<class>/* and test/<class>/*")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    result = RIVALS[args.name](args.folder.resolve(), args.seconds, args.seed)._asdict()
    result["versions"] = {name: version(name) for name in (args.name, "torch")}
    print(result)
    if args.out:
        args.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
