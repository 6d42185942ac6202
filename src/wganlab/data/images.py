"""Any folder of images, decoded once and kept as a cache of bytes."""

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from wganlab.files import write_json
from wganlab.schema import InvalidValueError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
#: Part of a cache's name: raise it when the same files are to be decoded in another way.
VERSION = 1


class ImageFolder:
    """All images below a folder, whatever their sizes and modes, resized and centre-cropped to size x size.

    The shorter side is resized to ``size``; transparency is laid on white, 16-bit values are scaled to 8. What is
    decoded is cached as uint8 in ``root``, in hidden files named by a hash of the images' names and bytes, or in the
    user's cache folder where that cannot be written; it is memory-mapped, so the data may be larger than memory.
    Names of top-level folders are the classes. ``flip`` has training mirror images left to right at random.

    Raises InvalidValueError for a folder that is missing or holds no images; so does ``load`` when more than
    ``max_broken`` files cannot be decoded, and otherwise it names and skips them.
    """

    licence = "not known to wganlab: that of the images in the folder"

    def __init__(
        self,
        *,
        root: str,
        size: PositiveInt,
        channels: Literal[1, 3] = 3,
        max_broken: NonNegativeInt = 10,
        flip: bool = False,
    ) -> None:
        self.root, self.max_broken, self.flip = Path(root).expanduser(), max_broken, flip
        self.shape = (channels, size, size)
        if not self.root.is_dir():
            raise InvalidValueError("root", root, "no such folder; name one that holds images, at any depth")
        self.files = sorted(find_images(self.root))
        if not self.files:
            raise InvalidValueError("root", root, f"holds no images ({' '.join(sorted(SUFFIXES))}) at any depth")

    def __len__(self) -> int:
        return len(self.files)

    def load(self) -> Tensor:
        """uint8 of shape (number of readable images, channels, size, size), in the order of the files' names."""
        key = self._key()
        # no folder of its own: whatever else reads a folder of images takes every folder in it for a class
        caches = [self.root / f".wganlab-{key}", user_cache() / key]
        for cache in caches:
            if cache.with_suffix(".json").is_file():
                return self._read(cache)
        for cache in caches:
            try:
                cache.parent.mkdir(parents=True, exist_ok=True)
                return self._decode(cache)
            except OSError as error:
                failure = error
        raise InvalidValueError("root", self.root, f"the decoded images cannot be cached: {failure}")

    def labels(self) -> Tensor | None:
        """Class numbers of what :meth:`load` returned, by sorted name of the top-level folder; None without folders."""
        parents = [path.relative_to(self.root).parts[0] if path.parent != self.root else "" for path in self.files]
        classes = sorted(set(parents))
        return torch.tensor([classes.index(parent) for parent in parents]) if len(classes) > 1 else None

    def _key(self) -> str:
        """Name of the cache: a hash of what is to be decoded and how."""
        with ThreadPoolExecutor() as pool:  # hashing leaves Python alone
            content = [
                (str(f.relative_to(self.root)), h)
                for f, h in zip(self.files, pool.map(digest, self.files), strict=True)
            ]
        return hashlib.sha256(json.dumps([VERSION, self.shape, content]).encode()).hexdigest()[:16]

    def _read(self, cache: Path) -> Tensor:
        broken = set(json.loads(cache.with_suffix(".json").read_text())["broken"])
        self.files = [path for path in self.files if str(path.relative_to(self.root)) not in broken]
        # copy on write: torch wants memory that it could write to, and the file stays as it is
        images = np.load(cache.with_suffix(".npy"), mmap_mode="c")
        return torch.from_numpy(images[: len(self.files)])  # broken files have left empty rows at the end

    def _decode(self, cache: Path) -> Tensor:
        """Decode all files into the cache; its JSON is written last and says that it is whole."""
        part = cache.with_suffix(f".{os.getpid()}.part")
        images = np.lib.format.open_memmap(part, "w+", np.uint8, (len(self.files), *self.shape))
        broken, kept = {}, 0
        try:
            # filters of warnings belong to the process, not to a thread: set once, around all threads
            with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                decoded = pool.map(lambda path: decode(path, self.shape), self.files)
                for path, image in zip(self.files, progress(decoded, len(self.files), self.root), strict=True):
                    if isinstance(image, str):
                        broken[str(path.relative_to(self.root))] = image
                    else:
                        images[kept] = image
                        kept += 1
            self._judge(broken, kept)
            images.flush()
            part.replace(cache.with_suffix(".npy"))
            write_json(cache.with_suffix(".json"), {"broken": list(broken)})
        finally:
            part.unlink(missing_ok=True)
        return self._read(cache)

    def _judge(self, broken: dict[str, str], kept: int) -> None:
        """Name the broken files, and raise InvalidValueError when there are too many."""
        if not broken:
            return
        names = ", ".join(f"{name} ({reason})" for name, reason in list(broken.items())[:10])
        more = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
        if len(broken) > self.max_broken or not kept:
            message = (
                f"{len(broken)} of {len(self.files)} files cannot be decoded, more than max_broken={self.max_broken}"
            )
            raise InvalidValueError("root", self.root, f"{message}: {names}{more}")
        print(f"skipped {len(broken)} broken files in {self.root}: {names}{more}", flush=True)


def digest(path: Path) -> str:
    """A hash of a file's bytes; empty for one that cannot be read, which decoding will report."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError:
        return ""


def find_images(root: Path) -> Iterator[Path]:
    """Image files below a folder by their endings; hidden folders and links to folders are not entered."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder, name) for name in files if Path(name).suffix.lower() in SUFFIXES)


def user_cache() -> Path:
    """Where the user's caches lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wganlab"


def decode(path: Path, shape: tuple[int, ...]) -> np.ndarray | str:
    """One image as uint8 of the shape, or in a few words why it cannot be."""
    try:
        with Image.open(path) as opened:
            image = to_8_bit(ImageOps.exif_transpose(opened))
        image = image.convert("L" if shape[0] == 1 else "RGB")
        image = ImageOps.fit(image, (shape[2], shape[1]), Image.Resampling.LANCZOS)
    except Exception as error:  # decoders of a dozen formats raise whatever they like
        return type(error).__name__
    pixels = np.asarray(image)
    return pixels[None] if shape[0] == 1 else pixels.transpose(2, 0, 1)


def to_8_bit(image: Image.Image) -> Image.Image:
    """Deep grey values scaled to 8 bits, transparency laid on white; other modes as they are."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        highest = 1.0 if image.mode == "F" and values.max() <= 1 else 65535.0 if values.max() > 255 else 255.0
        return Image.fromarray((values.clip(0, highest) * (255 / highest)).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image


def progress(items: Iterator, total: int, root: Path) -> Iterator:
    """The items, with a progress bar on a terminal and a line elsewhere."""
    if not sys.stdout.isatty():
        print(f"decoding {total:,} images in {root}", flush=True)
        return items
    from rich.progress import track

    return iter(track(items, f"decoding {root}", total))
