"""The parts of `benchmarks/gpu.sh`, each a process of its own: does everything work on this GPU, and how fast?

    python -m benchmarks.gpu PART WORK [--images CIFAR] [--small]

WORK is a folder in which the part `images` makes the images for the others: `all`, with CIFAR-10's test images to
validate on, and `some`, the first 1,000 and 200 of each class. --small takes the digits instead of CIFAR (a folder, or
a tar of one) and a narrow network, for a try on a CPU. A part prints `result: ...` at its end, or fails.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.subset import take

SECONDS = 70  # after which `recipe` begins no second round
NARROW = ["16", "32", "32"]  # channels of the stages with --small


class Part:
    """What the parts have in common: the images, and how they train."""

    def __init__(self, work: Path, small: bool) -> None:
        self.work, self.small = work, small
        self.runs = work / "runs"

    def project(self, *words: str, codes: tuple[int, ...] = (0,)) -> None:
        """One command in this process, where torch is loaded already."""
        from project.__main__ import main

        if (code := main(list(words))) not in codes:
            raise SystemExit(f"{words[0]} ended with exit code {code}")

    def task(self, images: str = "some") -> list[str]:
        """Options of a fit."""
        options = ["--config", "configs/cifar10_fast.yaml", "--data.source", "project.data.ImageFolder"]
        options += ["--data.root", str(self.work / images), "--trainer.enable_progress_bar", "false"]
        return options + self.small * ["--model.net.init_args.widths", f"[{','.join(NARROW)}]"]

    def fit(self, name: str, *options: str, images: str = "some", codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
        """Train in a folder of its own; what `benchmarks.timing` wrote."""
        from benchmarks.measure import timed

        times, root = self.work / f"{name}.json", ["--trainer.default_root_dir", str(self.runs / name)]
        self.project("fit", *self.task(images), *root, *options, *timed(times), codes=codes)
        return json.loads(times.read_text()) if times.exists() else {}

    def weights(self, name: str) -> dict[str, Any]:
        import torch

        path = next((self.runs / name).glob("*/version_0/checkpoints/last.ckpt"))
        return torch.load(path, weights_only=True, map_location="cpu")["state_dict"]


def images(part: Part, given: Path | None) -> str:
    """Unpack and link."""
    cifar = part.work / "cifar"
    if part.small:
        draw_digits(cifar)
    elif given is None:
        raise SystemExit("--images is missing: CIFAR-10 as JPEGs, a folder or a tar")
    elif given.is_dir():
        cifar = given.resolve()
    else:
        with tarfile.open(given) as file:
            file.extractall(cifar, filter="data")
        cifar = next(path.parent for path in [cifar / "train", *sorted(cifar.glob("*/train"))] if path.is_dir())
    (part.work / "all").mkdir()
    for name, source in (("train", "train"), ("val", "test")):
        (part.work / "all" / name).symlink_to(cifar / source)
    for name, count in (("train", 60 if part.small else 1000), ("test", 20 if part.small else 200)):
        take(cifar / name, part.work / "some" / name, count)
    return f"{sum(1 for _ in cifar.rglob('*.*'))} files"


def draw_digits(folder: Path) -> None:
    """scikit-learn's digits as JPEGs of 32 pixels, each of a colour of its own."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits, colours = load_digits(), np.random.default_rng(0)
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / ("test" if i % 6 == 0 else "train") / str(label) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coloured = pixels[..., None] / 16 * colours.uniform(50, 200, 3) + colours.uniform(0, 55, (8, 8, 3))
        Image.fromarray(coloured.astype("uint8")).resize((32, 32)).save(path)


def recipe(part: Part) -> str:
    """The fast recipe on all images beside the plain loop, in turn."""
    from benchmarks.measure import arithmetic, run

    epochs, begin, ours, plain, out = 2 if part.small else 8, time.monotonic(), [], [], part.work / "raw.json"
    while not ours or time.monotonic() - begin < (0 if part.small else SECONDS):
        name = f"recipe{len(ours)}"
        options = ["--data.test_size", "0", "--trainer.max_epochs", str(epochs), "--seed_everything", str(len(ours))]
        ours.append(part.fit(name, *options, images="all"))
        words = [str(part.work / "all"), "--epochs", str(epochs), "--out", str(out), "--seed", str(len(plain))]
        run("benchmarks.raw_loop", *words, *arithmetic(part.runs / name))
        plain.append(json.loads(out.read_text())["seconds"])
    last = [times["accuracies"][-1] for times in ours]
    reached = []  # seconds of training
    for times in ours:
        first = next((i + 1 for i, accuracy in enumerate(times["accuracies"]) if accuracy >= 0.9), None)
        reached.append(f"{sum(times['seconds'][:first]):.1f}" if first else "never")
    fits = [times["seconds"] for times in ours]
    each = [median(seconds for times in runs for seconds in times[1:]) for runs in (fits, plain)]
    return (
        f"90 % after {', '.join(reached)} s; {epochs} epochs: {', '.join(f'{value:.2%}' for value in last)}; "
        f"an epoch {each[0]:.2f} s, plain loop {each[1]:.2f} s, ratio {each[0] / each[1]:.2f} (at most 1.2)"
    )


