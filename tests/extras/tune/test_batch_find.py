"""Speed, memory and the guide's rule against clocks, the kernel and brute force; running out of memory for real; the command."""

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import DIGITS, ROOT, SMALL
from hypothesis import given
from hypothesis import strategies as st

import project.extras.tune.batch_find_command
from project.extras.tune import batch_find as tune
from project.extras.tune.batch_find import (
    Measurement,
    StepTimer,
    free_memory,
    is_out_of_memory,
    peak_memory,
    recommend,
    sizes,
)
from project.extras.tune.batch_find_command import RESULT

FIND = ["batch_find", *DIGITS, *SMALL]
NETS = '''
import torch
from torch import nn

class Failing(nn.Module):
    """Raises as a GPU does from a batch of 64 on."""
    def __init__(self, in_channels, num_classes, image_size):
        super().__init__()
        self.head = nn.Linear(in_channels * image_size**2, num_classes)

    def forward(self, images):
        if len(images) >= 64:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.head(images.flatten(1))

class Hungry(Failing):
    """Takes 50 MB an image."""
    def forward(self, images):
        waste = torch.empty(len(images), 50_000_000, dtype=torch.uint8)
        return self.head(images.flatten(1)) + 0 * waste[0, 0]
'''


def measured(speeds: dict[int, float], failed: int | None = None) -> list[Measurement]:
    fit = [Measurement(batch, speed=speed) for batch, speed in speeds.items()]
    return fit + ([Measurement(failed, failure="out of memory")] if failed else [])


@pytest.mark.parametrize(
    ("speeds", "failed", "images", "batch", "word"),
    [
        ({8: 10, 16: 100, 32: 101, 64: 102}, None, 10_000, 16, "90% of their highest speed"),
        ({8: 10, 16: 40, 32: 80, 64: 95, 128: 100}, None, 10_000, 64, "90% of their highest speed"),
        ({64: 10, 128: 20, 256: 40, 512: 80, 1024: 160}, None, 100_000, 256, "from 64 to 256"),  # not too large
        ({8: 10, 16: 20, 32: 40, 64: 80}, None, 400, 32, "ten steps"),
        ({8: 10, 16: 20, 32: 40}, None, 50, 16, "few steps"),
        ({8: 10}, 16, 10_000, 8, "gradients are noisy"),
        ({2: 10, 4: 20}, 8, 10_000, 4, "gradients are noisy"),
        ({8: 10, 16: 20}, 32, 10_000, 16, "the only one from 16 up that fits"),
        ({512: 10, 1024: 20}, None, 100_000, 512, "smallest one"),
        ({8: 100, 16: 10}, None, 10_000, 16, "only one"),
    ],
)
def test_the_guides_rule(speeds, failed, images, batch, word) -> None:
    chosen, why = recommend(measured(speeds, failed), images)
    assert chosen.batch == batch and word in why


@given(st.lists(st.floats(1, 1e5), min_size=1, max_size=9), st.integers(0, 4), st.integers(1, 100_000), st.booleans())
def test_any_recommendation_fits_and_nothing_smaller_is_as_good(speeds, first, images, fails) -> None:
    table = {2 ** (first + i): speed for i, speed in enumerate(speeds)}
    failed = 2 ** (first + len(speeds)) if fails else None
    chosen, why = recommend(measured(table, failed), images)
    assert chosen.batch in table and why
    if max(table) < 16:
        assert chosen.batch == max(table)
        return
    allowed = [b for b in table if 16 <= b <= 256 and b * 10 <= images]
    if allowed:
        assert chosen.batch in allowed and chosen.speed >= 0.9 * max(table[b] for b in allowed)
        assert all(table[b] < 0.9 * max(table[a] for a in allowed) for b in allowed if b < chosen.batch)
    else:
        assert chosen.batch == min(b for b in table if b >= 16)


def test_sizes_are_powers_of_two() -> None:
    assert sizes(8, 100) == [8, 16, 32, 64] and sizes(8, 8) == [8] and sizes(1, 4) == [1, 2, 4] and sizes(8, 7) == []


def run_timer(monkeypatch, batches: list[tuple[int, float]], batch: int, steps: int, accumulate: int = 1) -> StepTimer:
    """Feed a timer with (images, seconds)."""
    clock = [0.0]
    monkeypatch.setattr(tune.time, "perf_counter", lambda: clock[0])
    device = types.SimpleNamespace(root_device=torch.device("cpu"))
    trainer = types.SimpleNamespace(global_step=0, should_stop=False, strategy=device)
    timer = StepTimer(batch, steps)
    for i, (images, seconds) in enumerate(batches):
        clock[0] += seconds
        trainer.global_step = (i + 1) // accumulate
        timer.on_train_batch_end(trainer, None, None, {"label": torch.zeros(images)}, i)
        if trainer.should_stop:
            break
    timer.stopped = trainer.should_stop
    return timer


