"""What studies have found: published beside them, in the index of all, and in W&B."""

import math
import secrets
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wganlab.files import from_here, write_json, write_text
from wganlab.report import tuning
from wganlab.report.across import Scores, read_scores, scores_csv, write_summary
from wganlab.report.claims import PROVISIONAL, UNDECIDED
from wganlab.report.compare import arms
from wganlab.report.page import write_report
from wganlab.report.publish import export, fill, publish_page
from wganlab.report.tables import Table, markdown
from wganlab.report.verdicts import Verdict, conclusion, verdict_table
from wganlab.runs import Run, find_runs
from wganlab.schema import ConfigError
from wganlab.statistics import level
from wganlab.study import arm_names, claims_of, find_study, read_study, recorded, studies, verdicts
from wganlab.tune import arm_ranges, searched, settings


def index(folders: Mapping[str, Path] | None = None) -> str:
    """All studies in a Markdown table: question, verdicts, cost, date and commit, from their verdicts.json.

    A sentence below it corrects for the claims of all of them.
    """
    folders = studies() if folders is None else folders
    rows = []
    for name, folder in folders.items():
        study, found = read_study(folder), recorded(folder)
        trials = study.tune.trials * len(arm_names(folder)) if study.tune else 0
        cells = conclusion_cells(found, trials) if found else ["–"] * 4
        rows.append([f"[{name}]({name}/README.md)", study.question, *cells])
    head = ["study", "question", "verdicts", "cost", "finished", "commit"]
    return f"{markdown(Table(head, rows, 'l' * len(head)))}\n{over_all(folders)}\n"


def take_home(folders: Mapping[str, Path]) -> str:
    """The claims of all studies that are headlines, each with its verdict and a link to it, as a list in Markdown."""
    lines: list[str] = []
    for name, folder in folders.items():
        found = {(record["claim"], record["number"]): record for record in recorded(folder).get("claims", [])}
        for claim in claims_of(folder, read_study(folder)):
            if claim.headline and (claim.says, claim.number) in found:
                record = found[claim.says, claim.number]
                centre, low, high = ("–" if x is None else f"{x:.3g}" for x in (record["centre"], *record["interval"]))
                measured = f"{claim.number} {centre} [{low}, {high}]"
                verdict = f"[{record['verdict']}]({name}/verdicts.md)"
                lines.append(f"{len(lines) + 1}. {claim.says}: **{verdict}** ({measured}).")
    return "\n".join([*lines, ""])


def over_all(folders: Mapping[str, Path]) -> str:
    """How many claims of all studies are decided, and how many of them if all were the claims of one study."""
    claims = [claim for folder in folders.values() for claim in recorded(folder).get("claims", [])]
    decided = [claim for claim in claims if claim["verdict"] not in (UNDECIDED, PROVISIONAL)]
    still = [claim for claim in decided if max(claim["p"].values()) < level(len(claims))]
    n = len(claims)
    said = f"Of {n} published claims {len(decided)} are decided, {len(still)} of them also when corrected for all {n}."
    if len(still) == len(decided):
        return said
    return f"{said} At that level an exact test takes {math.ceil(-math.log2(level(n)))} seeds or more."


def conclusion_cells(found: Mapping[str, Any], trials: int) -> list[str]:
    """Verdicts, cost, date and commit, as :func:`index` shows them; so many trials of a search came before."""
    counts = Counter(claim["verdict"] for claim in found["claims"])
    verdicts = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
    cost = f"{found['runs']} runs, {found['seconds'] / 60:.0f} min ({'; '.join(found['devices'])})"
    cost += f", after {trials} trials" if trials else ""
    return [verdicts, cost, str(found["finished"])[:10], ", ".join(commit[:7] for commit in found["commits"])]


def publish(folder: Path, sweep_dir: Path, *, budget: str | None = None) -> list[Path]:
    """Refresh a study's folder and the index of studies beside it from the runs of a sweep; returns the files written.

    These are the tables, figures and verdicts.md that its README links to, if it has one, scores.csv, verdicts.json
    where it has claims, and the lines of ../README.md between ``<!-- studies -->`` and ``<!-- end of studies -->``, and
    between ``<!-- take home -->`` and its end. Of a published study whose runs are not there, the claims are decided
    again from the numbers in its verdicts.json. Raises ConfigError where neither are.
    """
    if recorded(folder) and not any(sweep_dir.rglob(".hydra/config.yaml")):
        print(f"no runs in {from_here(sweep_dir)}: the claims are decided again from verdicts.json", flush=True)
        return [*decide_again(folder, budget), *publish_index(folder)]
    runs = find_runs([sweep_dir])
    study = read_study(folder)
    pieces = sweep_dir / "export"
    found = verdicts(folder, runs, sweep_dir, budget=budget)
    refuse_fewer_seeds(folder, found, sweep_dir)
    shutil.rmtree(pieces, ignore_errors=True)  # what runs no longer have is not published
    search = searched(study.tune, sweep_dir)
    write_report(runs, pieces, question=study.question, verdicts=found, search=search)
    published = folder / "published.csv"
    export(
        runs,
        pieces,
        samples_at_epochs=study.samples_at_epochs,
        grids_at_steps=study.grids_at_steps,
        published=published if published.is_file() else None,
        search=search,
    )
    if search:
        tuned = dict.fromkeys(run.overrides["arms"] for run in runs)
        found_settings = settings(search, {arm: arm_ranges(folder, arm) for arm in tuned})
        text = f"\nBest settings of {search.tune}:\n\n{tuning.settings_table(found_settings)}"
        write_text(pieces / "tuning.md", tuning.table(runs, search) + text)
    page = folder / "README.md"
    written = [*(publish_page(page, pieces) if page.is_file() else []), folder / "scores.csv"]
    write_text(written[-1], scores_csv(runs, arms(runs)))
    if found:
        shutil.copyfile(pieces / "verdicts.json", folder / "verdicts.json")
        written.append(folder / "verdicts.json")
    else:
        for name in ("verdicts.json", "verdicts.md"):
            (folder / name).unlink(missing_ok=True)
    return written + publish_index(folder)


