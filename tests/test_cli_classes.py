"""The settings in force after one class has replaced another: the new one gets what was said of it, and no more."""

import importlib
import inspect
import json
from itertools import product
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace
from torch import nn

from project import commands
from project.cli import Parser, _parser_only
from project.errors import UserError
from project.optim import SWATS, Muon
from project.recipe import OptimizerCallable
from project.settings import arrange

OPTIMIZERS = {  # name -> class, arguments that are nobody's default
    "momentum": ("torch.optim.SGD", {"momentum": 0.8, "weight_decay": 0.3}),
    "nesterov": ("torch.optim.SGD", {"momentum": 0.7, "nesterov": True}),
    "adam": ("torch.optim.Adam", {"weight_decay": 0.2, "eps": 0.5, "amsgrad": True}),
    "adamw": ("torch.optim.AdamW", {"weight_decay": 0.4, "eps": 0.25, "betas": [0.5, 0.6]}),
    "adagrad": ("torch.optim.Adagrad", {"weight_decay": 0.11, "eps": 0.75, "lr_decay": 0.3}),
    "adadelta": ("torch.optim.Adadelta", {"weight_decay": 0.12, "rho": 0.5, "eps": 0.125}),
    "rmsprop": ("torch.optim.RMSprop", {"weight_decay": 0.13, "momentum": 0.6, "alpha": 0.5}),
    "muon": ("project.optim.Muon", {"weight_decay": 0.15, "momentum": 0.45, "rest": "sgd", "rest_lr": 0.3}),
    "swats": ("project.optim.SWATS", {"weight_decay": 0.14, "betas": [0.7, 0.8], "switch_tol": 0.5}),
}


BASE = {
    "model": {"net": {"class_path": "project.nets.TorchvisionModel", "init_args": {"name": "resnet18"}}}
}  # fit needs a network


@pytest.fixture
def parse(workdir):
    """Settings in force with these config files (contents, in order) and options."""

    def run(files: list[dict], *options: str) -> Any:
        paths = []
        for number, content in enumerate([BASE, *files]):
            (workdir / f"{number}.yaml").write_text(yaml.safe_dump(content))
            paths += ["--config", f"{number}.yaml"]
        _, words, _ = arrange(
            commands.CORE[0], [*options, *paths], []
        )  # options first: they overrule files all the same
        return _parser_only().parser.parse_args(words)

    return run


@pytest.fixture
def build(parse):
    """The optimizer's factory that they make."""
    small = Parser()
    small.add_argument("--optimizer", type=OptimizerCallable)
    return lambda *given: small.instantiate(Namespace(optimizer=parse(*given)["model.optimizer"])).optimizer


def nested(key: str, value: Any) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def chosen(class_path: str, arguments: dict | None = None) -> dict:
    return nested("model.optimizer", {"class_path": class_path, **({"init_args": arguments} if arguments else {})})


def spelt(name: str, arguments: dict, key: str = "model.optimizer") -> list[str]:
    return [
        f"--{key}{name}.{argument}={value if isinstance(value, str) else json.dumps(value)}"
        for argument, value in arguments.items()
    ]


