"""The benchmarks' own parts against something independent; their figures are not for tests."""

import argparse
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import ROOT, Command
from house import present
from PIL import Image

from benchmarks.measure import arithmetic
from benchmarks.raw_loop import KINDS, fast, shifted, train
from project.optim import Muon
from project.recipe import Recipe


def test_the_plain_loop_shifts_images() -> None:
    pixels = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8)
    padded = F.pad(pixels.float(), (2, 2, 2, 2), "reflect").to(torch.uint8)
    mirrored = torch.arange(40) % 2 > 0
    for i, image in enumerate(shifted(pixels, mirrored)):
        whole = padded[i].flip(-1) if mirrored[i] else padded[i]
        windows = whole.unfold(1, 8, 1).unfold(2, 8, 1)  # (3, 5, 5, 8, 8)
        assert (windows.permute(1, 2, 0, 3, 4) == image).flatten(2).all(2).any()


def test_the_plain_loop_has_the_rates_of_the_configuration() -> None:
    model = yaml.safe_load((ROOT / "configs/model/fastnet.yaml").read_text())
    images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8), torch.arange(40) % 10
    net, optimizer, _ = fast(images, [8, 8, 8], 100, 40)
    arguments = model["optimizer"]["init_args"]
    make = partial(Muon, **arguments)
    recipe = Recipe(model["lr"], make, {}, 1.0, False, None, None, 0.0, 0.01, None, "none")
    found = []
    for each in (optimizer, recipe.optimizer(net, 40)):
        rates = {}
        for group in each.param_groups:
            same = ("momentum", "nesterov", "ns_steps", "rest", "rest_momentum", "weight_decay")
            kept = [group["muon"], *map(group.get, same)]
            rate = group.get("initial_lr", group["lr"]) * (1 if group["muon"] else group["rest_lr"])
            rates |= {id(p): (rate, *kept) for p in group["params"]}
        found.append(rates)
    assert found[0].keys() == found[1].keys()
    assert all(found[0][key] == pytest.approx(found[1][key]) for key in found[0])


@pytest.mark.slow
def test_the_plain_loop_does_the_work_of_the_run(cli: Command, tmp_path: Path) -> None:
    """Its batch, widths, precision and threads are those of the fit, also where options changed them."""
    options = [f"--config={ROOT}/configs/digits.yaml", f"--model={ROOT}/configs/model/fastnet.yaml"]
    options += ["--data.batch_size=48", "--model.net.init_args.widths=[8,16]", "--trainer.precision=bf16-mixed"]
    options += ["--machine.threads=1", "--trainer.max_epochs=1", f"--trainer.default_root_dir={tmp_path}"]
    assert cli("fit", *options).code == 0
    words = ["--precision", "bf16-mixed", "--threads", "1", "--batch", "48", "--widths", "8", "16"]
    assert arithmetic(tmp_path) == words


@pytest.mark.parametrize("precision", KINDS)
def test_the_plain_loop_learns_in_every_precision(tmp_path: Path, precision: str) -> None:
    noise = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, darkest in (("dark", 0), ("light", 128)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(16):
                pixels = noise.integers(darkest, darkest + 128, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    options = {"model": "fast", "widths": [8, 8], "epochs": 4, "batch": 8, "batches": None, "precision": precision}
    torch.manual_seed(0)
    found = train(argparse.Namespace(folder=tmp_path, **options))
    assert found["accuracies"] == [1.0, 1.0] and found["images"] == [32] * 4


@pytest.mark.slow
@pytest.mark.skipif(not (present("tune") and present("export")), reason="it tries these extras too")
def test_the_script_for_a_gpu_works_on_a_cpu(tmp_path) -> None:
    """Every part of it, with tiny images."""
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path)}
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == 11 and {row[1] for row in rows[1:]} == {"ok"}