def lr_find(part: Part) -> str:
    out = part.work / "lr.yaml"
    part.project("lr_find", *part.task(), "--steps", "20" if part.small else "60", "--out", str(out))
    return re.search(r"lr: *(\S+)", out.read_text())[1]


def batch_find(part: Part) -> str:
    out, sizes = part.work / "batch.yaml", ("32", "64") if part.small else ("64", "512")
    part.project("batch_find", *part.task(), "--min_batch", sizes[0], "--max_batch", sizes[1], "--out", str(out))
    return re.search(r"batch_size: *(\S+)", out.read_text())[1]


def precision(part: Part) -> str:
    import torch

    kinds = ["auto", "32-true", "bf16-mixed", *(["16-mixed"] if torch.cuda.is_available() else [])]
    found = []
    for kind in kinds:
        times = part.fit(kind, "--trainer.precision", kind, "--trainer.max_epochs", "2")
        if not all(value.isfinite().all() for value in part.weights(kind).values() if value.is_floating_point()):
            raise SystemExit(f"{kind}: weights that are not finite")
        found.append(f"{kind} {times['seconds'][-1]:.2f} s, {times['accuracies'][-1]:.1%}")
    return "; ".join(found)


def compiled(part: Part) -> str:
    import torch

    if not torch.cuda.is_available() and not shutil.which(os.environ.get("CXX", "g++")):
        return "not tried: no C++ compiler"
    few = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "3" if part.small else "1.0"]
    plain = part.fit("plain", *few)["seconds"][-1]
    begin = time.monotonic()
    fast = part.fit("compiled", *few, "--machine.compile", "true")["seconds"][-1]
    if part.weights("plain").keys() != part.weights("compiled").keys():
        raise SystemExit("the checkpoint of a compiled network has other names")
    part.project("test", "--ckpt_path", "last", "--trainer.default_root_dir", str(part.runs / "compiled"))
    return f"an epoch {fast:.2f} s, not compiled {plain:.2f} s; {time.monotonic() - begin:.0f} s in all"


def export(part: Part) -> str:
    part.fit("export", "--trainer.max_epochs", "1")
    needs = {"pt2": (), "onnx": ("onnx", "onnxscript", "onnxruntime"), "safetensors": ("safetensors",)}
    said = []
    for suffix, modules in needs.items():
        if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
            said.append(f"{suffix} not tried: no {', '.join(missing)}")
            continue
        out, runs = str(part.work / f"model.{suffix}"), ["--trainer.default_root_dir", str(part.runs / "export")]
        part.project("export", "--ckpt_path", "last", "--out", out, "--speed", "false", *runs)
        part.project("verify", out)
        said.append(suffix)
    return "; ".join(said)


def resume(part: Part) -> str:
    import torch

    same = ["--trainer.max_epochs", "3", "--trainer.deterministic", "warn"]
    part.fit("whole", *same)
    stop = ["--trainer.callbacks+=benchmarks.timing.Stop"]
    runs = ["--trainer.default_root_dir", str(part.runs / "stopped")]
    part.project("fit", *part.task(), *same, *runs, *stop, codes=(128 + signal.SIGTERM,))
    part.project("fit", "--ckpt_path", "last", *runs)
    whole, resumed = part.weights("whole"), part.weights("stopped")
    if different := [name for name in whole if not torch.equal(whole[name], resumed[name])]:
        raise SystemExit(f"{len(different)} of {len(whole)} tensors differ, for example {different[0]}")
    return f"all {len(whole)} tensors are equal to the last bit"


def tests(part: Part) -> str:
    """Those that need a GPU."""
    files = [str(file) for file in Path("tests").rglob("test_*.py") if "needs a GPU" in file.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "", "-k", "gpu", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    if done.returncode:
        raise SystemExit("tests failed")
    return done.stdout.strip().splitlines()[-1]


PARTS: dict[str, Callable[[Part], str]] = {
    part.__name__: part for part in (tests, recipe, resume, precision, lr_find, batch_find, compiled, export)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["images", *PARTS])
    parser.add_argument("work", type=Path)
    parser.add_argument("--images", type=Path, metavar="CIFAR")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    part = Part(args.work.resolve(), args.small)
    said = images(part, args.images) if args.part == "images" else PARTS[args.part](part)
    print(f"result: {said}", flush=True)


if __name__ == "__main__":
    main()
