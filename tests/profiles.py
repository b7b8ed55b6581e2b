"""Colour profiles, written byte by byte as ICC.1:2001-04 says, and what their colours are in sRGB, in float64."""

import struct

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
XY = {  # chromaticities of red, green, blue and white
    "sRGB": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), (0.3127, 0.3290)),
    "Display P3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), (0.3127, 0.3290)),
    "Adobe RGB (1998)": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), (0.3127, 0.3290)),
}
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_xyz(name: str) -> np.ndarray:
    """Linear RGB -> XYZ, both as columns, of white 1."""
    *primaries, white = (np.array([x, y, 1 - x - y]) / y for x, y in XY[name])
    matrix = np.stack(primaries, 1)
    return matrix * np.linalg.solve(matrix, white)


def adapt(white: np.ndarray, other: np.ndarray) -> np.ndarray:
    """XYZ under one white -> under another (Bradford)."""
    return np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ other) / (BRADFORD @ white)) @ BRADFORD


def linear(values: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1, of 0 to 1."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(values: np.ndarray) -> np.ndarray:
    """Linear -> 0 to 255 of sRGB, clipped."""
    values = np.clip(values, 0, 1)
    return 255 * np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


def in_srgb(name: str, pixels: np.ndarray) -> np.ndarray:
    """What uint8 (..., 3) of a colour space is in sRGB, float (..., 3) of 255."""
    values = pixels / 255
    light = values**2.19921875 if name == "Adobe RGB (1998)" else linear(values)
    return encoded(light @ np.linalg.solve(to_xyz("sRGB"), to_xyz(name)).T)


def lab_in_srgb(lab: np.ndarray) -> np.ndarray:
    """CIELAB under D50, (..., 3) -> sRGB of 255."""
    f = (lab[..., 0] + 16) / 116
    parts = np.stack([f + lab[..., 1] / 500, f, f - lab[..., 2] / 200], -1)
    xyz = np.where(parts > 6 / 29, parts**3, (parts - 16 / 116) * 108 / 841) * D50
    white = to_xyz("sRGB").sum(1)
    return encoded(xyz @ (np.linalg.inv(to_xyz("sRGB")) @ adapt(D50, white)).T)


def fixed(*values: float) -> bytes:
    """s15Fixed16."""
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def written(space: bytes, kind: bytes, name: str, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ") -> bytes:
    text = name.encode() + b"\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    tags = {b"desc": described, b"cprt": b"text\0\0\0\0none\0", b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50), **tags}
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        table += struct.pack(">4sII", tag, start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    size = start + len(data)
    head = struct.pack(">I4sI4s4s4s", size, b"", 0x02400000, kind, space, pcs)
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(*D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def rgb_profile(name: str, called: str | None = None) -> bytes:
    matrix = adapt(to_xyz(name).sum(1), D50) @ to_xyz(name)
    if name == "Adobe RGB (1998)":
        curve = gamma(2.19921875)
    else:
        steps = (linear(np.arange(4096) / 4095) * 65535).round().astype(">u2")
        curve = b"curv\0\0\0\0" + struct.pack(">I", 4096) + steps.tobytes()
    tags = {bytes([c]) + b"XYZ": b"XYZ \0\0\0\0" + fixed(*matrix[:, i]) for i, c in enumerate(b"rgb")}
    return written(b"RGB ", b"mntr", called or name, {**tags, **{bytes([c]) + b"TRC": curve for c in b"rgb"}})


def grey_profile(value: float) -> bytes:
    return written(b"GRAY", b"mntr", f"Gray Gamma {value}", {b"kTRC": gamma(value)})


def cmyk_profile(lab: np.ndarray) -> bytes:
    """From the CIELAB of no ink and full ink in all combinations, (2, 2, 2, 2, 3)."""
    grid = (lab * [2.55, 1, 1] + [0, 128, 128]).round().astype(np.uint8).tobytes()
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + 4 * ramp + grid + 3 * ramp
    return written(b"CMYK", b"prtr", "Ink", {b"A2B0": table}, b"Lab ")