def test_the_first_step_warms_up_and_the_median_counts(monkeypatch) -> None:
    timer = run_timer(monkeypatch, [(8, 100), (8, 1), (8, 2), (8, 50), (8, 1), (8, 1), (8, 1)], 8, 5)
    assert timer.speeds == [8, 4, 0.16, 8, 8] and timer.median() == 8 and timer.stopped


def test_a_step_with_fewer_images_does_not_count_where_there_are_full_ones(monkeypatch) -> None:
    timer = run_timer(monkeypatch, [(8, 9), (3, 1), (8, 2), (3, 1), (8, 2)], 8, 2)
    assert timer.speeds == [4, 4] and timer.stopped
    timer = run_timer(monkeypatch, [(8, 9)] + [(3, 1)] * 20, 8, 2)  # none is full: what there is
    assert timer.median() == 3 and timer.stopped


def test_accumulated_batches_are_one_step(monkeypatch) -> None:
    timer = run_timer(monkeypatch, [(8, 9), (8, 9), (8, 1), (8, 3), (8, 2), (8, 2)], 8, 2, accumulate=2)
    assert timer.speeds == [4, 4] and timer.stopped


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_peak_memory_is_what_a_process_took_at_most() -> None:
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        before = peak_memory(torch.device("cpu"))
        waste = np.ones(300_000_000, dtype=np.uint8)
        del waste
        os.write(into, str(peak_memory(torch.device("cpu")) - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert 200e6 < int(os.read(out, 100)) < 330e6  # the parent's peak may have been above what it has now


def test_free_memory_is_some_of_the_machine() -> None:
    free = free_memory()
    assert free is None or 1e8 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_what_is_out_of_memory_and_what_is_not() -> None:
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(real.value)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    for other in (RuntimeError("shapes do not match"), ValueError("out of memory"), KeyboardInterrupt()):
        assert not is_out_of_memory(other)


# The command


@pytest.fixture
def nets(workdir, monkeypatch):
    (workdir / "hungry_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(workdir))
    return lambda name: ["--model.net", f"hungry_nets.{name}"]


def test_out_of_memory_is_survived_and_the_rest_is_recommended(cli, workdir, nets) -> None:
    result = cli("batch_find", *DIGITS, *nets("Failing"), "--model.lr", "0.004", "--min_batch", "32", "--steps", "2")
    assert result.code == 0, result.err
    table = [line.split() for line in result.out.splitlines() if line.split()[:1] in (["32"], ["64"], ["128"])]
    assert [row[0] for row in table] == ["32", "64"] and table[1][1:] == ["out", "of", "memory"]
    assert float(table[0][1].replace(",", "")) > 0 and 0.1 < float(table[0][2]) < 5  # images/s, GB
    assert float(table[0][4]) == pytest.approx(0.004 * 0.5**0.5, rel=1e-2) and float(table[0][5]) == pytest.approx(
        0.707
    )
    assert "largest    32 fits\n" in result.out and "recommend  32" in result.out
    assert "meant for 64, becomes 0.00283 for 32 images" in result.out
    assert sorted(path.name for path in workdir.iterdir() if path.suffix == ".yaml") == ["batch.yaml"]
    assert not (workdir / "runs").exists()
    assert yaml.safe_load((workdir / "batch.yaml").read_text()) == {"data": {"batch_size": 32}}
    assert cli("fit", *DIGITS, *SMALL, "--config", "batch.yaml", "--trainer.max_epochs", "1").code == 0
    config = yaml.safe_load((workdir / "runs" / "digits" / "version_0" / "config.yaml").read_text())
    assert config["data"]["batch_size"] == 32


@pytest.mark.skipif(free_memory() is None, reason="the system has no limit on a process's memory that we know")
def test_a_cpu_that_runs_out_of_memory_is_survived(cli, workdir, nets) -> None:
    arguments = ["--min_batch", "64", "--max_batch", "128", "--steps", "1", "--memory_limit", "5", "--out", "b.yaml"]
    result = cli("batch_find", *DIGITS, *nets("Hungry"), *arguments)
    assert result.code == 0, result.err
    assert (
        "   128  out of memory" in result.out and "largest    64 fits" in result.out and (workdir / "b.yaml").is_file()
    )


def answer(monkeypatch, code: int, said: str, result: Measurement | None = None) -> None:
    """Let every measuring process end like this."""

    def run(command, env, stdout, stderr):
        if result is not None:
            tune.save(tune.Path(env[RESULT]), result)
        stderr.write(said)
        return code, 0

    monkeypatch.setattr(project.extras.tune.batch_find_command, "run_to_the_end", run)


@pytest.mark.parametrize(
    ("code", "stderr", "words"),
    [
        (-9, "", "its process was killed"),
        (-6, "terminate called after throwing an instance of 'std::bad_alloc'\n", "out of memory"),
        (1, "Traceback...\nRuntimeError: can't start new thread\n", "out of memory"),
    ],
)
def test_a_killed_process_is_out_of_memory_and_nothing_fits(cli, workdir, monkeypatch, code, stderr, words) -> None:
    answer(monkeypatch, code, stderr)
    result = cli(*FIND, "--min_batch", "16")
    assert result.code == 1 and words in result.out and "does not fit" in result.out and not list(workdir.iterdir())


@pytest.mark.parametrize(
    ("code", "stderr", "words"),
    [
        (
            1,
            "Traceback...\nIndexError: there is a mistake in this network\n",
            "not for lack of memory: IndexError: there is a mistake",
        ),
        (2, "error: data.augment: Saturation needs colour\n", "data.augment: Saturation needs colour"),
        (1, "", "it said nothing"),
    ],
)
def test_another_failure_is_one_line(cli, workdir, monkeypatch, code, stderr, words) -> None:
    answer(monkeypatch, code, stderr)
    result = cli(*FIND)
    assert (
        result.code == 2 and words in result.err and len(result.err.splitlines()) == 1 and not list(workdir.iterdir())
    )


def test_it_ends_at_the_training_images_or_at_max_batch(cli, workdir, monkeypatch) -> None:
    tried = []

    def run(config, size):
        tried.append(size)
        return Measurement(size, speed=size, memory=1)

    monkeypatch.setattr(project.extras.tune.batch_find_command, "_in_a_process", run)
    assert cli(*FIND).code == 0 and tried == [8, 16, 32, 64, 128, 256, 512, 1024]
    tried.clear()
    assert cli(*FIND, "--max_batch", "100").code == 0 and tried == [8, 16, 32, 64]
    tried.clear()
    assert cli(*FIND, "--max_batch", "4096", "--data.val_size", "0.9").code == 0 and tried == [8, 16, 32, 64, 128]


def test_without_scaling_it_says_that_the_rate_stays(cli, workdir, monkeypatch) -> None:
    monkeypatch.setattr(
        project.extras.tune.batch_find_command, "_in_a_process", lambda config, size: Measurement(size, 1.0, 1, 0.02)
    )
    unscaled = ["--model.reference_batch", "null", "--model.lr_scaling", "none"]
    assert "the rate stays model.lr 0.02" in cli(*FIND, *unscaled).out
    assert "sqrt scaling" in cli(*FIND).out


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--min_batch", "12"], "min_batch must be a power of two"),
        (["--min_batch", "0"], "min_batch must be a power of two"),
        (["--max_batch", "4"], "max_batch must be min_batch or more"),
        (["--min_batch", "2048", "--max_batch", "4096"], "there are 1151 training images"),
        (["--steps", "0"], "steps must be 1 or more"),
        (["--memory_limit=-1"], "memory_limit must be 0.1 to 1e+06 GB"),
        (["--memory_limit", "1e12"], "memory_limit must be 0.1 to 1e+06 GB"),
        (["--memory_limit", "much"], "memory_limit"),
        (["--max_batches", "8"], "max_batches: there is no such key"),
        (["--out", "nowhere/b.yaml"], "there is no folder"),
        (["--out", "b.txt"], "must end in .yaml"),
        (["--ckpt_path", "last"], "ckpt_path: batch_find"),
        (["--trainer.devices", "2"], "--trainer.devices 1"),
    ],
)
def test_bad_input_is_one_line(cli, workdir, option, words) -> None:
    result = cli(*FIND, *option)
    assert result.code == 2 and words in result.err and len(result.err.splitlines()) == 1
    assert not list(workdir.iterdir())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not list the processes of a process")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_measuring_process_and_leaves_nothing(workdir, number, code) -> None:
    temporary = workdir / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "project", *FIND, "--steps", "100000"]
    process = subprocess.Popen(command, env=environment, cwd=workdir, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 90
    while not (child := children(process.pid)):
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(60) == code
    with pytest.raises(ProcessLookupError):
        os.kill(child[0], 0)
    assert [path.name for path in workdir.iterdir()] == ["temporary"]
    assert not [path for path in temporary.iterdir() if (path / "config.yaml").exists()]


def children(pid: int) -> list[int]:
    """The processes that a process has begun (those of its main thread)."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
