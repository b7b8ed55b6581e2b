"""A part of your own is one class in one new file and one YAML, and no existing file is touched (docs/guide.md)."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import DIGITS, ROOT, SMALL, slow_but

PARTS = {  # name -> the new file, the new YAML, what shows that it ran
    "network": (
        """
from torch import nn

class Linear(nn.Sequential):
    def __init__(self, in_channels: int, num_classes: int, image_size: int, bias: bool = True) -> None:
        super().__init__(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes, bias))
""",
        "model: {net: {class_path: own.Linear, init_args: {bias: false}}}",
        "model      Linear: 640 parameters",
    ),
    "data source": (
        """
import numpy as np
from project.data.sources import Sample, Source

class Stripes(Source):
    \"\"\"Bright columns or rows.\"\"\"

    def __init__(self, root: str | None, count: int = 60) -> None:
        self.samples = [Sample(key=f"{i:03d}", label=("columns", "rows")[i % 2]) for i in range(count)]

    def content(self, sample: Sample) -> np.ndarray:
        number = int(sample.key)
        image = np.random.default_rng(number).integers(0, 50, (8, 8, 1)).astype(np.uint8)
        image[:, ::2] += 100
        return image if number % 2 == 0 else image.transpose(1, 0, 2)
""",
        "data: {source: {class_path: own.Stripes, init_args: {count: 50}}}",
        "2 classes",
    ),
    "augmentation": (
        """
from torch import Tensor
from project.data.augment import Augmentation
from project.data.draws import Draws

class Darken(Augmentation):
    def __init__(self, least: float) -> None:
        self.least = least

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        return images * draws.uniform(self.least, 1).view(-1, 1, 1, 1)
""",
        "data: {augment: [{class_path: own.Darken, init_args: {least: 0.5}}]}",
        "Validation accuracy",
    ),
    "loss": (
        """
from torch import Tensor
from project.tasks import MultiClass

class Focal(MultiClass):
    def __init__(self, class_names: list[str], gamma: float = 2.0) -> None:
        super().__init__(class_names)
        self.gamma = gamma

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses = self.losses(logits, targets)
        return ((1 - (-losses).exp()) ** self.gamma * losses).mean()
""",
        "model: {task: {class_path: own.Focal, init_args: {gamma: 1.5}}}",
        "Validation accuracy",
    ),
    "metric": (
        """
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassCohenKappa
from project.tasks import MultiClass

class WithKappa(MultiClass):
    def metrics(self, prefix: str) -> MetricCollection:
        found = super().metrics(prefix)
        found.add_metrics({"kappa": MulticlassCohenKappa(self.outputs)})
        return found
""",
        "model: {task: own.WithKappa}\ncheckpoint: {monitor: val/kappa}",
        "the best by val/kappa",
    ),
    "optimizer": (
        """
import torch

class SignSGD(torch.optim.Optimizer):
    def __init__(self, params, lr: float, floor: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "floor": floor})

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= group["lr"] * p.grad.sign()
        return loss
""",
        "model: {optimizer: {class_path: own.SignSGD, init_args: {floor: 0.1}}, lr: 0.001}",
        "optimizer  SignSGD",
    ),
    "classifier": (
        """
from project.classifier import ImageClassifier

class Loud(ImageClassifier):
    def on_fit_start(self) -> None:
        print("a classifier of my own")
""",
        "classifier: own.Loud",
        "a classifier of my own",
    ),
}


@pytest.mark.parametrize("part", slow_but(PARTS, "network", "data source", "loss"))
def test_a_part_of_one_s_own(part, cli, workdir, monkeypatch) -> None:
    code, settings, words = PARTS[part]
    (workdir / "own.py").write_text(code)
    (workdir / "own.yaml").write_text(settings)
    monkeypatch.syspath_prepend(workdir)
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3", "--data.batch_size", "16"]
    net = [] if part == "network" else SMALL
    try:
        result = cli("fit", *DIGITS, *net, "--config", "own.yaml", *short)
        assert result.code == 0, result.err
        assert words in result.out
        (checkpoint,) = workdir.glob("runs/*/version_0/checkpoints/last.ckpt")
        torch.load(checkpoint, weights_only=True)
        result = cli("test", "--ckpt_path", "last")  # the checkpoint alone knows the part
        assert result.code == 0, result.err
    finally:
        sys.modules.pop("own", None)


COMMAND = '''
from project.commands import Command


def count(config: dict, run_name: str, times: int = 1, loud: bool = False) -> int:
    """Say how many epochs are planned.

    Args:
        times: How often.
        loud: In capitals.
    """
    for _ in range(times):
        words = f"{run_name}: {config['trainer']['max_epochs']} epochs"
        print(words.upper() if loud else words)
    return 3


def greet(name: str) -> None:
    """Greet, without torch."""
    import sys

    print(f"hello {name}", "torch" in sys.modules)


COMMANDS = [Command(count, needs="config", ignores=("data.augment",)), Command(greet, needs="nothing")]
'''


@pytest.mark.slow
def test_a_command_of_one_s_own(tmp_path) -> None:
    """One new file in a folder of its own below project/extras."""
    shutil.copytree(ROOT / "project", tmp_path / "project", ignore=shutil.ignore_patterns("__pycache__", "extras"))
    (tmp_path / "project/extras/own").mkdir(parents=True)
    (tmp_path / "project/extras/own/command.py").write_text(COMMAND)

    def run(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "project", *words]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)

    listed = run("--help").stdout
    assert "  count     Say how many epochs are planned." in listed and "Greet, without torch." in listed
    done = run("greet", "you")
    assert (done.returncode, done.stdout) == (0, "hello you False\n")
    done = run("count", *DIGITS, "--times", "2", "--loud", "--trainer.max_epochs", "4")
    assert (done.returncode, done.stdout) == (3, "DIGITS: 4 EPOCHS\nDIGITS: 4 EPOCHS\n"), done.stderr
    for words, message in (
        (["count", *DIGITS, "--tims", "2"], "error: tims: there is no such key; did you mean times?\n"),
        (["counts"], "error: there is no command 'counts'; did you mean count?\n"),
        (["greet"], "error: name is missing\n"),
    ):
        done = run(*words)
        assert (done.returncode, done.stderr) == (2, message)
