import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from profiles import cmyk_profile, encoded, grey_profile, in_srgb, lab_in_srgb, rgb_profile

from project.data import transforms
from project.data.transforms import ImageFormat

MODE = {1: "L", 3: "RGB", 4: "RGBA"}
HEIGHT, WIDTH = 6, 9


def decode(content: bytes | np.ndarray, channels: int, hint: int | None = None, **options) -> Image.Image:
    return transforms.decode(content, ImageFormat(8, channels, "squash", **options), hint)


def load_image(content: bytes | np.ndarray, size: int, channels: int, how: str) -> torch.Tensor:
    return transforms.load_image(content, ImageFormat(size, channels, how))


def stored(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def resized(image: np.ndarray | Image.Image, size: int, how: str) -> np.ndarray:
    """(C, size, size), or (size, size) where grey."""
    array = np.asarray(image).astype(np.uint8)
    out = load_image(array, size, 1 if array.ndim == 2 else array.shape[2], how).numpy()
    return out[0] if array.ndim == 2 else out


def noise(*shape: int, high: int = 256) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, high, shape, dtype=np.int64)


def rgba(color: np.ndarray, alpha: np.ndarray | int = 255) -> np.ndarray:
    """(H, W) grey or (H, W, 3) colour, and alpha, as float (H, W, 4)."""
    color = np.broadcast_to(color[..., None] if color.ndim == 2 else color, (*color.shape[:2], 3))
    return np.concatenate([color, np.broadcast_to(alpha, color.shape[:2])[..., None]], axis=2).astype(float)


def grey_cases() -> dict[str, tuple[bytes, np.ndarray]]:
    grey, alpha = noise(HEIGHT, WIDTH), noise(HEIGHT, WIDTH, 1)[..., 0]
    bits, wide = grey > 127, noise(HEIGHT, WIDTH, high=65536)
    unit = (noise(HEIGHT, WIDTH) / 255).astype(np.float32)
    unit.flat[:2] = 0, 1
    tall = noise(HEIGHT, WIDTH, high=10**6)
    tall.flat[0] = 10**6
    make = Image.fromarray
    return {
        "L": (stored(make(grey.astype(np.uint8)), "PNG"), rgba(grey)),
        "L with a transparent grey": (
            stored(make(bits.astype(np.uint8) * 90), "PNG", transparency=90),
            rgba(bits * 90, np.where(bits, 0, 255)),
        ),
        "LA": (stored(make(np.stack([grey, alpha], 2).astype(np.uint8), "LA"), "PNG"), rgba(grey, alpha)),
        "1": (stored(make(bits), "PNG"), rgba(bits * 255)),
        "I;16": (stored(make(wide.astype(np.uint16)), "PNG"), rgba(wide / 257)),
        "I;16 TIFF": (stored(make(wide.astype(np.uint16)), "TIFF"), rgba(wide / 257)),
        "I up to 255": (stored(make(grey.astype(np.int32)), "TIFF"), rgba(grey)),
        "I up to 65535": (stored(make(wide.astype(np.int32)), "TIFF"), rgba(wide / 257)),
        "I beyond": (stored(make(tall.astype(np.int32)), "TIFF"), rgba(tall / 10**6 * 255)),
        "I below 0": (stored(make((grey - 100).astype(np.int32)), "TIFF"), rgba(np.maximum(grey - 100, 0))),
        "F up to 1": (stored(make(unit), "TIFF"), rgba(unit * 255)),
        "F up to 255": (stored(make(grey.astype(np.float32)), "TIFF"), rgba(grey)),
        "F up to 65535": (stored(make(wide.astype(np.float32)), "TIFF"), rgba(wide / 257)),
        "F of zeros": (stored(make(np.zeros((HEIGHT, WIDTH), np.float32)), "TIFF"), rgba(np.zeros((HEIGHT, WIDTH)))),
    }


