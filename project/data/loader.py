"""Batches in an order that is a function of (seed, epoch) alone, so that a run can resume in the middle of an epoch."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from project.data.memory import INDEX_LIMIT, Batch, Request


@dataclass(eq=False)
class EpochBatches:
    """A batch sampler: lists of (epoch, key), the same for any number of workers, and shared out among ranks.

    In training every rank gets equally many images, so the first few may come again; in evaluation each comes once.
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
        order = torch.as_tensor(self.index)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.weights is not None:
            order = order[torch.multinomial(self.weights, len(order), replacement=True, generator=generator)]
        elif self.train and self.shuffle:
            order = order[torch.randperm(len(order), generator=generator)]
        turns = defaultdict(itertools.count)  # an image is augmented differently when it comes again
        # Around, more than once where ranks outnumber images.
        keys = itertools.islice(itertools.cycle(order.tolist()), len(order) + self.world_size)
        requests = [(self.epoch, key + next(turns[key]) * INDEX_LIMIT) for key in keys]
        first, self.start = self.start, 0
        for batch in range(first, len(self)):
            yield [requests[i] for i in self.places(batch, batch + 1)]

    def places(self, first: int, last: int) -> range:
        """Places in the order of an epoch of the images in the batches from `first` to before `last`, on this rank."""
        return self._places()[first * self.batch_size : last * self.batch_size]

    def _places(self) -> range:
        """Places in the order of an epoch that are this rank's."""
        count = len(self.index)
        return range(self.rank, count + (-count % self.world_size if self.train else 0), self.world_size)


@dataclass(eq=False)
class ResumableLoader:
    """Starts a DataLoader in the middle of an epoch. Not one itself: Lightning would put in samplers of its own."""

    loader: DataLoader
    trained: Callable[[], int] = int  # batches of this epoch trained on; fewer than were given when one failed

    def __post_init__(self) -> None:
        self.dataset = self.loader.dataset
        self.sampler = self.batch_sampler = self.loader.batch_sampler  # where Lightning calls set_epoch

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Its workers start when the first batch is wanted: Lightning makes iterators before it sets the epoch."""
        yield from self.loader

    def state_dict(self) -> dict[str, int]:
        return {"trained": self.trained()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        # Saved after its last batch, in the validation that ends an epoch, the next pass starts from the front.
        self.batch_sampler.start = state["trained"] % len(self)
