"""Find damaged images before training does; verdicts are remembered, so that the second run is quick."""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from project.data.sources import Sample, Source
from project.data.transforms import ImageFormat, decode, load_image
from project.errors import UserError
from project.files import written_whole


class Verdict(NamedTuple):
    """What is known of one image file.

    Attributes:
        size: Of the file, bytes.
        time: Of its last change, nanoseconds.
        digest: 64-bit blake2b of the content, as a signed integer: the image's identity, whatever its name.
        fault: Why it cannot be read; empty when it can.
    """

    size: int
    time: int
    digest: int
    fault: str


def survey(
    source: Source, samples: Sequence[Sample], image_format: ImageFormat, pixels: Tensor | None = None
) -> list[Verdict]:
    """Judge every sample, in several threads (Pillow decodes without holding Python's lock).

    A verdict from an earlier run is believed while path, size and time agree; a good file is then decoded again only for
    its pixels.

    Args:
        source: Where the images come from.
        samples: Which images.
        image_format: What they are to be brought to.
        pixels: Takes the decoded images, uint8 (N, C, H, W); None keeps none.

    Returns:
        One verdict for each sample, in order.
    """
    paths = [source.path(sample) for sample in samples]
    file = _file_of_verdicts([path for path in paths if path])
    known: dict[str, Verdict] = {}
    with contextlib.suppress(OSError, ValueError):  # there is no file yet
        known = {path: Verdict(*row) for path, row in json.loads(file.read_text()).items()}

    def judge(position: int) -> Verdict:
        path, state = paths[position], (0, 0)  # no path: the source holds pixels
        try:
            if path:
                status = path.stat()
                state, verdict = (status.st_size, status.st_mtime_ns), known.get(str(path))
                if verdict and verdict[:2] == state and (verdict.fault or pixels is None):
                    return verdict
            content = source.content(samples[position])
        except OSError as error:
            return Verdict(0, 0, 0, f"cannot be opened ({error.strerror or error})")
        fault = ""
        try:
            if pixels is None:
                decode(content, image_format.channels, image_format.image_size)
            else:
                pixels[position] = load_image(content, *image_format)
        except MemoryError:
            raise
        except Exception as error:  # every one of Pillow's decoders has exceptions of its own
            fault = (" ".join(str(error).split()) or type(error).__name__)[:120]
            if isinstance(error, Image.UnidentifiedImageError):
                fault = "not an image" if content else "the file is empty"
        return Verdict(*state, digest(bytes(content)), fault)

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        found = list(threads.map(judge, range(len(samples)), chunksize=16))
    verdicts = known | {str(path): verdict for path, verdict in zip(paths, found, strict=True) if path}
    if verdicts != known:
        with contextlib.suppress(OSError, UserError):  # a home that is read-only: judge again next time
            file.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(file) as draft:
                draft.write_text(json.dumps(verdicts))
    return found


def digest(content: bytes) -> int:
    """64-bit identity of an image's content, signed because torch has no unsigned 64-bit integers to sort."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)


def _file_of_verdicts(paths: Sequence[Path]) -> Path:
    """The file in the user's cache folder that keeps the verdicts on these images, by the folder they share."""
    folder = os.path.commonpath([os.path.abspath(path.parent) for path in paths]) if paths else ""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "image-classification-template"
    return cache / f"verdicts-{hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()}.json"
