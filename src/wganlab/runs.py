"""Run folders, read back from their files."""

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from wganlab.archive import read_checkpoint
from wganlab.locks import is_locked
from wganlab.metrics import metric_of
from wganlab.schema import ConfigError
from wganlab.translate import translate, translate_columns

Row = dict[str, float]


class Status(StrEnum):
    """The state of a run, as status.json has it under "state"."""

    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED = "stopped"  # by a signal or Ctrl-C, and saved
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # said to be running, while no process works on it
    UNKNOWN = "unknown"  # status.json is missing or damaged
    ABSENT = "absent"  # of a job of a sweep: it has not begun


def read_metrics(path: Path) -> Iterator[tuple[dict[str, str], Row] | None]:
    """The rows of a metrics.csv: the cells as written, and their numbers without empty cells; None for a damaged row.

    Steps and images are integers. Raises OSError where the file cannot be read.
    """
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        try:
            for cells in csv.DictReader(file):
                try:
                    cells = translate_columns(cells)
                    row = {key: float(value) for key, value in cells.items() if value != ""}
                    row["step"] = int(row["step"])
                    row |= {"images_seen": int(row["images_seen"])} if "images_seen" in row else {}
                    yield cells, row
                except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
                    yield None
        except csv.Error:
            yield None


def final_and_best(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Last value of every metric; of metrics with a direction also the best, with its step."""
    final: Row = {}
    best: dict[str, dict[str, float]] = {}
    for row in rows:
        final |= row
        for key, value in row.items():
            metric = metric_of(key)
            if metric.direction is None or not math.isfinite(value):
                continue
            if key not in best or metric.sign * value < metric.sign * best[key]["value"]:
                best[key] = {"value": value, "step": row["step"]}
    return {"final": final, "best": best}


@dataclass
class Run:
    """A run folder, complete or not. ``problems`` are sentences that name missing and damaged files."""

    folder: Path
    problems: list[str] = field(default_factory=list)
    #: Metric -> the steps at which it was not finite, once ``rows`` are read.
    not_finite: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path, key: str = "run") -> "Run":
        """Raises ConfigError when the folder is no run."""
        folder = Path(folder).expanduser()
        if not (folder / ".hydra" / "config.yaml").is_file():
            reason = "is no run folder: it has no .hydra/config.yaml" if folder.is_dir() else "does not exist"
            raise ConfigError(key, f"={folder}: {reason}; give a folder that wganlab train has written")
        if link := link_out_of(folder):
            where = f"{link.relative_to(folder)} is a link that leads out of the run folder"
            raise ConfigError(key, f"={folder}: {where}; put there what it stands for")
        return cls(folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The composed config in the words of this version, interpolations unresolved."""
        return translate(self._mapping(".hydra/config.yaml", load_yaml))

    @cached_property
    def overrides(self) -> dict[str, str]:
        """The overrides of the command line or the sweep: key -> value."""
        given = self._read(".hydra/overrides.yaml", load_yaml)
        items = [str(item).partition("=") for item in given] if isinstance(given, list) else []
        return {key.lstrip("+~"): value for key, _, value in items}

    @cached_property
    def choices(self) -> dict[str, str]:
        """Config group -> choice, Hydra's own groups left out."""
        choices = self.runtime.get("choices")
        found = choices if isinstance(choices, dict) else {}
        return {key: str(value) for key, value in found.items() if not key.startswith("hydra/")}

    @cached_property
    def began_in(self) -> Path | None:
        """The folder in which the command was given that began the run, where that is known."""
        folder = self.runtime.get("cwd")
        return Path(folder) if isinstance(folder, str) else None

    @cached_property
    def runtime(self) -> dict[str, Any]:
        """What Hydra knew of the job when it began."""
        found: Any = self._mapping(".hydra/hydra.yaml", load_yaml)
        for key in ("hydra", "runtime"):
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    @cached_property
    def status(self) -> dict[str, Any]:
        """status.json, with its state as a :class:`Status`.

        A run that says "running" and is not worked on is interrupted: its process was killed.
        """
        status = self._mapping("status.json", json.loads)
        state = status.get("state")
        known = Status(state) if state in list(Status) else Status.UNKNOWN
        killed = known == Status.RUNNING and not is_locked(self.folder)
        return status | {"state": Status.INTERRUPTED if killed else known}

    @property
    def state(self) -> Status:
        """The state in status.json."""
        return self.status["state"]

    @property
    def diverged(self) -> bool:
        """Whether it failed since a loss was no longer finite."""
        return self.state == Status.FAILED and str(self.status.get("error")).startswith(FloatingPointError.__name__)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json; empty for a run that did not complete."""
        found = self._mapping("summary.json", json.loads) if self.state == Status.COMPLETED else {}
        parts = {key: translate_columns(found[key]) for key in ("final", "best") if isinstance(found.get(key), dict)}
        return found | parts

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """The protocol of its scores; empty for a run without evaluations."""
        known = (self.folder / "protocol.json").is_file()
        return self._mapping("protocol.json", json.loads) if known else {}

    @cached_property
    def evaluations(self) -> dict[str, dict[str, Any]]:
        """The records of ``wganlab evaluate``, by name of their file. Damaged and foreign files are skipped."""
        found = {}
        for path in sorted(self.folder.glob("evaluation/*.json")):
            record = self._mapping(f"evaluation/{path.name}", json.loads)
            if all(isinstance(record.get(key), dict) for key in ("protocol", "scores")):
                found[path.name] = record
        return found

    @cached_property
    def rows(self) -> list[Row]:
        """metrics.csv as numbers. Cells without a finite value are left out, damaged rows are skipped."""
        rows: list[Row] = []
        damaged = 0
        try:
            for found in read_metrics(self.folder / "metrics.csv"):
                if found is None:
                    damaged += 1
                    continue
                _, row = found
                finite = {key: value for key, value in row.items() if math.isfinite(value)}
                for key in row.keys() - finite.keys():
                    self.not_finite.setdefault(key, []).append(int(row["step"]))
                rows.append(finite)
        except OSError:
            self.problems.append("metrics.csv is missing")
        if damaged:
            self.problems.append(f"metrics.csv: {damaged} damaged rows skipped")
        first = {key: steps[0] for key, steps in self.not_finite.items()}
        if of_training := [step for key, step in first.items() if key.startswith(("critic/", "generator/"))]:
            self.problems.append(f"diverged: values that are not finite from step {min(of_training)}")
        elif first:  # a score of too few samples, say
            named = ", ".join(f"{key} from step {step}" for key, step in sorted(first.items()))
            self.problems.append(f"not finite: {named}")
        return rows

    @cached_property
    def outcome(self) -> dict[str, dict[str, Any]]:
        """:func:`final_and_best` of its rows; a metric whose last value is not finite has no final one."""
        found = final_and_best(self.rows)
        for metric in self.not_finite:
            if self.is_lost(metric, self.rows):
                found["final"].pop(metric, None)
        return found

    def is_lost(self, metric: str, rows: Sequence[Row]) -> bool:
        """Whether the last value of a metric in the first rows of the run, which are some, is not finite."""
        last = next((row["step"] for row in reversed(rows) if metric in row), -1)
        return any(last < step <= rows[-1]["step"] for step in self.not_finite.get(metric, ()))

    @cached_property
    def samples(self) -> dict[int, Path]:
        """Generator step -> grid of samples, a PNG."""
        found = {}
        for path in sorted(self.folder.glob("samples/step_*.png")):
            step = re.fullmatch(r"step_(\d+)", path.stem)
            if step and self._holds(path) and is_png(path):
                found[int(step[1])] = path
            else:
                self.problems.append(f"samples/{path.name} is no grid of samples")
        return found

    def checkpoint(self, name: str) -> Path:
        """Path of checkpoints/<name>.ckpt. Raises ConfigError when there is none."""
        path = self.folder / "checkpoints" / f"{name}.ckpt"
        if not path.is_file():
            there = sorted(path.stem for path in path.parent.glob("*.ckpt"))
            none = "the run has saved none" + (" yet" if self.state == Status.RUNNING else "")
            allowed = f"allowed are {', '.join(there)}" if there else none
            raise ConfigError("checkpoint", f"={name}: {self.folder} has no such checkpoint; {allowed}")
        return path

    @cached_property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of a sample, from the last checkpoint; None where there is none that can be read."""
        try:
            return tuple(read_checkpoint(self.checkpoint("last"))["shape"])
        except (ConfigError, KeyError, TypeError):
            return None

    def _holds(self, path: Path) -> bool:
        """Whether a path does not lead out of the folder."""
        return path.resolve().is_relative_to(self.folder.resolve())

    def _mapping(self, name: str, parse: Callable[[str], Any]) -> dict[str, Any]:
        content = self._read(name, parse)
        if content is not None and not isinstance(content, dict):
            self.problems.append(f"{name} is damaged")
        return content if isinstance(content, dict) else {}

    def _read(self, name: str, parse: Callable[[str], Any]) -> Any:
        try:
            if not self._holds(self.folder / name):
                self.problems.append(f"{name} is a link that leads out of the run folder")
                return None
            return parse((self.folder / name).read_text(encoding="utf-8"))
        except OSError:
            self.problems.append(f"{name} is missing")
        except (yaml.YAMLError, ValueError, RecursionError):
            self.problems.append(f"{name} is damaged")
        return None


def load_yaml(text: str) -> Any:
    """YAML as plain containers, by PyYAML's parser in C where there is one: it takes an eighth of the time."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def link_out_of(folder: Path) -> Path | None:
    """A link in a run folder that leads out of it, where there is one; W&B keeps links of its own, in wandb/."""
    real = folder.resolve()
    for below, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(below, name) != folder / "wandb"]
        for path in (Path(below, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(real):
                return path
    return None


def is_png(path: Path) -> bool:
    """Whether a path is a file that begins as a PNG does."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"\x89PNG"


def find_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Every run at or below the paths, in the order of the paths and then of their names.

    Raises ConfigError for a path that does not exist or holds no run.
    """
    runs: dict[Path, Run] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            fault = "is a file" if path.exists() else "does not exist"
            raise ConfigError(str(path), f": {fault}; give run folders, or folders that hold them")
        found = sorted(config.parent.parent for config in path.rglob(".hydra/config.yaml"))
        if not found:
            raise ConfigError(str(path), ": holds no run; give folders that wganlab train has written")
        for folder in found:
            runs.setdefault(folder.resolve(), Run(folder))
    return list(runs.values())
