"""Comparison of runs: the keys in which they differ, and the results of each."""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from wganlab.metrics import METRICS, metric_of
from wganlab.runs import Row, Run, Status
from wganlab.schema import leaves
from wganlab.statistics import interval

#: Keys that make no difference between arms: seeds and loggers.
IGNORED = re.compile(r"(seed|logger)($|\.)")
#: Keys that may be the path of data, which may have been moved between two runs.
PLACE = re.compile(r"(dataset|extractor)\.")
#: Keys in which the seeds of an arm of a study may differ: some runs are made longer than the claims need.
BUDGETS = ("steps", "images")
ABSENT = "–"
NO_CURVES = ("step", "images_seen", "epoch", "seconds", "eval/emd_real")


def differing_keys(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Config key -> its value in each run, for every key that differs between runs.

    Seeds, loggers and keys that only repeat another key by interpolation are left out.
    """
    flat = [dict(leaves(run.config)) for run in runs]
    keys = dict.fromkeys(key for config in flat for key in config if not IGNORED.match(key))
    values = {key: [str(config[key]) if key in config else ABSENT for config in flat] for key in keys}
    return {
        key: row
        for key, row in values.items()
        if len(set(row)) > 1 and not all(value.startswith("${") for value in row if value != ABSENT)
    }


def arms(runs: Sequence[Run]) -> list[str]:
    """A short name for each run; runs that differ only in their seed share one.

    The name holds the overrides that differ, or all differing keys where two configs have the same overrides.
    Arms of a study do not differ by their budgets, nor by what follows from the arm; no arms differ by the place of
    the same data.
    """
    ignored: tuple[str, ...] = ()
    of_study = all("arms" in run.overrides for run in runs)
    if of_study:
        keys = dict.fromkeys(key for run in runs for key in run.overrides if key != "arms")
        follows = (key for key in keys if follows_from_arm(runs, key))
        ignored = (*BUDGETS, *follows)
    differs = differing_keys(runs)
    if len({run.protocol.get("real", run.folder) for run in runs}) == 1:  # scored against the same samples
        ignored += tuple(
            key for key, values in differs.items() if PLACE.match(key) and any("/" in one for one in values)
        )
    differing = {key: values for key, values in differs.items() if key not in ignored}
    given = dict.fromkeys(key for run in runs for key in run.overrides if not IGNORED.match(key))
    given = {key: None for key in given if key not in ignored}
    columns: dict[str, list[str]] = {}
    for key in given:
        values = [setting(run, key) for run in runs]
        if len(set(values)) > 1:
            columns[key] = values
    contents = list(zip(*differing.values(), strict=True)) or [()] * len(runs)
    if len(set(zip(*columns.values(), strict=True))) < len(set(contents)):
        columns = differing
    if of_study:  # whose arms have names of their own, and show them where there is one alone
        columns = {"arms": [run.overrides["arms"] for run in runs]} | columns
    shown = [(row, "" if key == "arms" else f"{key}=") for key, row in columns.items()]
    names = [", ".join(f"{prefix}{row[i]}" for row, prefix in shown) for i in range(len(runs))]
    return [name or identity(run) for name, run in zip(names, runs, strict=True)]


def follows_from_arm(runs: Sequence[Run], key: str) -> bool:
    """Whether all runs of each arm of a study have the same setting at a key, as a tuned one has."""
    arms_settings = {(run.overrides["arms"], setting(run, key)) for run in runs}
    return len(arms_settings) == len({arm for arm, _ in arms_settings})


def longest(runs: Sequence[Run], names: Sequence[str]) -> dict[str, Run]:
    """Of each arm the run with the most steps, and of several such runs the first."""
    found: dict[str, Run] = {}
    for run, name in zip(runs, names, strict=True):
        if name not in found or last_step(run) > last_step(found[name]):
            found[name] = run
    return found


def budget(run: Run) -> float:
    """The generator steps that a run was given: more than it made where a callback has ended it."""
    return run.summary.get("budget") or last_step(run)


def in_means(runs: Sequence[Run], names: Sequence[Hashable]) -> list[bool]:
    """Whether each run counts in the means of its arm."""
    return have_completed_the_longest([(name, run.state, budget(run)) for run, name in zip(runs, names, strict=True)])


def have_completed_the_longest(runs: Sequence[tuple[Hashable, Status, float]]) -> list[bool]:
    """Whether each run, of an arm, in a state and of a budget, has completed the longest that its arm has completed."""
    most: dict[Hashable, float] = {}
    for arm, state, steps in runs:
        if state == Status.COMPLETED:
            most[arm] = max(most.get(arm, 0), steps)
    return [state == Status.COMPLETED and steps == most[arm] for arm, state, steps in runs]


def last_step(run: Run) -> float:
    """The generator step of the last row of a run."""
    return run.rows[-1]["step"] if run.rows else 0


def setting(run: Run, key: str) -> str:
    """The setting of a run at a key: from its command line, its choices of config groups, or its config."""
    given = {} if key in ("steps", "images") else run.overrides  # a budget may have been raised since
    return given.get(key) or run.choices.get(key) or str(select(run.config, key))


def identity(run: Run) -> str:
    """The name of a run that differs from no other: its data set, model and loss."""
    return (
        ", ".join(run.choices[group] for group in ("dataset", "model", "loss") if group in run.choices)
        or run.folder.name
    )


def select(config: Any, key: str) -> Any:
    """The value at a dotted key of plain containers; ABSENT where there is none."""
    for part in key.split("."):
        config = config.get(part, ABSENT) if isinstance(config, dict) else ABSENT
    return config


def throughput(rows: Sequence[Row]) -> float | None:
    """Real images seen by the critic per second of training, over the whole run."""
    last = rows[-1] if rows else {}
    return last["images_seen"] / last["seconds"] if last.get("seconds") and "images_seen" in last else None


def drawn_columns(runs: Sequence[Run]) -> list[str]:
    """Every column of any metrics.csv that is a curve: scores first, then the rest of the table, then users' own.

    Left out are the columns that curves are drawn against, and that of real samples, a line in the figure of EMD.
    """
    found = dict.fromkeys(key for run in runs for row in run.rows for key in row)
    known = [*METRICS]
    place = {key: known.index(key) if key in known else len(known) for key in found}
    columns = [key for key in found if key not in NO_CURVES]
    return sorted(columns, key=lambda key: (key not in known, metric_of(key).protocol is None, place[key]))


def main_column(columns: Sequence[str]) -> str:
    """The column that a page shows first; empty where there is none."""
    return next((name for name in ("eval/fid", "eval/emd", *columns) if name in columns), "")


def swept(runs: Sequence[Run]) -> dict[str, list[float] | list[str]]:
    """Config key -> its value in each run of a sweep, as numbers where all are; empty for a study, which has arms."""
    if any("arms" in run.overrides for run in runs):
        return {}
    return {key: numbers(values) for key, values in differing_keys(runs).items() if key != "trial"}


def numbers(values: Sequence[str]) -> list[float] | list[str]:
    """The values as finite numbers, where all of them are; else as they are."""
    try:
        found = [float(value) for value in values]
    except ValueError:
        return list(values)
    return found if all(map(math.isfinite, found)) else list(values)


def last_scores(runs: Sequence[Run], metric: str) -> list[float]:
    """The last value of a metric in each run; not a number where it has none."""
    return [run.outcome["final"].get(metric, math.nan) for run in runs]


def results(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A record per run: its folder, arm, seed and state, and its results."""
    records = []
    for run, arm in zip(runs, arms(runs), strict=True):
        outcome = run.outcome
        final = outcome["final"]
        record = {
            "run": str(run.folder),
            "arm": arm,
            "state": run.state,
            "seed": run.config.get("seed"),
            "steps": final.get("step"),
            "budget": budget(run),
            "images_seen": final.get("images_seen"),
            "epochs": final.get("epoch"),
            "seconds": final.get("seconds"),
            "images_per_second": throughput(run.rows),
            "commit": run.summary.get("commit"),
            "protocol": run.protocol.get("id"),
        }
        record |= {f"final/{key}": value for key, value in final.items() if "/" in key}
        record |= {f"real/{key}": value for key, value in (run.protocol.get("real_scores") or {}).items()}
        for key, value in outcome["best"].items():
            record |= {f"best/{key}": value["value"], f"best_step/{key}": value["step"]}
            record |= {f"gap/{key}": final[key] - value["value"]} if key in final else {}
        records.append(record)
    return records


def by_protocol(records: Sequence[dict[str, Any]]) -> dict[str | None, list[dict[str, Any]]]:
    """Records by the protocol of their scores; only scores of one protocol are comparable."""
    tables: dict[str | None, list[dict[str, Any]]] = {}
    for record in records:
        tables.setdefault(record["protocol"], []).append(record)
    return tables


def by_arm(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A record per arm: each number as its mean and 95% interval (mean, low, high) over the completed runs.

    Of runs that were given different budgets, these are the longest. A number that one of them lacks has no mean.
    """
    counts = have_completed_the_longest([(record["arm"], record["state"], record["budget"]) for record in records])
    found = []
    for arm, runs in Counter(record["arm"] for record in records).items():
        completed = [
            record for record, counted in zip(records, counts, strict=True) if counted and record["arm"] == arm
        ]
        keys = dict.fromkeys(
            key for record in completed for key, value in record.items() if isinstance(value, float | int)
        )
        values: dict[str, list[Any]] = {key: [record.get(key) for record in completed] for key in keys}
        found.append(
            {"arm": arm, "runs": runs, "completed": len(completed)}
            | {key: interval(numbers) for key, numbers in values.items() if None not in numbers}
        )
    return found


def to_csv(records: Sequence[dict[str, Any]]) -> str:
    """Records of results.csv as text."""
    columns = dict.fromkeys(key for record in records for key in record)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
