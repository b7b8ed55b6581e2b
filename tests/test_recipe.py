"""Scaling with the batch, mixing of images, clipping, accumulation: against formulas, brute force and plain loops."""

import copy
import csv
import math
import re
import warnings
from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from conftest import make_folder, slow_but
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from project.classifier import ImageClassifier
from project.nets import ConvNet
from project.optim import Muon
from project.tasks import MultiClass

LAST = "runs/fit/version_0/checkpoints/last.ckpt"
STOP = """
from lightning import Callback
class Stop(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 5: raise KeyboardInterrupt
"""


def small_net(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    return ConvNet(in_channels, num_classes, image_size, channels=[4])


def make(**arguments) -> ImageClassifier:
    torch.manual_seed(1)
    task = {name: arguments.pop(name) for name in ("label_smoothing", "class_weights") if name in arguments}
    return ImageClassifier(small_net, ["a", "b", "c", "d"], image_size=9, task=partial(MultiClass, **task), **arguments)


def last() -> dict:
    return torch.load(LAST, weights_only=True)


@pytest.fixture
def few(tmp_path) -> list[str]:
    """Options for 32 images to train on, in batches of 8."""
    root = make_folder(tmp_path / "few", {"blue": 25, "red": 25})
    net = ["--model.net", "project.nets.ConvNet", "--model.net.init_args.channels", "[4]", "--data.image_size", "8"]
    return ["fit", "--data.root", str(root), "--data.batch_size", "8", *net, "--model.lr", "0.05"]


# Rate and weight decay by the batch


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["linear", "sqrt", "none"]), st.integers(1, 4096), st.integers(1, 8), st.integers(1, 16),
    st.integers(1, 4096), st.floats(1e-5, 1), st.floats(0, 1), st.booleans(),
)  # fmt: skip
def test_rate_and_decay_grow_with_the_batch(rule, images, devices, accumulation, reference, lr, decay, spared) -> None:
    optimizer = partial(torch.optim.AdamW, weight_decay=decay)
    spared = spared and decay > 0
    model = make(lr=lr, lr_scaling=rule, reference_batch=None if rule == "none" else reference, lr_mult={"head": 10},
                 optimizer=optimizer, no_weight_decay=spared)  # fmt: skip
    ratio = images * devices * accumulation / reference
    factor, decay_factor = {"linear": (ratio, 1), "sqrt": (ratio**0.5, ratio**0.5), "none": (1, 1)}[rule]
    data = SimpleNamespace(batch_size=images)
    model.trainer = SimpleNamespace(datamodule=data, world_size=devices, accumulate_grad_batches=accumulation)
    groups = model.configure_optimizers()["optimizer"].param_groups
    assert model.recipe.scaling(model.batch) == pytest.approx((factor, decay_factor)) and len(groups) == (
        4 if spared else 2
    )
    for group in groups:
        assert group["lr"] == pytest.approx(lr * factor * (10 if group["name"].startswith("head") else 1))
        assert group["weight_decay"] == pytest.approx(
            0 if group["name"].endswith("/no_decay") else decay * decay_factor
        )


@pytest.mark.parametrize(("rule", "rate", "decay"), [("linear", 0.2, 0.1), ("sqrt", 0.1, 0.2)])
def test_the_scaled_rate_is_printed_kept_and_used(cli, few, rule, rate, decay) -> None:
    choice = ["--model.optimizer=torch.optim.AdamW", "--model.optimizer.weight_decay=0.1", "--trainer.max_epochs=1"]
    result = cli(
        *few, *choice, "--model.reference_batch=4", f"--model.lr_scaling={rule}", "--trainer.accumulate_grad_batches=2"
    )
    assert result.code == 0, result.err
    words = f"for a batch of 16: learning rate x {rate / 0.05:.4g}, weight decay x {decay / 0.1:.4g}"
    assert f"optimizer  AdamW, {words}" in result.out
    assert re.search(rf"^           all +\d+ +{rate} +{decay} +yes$", result.out, re.MULTILINE)
    with open("runs/fit/version_0/groups.csv") as file:
        (row,) = csv.DictReader(file)
    assert (float(row["rate"]), float(row["weight_decay"])) == pytest.approx((rate, decay))
    (group,) = last()["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["weight_decay"]) == pytest.approx((rate, decay))


# One kernel for a whole step


FUSED = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": partial(torch.optim.Adam, weight_decay=0.1),
    "adamw": partial(torch.optim.AdamW, amsgrad=True),
}


