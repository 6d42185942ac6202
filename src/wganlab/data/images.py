"""Any folder of images, decoded once and kept as a cache of bytes."""

import hashlib
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from wganlab.data.decoding import decode, extremes, is_image, range_of
from wganlab.files import write_json
from wganlab.schema import InvalidValueError

#: Part of a cache's name: raise it when the same files are to be decoded in another way.
VERSION = 2
#: What systems leave in folders.
JUNK = {"thumbs.db", "desktop.ini", "__macosx", "icon\r"}
#: Names of folders that are parts of a data set, and not its classes.
SPLITS = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(("test", "testing"), "test")
SPLITS |= dict.fromkeys(("val", "valid", "validate", "validation"), "val")
Size = PositiveInt | tuple[PositiveInt, PositiveInt]
Split = Literal["all", "train", "val", "test"]


class ImageFolder:
    """All images below a folder, whatever their sizes and modes, resized and centre-cropped to ``size``.

    That is the length of both sides, or (height, width). Whatever Pillow opens is an image, whatever its name; of
    animated ones the first frame. Transparency is laid on white. One line says what was left out.

    Grey values deeper than 8 bits are scaled alike in all files and splits, from ``value_range`` (lowest, highest) to 0
    to 255. By default the lowest is 0, and the highest is the largest of 8, 10, 12, 14 or 16 bits, the first that holds
    all values, or 1 for floats that go no further; with negative values the lowest is minus the highest. Of colours of
    16 bits Pillow gives the high byte, which is right for that range alone; in another one they are broken files.

    Names of top-level folders are the classes; links to folders are followed. Where all of them are named as splits
    (train, val, test and the like), the folders below are the classes, and ``split`` says which are used: one, several,
    or all; null takes them for classes all the same. ``flip`` has training mirror images left to right at random.

    What is decoded is cached as uint8 in ``root``, in hidden files named by a hash of the images' names and bytes, or
    in the user's cache folder where that cannot be written; it is memory-mapped, so the data may be larger than memory.

    Raises InvalidValueError for a folder that is missing or holds no images, and for a split that it has not; so does
    ``load`` when more than ``max_broken`` files cannot be decoded, and otherwise it names and skips them.
    """

    licence = "not known to wganlab: that of the images in the folder"

    def __init__(
        self,
        *,
        root: str,
        size: Size,
        channels: Literal[1, 3] = 3,
        split: Split | Sequence[Split] | None = "all",
        value_range: tuple[float, float] | None = None,
        max_broken: NonNegativeInt = 10,
        flip: bool = False,
    ) -> None:
        self.root, self.max_broken, self.flip = Path(root).expanduser(), max_broken, flip
        height, width = (size, size) if isinstance(size, int) else size
        self.shape = (channels, height, width)
        if value_range is not None and not value_range[0] < value_range[1]:
            raise InvalidValueError("value_range", list(value_range), "must be two numbers, the lower one first")
        self.value_range = None if value_range is None else (value_range[0], value_range[1])  # a config has a list
        if not self.root.is_dir():
            fault = "is a file; unpack it, and name the folder" if self.root.is_file() else "no such folder; name one"
            raise InvalidValueError("root", root, f"{fault} that holds images, at any depth")
        self.left_out: Counter[str] = Counter()
        self.files = sorted(find_images(self.root, self.left_out))
        if not self.files:
            others = f", but {said(self.left_out)}" if self.left_out else ""
            raise InvalidValueError("root", root, f"holds no images at any depth{others}")
        self.splits = self._splits(split)
        if self.splits:
            self.files = [file for file in self.files if (*self._place(file), "")[0].lower() in SPLITS]
        #: Those of all splits, whose classes and range of values those that are wanted have.
        self.all_files = self.files
        self.files = [file for file in self.files if not self.splits or self._place(file)[0] in self.splits]

    def _place(self, file: Path) -> tuple[str, ...]:
        """The folders between the root and a file."""
        return file.relative_to(self.root).parts[:-1]

    def _splits(self, wanted: Split | Sequence[Split] | None) -> list[str]:
        """The top-level folders that are splits and are wanted; empty where folders are classes.

        Raises InvalidValueError for a split that is not there.
        """
        folders = {self._place(file)[0] if self._place(file) else "" for file in self.files}
        found = {folder: SPLITS[folder.lower()] for folder in sorted(folders) if folder.lower() in SPLITS}
        names = [wanted] if isinstance(wanted, str) else [*(wanted or [])]
        if names in ([], ["all"]) and (not names or len(found) < len(folders)):
            return []
        if missing := [name for name in names if name != "all" and name not in found.values()]:
            there = ", ".join(sorted({*found.values()})) or "none"
            raise InvalidValueError("split", missing[0], f"{self.root} has no such folder; its splits: {there}")
        return [folder for folder, name in found.items() if name in names or "all" in names]

    def __len__(self) -> int:
        return len(self.files)

    def load(self) -> Tensor:
        """uint8 of shape (number of readable images, channels, size, size), in the order of the files' names."""
        key = self._key()
        # no folder of its own: whatever else reads a folder of images takes every folder in it for a class
        caches = [self.root / f".wganlab-{key}", user_cache() / key]
        for cache in caches:
            try:
                return self._read(cache)
            except (OSError, ValueError, KeyError, EOFError):  # none yet, or a torn one
                continue
        for cache in caches:
            try:
                cache.parent.mkdir(parents=True, exist_ok=True)
                return self._decode(cache)
            except OSError as error:
                failure = error
        raise InvalidValueError("root", self.root, f"the decoded images cannot be cached: {failure}")

    def labels(self) -> Tensor | None:
        """Class numbers of what :meth:`load` returned, by sorted name of the class's folder; None without folders.

        A class has the same number in every split. Images beside the folders of the classes are one more, the first.
        """
        classes = [*map(self._class, self.files)]
        names = {*classes, *filter(None, map(self._class, self.all_files))}
        numbers = {name: number for number, name in enumerate(sorted(names))}
        return torch.tensor([numbers[name] for name in classes]) if len(set(classes)) > 1 else None

    def _class(self, file: Path) -> str:
        """The folder that a file's class is named after; empty beside these."""
        return (*self._place(file)[1 if self.splits else 0 :], "")[0]

    def _key(self) -> str:
        """Name of the cache: a hash of what is to be decoded and how."""
        with ThreadPoolExecutor() as pool:  # hashing leaves Python alone
            content = [
                (str(f.relative_to(self.root)), h)
                for f, h in zip(self.files, pool.map(digest, self.files), strict=True)
            ]
        described = [VERSION, self.shape, self.value_range, content]
        if len(self.all_files) > len(self.files):  # whose values have a say in the range
            others = [(str(file.relative_to(self.root)), file.stat()) for file in self.all_files]
            described.append([(name, stat.st_size, stat.st_mtime_ns) for name, stat in others])
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]

    def _read(self, cache: Path) -> Tensor:
        record = json.loads(cache.with_suffix(".json").read_text())
        # copy on write: torch wants memory that it could write to, and the file stays as it is
        images = np.load(cache.with_suffix(".npy"), mmap_mode="c")
        broken = dict(record["broken"]) if isinstance(record["broken"], dict) else dict.fromkeys(record["broken"], "")
        if judged := self._judge(broken, len(self.files) - len(broken)):
            print(judged, flush=True)
        self._say(record["said"])
        self.files = [path for path in self.files if str(path.relative_to(self.root)) not in broken]
        return torch.from_numpy(images[: len(self.files)])  # broken files have left empty rows at the end

    def _decode(self, cache: Path) -> Tensor:
        """Decode all files into the cache; its JSON is written last and says that it is whole."""
        part, record = (cache.with_suffix(f".{os.getpid()}{end}.part") for end in ("", ".json"))  # ranks may meet here
        images = np.lib.format.open_memmap(part, "w+", np.uint8, (len(self.files), *self.shape))
        broken, kept, animated = {}, 0, 0
        try:
            # filters of warnings belong to the process, not to a thread: set once, around all threads
            with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
                # Pillow warns of more than 89 megapixels, and refuses twice as many
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                value_range = self.value_range or range_of(filter(None, pool.map(extremes, self.all_files)))
                decoded = pool.map(lambda path: decode(path, self.shape, value_range), self.files)
                for path, image in zip(self.files, progress(decoded, len(self.files), self.root), strict=True):
                    if isinstance(image, str):
                        broken[str(path.relative_to(self.root))] = image
                    else:
                        images[kept], moves = image
                        kept, animated = kept + 1, animated + moves
            self._judge(broken, kept)
            images.flush()
            part.replace(cache.with_suffix(".npy"))
            told = {"animated images, of which the first frame is taken": animated} if animated else {}
            if value_range:
                told[f"values deeper than 8 bits: {value_range[0]:g} to {value_range[1]:g} become 0 to 255"] = 0
            write_json(record, {"broken": broken, "said": told})
            record.replace(cache.with_suffix(".json"))
        finally:
            part.unlink(missing_ok=True)
            record.unlink(missing_ok=True)
        return self._read(cache)

    def _say(self, told: Mapping[str, int]) -> None:
        """One line on what is not as a user may think: splits, what is left out, and what was done to some images."""
        parts = [said(told)] if told else []
        if self.left_out:
            parts.append(f"left out: {said(self.left_out)}")
        if self.splits:
            parts.append(f"splits {', '.join(self.splits)}, whose folders are the classes (split=null: they are)")
        if parts:
            print(f"{len(self.files):,} images in {shown(self.root)}; {'; '.join(parts)}", flush=True)

    def _judge(self, broken: dict[str, str], kept: int) -> str:
        """A line that names the broken files, where there are some. Raises InvalidValueError when they are too many."""
        if not broken:
            return ""
        names = ", ".join(shown(name) + (f" ({why})" if why else "") for name, why in list(broken.items())[:10])
        more = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
        if len(broken) > self.max_broken or not kept:
            message = (
                f"{len(broken)} of {len(self.files)} files cannot be decoded, more than max_broken={self.max_broken}"
            )
            raise InvalidValueError("root", self.root, f"{message}: {names}{more}")
        return f"skipped {len(broken)} broken files in {self.root}: {names}{more}"


