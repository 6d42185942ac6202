"""Studies: a question, and the arms that answer it, swept by one command.

A study is a folder with study.yaml (see :class:`Study`) and arms/, a Hydra config group of one YAML per arm. Each
arm is ``# @package _global_``: it may override whatever conf/train.yaml composes.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import PositiveFloat, PositiveInt

from wganlab.checks import check_call
from wganlab.config import conf_dir
from wganlab.environment import is_further_rank, place
from wganlab.files import from_here
from wganlab.metrics import METRICS
from wganlab.overrides import parse, split_sweep
from wganlab.report.claims import DIVERGED, PROVISIONAL, Claim, read_claims
from wganlab.report.measured import Measured
from wganlab.report.verdicts import Stages, Verdict, decide
from wganlab.runs import Run, find_runs
from wganlab.schema import ConfigError
from wganlab.statistics import MIN_SEEDS, level
from wganlab.tune import Tune, searched, tuned_sweeps

Sweep = Mapping[str, str | int]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What study.yaml says.

    ``sweep`` is a multirun, key -> values, which the command line may change; ``budgets`` are named changes of it,
    chosen by budget=NAME. ``claims`` are sentences that the runs decide, with the keys of
    :class:`wganlab.report.claims.Claim`; the seeds of the sweep, or of the budget, are those that are planned, and
    ``matters`` is the smallest ratio of interest, in decades. Where there is a :class:`wganlab.tune.Tune`, the setting
    of each arm is searched for first. ``samples_at_epochs`` are the epochs whose losses :func:`publish` shows, and
    after which it shows samples; ``grids_at_steps`` the generator steps after which it shows whole grids of them. What
    a source printed of its epochs stands in published.csv (:func:`wganlab.report.epochs.read_published`).
    """

    question: str
    sweep: Sweep
    budgets: Mapping[str, Sweep] = field(default_factory=dict)
    claims: Sequence[Mapping[str, Any]] = ()
    matters: PositiveFloat | None = None
    tune: Tune | None = None
    samples_at_epochs: Sequence[PositiveInt] = ()
    grids_at_steps: Sequence[PositiveInt] = ()


def studies() -> dict[str, Path]:
    """Name -> folder of every study in ./experiments and in that of the checkout that wganlab runs from."""
    places = [conf_dir().parent / "experiments", Path("experiments")]
    return {path.parent.name: path.parent for place in places for path in sorted(place.glob("*/study.yaml"))}


def find_study(name: str) -> Path:
    """The folder of a study, by its name or as a path. Raises ConfigError when there is none."""
    known = studies()
    folder = Path(name) if (Path(name) / "study.yaml").is_file() else known.get(name)
    if folder is None and Path(name).is_dir():
        raise ConfigError(name, ": has no study.yaml")
    if folder is None:
        raise ConfigError(name, f": no such study; allowed are {', '.join(known)}, or a folder with a study.yaml")
    return folder


def arm_names(folder: Path) -> list[str]:
    """The arms of a study. Raises ConfigError when it has none, or one would not be at the top of the config."""
    paths = sorted(folder.glob("arms/*.yaml"))
    if not paths:
        raise ConfigError(str(folder), ": has no arms; each is a YAML in arms/")
    for path in paths:
        if not re.match(r"\s*#\s*@package\s+_global_\s*(\n|$)", path.read_text(encoding="utf-8")):
            raise ConfigError(str(path), ": its first line must be # @package _global_, or its keys are not at the top")
    return [path.stem for path in paths]


def multirun(folder: Path, overrides: Sequence[str]) -> tuple[list[str], str]:
    """The overrides of the multirun that is a study, with its folder as --config-dir, and the folder of its sweep.

    Values of the command line replace those of study.yaml; ``arms`` are all arms unless the command line names some.
    Raises ConfigError for a budget that the study does not have.
    """
    study = read_study(folder)
    given = {override.lstrip("+").partition("=")[0]: override.partition("=")[2] for override in overrides}
    where = f"outputs/study/{folder.resolve().name}"
    own = {"arms": ",".join(arm_names(folder)), **study.sweep}
    if budget := given.pop("budget", None):
        if budget not in study.budgets:
            allowed = f"allowed are {', '.join(study.budgets)}" if study.budgets else "this study has none"
            raise ConfigError("budget", f"={budget}: no such budget; {allowed}")
        own |= study.budgets[budget]
        where += f"_{budget}"
    own["hydra.sweep.dir"] = where
    chosen = own | {key: given[key] for key in own if key in given}
    if "$" in (where := str(chosen["hydra.sweep.dir"]).strip("'\"")):
        raise ConfigError("hydra.sweep.dir", f"={where}: must be a plain path, to which a study writes its page")
    apart = {*own, "budget"}
    rest = [override for override in overrides if override.lstrip("+").partition("=")[0] not in apart]
    arguments = [f"{'+' if key == 'arms' else ''}{key}={value}" for key, value in chosen.items()]
    return [*arguments, *rest], os.path.expanduser(where)