def step_of(model: ImageClassifier, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    images = torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    model.net(images).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", FUSED)
def test_torchs_optimizers_step_in_one_kernel_to_the_same_weights(name) -> None:
    ours, theirs = make(lr=0.01, optimizer=FUSED[name]), make()
    optimizer, other = ours.recipe.optimizer(ours.net, 1), FUSED[name](theirs.net.parameters(), lr=0.01, foreach=False)
    assert all(group["fused"] for group in optimizer.param_groups) and not other.param_groups[0]["fused"]
    for seed in range(8):
        step_of(ours, optimizer, seed)
        step_of(theirs, other, seed)
    for p, q in zip(ours.net.parameters(), theirs.net.parameters(), strict=True):
        # The kernel goes through memory, whatever the strides say; autograd gives gradients the strides of the weights.
        assert p.grad.stride() == p.stride() and torch.allclose(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"fused": False}, {"foreach": True}, {"foreach": False}, {"differentiable": True}], ids=str
)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_choice_of_the_users_own_is_kept(kind, options) -> None:
    model = make(optimizer=partial(kind, **options))
    (group,) = model.recipe.optimizer(model.net, 1).param_groups
    assert group | options == group and not group["fused"]


def test_optimizers_without_one_and_weights_elsewhere_step_as_before() -> None:
    for kind in (torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam):
        model = make(optimizer=kind)
        assert not any(group.get("fused") for group in model.recipe.optimizer(model.net, 1).param_groups)
    model = make().to("meta")
    assert not model.recipe.optimizer(model.net, 1).param_groups[0]["fused"]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, Muon])
