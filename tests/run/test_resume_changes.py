"""What a resumed run changes: learning rates by formula, the optimizer's state, a line for each change, errors."""

import math
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from conftest import make_folder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from project.__main__ import main
from project.classifier import ImageClassifier
from project.errors import UserError
from project.run.resume import check_changes
from project.tasks import MultiClass

LAST = "runs/fit/version_0/checkpoints/last.ckpt"
SGD = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9, "weight_decay": 0.1}}
RECIPES = {  # all trained for two epochs of three steps
    "step": {
        "optimizer": SGD,
        "schedule": {"class_path": "project.optim.Step", "init_args": {"step_size": 1, "gamma": 0.5}},
    },
    "cosine": {"optimizer": SGD, "schedule": {"class_path": "project.optim.Cosine", "init_args": {"end": 0.1}}},
    "one cycle": {"optimizer": SGD, "schedule": {"class_path": "project.optim.OneCycle"}},
    "torch": {"schedule": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1}}},
    "swats": {"optimizer": {"class_path": "project.optim.SWATS"}},
    "muon": {"optimizer": {"class_path": "project.optim.Muon"}, "schedule": {"class_path": "project.optim.Constant"}},
}


@pytest.fixture(scope="module")
def _bases(tmp_path_factory) -> Callable[[str], Path]:
    """Trained runs, each made when it is first asked for."""
    folder = tmp_path_factory.mktemp("bases")
    make_folder(folder / "few", {"blue": 25, "red": 25})  # 10 to test, 8 to validate, 32 to train

    def base(name: str) -> Path:
        place = folder / name
        if not place.exists():
            place.mkdir()
            model = {
                "net": {"class_path": "project.nets.ConvNet", "init_args": {"channels": [4]}},
                "lr": 0.02,
                **RECIPES[name],
            }
            data = {"root": str(folder / "few"), "batch_size": 12, "image_size": 8}
            config = {"model": model, "data": data, "trainer": {"max_epochs": 2}}
            (place / "fit.yaml").write_text(yaml.safe_dump(config))
            before = Path.cwd()
            os.chdir(place)
            try:
                assert main(["fit", "--config", "fit.yaml"]) == 0
            finally:
                os.chdir(before)
        return place

    return base


@pytest.fixture
def base(_bases, workdir) -> Callable[[str], None]:
    """Puts a trained run into the current folder."""
    return lambda name: shutil.copytree(_bases(name), workdir, dirs_exist_ok=True)


def rates() -> list[float]:
    """What was logged: the rate of the last step of each epoch."""
    events = EventAccumulator("runs/fit/version_0")
    events.Reload()
    return [event.value for event in events.Scalars("lr/all")]


def checkpoint() -> dict:
    return torch.load(LAST, weights_only=True)


def group() -> dict:
    return checkpoint()["optimizer_states"][0]["param_groups"][0]


def said(out: str) -> list[str]:
    return [line for line in out.splitlines() if "until here" in line]


def resume(cli, *options: str, epochs: int = 4) -> list[str]:
    """What a resumed fit says of its changes."""
    result = cli("fit", "--ckpt_path", "last", "--trainer.max_epochs", str(epochs), *options)
    assert result.code == 0 and result.err == "", result.err
    return said(result.out)


SCHEDULE = "model.schedule.init_args"
CLASS = "model.schedule.class_path: project.optim.Step until here,"
slow = partial(pytest.param, marks=pytest.mark.slow)
MULTI = ["--model.schedule=project.optim.MultiStep", "--model.schedule.milestones=[3]"]


@pytest.mark.parametrize(
    ("options", "lines", "expected"),
    [
        ([], [], [0.005, 0.0025]),
        slow(["--config", "fit.yaml"], [], [0.005, 0.0025]),  # the configuration it was made with
        (["--model.lr=0.1"], ["model.lr: 0.02 until here, 0.1 from now on"], [0.025, 0.0125]),
        (
            ["--model.schedule.gamma=0.1"],
            [f"{SCHEDULE}.gamma: 0.5 until here, 0.1 from now on"],
            [0.0002, 0.00002],
        ),
        (MULTI, [f"{CLASS} project.optim.MultiStep from now on", f"{SCHEDULE}.gamma: 0.5 until here, 0.1 from now on",
                 f"{SCHEDULE}.milestones: null until here, [3] from now on",
                 f"{SCHEDULE}.step_size: 1 until here, null from now on"], [0.02, 0.002]),
        slow(["--model.schedule=null"],
             [f"{CLASS} null from now on", f"{SCHEDULE}.gamma: 0.5 until here, null from now on",
              f"{SCHEDULE}.step_size: 1 until here, null from now on"], [0.02, 0.02]),
        slow(["--model.schedule_interval=step"], ["model.schedule_interval: null until here, step from now on"],
         [0.02 * 0.5**8, 0.02 * 0.5**11]),
        slow(["--model.warmup=3.5"], ["model.warmup: 0.0 until here, 3.5 from now on"],
         [0.005 * (0.01 + 0.99 * 8 / 10.5), 0.0025]),
        (
            ["--model.lr=0.1", "--model.reference_batch=3", "--model.lr_scaling=sqrt"],
            ["model.lr: 0.02 until here, 0.1 from now on", "model.lr_scaling: none until here, sqrt from now on",
             "model.reference_batch: null until here, 3 from now on"],
            [0.05, 0.025],
        ),
    ],
)  # fmt: skip
def test_a_changed_rate_takes_effect(cli, base, options, lines, expected) -> None:
    base("step")
    assert resume(cli, *options) == lines
    assert rates() == pytest.approx([0.02, 0.01, *expected], rel=1e-5)
    assert group()["weight_decay"] == pytest.approx(0.2 if "--model.lr_scaling=sqrt" in options else 0.1)