def budget_of(overrides: Sequence[str]) -> str | None:
    """The budget that a command line names."""
    return next((text.partition("=")[2] for text in overrides if text.lstrip("+").startswith("budget=")), None)


def run(name: str, overrides: Sequence[str]) -> int:
    """Run the arms of a study, compare them, and decide its claims; returns the exit code.

    The page shows an incomplete study, too.
    """
    from wganlab.report.page import write_report
    from wganlab.report.studies import log_verdicts
    from wganlab.sweeps import sweep  # imports torch, which help and index do without

    folder = find_study(name)
    arguments, where = multirun(folder, overrides)
    study, code = read_study(folder), 0
    named = {name for claim in claims_of(folder, study) for name in (claim.metric, claim.tracks) if name}
    for name in sorted(named - METRICS.keys() - {DIVERGED}):
        print(f"note: a claim is about {name}, which is no metric of wganlab's: a callback must log it", flush=True)
    for sweep_of in tuned_sweeps(folder, study.tune, arguments, where) if study.tune else [arguments]:
        code = max(code, sweep(several_at_a_time(sweep_of), config_dir=str(folder)))
    if is_further_rank() or not any(Path(where).rglob("metrics.csv")):
        return code
    runs = find_runs([where])
    found = verdicts(folder, runs, Path(where), budget=budget_of(overrides))
    write_report(runs, Path(where), question=study.question, verdicts=found, search=searched(study.tune, where))
    for verdict in found:
        print(f"{verdict.description}: {verdict.claim.says} ({verdict.claim.source})")
        print(f"    {verdict.claim.number}: {verdict.measured}, wanted {verdict.claim.wanted}; p {verdict.tested}")
    print(f"compared {len(runs)} run{'s' * (len(runs) != 1)}: {from_here(where)}/index.html")
    if found and any((run.folder / "wandb").is_dir() for run in runs):
        log_verdicts(Path(where), runs, found)
    return code


def several_at_a_time(arguments: Sequence[str]) -> list[str]:
    """The arguments of a multirun, with a job for each core where they do not say who launches, and on what.

    On two cores, two processes of one thread make 1.4 times the steps of one process with two threads
    (benchmarks/results/seeds_together.md). A GPU is left to one job at a time.
    """
    import joblib

    from wganlab.accelerator import available

    chosen = any(text.startswith(("hydra/", "hydra.launcher", "accelerator")) for text in arguments)
    if chosen or place() or "gpu" in available() or joblib.cpu_count() == 1:
        return [*arguments]
    alone = not any(override.is_sweep_override() for override in parse(arguments))
    return [*arguments] if alone else [*arguments, "hydra/launcher=joblib"]


def overview() -> str:
    """How to run a study, and which there are."""
    lines = [
        "wganlab study NAME [key=value ...]: runs all arms x seeds of a study, or those that arms= and seed=",
        "name, compares them, and decides the claims of the study; --publish NAME puts the results of its",
        "finished runs into its folder, or without runs decides its claims again from verdicts.json; --index",
        "prints all studies' outcomes; --across NAME NAME ... says which of the arms that published studies",
        "have in common is better over all of them, in outputs/, or with --publish beside the studies",
    ]
    for name, folder in studies().items():
        content = read_study(folder)
        lines += ["", f"{name}: {content.question}", f"    arms={','.join(arm_names(folder))}"]
        if content.budgets:
            lines.append(f"    budget={','.join(content.budgets)}")
    return "\n".join(lines)