def test_gradients_are_unscaled_and_clipped_before_the_step(kind) -> None:
    """As Lightning does with 16-mixed, where it refuses to clip for what undoes the scaling in its own step."""
    from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling

    weights = []
    for scale in (1.0, 1024.0):
        model = make(lr=0.01, optimizer=kind)
        optimizer = model.recipe.optimizer(model.net, 1)
        assert not _optimizer_handles_unscaling(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for value in (1.0, math.inf, 2.0):  # the second step is left out
            optimizer.zero_grad()
            scaler.scale(model.net(torch.full((4, 3, 9, 9), value)).square().mean()).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.net.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
        weights.append([p.detach() for p in model.net.parameters()])
    assert all(torch.allclose(p, q, rtol=1e-4, atol=1e-6) and p.isfinite().all() for p, q in zip(*weights, strict=True))


# Mixup and CutMix: brute force with the same draws


def batch_of(count: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (count, 3, 9, 9), dtype=torch.uint8, generator=generator)
    return {"image": images, "label": torch.arange(count) % 4}


def step(model: ImageClassifier, batch: dict[str, Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of one training step, and what the network and the loss were given."""
    group = {"name": "all", "params": [nn.Parameter(torch.zeros(1))]}
    model.trainer = SimpleNamespace(
        log_every_n_steps=0,
        optimizers=[torch.optim.SGD([group], lr=0.1)],
        accumulate_grad_batches=1,
        num_training_batches=1,
        train_dataloader=None,
    )
    seen: list[Tensor] = []
    hook = model.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    real, model.task.loss = model.task.loss, lambda logits, labels: seen.append(labels) or real(logits, labels)
    torch.manual_seed(seed)
    loss = model.training_step(batch, 0)["loss"]
    hook.remove()
    model.task.loss = real
    return loss, seen[0], seen[1]


def mixed(kind: str, images: Tensor, labels: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Every image with the one before it, shares from Beta(alpha, alpha): the papers' formulas, pixel by pixel."""
    share = float(torch.distributions.Beta(torch.tensor([alpha]), torch.tensor([alpha])).sample())
    count, _, rows, columns = images.shape
    result, targets = images.clone(), torch.zeros(count, 4)
    if (
        kind == "cutmix"
    ):  # arXiv:1905.04899, eq. 2: a box of 1 - share of the area around a random centre, cut at the border
        x, y = int(torch.randint(columns, (1,))), int(torch.randint(rows, (1,)))
        wide, high = int(0.5 * (1 - share) ** 0.5 * columns), int(0.5 * (1 - share) ** 0.5 * rows)
        box = [(i, j) for i in range(rows) for j in range(columns) if -high <= i - y < high and -wide <= j - x < wide]
        share = 1 - len(box) / (rows * columns)
    for n in range(count):
        if kind == "mixup":  # arXiv:1710.09412, section 2
            result[n] = share * images[n] + (1 - share) * images[n - 1]
        else:
            for i, j in box:
                result[n, :, i, j] = images[n - 1, :, i, j]
        targets[n, labels[n]] += share
        targets[n, labels[n - 1]] += 1 - share
    return result, targets


@pytest.mark.parametrize(("kind", "alpha"), [("mixup", 0.2), ("mixup", 1.0), ("cutmix", 0.2), ("cutmix", 1.0)])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 4.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_step_is_the_papers(kind, alpha, weights, smoothing) -> None:
    model, batch = make(**{kind: alpha}, class_weights=weights, label_smoothing=smoothing), batch_of()
    images = model.normalise(batch["image"])
    for seed in range(6):
        loss, inputs, labels = step(model, batch, seed)
        torch.manual_seed(seed)
        torch.randint(1, ())  # which of the mixers, here the only one
        expected, targets = mixed(kind, images, batch["label"], alpha)
        assert torch.allclose(inputs, expected, atol=1e-5) and torch.allclose(labels, targets, atol=1e-6)
        assert torch.allclose(labels.sum(1), torch.ones(6))
        weight = torch.tensor(weights or [1.0] * 4)
        spread = (1 - smoothing) * targets + smoothing / 4
        errors = -(spread * copy.deepcopy(model.net)(expected).log_softmax(1)).sum(1)
        # the mean over images, each with the mean of the weights of its classes
        assert torch.allclose(loss, (errors * (targets * weight).sum(1)).mean(), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=4, max_size=4), st.floats(0, 0.9))
def test_shares_of_one_class_are_its_label(weights, smoothing) -> None:
    """So that mixing does not change the size of the loss, and with it that of the steps."""
    model = make(class_weights=weights, label_smoothing=smoothing)
    logits, labels = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0, 0, 1])
    assert torch.allclose(
        model.task.loss(logits, nn.functional.one_hot(labels, 4).float()), model.task.loss(logits, labels), rtol=1e-4
    )


def test_with_both_every_batch_takes_one_of_them() -> None:
    model, batch = make(mixup=1.0, cutmix=1.0), batch_of()
    images = model.normalise(batch["image"])
    pasted = 0
    for seed in range(60):
        _, inputs, _ = step(model, batch, seed)
        pasted += bool(((inputs == images) | (inputs == images.roll(1, 0))).all())
        torch.manual_seed(seed)
        kind = ("mixup", "cutmix")[int(torch.randint(2, ()))]
        assert torch.allclose(inputs, mixed(kind, images, batch["label"], 1.0)[0], atol=1e-5)
    assert 15 < pasted < 45


def test_validation_is_not_mixed() -> None:
    model, batch = make(mixup=1.0, cutmix=1.0).eval(), batch_of()
    model.validation_step(batch, 0)
    assert torch.allclose(model.val_loss.compute(), nn.functional.cross_entropy(model(batch["image"]), batch["label"]))


