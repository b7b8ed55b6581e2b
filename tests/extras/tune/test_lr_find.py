"""The range test against a plain loop, theory, and a fit that must not notice it."""

import math
import random

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import project.extras.tune.lr_find_command
from project.classifier import ImageClassifier
from project.data import Digits, HorizontalFlip, ImageDataModule
from project.errors import UserError
from project.extras.tune.lr_find import RateSweep
from project.extras.tune.lr_find_command import find_rate
from project.nets import ConvNet
from project.optim import SWATS, Cosine, Freeze, OneCycle
from project.recipe import Recipe
from project.run.audit import FreezeAudit
from project.run.ema import EMA
from project.run.seed import StepSeed
from project.trainer import Trainer

USED: list[list[float]] = []  # the rates of every step of a Quadratic; a list of its own would be copied with it


LABELS = (0.1, -0.2, 0.05, 0.15, -0.03, 0.1, -0.1, 0.025, 0.2, -0.075, -0.1, 0.12)


class Quadratic(Recipe):
    """Loss: curvature / 2 * (w - label) ** 2, whose gradient descent diverges above a rate of 2 / the largest curvature."""

    def __init__(self, curvature: list[float], **recipe) -> None:
        super().__init__(**recipe)
        self.net = nn.Sequential(nn.Linear(len(curvature), 1, bias=False), nn.ReLU(), nn.Linear(1, 1))
        for weight in self.net.parameters():
            nn.init.ones_(weight)
        self.register_buffer("curvature", torch.tensor([curvature]))
        self.plan_freeze()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        USED.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
        weight = self.net[0].weight
        loss = (
            (self.curvature / 2 * (weight - batch["label"].float()[:, None]) ** 2).sum(dim=1).mean()
        )  # (N, curvatures)
        return loss + 0 * self.net[2](weight[:, :1]).sum()


class Noise(L.LightningDataModule):
    """Batches of labels around 0."""

    def __init__(self, batch_size: int = 4, labels: tuple[float, ...] = LABELS) -> None:
        super().__init__()
        self.batch_size, self.labels, self.splits = batch_size, labels, {"val": []}

    def train_dataloader(self) -> DataLoader:
        return DataLoader([{"label": label} for label in self.labels], batch_size=self.batch_size)


def trainer(**options) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{"accelerator": "cpu", "max_epochs": 2, "callbacks": [StepSeed(0)], **quiet, **options})


def sgd(groups, lr):
    return torch.optim.SGD(groups, lr)


def momentum(groups, lr):
    return torch.optim.SGD(groups, lr, momentum=0.9)


def adamw(groups, lr):
    return torch.optim.AdamW(groups, lr)


@pytest.fixture(autouse=True)
def _nothing_used() -> None:
    USED.clear()


@pytest.mark.parametrize(
    ("curvature", "optimizer"), [([1.0], sgd), ([30.0, 3.0, 0.3], sgd), ([0.01, 0.02], sgd), ([500.0], sgd)]
)
def test_the_rate_is_below_divergence_and_not_far_below(curvature, optimizer) -> None:
    limit = 2 / max(curvature)
    result, reading = find_rate(trainer(), Quadratic(curvature, optimizer=optimizer), Noise(), 100, 1e-6, 1000)
    assert limit / 1000 < reading.chosen.rate < limit
    assert "times its lowest" in result.stopped and result.rates[-1] > limit


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_losses_are_those_of_a_plain_loop(clip, accumulate) -> None:
    model = Quadratic([3.0, 0.3], optimizer=momentum, schedule=Cosine(), warmup=0.5)
    options = {"gradient_clip_val": clip, "accumulate_grad_batches": accumulate}
    result, _ = find_rate(trainer(**options), model, Noise(1), 40, 1e-4, 10)

    weight, curvature = torch.ones(1, 2, requires_grad=True), torch.tensor([[3.0, 0.3]])
    optimizer = torch.optim.SGD([weight], 1.0, momentum=0.9)
    batches = iter(LABELS * 100)
    for rate, measured in zip(np.geomspace(1e-4, 10, 40), result.losses, strict=False):
        optimizer.param_groups[0]["lr"] = rate
        total = sum((curvature / 2 * (weight - next(batches)) ** 2).sum() for _ in range(accumulate)) / accumulate
        optimizer.zero_grad()
        total.backward()
        if clip:
            nn.utils.clip_grad_norm_([weight], clip)
        optimizer.step()
        assert measured == pytest.approx(total.item(), rel=1e-4)
    assert len(result.losses) > 20


