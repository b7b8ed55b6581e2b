"""Precision and threads follow rules; the run keeps what was chosen; the network compiles in place."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
import yaml
from conftest import DIGITS, SMALL
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from project.classifier import ImageClassifier
from project.errors import UserError
from project.nets import ConvNet
from project.run import machine
from project.run.machine import Machine, Work, choose, precision_for, threads_for, work_of

LARGE = Work(30e9, 1.0, False)
ONE = ["fit", *DIGITS, *SMALL, "--trainer.max_epochs", "1"]


@pytest.mark.parametrize(
    ("device", "native", "work", "precision"),
    [
        ("cuda", True, LARGE, "bf16-mixed"),
        ("cuda", True, None, "bf16-mixed"),
        ("cuda", False, LARGE, "16-mixed"),
        ("mps", False, LARGE, "32-true"),
        ("cpu", False, LARGE, "32-true"),
        ("cpu", True, None, "32-true"),
        ("cpu", True, LARGE, "bf16-mixed"),
        ("cpu", True, LARGE._replace(depthwise=True), "32-true"),
        ("cpu", True, LARGE._replace(convolutions=0.1), "32-true"),  # a transformer
        ("cpu", True, LARGE._replace(flops=12e9), "bf16-mixed"),
        ("cpu", True, LARGE._replace(flops=1.2e9), "32-true"),
    ],
)
def test_the_precision_by_device_and_network(device, native, work, precision) -> None:
    assert precision_for(device, native, work)[0] == precision


def settings(precision: str | int | None, plugins: object = None, accelerator: str = "cpu") -> dict:
    return {"precision": precision, "plugins": plugins, "accelerator": accelerator}


def test_what_is_asked_for_stays(monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for asked in (16, "16-mixed"):
        assert choose(settings(asked), LARGE) == ("bf16-mixed", "16-mixed is for GPUs")
    for asked in ("64-true", "bf16-mixed"):
        assert choose(settings(asked), LARGE) == (asked, "")
    for free in ("auto", None):
        assert choose(settings(free), LARGE)[0] == "bf16-mixed"
    plugin = MixedPrecision("bf16-mixed", "cpu")
    for plugins in (plugin, [plugin]):
        assert choose(settings("auto", plugins), LARGE)[0] is None  # Lightning takes no precision beside it
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert choose(settings("auto"), LARGE)[0] == "32-true"
    precision, why = choose(settings("bf16-mixed"), LARGE)  # as another machine has chosen it
    assert precision == "bf16-mixed" and why.startswith("slow")


@pytest.mark.parametrize(("capabilities", "precision"), [([(7, 5), (9, 0)], "16-mixed"), ([(8, 0)], "bf16-mixed")])
def test_all_gpus_must_have_bfloat16(monkeypatch, capabilities, precision) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
    assert choose(settings("auto", accelerator="auto"), None)[0] == precision


@pytest.mark.parametrize(
    ("asked", "given", "kept", "flops", "threads"),
    [
        (None, {}, None, 0.01e9, 1),
        (None, {}, None, 30e9, 4),
        (None, {}, 2, 30e9, 2),
        (None, {}, 64, 30e9, 4),  # of a larger machine
        (None, {"OMP_NUM_THREADS": "3"}, None, 0.01e9, None),
        (None, {"MKL_NUM_THREADS": "3"}, 2, 30e9, None),
        (3, {"OMP_NUM_THREADS": "1"}, 2, 0.01e9, 3),
        (None, {}, None, None, 4),
    ],
)
def test_the_number_of_threads(monkeypatch, asked, given, kept, flops, threads) -> None:
    monkeypatch.setattr(machine, "OWN_THREADS", 4)
    assert threads_for(asked, given, kept, flops and Work(flops, 1.0, False)) == threads


def classifier(net: object, size: int = 32) -> ImageClassifier:
    return ImageClassifier(net, ["a", "b", "c"], 3, size)


def counted(net: nn.Module, size: int) -> float:
    """By hooks: 2 x outputs x what each sums over."""
    total = []

    def note(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        total.append(2 * output.numel() * module.weight[0].numel())

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(note)
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, size, size))
    return sum(total)


@pytest.mark.parametrize(
    ("make", "depthwise"),
    [
        (lambda c, n, s: ConvNet(c, n, s, channels=[8, 16]), False),
        (lambda c, n, s: torchvision.models.resnet18(num_classes=n), False),
        (lambda c, n, s: torchvision.models.regnet_x_400mf(num_classes=n), False),  # groups of channels
        (lambda c, n, s: torchvision.models.mobilenet_v3_small(num_classes=n), True),
    ],
)
def test_the_work_is_counted_and_nothing_changes(make, depthwise) -> None:
    model, generator = classifier(make), torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    work = work_of(model, 5)
    assert work.flops == pytest.approx(5 * counted(model.net, 32)) and work.depthwise == depthwise
    assert 0.7 < work.convolutions <= 1
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Odd(nn.Linear):
    """Cannot run without values, and draws."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        torch.rand(3)
        return super().forward(images.mean((1, 2, 3), keepdim=True)[:, 0, 0] * float(images.max()))


