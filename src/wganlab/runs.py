"""Run folders, read back from their files."""

import csv
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from wganlab.locks import is_locked
from wganlab.metrics import METRICS
from wganlab.schema import ConfigError
from wganlab.translate import translate

Row = dict[str, float]


def final_and_best(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Last value of every metric; of losses and evaluations also the best, with its step: the smallest, but where
    :data:`wganlab.metrics.METRICS` says that higher is better."""
    final: Row = {}
    best: dict[str, dict[str, float]] = {}
    for row in rows:
        final |= row
        for key, value in row.items():
            judged = key.endswith("/loss") or (key.startswith("eval/") and not key.endswith("_real"))
            if not judged or not math.isfinite(value):
                continue
            sign = -1 if key in METRICS and METRICS[key].better == "higher" else 1
            if key not in best or sign * value < sign * best[key]["value"]:
                best[key] = {"value": value, "step": row["step"]}
    return {"final": final, "best": best}


@dataclass
class Run:
    """A run folder, complete or not. ``problems`` says in plain words what is missing or damaged."""

    folder: Path
    problems: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, folder: str | Path, key: str = "run") -> "Run":
        """Raises ConfigError when the folder is no run."""
        folder = Path(folder).expanduser()
        if not (folder / ".hydra" / "config.yaml").is_file():
            reason = "is no run folder: it has no .hydra/config.yaml" if folder.is_dir() else "does not exist"
            raise ConfigError(key, f"={folder}: {reason}; give a folder that wganlab train has written")
        return cls(folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The composed config in the words of this version, interpolations unresolved."""
        return translate(self._mapping(".hydra/config.yaml", yaml.safe_load))

    @cached_property
    def overrides(self) -> dict[str, str]:
        """What the command line (or the sweep) changed: key -> value."""
        given = self._read(".hydra/overrides.yaml", yaml.safe_load)
        items = [str(item).partition("=") for item in given] if isinstance(given, list) else []
        return {key.lstrip("+~"): value for key, _, value in items}

    @cached_property
    def choices(self) -> dict[str, str]:
        """Config group -> choice, Hydra's own groups left out."""
        choices: Any = self._mapping(".hydra/hydra.yaml", yaml.safe_load)
        for key in ("hydra", "runtime", "choices"):
            choices = choices.get(key) if isinstance(choices, dict) else None
        return {key: str(value) for key, value in (choices or {}).items() if not key.startswith("hydra/")}

    @cached_property
    def status(self) -> dict[str, Any]:
        """status.json; a run that says "running" and is not worked on is "interrupted": its process was killed."""
        status = {"state": "unknown"} | self._mapping("status.json", json.loads)
        if status["state"] == "running" and not is_locked(self.folder):
            status["state"] = "interrupted"
        return status

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json; empty for a run that did not complete."""
        return self._mapping("summary.json", json.loads) if self.status["state"] == "completed" else {}

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """How its scores were taken; empty for a run without evaluations, or of an earlier version."""
        known = (self.folder / "protocol.json").is_file()
        return self._mapping("protocol.json", json.loads) if known else {}

    @cached_property
    def rows(self) -> list[Row]:
        """metrics.csv as numbers. Cells without a finite value are left out, damaged rows are skipped."""
        path = self.folder / "metrics.csv"
        rows: list[Row] = []
        damaged, diverged = 0, None
        try:
            with open(path, newline="", encoding="utf-8", errors="replace") as file:
                for cells in csv.DictReader(file):
                    try:
                        row = {key: float(value) for key, value in cells.items() if value != ""}
                        row["step"] = int(row["step"])
                    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
                        damaged += 1
                        continue
                    finite = {key: value for key, value in row.items() if math.isfinite(value)}
                    diverged = row["step"] if diverged is None and len(finite) < len(row) else diverged
                    rows.append(finite)
        except OSError:
            self.problems.append("metrics.csv is missing")
        except csv.Error:
            damaged += 1
        if damaged:
            self.problems.append(f"metrics.csv: {damaged} damaged rows skipped")
        if diverged is not None:
            self.problems.append(f"diverged: values that are not finite from step {diverged}")
        return rows

    @cached_property
    def samples(self) -> dict[int, Path]:
        """Generator step -> grid of samples, a PNG."""
        found = {}
        for path in sorted(self.folder.glob("samples/step_*.png")):
            step = re.fullmatch(r"step_(\d+)", path.stem)
            if step and is_png(path):
                found[int(step[1])] = path
            else:
                self.problems.append(f"samples/{path.name} is no grid of samples")
        return found

    def checkpoint(self, name: str) -> Path:
        """Path of checkpoints/<name>.ckpt. Raises ConfigError when there is none."""
        path = self.folder / "checkpoints" / f"{name}.ckpt"
        if not path.is_file():
            there = sorted(path.stem for path in path.parent.glob("*.ckpt"))
            allowed = f"allowed are {', '.join(there)}" if there else "the run has saved none yet"
            raise ConfigError("checkpoint", f"={name}: {self.folder} has no such checkpoint; {allowed}")
        return path

    def _mapping(self, name: str, parse: Callable[[str], Any]) -> dict[str, Any]:
        content = self._read(name, parse)
        if content is not None and not isinstance(content, dict):
            self.problems.append(f"{name} is damaged")
        return content if isinstance(content, dict) else {}

    def _read(self, name: str, parse: Callable[[str], Any]) -> Any:
        try:
            return parse((self.folder / name).read_text(encoding="utf-8"))
        except OSError:
            self.problems.append(f"{name} is missing")
        except (yaml.YAMLError, ValueError, RecursionError):
            self.problems.append(f"{name} is damaged")
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
            raise ConfigError(str(path), ": does not exist; give run folders, or folders that hold them")
        found = sorted(config.parent.parent for config in path.rglob(".hydra/config.yaml"))
        if not found:
            raise ConfigError(str(path), ": holds no run; give folders that wganlab train has written")
        for folder in found:
            runs.setdefault(folder.resolve(), Run(folder))
    return list(runs.values())