def defaults(make: Any, **arguments) -> dict:
    """Every hyperparameter that an optimizer has."""
    optimizer = make([nn.Parameter(torch.zeros(1))], **arguments)
    assert len(optimizer.param_groups) == 1
    values = {key: optimizer.param_groups[0][key] for key in optimizer.defaults}
    return {"class": type(optimizer)} | {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


@pytest.mark.parametrize(("first", "second"), product(OPTIMIZERS, OPTIMIZERS))
def test_a_changed_optimizer_has_no_argument_of_the_one_before(build, first, second) -> None:
    (old, old_arguments), (new, new_arguments) = OPTIMIZERS[first], OPTIMIZERS[second]
    kind = {"project.optim.SWATS": SWATS, "project.optim.Muon": Muon}.get(new) or getattr(
        torch.optim, new.rpartition(".")[2]
    )
    kept = old_arguments if old == new else {}  # the same class again keeps what it was given
    bare, full = defaults(kind, lr=0.1, **kept), defaults(kind, lr=0.1, **(kept | new_arguments))

    def found(files: list[dict], *options: str) -> dict:
        return defaults(lambda parameters, lr: build(files, *options)(parameters, lr), lr=0.1)

    a = chosen(old, old_arguments)
    assert found([a, chosen(new)]) == bare
    assert found([a, chosen(new, new_arguments)]) == full
    assert found([a], f"--model.optimizer={new}") == bare
    assert found([a], "--model.optimizer", new, *spelt("", new_arguments)) == full
    # options before the choice of their class belong to it, and not to the class of the file
    assert found([a], *spelt(".init_args", new_arguments), f"--model.optimizer={new}") == full


@pytest.mark.parametrize("old", ["torch.optim.SGD", "torch.optim.RMSprop"])
@pytest.mark.parametrize("new", ["torch.optim.AdamW", "torch.optim.Adadelta"])
def test_the_old_class_s_defaults_go_too(build, old, new) -> None:
    """SGD's weight decay is 0 without a word of anyone; AdamW's is not."""
    oracle = defaults(getattr(torch.optim, new.rpartition(".")[2]), lr=1.0)
    for files, options in (
        ([chosen(old), chosen(new)], ()),
        ([chosen(old)], (f"--model.optimizer={new}",)),
        ([], (f"--model.optimizer={old}", f"--model.optimizer={new}")),
        ([chosen(old), chosen(old), chosen(new)], ()),
    ):
        made = build(files, *options)
        assert defaults(lambda parameters, lr, made=made: made(parameters, lr), lr=1.0) == oracle


def test_there_and_back_again_is_a_fresh_start(build) -> None:
    first, second = chosen(*OPTIMIZERS["adamw"]), chosen(*OPTIMIZERS["momentum"])
    made = build([first, second, chosen("torch.optim.AdamW")])
    assert defaults(lambda p, lr: made(p, lr), lr=0.1) == defaults(torch.optim.AdamW, lr=0.1)


def test_a_file_may_change_arguments_alone(build) -> None:
    more = nested("model.optimizer.init_args.weight_decay", 0.9)
    made = build([chosen(*OPTIMIZERS["momentum"]), more], "--model.optimizer.dampening=0.1")
    oracle = defaults(torch.optim.SGD, lr=0.1, momentum=0.8, weight_decay=0.9, dampening=0.1)
    assert defaults(lambda p, lr: made(p, lr), lr=0.1) == oracle


# Every other key that takes a class

LOGGED = {"monitor": "val/loss", "verbose": True, "mode": "max"}
KEYS = {
    "model.net": [
        ("project.nets.ConvNet", {"dropout": 0.4, "channels": [8]}),
        ("project.nets.ResNet9", {"dropout": 0.3, "widths": [8, 16]}),
        ("project.nets.ResNet", {"dropout": 0.2, "width": 16}),
    ],
    "model.schedule": [
        ("project.optim.Step", {"step_size": 3, "gamma": 0.4}),
        ("project.optim.MultiStep", {"milestones": [2], "gamma": 0.3}),
        ("project.optim.Plateau", {"monitor": "val/acc", "factor": 0.5}),
        ("torch.optim.lr_scheduler.StepLR", {"step_size": 4, "gamma": 0.7}),
        ("torch.optim.lr_scheduler.LinearLR", {"last_epoch": 3, "total_iters": 7}),
    ],
    "data.source": [
        ("project.data.MNIST", {"download": True}),
        ("project.data.CIFAR10", {"download": True}),
        ("project.data.Digits", {}),
    ],
    "trainer.callbacks": [
        ("lightning.pytorch.callbacks.EarlyStopping", LOGGED | {"patience": 9}),
        ("lightning.pytorch.callbacks.ModelCheckpoint", LOGGED | {"save_last": True}),
        ("lightning.pytorch.callbacks.LearningRateMonitor", {"log_momentum": True}),
    ],
}
PAIRS = [(key, *pair) for key, classes in KEYS.items() for pair in product(classes, classes) if pair[0] != pair[1]]


def own_defaults(class_path: str) -> dict:
    """Arguments of a class that have a default, from its signature."""
    module, _, name = class_path.rpartition(".")
    signature = inspect.signature(getattr(importlib.import_module(module), name).__init__)
    return {n: p.default for n, p in signature.parameters.items() if p.default is not p.empty}


def plain(value: Any) -> Any:
    """Tuples as lists, and parts of the configuration as dicts."""
    value = value.as_dict() if hasattr(value, "as_dict") else value
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(("key", "first", "second"), PAIRS)
def test_any_changed_class_has_no_argument_of_the_one_before(parse, key, first, second) -> None:
    (old, old_arguments), (new, new_arguments) = first, second
    required = {
        n: v for n, v in new_arguments.items() if n not in own_defaults(new)
    }  # the class cannot be built without
    listed = key == "trainer.callbacks"

    def entry(class_path: str, arguments: dict) -> dict:
        value = {"class_path": class_path, "init_args": arguments}
        return nested(key, [value] if listed else value)

    def found(files: list[dict], *options: str) -> dict:
        value = plain(parse(files, *options)[key])
        (value,) = value if listed else [value]
        assert value["class_path"] == new or value["class_path"].endswith("." + new.rpartition(".")[2])
        return value.get("init_args", {})

    for given in (required, new_arguments):
        expected = plain(own_defaults(new) | given)
        assert found([entry(old, old_arguments), entry(new, given)]) == expected
        if not listed:
            assert found([entry(old, old_arguments)], f"--{key}={new}", *spelt("", given, key)) == expected
            assert found([entry(old, old_arguments)], *spelt(".init_args", given, key), f"--{key}={new}") == expected
        else:
            assert (
                found([entry(old, old_arguments)], f"--{key}={json.dumps([{'class_path': new, 'init_args': given}])}")
                == expected
            )


@pytest.mark.parametrize("key", ["model.net", "model.schedule", "data.source"])
def test_the_same_class_again_keeps_its_arguments(parse, key) -> None:
    for class_path, arguments in KEYS[key]:
        again = nested(key, {"class_path": class_path})
        for files, options in (([again], ()), ([], (f"--{key}={class_path}",))):
            value = plain(
                parse([nested(key, {"class_path": class_path, "init_args": arguments}), *files], *options)[key]
            )
            assert value.get("init_args", {}) == plain(own_defaults(class_path) | arguments)


def test_appended_callbacks_keep_apart(parse) -> None:
    """What follows `callbacks+=` is that entry's; the one before is left as it is."""
    stop, keep = "lightning.pytorch.callbacks.EarlyStopping", "lightning.pytorch.callbacks.ModelCheckpoint"
    options = [f"--trainer.callbacks+={stop}", "--trainer.callbacks.monitor=val/acc", "--trainer.callbacks.mode=max"]
    options += [f"--trainer.callbacks+={keep}", "--trainer.callbacks.monitor=val/loss"]
    one, other = plain(parse([], *options)["trainer.callbacks"])
    assert one["init_args"] == plain(own_defaults(stop) | {"monitor": "val/acc", "mode": "max"})
    assert other["init_args"] == plain(own_defaults(keep) | {"monitor": "val/loss"})


# One learning rate


@pytest.mark.parametrize("optimizer", ["torch.optim.SGD", "torch.optim.Adadelta", "project.optim.SWATS"])
def test_a_rate_in_the_optimizer_names_model_lr(parse, optimizer) -> None:
    for files, options in (
        ([chosen(optimizer, {"lr": 0.1})], []),
        ([chosen(optimizer)], ["--model.optimizer.lr=0.1"]),
        ([chosen(optimizer)], ["--model.optimizer.init_args.lr", "0.1"]),
        ([], [f"--model.optimizer={optimizer}", "--model.optimizer.lr", "0.1"]),
        ([], ["--model.optimizer.lr", "0.1", f"--model.optimizer={optimizer}"]),
    ):
        with pytest.raises(UserError, match=r"model.optimizer: .*model.lr is the one learning rate") as caught:
            parse(files, *options)
        assert "\n" not in str(caught.value)