@pytest.mark.slow
def test_mixed_runs_go_on_bit_by_bit_and_0_is_none(cli, few, workdir, monkeypatch) -> None:
    (workdir / "stop_mixed.py").write_text(STOP)
    monkeypatch.syspath_prepend(workdir)
    both, found = ["--model.mixup=0.4", "--model.cutmix=1"], {}
    for name, options in {
        "plain": [],
        "none": ["--model.mixup=0", "--model.cutmix=0"],
        "whole": both,
        "parts": both,
    }.items():
        (workdir / name).mkdir()
        monkeypatch.chdir(workdir / name)
        stop = ["--trainer.callbacks+", "stop_mixed.Stop"] if name == "parts" else []
        result = cli(*few, *options, *stop, "--trainer.max_epochs", "2")
        assert result.code == (130 if stop else 0), result.err
        if stop:
            assert cli("fit", "--ckpt_path", "last").code == 0
        found[name] = last()["state_dict"]

    def equal(one: str, other: str) -> bool:
        return all(torch.equal(value, found[other][name]) for name, value in found[one].items())

    assert equal("plain", "none") and equal("whole", "parts") and not equal("plain", "whole")


# What users expect of a trainer

slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture
def recorded(cli, few, monkeypatch):
    """A run with SGD: the network before it, the batches as the network saw them, and the weights after it."""

    def run(*options: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], dict[str, Tensor]]:
        nets, batches, real = [], [], ImageClassifier.training_step

        def keep(self, batch, batch_idx):
            nets.append(copy.deepcopy(self.net))
            batches.append((self.normalise(batch["image"]), batch["label"]))
            return real(self, batch, batch_idx)

        monkeypatch.setattr(ImageClassifier, "training_step", keep)
        result = cli(*few, "--model.optimizer=torch.optim.SGD", "--trainer.max_epochs=2", *options)
        assert result.code == 0 and result.err == "", result.err
        return (
            nets[0],
            batches,
            {name[4:]: value for name, value in last()["state_dict"].items() if name.startswith("net.")},
        )

    return run


@pytest.mark.parametrize(
    ("options", "together", "limit", "images"),
    [
        (["--trainer.gradient_clip_val=0.1"], 1, 0.1, [8, 8, 8, 8]),
        (["--trainer.accumulate_grad_batches=2"], 2, 1e9, [8, 8, 8, 8]),
        (["--trainer.accumulate_grad_batches=3"], 3, 1e9, [8, 8, 8, 8]),  # the last step has one batch
        (["--trainer.accumulate_grad_batches=4", "--data.batch_size=7"], 4, 1e9, [7, 7, 7, 7, 4]),
        (["--trainer.accumulate_grad_batches=3", "--data.batch_size=7"], 3, 1e9, [7, 7, 7, 7, 4]),  # unequal batches
        (["--trainer.accumulate_grad_batches=3", "--model.task.class_weights=[1, 5]"], 3, 1e9, [8, 8, 8, 8]),
        # A single image is left out, and a limit cuts a step short.
        slow(["--trainer.accumulate_grad_batches=9", "--data.batch_size=31"], 9, 1e9, [31]),
        slow(["--trainer.accumulate_grad_batches=2", "--trainer.limit_train_batches=3"], 2, 1e9, [8, 8, 8]),
    ],
)
def test_clipping_and_accumulation_are_a_plain_loop(recorded, options, together, limit, images) -> None:
    """A step is the mean over all its images; the log has the mean over all images of the epoch."""
    net, batches, trained = recorded(*options)
    assert [len(labels) for _, labels in batches] == images * 2
    # There are 16 training images of each class: weights of a mean of 1.
    weights = torch.tensor([1 / 3, 5 / 3] if "class_weights" in options[-1] else [1.0, 1.0])
    optimizer, norms, logged = torch.optim.SGD(net.parameters(), lr=0.05), [], []
    for epoch in (batches[: len(images)], batches[len(images) :]):
        logged = []
        for first in range(0, len(epoch), together):
            step = epoch[first : first + together]
            losses = [
                nn.functional.cross_entropy(net(inputs), labels, reduction="none") * weights[labels]
                for inputs, labels in step
            ]
            optimizer.zero_grad()
            torch.cat(losses).mean().backward()
            norms.append(float(nn.utils.clip_grad_norm_(net.parameters(), limit)))
            optimizer.step()
            logged += [loss.detach() for loss in losses]
    assert all(torch.allclose(value, trained[name], atol=1e-6) for name, value in net.state_dict().items())
    assert len(norms) == last()["global_step"] == 2 * math.ceil(len(images) / together)
    assert max(norms) > 0.2  # there is something to clip
    metrics = last()["callbacks"]["BestAndLast"]["metrics"]
    assert metrics["train/loss"] == pytest.approx(float(torch.cat(logged).mean()), rel=1e-5)


