"""SWATS on the command line: what its switches print and log, the learning rates, and the same after a stop."""

import re
from types import SimpleNamespace

import pytest
import torch
from conftest import DIGITS, SMALL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from project.optim import SWATS
from project.run.switch import SwitchLine

EPOCHS, STEPS, LR = 3, 18, 0.02  # 1,151 images in batches of 64
FIT = [
    "fit",
    *DIGITS,
    *SMALL,
    "--model.net.init_args.dropout=0.2",
    "--model.lr_mult={head: 1}",
    f"--trainer.max_epochs={EPOCHS}",
]
SCHEDULES = {  # with a tolerance at which both groups switch in the middle of the run, on any number of threads
    "step": ["--model.schedule=project.optim.Step", "--model.schedule.init_args={step_size: 1, gamma: 0.5}", "0.02"],
    "one cycle": ["--model.schedule=project.optim.OneCycle", "0.01"],
}
STOP = """
from lightning import Callback
class Stop(Callback):
    def __init__(self, step: int): self.step = step
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step: raise KeyboardInterrupt
"""


def options(schedule: str) -> list[str]:
    *choice, tolerance = SCHEDULES[schedule]
    return [*choice, "--model.optimizer=project.optim.SWATS", f"--model.optimizer.switch_tol={tolerance}"]


def scalars() -> dict[str, list]:
    events = EventAccumulator("runs/digits/version_0")
    events.Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


def last() -> dict:
    return torch.load("runs/digits/version_0/checkpoints/last.ckpt", weights_only=True)


def told(out: str) -> dict[str, tuple[int, float]]:
    """group -> step and projected rate, from the printed lines; each group once."""
    lines = re.findall(
        r"^SWATS: group (\w+) switches to SGD after (\d+) steps, projected learning rate (\S+)$", out, re.MULTILINE
    )
    assert len(lines) == len({name for name, *_ in lines})
    return {name: (int(step), float(rate)) for name, step, rate in lines}


def factors(schedule: str) -> list[float]:
    """Torch's own, at the last step of each epoch."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler
    cycle = torchs.OneCycleLR(optimizer, 1.0, EPOCHS * STEPS, cycle_momentum=False) if schedule == "one cycle" else None
    scheduler = cycle or torchs.StepLR(optimizer, STEPS, 0.5)
    found = []
    for _ in range(EPOCHS * STEPS):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found[STEPS - 1 :: STEPS]


@pytest.mark.parametrize(
    ("schedule", "place"),
    [
        ("step", "between"),
        pytest.param("step", "before", marks=pytest.mark.slow),
        pytest.param("one cycle", "between", marks=pytest.mark.slow),
        pytest.param("one cycle", "after", marks=pytest.mark.slow),
    ],
)
def test_switches_are_said_logged_in_force_and_survive_a_stop(cli, workdir, monkeypatch, schedule, place) -> None:
    """Stopped between the switches of the two groups, before both or after both."""
    (workdir / "stop_swats.py").write_text(STOP)
    monkeypatch.syspath_prepend(workdir)

    def fit(name: str, *more: str):
        (workdir / name).mkdir()
        monkeypatch.chdir(workdir / name)
        return cli(*FIT, *options(schedule), *more)

    result = fit("whole")
    assert result.code == 0 and result.err == "" and "never switched" not in result.out
    switches, whole, logged = told(result.out), last(), scalars()
    groups = {group["name"]: group for group in whole["optimizer_states"][0]["param_groups"]}
    assert set(switches) == set(groups) == {"head", "rest"}
    for name, (step, rate) in switches.items():
        assert (groups[name]["switch_step"], f"{groups[name]['projected_rate']:.4g}") == (step, f"{rate:.4g}")
        for key in ("switch_step", "projected_rate"):
            (event,) = logged[f"swats/{name}/{key}"]
            assert event.step == step and event.value == pytest.approx(groups[name][key])
        base = [
            0.1 * groups[name]["projected_rate"] if STEPS * (epoch + 1) > step else LR for epoch in range(EPOCHS)
        ]  # 1 - beta1
        expected = [rate * factor for rate, factor in zip(base, factors(schedule), strict=True)]
        assert [event.value for event in logged[f"lr/{name}"]] == pytest.approx(expected, rel=1e-4)

    first, second = sorted(step for step, _ in switches.values())
    assert 2 < first < second < EPOCHS * STEPS - 2
    step = {"before": first - 1, "between": first, "after": second + 1}[place]
    stopped = fit("stopped", "--trainer.callbacks+=stop_swats.Stop", f"--trainer.callbacks.step={step}")
    resumed = cli("fit", "--ckpt_path", "last")
    assert (stopped.code, resumed.code) == (130, 0), resumed.err
    parts = last()
    assert all(torch.equal(parts["state_dict"][name], value) for name, value in whole["state_dict"].items())
    again = parts["optimizer_states"][0]["param_groups"]
    assert [group["projected_rate"] for group in again] == [group["projected_rate"] for group in groups.values()]
    early, late = told(stopped.out), told(resumed.out)  # every switch is said once, by the one or the other
    assert early | late == switches and not early.keys() & late.keys()
    assert all(len(scalars()[f"swats/{name}/switch_step"]) == 1 for name in switches)


@pytest.mark.slow
def test_groups_that_never_switched_are_named(cli, workdir) -> None:
    result = cli(*FIT, "--model.optimizer=project.optim.SWATS", "--trainer.max_epochs=1")
    assert result.code == 0 and told(result.out) == {}
    assert "SWATS: 2 of 2 groups never switched to SGD, e.g. rest; raise switch_tol" in result.out
    assert not [tag for tag in scalars() if tag.startswith("swats/")]


def trainer(*switches: int | None, steps: int = 9, optimizer: type = SWATS) -> SimpleNamespace:
    """After so many steps; the groups switched at these."""
    groups = [{"name": f"group_{i}", "params": [nn.Parameter(torch.zeros(1))]} for i in range(len(switches))]
    optimizer = optimizer(groups)
    for group, step in zip(optimizer.param_groups, switches, strict=True):
        group.update(steps=steps, switch_step=step, projected_rate=None if step is None else 0.5)
    return SimpleNamespace(optimizers=[optimizer], loggers=[], global_step=steps, accumulate_grad_batches=2)


def said(capsys, trainer: SimpleNamespace, batch: int) -> list[str]:
    SwitchLine().on_train_batch_start(trainer, None, None, batch)
    return capsys.readouterr().out.splitlines()


def test_a_switch_is_said_once_before_the_next_step(capsys) -> None:
    """Two batches make a step here. Another process, which resumes the run in between, says the same."""
    line = "SWATS: group group_1 switches to SGD after 9 steps, projected learning rate 0.5"
    for _ in range(2):
        assert said(capsys, trainer(4, 9, None), batch=18) == [line]
    assert said(capsys, trainer(4, 9, None), batch=19) == said(capsys, trainer(4, 9, None, steps=10), batch=20) == []


@pytest.mark.parametrize(
    ("switches", "words"),
    [((1, 2), None), ((1, None), "1 of 2 groups never switched to SGD"), ((9, None), "group_0 switches to SGD")],
)
def test_the_words_at_the_end(capsys, switches, words) -> None:
    SwitchLine().on_train_end(trainer(*switches))
    out = capsys.readouterr().out
    assert out == "" if words is None else words in out


def test_other_optimizers_have_nothing_to_say(capsys) -> None:
    run = trainer(1, optimizer=torch.optim.Adam)
    assert said(capsys, run, batch=0) == []
    SwitchLine().on_train_end(run)
    assert capsys.readouterr().out == ""
