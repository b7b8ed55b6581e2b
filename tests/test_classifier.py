"""The classifier against scikit-learn's metrics, torch's own loss, optimizers and schedulers, and numpy."""

import csv
import math
import warnings
from collections.abc import Iterator

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from conftest import DIGITS, SMALL, make_folder
from lightning.pytorch.cli import ReduceLROnPlateau
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, recall_score
from sklearn.utils.class_weight import compute_class_weight
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.optim import lr_scheduler

from project.classifier import IMAGENET_MEAN, IMAGENET_STD, ImageClassifier
from project.data import ImageDataModule
from project.errors import UserError
from project.nets import ConvNet
from project.optim import Cosine


def small_net(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    return ConvNet(in_channels, num_classes, image_size, channels=[4, 8])


def make(num_classes: int = 3, channels: int = 3, **arguments) -> ImageClassifier:
    names = [f"class {i}" for i in range(num_classes)]
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
    assert torch.allclose(model.loss(logits, labels), expected)
    # by hand: the target is 1 - s on the label and s spread over all classes
    target = (1 - smoothing) * nn.functional.one_hot(labels, 7) + smoothing / 7
    assert torch.allclose(model.loss(logits, labels), -(target * logits.log_softmax(dim=1)).sum(dim=1).mean())
    assert model.loss(logits.bfloat16(), labels).dtype == torch.float32
    assert evaluate("test", logits, labels, 16, label_smoothing=smoothing)["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_loss_with_given_class_weights() -> None:
    logits, labels = random_case("random", 3)
    weights = torch.tensor([0.5, 1.0, 4.0])
    each = -logits.log_softmax(dim=1)[torch.arange(len(labels)), labels]
    expected = (each * weights[labels]).sum() / weights[labels].sum()
    assert torch.allclose(make(3, class_weights=[0.5, 1.0, 4.0]).loss(logits, labels), expected)


def test_balanced_class_weights(tmp_path) -> None:
    root = make_folder(tmp_path / "images", {"blue": 30, "green": 10, "red": 5})
    data = ImageDataModule(str(root), image_size=8, batch_size=16)
    model = ImageClassifier(small_net, data.class_names, image_size=8, class_weights="balanced", label_smoothing=0.1)
    quiet_trainer(max_epochs=1, limit_val_batches=0).fit(model, datamodule=data)
    labels = [data.source.samples[i].label for i in data.splits["train"]]
    oracle = compute_class_weight("balanced", classes=np.array(data.class_names), y=np.array(labels))
    assert len(set(oracle)) == 3
    assert model.class_weights.tolist() == pytest.approx(oracle.tolist())
    logits, targets = random_case("random", 3)
    expected = nn.functional.cross_entropy(logits, targets, weight=torch.tensor(oracle).float(), label_smoothing=0.1)
    assert torch.allclose(model.loss(logits, targets), expected)


def random_images(channels: int = 3, count: int = 6, size: int = 8) -> Tensor:
    return torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


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
        ({"label_smoothing": -0.1}, ["model.label_smoothing", "-0.1"]),
        ({"label_smoothing": 1.0}, ["model.label_smoothing", "below 1"]),
        ({"class_weights": [1.0, 2.0]}, ["model.class_weights", "3 numbers"]),
        ({"class_weights": [1.0, 2.0, 0.0]}, ["model.class_weights", "above 0"]),
        ({"schedule_interval": "step"}, ["model.schedule_interval", "remove it"]),
        ({"schedule_interval": "step", "schedule": Cosine()}, ["model.schedule_interval", "remove it"]),
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
    model = ImageClassifier(small_net, data.class_names, image_size=8, class_weights="balanced")
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
    return ["fit", "--data.root", str(root), "--data.batch_size", "12", *net]  # 50 -> 10 test, 8 validation, 32 to train


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_from_yaml(cli, few, workdir, name) -> None:
    class_name, arguments = OPTIMIZERS[name]
    choice = {"class_path": f"torch.optim.{class_name}", "init_args": arguments}
    (workdir / "opt.yaml").write_text(yaml.safe_dump({"model": {"lr": 0.03, "optimizer": choice}}))
    result = cli(*few, "--config", "opt.yaml", "--trainer.max_epochs", "1")
    assert result.code == 0 and result.err == ""
    assert f"{class_name:10s} group all" in result.out and "rate 0.03" in result.out
    checkpoint = torch.load("runs/opt/version_0/checkpoints/last.ckpt", weights_only=True)
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    oracle = getattr(torch.optim, class_name)([nn.Parameter(torch.zeros(1))], lr=0.03, **arguments).param_groups[0]
    for key in set(oracle) - {"params"}:
        assert group[key] == oracle[key] or list(group[key]) == list(oracle[key]), key  # betas: a list, or a tuple
    assert checkpoint["global_step"] == 3


# Schedulers: epoch e logs the rate that its last optimizer step used

EPOCHS, STEPS = 4, 3  # of every run below
TORCH = {
    "steps": ("StepLR", {"step_size": 2, "gamma": 0.1}),
    "milestones": ("MultiStepLR", {"milestones": [1, 3], "gamma": 0.5}),
    "exponential": ("ExponentialLR", {"gamma": 0.7}),
    "cosine": ("CosineAnnealingLR", {"T_max": 4, "eta_min": 0.001}),
}


def logged_rates(run: str = "runs/fit/version_0") -> list[float]:
    events = EventAccumulator(run)
    events.Reload()
    return [event.value for event in events.Scalars("lr/all")]


def rates_of(scheduler: str, arguments: dict, steps: int, lr: float) -> list[float]:
    """The rate at each step of torch's own scheduler."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = getattr(lr_scheduler, scheduler)(optimizer, **arguments)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def as_options(class_path: str, arguments: dict) -> list[str]:
    return ["--model.lr", "0.02", "--model.schedule", yaml.safe_dump({"class_path": class_path, "init_args": arguments})]


@pytest.mark.parametrize("name", TORCH)
def test_torchs_schedulers_by_epoch(cli, few, name) -> None:
    scheduler, arguments = TORCH[name]
    options = as_options(f"torch.optim.lr_scheduler.{scheduler}", arguments)
    result = cli(*few, *options, "--trainer.max_epochs", str(EPOCHS))
    assert result.code == 0 and result.err == ""
    assert logged_rates() == pytest.approx(rates_of(scheduler, arguments, EPOCHS, 0.02), rel=1e-5)
    for epoch, rate in enumerate(logged_rates()):  # the same is printed
        assert f"lr/all {rate:.3g}" in next(line for line in result.out.splitlines() if line.startswith(f"epoch {epoch + 1}/"))


def test_torchs_scheduler_by_step(cli, few) -> None:
    options = as_options("torch.optim.lr_scheduler.ExponentialLR", {"gamma": 0.9})
    assert cli(*few, *options, "--model.schedule_interval", "step", "--trainer.max_epochs", str(EPOCHS)).code == 0
    rates = rates_of("ExponentialLR", {"gamma": 0.9}, EPOCHS * STEPS, 0.02)
    assert logged_rates() == pytest.approx(rates[STEPS - 1 :: STEPS], rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "arguments", "scheduler", "torchs"),
    [
        ("Cosine", {"end": 0.1}, "CosineAnnealingLR", {"T_max": EPOCHS * STEPS - 1, "eta_min": 0.002}),
        # torch's peak is at pct_start * total_steps - 1, ours at pct_start * (total_steps - 1): see tests/optim/test_schedules.py
        (
            "OneCycle",
            {"pct_start": 0.4, "div": 10.0, "final_div": 100.0},
            "OneCycleLR",
            {
                "max_lr": 0.02,
                "total_steps": EPOCHS * STEPS,
                "pct_start": (0.4 * (EPOCHS * STEPS - 1) + 1) / (EPOCHS * STEPS),
                "div_factor": 10.0,
                "final_div_factor": 100.0,
                "cycle_momentum": False,
            },
        ),
    ],
)
def test_our_schedules_span_the_run(cli, few, schedule, arguments, scheduler, torchs) -> None:
    options = as_options(f"project.optim.{schedule}", arguments)
    assert cli(*few, *options, "--trainer.max_epochs", str(EPOCHS)).code == 0
    rates = rates_of(scheduler, torchs, EPOCHS * STEPS, 0.02) if scheduler != "OneCycleLR" else one_cycle(torchs)
    assert logged_rates() == pytest.approx(rates[STEPS - 1 :: STEPS], rel=1e-4)


def one_cycle(arguments: dict) -> list[float]:
    """torch's OneCycleLR may not be stepped past its last rate."""
    return [*rates_of("OneCycleLR", arguments, arguments["total_steps"] - 1, 0.02), 0.02 / 10 / 100]


def test_plateau_lowers_the_rate(cli, few) -> None:
    arguments = {"monitor": "val/loss", "factor": 0.1, "patience": 0, "threshold": 1000.0, "threshold_mode": "abs"}
    options = as_options("lightning.pytorch.cli.ReduceLROnPlateau", arguments)
    assert cli(*few, *options, "--trainer.max_epochs", str(EPOCHS)).code == 0
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.02)
    schedule, expected = ReduceLROnPlateau(optimizer, **arguments), []
    for _ in range(EPOCHS):
        expected.append(optimizer.param_groups[0]["lr"])
        schedule.step(1.0)  # with that threshold no loss is ever an improvement
    assert logged_rates() == pytest.approx(expected, rel=1e-5) and expected[-1] < expected[1]


def test_plateau_of_an_unknown_metric_is_one_line(cli, few) -> None:
    result = cli(*few, *as_options("lightning.pytorch.cli.ReduceLROnPlateau", {"monitor": "val/los"}), "--trainer.max_epochs", "1")
    assert result.code == 2 and len(result.err.splitlines()) == 1
    assert "val/los" in result.err and "val/loss" in result.err


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
        assert [float(row[f"probability{n}"]) for n in columns] == pytest.approx(probabilities[order].tolist(), abs=2e-6)
    assert (model.image_size, model.in_channels, model.resize) == (8, 1, "letterbox")


def test_options_reach_the_model(cli, workdir) -> None:
    """Every plain option of the model, as given, in the checkpoint's hyperparameters."""
    given = {"init": "kaiming_normal", "lr": 0.004, "label_smoothing": 0.2, "channels_last": False, "mean": [0.3], "std": [0.4]}
    (workdir / "m.yaml").write_text(yaml.safe_dump({"model": given}))
    assert cli("fit", *DIGITS, *SMALL[:4], "--config", "m.yaml", "--trainer.max_steps", "1").code == 0
    path = workdir / "runs" / "digits" / "version_0" / "checkpoints" / "last.ckpt"
    found = torch.load(path, weights_only=True)["hyper_parameters"]
    assert {name: found[name] for name in given} == given
    assert ImageClassifier.load_from_checkpoint(path).std.item() == pytest.approx(0.4)
