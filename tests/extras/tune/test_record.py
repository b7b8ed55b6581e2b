"""What the callback records, against a plain loop, theory, and a formula of the paper."""

import json
import math

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from project.extras.tune.curve import read_curve
from project.extras.tune.record import StepRecord
from project.optim import Muon
from project.recipe import Recipe

LABELS = (0.1, -0.2, 0.05, 0.15, -0.03, 0.1, -0.1, 0.025, 0.2, -0.075, -0.1, 0.12)
PLAIN = {"lr_mult": None, "stem_lr": 1.0, "no_weight_decay": False, "schedule": None, "schedule_interval": None}
PLAIN |= {"warmup": 0.0, "warmup_start": 0.01, "reference_batch": None, "lr_scaling": "none"}


def momentum(groups, lr):
    return torch.optim.SGD(groups, lr, momentum=0.9)


class Quadratic(L.LightningModule):
    """Loss: curvature / 2 * (w - label) ** 2; gradient descent diverges above 2 / the largest curvature."""

    def __init__(self, curvature: list[float], optimizer=torch.optim.SGD, **recipe) -> None:
        super().__init__()
        self.recipe = Recipe(**{"lr": 0.02, "make_optimizer": optimizer, **PLAIN, **recipe})
        self.net = nn.Sequential(nn.Linear(len(curvature), 1, bias=False), nn.ReLU(), nn.Linear(1, 1))
        for weight in self.net.parameters():
            nn.init.ones_(weight)
        self.register_buffer("curvature", torch.tensor([curvature]))
        self.used: list[list[float]] = []

    @property
    def batch(self) -> int:
        return 4 * self.trainer.accumulate_grad_batches

    def configure_optimizers(self):
        optimizer = self.recipe.optimizer(self.net, self.batch)
        scheduler, interval = self.recipe.scheduler(optimizer, lambda: None)
        scheduler.rates_at = lambda step: scheduler.base_lrs
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def on_before_optimizer_step(self, optimizer) -> None:
        self.used.append([group["lr"] for group in optimizer.param_groups])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        weight = self.net[0].weight
        loss = (self.curvature / 2 * (weight - batch["label"].float()[:, None]) ** 2).sum(dim=1).mean()
        return loss + 0 * self.net[2](weight[:, :1]).sum()


class Noise(L.LightningDataModule):
    """Batches of labels around 0."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size, self.splits = batch_size, {"train": LABELS}

    def train_dataloader(self) -> DataLoader:
        return DataLoader([{"label": label} for label in LABELS], batch_size=self.batch_size)


def record(path, model: Quadratic, rates: list[float], batch: int = 4, **options) -> dict:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    callback = StepRecord(str(path / "out.json"), rates)
    trainer = L.Trainer(accelerator="cpu", max_epochs=-1, max_steps=len(rates), callbacks=[callback], **off, **options)
    trainer.fit(model, datamodule=Noise(batch))
    return json.loads((path / "out.json").read_text())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("curvature", [[30.0, 3.0, 0.3], [0.01, 0.02]])
def test_the_edge_is_below_divergence_and_not_far_below(tmp_path, curvature) -> None:
    rates, limit = np.geomspace(1e-6, 1000, 100).tolist(), 2 / max(curvature)
    found = record(tmp_path, Quadratic(curvature), rates)
    _, edge = read_curve(found["losses"], 100)
    assert limit / 100 < rates[edge] < 10 * limit
    assert len(found["losses"]) < 100 and rates[len(found["losses"])] > limit


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_losses_are_those_of_a_plain_loop(tmp_path, clip, accumulate) -> None:
    rates = np.geomspace(1e-4, 10, 40).tolist()
    options = {"gradient_clip_val": clip, "accumulate_grad_batches": accumulate}
    found = record(tmp_path, Quadratic([3.0, 0.3], momentum), rates, 1, **options)

    weight, curvature = torch.ones(1, 2, requires_grad=True), torch.tensor([[3.0, 0.3]])
    optimizer = torch.optim.SGD([weight], 1.0, momentum=0.9)
    batches = iter(LABELS * 100)
    for rate, measured in zip(rates, found["losses"], strict=False):
        optimizer.param_groups[0]["lr"] = rate
        total = sum((curvature / 2 * (weight - next(batches)) ** 2).sum() for _ in range(accumulate)) / accumulate
        optimizer.zero_grad()
        total.backward()
        if clip:
            nn.utils.clip_grad_norm_([weight], clip)
        optimizer.step()
        assert measured == pytest.approx(total.item(), rel=1e-4)
    assert len(found["losses"]) > 20 and len(found["speeds"]) >= len(found["losses"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        (torch.optim.AdamW, {"lr_mult": {"^2": 10}}),
        (torch.optim.AdamW, {"stem_lr": 0.25, "lr_mult": {"bias": 3}, "reference_batch": 16, "lr_scaling": "sqrt"}),
        (torch.optim.AdamW, {"reference_batch": 1, "lr_scaling": "linear"}),
        (Muon, {"lr_mult": {"bias": 3}, "reference_batch": 16, "lr_scaling": "sqrt"}),
    ],
)
def test_every_group_has_the_rate_that_model_lr_would_give_it(tmp_path, kind, recipe) -> None:
    rates, model = np.geomspace(1e-4, 1e-2, 10).tolist(), Quadratic([1.0], kind, **recipe)
    found = record(tmp_path, model, rates, accumulate_grad_batches=2)
    assert len(model.used) == 10
    for rate, used in zip(rates, model.used, strict=True):
        groups = model.recipe.optimizer(model.net, 8, lr=rate).param_groups
        assert used == pytest.approx([group["lr"] for group in groups], rel=1e-9)
    assert (
        found["batch"] == 8 and found["scaling"] == model.recipe.scaling(8)[0] and found["optimizer"] == kind.__name__
    )
    assert found["images"] == len(LABELS) and found["memory"] > 1e6


@pytest.mark.parametrize("seed", range(3))
def test_it_stops_when_the_corrected_running_mean_is_four_times_its_lowest(seed) -> None:
    losses = np.exp(np.random.default_rng(seed).normal(0, 0.3, 200) + np.maximum(np.arange(200) - 60, 0) / 10)
    callback, mean, best, keep = StepRecord("", [1.0] * 200), 0.0, math.inf, math.exp(-1 / 6)
    for i, loss in enumerate(losses):
        blown = callback.note(float(loss))
        mean = keep * mean + (1 - keep) * loss
        corrected = mean / (1 - keep ** (i + 1))  # Kingma & Ba 2015, section 3
        best = min(best, corrected)
        assert blown == (corrected > 4 * best)
        if blown:
            break
    assert blown and 60 < i < 199


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_is_not_finite_ends_the_test_and_the_rest_counts(tmp_path) -> None:
    found = record(tmp_path, Quadratic([1e3]), np.geomspace(1e-6, 1e30, 15).tolist())
    assert 0 < len(found["losses"]) < 15 and all(map(math.isfinite, found["losses"]))
    model = Quadratic([1.0])
    nn.init.constant_(model.net[0].weight, math.nan)
    assert record(tmp_path, model, [0.1] * 10)["losses"] == []
