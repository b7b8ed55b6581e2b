"""Batches in an order that is a function of (seed, epoch) alone, so that a run can resume in the middle of an epoch."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from project.data.memory import INDEX_LIMIT, Batch, Request


@dataclass(eq=False)
class EpochBatches:
    """A batch sampler: lists of (epoch, key), the same for any number of workers, and shared out among ranks.

    In training every rank gets equally many images, as DDP needs (the first few of the order come again where they do
    not come out even); in evaluation each image comes exactly once, on one rank.
    """

    index: Sequence[int]  # the images, by their position among all samples
    batch_size: int  # on one device
    train: bool  # shuffle, and leave out a last batch of a single image, which batch norm cannot take
    seed: int = 0  # of the order
    weights: Tensor | None = None  # of each image: draw with replacement, in proportion to them
    rank: int = 0
    world_size: int = 1
    shuffle: bool = True  # False keeps the order of `index` in training too
    epoch: int = 0
    start: int = 0  # batches that the next pass leaves out at its beginning: trained before an interruption

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(len(self._places()), self.batch_size)
        return full + (rest > bool(self.train and full))

    def __iter__(self) -> Iterator[list[Request]]:
        order, size, first, self.start = self._order(), self.batch_size, self.start, 0
        for place in range(first * size, len(self) * size, size):
            yield [(self.epoch, key) for key in order[place : place + size]]

    def _places(self) -> range:
        """Places in the order of an epoch that are this rank's."""
        count = len(self.index)
        if self.train:
            count += -count % self.world_size
        return range(self.rank, count, self.world_size)

    def _order(self) -> list[int]:
        """The keys of an epoch, of this rank."""
        order = torch.as_tensor(self.index)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.weights is not None:
            order = order[torch.multinomial(self.weights, len(order), replacement=True, generator=generator)]
        elif self.train and self.shuffle:
            order = order[torch.randperm(len(order), generator=generator)]
        seen, keys = Counter(), []
        # Around, more than once where ranks outnumber images.
        for key in itertools.islice(itertools.cycle(order.tolist()), len(self.index) + self.world_size):
            keys.append(key + seen[key] * INDEX_LIMIT)  # a second, third... time in an epoch is augmented differently
            seen[key] += 1
        return [keys[place] for place in self._places()]


@dataclass(eq=False)
class ResumableLoader:
    """Wraps a DataLoader, to start in the middle of an epoch; Lightning keeps its state in the checkpoint.

    It is not a DataLoader itself, because Lightning takes those apart to put in samplers of its own.
    """

    loader: DataLoader
    trained: Callable[[], int] = int  # batches of this epoch trained on; fewer than were given when one failed

    def __post_init__(self) -> None:
        self.dataset = self.loader.dataset
        self.sampler = self.batch_sampler = self.loader.batch_sampler  # where Lightning calls set_epoch

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)

    def state_dict(self) -> dict[str, int]:
        return {"trained": self.trained()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        # Saved after its last batch, in the validation that ends an epoch, the next pass starts from the front.
        self.batch_sampler.start = state["trained"] % len(self)
