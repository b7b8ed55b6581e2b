"""The table of speeds."""

import re
import time

import numpy as np
import torch
from torch import Tensor, nn

from project.extras.export import speed


class Sleep(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.layer, self.seconds = nn.Conv2d(1, 1, 1), seconds

    def forward(self, images: Tensor) -> None:
        assert images.shape[1:] == (1, 2, 2) and not torch.is_grad_enabled()
        time.sleep(self.seconds)


def test_every_way_has_its_time_for_one_image_and_for_many(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(speed, "SECONDS", 0.01)
    sizes = set()
    monkeypatch.setattr(speed, "open_exported", lambda path: lambda images: sizes.add(np.shape(images)))
    table = speed.measure(Sleep(0.02), Sleep(0.01), tmp_path / "m.onnx", torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    rows = re.findall(r"^ +(\w[^|]*?) +\| +([\d.]+) +\| +([\d.]+)", table, re.MULTILINE)
    names = ["eager, unfused", "eager, fused", "fused + channels_last", "the exported file"]
    assert [name for name, *_ in rows] == names and sizes == {(1, 1, 2, 2), (64, 1, 2, 2)}
    unit = {"milliseconds": 1e-3, "microseconds": 1e-6, "nanoseconds": 1e-9}[re.search(r"Times are in (\w+)", table)[1]]
    for row, least in zip(rows, (0.02, 0.01, 0.01, 0), strict=True):
        assert all(float(value) * unit >= least for value in row[1:])
