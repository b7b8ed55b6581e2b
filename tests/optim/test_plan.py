"""The planned rates against those that a training really used, and the picture of them."""

import csv
import warnings
from collections.abc import Callable

import lightning as L
import pytest
import torch
from conftest import slow_but
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader

from project.nets import ConvNet
from project.optim.plan import CURVES, POINTS, Plan, draw_plan, planned_rates, simulated_rates
from project.optim.rates import Length, PlannedRates, Warmup
from project.optim.schedules import (
    Constant,
    Cosine,
    Exponential,
    MultiStep,
    OneCycle,
    PerGroup,
    Plateau,
    Schedule,
    Step,
)
from project.recipe import Recipe
from project.run.plan import make_plan

PLAIN = {"lr": 1e-3, "make_optimizer": None, "lr_mult": None, "stem_lr": 1.0, "no_weight_decay": False}
PLAIN |= {"schedule": None, "schedule_interval": None, "warmup": 0.0, "warmup_start": 0.01}
PLAIN |= {"reference_batch": None, "lr_scaling": "none"}


class Tiny(L.LightningModule):
    """Trains in no time, and notes what the plan said at the start and the learning rates of every step."""

    def __init__(self, **recipe) -> None:
        super().__init__()
        self.recipe = Recipe(**PLAIN | recipe)
        self.net = ConvNet(1, 2, 8, channels=[2])
        self.used: list[list[float]] = []

    def length(self) -> Length:
        total = self.trainer.estimated_stepping_batches
        per_epoch = -(-self.trainer.num_training_batches // self.trainer.accumulate_grad_batches)
        return Length(None if total in (-1, float("inf")) else int(total), per_epoch)

    def configure_optimizers(self) -> dict:
        optimizer = self.recipe.optimizer(self.net, batch=4)
        scheduler, interval = self.recipe.scheduler(optimizer, self.length)
        self.planned = scheduler if isinstance(scheduler, PlannedRates) else None
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def on_train_epoch_start(self) -> None:
        if not self.used:
            self.plan = make_plan(self)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.used.append([group["lr"] for group in optimizer.param_groups])


def train(model: Tiny, **arguments) -> Tiny:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(accelerator="cpu", devices=1, **{"max_epochs": 4, **off, **arguments})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a loader without workers
        trainer.fit(model, DataLoader(torch.randn(20, 1, 8, 8), batch_size=4))
    return model


OURS = {
    "none": None,
    "step": Step(2),
    "exponential": Exponential(0.5),
    "cosine": Cosine(0.1, 2),
    "one cycle": OneCycle(),
    "per group": PerGroup({"head": Cosine(), ".*": MultiStep([1, 3])}),
}
TORCHS: dict[str, Callable] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda n: 0.5**n, lambda n: 1 / (1 + n)]),
}


SHORTER = {"max_steps": 8, "max_epochs": -1}
HALF = {"accumulate_grad_batches": 2}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [*((name, {}) for name in OURS), *((name, how) for name in ("one cycle", "step") for how in (SHORTER, HALF))],
)
def test_the_plan_is_what_happens(name, arguments) -> None:
    model = train(Tiny(schedule=OURS[name], lr_mult={"head": 10}, warmup=0.7), **arguments)
    found = [list(rates) for rates in zip(*model.plan.rates.values(), strict=True)]
    assert found == model.used and list(model.plan.rates) == ["rest", "head"]
    per_epoch = 3 if "accumulate_grad_batches" in arguments else 5  # steps
    assert len(found) == (8 if "max_steps" in arguments else 4 * per_epoch)
    assert model.plan.epochs == pytest.approx([step / per_epoch for step in range(len(found))])


@pytest.mark.parametrize(
    ("name", "interval"), [*((name, "step") for name in TORCHS), ("StepLR", "epoch"), ("LambdaLR", "epoch")]
)
def test_the_plan_of_torchs_schedulers_is_what_happens(name, interval) -> None:
    model = train(Tiny(schedule=TORCHS[name], lr_mult={"head": 10}, schedule_interval=interval))
    used = model.used if interval == "step" else model.used[::5]
    assert [list(rates) for rates in zip(*model.plan.rates.values(), strict=True)] == used
    assert model.plan.epochs == pytest.approx([i / 5 for i in range(20)] if interval == "step" else range(4))


