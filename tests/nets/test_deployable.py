"""What is deployed, against its formula."""

import numpy as np
import pytest
import torch
from torch import nn

from project.nets.deployable import Deployable, NetworkOnly

MEAN, STD = [0.1, 0.45, 0.5, 0.7], [0.2, 0.25, 0.3, 0.05]


@pytest.fixture(params=[1, 3, 4])
def channels(request) -> int:
    return request.param


def softmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.softmax(dim=1)


def make(channels: int, temperature: float = 1.0, probabilities=None) -> tuple[Deployable, np.ndarray]:
    """A linear network, and its weights."""
    torch.manual_seed(channels)
    linear = nn.Linear(channels * 9, 5, bias=False)
    mean, std = (torch.tensor(values[:channels]).view(1, -1, 1, 1) for values in (MEAN, STD))
    module = Deployable(nn.Sequential(nn.Flatten(), linear), mean, std, temperature, probabilities)
    return module, linear.weight.detach().double().numpy()


def expected_logits(images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    mean, std = (np.array(values[: images.shape[1]])[:, None, None] for values in (MEAN, STD))
    return ((images / 255 - mean) / std).reshape(len(images), -1) @ weights.T


@torch.no_grad()
def test_logits_of_pixels_and_of_shares(channels) -> None:
    module, weights = make(channels)
    images = np.random.default_rng(0).integers(0, 256, (6, channels, 3, 3), dtype=np.uint8)
    expected = expected_logits(images, weights)
    np.testing.assert_allclose(module(torch.from_numpy(images)).numpy(), expected, atol=3e-5)
    np.testing.assert_allclose(module(torch.from_numpy(images / np.float32(255))).numpy(), expected, atol=3e-5)
    np.testing.assert_allclose(module(torch.from_numpy(images / 255)).numpy(), expected, atol=3e-5)  # float64


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_probabilities_with_a_temperature(channels, temperature) -> None:
    module, weights = make(channels, temperature, softmax)
    images = np.random.default_rng(1).integers(0, 256, (6, channels, 3, 3), dtype=np.uint8)
    powers = np.exp(expected_logits(images, weights) / temperature)
    logits = make(channels, temperature)[0](torch.from_numpy(images))
    np.testing.assert_allclose(logits.numpy(), expected_logits(images, weights) / temperature, atol=1e-4)
    found = module(torch.from_numpy(images))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), powers / powers.sum(axis=1, keepdims=True), atol=1e-5)


def test_the_statistics_are_no_x_move_with_the_module() -> None:
    module, _ = make(3)
    assert [name for name, _ in module.named_parameters()] == ["net.1.weight"]
    assert {name: tuple(value.shape) for name, value in module.named_buffers()} == {
        "scale": (1, 3, 1, 1),
        "shift": (1, 3, 1, 1),
    }


def test_the_network_alone_is_the_network() -> None:
    module, _ = make(3)
    images = torch.randn(2, 3, 3, 3)
    assert torch.equal(NetworkOnly(module.net)(images), module.net(images))


@torch.no_grad()
def test_logits_are_averaged_over_image_and_mirror(channels) -> None:
    module, weights = make(channels, 2.0)
    module.tta = "flip"
    images = np.random.default_rng(2).integers(0, 256, (6, channels, 3, 3), dtype=np.uint8)
    expected = (expected_logits(images, weights) + expected_logits(images[..., ::-1], weights)) / 2
    np.testing.assert_allclose(module(torch.from_numpy(images)).numpy(), expected / 2, atol=1e-4)
    alone, normal = NetworkOnly(module.net, "flip"), torch.randn(4, channels, 3, 3)
    torch.testing.assert_close(alone(normal), (module.net(normal) + module.net(normal.flip(-1))) / 2)
