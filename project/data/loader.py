"""Batches in an order that is a function of (seed, epoch) alone, so that a run can resume in the middle of an epoch."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from project.data.memory import INDEX_LIMIT, Batch, Images, Request


class EpochBatches:
    """A batch sampler: lists of (epoch, key), the same for any number of workers, and shared out among ranks.

    In training every rank gets equally many images, as DDP needs (the first few of the order come again where they do not
    come out even); in evaluation each image comes exactly once, on one rank.
    """

    def __init__(
        self,
        index: Sequence[int],
        batch_size: int,
        train: bool,
        seed: int = 0,
        weights: Tensor | None = None,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        """
        Args:
            index: The images, by their position among all samples.
            batch_size: Images in a batch, on one device.
            train: Shuffle each epoch, and leave out a last batch of a single image, which batch norm cannot take.
            seed: Of the order.
            weights: Draw with replacement, in proportion to these (one for each of `index`).
            rank: This process.
            world_size: Number of processes.
            shuffle: False keeps the order of `index` in training too.
        """
        self.index = torch.tensor(index, dtype=torch.int64)
        self.batch_size, self.train, self.seed, self.weights = batch_size, train, seed, weights
        self.rank, self.world_size, self.shuffle = rank, world_size, shuffle
        self.epoch = 0
        self.start = 0  # batches that the next pass leaves out at its beginning: trained before an interruption

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def _mine(self) -> int:
        """Images of this rank."""
        if self.train:
            return -(-len(self.index) // self.world_size)
        return len(range(self.rank, len(self.index), self.world_size))

    def __len__(self) -> int:
        full, rest = divmod(self._mine(), self.batch_size)
        return full + (rest > (1 if self.train and full else 0))

    def _order(self) -> list[int]:
        if not self.train:
            return self.index[self.rank :: self.world_size].tolist()
        order = self.index
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.weights is not None:
            order = order[torch.multinomial(self.weights, len(order), replacement=True, generator=generator)]
        elif self.shuffle:
            order = order[torch.randperm(len(order), generator=generator)]
        # Around, more than once where ranks outnumber images.
        keys = itertools.islice(itertools.cycle(order.tolist()), self._mine() * self.world_size)
        return _count_repeats(keys)[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[list[Request]]:
        order, first, self.start = self._order(), self.start, 0
        for batch in range(first, len(self)):
            yield [(self.epoch, key) for key in order[batch * self.batch_size : (batch + 1) * self.batch_size]]


def _count_repeats(keys: Iterable[int]) -> list[int]:
    """Mark the second, third... time an image comes in an epoch, so that it is augmented differently each time."""
    seen: dict[int, int] = {}
    marked = []
    for key in keys:
        seen[key] = times = seen.get(key, -1) + 1
        marked.append(key + times * INDEX_LIMIT)
    return marked


class ResumableLoader:
    """A DataLoader that can start in the middle of an epoch; Lightning keeps its state in the checkpoint.

    It holds a DataLoader instead of being one, because Lightning takes those apart to put in samplers of its own.
    """

    def __init__(
        self,
        images: Images,
        batches: EpochBatches,
        num_workers: int,
        pin_memory: bool = False,
        trained: Callable[[], int] = int,
    ) -> None:
        """
        Args:
            images: The data set.
            batches: Which images form the batches.
            num_workers: Processes that read them; 0 for none.
            pin_memory: Put batches where a GPU fetches them faster.
            trained: Says how many batches of this epoch have been trained on; fewer than were given when one failed.
        """
        self._loader = DataLoader(
            dataset=images,
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=dict,  # the data set gives whole batches
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
        )
        self.batches, self._trained = batches, trained
        self.dataset, self.sampler, self.batch_sampler = images, batches, batches  # where Lightning calls set_epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)

    def state_dict(self) -> dict[str, int]:
        return {"trained": self._trained()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        # Saved after its last batch, in the validation that ends an epoch, the next pass starts from the front.
        self.batches.start = state["trained"] % len(self.batches)
