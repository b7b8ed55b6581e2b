"""fastai's ResNet-18 on an image folder, as its documentation trains one; `benchmarks.peers` runs it in a venv with
fastai.

    python benchmarks/fastai_run.py FOLDER [--epochs 3] [--seed 0] [--out result.json]

FOLDER holds train/<class>/* and test/<class>/*. Everything is fastai's default: batches of 64, images read from their
files by worker processes, `aug_transforms()`, Adam, one cycle up to 1e-2. It measures the wall time of `fit_one_cycle`,
without validation after each epoch, and then, once, the accuracy on the test images. A CPU or one GPU; three epochs of
the 10k/2k subset take about two minutes on two CPU cores.
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

from fastai.vision.all import (
    Callback,
    CancelValidException,
    ImageDataLoaders,
    accuracy,
    aug_transforms,
    resnet18,
    set_seed,
    vision_learner,
)


class NoValidation(Callback):
    """Leaves out the validation after each epoch: the test images are for the end."""

    def before_validate(self) -> None:
        raise CancelValidException


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds train/<class>/* and test/<class>/*")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    set_seed(args.seed)
    data = ImageDataLoaders.from_folder(
        args.folder, train="train", valid="test", bs=64, seed=args.seed, batch_tfms=aug_transforms()
    )
    learner = vision_learner(data, resnet18, pretrained=False, metrics=accuracy)
    start = time.perf_counter()
    with learner.no_bar():
        learner.fit_one_cycle(args.epochs, 1e-2, cbs=NoValidation())
        seconds = time.perf_counter() - start
        _, score = learner.validate()
    result = {
        "train_seconds": seconds,
        "accuracy": float(score),
        "versions": {name: version(name) for name in ("fastai", "torch")},
    }
    print(f"trained in {seconds:.1f} s, test accuracy {result['accuracy']:.2%}, {result['versions']}")
    if args.out:
        args.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