@pytest.mark.parametrize("schedule", [None, TORCHS["StepLR"], Step(2)])
def test_a_run_without_an_end_needs_no_length(schedule) -> None:
    """Stopped by time, or by a callback; only what fills the run must know how long it is."""

    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.should_stop = trainer.current_epoch == 2

    rates = [row[0] for row in train(Tiny(lr=1.0, schedule=schedule), max_epochs=-1, callbacks=[Stop()]).used]
    assert rates == pytest.approx([1.0] * 15 if schedule is None else [1.0] * 10 + [0.1] * 5)


def scheduler(schedule: Schedule, length: Length, warmup: float = 0.0) -> PlannedRates:
    optimizer = SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": 2.0, "name": "all"}])
    return PlannedRates(optimizer, schedule, lambda: length, None, Warmup(warmup))


@pytest.mark.parametrize("steps", [1, POINTS, POINTS + 1, 450_451])
def test_a_long_run_is_thinned_out(steps) -> None:
    length = Length(steps, 100)
    ours = scheduler(Cosine(), length)
    plan = planned_rates(ours, length)
    assert min(steps, POINTS) <= len(plan.epochs) == len(plan.rates["all"]) <= min(steps, 2 * POINTS)
    assert plan.epochs == sorted(set(plan.epochs)) and plan.epochs[0] == 0 and plan.epochs[-1] == (steps - 1) / 100
    assert plan.rates["all"][0] == plan.highest == 2.0 and plan.rates["all"][-1] == ours.rates_at(steps - 1)[0]


@pytest.mark.parametrize(
    ("schedule", "warmup", "decays"),
    [
        (Constant(), 0, False),
        (Constant(), 2, False),  # it rises
        (Plateau(), 0, False),  # it may, but that is not known
        (Cosine(), 0, True),
        (Cosine(end=0.6), 3, False),
        (OneCycle(), 0, True),
        (Step(5, 0.5), 0, True),
        (Step(5, 0.51), 0, False),
        (Step(9), 0, False),  # after the end
    ],
)
def test_decays(schedule, warmup, decays) -> None:
    length = Length(40, 5)
    assert planned_rates(scheduler(schedule, length, warmup), length).decays is decays


def test_decays_of_several_groups_and_of_one_epoch() -> None:
    assert Plan([0, 1], {"a": [1.0, 1.0], "b": [1.0, 0.1]}).decays
    assert not Plan([0, 1], {"a": [1.0, 1.0], "b": [0.1, 1.0]}).decays
    assert Plan([0], {"a": [1.0]}).decays  # nothing to see
    length = Length(5, 5)
    assert planned_rates(scheduler(Step(2), length), length).decays  # nor in a single epoch


def test_simulated_by_metric_is_flat() -> None:
    optimizer = SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate, "name": str(rate)} for rate in (1.0, 3.0)])
    plan = simulated_rates(lr_scheduler.ReduceLROnPlateau, optimizer.param_groups, "epoch", Length(12, 4))
    assert plan == Plan([0, 1, 2], {"1.0": [1.0] * 3, "3.0": [3.0] * 3})
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 3.0]


# The picture


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_one_line_for_each_curve(tmp_path) -> None:
    fall = [0.3, 0.2, 0.1]
    plan = Plan([0.0, 0.5, 1.0], {"stem": fall, "stem/no_decay": fall, "stage": fall, "head": [3.0, 2.0, 1.0]})
    figure = draw_plan(plan, "a title")
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [fall, [3.0, 2.0, 1.0]]
    assert all(list(line.get_xdata()) == plan.epochs for line in axes.lines)
    assert (
        legend(figure) == ["stem to stage", "head"] and axes.get_title() == "a title" and axes.get_yscale() == "linear"
    )
    figure.savefig(tmp_path / "rates.png")
    assert Image.open(tmp_path / "rates.png").size == (700, 350)