@pytest.mark.slow
def test_changed_milestones_take_effect_and_are_kept(cli, base) -> None:
    base("step")
    resume(cli, *MULTI, epochs=3)
    expected = f"{SCHEDULE}.milestones: [3] until here, [1, 3] from now on"
    assert resume(cli, "--model.schedule.milestones=[1,3]") == [expected]
    assert resume(cli, epochs=5) == []
    assert rates() == pytest.approx([0.02, 0.01, 0.02, 0.0002, 0.0002], rel=1e-5)


def test_the_optimizer_s_arguments_take_effect(cli, base, monkeypatch) -> None:
    """At hardly any learning rate the weights stay: v = momentum * v + gradient + decay * w shows the arguments."""
    base("step")
    before, grads = checkpoint(), []

    def keep(self, _) -> None:
        grads.append([p.grad.clone() for p in self.parameters()])

    monkeypatch.setattr(ImageClassifier, "on_before_optimizer_step", keep)
    lines = resume(
        cli, "--model.optimizer.weight_decay=0.3", "--model.optimizer.momentum=0.5", "--model.lr=1e-30", epochs=3
    )
    assert lines == [
        "model.lr: 0.02 until here, 1e-30 from now on",
        "model.optimizer.init_args.momentum: 0.9 until here, 0.5 from now on",
        "model.optimizer.init_args.weight_decay: 0.1 until here, 0.3 from now on",
    ]
    assert (group()["weight_decay"], group()["momentum"], group()["nesterov"]) == (0.3, 0.5, False)
    names = [name for name, _ in ImageClassifier.load_from_checkpoint(LAST).named_parameters()]
    assert len(grads) == 3 and len(grads[0]) == len(names) > 3
    for i, name in enumerate(names):
        v, w = before["optimizer_states"][0]["state"][i]["momentum_buffer"], before["state_dict"][name]
        for step in grads:
            v = 0.5 * v + step[i] + 0.3 * w
        assert torch.equal(checkpoint()["state_dict"][name], w)
        assert torch.allclose(checkpoint()["optimizer_states"][0]["state"][i]["momentum_buffer"], v, atol=1e-6)


@pytest.mark.parametrize("name", ["cosine", pytest.param("one cycle", marks=pytest.mark.slow)])
def test_a_longer_run_follows_the_new_length(cli, base, name) -> None:
    base(name)
    assert resume(cli) == ["steps of the schedule: 6 until here, 12 from now on"]
    factor = (
        one_cycle if name == "one cycle" else lambda step, total: 0.1 + 0.9 * (1 + math.cos(math.pi * step / total)) / 2
    )
    expected = [0.02 * factor(step, total) for step, total in ((2, 6), (5, 6), (8, 12), (11, 12))]
    assert rates() == pytest.approx(expected, rel=1e-4)
    assert resume(cli) == []  # the same length again


def one_cycle(step: int, total: int) -> float:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total, cycle_momentum=False)
    for _ in range(step):
        optimizer.step()
        schedule.step()
    return schedule.get_last_lr()[0]


def test_label_smoothing_may_be_changed_for_training(cli, base, monkeypatch) -> None:
    base("step")
    seen, real = [], MultiClass.loss

    def keep(self, *given) -> torch.Tensor:
        seen.append((*given, real(self, *given)))
        return seen[-1][-1]

    line = ["model.task.init_args.label_smoothing: 0.0 until here, 0.4 from now on"]
    for command in ("validate", "test"):  # whose losses are not smoothed
        result = cli(command, "--ckpt_path", "last", "--model.task.label_smoothing=0.4")
        assert result.code == 2 and "label_smoothing cannot be changed for a trained model" in result.err
    monkeypatch.setattr(MultiClass, "loss", keep)
    assert resume(cli, "--model.task.label_smoothing=0.4", epochs=3) == line
    assert resume(cli, epochs=4) == []  # it stays
    logits, labels, loss = seen[-1]
    assert torch.allclose(loss, nn.functional.cross_entropy(logits, labels, label_smoothing=0.4))


def test_muons_share_for_the_rest_takes_effect(cli, base) -> None:
    base("muon")
    prefix = "model.optimizer.init_args"
    assert resume(cli, "--model.optimizer.rest_lr=0.5", "--model.optimizer.momentum=0.6", epochs=3) == [
        f"{prefix}.momentum: 0.95 until here, 0.6 from now on",
        f"{prefix}.rest_lr: 0.015 until here, 0.5 from now on",
    ]
    groups = {group["name"]: group for group in checkpoint()["optimizer_states"][0]["param_groups"]}
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx({"all/muon": 0.02, "all": 0.01})
    assert groups["all/muon"]["momentum"] == 0.6


