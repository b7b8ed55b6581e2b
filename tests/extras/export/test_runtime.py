"""Exported files as they run, against torch and against the formula of what is around the network."""

import numpy as np
import pytest
import torch
from torch import nn

from project.errors import UserError
from project.extras.export.files import write
from project.extras.export.runtime import open_exported
from project.nets.deployable import Deployable, NetworkOnly

MEAN, STD, TEMPERATURE = [0.2, 0.5, 0.6], [0.1, 0.25, 0.3], 1.7


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def about(preprocess: bool) -> dict:
    return {"preprocess": preprocess, "mean": MEAN, "std": STD, "temperature": TEMPERATURE}


@pytest.fixture(scope="module", params=[(s, p) for s in ("onnx", "pt2") for p in (True, False)], ids=str)
def run(request, net, tmp_path_factory):
    """A file with and without its preprocessing, opened."""
    suffix, preprocess = request.param
    path = tmp_path_factory.mktemp("files") / f"model.{suffix}"
    images = torch.zeros(2, 3, 6, 6, dtype=torch.uint8)
    module = Deployable(net, torch.tensor(MEAN), torch.tensor(STD), TEMPERATURE) if preprocess else NetworkOnly(net)
    write(module.eval(), images if preprocess else images.float(), path, about(preprocess))
    return open_exported(path, about(preprocess))


@pytest.mark.parametrize("count", [1, 2, 3, 64])
@torch.no_grad()
def test_probabilities_are_those_of_the_network(run, net, count) -> None:
    images = np.random.default_rng(count).integers(0, 256, (count, 3, 6, 6), dtype=np.uint8)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (MEAN, STD))
    normalised = (torch.from_numpy(images).double() / 255 - mean) / std
    expected = (net(normalised.float()).double() / TEMPERATURE).softmax(dim=1)
    found = run(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1e2, 1e6])
def test_logits_of_any_size_become_probabilities(tmp_path, monkeypatch, scale) -> None:
    logits = scale * np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    monkeypatch.setattr("project.extras.export.runtime.raw_onnx", lambda path, threads: lambda images: logits)
    found = open_exported(tmp_path / "some.onnx", about(preprocess=False))(np.zeros((5, 3, 2, 2), dtype=np.uint8))
    expected = torch.from_numpy(logits).double().div(TEMPERATURE).softmax(dim=1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-4, atol=1e-7)


def test_weights_alone_do_not_run(tmp_path) -> None:
    with pytest.raises(UserError, match="holds weights alone"):
        open_exported(tmp_path / "model.safetensors", about(preprocess=True))


def test_a_damaged_graph_is_one_line(tmp_path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"nothing")
    with pytest.raises(UserError) as caught:
        open_exported(tmp_path / "model.pt2", about(preprocess=True))
    assert str(caught.value) == f"{tmp_path / 'model.pt2'} is damaged: copy or export it again"
