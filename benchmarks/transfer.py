"""Transfer with few images (advice A14, A21, A23): from five classes of CIFAR-10 to the other five, 50 images each.

    python -m benchmarks.transfer CIFAR_FOLDER [--seeds 5]

CIFAR_FOLDER holds train/<class>/* and test/<class>/*. Four ways, with the same images in each seed: from scratch,
feature extraction (backbone frozen), fine-tuning with one learning rate, fine-tuning with layer-wise ones. The
learning rate of each way, and for the last the stem's share of it, is chosen beforehand on other training
images (of the same five classes, beyond those that any seed uses); the 5,000 test images of the five classes are
scored once in each run. Prints accuracies with 95 % intervals of the mean (Student's t) and the paired differences.
About 35 minutes on two CPU cores.
"""

import argparse
import itertools
import json
import math
import shutil
import statistics
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from scipy.stats import t

from project.__main__ import main

CONFIGS = Path(__file__).parent.parent / "configs"
CONFIG = ["--config", str(CONFIGS / "folder.yaml"), "--model", str(CONFIGS / "model" / "resnet9.yaml")]
PER_CLASS = 50
EPOCHS = 40  # of the few images: 160 steps
PRETRAIN_EPOCHS = 8
RATES = (0.001, 0.003, 0.01)
SHARES = (0.5**6, 0.7**6)  # of the stem: ResNet9 has seven layers, so 0.5 or 0.7 from each to the one below


def link(files: list[Path], folder: Path) -> None:
    """The files by hard links where the file system allows, else as copies."""
    folder.mkdir(parents=True)
    for path in files:
        try:
            (folder / path.name).hardlink_to(path)
        except OSError:
            shutil.copy(path, folder / path.name)


def make_data(source: Path, target: Path, classes: list[str], part: slice, test: str, test_part: slice) -> Path:
    """A folder with train/<class>/* and test/<class>/*, cut out of another."""
    for name in classes:
        link(sorted((source / "train" / name).iterdir())[part], target / "train" / name)
        link(sorted((source / test / name).iterdir())[test_part], target / "test" / name)
    return target


def run(folder: Path, seed: int, epochs: int, *options: str) -> float:
    """Fit, and the accuracy of the last checkpoint on the folder's test images."""
    runs = folder.parent / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    common = ["--trainer.default_root_dir", str(runs), "--trainer.enable_progress_bar", "false"]
    fit = [*CONFIG, "--data.root", str(folder), "--data.val_size", "0", "--seed_everything", str(seed)]
    with redirect_stdout(StringIO()):
        if main(["fit", *fit, "--trainer.max_epochs", str(epochs), *common, *options]):
            raise SystemExit("fit failed")
        if main(["test", "--ckpt_path", "last", *common]):
            raise SystemExit("test failed")
    (found,) = runs.rglob("metrics.json")
    return json.loads(found.read_text())["test/acc"]


def ways(weights: str) -> dict[str, list[list[str]]]:
    """Name -> the settings to choose from."""
    start = ["--model.weights", weights]
    frozen = ["--model.freeze", "project.optim.Freeze"]
    rates = [["--model.lr", str(rate)] for rate in RATES]
    shares = [["--model.stem_lr", str(share)] for share in SHARES]
    return {
        "from scratch": rates,
        "feature extraction": [[*start, *frozen, *rate] for rate in rates],
        "fine-tuning, one learning rate": [[*start, *rate] for rate in rates],
        "fine-tuning, layer-wise": [[*start, *rate, *share] for rate, share in itertools.product(rates, shares)],
    }


def interval(values: list[float]) -> str:
    """Mean and 95 % interval, in percent."""
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{100 * statistics.mean(values):.2f} ± {100 * half:.2f}"


def compare(source: Path, seeds: int, work: Path) -> None:
    classes = sorted(folder.name for folder in (source / "train").iterdir())
    first, second = classes[::2], classes[1::2]
    everything = slice(None)
    pretraining = make_data(source, work / "first" / "data", first, everything, "test", everything)
    accuracy = run(pretraining, 0, PRETRAIN_EPOCHS)
    (checkpoint,) = (work / "first" / "runs").rglob("last.ckpt")
    weights = str(checkpoint.rename(work / "pretrained.ckpt"))
    print(f"pretrained on {', '.join(first)}: {accuracy:.2%} of their test images", flush=True)
    print(f"the other classes: {', '.join(second)}\n", flush=True)

    beyond = seeds * PER_CLASS  # training images that no seed uses
    few = slice(beyond, beyond + PER_CLASS)
    held_out = slice(beyond + PER_CLASS, beyond + PER_CLASS + 200)
    choosing = make_data(source, work / "choose" / "data", second, few, "train", held_out)
    chosen = {}
    for name, settings in ways(weights).items():
        scores = [run(choosing, 0, EPOCHS, *options) for options in settings]
        chosen[name] = settings[scores.index(max(scores))]
        shown = " ".join(chosen[name][-4:] if "layer" in name else chosen[name][-2:])
        print(f"{name}: {shown} (of {len(settings)}: {', '.join(f'{score:.1%}' for score in scores)})", flush=True)

    results: dict[str, list[float]] = {name: [] for name in chosen}
    for seed in range(seeds):
        few = slice(seed * PER_CLASS, (seed + 1) * PER_CLASS)
        folder = make_data(source, work / f"seed{seed}" / "data", second, few, "test", everything)
        for name, options in chosen.items():
            results[name].append(run(folder, seed, EPOCHS, *options))
            print(f"seed {seed}  {name}: {results[name][-1]:.2%}", flush=True)
        shutil.rmtree(work / f"seed{seed}")

    print("\n| way | test accuracy, % | over scratch, points |\n|---|---:|---:|")
    for name, values in results.items():
        gains = [value - base for value, base in zip(values, results["from scratch"], strict=True)]
        print(f"| {name} | {interval(values)} | {'' if name == 'from scratch' else interval(gains)} |")
    layerwise, single = results["fine-tuning, layer-wise"], results["fine-tuning, one learning rate"]
    gains = [a - b for a, b in zip(layerwise, single, strict=True)]
    print(f"\nlayer-wise over one learning rate, points: {interval(gains)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="CIFAR_FOLDER")
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, 11))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(
        dir=arguments.source.parent
    ) as folder:  # beside the images, where links are possible
        compare(arguments.source.resolve(), arguments.seeds, Path(folder))
