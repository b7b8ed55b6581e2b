"""Random numbers that depend on the image, the epoch and the seed, and on nothing else.

A draw is a hash of (seed, epoch, image index, stream, draw number): an image gets the same draws in any batch, order,
worker, rank or resumed run. The hash is computed in 64-bit integers that wrap around, identical on every device; floats
come out of it by exact operations and table look-ups, since log, cos and exp may differ in the last bit between devices
and even between positions in one tensor.
"""

import copy
import functools
import math

import torch
from torch import Tensor

from project.data.memory import INDEX_LIMIT

# splitmix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 17
# (mix64variant13, found by David Stafford). Output n of the generator with state s is mix(s + (n + 1) * GOLDEN).
# The words are written as int64, in two's complement, since torch takes no larger integers.
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
STREAM = 0x632BE59BD9B4E019  # separates the streams of a state from its outputs; any fixed odd word would do


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: `>>` on int64 copies the sign bit, which the mask takes away."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _output(state: Tensor, number: int | Tensor) -> Tensor:
    """Output `number` (from 0) of the splitmix64 generators with these states."""
    z = state + (torch.as_tensor(number) + 1) * GOLDEN  # wraps around
    z = (z ^ _shift(z, 30)) * MULTIPLIERS[0]
    z = (z ^ _shift(z, 27)) * MULTIPLIERS[1]
    return z ^ _shift(z, 31)


@functools.cache
def _normal_table(device: torch.device) -> Tensor:
    """Standard normal quantiles at (i + 1/2) / 65536: mean 0, standard deviation 0.999998, none beyond 4.33."""
    return torch.special.ndtri((torch.arange(65536, dtype=torch.float64) + 0.5) / 65536).float().to(device)


class Draws:
    """Independent random numbers for each of N images. Every call takes the next draw number, so two calls differ."""

    _count = 0

    def __init__(self, seed: int, epoch: int, index: Tensor) -> None:
        """`index`: position of each image in the data set, int64 (N,). The draws live on its device."""
        self._seed, self._epoch, self._index = seed, epoch, index
        self._state = _output(_output(_output(torch.tensor(0), seed), epoch), index)  # (N,)

    def stream(self, number: int) -> "Draws":
        """Draws independent of these and of any other number's, the same whatever was drawn here before."""
        child = copy.copy(self)
        child._state, child._count = _output(self._state ^ STREAM, number), 0
        return child

    @property
    def turn(self) -> Tensor:
        """int64 (N,): the epoch, plus how often the image has come before in it."""
        return self._epoch + self._index // INDEX_LIMIT

    def lasting(self) -> "Draws":
        """Those of an image that are the same in every epoch, however often it comes, and in every stream."""
        return Draws(self._seed, -1, self._index % INDEX_LIMIT)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """float32 (N,) in [low, high), in 2^24 steps; `low` itself where the two are equal in float32."""
        if not low <= high:
            raise ValueError(f"a range must be [low, high] with low <= high, not [{low}, {high}]")
        unit = _shift(self._next(), 40).float() * 2.0**-24  # exact: 24 bits fill the mantissa
        below = torch.nextafter(*torch.tensor([high, low], dtype=torch.float32)).item()
        return (unit * (high - low) + low).clamp_(max=below)  # the sum may round up to high

    def integers(self, high: int) -> Tensor:
        """int64 (N,) in [0, high), high up to 2^31; probabilities equal to within 2^-32 (Lemire 2019, section 4)."""
        return (_shift(self._next(), 32) * high) >> 32

    def bernoulli(self, p: float) -> Tensor:
        """bool (N,), true with probability p, rounded to a multiple of 2^-32: 0 is never, 1 is always."""
        if not 0 <= p <= 1:
            raise ValueError(f"p must be in [0, 1], not {p}")
        return _shift(self._next(), 32) < round(p * 2**32)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """float32 (N, *shape), standard normal to 16 bits from a table: each 64-bit hash yields four quantiles."""
        size = math.prod(shape)
        words = torch.arange((size + 3) // 4, device=self._state.device)
        hashed = _output(self._next()[:, None], words)  # (N, words)
        quarters = hashed.view(torch.int16)[:, :size].to(torch.int32) + 32768  # (N, size) in [0, 65536)
        table = _normal_table(hashed.device)
        return table.index_select(0, quarters.flatten()).view(-1, *shape)  # six times faster than table[quarters]

    def _next(self) -> Tensor:
        self._count += 1
        return _output(self._state, self._count - 1)