@pytest.mark.parametrize("count", [CURVES, CURVES + 1])
def test_many_groups_have_no_legend(count) -> None:
    rates = {f"layer {i}": [0.8**i, 0.1 * 0.8**i] for i in range(count)}
    figure = draw_plan(Plan([0.0, 1.0], rates))
    assert len(figure.axes[0].lines) == count
    assert (list(rates) if count <= CURVES else None) == (figure.axes[0].get_legend() and legend(figure))


@pytest.mark.parametrize(
    ("curves", "scale"),
    [
        ([[0.0, 0.0]], "linear"),
        ([[0.0, 0.1], [0.1, 0.0]], "linear"),
        ([[1.0, 0.0], [0.001, 0.0]], "log"),  # far apart
        ([[1.0, 0.5], [0.0, 0.0]], "log"),
        ([[0.1]], "linear"),
        ([[1.0], [1e-5]], "log"),
    ],
)
def test_zeros_and_single_points(tmp_path, curves, scale) -> None:
    figure = draw_plan(
        Plan([float(i) for i in range(len(curves[0]))], {f"group {i}": curve for i, curve in enumerate(curves)})
    )
    assert figure.axes[0].get_yscale() == scale
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(tmp_path / "rates.png")
    assert len(Image.open(tmp_path / "rates.png").convert("L").getcolors()) > 2


# From the command line


def test_a_run_keeps_its_plan(cli, folder, tiny_net, workdir) -> None:
    schedule = [
        "--model.schedule",
        "project.optim.Cosine",
        "--model.lr_mult",
        "{head: 10}",
        "--model.no_weight_decay",
        "true",
    ]
    result = cli(
        "fit", "--data.root", folder, "--data.batch_size", "16", *tiny_net, *schedule, "--trainer.max_epochs", "2"
    )
    assert result.code == 0 and result.err == ""
    run = workdir / "runs" / "fit" / "version_0"
    rows = list(csv.DictReader((run / "groups.csv").open()))
    assert {row["group"]: float(row["rate"]) for row in rows} == pytest.approx(
        {"rest": 0.001, "rest/no_decay": 0.001, "head": 0.01, "head/no_decay": 0.01}
    )
    size = Image.open(run / "rates.png").size
    events = EventAccumulator(str(run))
    events.Reload()
    (image,) = events.Images("rates/planned")
    assert (image.width, image.height) == size or image.width / image.height == pytest.approx(size[0] / size[1])


CHANGES = {  # what changes the plan of a run under way -> what takes its place
    "GradientAccumulationScheduler": (["--trainer.callbacks.scheduling", "{1: 2}"], "trainer.accumulate_grad_batches"),
    "BatchSizeFinder": ([], "data.batch_size"),
    "LearningRateFinder": ([], "model.lr"),
    "BackboneFinetuning": ([], "model.freeze"),
    "StochasticWeightAveraging": (["--trainer.callbacks.swa_lrs=0.1"], "project.run.EMA"),
    "EMAWeightAveraging": ([], "project.run.EMA"),
}


@pytest.mark.parametrize("name", slow_but(CHANGES, "GradientAccumulationScheduler", "StochasticWeightAveraging"))
def test_what_does_not_keep_to_the_plan_is_refused(cli, folder, tiny_net, name) -> None:
    options, instead = CHANGES[name]
    callback = f"--trainer.callbacks+=lightning.pytorch.callbacks.{name}"
    result = cli("fit", "--data.root", folder, *tiny_net, callback, *options)
    assert result.code == 2 and result.err.count("\n") == 1, result.err
    name = name.replace("Backbone", "Base")
    assert f"trainer.callbacks: {name} does not keep to the planned run; use {instead}" in result.err


def test_a_trial_run_keeps_none(cli, folder, tiny_net, workdir) -> None:
    assert cli("fit", "--data.root", folder, *tiny_net, "--trainer.fast_dev_run", "true").code == 0
    assert not list(workdir.rglob("rates.png"))
