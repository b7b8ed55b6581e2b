"""Comparing what layers put out, against brute force and against the layers themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from project.extras.export.files import write
from project.extras.export.proof import first_difference, in_batches, open_layers, outputs_of, relative_difference
from project.nets.deployable import Deployable


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100_000), st.integers(1, 9), st.integers(2, 6), st.floats(0.01, 100))
def test_the_difference_is_the_largest_over_the_largest_value(seed, count, classes, scale) -> None:
    random = np.random.default_rng(seed)
    a, b = (scale * random.normal(size=(count, classes)) for _ in range(2))
    cells = [(i, k) for i in range(count) for k in range(classes)]
    expected = max(abs(a[i, k] - b[i, k]) for i, k in cells) / max(abs(b[i, k]) for i, k in cells)
    assert relative_difference(a, b) == pytest.approx(expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_never_close(bad) -> None:
    reference = np.random.default_rng(0).normal(size=(3, 4))
    logits = reference.copy()
    logits[1, 2] = bad
    assert not relative_difference(logits, reference) <= 1


@pytest.mark.parametrize("count", [1, 2, 64, 65, 66, 200])
def test_one_image_is_run_alone_and_none_is_left_out(count) -> None:
    images, sizes = np.arange(count, dtype=np.float32)[:, None], []
    found = in_batches(lambda part: sizes.append(len(part)) or 2 * part, images)
    assert np.array_equal(found, 2 * images) and sizes[0] == 1 and max(sizes) <= 64


def test_the_first_difference() -> None:
    expected = {"a": np.ones(3), "b": np.full(3, 100.0), "c": np.ones(3), "d": np.zeros(3)}
    same = {name: value.copy() for name, value in expected.items()}
    assert first_difference(same, expected, 1e-4) is None
    near = {**same, "b": expected["b"] + 0.009}
    assert first_difference(near, expected, 1e-4) is None and first_difference(near, expected, 1e-5) == "b"
    wrong = {**same, "b": expected["b"] + 1, "c": expected["c"] * np.nan}
    assert first_difference(wrong, expected, 1e-4) == "b"
    assert first_difference({"c": wrong["c"]}, expected, 1e-4) == "c"  # modules that the other side lacks
    assert first_difference({**same, "d": np.full(3, 1e-3)}, expected, 1e-4) == "d"  # of an output that is all zeros


def softmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.softmax(dim=1)


@pytest.fixture(scope="module")
def deployable() -> Deployable:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    net = nn.Sequential(nn.Conv2d(3, 4, 3), block, nn.Flatten(), nn.Linear(4 * 36, 5))
    return Deployable(net, torch.full((3,), 0.4), torch.full((3,), 0.2), 1.3, softmax).eval()


IMAGES = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()


@torch.no_grad()
def test_the_outputs_of_all_modules_in_their_order(deployable) -> None:
    outputs = outputs_of(deployable, IMAGES)
    assert list(outputs) == ["net.0", "net.1.0", "net.1.1", "net.1", "net.2", "net.3", "net"]
    value = (torch.from_numpy(IMAGES) / 255 - 0.4) / 0.2
    for name, module in (("net.0", deployable.net[0]), ("net.1", deployable.net[1]), ("net.3", deployable.net[2:])):
        value = module(value)
        np.testing.assert_allclose(outputs[name], value.numpy(), atol=1e-4)
    assert list(outputs_of(deployable, IMAGES, only="net")) == ["net"]


@pytest.mark.parametrize("suffix", ["pt2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_file_gives_the_same_outputs_by_the_same_names(deployable, tmp_path, suffix) -> None:
    path = tmp_path / f"m.{suffix}"
    write(deployable, torch.from_numpy(IMAGES), path, {})
    expected, found = outputs_of(deployable, IMAGES), open_layers(path)(IMAGES)
    assert {"net.0", "net.1.0", "net.1.1", "net.3"} <= set(found) <= set(expected)
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5)
    assert first_difference(found, expected, 1e-4) is None
    (logits,) = open_layers(path, only="net")(IMAGES[:1]).values()
    np.testing.assert_allclose(logits, expected["net"][:1], atol=1e-5)