def digest(path: Path) -> str:
    """A hash of a file's bytes; empty for one that cannot be read, which decoding will report."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError:
        return ""


def find_images(root: Path, left_out: Counter[str], above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Image files below a folder; what else is there is counted. Hidden and systems' files are passed over.

    Links to folders are followed, but not into a folder that they are in.
    """
    real = os.path.realpath(root)
    if real in above:
        left_out["links to a folder around them"] += 1
        return
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError:
        left_out["folders that cannot be read"] += 1
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in JUNK:
            continue
        if entry.is_dir():
            yield from find_images(Path(entry), left_out, (*above, real))
        elif is_image(entry.path):
            yield Path(entry)
        else:
            left_out[f"files that are no images ({Path(entry).suffix.lower() or 'without an ending'})"] += 1


def said(counts: Mapping[str, int]) -> str:
    """Counts in words."""
    return ", ".join(f"{n:,} {what}" if n else what for what, n in counts.items())


def shown(path: str | Path) -> str:
    """A path as it can be printed, in one line."""
    return str(path).encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")


def user_cache() -> Path:
    """Where the user's caches lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wganlab"


def progress(items: Iterator, total: int, root: Path) -> Iterator:
    """The items, with a progress bar on a terminal and a line elsewhere."""
    if not sys.stdout.isatty():
        print(f"decoding {total:,} images in {root}", flush=True)
        return items
    from rich.progress import track

    return iter(track(items, f"decoding {root}", total))
