"""The optimism of nested evaluation, against sums made by hand."""

import statistics

import pytest

from project.extras.search.nested import optimism


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_optimism(mode, sign) -> None:
    inner, outer = [0.9, 0.8, 0.85], [0.7, 0.85, 0.8]
    found = optimism(inner, outer, mode)
    gaps = [sign * 0.2, -sign * 0.05, sign * 0.05]
    assert found["gap"]["folds"] == pytest.approx(gaps)
    assert found["gap"]["mean"] == pytest.approx(sign * 0.2 / 3)
    assert found["outer"] == {
        "folds": outer,
        "mean": pytest.approx(sum(outer) / 3),
        "sd": pytest.approx(statistics.pstdev(outer) * (3 / 2) ** 0.5),
    }
