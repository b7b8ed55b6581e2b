"""Comparing logits, against brute force; finding the first layer that differs, against torch's own hooks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from project.extras.export.files import write
from project.extras.export.proof import compare, first_difference, logits_of, outputs_in_file, outputs_of
from project.nets.deployable import Deployable

seeds = st.integers(0, 100_000)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities in float32, as files give them."""
    return torch.from_numpy(logits).softmax(dim=1).float().numpy()


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 9), st.integers(2, 6), st.floats(0.01, 100), st.floats(-50, 50))
def test_logits_are_compared_up_to_the_constant_of_each_image(seed, count, classes, scale, shift) -> None:
    random = np.random.default_rng(seed)
    a, b = (scale * random.normal(size=(count, classes)) for _ in range(2))
    absolute, largest, same = 0.0, 0.0, 0
    for i in range(count):
        same += max(range(classes), key=lambda k: a[i, k]) == max(range(classes), key=lambda k: b[i, k])
        for k in range(classes):
            expected = b[i, k] - sum(b[i]) / classes
            absolute = max(absolute, abs(a[i, k] - sum(a[i]) / classes - expected))
            largest = max(largest, abs(expected))
    found = compare(a + shift * random.normal(size=(count, 1)), b)
    assert found.absolute == pytest.approx(absolute, rel=1e-6) and found.relative == pytest.approx(
        absolute / largest, rel=1e-6
    )
    assert (found.agreement, found.images) == (same / count, count)


def test_what_is_no_number_is_never_close() -> None:
    reference = np.random.default_rng(0).normal(size=(3, 4))
    for bad in (np.nan, np.inf, -np.inf):
        logits = reference.copy()
        logits[1, 2] = bad
        with np.errstate(invalid="ignore"):
            assert not compare(logits, reference).relative <= 1


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(2, 8), st.floats(0.1, 60), st.floats(0.05, 20), st.floats(-1000, 1000))
def test_logits_are_found_again_in_probabilities(seed, classes, scale, temperature, shift) -> None:
    reference = scale * np.random.default_rng(seed).normal(size=(6, classes))
    found = compare(logits_of(softmax((reference + shift) / temperature), temperature, reference), reference)
    assert found.relative < 1e-5 * max(1, temperature / scale)  # of almost even probabilities, little is to be seen


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(2, 6), st.floats(0.5, 5), st.floats(0.05, 20), st.floats(0.001, 0.5))
def test_changed_logits_are_found_in_probabilities(seed, classes, scale, temperature, change) -> None:
    random = np.random.default_rng(seed)
    reference = scale * temperature * random.normal(size=(6, classes))
    changed = reference.copy()
    k = int(reference[2].argmax())
    changed[2, k] += change * np.abs(reference - reference.mean(axis=1, keepdims=True)).max()
    expected = compare(changed, reference).relative
    assert compare(
        logits_of(softmax(changed / temperature), temperature, reference), reference
    ).relative == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.01, 3, 1000, -1])
def test_logits_of_another_size_are_found_even_where_probabilities_are_0_and_1(factor) -> None:
    reference = np.random.default_rng(0).normal(size=(8, 5))
    found = compare(logits_of(softmax(factor * reference), 1.0, reference), reference)
    assert found.relative > 0.005


def test_probabilities_too_faint_to_be_seen_on_both_sides_are_no_difference() -> None:
    reference = np.array([[0.0, -500.0, -90.0, 1.0], [3.0, 2.0, 0.0, -2000.0]])
    assert compare(logits_of(softmax(reference), 1.0, reference), reference).absolute < 1e-5
    wrong = np.array([[0.0, -500.0, -90.0, 1.0], [-2000.0, 2.0, 0.0, 3.0]])
    assert compare(logits_of(softmax(wrong), 1.0, reference), reference).relative > 0.01


def test_probabilities_that_are_no_numbers_stay_so() -> None:
    probabilities = np.array([[0.5, 0.5], [np.nan, np.nan]])
    assert not compare(logits_of(probabilities, 1.0, np.ones((2, 2))), np.ones((2, 2))).relative <= 1


def test_the_first_difference() -> None:
    expected = {"a": np.ones(3), "b": np.full(3, 100.0), "c": np.ones(3), "d": np.zeros(3)}
    same = {name: value.copy() for name, value in expected.items()}
    assert first_difference(same, expected, 1e-4) is None
    near = {**same, "b": expected["b"] + 0.009}
    assert first_difference(near, expected, 1e-4) is None and first_difference(near, expected, 1e-5) == "b"
    wrong = {**same, "b": expected["b"] + 1, "c": expected["c"] * np.nan}
    assert first_difference(wrong, expected, 1e-4) == "b"
    assert first_difference(wrong, expected, 1e-4, skip=["b"]) == "c"
    assert first_difference({"c": wrong["c"]}, expected, 1e-4) == "c"  # modules that the other side lacks
    assert first_difference({**same, "d": np.full(3, 1e-3)}, expected, 1e-4) == "d"  # of an output that is all zeros


@pytest.fixture(scope="module")
def deployable() -> Deployable:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    net = nn.Sequential(nn.Conv2d(3, 4, 3), block, nn.Flatten(), nn.Linear(4 * 36, 5))
    return Deployable(net, torch.full((3,), 0.4), torch.full((3,), 0.2), 1.3).eval()


IMAGES = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_outputs_of_all_modules_in_their_order(deployable) -> None:
    outputs = outputs_of(deployable, IMAGES)
    assert list(outputs) == ["net.0", "net.1.0", "net.1.1", "net.1", "net.2", "net.3", "net"]
    value = (IMAGES / 255 - 0.4) / 0.2
    for name, module in (("net.0", deployable.net[0]), ("net.1", deployable.net[1]), ("net.3", deployable.net[2:])):
        value = module(value)
        np.testing.assert_allclose(outputs[name], value.numpy(), atol=1e-4)
    assert not any(module._forward_hooks for module in deployable.modules())


def test_no_hook_is_left_after_an_error(deployable) -> None:
    with pytest.raises(RuntimeError):
        outputs_of(deployable, IMAGES[:, :2])
    assert not any(module._forward_hooks for module in deployable.modules())


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_file_gives_the_same_outputs_by_the_same_names(deployable, tmp_path, suffix) -> None:
    path = tmp_path / f"m.{suffix}"
    write(deployable, IMAGES, path, {})
    expected, found = outputs_of(deployable, IMAGES), outputs_in_file(path)(IMAGES.numpy())
    assert {"net.0", "net.1.0", "net.1.1", "net.3"} <= set(found) <= set(expected)
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5)
    assert first_difference(found, expected, 1e-4) is None