def color_cases() -> dict[str, tuple[bytes, np.ndarray]]:
    color, alpha = noise(HEIGHT, WIDTH, 3), noise(HEIGHT, WIDTH, 2)[..., 0]
    index, colors = noise(HEIGHT, WIDTH, high=4), np.array([[250, 10, 20], [0, 200, 30], [40, 50, 220], [9, 9, 9]])
    alphas = np.array([0, 128, 255, 255])
    two = np.where((index > 1)[..., None], colors[2], colors[0])  # two colours; the first is see-through
    palette = Image.fromarray(index.astype(np.uint8)).convert("P")
    palette.putpalette(colors.astype(np.uint8).tobytes())
    second = Image.new("P", palette.size, 3)
    second.putpalette(palette.getpalette())
    inks = np.array([[30, 90, 200, 40], [200, 20, 10, 120]])  # C, M, Y, K of the two halves
    cmyk = np.repeat(np.repeat(inks[None], 16, axis=1), 16, axis=0)  # (16, 32, 4)
    make = Image.fromarray
    return {
        "RGB": (stored(make(color.astype(np.uint8)), "PNG"), rgba(color)),
        "RGB with a transparent colour": (
            stored(make(two.astype(np.uint8)), "PNG", transparency=(250, 10, 20)),
            rgba(two, np.where(index > 1, 255, 0)),
        ),
        "RGBA": (stored(make(np.dstack([color, alpha]).astype(np.uint8)), "PNG"), rgba(color, alpha)),
        "P": (stored(palette, "PNG"), rgba(colors[index])),
        "P with alphas": (
            stored(palette, "PNG", transparency=bytes(alphas.tolist())),
            rgba(colors[index], alphas[index]),
        ),
        "P with a transparent colour": (
            stored(palette, "PNG", transparency=1),
            rgba(colors[index], np.where(index == 1, 0, 255)),
        ),
        "GIF": (stored(palette, "GIF"), rgba(colors[index])),
        "GIF with a transparent colour": (
            stored(palette, "GIF", transparency=2),
            rgba(colors[index], np.where(index == 2, 0, 255)),
        ),
        "GIF of two frames": (stored(palette, "GIF", save_all=True, append_images=[second]), rgba(colors[index])),
        "CMYK": (
            stored(make(cmyk.astype(np.uint8), "CMYK"), "JPEG", quality=100, subsampling=0),
            rgba((255 - cmyk[..., :3]) * (255 - cmyk[..., 3:]) / 255),
        ),
    }


CASES = {**grey_cases(), **color_cases()}


def expected_pixels(seen: np.ndarray, channels: int) -> np.ndarray:
    """What float (H, W, 4) is in so many channels: on white, and grey by ITU-R 601."""
    if channels == 4:
        return seen
    share = seen[..., 3:] / 255
    color = seen[..., :3] * share + 255 * (1 - share)
    return color if channels == 3 else color @ [0.299, 0.587, 0.114]


RANGES = {"I up to 255": (0, 255), "I beyond": (0, 10**6), "I below 0": (0, 255)}
RANGES |= {"F up to 1": (0, 1), "F up to 255": (0, 255)}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_image_has_the_right_pixels(name, channels):
    content, seen = CASES[name]
    image = decode(content, channels, value_range=RANGES.get(name, (0, 65535)))
    assert image.mode == MODE[channels]
    assert image.size == (seen.shape[1], seen.shape[0])
    pixels, wanted = np.asarray(image, dtype=float), expected_pixels(seen, channels)
    assert pixels.shape == wanted.shape
    assert np.abs(pixels - wanted).max() <= (6 if name == "CMYK" else 2)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_eight_bits_stored_wider_come_back_exactly(mode):
    levels = np.arange(256).reshape(16, 16)
    wide = {
        "I;16": (levels * 257).astype(np.uint16),
        "I": (levels * 257).astype(np.int32),
        "F": levels.astype(np.float32),
    }
    content = stored(Image.fromarray(wide[mode]), "TIFF")
    high = 255 if mode == "F" else 65535
    assert np.array_equal(np.asarray(decode(content, 1, value_range=(0, high))), levels)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4), (5, 1)])
def test_arrays_are_taken_as_they_are(shape, channels):
    array = noise(*shape).astype(np.uint8)
    grey = array.ndim == 2 or shape[2] == 1
    seen = rgba(array.reshape(shape[:2]) if grey else array[..., :3], array[..., 3] if shape[-1] == 4 else 255)
    image = decode(array, channels)
    assert image.mode == MODE[channels]
    assert np.abs(np.asarray(image, dtype=float) - expected_pixels(seen, channels)).max() <= 1


