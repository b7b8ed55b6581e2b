"""The classifier against scikit-learn's metrics, torch's own loss, optimizers and schedulers, and numpy."""

import csv
import json
import math
import re
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from conftest import DIGITS, SMALL, make_folder, slow_but
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, log_loss, recall_score
from sklearn.utils.class_weight import compute_class_weight
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils._python_dispatch import TorchDispatchMode

from project.classifier import ImageClassifier
from project.data import Digits, ImageDataModule
from project.errors import UserError
from project.nets import ConvNet
from project.nets.normalise import IMAGENET_MEAN, IMAGENET_STD
from project.optim import Constant
from project.tasks import Mean, MultiClass


def small_net(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    return ConvNet(in_channels, num_classes, image_size, channels=[4, 8])


def make(num_classes: int = 3, channels: int = 3, **arguments) -> ImageClassifier:
    names = [f"class {i}" for i in range(num_classes)]
    task = {name: arguments.pop(name) for name in ("label_smoothing", "class_weights") if name in arguments}
    arguments["task"] = partial(MultiClass, **task)
    return ImageClassifier(arguments.pop("net", small_net), names, in_channels=channels, image_size=8, **arguments)


def quiet_trainer(**arguments) -> L.Trainer:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(accelerator="cpu", devices=1, **{**off, "num_sanity_val_steps": 0, **arguments})


class Table(nn.Module):
    """Gives each image the logits of the row that its one pixel names, so that a test chooses every logit."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[images.flatten().long()]


class Batches:
    """What a data loader would give."""

    def __init__(self, labels: Tensor, size: int, images: Tensor | None = None) -> None:
        self.labels, self.size = labels, size
        self.images = torch.arange(len(labels)).float().view(-1, 1, 1, 1) if images is None else images

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for rows in torch.arange(len(self.labels)).split(self.size):
            yield {"image": self.images[rows], "label": self.labels[rows], "index": rows}


def evaluate(command: str, logits: Tensor, labels: Tensor, size: int, **arguments) -> dict[str, float]:
    """The metrics that the command logs, without the prefix."""
    model = make(logits.shape[1], 1, net=lambda *_: Table(logits), mean=[0.0], std=[1.0], **arguments)
    trainer = quiet_trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the number of workers of a loader that has none
        getattr(trainer, command)(model, Batches(labels, size), verbose=False)
    prefix = {"validate": "val/", "test": "test/"}[command]
    assert all(name.startswith(prefix) for name in trainer.callback_metrics)
    return {name.removeprefix(prefix): float(value) for name, value in trainer.callback_metrics.items()}


def top5(logits: Tensor, labels: Tensor) -> float:
    hits = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        hits += label in sorted(range(len(row)), key=lambda k: row[k])[-5:]
    return hits / len(labels)


def random_case(case: str, num_classes: int, count: int = 90) -> tuple[Tensor, Tensor]:
    """Logits and labels."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(count, num_classes, generator=generator)
    labels = torch.randint(num_classes, (count,), generator=generator)
    if case == "first batch agrees":  # every first guess right: top-1 equals top-5, and both equal recall and F1
        labels[:32] = torch.arange(32) % num_classes
        logits[torch.arange(32), labels[:32]] += 10
    if case == "first batch all wrong":
        logits[torch.arange(32), labels[:32]] -= 20
    if case == "a class is missing":
        labels[labels == 1] = 0
    return logits, labels


@pytest.mark.parametrize("command", ["validate", "test"])
@pytest.mark.parametrize("case", ["random", "first batch agrees", "first batch all wrong", "a class is missing"])
@pytest.mark.parametrize("num_classes", [2, 5, 6, 11])
def test_metrics_are_scikit_learns(command, case, num_classes) -> None:
    logits, labels = random_case(case, num_classes)
    found = evaluate(command, logits, labels, 32)
    guess = logits.argmax(dim=1)
    assert found["acc"] == pytest.approx(accuracy_score(labels, guess))
    assert found["f1_macro"] == pytest.approx(f1_score(labels, guess, average="macro"))
    there = sorted(set(labels.tolist()))  # of a class without images there is no recall
    recall = recall_score(labels, guess, average=None, labels=there)
    assert [found[f"acc_class/class {i}"] for i in there] == pytest.approx(recall.tolist())
    assert found["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    if num_classes <= 5:
        assert "acc_top5" not in found
    else:
        assert found["acc_top5"] == pytest.approx(top5(logits, labels))
        assert found["acc_top5"] > found["acc"]


def test_one_model_keeps_its_evaluations_apart() -> None:
    """A second pass starts from nothing, and validation leaves nothing in test."""
    logits, labels = random_case("random", 6)
    model = make(6, 1, net=lambda *_: Table(logits), mean=[0.0], std=[1.0])
    trainer = quiet_trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for command, rows in (("validate", slice(0, 30)), ("validate", slice(30, 90)), ("test", slice(60, 90))):
            images = torch.arange(90).float().view(-1, 1, 1, 1)[rows]
            getattr(trainer, command)(model, Batches(labels[rows], 16, images), verbose=False)
            value = trainer.callback_metrics[{"validate": "val/acc", "test": "test/acc"}[command]]
            assert float(value) == pytest.approx(accuracy_score(labels[rows], logits[rows].argmax(dim=1)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_loss_is_cross_entropy_with_smoothing(smoothing) -> None:
    logits, labels = random_case("random", 7)
    model = make(7, label_smoothing=smoothing)
    expected = nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert torch.allclose(model.task.loss(logits, labels), expected)
    # by hand: the target is 1 - s on the label and s spread over all classes
    target = (1 - smoothing) * nn.functional.one_hot(labels, 7) + smoothing / 7
    assert torch.allclose(model.task.loss(logits, labels), -(target * logits.log_softmax(dim=1)).sum(dim=1).mean())
    assert model.task.loss(logits.bfloat16(), labels).dtype == torch.float32


def weighted_smoothed(logits: Tensor, shares: Tensor, weights: list[float], smoothing: float) -> Tensor:
    """In float64: the mean over images of weight x cross-entropy with the smoothed target; shares (N, C)."""
    shares, weight = shares.double(), torch.tensor(weights, dtype=torch.float64)
    target = (1 - smoothing) * shares + smoothing / shares.shape[1]
    each = -(target * logits.double().log_softmax(dim=1)).sum(dim=1)
    return (each * (shares @ weight)).sum() / len(each)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("share", [1.0, 0.7])
def test_a_weight_belongs_to_the_whole_image(smoothing, share) -> None:
    logits, labels = random_case("random", 3)
    weights = [0.5, 1.0, 4.0]
    task = make(3, class_weights=weights, label_smoothing=smoothing).task
    once = nn.functional.one_hot(labels, 3).float()
    shares = share * once + (1 - share) * once.roll(1, 0)
    ours, formula = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss, expected = task.loss(ours, shares), weighted_smoothed(formula, shares, weights, smoothing)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(ours.grad.double(), formula.grad, atol=1e-8)
    if share == 1:
        assert torch.allclose(task.loss(logits, labels), loss)


def test_the_optimum_of_a_weighted_smoothed_loss_is_the_class_of_the_image() -> None:
    """torch's own weights put the optimum of an image of the large class at less than one half."""
    smoothing, weights, optima = 0.1, [0.525, 10.5], []  # 20 to 1
    label = torch.tensor([0])
    task = make(2, class_weights=weights, label_smoothing=smoothing).task
    torchs = nn.CrossEntropyLoss(weight=torch.tensor(weights), label_smoothing=smoothing)
    for loss in (task.loss, torchs):
        grid = torch.linspace(0.01, 0.99, 99)
        losses = [float(loss(torch.tensor([[p, 1 - p]]).log(), label)) for p in grid]
        optima.append(float(grid[int(np.argmin(losses))]))
    assert optima[0] == pytest.approx(1 - smoothing / 2, abs=0.01) and optima[1] < 0.5


@pytest.mark.parametrize("size", [1, 7, 64, 90])
@pytest.mark.parametrize("command", ["validate", "test"])
def test_the_validation_loss_is_that_of_the_model(command, size) -> None:
    """Whatever the batch size, the weights and the smoothing of the training."""
    logits, labels = random_case("random", 3)
    weights = np.array([0.5, 1.0, 4.0])
    for options in ({}, {"label_smoothing": 0.3}, {"class_weights": weights.tolist(), "label_smoothing": 0.3}):
        found = evaluate(command, logits, labels, size, **options)
        probabilities = logits.double().softmax(1).numpy()
        assert found["loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-5)
        expected = log_loss(labels, probabilities, sample_weight=weights[labels])
        assert found.get("weighted_loss") == (pytest.approx(expected, rel=1e-5) if "class_weights" in options else None)


def test_a_loss_that_is_not_a_number_is_not_left_out() -> None:
    logits, labels = random_case("random", 3)
    logits[5] = math.nan
    assert math.isnan(evaluate("test", logits, labels, 16)["loss"])


@pytest.mark.parametrize("given", [[1, 2, 6], {"red": 6.0, "blue": 1.0, "green": 2.0}])
def test_given_weights_have_a_mean_of_1_over_the_training_images(tmp_path, given) -> None:
    root = make_folder(tmp_path / "images", {"blue": 30, "green": 10, "red": 5})
    data = ImageDataModule(str(root), image_size=8, batch_size=16)
    task = MultiClass(data.class_names, class_weights=given)
    task.prepare(data)
    labels = np.array([data.source.samples[i].label for i in data.splits["train"]])
    weights = dict(zip(data.class_names, task.class_weights.tolist(), strict=True))
    assert np.mean([weights[label] for label in labels]) == pytest.approx(1, rel=1e-6)
    assert [weights[name] / weights["blue"] for name in ("blue", "green", "red")] == pytest.approx([1, 2, 6])
    before = task.class_weights.clone()
    task.prepare(data)
    assert torch.allclose(task.class_weights, before)


def test_balanced_weights_need_counts() -> None:
    MultiClass(["a", "b"], class_weights=[1, 2]).prepare(None)
    with pytest.raises(UserError, match=r"^[^\n]*balanced[^\n]*$"):
        MultiClass(["a", "b"], class_weights="balanced").prepare(None)


@pytest.mark.slow
def test_weights_by_name_from_the_command_line(cli, workdir) -> None:
    given = "{" + ", ".join(f"{i}: {i + 1}" for i in range(10)) + "}"  # YAML reads these names as numbers
    options = [*DIGITS, *SMALL, "--trainer.max_epochs=1", "--model.task.class_weights", given]
    result = cli("fit", "--checkpoint.monitor=val/weighted_loss", *options)
    assert result.code == 0, result.err
    saved = torch.load("runs/digits/version_0/checkpoints/last.ckpt", weights_only=True)
    weights = saved["state_dict"]["task.class_weights"]
    assert (weights / weights[0]).tolist() == pytest.approx([i + 1 for i in range(10)])
    best = saved["callbacks"]["BestAndLast"]
    assert best["mode"] == "min" and best["best_score"] == best["metrics"]["val/weighted_loss"]
    assert cli("fit", "--ckpt_path=last", "--trainer.max_epochs=2").code == 0
    resumed = torch.load("runs/digits/version_0/checkpoints/last.ckpt", weights_only=True)
    assert torch.equal(resumed["state_dict"]["task.class_weights"], weights)
    result = cli("fit", *options[:-1], given.replace("9: 10", "nine: 10"))
    assert result.code == 2 and result.err.count("\n") == 1
    assert "model.task.class_weights: missing or unknown classes: 9, nine" in result.err


RARE = """
from dataclasses import replace
from project.data import Digits
class Zeros(Digits):  # 60 images of a zero against 1,619 of other digits
    def __init__(self, root=None):
        super().__init__(root)
        zeros = [sample for sample in self.samples if sample.label == "0"][:60]
        others = [sample for sample in self.samples if sample.label != "0"]
        self.samples = sorted([replace(s, label="zero") for s in zeros] + [replace(s, label="other") for s in others])
        self.class_names = None
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--model.mixup=0.2"]])
def test_a_rare_class_with_smoothing_and_weights(cli, workdir, monkeypatch, options) -> None:
    (workdir / "rare_zeros.py").write_text(RARE)
    monkeypatch.syspath_prepend(workdir)
    task = ["--model.task.label_smoothing=0.1", "--model.task.class_weights=balanced"]
    source = "--data.source=rare_zeros.Zeros"
    assert cli("fit", *DIGITS, *SMALL, source, *task, *options, "--trainer.max_epochs=10").code == 0
    assert cli("test", "--ckpt_path", "last").code == 0
    found = json.loads(Path("runs/digits/version_0/metrics.json").read_text())
    assert found["test/acc"] > 0.95 and found["test/acc_class/zero"] > 0.9 and found["test/acc_class/other"] > 0.95


def test_balanced_class_weights(tmp_path) -> None:
    root = make_folder(tmp_path / "images", {"blue": 30, "green": 10, "red": 5})
    data = ImageDataModule(str(root), image_size=8, batch_size=16)
    model = ImageClassifier(
        small_net,
        data.class_names,
        image_size=8,
        task=partial(MultiClass, class_weights="balanced", label_smoothing=0.1),
    )
    quiet_trainer(max_epochs=1, limit_val_batches=0).fit(model, datamodule=data)
    labels = [data.source.samples[i].label for i in data.splits["train"]]
    oracle = compute_class_weight("balanced", classes=np.array(data.class_names), y=np.array(labels))
    assert len(set(oracle)) == 3
    assert model.task.class_weights.tolist() == pytest.approx(oracle.tolist())
    logits, targets = random_case("random", 3)
    expected = weighted_smoothed(logits, nn.functional.one_hot(targets, 3), oracle.tolist(), 0.1)
    assert torch.allclose(model.task.loss(logits, targets).double(), expected)


def random_images(channels: int = 3, count: int = 6, size: int = 8) -> Tensor:
    return torch.randint(
        256, (count, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_integers_and_floats_are_the_same_image(channels) -> None:
    model, images = make(channels=channels).eval(), random_images(channels)
    logits = model(images)
    assert torch.equal(logits, model(images.float() / 255))
    assert logits.shape == (6, 3)
    assert torch.allclose(model.probabilities(images), logits.softmax(dim=1))


@pytest.mark.parametrize("statistics", [{}, {"mean": [0.1, 0.2, 0.7], "std": [0.3, 0.05, 1.5]}])
def test_normalisation_is_numpys(statistics) -> None:
    model, images = make(**statistics), random_images()
    mean, std = statistics.get("mean", [0.485, 0.456, 0.406]), statistics.get("std", [0.229, 0.224, 0.225])
    expected = (images.numpy() / 255.0 - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(std, (1, 3, 1, 1))
    assert np.allclose(model.normalise(images).numpy(), expected, atol=1e-5)


def test_channels_last_changes_the_layout_only() -> None:
    images = random_images(count=16)
    torch.manual_seed(0)
    last = make(channels_last=True).eval()
    torch.manual_seed(0)
    first = make(channels_last=False).eval()
    assert last.normalise(images).is_contiguous(memory_format=torch.channels_last)
    assert first.normalise(images).is_contiguous()
    assert last.net.stages[0][0].conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(last(images), first(images), atol=1e-5)


def test_every_scheme_draws_other_weights_of_its_own_size() -> None:
    def wide(channels: int, classes: int, size: int) -> nn.Module:
        return ConvNet(channels, classes, size, channels=[256])

    fan_in, fan_out = 3 * 9, 256 * 9
    variance = {  # PyTorch's own is uniform within 1 / sqrt(fan_in)
        "default": 1 / (3 * fan_in),
        "xavier_normal": 2 / (fan_in + fan_out),
        "xavier_uniform": 2 / (fan_in + fan_out),
        "kaiming_normal": 2 / fan_out,
        "kaiming_uniform": 2 / fan_out,
    }
    weights = {}
    for scheme, expected in variance.items():
        torch.manual_seed(0)
        weights[scheme] = make(net=wide, init=scheme).net.stages[0][0].conv.weight.detach()
        assert weights[scheme].var().item() == pytest.approx(expected, rel=0.05)
        uniform = weights[scheme].abs().max() <= math.sqrt(3 * expected) * 1.0001
        assert bool(uniform) == (not scheme.endswith("_normal"))
    assert len({tuple(weight.flatten().tolist()) for weight in weights.values()}) == len(variance)


@pytest.mark.parametrize(
    ("channels", "mean", "std"),
    [
        (1, [0.449], [0.226]),  # the mean of ImageNet's three
        (3, IMAGENET_MEAN, IMAGENET_STD),
        (4, [*IMAGENET_MEAN, 0.5], [*IMAGENET_STD, 0.5]),
    ],
)
def test_default_statistics(channels, mean, std) -> None:
    model = make(channels=channels)
    assert model.mean.flatten().tolist() == pytest.approx(mean) and model.std.flatten().tolist() == pytest.approx(std)
    assert model.mean.shape == model.std.shape == (1, channels, 1, 1)
    if channels == 1:
        assert mean[0] == pytest.approx(np.mean(IMAGENET_MEAN), abs=5e-4) and std[0] == pytest.approx(
            np.mean(IMAGENET_STD), abs=5e-4
        )
    half = make(channels=channels, mean=[0.25] * channels)  # one of the two may be left out
    assert half.mean.flatten().tolist() == [0.25] * channels and half.std.flatten().tolist() == pytest.approx(std)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"channels": 1, "mean": [0.4, 0.4, 0.4]}, ["model.mean", "1 numbers"]),
        ({"channels": 3, "std": [0.2]}, ["model.std", "3 numbers"]),
        ({"channels": 4, "mean": IMAGENET_MEAN}, ["model.mean", "4 numbers"]),
        ({"std": [0.2, 0.0, 0.2]}, ["model.std", "above 0"]),
        ({"lr": 0.0}, ["model.lr", "above 0"]),
        ({"label_smoothing": -0.1}, ["model.task.label_smoothing", "-0.1"]),
        ({"label_smoothing": 1.0}, ["model.task.label_smoothing", "below 1"]),
        ({"class_weights": [1.0, 2.0]}, ["model.task.class_weights", "3 numbers"]),
        ({"class_weights": [1.0, 2.0, 0.0]}, ["model.task.class_weights", "above 0"]),
        ({"class_weights": [1.0, 2.0, math.nan]}, ["model.task.class_weights", "above 0"]),
        ({"class_weights": [1.0, 2.0, math.inf]}, ["model.task.class_weights", "above 0"]),
        ({"class_weights": {"class 0": 1.0, "class 2": 2.0}}, ["model.task.class_weights", "class 1"]),
        ({"class_weights": dict.fromkeys(["class 0", "class 1", "class 2", "class 3"], 1.0)}, ["class 3"]),
        ({"lr": math.nan}, ["model.lr", "nan"]),
        ({"lr": math.inf}, ["model.lr", "inf"]),
        ({"mixup": -0.1}, ["model.mixup", "-0.1"]),
        ({"cutmix": -1.0}, ["model.cutmix", "-1.0"]),
        ({"warmup": -1}, ["model.warmup", "-1"]),
        ({"warmup": math.nan}, ["model.warmup", "nan"]),
        ({"warmup": math.inf}, ["model.warmup", "inf"]),
        ({"warmup": 1, "warmup_start": 1.1}, ["warmup_start", "1.1"]),
        ({"warmup": 1, "warmup_start": -0.1}, ["warmup_start", "-0.1"]),
        ({"warmup": 1, "schedule": lambda optimizer: lr_scheduler.StepLR(optimizer, 1)}, ["model.warmup", "LinearLR"]),
        ({"schedule_interval": "step"}, ["model.schedule_interval", "leave it out"]),
        ({"schedule_interval": "epoch", "schedule": Constant()}, ["model.schedule_interval", "leave it out"]),
        ({"lr_scaling": "linear"}, ["model.lr_scaling", "model.reference_batch"]),
        ({"lr_scaling": "sqrt"}, ["model.lr_scaling", "model.reference_batch"]),
        ({"reference_batch": 256}, ["model.lr_scaling", "model.reference_batch"]),
        ({"reference_batch": 0, "lr_scaling": "linear"}, ["model.reference_batch", "not 0"]),
    ],
)
def test_bad_arguments(arguments, words) -> None:
    with pytest.raises(UserError) as caught:
        make(**arguments)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_balancing_twice_is_refused(folder) -> None:
    data = ImageDataModule(str(folder), image_size=8, sampler="balanced")
    model = ImageClassifier(
        small_net, data.class_names, image_size=8, task=partial(MultiClass, class_weights="balanced")
    )
    with pytest.raises(UserError, match="twice"):
        quiet_trainer(max_epochs=1).fit(model, datamodule=data)


# Optimizers

OPTIMIZERS = {
    "momentum": ("SGD", {"momentum": 0.9, "weight_decay": 0.001}),
    "nesterov": ("SGD", {"momentum": 0.8, "nesterov": True}),
    "adam": ("Adam", {"betas": [0.8, 0.99]}),
    "adamw": ("AdamW", {"weight_decay": 0.1}),
    "adagrad": ("Adagrad", {"lr_decay": 0.01}),
    "adadelta": ("Adadelta", {"rho": 0.8}),
    "rmsprop": ("RMSprop", {"alpha": 0.9, "momentum": 0.5}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_a_plain_loop_with_torchs_optimizer(name) -> None:
    class_name, arguments = OPTIMIZERS[name]
    kind = getattr(torch.optim, class_name)
    images, labels = random_images(count=40), torch.arange(40) % 3
    torch.manual_seed(1)
    model = make(lr=0.05, label_smoothing=0.1, optimizer=lambda groups, lr: kind(groups, lr=lr, **arguments))
    torch.manual_seed(1)
    twin = make(lr=0.05, label_smoothing=0.1)
    start = [p.clone() for p in model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet_trainer(max_epochs=2).fit(model, Batches(labels, 16, images))
    optimizer = kind(twin.net.parameters(), lr=0.05, **arguments)
    twin.train()
    for _ in range(2):
        for rows in torch.arange(40).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(twin(images[rows]), labels[rows], label_smoothing=0.1).backward()
            optimizer.step()
    for before, one, other in zip(start, model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6) and not torch.equal(one, before)


@pytest.fixture
def few(tmp_path) -> list[str]:
    """Options for three steps an epoch on images of two classes."""
    root = make_folder(tmp_path / "few", {"blue": 25, "red": 25})
    net = ["--model.net", "project.nets.ConvNet", "--model.net.init_args.channels", "[4]", "--data.image_size", "8"]
    return [
        "fit",
        "--data.root",
        str(root),
        "--data.batch_size",
        "12",
        *net,
    ]  # 50 -> 10 test, 8 validation, 32 to train


@pytest.mark.parametrize("name", slow_but(OPTIMIZERS, "nesterov"))
def test_every_optimizer_from_yaml(cli, few, workdir, name) -> None:
    class_name, arguments = OPTIMIZERS[name]
    choice = {"class_path": f"torch.optim.{class_name}", "init_args": arguments}
    (workdir / "opt.yaml").write_text(yaml.safe_dump({"model": {"lr": 0.03, "optimizer": choice}}))
    result = cli(*few, "--config", "opt.yaml", "--trainer.max_epochs", "1")
    assert result.code == 0 and result.err == ""
    decay = f"{arguments.get('weight_decay', 0):.4g}"  # none of the others has one by default
    assert f"optimizer  {class_name}\n" in result.out
    assert re.search(rf"^           all +\d+ +0\.03 +{re.escape(decay)} +yes$", result.out, re.MULTILINE)
    checkpoint = torch.load("runs/opt/version_0/checkpoints/last.ckpt", weights_only=True)
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    oracle = getattr(torch.optim, class_name)([nn.Parameter(torch.zeros(1))], lr=0.03, **arguments).param_groups[0]
    assert group.get("fused") is (True if class_name in ("SGD", "Adam", "AdamW") else oracle.get("fused"))
    for key in set(oracle) - {"params", "fused"}:
        assert group[key] == oracle[key] or list(group[key]) == list(oracle[key]), key  # betas: a list, or a tuple
    assert checkpoint["global_step"] == 3


# Schedulers: epoch e logs the rate that its last optimizer step used

EPOCHS, STEPS = 4, 3  # of every run below
TOTAL = EPOCHS * STEPS
OWN = """
def halve(done): return 0.5 ** done
def negative(done): return -1.0
def broken(done): raise RuntimeError("no such epoch")

class Root:
    def __init__(self, power: float = 0.5): self.power = power
    def __call__(self, done): return (1 + done) ** -self.power

from lightning import Callback
class StopInTheWarmUp(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 4: raise KeyboardInterrupt
"""
TORCH = {
    "steps": ("StepLR", {"step_size": 2, "gamma": 0.1}),
    "milestones": ("MultiStepLR", {"milestones": [1, 3], "gamma": 0.5}),
    "exponential": ("ExponentialLR", {"gamma": 0.7}),
    "cosine": ("CosineAnnealingLR", {"T_max": 4, "eta_min": 0.001}),
}
CYCLE = {"max_lr": 0.02, "total_steps": TOTAL, "div_factor": 10.0, "final_div_factor": 100.0, "cycle_momentum": False}
OURS = {  # ours with its arguments, torch's with its own, and after how many steps it is stepped
    "steps": ("Step", {"step_size": 2}, *TORCH["steps"], STEPS),
    "milestones": ("MultiStep", {"milestones": [1, 3], "gamma": 0.5}, *TORCH["milestones"], STEPS),
    "exponential": ("Exponential", {"gamma": 0.7}, *TORCH["exponential"], STEPS),
    "cosine": ("Cosine", {"end": 0.05}, "CosineAnnealingLR", {"T_max": TOTAL, "eta_min": 0.001}, 1),
    "cosines": ("Cosine", {"cycles": 2}, "CosineAnnealingWarmRestarts", {"T_0": TOTAL // 2}, 1),
    "one cycle": ("OneCycle", {"div": 10.0, "final_div": 100.0}, "OneCycleLR", CYCLE, 1),
    "function": ("Lambda", {"function": "own_rates.halve"}, "ExponentialLR", {"gamma": 0.5}, STEPS),
}


@pytest.fixture
def own_rates(workdir, monkeypatch) -> None:
    """A module of the user's."""
    (workdir / "own_rates.py").write_text(OWN)
    monkeypatch.syspath_prepend(workdir)


def logged_rates(group: str = "all", run: str = "runs/fit/version_0") -> list[float]:
    events = EventAccumulator(run)
    events.Reload()
    return [event.value for event in events.Scalars(f"lr/{group}")]


def rates_of(scheduler: str, arguments: dict, every: int = STEPS, lr: float = 0.02) -> list[float]:
    """The rate at the last step of each epoch with torch's own scheduler, which is stepped after `every` steps."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = getattr(lr_scheduler, scheduler)(optimizer, **arguments)
    rates = []
    for step in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0:
            schedule.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))
    return rates[STEPS - 1 :: STEPS]


def as_options(class_path: str, arguments: dict) -> list[str]:
    choice = yaml.safe_dump({"class_path": class_path, "init_args": arguments}, sort_keys=False)
    return ["--model.lr", "0.02", "--model.schedule", choice, "--trainer.max_epochs", str(EPOCHS)]


@pytest.mark.parametrize("name", slow_but(TORCH, "exponential"))
def test_torchs_schedulers_by_epoch(cli, few, name) -> None:
    scheduler, arguments = TORCH[name]
    result = cli(*few, *as_options(f"torch.optim.lr_scheduler.{scheduler}", arguments))
    assert result.code == 0 and result.err == ""
    assert logged_rates() == pytest.approx(rates_of(scheduler, arguments), rel=1e-5)
    for epoch, rate in enumerate(logged_rates()):  # the same is printed
        assert f"lr/all {rate:.3g}" in next(
            line for line in result.out.splitlines() if line.startswith(f"epoch {epoch + 1}/")
        )


@pytest.mark.slow
def test_torchs_scheduler_by_step(cli, few) -> None:
    options = as_options("torch.optim.lr_scheduler.ExponentialLR", {"gamma": 0.9})
    assert cli(*few, *options, "--model.schedule_interval", "step").code == 0
    assert logged_rates() == pytest.approx(rates_of("ExponentialLR", {"gamma": 0.9}, every=1), rel=1e-5)


@pytest.mark.parametrize("name", slow_but(OURS, "step", "one cycle"))
def test_our_schedules(cli, few, workdir, own_rates, name) -> None:
    schedule, arguments, scheduler, torchs, every = OURS[name]
    choice = {"class_path": f"project.optim.{schedule}", "init_args": arguments}
    (workdir / "fit.yaml").write_text(yaml.safe_dump({"model": {"lr": 0.02, "schedule": choice}}))
    result = cli(*few, "--config", "fit.yaml", "--trainer.max_epochs", str(EPOCHS))
    assert result.code == 0 and result.err == ""
    assert logged_rates() == pytest.approx(rates_of(scheduler, torchs, every), rel=1e-4)
    kept = workdir / "runs" / "fit" / "version_0" / "config.yaml"
    again = cli("fit", "--config", kept, "--print_config")
    assert again.code == 0 and yaml.safe_load(again.out)["model"] == yaml.safe_load(kept.read_text())["model"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "arguments", "interval", "scheduler", "torchs", "every"),
    [
        ("Cosine", {}, "epoch", "CosineAnnealingLR", {"T_max": EPOCHS}, STEPS),
        ("Exponential", {"gamma": 0.9}, "step", "ExponentialLR", {"gamma": 0.9}, 1),
    ],
)
def test_our_schedules_in_the_other_unit(cli, few, schedule, arguments, interval, scheduler, torchs, every) -> None:
    assert (
        cli(*few, *as_options(f"project.optim.{schedule}", arguments), "--model.schedule_interval", interval).code == 0
    )
    assert logged_rates() == pytest.approx(rates_of(scheduler, torchs, every), rel=1e-5)


@pytest.mark.parametrize(
    "key", slow_but(["lightning.pytorch.cli.ReduceLROnPlateau", "project.optim.Plateau"], "project.optim.Plateau")
)
def test_plateau_lowers_the_rate(cli, few, key) -> None:
    arguments = {"factor": 0.1, "patience": 0, "threshold": 1.0}  # no loss is ever an improvement
    assert cli(*few, *as_options(key, {"monitor": "val/loss", **arguments})).code == 0
    oracle = rates_of("ReduceLROnPlateau", arguments)
    assert logged_rates() == pytest.approx(oracle, rel=1e-5) and oracle[-1] < oracle[1]


def test_each_group_its_own_schedule(cli, few, workdir, own_rates) -> None:
    """Also when its configuration is read again, and when the run is resumed: the first pattern that matches counts."""
    root = {"class_path": "own_rates.Root", "init_args": {"power": 1.5}}
    schedules = {
        "head": {"class_path": "project.optim.Lambda", "init_args": {"function": root}},
        ".*": {"class_path": "project.optim.Step", "init_args": {"step_size": 2}},
    }
    options = as_options("project.optim.PerGroup", {"schedules": schedules})
    result = cli(*few, *options, "--model.lr_mult", "{head: 10}", "--trainer.max_epochs", "2")
    assert result.code == 0 and result.err == ""
    again = cli("fit", "--config", "runs/fit/version_0/config.yaml", "--trainer.max_epochs", str(EPOCHS))
    assert again.code == 0 and again.err == ""
    resumed = cli("fit", "--ckpt_path", "runs/fit/version_0/checkpoints/last.ckpt", "--trainer.max_epochs", str(EPOCHS))
    assert resumed.code == 0 and resumed.err == ""
    for run in ("runs/fit/version_0", "runs/config/version_0"):
        head = [0.2 * (1 + epoch) ** -1.5 for epoch in range(EPOCHS)]
        assert logged_rates("head", run) == pytest.approx(head, rel=1e-5)
        assert logged_rates("rest", run) == pytest.approx(rates_of("StepLR", {"step_size": 2}), rel=1e-5)


@pytest.mark.slow
def test_resuming_within_the_warm_up(cli, few, own_rates) -> None:
    arguments = {"patience": 0, "factor": 0.5, "threshold": 1.0}
    options = [*as_options("project.optim.Plateau", arguments), "--model.warmup", "2.5", "--model.warmup_start", "0.1"]
    assert cli(*few, *options, "--trainer.callbacks+", "own_rates.StopInTheWarmUp").code == 130
    assert cli("fit", "--ckpt_path", "last").code == 0
    plateau = rates_of("ReduceLROnPlateau", arguments)
    rise = [0.1 + 0.9 * min(1, step / 7.5) for step in (2, 5, 8, 11)]
    assert logged_rates() == pytest.approx([rate * share for rate, share in zip(plateau, rise, strict=True)], rel=1e-5)


def ours(schedule: str, **arguments) -> list[str]:
    return as_options(f"project.optim.{schedule}", arguments)


def torchs(scheduler: str, **arguments) -> list[str]:
    return as_options(f"torch.optim.lr_scheduler.{scheduler}", arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ours("Step", step_size=0), "step_size: must be above 0, not 0"),
        (ours("Step", step=3), "the chosen class has no argument 'step'"),
        (ours("Step", step_size=1.5), "step_size: expected a whole number"),
        (ours("Cosin"), "did you mean project.optim.Cosine?"),
        (ours("Plateau", monitor="val/los"), "no metric 'val/los' is logged; there are .*val/loss"),
        (
            as_options("lightning.pytorch.cli.ReduceLROnPlateau", {"monitor": "val/los"}),
            "no metric 'val/los' .*val/loss",
        ),
        (ours("Plateau", mode="up"), "not up"),
        (ours("Lambda", function="own_rates.broken"), "the function failed for 0: no such epoch"),
        (ours("Lambda", function="own_rates.negative"), "it must return 0 or more, not -1.0"),
        (ours("Lambda", function="own_rates.halv"), "own_rates has no 'halv'; did you mean own_rates.halve?"),
        (ours("Lambda", function="halve"), "whole path"),
        (ours("PerGroup", schedules={"head": {"class_path": "project.optim.Cosine"}}), "'head' applies to none of all"),
        (ours("Cosine", end=2), "end: must be at least 0 and at most 1, not 2"),
        ([*ours("Constant"), "--model.schedule_interval", "step"], "schedule_interval .* leave it out"),
        ([*ours("Cosine"), "--model.schedule_interval", "day"], "schedule_interval: expected .* not day"),
        (["--model.schedule_interval", "step"], "schedule_interval .* leave it out"),
        ([*torchs("ConstantLR"), "--model.warmup", "1"], "model.warmup goes with"),
        (
            [*torchs("OneCycleLR", max_lr=0.1, total_steps=9), "--model.schedule_interval", "step"],
            "OneCycleLR overrides model.lr",
        ),
        (torchs("CyclicLR", base_lr=0.1, max_lr=0.2), "CyclicLR overrides model.lr"),
        (["--model.warmup_start", "0.1"], "warmup_start .* leave it out"),
        ([*ours("Plateau"), "--model.schedule_interval", "step"], "Plateau counts epochs"),
        ([*ours("Plateau"), "--trainer.limit_val_batches", "0"], "no metric 'val/loss' is logged"),
        (["--model.lr_mult", "{1: 2}"], "in quotes"),
        (["--trainer.gradient_clip_algorithm", "value"], "gradient_clip_algorithm needs gradient_clip_val"),
        ([*ours("Cosine"), "--model.warmup", "4"], "model.warmup: 4 epochs do not fit into the run"),
        ([*ours("Cosine"), "--trainer.max_epochs=-1", "--trainer.max_time", "00:00:00:09"], "set trainer.max_epochs"),
    ],
)
def test_bad_schedules_are_one_line(cli, few, own_rates, options, words) -> None:
    result = cli(*few, *options)
    assert result.code == 2 and len(result.err.splitlines()) == 1
    assert re.search(words, result.err) and "epoch 1/" not in result.out


# Use from Python


def test_a_checkpoint_from_the_command_line_loads_in_python(cli, trained, workdir, capsys, recwarn) -> None:
    images = torch.randint(256, (12, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    (workdir / "new").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.numpy()).save(workdir / "new" / f"{i:02d}.png")
    path = trained / "checkpoints" / "best.ckpt"
    assert cli("predict", "--ckpt_path", path, "--data.root", "new").code == 0
    rows = list(csv.DictReader((workdir / "predictions.csv").open()))

    recwarn.clear()
    model = ImageClassifier.load_from_checkpoint(path).eval()
    assert capsys.readouterr() == ("", "") and [str(warning.message) for warning in recwarn] == []
    found = model.probabilities(images[:, None])
    assert found.shape == (12, 10) and found.dtype == torch.float32 and not found.requires_grad
    assert torch.allclose(found.sum(dim=1), torch.ones(12))
    for row, probabilities in zip(rows, found, strict=True):
        order = probabilities.argsort(descending=True)[:5].tolist()
        columns = ["", "_2", "_3", "_4", "_5"]
        assert [row[f"class{n}"] for n in columns] == [model.class_names[k] for k in order]
        assert [float(row[f"probability{n}"]) for n in columns] == pytest.approx(
            probabilities[order].tolist(), abs=2e-6
        )
    assert (model.image_size, model.in_channels, model.resize) == (8, 1, "letterbox")


def test_options_reach_the_model(cli, workdir) -> None:
    """Every plain option of the model, as given, in the checkpoint's hyperparameters."""
    given = {"init": "kaiming_normal", "lr": 0.004, "channels_last": False, "mean": [0.3], "std": [0.4]}
    (workdir / "m.yaml").write_text(yaml.safe_dump({"model": given}))
    assert cli("fit", *DIGITS, *SMALL[:4], "--config", "m.yaml", "--trainer.max_steps", "1").code == 0
    path = workdir / "runs" / "digits" / "version_0" / "checkpoints" / "last.ckpt"
    found = torch.load(path, weights_only=True)["hyper_parameters"]
    assert {name: found[name] for name in given} == given
    assert ImageClassifier.load_from_checkpoint(path).std.item() == pytest.approx(0.4)


def mirrored_logits(model: ImageClassifier, images: Tensor) -> Tensor:
    """The mean of those of image and mirror, one network call each, in float64."""
    net, mean, std = model.net.double().eval(), model.mean.double(), model.std.double()
    with torch.no_grad():
        return sum(net((each.double() / 255 - mean) / std) for each in (images, images.flip(-1))) / 2


@torch.no_grad()
def test_tta_averages_image_and_mirror() -> None:
    torch.manual_seed(0)
    model, images = make(tta="flip", channels=3).eval(), torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    found, probabilities = model(images), model.probabilities(images)
    fused = model.fused()(images)
    expected = mirrored_logits(model, images).float()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(fused, expected)
    torch.testing.assert_close(probabilities, expected.softmax(1))
    assert not torch.allclose(expected, model.float().net(model.normalise(images)))


def test_tta_scores_but_does_not_train(cli, workdir, monkeypatch) -> None:
    """The scores of fit, validate and predict are those of explicit averages; a step sees each image once."""
    seen, forward = [], ConvNet.forward
    monkeypatch.setattr(ConvNet, "forward", lambda net, x: seen.append((net.training, len(x))) or forward(net, x))
    options = ["--model.tta", "flip", "--data.batch_size", "64", "--trainer.max_epochs", "1"]
    assert cli("fit", *DIGITS, *SMALL, *options, "--trainer.limit_train_batches", "3").code == 0
    assert {size for training, size in seen if training} == {2, 64}  # two when its operations are counted
    assert max(size for training, size in seen if not training) == 256  # a batch of an evaluation is twice as large
    path = "runs/digits/version_0/checkpoints/last.ckpt"
    model, data = ImageClassifier.load_from_checkpoint(path, "cpu"), ImageDataModule(source=Digits, channels=1)
    data.setup("validate")
    images, labels = data.loaded["val"].images.pixels, data.loaded["val"].images.labels
    logits = mirrored_logits(model, images).numpy()
    scores = json.loads(Path("runs/digits/version_0/metrics.json").read_text())
    assert scores["val/acc"] == pytest.approx(accuracy_score(labels, logits.argmax(1)), abs=1e-6)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert scores["val/loss"] == pytest.approx(log_loss(labels, probabilities), abs=1e-5)
    result = cli("validate", "--ckpt_path", "last", "--model.tta", "none")
    assert result.code == 0 and "model.tta: none here, flip in the training" in result.out
    with torch.no_grad():
        plain = nn.functional.cross_entropy(model.float().net(model.normalise(images)), labels)
    assert f"{plain:.4f}" in result.out and f"{scores['val/loss']:.4f}" not in result.out


def test_tta_is_one_of_two(cli) -> None:
    result = cli("fit", *DIGITS, "--model.tta", "rotate")
    assert result.code == 2 and result.err.count("\n") == 1 and "tta" in result.err


def test_the_mean_of_losses_is_a_mean_and_shows_what_is_no_number() -> None:
    values, weights = torch.rand(7, generator=torch.Generator().manual_seed(0)), torch.arange(1.0, 8)
    mean = Mean()
    mean.update(values[:3], weights[:3])
    mean.update(values[3:], weights[3:])
    assert float(mean.compute()) == pytest.approx(np.average(values, weights=weights))
    mean.reset()
    mean.update(values[0], 64)  # a batch's mean, and its images
    mean.update(values[1], 16)
    assert float(mean.compute()) == pytest.approx(np.average(values[:2], weights=[64, 16]))
    mean.update(torch.tensor(torch.nan), 16)
    assert mean.compute().isnan()
    assert {*mean._defaults} == {"mean_value", "weight"}  # as checkpoints have them


class Reads(TorchDispatchMode):
    """Counts values that Python reads from tensors: on a GPU each would wait for it."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


class Watch(L.Callback):
    """Counts them in the forward and backward pass of the second step; the first one is logged."""

    def __init__(self) -> None:
        self.mode = Reads()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 1:
            self.mode.__enter__()

    def on_after_backward(self, trainer, pl_module) -> None:
        if trainer.global_step == 1:
            self.mode.__exit__(None, None, None)


def test_a_step_waits_for_nothing() -> None:
    reads = Reads()
    with reads:
        torch.zeros(3).sum().item()
    assert reads.count == 1
    data = ImageDataModule(source=Digits, channels=1)
    model = ImageClassifier(small_net, data.class_names, 1, 8, task=partial(MultiClass, class_weights="balanced"))
    watch = Watch()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = L.Trainer(max_steps=2, accelerator="cpu", callbacks=[watch], enable_model_summary=False, **options)
    trainer.fit(model, data)
    assert watch.mode.count == 0 and trainer.global_step == 2
