"""What is computed from the predictions, against formulas and brute force."""

import math
from types import SimpleNamespace

import pytest
import torch

from project.extras.report.page import Missing, attempt
from project.extras.report.predictions import Predictions, by_class, calibration
from project.extras.report.run import wilson


@pytest.mark.parametrize(("correct", "total"), [(0, 1), (1, 1), (0, 50), (50, 50), (7, 10), (352, 360), (4999, 5000)])
def test_wilsons_interval_solves_its_equation(correct: int, total: int) -> None:
    """Its ends are the shares p from which the observed one is 1.96 standard deviations away."""
    low, high = wilson(correct, total)
    assert 0 <= low <= correct / total + 1e-12 and correct / total - 1e-12 <= high <= 1
    for end in (low, high):
        reach = 1.959964 * math.sqrt(end * (1 - end) / total)
        assert abs(correct / total - end) == pytest.approx(reach, rel=1e-6, abs=1e-9)


def predictions(classes: int, images: int, labelled: int) -> Predictions:
    """Random ones, with labels below `labelled` alone."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(labelled, (images,), generator=random)
    model = SimpleNamespace(class_names=[f"class {i:02d}" for i in range(classes)], temperature=1.0)
    probabilities = torch.randn(images, classes, generator=random).softmax(1)
    return Predictions(model, probabilities, torch.zeros(images), labels, list(range(images)), None)


def test_the_classes_by_brute_force() -> None:
    found = predictions(3, 40, 2)
    shown = by_class(found)
    pairs = list(zip(found.labels.tolist(), found.predicted.tolist(), strict=True))
    for i, row in enumerate(shown["rows"]):
        hits = sum(true == guess == i for true, guess in pairs)
        true, guessed = (sum(pair[k] == i for pair in pairs) for k in (0, 1))
        expected = f"{hits / guessed:.1%}", f"{hits / true:.1%}", f"{2 * hits / (true + guessed):.1%}", str(true)
        assert row == (f"class {i:02d}", *expected)
    assert len(shown["rows"]) == shown["present"] == 2 and shown["total"] == 3
    wrong = [pair for pair in pairs if pair[0] != pair[1]]
    worst = max(set(wrong), key=wrong.count)
    words = f"{40 - len(wrong)} of 40 correct; the most frequent mistake is class {worst[0]:02d} taken for"
    assert shown["confusion"].says.startswith(words) and shown["confusion"].says.endswith(f"({wrong.count(worst)})")


def test_of_many_classes_the_worst_thirty_are_shown() -> None:
    found = predictions(40, 400, 40)
    shown = by_class(found)
    assert len(shown["rows"]) == 30 and shown["present"] == 40
    scores = [float(row[3].rstrip("%")) for row in shown["rows"]]
    assert scores == sorted(scores)


def test_a_diverged_model_has_no_calibration_but_a_reason() -> None:
    found = predictions(3, 10, 3)
    assert not isinstance(attempt(calibration, found), Missing)
    found.probabilities[4] = torch.nan
    assert "diverged" in attempt(calibration, found).why
    assert attempt(calibration, Missing("no images")).why == "no images"