# Exif 2.3, tag 0x0112: how the stored rows and columns have to be turned to be seen upright
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),  # a quarter turn clockwise
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_exif_orientation_is_applied(orientation, channels):
    image = Image.fromarray(noise(24, 40, 3).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = decode(stored(image, "JPEG"), channels)
    turned = decode(stored(image, "JPEG", exif=exif.tobytes()), channels)
    assert np.array_equal(np.asarray(turned), UPRIGHT[orientation](np.asarray(plain)))
    assert turned.size == ((24, 40) if orientation > 4 else (40, 24))
    assert turned.getexif().get(0x0112, 1) == 1


def bilinear(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """torch's antialiased bilinear filter on (H, W)."""
    pixels = torch.from_numpy(np.ascontiguousarray(array))[None, None].float()
    return torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True)[0, 0].numpy()


def tent(length: int, start: float, stop: float, count: int) -> np.ndarray:
    """(count, length): weights that average a line from start to stop into count pixels, by a tent two pixels wide."""
    step = (stop - start) / count
    middle = start + (np.arange(count) + 0.5) * step
    distance = np.abs(np.arange(length) + 0.5 - middle[:, None]) / max(step, 1)
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("height", "width", "size"), [(40, 120, 20), (120, 40, 32), (10, 30, 24), (33, 57, 16)])
def test_squash_scales_both_sides(height, width, size):
    array = noise(height, width)
    out = resized(array, size, "squash").astype(float)
    assert np.abs(out - bilinear(array, size, size)).max() <= 1


@pytest.mark.parametrize(("height", "width", "size"), [(40, 120, 20), (120, 40, 32), (10, 30, 24), (34, 57, 16)])
def test_crop_is_the_middle_square(height, width, size):
    array, side = noise(height, width), min(height, width)
    top, left = (height - side) / 2, (width - side) / 2
    out = resized(array, size, "crop").astype(float)
    wanted = tent(height, top, top + side, size) @ array @ tent(width, left, left + side, size).T
    assert np.abs(out - wanted).max() <= 1


def test_crop_without_scaling_is_a_slice():
    array = noise(20, 61).astype(np.uint8)
    assert np.array_equal(resized(array[:, :60], 20, "crop"), array[:, 20:40])
    assert np.array_equal(resized(array[:, :60].T, 20, "crop"), array[:, 20:40].T)


@pytest.mark.parametrize(("height", "width", "size"), [(40, 120, 20), (120, 40, 32), (10, 30, 24), (33, 57, 16)])
def test_letterbox_keeps_the_proportions_on_grey(height, width, size):
    array = noise(height, width)
    out = resized(array, size, "letterbox").astype(float)
    h, w = (max(1, round(side * size / max(height, width))) for side in (height, width))
    top, left = (size - h) // 2, (size - w) // 2
    wanted = np.full((size, size), 114.0)
    wanted[top : top + h, left : left + w] = bilinear(array, h, w)
    assert np.abs(out - wanted).max() <= 1


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 48), st.sampled_from([1, 3, 4]))
def test_letterbox_geometry(width, height, size, channels):
    """A white image: what is not white is the bar, of grey 114 and opaque."""
    image = Image.new(MODE[channels], (width, height), "white")
    out = load_image(np.asarray(image), size, channels, "letterbox")
    assert out.shape == (channels, size, size) and out.dtype == torch.uint8
    inside = (out[: min(channels, 3)] == 255).all(0)
    assert (out[: min(channels, 3), ~inside] == 114).all()
    assert channels != 4 or (out[3] == 255).all()
    rows, columns = inside.any(1).sum().item(), inside.any(0).sum().item()
    assert max(rows, columns) == size  # it touches two sides
    assert inside.sum() == rows * columns  # a rectangle
    long = max(width, height)
    assert abs(rows - max(1, height * size / long)) <= 0.5 and abs(columns - max(1, width * size / long)) <= 0.5
    for filled, has in ((rows, inside.any(1)), (columns, inside.any(0))):
        first = has.int().argmax().item()
        assert abs(first - (size - filled - first)) <= 1  # centred


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 40),
    st.sampled_from([1, 3, 4]),
    st.sampled_from(["crop", "squash"]),
)
def test_the_other_ways_fill_the_square(width, height, size, channels, how):
    out = load_image(np.asarray(Image.new(MODE[channels], (width, height), "white")), size, channels, how)
    assert out.shape == (channels, size, size)
    assert (out == 255).all()