def decide_again(folder: Path, budget: str | None) -> list[Path]:
    """Decide the claims of a published study from the numbers in its verdicts.json; returns the files written."""
    found = verdicts(folder, [], folder, budget=budget)
    write_json(folder / "verdicts.json", recorded(folder) | conclusion(found))
    write_text(folder / "verdicts.md", verdict_table(found))
    return [folder / "verdicts.json", folder / "verdicts.md"]


def refuse_fewer_seeds(folder: Path, found: Sequence[Verdict], sweep_dir: Path) -> None:
    """Raises ConfigError where published verdicts were given by seeds that these runs do not have."""
    there = {verdict.claim.number: verdict.values for verdict in found}
    for record in recorded(folder).get("claims", []):
        if lost := [seed for seed in record["values"] if seed not in there.get(record["number"], record["values"])]:
            fault = f"has no number of seed {', '.join(lost)}, by which it was published that: {record['claim']}"
            advice = f"to publish without them, delete {folder / 'verdicts.json'}"
            raise ConfigError("hydra.sweep.dir", f"={sweep_dir}: {fault}; {advice}")


def publish_index(folder: Path) -> list[Path]:
    """Refresh the index of the studies beside a folder; returns the file written, where there is one."""
    parent = folder.resolve().parent
    beside = {path.parent.name: path.parent for path in sorted(parent.glob("*/study.yaml"))}
    page = parent / "README.md"
    if not page.is_file():
        return []
    filled = [fill(page, "studies", index(beside)), fill(page, "take home", take_home(beside))]
    return [page] if any(filled) else []


def across(names: Sequence[str], *, publish: bool) -> list[Path]:
    """Which arm is better over the data sets of several published studies; returns the files written.

    They are across.md and across.svg in outputs/, or to ``publish`` beside the folders of the studies, whose score is
    that of their search, or of their first claim. Raises ConfigError where a study has no score, or too few arms in
    common with the others.
    """
    scores: dict[str, Scores] = {}
    folders = {name: find_study(name) for name in names}
    for name, folder in folders.items():
        study = read_study(folder)
        if not (study.tune or study.claims):
            raise ConfigError(name, ": has neither a search nor claims, and so no score to compare by")
        metric = study.tune.score if study.tune else study.claims[0]["metric"]
        scores[f"{name} ({metric})"] = read_scores(folder, metric)
    return write_summary(scores, folders[names[0]].resolve().parent if publish else Path("outputs"))


def log_verdicts(folder: Path, runs: Sequence[Run], found: Sequence[Verdict]) -> None:
    """The verdicts of a study and its curves, as one more run of its group in W&B, named "verdicts".

    It names the runs that they are about, by arm, seed and W&B's id. Online it also keeps the page as an artifact, and
    uses the models of these runs, so that W&B's graph of artifacts leads from each to the verdicts.
    """
    import wandb

    from wganlab.loggers import WandbLogger
    from wganlab.report import figures

    logger = WandbLogger(save_dir=str(folder), group=folder.name, name="verdicts")
    if not logger.start(config={"study": folder.name}, id=f"verdicts-{secrets.token_hex(4)}"):
        return
    columns = ["claim", "source", "number", "wanted", "measured", "seeds", "p", "verdict"]
    rows = [
        [
            *(getattr(verdict.claim, key) for key in ("says", "source", "number", "wanted")),
            verdict.measured,
            verdict.seeds,
            verdict.tested,
            verdict.description,
        ]
        for verdict in found
    ]
    names, ids = arms(runs), [str(run.status.get("wandb_id")) for run in runs]
    members = [[i, arm, str(run.config.get("seed"))] for i, arm, run in zip(ids, names, runs, strict=True)]
    images = {metric: wandb.Image(curve) for metric, curve in figures.curves(runs, names).items()}
    tables = {
        "verdicts": wandb.Table(columns=[*columns], data=rows),
        "runs": wandb.Table(columns=["run", "arm", "seed"], data=members),
    }
    logger.experiment.log(tables | images)
    logger.upload_page(folder / "index.html", ids)
    logger.finish({verdict.claim.says: verdict.decision for verdict in found}, 0)
