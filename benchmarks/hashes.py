"""Print a hash of the trained weights of six short trainings, to compare two commits of this project bit by bit.

    python benchmarks/hashes.py [CHECKOUT]

CHECKOUT (default: the current folder) is a checkout of any commit; its own `python -m project fit` is run, with its
own configs. The images and the weights to start from are made here and are the same every time: no download. Any CPU,
about two minutes. Two commits that print the same hash train alike: same split, same order, same augmentation, same
arithmetic. Compare on one machine only: another processor may round differently.
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CLASSES = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}
PHOTOS = ["--config", "configs/folder.yaml", "--model", "configs/model/resnet9.yaml"]
PHOTOS += ["--data.image_size", "32", "--trainer.max_epochs", "2"]
TUNED = ["--config", "configs/finetune.yaml", "--data.image_size", "48", "--trainer.max_epochs", "3"]


def make_images(root: Path) -> None:
    """60 noisy images of three colours and of different sizes."""
    random = np.random.default_rng(0)
    for name, colour in CLASSES.items():
        (root / name).mkdir(parents=True)
        for i in range(40):
            height, width = random.integers(30, 60, 2)
            pixels = random.integers(0, 55, (height, width, 3)) + colour
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{name}_{i:03d}.png")


def make_weights(folder: Path) -> dict[str, Path]:
    """Random weights of a torchvision and a timm network, in place of published ones."""
    import timm
    import torchvision

    torch.manual_seed(0)
    nets = {"torchvision": torchvision.models.resnet18(), "timm": timm.create_model("resnet10t")}
    for name, net in nets.items():
        torch.save(net.state_dict(), folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in nets}


def hash_of(checkpoint: Path) -> str:
    """Of the network's tensors, by name and to the last bit; what else the checkpoint holds does not count."""
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")["state_dict"]
    digest = hashlib.sha256()
    for name in sorted(key for key in state if key.startswith("net.")):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class Checkout:
    """The project at one commit, and a folder for its runs."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root.resolve(), folder
        # Two threads, whatever the machine has: the number decides in which order sums are added.
        self.environment = {**os.environ, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "2"}

    def start(self, name: str, *arguments: str) -> subprocess.Popen:
        configs = [str(self.root / each) if each.startswith("configs/") else each for each in arguments]
        command = [
            sys.executable,
            "-m",
            "project",
            "fit",
            *configs,
            "--trainer.default_root_dir",
            str(self.folder / name),
        ]
        command += ["--trainer.accelerator", "cpu"]
        return subprocess.Popen(
            command, env=self.environment, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def fit(self, name: str, *arguments: str) -> str:
        """Train, and hash the last checkpoint."""
        process = self.start(name, *arguments)
        printed, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{name} ended with exit code {process.returncode}:\n{printed}")
        return self.hash(name)

    def stop_after(self, name: str, words: str, *arguments: str) -> None:
        """Train until a line begins with these words, then send SIGTERM."""
        process = self.start(name, *arguments)
        for line in process.stdout:
            if line.startswith(words):
                process.send_signal(signal.SIGTERM)
                break
        process.communicate()

    def hash(self, name: str) -> str:
        (checkpoint,) = (self.folder / name).glob("*/version_0/checkpoints/last.ckpt")
        return hash_of(checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="?", type=Path, default=Path(), help="a checkout of the project")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_images(folder / "images")
        weights = make_weights(folder)
        project = Checkout(args.checkout, folder)
        root = ["--data.root", str(folder / "images")]
        digits = ["--config", "configs/digits.yaml", "--trainer.max_epochs", "4"]
        print("digits      ", project.fit("digits", *digits), flush=True)
        print("folder      ", project.fit("folder", *PHOTOS, *root), flush=True)
        net = "--model.net.init_args.name"
        start = ["--model.weights", str(weights["torchvision"]), net, "resnet18"]
        print("torchvision ", project.fit("torchvision", *TUNED, *root, *start), flush=True)
        start = ["--model.weights", str(weights["timm"]), "--model.net", "project.nets.TimmModel", net, "resnet10t"]
        print("timm        ", project.fit("timm", *TUNED, *root, *start), flush=True)
        project.stop_after("resumed", "epoch 2", *digits)
        print("resumed     ", project.fit("resumed", "--ckpt_path", "last"), flush=True)
        project.stop_after("resumed_tuning", "epoch 1", *TUNED, *root, *start)
        print("resumed timm", project.fit("resumed_tuning", "--ckpt_path", "last"), flush=True)


if __name__ == "__main__":
    main()