@pytest.mark.parametrize("how", ["letterbox", "crop", "squash"])
def test_an_image_of_the_right_size_is_untouched(how):
    array = noise(16, 16, 3).astype(np.uint8)
    assert np.array_equal(resized(array, 16, how), array.transpose(2, 0, 1))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(16, 500),
    st.integers(16, 500),
    st.integers(8, 64),
    st.sampled_from(["letterbox", "crop", "squash"]),
    st.booleans(),
)
def test_a_jpeg_decoded_smaller_gives_the_same_size_and_look(width, height, size, how, grey):
    ramp = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 135, width)).astype(np.uint8)
    image = Image.fromarray(ramp).convert("L" if grey else "RGB")
    content = stored(image, "JPEG", quality=95)
    hinted = load_image(content, size, 3, how)
    full = load_image(np.asarray(decode(content, 3)), size, 3, how)
    assert hinted.shape == full.shape == (3, size, size)
    smaller = decode(content, 3, hint=size)
    assert smaller.size == image.size or min(smaller.size) >= 2 * size
    # a side that is no multiple of the reduction is filled up to one: the ramp is then stretched by so much
    added = round(width / smaller.width) - 1
    allowed = 3 + 120 * added / height + 135 * added / width
    assert (hinted.float() - full.float()).abs().median() <= allowed  # median: one row of a letterbox may differ


def test_a_large_jpeg_is_decoded_smaller():
    content = stored(Image.new("RGB", (640, 480)), "JPEG")
    assert decode(content, 3, hint=32).size == (
        160,
        120,
    )  # the smallest of 1/1, 1/2, 1/4, 1/8 with both sides at least 64
    assert decode(content, 3, hint=30).size == (80, 60)
    assert decode(content, 3, hint=400).size == (640, 480)
    assert decode(stored(Image.new("RGB", (640, 480)), "PNG"), 3, hint=32).size == (640, 480)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (95, 62), (61, 400), (48, 60), (20, 30)])
