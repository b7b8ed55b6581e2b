"""Find damaged images before training does; verdicts are remembered, so that the second run is quick."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

from PIL import Image

from project.data.sources import Sample, Source
from project.data.transforms import decode


@dataclass(frozen=True)
class Verdict:
    """What is known of one image file.

    Attributes:
        size: Of the file, bytes.
        time: Of its last change, nanoseconds.
        digest: 64-bit blake2b of the content, as a signed integer: the image's identity wherever it lies.
        fault: Why it cannot be read; empty when it can.
    """

    size: int
    time: int
    digest: int
    fault: str


def cache_folder() -> Path:
    """Where verdicts are kept between runs: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "image-classification-template"


class Verdicts:
    """The verdicts of all files below one root, kept in one JSON file. Path, size and time must agree to be believed."""

    def __init__(self, root: str) -> None:
        name = hashlib.blake2b(os.path.abspath(root).encode(), digest_size=8).hexdigest()
        self._file = cache_folder() / f"verdicts-{name}.json"
        self._known: dict[str, Verdict] = {}
        with contextlib.suppress(
            OSError, ValueError, TypeError, AttributeError
        ):  # none yet, or damaged: look at the images again
            self._known = {path: Verdict(*row) for path, row in json.loads(self._file.read_text()).items()}
        self._changed = False

    def get(self, path: Path) -> Verdict | None:
        known, now = self._known.get(str(path)), path.stat()
        return known if known and (known.size, known.time) == (now.st_size, now.st_mtime_ns) else None

    def put(self, path: Path, verdict: Verdict) -> None:
        self._known[str(path)] = verdict
        self._changed = True

    def save(self) -> None:
        """Written whole and then renamed, so that two runs at once cannot mix; a read-only home is no obstacle."""
        if not self._changed:
            return
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft = self._file.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps({path: astuple(verdict) for path, verdict in self._known.items()}))
            draft.replace(self._file)


def digest(content: bytes | memoryview) -> int:
    """64-bit identity of an image's content, signed because torch has no unsigned 64-bit integers to sort."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)


def survey(
    source: Source,
    samples: Sequence[Sample],
    channels: int,
    verdicts: Verdicts,
    keep: Callable[[int, Image.Image], None] | None = None,
    hint: int | None = None,
) -> list[Verdict]:
    """Judge every sample, in several threads (Pillow decodes without holding Python's lock).

    Args:
        source: Where the images come from.
        samples: Which images.
        channels: To decode to.
        verdicts: What is known from before; files known to be good are not decoded again unless `keep` wants them.
        keep: Takes the position in `samples` and the decoded image; may be called from any thread.
        hint: The size that `keep` wants.

    Returns:
        One verdict for each sample, in order.
    """

    def judge(position: int) -> Verdict:
        sample = samples[position]
        path = source.path(sample)
        if path is None:  # the source holds pixels: nothing can be damaged
            content = source.content(sample)
            if keep:
                keep(position, decode(content, channels, hint))
            return Verdict(0, 0, digest(content.tobytes()), "")
        try:
            known = verdicts.get(path)
            if known and (known.fault or not keep):
                return known
            state, content = path.stat(), source.content(sample)
        except OSError as error:
            return Verdict(0, 0, 0, f"cannot be opened ({error.strerror or error})")
        fault = ""
        try:
            if not content:
                raise ValueError("the file is empty")
            image = decode(content, channels, hint)
            if keep:
                keep(position, image)
        except MemoryError:
            raise
        except Exception as error:  # every one of Pillow's decoders has exceptions of its own
            fault = _in_words(error)
        if known and not fault:
            return known
        verdict = Verdict(state.st_size, state.st_mtime_ns, digest(content), fault)
        verdicts.put(path, verdict)
        return verdict

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        found = list(threads.map(judge, range(len(samples)), chunksize=16))
    verdicts.save()
    return found


def _in_words(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, whatever its name says"
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:120]
