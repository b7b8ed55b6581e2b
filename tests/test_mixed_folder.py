"""Images of every kind in a nested folder: predict writes a row for each good one and names each bad one."""

import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image

GOOD = {  # kind -> (mode, format, ending)
    "colour": ("RGB", "JPEG", "jpg"),
    "colour png": ("RGB", "PNG", "PNG"),
    "grey": ("L", "JPEG", "jpeg"),
    "bilevel": ("1", "PNG", "png"),
    "palette": ("P", "GIF", "gif"),
    "transparent": ("RGBA", "PNG", "png"),
    "grey and alpha": ("LA", "PNG", "png"),
    "cmyk": ("CMYK", "JPEG", "jpg"),
    "16 bit": ("I;16", "PNG", "png"),
    "32 bit": ("I", "TIFF", "tif"),
    "float": ("F", "TIFF", "tiff"),
    "webp": ("RGB", "WEBP", "webp"),
    "bmp": ("RGB", "BMP", "bmp"),
    "rotated": ("RGB", "JPEG", "jpg"),
    "long": ("RGB", "JPEG", "jpg"),
    "one pixel": ("RGB", "PNG", "png"),
}
BAD = ("empty", "truncated", "text", "garbage")
SIZES = {"long": (600, 7), "one pixel": (1, 1)}


def content(kind: str, number: int) -> bytes:
    """One image of a kind, different for every number."""
    mode, form, _ = GOOD[kind]
    random = np.random.default_rng(number)
    width, height = SIZES.get(kind, (30 + number, 25))
    if mode in ("I;16", "I", "F"):
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray((random.random((height, width)) * 60000).astype(dtype))
    else:
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(buffer, form, **({"exif": exif} if kind == "rotated" else {}))
    return buffer.getvalue()


def make(folder: Path) -> tuple[list[str], list[str]]:
    """200 image files, some of them bad, and files that are no images; the good and the bad paths."""
    good, bad = [], []
    kinds = list(GOOD) + list(BAD)
    for number in range(200):
        kind = kinds[number % len(kinds)]
        path = (
            folder / f"{number % 3}" / f"{number % 7}" / f"{kind} {number}.{GOOD[kind][2] if kind in GOOD else 'jpg'}"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = content(kind if kind in GOOD else "colour", number)
        broken = {
            "empty": b"",
            "truncated": whole[: len(whole) // 2],
            "text": b"no image",
            "garbage": bytes(range(256)) * 4,
        }
        path.write_bytes(broken.get(kind, whole))
        (good if kind in GOOD else bad).append(path.relative_to(folder).as_posix())
    (folder / "notes.txt").write_text("no image, and not called one")
    (folder / ".hidden.jpg").write_bytes(b"")
    return sorted(good), sorted(bad)


def test_a_row_for_each_good_one_and_the_name_of_each_bad_one(cli, trained, workdir) -> None:
    good, bad = make(workdir / "mixed")
    assert (len(good), len(bad)) == (160, 40)
    result = cli("predict", "--ckpt_path", "best", "--data.root", "mixed")
    assert result.code == 0
    assert [row["path"] for row in csv.DictReader((workdir / "predictions.csv").open())] == good
    named = [line.removeprefix("not predicted: ").split(": ")[0] for line in result.err.splitlines()]
    assert sorted(named) == bad
    assert "160 predictions" in result.out and "40 could not be read" in result.out


def test_fit_stops_before_training_with_the_list(cli, workdir, tiny_net) -> None:
    from conftest import ROOT, make_folder

    root = make_folder(workdir / "images")
    for kind in GOOD:
        (root / "red" / f"{kind}.{GOOD[kind][2]}").write_bytes(content(kind, 3))
    (root / "red" / "broken.jpg").write_bytes(b"no image")
    (root / "blue" / "cut.png").write_bytes((root / "blue" / "blue_000.png").read_bytes()[:60])
    command = ["fit", "--config", ROOT / "configs/folder.yaml", "--data.root", root, *tiny_net, "--data.test_size", "0"]
    command += ["--trainer.max_epochs", "1"]
    result = cli(*command)
    assert result.code == 2 and "2 of the images cannot be read" in result.err and "on_bad_image skip" in result.err
    assert "red/broken.jpg" in result.err and "blue/cut.png" in result.err and not (workdir / "runs").exists()
    result = cli(*command, "--data.on_bad_image", "skip")
    assert result.code == 0 and "images that cannot be read 2" in result.out