@pytest.mark.parametrize(("kind", "channels"), [("PNG", 1), ("PNG", 3), ("PNG", 4), ("JPEG", 3), ("JPEG", 1)])
def test_what_is_cropped_has_a_shorter_side_of_at_most_one_and_a_half_sizes(width, height, kind, channels):
    """Against Pillow's resizing of the whole image; a JPEG is decoded smaller before."""
    ramp = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 135, width)).astype(np.uint8)
    image = Image.fromarray(ramp).convert(MODE[channels])
    content = stored(image, kind, **{"quality": 95} if kind == "JPEG" else {})
    out = transforms.load_image(content, ImageFormat(32, channels, "crop", crop=True))
    scale = min(1, 48 / min(width, height))
    sides = round(width * scale), round(height * scale)
    assert out.dtype == torch.uint8 and out.shape == (channels, sides[1], sides[0])
    wanted = np.asarray(image.resize(sides, Image.BILINEAR)).reshape(sides[1], sides[0], channels)
    assert np.abs(out.permute(1, 2, 0).numpy().astype(int) - wanted).max() <= (1 if kind == "PNG" else 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
@pytest.mark.parametrize("hint", [None, 8])
def test_a_cut_file_raises(kind, hint):
    content = stored(Image.fromarray(noise(64, 64, 3).astype(np.uint8)), kind)
    assert decode(content, 3, hint).mode == "RGB"
    with pytest.raises((OSError, ValueError, SyntaxError)):
        decode(content[: len(content) // 2], 3, hint)


@pytest.mark.parametrize("content", [b"", b"no image at all", bytes(1000), b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_raises(content):
    with pytest.raises((OSError, ValueError, SyntaxError)):
        load_image(content, 8, 3, "letterbox")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_floats_that_are_no_numbers_raise(value):
    content = stored(Image.fromarray(np.array([[0.5, value]], dtype=np.float32)), "TIFF")
    with pytest.raises(ValueError, match="not numbers"):
        decode(content, 1)


# Images of more than 8 bits


def test_twelve_bits_in_a_file_of_sixteen_keep_256_levels():
    values = np.arange(4096).reshape(64, 64)
    content = stored(Image.fromarray(values.astype(np.uint16)), "PNG")
    pixels = np.asarray(decode(content, 1, value_range=(0, 4095)))
    assert np.array_equal(pixels, np.round(values * 255 / 4095).astype(np.uint8))  # rounded, not truncated
    assert len(np.unique(pixels)) == 256


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["I;16", "I", "F"]), st.integers(-2000, 2000), st.integers(1, 60000), st.booleans())
def test_a_range_is_stretched_rounded_and_clipped(mode, low, width, inverted):
    low = abs(low) if mode == "I;16" else low
    values = np.random.default_rng(width).integers(low - width // 10 - 3, low + width + width // 10 + 3, (9, 7))
    values = np.clip(values, 0, 65535) if mode == "I;16" else values
    kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    ends = (low + width, low) if inverted else (low, low + width)
    pixels = np.asarray(decode(stored(Image.fromarray(values.astype(kind)), "TIFF"), 1, value_range=ends))
    wanted = np.interp(values, (low, low + width), (255, 0) if inverted else (0, 255))
    assert np.abs(pixels - wanted).max() <= 0.5 + 1e-9


def test_an_image_far_beyond_the_range_is_refused_and_a_bright_spot_is_not():
    values = np.full((8, 8), 3000, dtype=np.uint16)
    with pytest.raises(ValueError, match=r"far beyond data.value_range 0 to 255"):
        decode(stored(Image.fromarray(values), "PNG"), 1, value_range=(0, 255))
    values[:5], values[0, 0] = 100, 65535
    pixels = np.asarray(decode(stored(Image.fromarray(values), "PNG"), 1, value_range=(0, 255)))
    assert pixels[0, 0] == 255 and (pixels[1:5] == 100).all()


@pytest.mark.parametrize(
    ("kind", "top", "wanted"),
    [
        (np.uint16, 4000, 4095),
        (np.uint16, 65535, 65535),
        (np.uint16, 255, 255),
        (np.uint16, 0, 1),
        (np.int32, 10**6, 2**20 - 1),
        (np.float32, 1, 1),
        (np.float32, 0.5, 1),
        (np.float32, 200, 255),
    ],
)
def test_without_a_range_an_image_counts_by_its_own_bits(kind, top, wanted):
    values = np.linspace(0, top, 48).reshape(6, 8).astype(kind)
    pixels = np.asarray(decode(stored(Image.fromarray(values), "TIFF"), 1, value_range=(0, 0)))
    assert np.abs(pixels - values * (255 / wanted)).max() <= 0.5 + 1e-5


@pytest.mark.parametrize("channels", [1, 3])
def test_eight_bits_know_no_range(channels):
    content = stored(Image.fromarray(noise(16, 16).astype(np.uint8)), "PNG")
    assert np.array_equal(
        np.asarray(decode(content, channels, value_range=(9, 11))), np.asarray(decode(content, channels))
    )


# Limits


def test_more_pixels_than_the_limit_and_than_pillows():
    content = stored(Image.new("L", (40, 30)), "PNG")
    assert decode(content, 1, max_pixels=1200).size == (40, 30)
    with pytest.raises(ValueError, match=r"40x30: more pixels than data.max_pixels 1199"):
        decode(content, 1, max_pixels=1199)


@pytest.mark.slow
def test_an_image_that_pillow_takes_for_an_attack(tmp_path):
    content = stored(Image.new("1", (14000, 13000)), "PNG")
    with pytest.raises(ValueError, match=r"more pixels than data.max_pixels"):
        decode(content, 1)
    assert decode(content, 1, max_pixels=200_000_000).size == (14000, 13000)


# Colour profiles

COLOURS = noise(9, 20, 3).astype(np.uint8)


@pytest.mark.parametrize("name", ["Display P3", "Adobe RGB (1998)"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_colours_of_a_profile_are_converted_to_srgb(name, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    content = stored(Image.fromarray(COLOURS), kind, icc_profile=rgb_profile(name), **options)
    wanted = in_srgb(name, COLOURS)
    assert np.abs(wanted - COLOURS).max() > 20
    assert np.abs(np.asarray(decode(content, 3), dtype=float) - wanted).max() <= 2
    grey = wanted @ [0.299, 0.587, 0.114]
    assert np.abs(np.asarray(decode(content, 1), dtype=float) - grey).max() <= 3


def test_alpha_stays_and_palettes_are_converted():
    alpha = noise(9, 20, 1)[..., 0].astype(np.uint8)
    profile, wanted = rgb_profile("Display P3"), in_srgb("Display P3", COLOURS)
    image = Image.fromarray(np.dstack([COLOURS, alpha]))
    pixels = np.asarray(decode(stored(image, "PNG", icc_profile=profile), 4), dtype=float)
    assert np.abs(pixels[..., :3] - wanted).max() <= 2 and np.array_equal(pixels[..., 3], alpha)
    share = alpha[..., None] / 255
    flat = np.asarray(decode(stored(image, "PNG", icc_profile=profile), 3), dtype=float)
    assert np.abs(flat - (wanted * share + 255 * (1 - share))).max() <= 3
    palette = Image.fromarray(COLOURS).quantize(16)
    wanted = in_srgb("Display P3", np.asarray(palette.convert("RGB")))
    pixels = np.asarray(decode(stored(palette, "PNG", icc_profile=profile), 3), dtype=float)
    assert np.abs(pixels - wanted).max() <= 2


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_grey_profiles(mode):
    levels, profile = np.arange(256).reshape(16, 16), grey_profile(1.5)
    image = Image.fromarray(levels.astype(np.uint8))
    if mode == "I;16":
        image, kind = Image.fromarray((levels * 257).astype(np.uint16)), "TIFF"
    else:
        image, kind = image.convert(mode), "PNG"
        levels = np.asarray(image.convert("L"))
    wanted = encoded((levels / 255) ** 1.5)
    assert mode == "1" or np.abs(wanted - levels).max() > 30
    content = stored(image, kind, icc_profile=profile)
    for channels in (1, 3):
        pixels = np.asarray(decode(content, channels), dtype=float)
        assert np.abs(pixels - (wanted if channels == 1 else wanted[..., None])).max() <= 2


def test_inks_are_converted_by_their_profile():
    lab = np.random.default_rng(0).uniform([25, -15, -15], [85, 15, 15], (2, 2, 2, 2, 3)).round()
    lab[0, 0, 0, 0], lab[:, :, :, 1] = (100, 0, 0), 0  # paper and black: what any profile keeps
    inks = 255 * np.indices((2, 2, 2, 2)).reshape(4, 16).T.astype(np.uint8)
    content = stored(Image.fromarray(inks[None], "CMYK"), "TIFF", icc_profile=cmyk_profile(lab))
    pixels = np.asarray(decode(content, 3), dtype=float)[0]
    assert np.abs(pixels - lab_in_srgb(lab.reshape(16, 3))).max() <= 3
    naive = np.asarray(Image.fromarray(inks[None], "CMYK").convert("RGB"), dtype=float)[0]
    assert np.abs(pixels - naive).max() > 60


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("called", [None, "sRGB IEC61966-2.1"])
def test_srgb_needs_no_conversion(mode, called):
    """Pillow's own, of version 4, and one of version 2 whose curves and colours are rounded otherwise."""
    profile = (
        rgb_profile("sRGB", called) if called else ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    )
    image = Image.fromarray(COLOURS).convert(mode)
    for channels in (1, 3):
        plain = decode(stored(image, "TIFF"), channels)
        assert np.array_equal(
            np.asarray(decode(stored(image, "TIFF", icc_profile=profile), channels)), np.asarray(plain)
        )


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", b"no profile"),
        ("RGB", grey_profile(2.2)),
        ("L", cmyk_profile(np.zeros((2, 2, 2, 2, 3)))),
        ("RGB", rgb_profile("Display P3")[:300]),
    ],
)
def test_a_profile_that_cannot_be_used_is_left_out(mode, profile):
    image = Image.fromarray(COLOURS).convert(mode)
    pixels = np.asarray(decode(stored(image, "PNG", icc_profile=profile), 3))
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))
    with pytest.raises(ImageCms.PyCMSError):
        transforms.to_srgb(profile, mode)
