"""Each remark exactly when it is due, and only once."""

import json
import math
import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from project.optim.advice import USUAL_RATES, advise

USUAL = {"batch": 64, "optimizer": "SGD", "rate": 0.1, "decays": True}
DEFAULTS = {"Adam": 1e-3, "AdamW": 1e-3, "SGD": 1e-3, "RMSprop": 1e-2, "Adagrad": 1e-2, "Adadelta": 1.0, "NAdam": 2e-3}


def remarks(**changes) -> list[str]:
    return advise(**USUAL | changes)


@pytest.mark.parametrize("optimizer", DEFAULTS)
@pytest.mark.parametrize("batch", [16, 17, 32, 100, 4096])
def test_none_for_pytorchs_defaults(optimizer, batch) -> None:
    assert remarks(optimizer=optimizer, rate=DEFAULTS[optimizer], batch=batch) == []


@pytest.mark.parametrize(("batch", "words"), [(1, "batch size 1 is small: below 16"), (15, "batch size 15 is small")])
def test_batch(batch, words) -> None:
    (found,) = remarks(batch=batch)
    assert re.search(words, found)


@pytest.mark.parametrize("optimizer", USUAL_RATES)
def test_rate(optimizer) -> None:
    low, high = USUAL_RATES[optimizer]
    for rate in (low, high, math.sqrt(low * high)):
        assert remarks(optimizer=optimizer, rate=rate) == []
    for rate in (math.nextafter(low, 0), math.nextafter(high, 9), low / 10, 10 * high):
        (found,) = remarks(optimizer=optimizer, rate=rate)
        assert f"rate {rate:g} is unusual for {optimizer}; usual: {low:g} to {high:g}" in found


def test_an_optimizer_of_ones_own_may_have_any_rate() -> None:
    assert remarks(optimizer="Mine", rate=1e-9) == remarks(optimizer="Mine", rate=1e6) == []


FLAGS = {
    "decays": "does not decay",
    "shuffled": "not shuffled",
    "seeded": "no seed",
    "frozen_at_random": "random weights",
}


@pytest.mark.parametrize("flag", FLAGS)
def test_flags(flag) -> None:
    (found,) = remarks(**{flag: flag == "frozen_at_random"})
    assert FLAGS[flag] in found and "\n" not in found


def test_an_average_over_much_of_the_run() -> None:
    assert remarks(averaged=0.2) == []
    (found,) = remarks(averaged=0.21)
    assert "EMA's decay reaches back over 21% of the run's steps" in found


# From the command line


@pytest.fixture
def fit(cli, folder, tiny_net, workdir):
    def run(*arguments: str) -> list[str]:
        result = cli("fit", "--data.root", folder, *tiny_net, *arguments)
        assert result.code == 0, result.err
        return [line.removeprefix("advice").strip() for line in result.out.splitlines() if line.startswith("advice")]

    return run


def test_printed_once_and_kept(fit, cli, workdir, monkeypatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)  # of a test before, in this process
    odd = [
        "--data.batch_size",
        "12",
        "--model.lr",
        "0.5",
        "--model.lr_mult",
        "{head: 10}",
        "--seed_everything",
        "false",
    ]
    odd += ["--data.sampler", "sequential", "--model.freeze", "project.optim.Freeze"]
    found = fit(*odd, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2")
    assert found == advise(12, "AdamW", 5.0, decays=True, shuffled=False, seeded=False, frozen_at_random=True)
    run = workdir / "runs" / "fit" / "version_0"
    assert json.loads((run / "run.json").read_text())["advice"] == found
    events = EventAccumulator(str(run))
    events.Reload()
    (text,) = events.Tensors("advice/text_summary")
    assert text.tensor_proto.string_val[0].decode().splitlines() == [f"- {line}" for line in found]

    result = cli("fit", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert result.code == 0 and "advice" not in result.out
    assert json.loads((run / "run.json").read_text())["advice"] == found


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    [
        ["project.optim.Plateau"],
        ["lightning.pytorch.cli.ReduceLROnPlateau", "--model.schedule.init_args.monitor", "val/loss"],
    ],
)
def test_a_usual_run_has_none(fit, workdir, schedule) -> None:
    assert fit("--data.batch_size", "16", "--trainer.max_epochs", "2", "--model.schedule", *schedule) == []
    assert json.loads((workdir / "runs" / "fit" / "version_0" / "run.json").read_text())["advice"] == []
