"""The data module: split, batches of uint8 images, augmentation on the device (advice A2, A8, A9, A10)."""

import os
from collections import Counter
from collections.abc import Callable
from functools import cached_property, partialmethod
from typing import Any, Literal

import lightning as L
import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import DataLoader

from project.data.augment import Augment, Augmentation
from project.data.load import Bad, Cache, Loaded, describe_bad, describe_disk, load, measure
from project.data.loader import EpochBatches, ResumableLoader
from project.data.manifest import ImageList
from project.data.memory import Batch
from project.data.sources import ImageFiles, ImageFolder, Source, key_of, natural, some
from project.data.split import Splits, fingerprint, split_samples
from project.data.transforms import MAX_PIXELS, ImageFormat, Resize
from project.errors import UserError
from project.messages import say

# Batches of an evaluation, in batches of the training: without gradients twice as large a one takes less memory, since
# two layers' outputs are kept of it at a time, and a step of training keeps those of all.
EVALUATION = 2


class ImageDataModule(L.LightningDataModule):
    """Images of any source, split, checked, loaded and augmented."""

    def __init__(
        self,
        root: str | None = None,
        source: Callable[[str | None], Source] = ImageFolder,
        image_size: PositiveInt | None = None,
        channels: Literal[1, 3, 4] = 3,
        resize: Resize = "letterbox",
        batch_size: PositiveInt = 64,
        val_size: ClosedUnitInterval = 0.2,
        test_size: ClosedUnitInterval = 0.2,
        split_seed: int = 0,
        folds: int | None = None,
        fold: int = 0,
        augment: list[Augmentation] | None = None,
        random_resized_crop: tuple[float, float] | None = None,
        sampler: Literal["shuffle", "balanced", "sequential"] = "shuffle",
        on_bad_image: Literal["error", "skip"] = "error",
        on_seen_image: Literal["error", "skip"] = "error",
        cache: Cache = "auto",
        num_workers: NonNegativeInt | None = None,
        class_names: list[str] | None = None,
        seed: int | None = None,
        test_folds: int | None = None,
        test_fold: int = 0,
        rare_classes: Literal["error", "train", "leave_out"] = "error",
        value_range: tuple[float, float] | None = None,
        max_pixels: PositiveInt = MAX_PIXELS,
    ) -> None:
        """
        Args:
            root: Where the images are: a folder (ImageFolder), a CSV file (Manifest); for predict a folder, an
                image, or a CSV file with a column path.
            source: Class that lists and reads the images, by its path: project.data.ImageFolder, project.data.Digits...
            image_size: Pixels of a side: larger is usually more accurate, and slower. Null: measured, at most 224.
            channels: 1 (grey), 3 (colour) or 4 (colour and alpha); images of other kinds are converted.
            resize: letterbox keeps the whole image on grey bars, crop cuts out the middle, squash distorts.
            batch_size: Images per step on each device; rarely below 16. Evaluation takes twice as many at a time.
            val_size: Share of what is not test to validate on, where no validation set is given; 0 for none.
            test_size: Share of all images to test on, where no test set is given; 0 for none, 1 for all (test only).
            split_seed: Seed of the split alone, so that training seeds compare on one split.
            folds: k of k-fold cross-validation over what is not test; it replaces val_size. Null for a single split.
            fold: The fold that validates, from 0.
            augment: Random changes to the training images, in order, on the device; they must fit the task.
            random_resized_crop: Smallest and largest share of the area that a random crop of each training image keeps,
                made on the CPU, from the image reduced to 1.5 x image_size at its shorter side; null for none.
            sampler: shuffle shows every image once an epoch; balanced draws all classes equally often, with
                replacement; sequential keeps the order of the files, for debugging.
            on_bad_image: A file that cannot be read stops the run with the list (error), or is left out (skip).
            on_seen_image: A test image that the checkpoint was trained on stops the test (error) or is left out (skip).
            cache: Where decoded images are kept: memory; disk, in the user's cache folder, also for later runs; none
                reads the files anew each epoch. auto takes the first that has room. The batches are the same.
            num_workers: Processes that read images. Null chooses: 0 when in memory, else one per core, at most 8.
            class_names: The classes in their order; null takes those found in the data.
            seed: Of order and augmentation; null takes seed_everything.
            test_folds: k of the outer folds of a nested evaluation; it replaces test_size and a given test set.
            test_fold: The outer fold that tests, from 0.
            rare_classes: Classes with too few images to split stop the run (error), are trained on but neither
                validated nor tested (train), or are left out (leave_out).
            value_range: Black and white of images of more than 8 bits, as [0, 4095]. Null: measured on the training
                images, as 0 and the highest value of the bits that they use; [0, 0]: by the bits of each image.
            max_pixels: Pixels that an image may have: more are taken for an attack on the memory.
        """
        super().__init__()
        if random_resized_crop and not 0 < random_resized_crop[0] <= random_resized_crop[1] <= 1:
            raise UserError(f"data.random_resized_crop must be 0 < smallest <= largest <= 1, not {random_resized_crop}")
        self.root, self._make_source = root, source
        if value_range:
            self.value_range = list(value_range)
        if image_size:  # given: the property below is not computed; likewise the class names
            self.image_size = int(image_size)  # a plain number, for the checkpoint
        if class_names:
            self.class_names = list(map(key_of, class_names))
        self.channels, self.resize, self.random_resized_crop = channels, resize, random_resized_crop
        self.max_pixels = max_pixels
        self.batch_size, self.sampler, self.num_workers = batch_size, sampler, num_workers
        self.on_bad_image, self.on_seen_image = on_bad_image, on_seen_image
        self.cache = cache
        self._split_arguments = test_size, val_size, folds, fold, split_seed, test_folds, test_fold, rare_classes
        given = os.environ.get("PL_GLOBAL_SEED") if seed is None else seed  # set by seed_everything
        self.seeded, self.seed = given is not None, int(given or 0)
        self.augment = Augment(augment or [], self.seed)
        self.loaded: dict[str, Loaded] = {}  # split -> its images
        self._seen: dict[str, set[int]] = {}  # split -> identities of images that the loaded checkpoint has used
        self.same_split: bool | None = None  # whether the checkpoint's split is this one; None without a checkpoint

    # What is known of the data. Lazy: the command line reads it before `setup`, and with a checkpoint it is not needed.

    @cached_property
    def source(self) -> Source:
        return self._make_source(self.root)

    @cached_property
    def splits(self) -> Splits:
        """Positions in `source.samples` of the training, validation and test images."""
        return split_samples(self.source.samples, *self._split_arguments)

    @cached_property
    def class_names(self) -> list[str]:
        """The classes, in the order of the network's outputs."""
        train = self._labels("train") or self._labels("test")  # test_size 1: everything is to be tested
        names = self.source.class_names or sorted(set(train), key=natural)
        if len(names) < 2:
            raise UserError(
                f"there is only one class, {', '.join(names)!r}; two or more are needed, each in its own folder"
            )
        return names

    image_size = cached_property(lambda self: self._measured[0])  # pixels of a side
    value_range = cached_property(lambda self: self._measured[1])  # black and white of images of more than 8 bits

    @cached_property
    def _measured(self) -> tuple[int, list[float]]:
        return measure(self.source, self.splits["train"], self.max_pixels)

    @property
    def class_counts(self) -> list[int]:
        """Training images of each class."""
        return list(map(Counter(self._labels("train")).__getitem__, self.class_names))

    @property
    def bad(self) -> Bad:
        """(key, why) of the images that cannot be read and are left out."""
        return [entry for part in self.loaded.values() for entry in part.bad]

    @property
    def unused(self) -> Counter[str]:
        """Why files and images are not used -> how many."""
        rest = len(self.source.samples) - sum(map(len, self.splits.values()))
        return Counter({"images in no split": rest, "images that cannot be read": len(self.bad)}) + Counter(
            self.source.unused
        )

    @property
    def fingerprint(self) -> str:
        """Names the split; see `project.data.split.fingerprint`."""
        return fingerprint(self.source.samples, self.splits)

    def _labels(self, name: str) -> list[str | None]:
        """As the source says them, of the images of a split."""
        return [self.source.samples[i].label for i in self.splits[name]]

    # Lightning's hooks

    def setup(self, stage: str) -> None:
        """Split, check every image of the stage's splits, load what fits into memory. No other split is opened (A2)."""
        size, names = self.image_size, {"validate": ["val"]}.get(stage, [stage])
        image_format = ImageFormat(size, self.channels, self.resize, self.value_range, self.max_pixels)
        if stage == "predict":
            listed = str(self.root).lower().endswith(".csv")
            self.source = (ImageList if listed else ImageFiles)(self.root)
            self.splits = {"predict": range(len(self.source.samples))}
        if stage == "fit":
            names = ["train", "val"] if self.splits["val"] else ["train"]
            # Colour does not go with grey images, for example: say so before training.
            self.augment(torch.zeros(2, self.channels, size, size, dtype=torch.uint8), 0, torch.arange(2))
            if self.random_resized_crop:  # Touvron et al. 2019, arXiv:1906.06423; the mean of share ** -0.5
                say(
                    "advice     random_resized_crop: objects are about "
                    f"{2 / sum(share**0.5 for share in self.random_resized_crop):.2g} times as large as in validation; "
                    "raise its smallest share, or end with a short fit without it (model.weights)"
                )
        for name in names:
            if name not in self.loaded:
                rows, area = self.splits[name], self.random_resized_crop if name == "train" else None
                targets = [-1] * len(rows) if name == "predict" else self._targets(name)
                self.loaded[name] = load(self.source, rows, targets, image_format, self.cache, self.seed, area)
        if parts := [part for part in self.loaded.values() if part.disk]:
            say(f"cache      {describe_disk(parts)}")
        if self.bad and self.on_bad_image == "error" and stage != "predict":
            raise UserError(describe_bad(self.bad))

    def examples(self) -> Tensor:
        """Up to 5,000 training images (fewer large ones), whole and unchanged, uint8 (N, C, H, W): a part of the split,
        the same in every run."""
        part = self.loaded["train"]
        every = -(-len(part.index) // min(5000, 2**23 // self.image_size**2))
        return part.images.whole(part.index[::every])["image"]

    def _targets(self, name: str) -> list[int]:
        """What the network is to predict for each image of a split: the number of its class."""
        labels, number = self._labels(name), {label: i for i, label in enumerate(self.class_names)}
        if not labels:
            raise UserError(f"there are no {name} images: see data.test_size and data.val_size, or give a {name} set")
        if unknown := sorted(set(labels).difference(number)):
            raise UserError(
                f"the {name} images have a class {unknown[0]!r} that is unknown: the model knows "
                f"{some(self.class_names)}"
            )
        return [number[label] for label in labels]

    def _loader(self, name: str) -> ResumableLoader:
        trainer, images, workers = self.trainer, self.loaded[name].images, self.num_workers
        device = trainer.strategy.root_device
        train, weights = name == "train", None
        if train and self.sampler == "balanced":
            weights = (1 / torch.bincount(images.labels))[images.labels]
        batches = EpochBatches(
            self._unseen(name),
            self.batch_size * (1 if train else EVALUATION),
            train,
            self.seed,
            weights,
            trainer.global_rank,
            trainer.world_size,
            shuffle=self.sampler != "sequential",
        )
        if workers is None:  # images in memory are only copied: handing them between processes would cost more
            workers = min(8, os.cpu_count() or 1) if images.pixels is None else 0
        there = images if workers else images.on(device)
        loader = DataLoader(
            there,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=dict,  # the data set gives whole batches
            pin_memory=device.type == "cuda" and there is images,
            persistent_workers=workers > 0,
        )
        return ResumableLoader(loader, lambda: trainer.fit_loop.epoch_loop.batch_progress.current.processed)

    train_dataloader = partialmethod(_loader, "train")
    test_dataloader = partialmethod(_loader, "test")
    predict_dataloader = partialmethod(_loader, "predict")

    def val_dataloader(self) -> ResumableLoader | list:
        return self._loader("val") if "val" in self.loaded else []

    def _unseen(self, name: str) -> list[int]:
        """The images of a split. A test refuses or leaves out those that the checkpoint was trained on or chosen by."""
        rows, digests = self.loaded[name].index, self.loaded[name].digests
        known = [row for row in rows if digests[row] in self._seen.get(name, ())]
        if not known:
            return rows
        example = f"for example {self.source.samples[known[0]].key}"
        words = f"{len(known)} of the {len(rows)} {name} images were used to train this model, {example}"
        if name == "val":
            say(f"{words}: the score flatters it.")
            return rows
        if self.on_seen_image == "error" or len(known) == len(rows):
            raise UserError(f"{words}; give others (--data.root), or leave these out: --data.on_seen_image skip")
        say(f"{words}; they are left out.")
        return sorted(set(rows).difference(known))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment the training images, on the device."""
        if self.trainer.training:
            batch["image"] = self.augment(batch["image"], self.trainer.current_epoch, batch["index"])
        return batch

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: which images trained it and which chose it, by the identity of their content."""
        uses = {"train": "trained", "val": "validated"}
        state = {uses[name]: part.identities() for name, part in self.loaded.items() if name in uses}
        return state | {"fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        command = self.trainer.state.fn
        if command == "predict":  # without a split
            return
        self.same_split = state["fingerprint"] == self.fingerprint
        if command != "fit":
            trained, validated = (set(state.get(use, torch.empty(0)).tolist()) for use in ("trained", "validated"))
            self._seen = {"val": trained, "test": trained | validated}
        elif not self.same_split:
            say("The images or their split have changed since the checkpoint: validation images may now be trained on.")
