"""Freezing and unfreezing in real runs: nothing frozen moves, resume and several processes change nothing, A20."""

import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
import torchvision
from conftest import DIGITS, ROOT, SMALL, make_folder, slow_but
from torch import nn

from project.classifier import ImageClassifier
from project.data import ImageDataModule
from project.nets import ConvNet
from project.optim import Freeze

FIT = ["fit", *DIGITS, *SMALL, "--model.net.init_args.dropout", "0.2", "--trainer.max_epochs", "4"]
STAGES = ["--model.freeze.until", "1", "--model.freeze.every", "1"]
MOVER = """
import lightning as L, torch
class Move(L.Callback):
    def __init__(self, name: str, epoch: int = 0):
        self.name, self.epoch = name, epoch
    def on_train_batch_end(self, trainer, model, *_):
        if trainer.current_epoch == self.epoch:
            tensor = {**dict(model.net.named_parameters()), **dict(model.net.named_buffers())}[self.name]
            with torch.no_grad():
                tensor.view(-1)[0] = torch.nextafter(tensor.view(-1)[0], torch.tensor(9.0))
class Sums(L.Callback):
    def on_train_end(self, trainer, model):
        torch.save(model.net.state_dict(), f"rank{trainer.global_rank}.pt")
"""


def net_of(folder: Path, name: str = "last", run: str = "runs/digits/version_0") -> dict[str, torch.Tensor]:
    state = torch.load(folder / run / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]
    return {key.removeprefix("net."): value for key, value in state.items() if key.startswith("net.")}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_a_frozen_resnet18_after_three_epochs(cli, folder, workdir) -> None:
    """With batch norm, and augmentation by configs/data/folder.yaml: parameters and buffers bit by bit."""
    before = torchvision.models.resnet18().state_dict()
    torch.save(before, "resnet18.pth")
    part = ["--model", ROOT / "configs/model/feature_extractor.yaml", "--model.net.init_args.name", "resnet18"]
    options = ["--data.root", folder, "--data.image_size", "32", "--data.batch_size", "16", "--trainer.max_epochs", "3"]
    result = cli(
        "fit", "--config", ROOT / "configs/feature_extractor.yaml", *part, *options, "--model.weights", "resnet18.pth"
    )
    assert result.code == 0, result.err
    after = net_of(workdir, run="runs/feature_extractor/version_0")
    for name, value in before.items():
        if not name.startswith("fc."):
            assert torch.equal(after[f"backbone.{name}"], value), name
    assert "unchanged by their checksums" in result.out and "0 trainable" not in result.out
    assert not torch.allclose(after["head.weight"], torch.zeros(()))


class Modes(L.Callback):
    """Which modules are in training mode at each batch, and which parameters are to have a gradient."""

    def __init__(self) -> None:
        self.training: dict[int, set[str]] = {}
        self.free: dict[int, set[str]] = {}
        self.states: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.states[trainer.current_epoch] = {name: value.clone() for name, value in pl_module.net.state_dict().items()}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        named = pl_module.net.named_modules()
        self.training[trainer.current_epoch] = {name for name, module in named if module.training}
        self.free[trainer.current_epoch] = {name for name, p in pl_module.net.named_parameters() if p.requires_grad}

    def on_train_end(self, trainer, pl_module) -> None:
        self.states[trainer.current_epoch] = {name: value.clone() for name, value in pl_module.net.state_dict().items()}


def test_stage_by_stage(cli, monkeypatch) -> None:
    from project.cli import CLI

    modes, real = Modes(), CLI._instantiate_trainer
    monkeypatch.setattr(CLI, "_instantiate_trainer", lambda self, config, calls: real(self, config, [*calls, modes]))
    result = cli(*FIT, *STAGES)
    assert result.code == 0, result.err
    assert re.findall(r"unfrozen from epoch (\d): (.*)", result.out) == [("2", "stages.1"), ("3", "stages.0")]
    awake = [{"head"}, {"head", "stages.1"}, {"head", "stages.1", "stages.0"}, {"head", "stages.1", "stages.0"}]
    for epoch, parts in enumerate(awake):
        belonging = {name for name in modes.states[0] if name.startswith(tuple(parts))}
        assert modes.free[epoch] == {name for name in belonging if not re.search("running|tracked", name)}
        norms = {name for name in modes.training[epoch] if name.endswith(".norm")}
        assert norms == {f"{part}.0.norm" for part in parts if part.startswith("stages")}
        assert "dropout" in modes.training[epoch]  # it owns nothing that could be frozen
        moved = differing(modes.states[epoch], modes.states[epoch + 1])
        assert moved == belonging


@pytest.mark.parametrize(
    "name", slow_but(["stages.0.0.conv.weight", "stages.1.0.norm.running_mean"], "stages.1.0.norm.running_mean")
)
def test_the_audit_finds_the_last_bit(cli, workdir, monkeypatch, name) -> None:
    (workdir / "mover.py").write_text(MOVER)
    monkeypatch.syspath_prepend(workdir)
    monkeypatch.delitem(sys.modules, "mover", raising=False)
    mover = ["--trainer.callbacks+=mover.Move", f"--trainer.callbacks.name={name}"]
    result = cli(*FIT, "--model.freeze", "project.optim.Freeze", *mover, "--trainer.callbacks.epoch=3")
    assert result.code == 2 and result.err.count("\n") == 1
    assert "1 frozen tensors have changed" in result.err and name in result.err
    # the same in a run that is gone on with: the checksums come from its beginning
    (workdir / "two").mkdir()
    monkeypatch.chdir(workdir / "two")
    quiet = ["--model.freeze.until", "3", "--trainer.max_epochs", "2"]
    assert cli(*FIT, *quiet).code == 0
    result = cli("fit", "--ckpt_path", "last", "--trainer.max_epochs", "4", *mover, "--trainer.callbacks.epoch=2")
    assert result.code == 2 and name in result.err, result


