"""The benchmarks' own parts against something independent; their figures are not for tests."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import ROOT
from house import present

from benchmarks.raw_loop import fast, shifted
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
    recipe = Recipe(model["lr"], make, model["lr_mult"], 1.0, False, None, None, 0.0, 0.01, None, "none")
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
@pytest.mark.skipif(not (present("tune") and present("export")), reason="it tries these extras too")
def test_the_script_for_a_gpu_works_on_a_cpu(tmp_path) -> None:
    """Every part of it, with tiny images."""
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path)}
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == 11 and {row[1] for row in rows[1:]} == {"ok"}