def test_a_network_that_cannot_be_counted() -> None:
    model, generator = classifier(lambda c, n, s: Odd(1, n)), torch.get_rng_state()
    assert work_of(model, 5) is None and torch.equal(generator, torch.get_rng_state())


def test_the_run_keeps_what_was_chosen(cli, workdir, monkeypatch) -> None:
    """And validates in it; also on a processor on which it would not be chosen, which is said."""
    for name in machine.THREADS:
        monkeypatch.delenv(name, raising=False)
    number = [1]  # of threads; no real ones, which would wait for one another on a busy machine
    monkeypatch.setattr(torch, "get_num_threads", lambda: number[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda value: number.__setitem__(0, value))
    monkeypatch.setattr(machine, "OWN_THREADS", 2)
    monkeypatch.setattr(machine, "THREADS_FROM", 0.0)
    monkeypatch.setattr(machine, "BF16_FROM", 0.0)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    fit = cli(*ONE, "--trainer.precision", "auto", "--trainer.accelerator", "cpu")
    assert fit.code == 0, fit.err
    assert "precision bf16-mixed (auto: " in fit.out and "channels last, threads 2" in fit.out
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(machine, "THREADS_FROM", 1e12)
    kept = yaml.safe_load(Path("runs/digits/version_0/config.yaml").read_text())
    assert kept["trainer"]["precision"] == "bf16-mixed"
    again = cli("validate", "--ckpt_path", "best")
    assert again.code == 0 and "precision bf16-mixed: slow" in again.out
    loss = re.search(r"val/loss (\S+)", fit.out)[1]
    assert re.search(r"^loss +(\S+)$", again.out, re.MULTILINE)[1] == loss and number == [1]
    resumed = cli("fit", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert "precision bf16-mixed (slow" in resumed.out and "channels last, threads 2" in resumed.out
    other = cli("validate", "--ckpt_path", "best", "--trainer.precision", "32-true")
    assert other.code == 0 and "precision" not in other.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--trainer.precision=quick"], "trainer.precision: expected one of 'auto' or"),
        (["--machine.threads=0"], "machine.threads: must be above 0, not 0"),
        (["--machine.compile=often"], "machine.compile: expected true or false, not often"),
    ],
)
def test_bad_settings_are_one_line(cli, options, words) -> None:
    result = cli(*ONE, *options)
    assert result.code == 2 and words in result.err and result.err.count("\n") == 1, result.err
    assert not Path("runs").exists()


def test_compiling_is_for_training(cli, trained) -> None:
    result = cli("validate", "--ckpt_path", "best", "--machine.compile", "true")
    assert result.code == 2 and result.err == "error: machine.compile has no effect on validate: leave it out\n"


def test_without_a_compiler(cli, workdir, monkeypatch) -> None:
    def compile_(self: nn.Module) -> None:
        raise torch._dynamo.exc.TorchDynamoException("No working C++ compiler found\n")

    monkeypatch.setattr(nn.Module, "compile", compile_)
    result = cli(*ONE, "--machine.compile", "true")
    assert result.code == 2 and result.err.count("\n") == 1
    assert "machine.compile" in result.err and "No working C++ compiler" in result.err


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(cli, workdir) -> None:
    """The checkpoint has the same tensors, the same loss to rounding; all commands read it; an average follows."""
    saved = []
    for compiled in ("false", "true"):
        result = cli(*ONE, "--machine.compile", compiled, "--trainer.callbacks+", "project.run.EMA")
        assert result.code == 0, result.err
        assert ("compiled" in result.out) == (compiled == "true")
        saved.append(torch.load(f"runs/digits/version_{len(saved)}/checkpoints/last.ckpt", weights_only=True))
    plain, compiled = (each["state_dict"] for each in saved)
    assert list(plain) == list(compiled)
    losses = [each["callbacks"]["BestAndLast"]["metrics"]["train/loss"] for each in saved]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # Adam enlarges what rounding does to single weights
    assert cli("test", "--ckpt_path", "best").code == 0
    assert cli("fit", "--ckpt_path", "last", "--machine.compile", "false", "--trainer.max_epochs", "2").code == 0


def test_ranks_of_different_precision_stop() -> None:
    strategy = SimpleNamespace(broadcast=lambda value: "bf16-mixed", reduce_boolean_decision=lambda same: same)
    trainer = SimpleNamespace(strategy=strategy, precision="32-true")
    with pytest.raises(UserError, match="precision"):
        Machine(None, "").on_fit_start(trainer, None)


def test_the_users_variables_are_said(capsys, monkeypatch) -> None:
    for name in (*machine.THREADS, *machine.WAITING):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    monkeypatch.setattr(machine, "crowded", lambda: False)
    strategy = SimpleNamespace(broadcast=lambda value: value, reduce_boolean_decision=lambda same: same)
    trainer = SimpleNamespace(strategy=strategy, precision="32-true", world_size=3)
    threads = torch.get_num_threads()
    module = Machine(Work(1.0, 1.0, False), "")
    module.load_state_dict({"threads": threads + 1})
    module.on_fit_start(trainer, classifier(lambda c, n, s: Odd(1, n)))
    assert capsys.readouterr().out.splitlines() == [
        "device     3 x cpu, precision 32-true",
        f"           channels last, threads {threads}, MKL_NUM_THREADS 7, OMP_WAIT_POLICY PASSIVE",
    ]
