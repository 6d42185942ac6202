"""Tables: the rows of a CSV file, as points of as many dimensions as are learned of its columns."""

import csv
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wganlab.data import Columns
from wganlab.schema import InvalidValueError


class Table:
    """The rows of a CSV file whose first line names its columns, separated by commas, semicolons or tabs.

    ``columns`` are learned, numbers all; by default all but ``label``, whose values, of any kind, are the classes in
    ascending order. With ``standardise`` each has mean 0 and standard deviation 1 over the file; what is generated is
    written in the units of the file.

    Raises InvalidValueError for a file that is missing or no such table, naming the line, and for unknown columns.
    """

    licence = "not known to wganlab: that of the table"

    def __init__(
        self, *, path: str, columns: Sequence[str] | None = None, label: str | None = None, standardise: bool = True
    ) -> None:
        file = Path(path).expanduser()
        try:
            names, rows, lines = read_table(file, file.stat().st_mtime_ns)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise InvalidValueError("path", path, f"cannot be read ({reason}); name a CSV file") from error
        except ValueError as error:
            raise InvalidValueError("path", path, str(error)) from error
        for parameter, wanted in (("columns", columns or []), ("label", [label] if label is not None else [])):
            if unknown := [name for name in wanted if name not in names]:
                raise InvalidValueError(parameter, unknown[0], f"no such column; {path} has {', '.join(names)}")
        learned = tuple(columns or (name for name in names if name != label))
        if not learned or len(set(learned)) < len(learned):
            raise InvalidValueError("columns", list(learned), "must name at least one column, and none twice")
        if "" in learned:
            what = f"column {names.index('') + 1} has no name; give it one, or leave it out by columns"
            raise InvalidValueError("path", path, what)
        cells = [numbers(path, name, names.index(name), rows, lines) for name in learned]
        # in fp32 a Unix time would be known to two minutes
        self.values = torch.tensor(cells, dtype=torch.float64).T.contiguous()
        shift, scale = torch.zeros(len(learned)), torch.ones(len(learned))
        if standardise:
            deviation = self.values.std(0, correction=0)
            shift, scale = self.values.mean(0), torch.where(deviation > 0, deviation, 1.0)
        self.columns = Columns(learned, shift, scale)
        if not (torch.isfinite(scale).all() and torch.isfinite(self.load()).all()):
            raise InvalidValueError("path", path, "holds numbers that are too large for single precision")
        self.classes = None if label is None else [row[names.index(label)] for row in rows]
        self.shape = (len(learned),)

    def __len__(self) -> int:
        return len(self.values)

    def load(self) -> Tensor:
        """All rows, float32 of shape (n, columns)."""
        return ((self.values - self.columns.shift) / self.columns.scale).float()

    def labels(self) -> Tensor | None:
        """Class of each row, shape (n,); None without ``label``."""
        if self.classes is None:
            return None
        numeric = all(map(is_number, self.classes))  # 2 comes before 10
        return torch.from_numpy(np.unique([*map(float if numeric else str, self.classes)], return_inverse=True)[1])


@functools.lru_cache(maxsize=1)  # a config is checked, and then built from
def read_table(file: Path, changed: int) -> tuple[list[str], list[list[str]], list[int]]:
    """Names of the columns, the cells of each row, and on which line of the file it ends.

    ``changed``, the time of its last change, tells versions apart.

    Raises ValueError for a file that is no table, and what opening raises.
    """
    with open(file, newline="", encoding="utf-8-sig") as lines:
        first = lines.readline()
        lines.seek(0)
        reader = csv.reader(lines, delimiter=max(",;\t", key=first.count))
        found = [(row, reader.line_num) for row in reader if row]
    rows, numbered = [row for row, _ in found], [line for _, line in found]
    if len(rows) < 2:
        raise ValueError("holds no rows below a first line that names the columns")
    names = [name.strip() for name in rows[0]]
    if all(is_number(name) for name in names):
        raise ValueError(f"its first line should name the columns, and holds numbers ({', '.join(names[:3])} ...)")
    if len(set(names)) < len(names):
        raise ValueError(f"two of its columns are named {max(names, key=names.count)!r}")
    for row, line in found[1:]:
        if len(row) != len(names):
            raise ValueError(f"line {line} has {len(row)} cells, the first has {len(names)}")
    return names, rows[1:], numbered[1:]


def is_number(cell: str) -> bool:
    """Whether a cell is a finite number."""
    try:
        return bool(np.isfinite(float(cell)))
    except ValueError:
        return False


def numbers(path: str, name: str, place: int, rows: Sequence[Sequence[str]], lines: Sequence[int]) -> list[float]:
    """One column as numbers. Raises InvalidValueError, naming the line, where a cell is none."""
    for row, line in zip(rows, lines, strict=True):
        if not is_number(row[place]):
            what = f"line {line} has {row[place]!r}, and finite numbers alone can be learned"
            raise InvalidValueError(
                "path", path, f"column {name!r}, {what}; leave it out by columns, or name it as label"
            )
    return [float(row[place]) for row in rows]
