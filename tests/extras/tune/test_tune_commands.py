"""`lr_find` and `batch_find`: what they write, print and refuse; running out of memory."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import DIGITS, SMALL
from hypothesis import given, settings
from hypothesis import strategies as st

from project.cli import parse
from project.extras.tune import measure
from project.extras.tune.batch_find import recommend

LR, BATCH = ["lr_find", *DIGITS, *SMALL], ["batch_find", *DIGITS, *SMALL]


@pytest.fixture
def child(monkeypatch):
    """Stands in for the process that trains: its exit code, stderr and result; the configurations that it got."""
    configs = []

    def replace(code: int = 0, stderr: str = "", result=None) -> list[dict]:
        def run(command, stdout, stderr: object = None) -> tuple[int, int]:
            config = parse(command[-2:])  # as the fit that is started would
            configs.append(config)
            stderr.write(said)
            if result is not None:
                out = config["trainer"]["callbacks"][0]["init_args"]["out"]
                Path(out).write_text(json.dumps(result(config) if callable(result) else result))
            return code, 0

        said = stderr
        monkeypatch.setattr(measure, "run_to_the_end", run)
        return configs

    return replace


def curve(losses: list[float], **changes) -> dict:
    return {"losses": losses, "optimizer": "AdamW", "scaling": 1.0, "batch": 64} | changes


FALL = [2.3] * 40 + [2.0, 1.5, 1.0] + [0.5] * 37 + [2.0, 20.0]  # low up to step 80 of 100


def test_lr_find_writes_a_config_for_fit(cli, workdir, child) -> None:
    configs = child(result=curve(FALL))
    options = ["--model.schedule=project.optim.Cosine", "--model.warmup=1", "--trainer.callbacks+=project.run.EMA"]
    result = cli(*LR, *options, "--out", "found.yaml")
    assert result.code == 0, result.err
    assert sorted(path.name for path in workdir.iterdir()) == ["found.png", "found.yaml"]
    (config,) = configs
    assert config["model"]["schedule"] is None and config["model"]["warmup"] == 0
    assert config["trainer"]["limit_val_batches"] == 0 and config["trainer"]["max_steps"] == 100
    assert [callback["class_path"] for callback in config["trainer"]["callbacks"]] == [
        "project.extras.tune.record.StepRecord"
    ]
    rates = config["trainer"]["callbacks"][0]["init_args"]["rates"]
    assert len(rates) == 100 and rates[0] == pytest.approx(1e-6) and rates[-1] == pytest.approx(10)
    found = yaml.safe_load((workdir / "found.yaml").read_text())
    assert found == {"model": {"lr": pytest.approx(rates[79] / 10, rel=0.5)}}
    assert "without schedule, warm-up and callbacks" in result.out and "--config found.yaml" in result.out


@pytest.mark.parametrize("until", [None, 1])
def test_layers_that_wait_for_an_epoch_train_from_the_start(cli, workdir, child, until) -> None:
    config = child(result=curve(FALL))
    freeze = ["--model.freeze=project.optim.Freeze", *([f"--model.freeze.until={until}"] if until else [])]
    assert cli(*LR, *freeze).code == 0
    assert (config[0]["model"]["freeze"] is None) == (until is not None)


@pytest.mark.parametrize("losses", [[2.3] * 100, []])
def test_without_a_descent_there_is_a_figure_and_no_config(cli, workdir, child, losses) -> None:
    child(result=curve(losses))
    result = cli(*LR)
    assert result.code == 1 and "lr.yaml was not written" in result.out
    assert [path.name for path in workdir.iterdir()] == ["lr.png"]


@pytest.mark.parametrize(("optimizer", "scaling", "expected"), [("SGD", 2.0, 0.25), ("Mine", 1, 1)])
def test_without_an_edge_it_is_the_highest_usual_rate(cli, workdir, child, optimizer, scaling, expected) -> None:
    child(result=curve([2.3] * 40 + [1.0] * 60, optimizer=optimizer, scaling=scaling))
    result = cli(*LR)
    assert result.code == 0 and yaml.safe_load((workdir / "lr.yaml").read_text())["model"]["lr"] == expected
    assert ("the highest usual for" in result.out) == (optimizer != "Mine")


BAD = [
    (["--steps", "9"], "steps of 10 or more"),
    (["--min_lr", "0.1", "--max_lr", "0.5"], "at least 10 times min_lr"),
    (["--out", "nowhere/lr.yaml"], "there is no folder"),
]


@pytest.mark.parametrize(("option", "words"), BAD)
def test_bad_input_of_lr_find_is_one_line(cli, workdir, option, words) -> None:
    result = cli(*LR, *option)
    assert result.code == 2 and words in result.err and len(result.err.splitlines()) == 1
    assert not list(workdir.iterdir())


def test_an_error_of_the_training_is_one_line(cli, workdir, child) -> None:
    child(2, "a warning\nerror: model.lr_mult: 'nothing' applies to none of the parameters\n")
    for command in (LR, BATCH):
        result = cli(*command)
        assert result.code == 2 and result.err == "error: model.lr_mult: 'nothing' applies to none of the parameters\n"


# Batch size


def timed(config: dict) -> dict:
    size = config["data"]["batch_size"]
    return {"speeds": [1.0, *[100.0 * min(size, 32)] * 5], "memory": 10**9, "images": 1151}


def test_batch_find_writes_a_config_for_fit(cli, workdir, child) -> None:
    configs = child(result=timed)
    result = cli(*BATCH, "--steps", "3", "--trainer.devices", "2", "--memory_limit", "4")
    assert result.code == 0, result.err
    assert [config["data"]["batch_size"] for config in configs] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert all(config["trainer"]["devices"] == 1 and config["trainer"]["max_steps"] == 4 for config in configs)
    assert configs[0]["trainer"]["callbacks"][0]["init_args"]["memory_limit"] == 4
    assert yaml.safe_load((workdir / "batch.yaml").read_text()) == {"data": {"batch_size": 32}}
    assert "recommend  32: the smallest from 16 to 64 with 90% of their highest speed" in result.out


@pytest.mark.parametrize(
    ("code", "stderr"),
    [(-9, ""), (1, "RuntimeError: can't allocate memory"), (1, "torch.OutOfMemoryError: CUDA out of memory")],
)
def test_running_out_of_memory_is_survived(cli, workdir, child, code, stderr) -> None:
    child(code, stderr)
    result = cli(*BATCH)
    assert result.code == 1 and "8  out of memory" in result.out and "no batch size fits" in result.out
    assert not list(workdir.iterdir())
    result = cli(*LR)
    assert result.code == 2 and "try a smaller data.batch_size" in result.err


@pytest.mark.parametrize(
    ("option", "words"), [(["--min_batch=0"], "min_batch"), (["--memory_limit=-1"], "memory_limit")]
)
def test_bad_input_of_batch_find_is_one_line(cli, workdir, option, words) -> None:
    result = cli(*BATCH, *option)
    assert result.code == 2 and words in result.err and len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("speeds", "images", "batch"),
    [
        ({8: 100, 16: 200, 32: 390, 64: 400}, 10_000, 32),
        ({8: 100, 16: 395, 32: 390, 64: 400}, 10_000, 16),
        ({64: 100, 128: 200, 256: 300, 512: 900}, 100_000, 256),  # 512 is above 256
        ({16: 100, 32: 300, 64: 900}, 400, 32),  # ten steps an epoch
        ({4: 100, 8: 300}, 10_000, 8),  # nothing from 16 up
        ({16: 100, 32: 300}, 50, 16),
    ],
)
def test_the_rule(speeds, images, batch) -> None:
    assert recommend(speeds, images, 1)[0] == batch


@settings(max_examples=50)
@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=10), st.integers(0, 5), st.integers(1, 10**6))
def test_nothing_smaller_is_as_good(values, first, images) -> None:
    speeds = {2 ** (first + i): speed for i, speed in enumerate(values)}
    chosen, why = recommend(speeds, images, 1)
    good = {size: speed for size, speed in speeds.items() if 16 <= size <= 256 and 10 * size <= images}
    assert chosen in speeds and why
    if good:
        assert chosen == min(size for size, speed in good.items() if speed >= 0.9 * max(good.values()))


# With real processes


@pytest.mark.slow
def test_the_learning_rate_of_the_digits(cli, workdir) -> None:
    assert cli(*LR, "--steps", "40", "--min_lr", "1e-5").code == 0
    assert 1e-4 < yaml.safe_load((workdir / "lr.yaml").read_text())["model"]["lr"] < 0.1


@pytest.mark.slow
def test_real_sizes_and_a_real_limit(cli, workdir) -> None:
    result = cli(*BATCH, "--min_batch", "64", "--max_batch", "128", "--steps", "2")
    assert result.code == 0 and yaml.safe_load((workdir / "batch.yaml").read_text())["data"]["batch_size"] == 64
    assert "Wrote" in result.out
    (workdir / "batch.yaml").unlink()
    result = cli(*BATCH, "--min_batch", "64", "--max_batch", "64", "--memory_limit", "0.5")
    assert result.code == 1 and "64  out of memory" in result.out and not list(workdir.iterdir())