def read_study(folder: Path) -> Study:
    """The content of study.yaml. Raises ConfigError where it is wrong."""
    path = folder / "study.yaml"
    try:
        read = OmegaConf.create(path.read_text(encoding="utf-8"))  # to which 1e-3 is a number
        content: Any = OmegaConf.to_container(read)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(str(path), ": " + " ".join(str(error).split())) from error
    if not isinstance(content, dict):
        raise ConfigError(str(path), ": must hold question and sweep")
    if odd := [key for key in keys_in(content) if not isinstance(key, str)]:
        raise ConfigError(str(path), f": key {odd[0]} must be a text")
    check_call(Study, content, f"{path}: ")
    study = Study(**content | ({"tune": Tune(**content["tune"])} if content.get("tune") else {}))
    check_plan(study, claims_of(folder, study), path)
    return study


def check_plan(study: Study, claims: Sequence[Claim], path: Path) -> None:
    """Raises ConfigError for seeds that are planned twice, that a search sees, or that are too few for the claims."""
    exact = bool(claims) and all("binomial" not in claim.tests for claim in claims)
    for budget in (None, *study.budgets):
        seeds = planned_seeds(study, budget)
        key = f"{path}: {f'budgets.{budget}' if budget else 'sweep'}.seed"
        if twice := [seed for seed, times in Counter(seeds).items() if times > 1]:
            raise ConfigError(key, f": {twice[0]} is planned twice")
        if study.tune and str(study.tune.seed) in seeds:
            fault = f"={study.tune.seed}: is planned for the test, whose seeds are fresh"
            raise ConfigError(f"{path}: tune.seed", fault)
        if exact and len(seeds) >= MIN_SEEDS and 2.0 ** -len(seeds) >= level(len(claims)):
            least = math.floor(-math.log2(level(len(claims)))) + 1
            raise ConfigError(key, f": {len(seeds)} decide none of {len(claims)} claims; allowed are {least} or more")


def keys_in(content: Any) -> Iterator[Any]:
    """All keys of containers in containers."""
    if isinstance(content, dict):
        yield from content
    for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from keys_in(value)


def claims_of(folder: Path, study: Study) -> list[Claim]:
    """The claims of a study. Raises ConfigError for a wrong one."""
    return read_claims(study.claims, arm_names(folder), str(folder / "study.yaml"), matters=study.matters)


def verdicts(folder: Path, runs: Sequence[Run], where: Path, *, budget: str | None = None) -> list[Verdict]:
    """The verdict of each claim of a study, from its runs, or without any from the numbers in a verdicts.json.

    That in the folder ``where``, or that published with the study, knows of earlier looks, too. Raises ConfigError
    for a claim on another number than those that are recorded.
    """
    study, record = read_study(folder), recorded(where)
    claims, planned = claims_of(folder, study), planned_seeds(study, budget)
    if not runs and (gone := {claim.number for claim in claims} - {one["number"] for one in record["claims"]}):
        path = where / "verdicts.json"
        raise ConfigError(str(path), f": has no {sorted(gone)[0]}, which study.yaml claims; that takes the runs")
    found = [Measured.of(claim, runs) if runs else Measured.recorded(claim, record) for claim in claims]
    published = [] if budget else [*looks(recorded(folder))]
    if published and not set(published[0]) <= set(planned):  # of a budget
        published = []
    return decide(claims, found, planned, earlier=looks(record) or published)


def recorded(folder: Path) -> dict[str, Any]:
    """What the verdicts.json of a folder holds; empty where there is none. Raises ConfigError for a damaged one."""
    path = folder / "verdicts.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ConfigError(str(path), f": is damaged ({error}); restore it, or delete it") from None


def planned_seeds(study: Study, budget: str | None) -> list[str]:
    """The seeds that a study, or one of its budgets, plans."""
    seeds = {**study.sweep, **(study.budgets[budget] if budget else {})}.get("seed")
    return [] if seeds is None else [job[0].partition("=")[2] for job in split_sweep(parse([f"seed={seeds}"]))]


def looks(record: Mapping[str, Any]) -> Stages:
    """The stages of seeds at which verdicts were given, by a verdicts.json; provisional ones are none."""
    given = any(claim["verdict"] != PROVISIONAL for claim in record.get("claims", []))
    return record.get("stages", ()) if given else ()