RECIPES = [
    {"lr_mult": {"^2": 10}},
    {"layer_decay": 0.5},
    {"layer_decay": 0.25, "lr_mult": {"bias": 3}, "reference_batch": 16, "lr_scaling": "sqrt"},
    {"reference_batch": 1, "lr_scaling": "linear", "schedule": OneCycle(), "warmup": 0.2},
    {"schedule": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)},
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_reported_rate_as_model_lr_gives_the_rates_that_were_tested(recipe) -> None:
    def groups_of(lr: float) -> list[float]:
        model = Quadratic([1.0], lr=lr, optimizer=adamw, **recipe)
        model.trainer, data = trainer(accumulate_grad_batches=2), Noise()
        model.trainer.datamodule = data
        model.schedule, model.warmup = None, type(model.warmup)()
        return [group["lr"] for group in model.configure_optimizers()["optimizer"].param_groups]

    result, _ = find_rate(
        trainer(accumulate_grad_batches=2), Quadratic([1.0], lr=0.02, optimizer=adamw, **recipe), Noise(), 20
    )
    used = [
        rates for rates, after in zip(USED, [*USED[1:], []], strict=True) if rates != after
    ]  # of each optimizer step once
    for rate, rates in zip(result.rates, used, strict=False):
        assert rates == pytest.approx(groups_of(rate), rel=1e-9)
    ratios = {tuple(round(rate / rates[-1], 9) for rate in rates) for rates in USED}
    assert len(ratios) == 1 and len(used) >= 10


def test_rates_are_evenly_spaced_and_begin_and_end_as_asked() -> None:
    result, _ = find_rate(trainer(), Quadratic([1e-9], optimizer=sgd), Noise(), 50, 1e-5, 0.1)
    assert len(result.rates) == 50 and not result.stopped
    assert result.rates[0] == pytest.approx(1e-5) and result.rates[-1] == pytest.approx(0.1)
    assert np.diff(np.log(result.rates)) == pytest.approx(math.log(1e4) / 49)


@pytest.mark.parametrize("seed", range(5))
def test_it_stops_when_the_corrected_running_mean_is_four_times_its_lowest(seed) -> None:
    losses = np.exp(np.random.default_rng(seed).normal(0, 0.3, 200) + np.maximum(np.arange(200) - 60, 0) / 10)

    class One:
        global_step, accumulate_grad_batches, should_stop = 0, 1, False

        class strategy:
            reduce = staticmethod(lambda value, reduce_op: value)

    sweep, mean, best = RateSweep(1.0, list(np.geomspace(1e-6, 10, 200))), 0.0, math.inf
    keep = math.exp(-1 / 6)
    for i, loss in enumerate(losses):
        One.global_step = i + 1
        sweep.on_train_batch_end(One, None, {"loss": torch.tensor(loss)}, None, i)
        mean = keep * mean + (1 - keep) * loss
        corrected = mean / (1 - keep ** (i + 1))  # Kingma & Ba 2015, section 3
        best = min(best, corrected)
        assert One.should_stop == (corrected > 4 * best)
        if One.should_stop:
            break
    assert One.should_stop and 60 < i < 199


def test_nan_from_the_start_is_no_rate() -> None:
    model = Quadratic([1.0], optimizer=sgd)
    nn.init.constant_(model.net[0].weight, math.nan)
    result, reading = find_rate(trainer(), model, Noise(), 20)
    assert result.losses == [] and "nan" in result.stopped and reading.chosen is None and reading.why


