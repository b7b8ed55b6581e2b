import math
import statistics

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from project.data.draws import Draws

WORD = 2**64


def splitmix64(state: int, number: int) -> int:
    """Output `number` (from 0) of Vigna's splitmix64.c, with Python's unbounded integers."""
    z = (state + (number + 1) * 0x9E3779B97F4A7C15) % WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WORD
    return z ^ (z >> 31)


def image_state(seed: int, epoch: int, index: int) -> int:
    return splitmix64(splitmix64(splitmix64(0, seed), epoch), index)


def draws(count: int, seed: int = 0, epoch: int = 0) -> Draws:
    return Draws(seed, epoch, torch.arange(count))


def test_reference_gives_the_published_outputs():
    # the first outputs for seed 1234567, as listed at rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64
    assert [splitmix64(1234567, n) for n in range(2)] == [6457827717110365317, 3203168211198807973]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    epoch=st.integers(0, 10**6),
    index=st.integers(0, 2**63 - 1),
    number=st.integers(0, 2**40),
    high=st.integers(1, 2**31),
)
def test_every_draw_equals_the_big_integer_reference(seed, epoch, index, number, high):
    base = Draws(seed, epoch, torch.tensor([index]))
    state = image_state(seed, epoch, index)
    child = splitmix64(state ^ 0x632BE59BD9B4E019, number)
    for made, start in ((base, state), (base.stream(number), child)):
        hashes = [splitmix64(start, n) for n in range(4)]
        assert made.uniform().item() == (hashes[0] >> 40) / 2**24
        assert made.integers(high).item() == ((hashes[1] >> 32) * high) >> 32
        assert made.bernoulli(0.3).item() == ((hashes[2] >> 32) < round(0.3 * 2**32))
        words = [splitmix64(hashes[3], n) for n in range(2)]
        quarters = [(word >> shift) % 2**16 for word in words for shift in (0, 16, 32, 48)][:6]
        signed = [(quarter + 2**15) % 2**16 for quarter in quarters]  # the middle of the table is the hash 0
        expected = [statistics.NormalDist().inv_cdf((quarter + 0.5) / 2**16) for quarter in signed]
        assert made.normal((2, 3)).flatten().tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_draws_depend_neither_on_order_nor_on_the_other_images():
    index = torch.randperm(1000)[:64]
    together, order = Draws(3, 7, index).stream(1).normal((5,)), torch.randperm(64)
    assert torch.equal(Draws(3, 7, index[order]).stream(1).normal((5,)), together[order])
    for position in range(4):
        assert torch.equal(Draws(3, 7, index[position, None]).stream(1).normal((5,))[0], together[position])


def test_a_stream_is_the_same_whatever_was_drawn_before():
    base = draws(8)
    before = base.stream(2).uniform()
    base.uniform()
    assert torch.equal(base.stream(2).uniform(), before)


@settings(max_examples=100, deadline=None)
@given(st.floats(-(2.0**99), 2.0**99, width=32), st.floats(-(2.0**99), 2.0**99, width=32))
@example(1.0, 1.0 + 2**-23)
@example(0.0, 1e-45)
@example(2.0, 2.0)
def test_uniform_stays_in_its_range(a, b):
    low, high = min(a, b), max(a, b)
    values = draws(256).uniform(low, high)
    assert values.dtype == torch.float32
    assert (values >= low).all()
    assert (values < high).all() if low < high else (values == low).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2**31))
def test_integers_stay_in_their_range(high):
    values = draws(256).integers(high)
    assert values.dtype == torch.int64
    assert values.min() >= 0 and values.max() < high


def test_bernoulli_ends_are_never_and_always():
    assert not draws(10_000).bernoulli(0).any()
    assert draws(10_000).bernoulli(1).all()
    assert draws(100_000).bernoulli(0.3).float().mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 100_000))


@pytest.mark.parametrize("bins", [2, 3, 8, 100])
def test_integers_are_uniform(bins):
    for seed in range(3):
        counts = torch.bincount(draws(100_000, seed).integers(bins), minlength=bins)
        chi_square = ((counts - 100_000 / bins) ** 2 / (100_000 / bins)).sum().item()
        degrees = bins - 1
        assert chi_square < degrees + 4 * math.sqrt(2 * degrees) + 8  # beyond the 99.99 % quantile for each of these


@pytest.mark.slow
def test_uniform_is_uniform_over_images_epochs_draws_and_streams():
    one, base = torch.tensor([5]), draws(1)
    rows = {
        "images": draws(4096).uniform(),
        "epochs": torch.cat([Draws(0, epoch, one).uniform() for epoch in range(4096)]),
        "seeds": torch.cat([Draws(seed, 0, one).uniform() for seed in range(4096)]),
        "draws": torch.cat([base.uniform() for _ in range(4096)]),
        "streams": torch.cat([base.stream(number).uniform() for number in range(4096)]),
    }
    for name, values in rows.items():
        counts = torch.histc(values, 64, 0, 1)
        assert ((counts - 64) ** 2 / 64).sum().item() < 63 + 4 * math.sqrt(126) + 8, name
        neighbours = torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1].item()
        assert abs(neighbours) < 4 / math.sqrt(4096), name


def test_neighbouring_seeds_epochs_streams_and_draws_are_uncorrelated():
    count, twice = 50_000, draws(50_000)
    first = twice.uniform()
    base = draws(count)
    others = [twice.uniform(), draws(count, seed=1).uniform(), draws(count, epoch=1).uniform()]
    others += [base.stream(number).uniform() for number in range(3)] + [base.stream(0).stream(0).uniform()]
    correlation = torch.corrcoef(torch.stack([first, *others])) - torch.eye(len(others) + 1)
    assert correlation.abs().max() < 4.5 / math.sqrt(count)


def test_normal_has_the_moments_of_a_standard_normal():
    values = draws(1000).normal((3, 10, 10)).double()
    count = values.numel()
    assert values.shape == (1000, 3, 10, 10)
    assert abs(values.mean()) < 4 / math.sqrt(count)
    assert values.var().item() == pytest.approx(1, abs=4 * math.sqrt(2 / count) + 1e-4)
    assert (values**4).mean().item() == pytest.approx(3, abs=0.06)
    assert (values.abs() > 3).double().mean().item() == pytest.approx(0.0027, abs=0.0004)
    lanes = torch.corrcoef(values.flatten(1).t()[:40]) - torch.eye(40)
    assert lanes.abs().max() < 5 / math.sqrt(1000)


def test_bad_arguments_say_what_is_wrong():
    with pytest.raises(ValueError, match="p must be in"):
        draws(1).bernoulli(1.5)
    with pytest.raises(ValueError, match="low <= high"):
        draws(1).uniform(1, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same():
    here, there = draws(1000), Draws(0, 0, torch.arange(1000, device="cuda"))
    for call in ("uniform", "integers", "bernoulli", "normal"):
        argument = {"uniform": 0.1, "integers": 77, "bernoulli": 0.3, "normal": (3, 5)}[call]
        assert torch.equal(getattr(there, call)(argument).cpu(), getattr(here, call)(argument)), call
