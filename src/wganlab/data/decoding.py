"""One image file as bytes: whatever Pillow opens, of any mode, depth and size."""

import functools
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

#: Formats of which Pillow knows no more than their names, or that it has another program decode.
FOREIGN = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}
#: Bits of a grey value in files that have room for more.
BITS = (8, 10, 12, 14, 16)


def is_image(path: str) -> bool:
    """Whether a file's name ends as images do, or else its first bytes are an image's."""
    known, formats = image_formats()
    if os.path.splitext(path)[1].lower() in known:
        return os.path.isfile(path)
    try:
        with open(path, "rb") as file:
            prefix = file.read(16)
        if not any(accept(prefix) for _, accept in (Image.OPEN[name] for name in formats) if accept):
            return False
        with Image.open(path, formats=formats):
            return True
    except Exception:  # decoders of a dozen formats raise whatever they like
        return False


@functools.cache
def image_formats() -> tuple[set[str], list[str]]:
    """Endings of images' names, and Pillow's names of their formats."""
    Image.init()
    formats = [name for name in Image.OPEN if name not in FOREIGN]
    return {ending for ending, name in Image.EXTENSION.items() if name in formats}, formats


def is_deep(mode: str) -> bool:
    """Whether a mode of Pillow's has grey values of more than 8 bits."""
    return mode.startswith("I") or mode == "F"


def has_16_bits(image: Image.Image) -> bool:
    """Whether an image that has been opened, and not read, holds 16 bits for each value."""
    modes = [tile[3] if isinstance(tile[3], str) else (*(tile[3] or ()), "")[0] for tile in getattr(image, "tile", ())]
    return any(";16" in str(mode) for mode in modes)


def extremes(path: Path) -> tuple[float, float] | None:
    """The lowest and the highest value of an image deeper than 8 bits; None of all others."""
    try:
        with Image.open(path, formats=image_formats()[1]) as image:
            if not is_deep(image.mode):
                return None
            values = np.asarray(image)
            return float(values.min()), float(values.max())
    except Exception:  # which decoding will report
        return None


def range_of(found: Iterable[tuple[float, float]]) -> tuple[float, float] | None:
    """One range for all deep values, from the extremes of each file; None without any."""
    finite = [pair for pair in found if np.isfinite(pair).all()]
    if not finite:
        return None
    lowest, highest = min(low for low, _ in finite), max(max(high, -low) for low, high in finite)
    # no further than 1 go floats only: integers of 1 bit are no deep ones
    highest = 1.0 if highest <= 1 else next((2.0**bits - 1 for bits in BITS if highest <= 2**bits - 1), highest)
    return (-highest if lowest < 0 else 0.0), highest


def decode(
    path: Path, shape: tuple[int, ...], value_range: tuple[float, float] | None = None
) -> tuple[np.ndarray, bool] | str:
    """One image as uint8 of the shape, and whether it moves; or in a few words why it cannot be decoded."""
    try:
        with Image.open(path, formats=image_formats()[1]) as opened:
            moves = getattr(opened, "is_animated", False)
            if value_range not in (None, (0.0, 2.0**16 - 1)) and not is_deep(opened.mode) and has_16_bits(opened):
                return "colours of 16 bits, of which Pillow gives the high byte, whatever the value_range"
            image = to_8_bit(ImageOps.exif_transpose(opened), value_range)
        image = image.convert("L" if shape[0] == 1 else "RGB")
        image = ImageOps.fit(image, (shape[2], shape[1]), Image.Resampling.LANCZOS)
    except Exception as error:  # decoders of a dozen formats raise whatever they like
        return type(error).__name__
    pixels = np.asarray(image)
    return (pixels[None] if shape[0] == 1 else pixels.transpose(2, 0, 1)), moves


def to_8_bit(image: Image.Image, value_range: tuple[float, float] | None) -> Image.Image:
    """Deep grey values scaled to 8 bits, transparency laid on white; other modes as they are."""
    if is_deep(image.mode):
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("values that are not finite")
        low, high = value_range or (0.0, 255.0)
        return Image.fromarray(((values.clip(low, high) - low) * (255 / (high - low))).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image