def test_infinity_in_the_middle_ends_the_test_and_the_rest_counts() -> None:
    def explode(groups, lr):
        return torch.optim.SGD(groups, lr)

    result, reading = find_rate(trainer(), Quadratic([1e3], optimizer=explode), Noise(), 15, 1e-6, 1e30)
    assert all(map(math.isfinite, result.losses)) and result.stopped
    assert len(result.rates) == len(result.losses) == len(reading.smoothed)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((9, 1e-6, 1), "steps"),
        ((20, 1, 1), "min_lr"),
        ((20, 2, 1), "min_lr"),
        ((20, 0, 1), "min_lr"),
        ((20, 1, math.inf), "max_lr"),
    ],
)
def test_values_out_of_range(arguments, word) -> None:
    with pytest.raises(UserError, match=word):
        find_rate(trainer(), Quadratic([1.0]), Noise(), *arguments)


# On images


def images(**options) -> ImageDataModule:
    return ImageDataModule(
        source=Digits, channels=1, augment=[HorizontalFlip()], test_size=0.5, **{"batch_size": 64, **options}
    )


def classifier(**recipe) -> ImageClassifier:
    L.seed_everything(1, verbose=False)
    net = {"net": lambda c, n, s: ConvNet(c, n, s, channels=[8, 16], convs_per_block=1)}
    options = {"lr": 0.01, "optimizer": adamw, "mixup": 0.2, **recipe}
    return ImageClassifier(**net, class_names=[str(i) for i in range(10)], in_channels=1, image_size=8, **options)


@pytest.mark.parametrize(
    "options", [{}, {"layer_decay": 0.5, "freeze": Freeze(until=1), "schedule": OneCycle(), "warmup": 0.1}]
)
def test_a_fit_afterwards_is_bit_for_bit_the_one_without(options) -> None:
    def fit(find: bool) -> dict[str, Tensor]:
        model, data = classifier(**options), images()
        runner = trainer(
            callbacks=[StepSeed(0), EMA(decay=0.9), FreezeAudit()], limit_train_batches=6, log_every_n_steps=1
        )
        if find:
            before = {name: value.clone() for name, value in model.state_dict().items()}
            _, reading = find_rate(runner, model, data, 30)
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
            assert (
                runner.global_step == 0
                and len(runner.callbacks) == 3
                and runner.max_epochs == 2
                and reading.smoothed.size
            )
        torch.rand(1)  # what is drawn next is the same as well
        runner.fit(model, data)
        assert runner.global_step == 12
        return {
            **model.state_dict(),
            "next": torch.rand(3),
            "numpy": torch.tensor(np.random.random(2)),  # noqa: NPY002
            "python": torch.tensor(random.random()),
        }

    without, with_it = fit(False), fit(True)
    assert without.keys() == with_it.keys()
    for name, value in without.items():
        assert torch.equal(value, with_it[name]), name


def test_averages_and_validation_do_not_change_what_is_measured() -> None:
    plain, _ = find_rate(trainer(), classifier(), images(), 12)
    for runner in (trainer(callbacks=[StepSeed(0), EMA()]), trainer(max_epochs=50, limit_val_batches=3)):
        assert find_rate(runner, classifier(), images(), 12)[0].losses == plain.losses
    assert (
        find_rate(trainer(), classifier(), images(val_size=0.4), 12)[0].losses != plain.losses
    )  # other training images


@pytest.mark.parametrize("until", [None, 1])
def test_what_never_trains_stays_frozen_and_what_waits_is_tested(monkeypatch, until) -> None:
    kept = []
    whole = project.extras.tune.lr_find_command.range_test
    monkeypatch.setattr(project.extras.tune.lr_find_command, "range_test", lambda *a: (kept.append(a[2]), whole(*a))[1])
    model = classifier(freeze=Freeze(until=until))
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    find_rate(trainer(), model, images(batch_size=128), 12)  # more than two epochs
    tested, own = kept[0].net.state_dict(), model.net.state_dict()
    still = {name for name, value in own.items() if torch.equal(value, tested[name])}
    assert model.trains_from and still == (set(model.trains_from) if until is None else set())
    assert before == {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("optimizer", [momentum, adamw, lambda groups, lr: SWATS(groups, lr, switch_tol=1e-4)])
def test_every_kind_of_optimizer_gets_a_rate(optimizer) -> None:
    result, reading = find_rate(trainer(), classifier(optimizer=optimizer, mixup=0), images(), 60)
    assert 1e-4 < reading.chosen.rate < 0.3 and result.losses[0] > 2