def test_a_run_keeps_its_kind_of_step(cli, base) -> None:
    """Its state fits that: on a GPU, the counts of a fused step are there, else on the CPU."""
    base("step")
    then = checkpoint()
    (groups,) = [state["groups"] for name, state in then["callbacks"].items() if "ResumeChanges" in name]
    assert group()["fused"] is groups[0]["fused"] is True
    then["optimizer_states"][0]["param_groups"][0]["fused"] = groups[0]["fused"] = None
    torch.save(then, LAST)
    assert resume(cli, epochs=3) == [] and group()["fused"] is None
    with pytest.raises(UserError, match="cannot be changed for a trained model"):
        check_changes("fit", {"optimizer.init_args.fused": True}, {"optimizer.init_args.fused": False})


# What cannot be changed

REFUSED = [
    ("--model.net=project.nets.ResNet9", "model.net.class_path"),
    ("--model.net.channels=[8]", "model.net.init_args.channels"),
    ("--model.lr_mult={head: 3}", "model.lr_mult"),
    ("--model.stem_lr=0.5", "model.stem_lr"),
    ("--model.no_weight_decay=true", "model.no_weight_decay"),
    ("--model.freeze=project.optim.Freeze", "model.freeze"),
    ("--model.weights=other.pt", "model.weights"),
    ("--model.optimizer=torch.optim.RMSprop", "model.optimizer.class_path"),
]


@pytest.mark.parametrize(("option", "key"), REFUSED)
def test_the_rest_is_an_error_of_one_line(cli, base, option, key) -> None:
    base("step")
    result = cli("fit", "--ckpt_path", "last", "--trainer.max_epochs", "3", option)
    assert result.code == 2 and len(result.err.splitlines()) == 1 and key in result.err
    assert "cannot be changed for a trained model: the checkpoint says" in result.err


@pytest.mark.parametrize(
    ("name", "option", "words"),
    [
        ("torch", "--model.lr=0.1", "with a scheduler of torch"),
        slow("torch", "--model.schedule.gamma=0.3", "with a scheduler of torch"),
        slow(
            "step",
            "--model.schedule=torch.optim.lr_scheduler.ExponentialLR --model.schedule.gamma=1",
            "with a scheduler of torch",
        ),
        slow("swats", "--model.lr=0.1", "with SWATS"),
    ],
)
def test_learning_rates_that_depend_on_those_before(cli, base, name, option, words) -> None:
    base(name)
    result = cli("fit", "--ckpt_path", "last", "--trainer.max_epochs", "3", *option.split())
    assert result.code == 2 and len(result.err.splitlines()) == 1 and words in result.err
    assert resume(cli, epochs=3) == []  # it can still be resumed as it was


@pytest.mark.parametrize("option", ["--model.lr=0.1", "--model.schedule.gamma=0.1"])
def test_other_commands_take_no_change_of_the_training(cli, base, option) -> None:
    base("step")
    for command in ("validate", "test", "predict"):
        result = cli(command, "--ckpt_path", "last", option, *(["--data.root", "."] if command == "predict" else []))
        assert result.code == 2 and len(result.err.splitlines()) == 1
        assert (
            "cannot be changed for a trained model" in result.err
            and option[2:].split("=")[0].split(".")[-1] in result.err
        )


@pytest.mark.parametrize("key", ["lr", "reference_batch", "lr_scaling"])
def test_swats_keeps_its_learning_rate(key) -> None:
    settings = {"optimizer.class_path": "project.optim.SWATS", key: 1}
    with pytest.raises(UserError, match=f"model.{key} cannot be changed for a trained model with SWATS"):
        check_changes("fit", settings | {key: 2}, settings)
    assert len(check_changes("fit", settings | {"warmup": 2}, settings)) == 1


SETTINGS = {
    "lr": 0.1,
    "warmup": 0.0,
    "task.init_args.label_smoothing": 0.0,
    "mixup": 0.0,
    "init": "default",
    "freeze": None,
}


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_only_what_is_part_of_the_loss_is_free_outside_of_fit(command) -> None:
    assert check_changes(command, SETTINGS, SETTINGS) == []
    for key in SETTINGS.keys() - {"task.init_args.label_smoothing"}:
        with pytest.raises(UserError, match=f"model.{key} cannot be changed"):
            check_changes(command, SETTINGS | {key: 0.5}, SETTINGS)


def test_tta_may_be_chosen_wherever_nothing_is_trained() -> None:
    then, now = {"lr": "0.1", "tta": "none"}, {"lr": "0.1", "tta": "flip"}
    for command in ("validate", "test", "predict", "export"):
        assert check_changes(command, now, then) == ["model.tta: flip here, none in the training"]
    with pytest.raises(UserError, match=r"model\.tta cannot be changed for a trained model"):
        check_changes("fit", now, then)
    for command in ("fit", "validate"):  # a checkpoint of before there was the key
        assert check_changes(command, then, {"lr": "0.1"}) == []