@pytest.mark.parametrize("weights", [None, [1.0, 5.0]])
def test_accumulated_batches_of_another_loader_are_one_large_batch(weights) -> None:
    """Five batches, four to accumulate: two steps, each as of one batch, without our data module."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 3, 9, 9), dtype=torch.uint8, generator=generator)
    rows = [
        {"image": image, "label": i % 2, "index": i} for i, image in enumerate(images)
    ]  # batches of 8: steps of 32 and of 8 images

    def flat(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))

    def train(loader, **options) -> dict[str, Tensor]:
        task = partial(MultiClass, class_weights=weights, label_smoothing=0.1)
        sgd = partial(torch.optim.SGD, momentum=0.9)
        model = ImageClassifier(flat, ["a", "b"], image_size=9, task=task, optimizer=sgd, lr=0.01)
        off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        L.Trainer(accelerator="cpu", max_epochs=1, **off, **options).fit(model, loader)
        return model.net.state_dict()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about workers
        small = train(DataLoader(rows, 8), accumulate_grad_batches=4)
        large = train(DataLoader(rows, batch_sampler=[range(32), range(32, 40)]))
    assert all(torch.allclose(small[name], value, atol=1e-7) for name, value in large.items())


def test_bfloat16(recorded, monkeypatch) -> None:
    dtypes, real = set(), MultiClass.loss
    monkeypatch.setattr(MultiClass, "loss", lambda self, logits, y: dtypes.add(logits.dtype) or real(self, logits, y))
    _, _, trained = recorded("--trainer.precision=bf16-mixed")
    assert dtypes == {torch.bfloat16}
    assert all(value.isfinite().all() and value.dtype in (torch.float32, torch.int64) for value in trained.values())


def test_early_stopping_stops(cli, few) -> None:
    stop = ["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.monitor=val/acc"]
    result = cli(
        *few, *stop, "--trainer.callbacks.min_delta=2", "--trainer.callbacks.patience=2", "--trainer.max_epochs=9"
    )
    # an accuracy never changes by 2: the first epoch counts, then two without improvement
    assert result.code == 0, result.err
    assert re.findall(r"^epoch (\d)/9", result.out, re.MULTILINE) == ["1", "2", "3"]


# Bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.schedule=torch.optim.lr_scheduler.ReduceLROnPlateau"], "use project.optim.Plateau"),
        (
            ["--model.schedule=torch.optim.lr_scheduler.OneCycleLR", "--model.schedule.max_lr=1"],
            "You must define either total_steps",
        ),
        (["--model.schedule=cosine"], "such as project.optim.Cosine"),
        (["--model.schedule=project.optim.Step", "--model.schedule.step_sise=2"], "did you mean step_size?"),
        (["--trainer.accumulate_grad_batches=0"], "accumulate_grad_batches must be 1 or more, not 0"),
        (["--trainer.gradient_clip_val=-1"], "gradient_clip_val must be above 0, not -1;"),
    ],
)
def test_what_cannot_train_is_one_line(cli, few, options, words) -> None:
    result = cli(*few, *options)
    assert result.code == 2 and words in result.err and result.err.count("\n") == 1, result.err


@pytest.mark.parametrize("precision", slow_but(["64-true", "bf16-true", "bf16-mixed"], "bf16-mixed"))
def test_every_precision_of_a_cpu_trains(cli, few, precision) -> None:
    mixed = ["--model.mixup=0.2", "--model.task.class_weights=balanced"]
    assert cli(*few, *mixed, "--trainer.max_epochs=1", f"--trainer.precision={precision}").code == 0


@pytest.mark.slow
def test_another_batch_on_resume_is_said(cli, few) -> None:
    scaled = ["--model.reference_batch=8", "--model.lr_scaling=linear"]
    assert cli(*few, *scaled, "--trainer.max_epochs=1").code == 0
    more = ["fit", "--ckpt_path=last", "--trainer.max_epochs=2"]
    result = cli(*more, "--data.batch_size=4")
    assert result.code == 0 and "images per step: 8 until here, 4 from now on" in result.out
    assert last()["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.025)


@pytest.mark.parametrize(
    "choice", [["--model.optimizer=project.optim.SWATS"], ["--model.schedule=torch.optim.lr_scheduler.ConstantLR"]]
)
def test_another_batch_is_refused_where_the_rate_cannot_follow(cli, few, choice) -> None:
    scaled = ["--model.reference_batch=8", "--model.lr_scaling=linear"]
    assert cli(*few, *scaled, *choice, "--trainer.max_epochs=1").code == 0
    result = cli("fit", "--ckpt_path=last", "--trainer.max_epochs=2", "--data.batch_size=4")
    assert result.code == 2 and "the batch was 8 images" in result.err and result.err.count("\n") == 1


def test_without_its_average_a_run_goes_on_from_the_weights_themselves(cli, few) -> None:
    assert cli(*few, "--trainer.max_epochs=1", "--trainer.callbacks+=project.run.EMA").code == 0
    raw = last()["current_model_state"]
    result = cli("fit", "--ckpt_path=last", "--trainer.max_epochs=2", "--model.lr=1e-12", "--trainer.callbacks=[]")
    assert result.code == 0 and "resuming from the weights themselves" in result.out
    name = "net.head.weight"
    assert torch.allclose(last()["state_dict"][name], raw[name], atol=1e-6)


@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        (
            ["--model.lr_mult", '{"head": 10, "weight": 2}'],
            ["--model.lr_mult", '{"weight": 2, "head": 10}'],
            "order of its patterns",
        ),
        (
            ["--model.optimizer=torch.optim.AdamW"],
            ["--model.optimizer.init_args.amsgrad=true"],
            "cannot be changed for a trained",
        ),
        (["--model.optimizer=torch.optim.RMSprop"], ["--model.optimizer.init_args.momentum=0.9"], "with RMSprop"),
        (
            ["--model.optimizer=torch.optim.Adagrad"],
            ["--model.optimizer.init_args.initial_accumulator_value=1"],
            "cannot be changed for a trained",
        ),
    ],
)
def test_what_cannot_change_on_resume_is_one_line(cli, few, first, then, words) -> None:
    assert cli(*few, *first, "--trainer.max_epochs=1").code == 0
    result = cli("fit", "--ckpt_path=last", "--trainer.max_epochs=2", *then)
    assert result.code == 2 and words in result.err and result.err.count("\n") == 1, result.err


def test_another_patience_on_resume_takes_effect(cli, few) -> None:
    stopping = ["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.monitor=val/acc",
                "--trainer.callbacks.mode=max"]  # fmt: skip
    still = ["--model.lr=1e-12", "--trainer.callbacks.patience=50"]  # nothing ever improves
    assert cli(*few, *stopping, *still, "--trainer.max_epochs=2").code == 0
    result = cli("fit", "--ckpt_path=last", "--trainer.max_epochs=9", "--trainer.callbacks.init_args.patience=1")
    assert result.code == 0 and "patience: 50 until here, 1 from now on" in result.out and last()["epoch"] < 4


@pytest.mark.slow
def test_a_plateau_of_another_metric_starts_anew(cli, few) -> None:
    plateau = ["--model.schedule=project.optim.Plateau", "--model.schedule.patience=0"]
    assert cli(*few, *plateau, "--trainer.max_epochs=1").code == 0
    assert cli("fit", "--ckpt_path=last", "--trainer.max_epochs=2", "--model.schedule.monitor=val/acc").code == 0
    (state,) = last()["lr_schedulers"][0]["plateaus"]
    assert state["metric"] == ["val/acc", "max"] and state["counts"][0] <= 1 and state["factor"] == 1


@pytest.mark.slow
def test_lbfgs_trains_with_weights_in_the_usual_order(cli, few) -> None:
    options = ["--model.optimizer=torch.optim.LBFGS", "--model.channels_last=false", "--trainer.max_epochs=1"]
    assert cli(*few, *options).code == 0