class Stop(L.Callback):
    def __init__(self, epoch: int, batch: int | None) -> None:
        self.epoch, self.batch = epoch, batch

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if self.batch is None and trainer.current_epoch == self.epoch:
            self.epoch = -1
            os.kill(os.getpid(), signal.SIGINT)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            self.epoch = -1
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("averaged", [False, True])
def test_resume_on_either_side_of_the_unfreeze(cli, workdir, monkeypatch, averaged) -> None:
    from project.cli import CLI

    options = [*FIT, *STAGES, "--model.stem_lr", "0.7", *(["--trainer.callbacks+=project.run.EMA"] if averaged else [])]
    assert cli(*options).code == 0
    whole, real = net_of(workdir), CLI._instantiate_trainer
    for epoch, batch in ((0, 5), (0, 17), (1, None), (1, 0), (2, 3), (3, 5)):
        place = workdir / f"{epoch}-{batch}"
        place.mkdir()
        monkeypatch.chdir(place)
        stop = Stop(epoch, batch)
        with monkeypatch.context() as patch:
            patch.setattr(
                CLI, "_instantiate_trainer", lambda self, config, calls, stop=stop: real(self, config, [*calls, stop])
            )
            assert cli(*options).code == 130
        result = cli("fit", "--ckpt_path", "last")
        assert result.code == 0, result.err
        assert not differing(whole, net_of(place)), (epoch, batch)


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_groups_made_up_front_equal_add_param_group(tmp_path, kind) -> None:
    """A20: a loop of plain torch, whose optimizer gets the backbone only when it is unfrozen."""
    root = make_folder(tmp_path / "few", {"blue": 25, "red": 25})
    make_net = partial(ConvNet, channels=[4, 8])
    arguments = {"weight_decay": 0.1, **({"momentum": 0.9} if kind == "SGD" else {})}
    make = getattr(torch.optim, kind)
    data = ImageDataModule(str(root), image_size=8, batch_size=12, seed=3)
    torch.manual_seed(5)
    options = {"optimizer": lambda groups, lr: make(groups, lr=lr, **arguments), "lr_mult": {"^head": 10}, "lr": 0.01}
    model = ImageClassifier(make_net, data.class_names, image_size=8, freeze=Freeze(until=1), **options)
    torch.manual_seed(5)
    twin = ImageClassifier(make_net, data.class_names, image_size=8)
    assert not differing(model.net.state_dict(), twin.net.state_dict())
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    batches: list[dict] = []

    class Keep(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            batches.append({"epoch": trainer.current_epoch, **batch})

    L.Trainer(
        accelerator="cpu", max_epochs=3, num_sanity_val_steps=0, limit_val_batches=0, callbacks=[Keep()], **off
    ).fit(model, data)
    optimizer = make(twin.net.head.parameters(), lr=0.1, fused=True, **arguments)
    twin.net.stages.requires_grad_(False)
    for batch in batches:
        if batch["epoch"] == 1 and len(optimizer.param_groups) == 1:
            twin.net.stages.requires_grad_(True)
            optimizer.add_param_group({"params": list(twin.net.stages.parameters()), "lr": 0.01})
        twin.net.train()
        twin.net.stages.train(batch["epoch"] > 0)
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(batch["image"]), batch["label"]).backward()
        optimizer.step()
    assert len(batches) == 9 and not differing(model.net.state_dict(), twin.net.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("stages", [["--model.freeze.until", "1"], STAGES], ids=["at once", "stage by stage"])
def test_two_processes_are_one_after_the_unfreeze(workdir, stages) -> None:
    (workdir / "mover.py").write_text(MOVER)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MASTER_", "LOCAL_", "NODE_", "WORLD_"))
    }
    environment = {**inherited, "PYTHONPATH": f"{ROOT}{os.pathsep}{workdir}", "OMP_NUM_THREADS": "1"}
    ddp = [
        "--trainer",
        str(ROOT / "configs/trainer/ddp.yaml"),
        "--trainer.accelerator",
        "cpu",
        "--trainer.devices",
        "2",
    ]
    command = [sys.executable, "-m", "project", *FIT, *ddp, *stages, "--trainer.callbacks+=mover.Sums"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [torch.load(workdir / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    statistics = {
        name for name in ranks[0] if re.search("running|tracked", name)
    }  # of each rank's own images, by DDP's design
    assert differing(*ranks) <= statistics
    assert done.stdout.count("unfrozen from epoch 2") == 1


def test_bad_input(cli, workdir) -> None:
    torch.save(torchvision.models.squeezenet1_0().state_dict(), "other.pth")
    for options, words in (
        (["--model.freeze.layers", "."], "would freeze everything"),
        (["--model.weights", "other.pth"], "nothing in other.pth fits ConvNet"),
        (["--model.freeze.until", "0"], "until: must be above 0, not 0"),
    ):
        result = cli(*FIT, *options)
        assert result.code == 2 and result.err.count("\n") == 1 and words in result.err, result.err
