"""``wganlab report``: results.csv and one self-contained index.html over any runs and sweeps."""

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from wganlab.archive import read_archive
from wganlab.files import write_json, write_text
from wganlab.ranges import drawn
from wganlab.report import explore, figures, forest, networks, tuning
from wganlab.report.compare import arms, by_arm, by_protocol, differing_keys, longest, main_column, results, to_csv
from wganlab.report.tables import REAL, cell, columns_of, real_row
from wganlab.report.verdicts import Verdict, conclusion, cost, protocol, verdict_table
from wganlab.runs import Run
from wganlab.schema import leaves
from wganlab.tune import Search


def write_report(
    runs: Sequence[Run],
    output: Path,
    *,
    question: str | None = None,
    verdicts: Sequence[Verdict] = (),
    search: Search | None = None,
    going_on: bool = False,
) -> None:
    """Write results.csv and index.html to ``output``; of a study also verdicts.json and verdicts.md.

    ``search`` is that which tuned the arms of a study. The page of runs that are ``going_on``
    loads itself again.
    """
    records = results(runs)
    page = render(runs, records, question=question, verdicts=verdicts, search=search, going_on=going_on)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "results.csv", to_csv(records))
    if verdicts:
        write_json(output / "verdicts.json", {"question": question} | cost(runs) | conclusion(verdicts))
        write_text(output / "verdicts.md", verdict_table(verdicts))
    write_text(output / "index.html", page)


def template() -> jinja2.Template:
    """The page before it is filled; everything that is filled in is escaped."""
    loader = jinja2.PackageLoader("wganlab.report", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = cell
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # and in the order that it is given
    return environment.get_template("page.html.jinja")


def render(
    runs: Sequence[Run],
    records: Sequence[dict[str, Any]],
    *,
    question: str | None = None,
    verdicts: Sequence[Verdict] = (),
    search: Search | None = None,
    going_on: bool = False,
) -> str:
    """The page as one HTML document that holds its images, figures, style and script, and fetches nothing."""
    names = arms(runs)
    colours = figures.colours(names)
    shown = longest(runs, names)
    panels = [panel(run, name, colours[name]) for name, run in shown.items()]
    explored = explore.content(runs, names, colours)
    return template().render(
        title=title(runs, names),
        going_on=going_on,
        real=REAL,
        arms=colours,
        several_seeds=len(set(names)) < len(runs),
        runs=runs,
        names=names,
        question=question,
        verdicts=verdicts,
        protocol=protocol(verdicts) if verdicts else "",
        tables=[
            {
                "arms": by_arm(members),
                "records": members,
                "protocol": describe(runs, protocol),
                "columns": columns_of(members),
                "headlines": columns_of(members, headline=True),
                "real": real_row(members),
            }
            for protocol, members in by_protocol(records).items()
        ],
        emd_real={r["final/eval/emd_real"] for r in records if "final/eval/emd_real" in r},
        differing={key: [values[names.index(arm)] for arm in colours] for key, values in differing_keys(runs).items()},
        forest=figures.svg(forest.figure(verdicts)) if verdicts else "",
        curves=curves(runs, names, search),
        explored=explored,
        plotly=explore.library() if explored else "",
        panels=panels,
        steps=sorted({step for run in shown.values() for step in run.samples}),
        samples_json=json.dumps([without_last(panel["samples"]) for panel in panels]).replace("</", "<\\/"),
        seconds_json=json.dumps([panel["seconds"] for panel in panels]),
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


#: Kinds of figures that are folded, by how their names begin.
FOLDED = {"Other scores": "eval/", "The critic": "critic/", "The generator, and speed": ""}


def curves(runs: Sequence[Run], names: Sequence[str], search: Search | None) -> dict[str, list[str]]:
    """The figures of a page by kind, as SVG: under "" those of the main score, which are seen at first."""
    drawn, every, tuned = figures.curves(runs, names), figures.headlines(runs, names), tuning.figure(runs, search)
    main = main_column([*drawn])
    others = [figure for figure in (figures.heat_map(main, runs), tuned) if figure]
    found = {"": [of.pop(main) for of in (drawn, every) if main in of] + others}
    for kind, beginning in FOLDED.items():
        chosen = [name for name in drawn if name.startswith(beginning)]
        found[kind] = [drawn.pop(name) for name in chosen] + (list(every.values()) if beginning == "eval/" else [])
    return {kind: [figures.svg(one) for one in of_kind] for kind, of_kind in found.items() if of_kind}


def panel(run: Run, arm: str, colour: str) -> dict[str, Any]:
    """The samples and the histogram of one run, for the page."""
    return {
        "arm": arm,
        "seed": run.config.get("seed"),
        "colour": colour,
        "samples": {step: data_uri(path) for step, path in run.samples.items()},
        "seconds": {step: seconds_at(run, step) for step in run.samples},
        "histogram": histogram(run, colour),
    }


def without_last(samples: Mapping[int, str]) -> dict[int, str | None]:
    """Samples by step, without those of the last one, which the page shows at first."""
    return {step: None if step == max(samples) else uri for step, uri in samples.items()}


def describe(runs: Sequence[Run], protocol: str | None) -> str:
    """A protocol in words."""
    first, *others = [run.protocol for run in runs if run.protocol.get("id") == protocol] or [{}]
    shared = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    return ", ".join(f"{key} {value}" for key, value in shared.items() if not isinstance(value, dict))


def title(runs: Sequence[Run], names: Sequence[str]) -> str:
    """The arms, and the data set, model and loss that all runs share."""
    common = [group for group in ("dataset", "model", "loss") if len({run.choices.get(group) for run in runs}) == 1]
    shared = ", ".join(f"{runs[0].choices.get(group)}" for group in common if runs[0].choices.get(group))
    different = list(dict.fromkeys(names))
    shown = " · ".join(different) if len(different) <= figures.MANY_ARMS else f"{len(different)} arms"
    return shown + (f" on {shared}" if shared and len(set(names)) > 1 else "")


def histogram(run: Run, colour: str) -> str | None:
    """Weights of the critic in the last checkpoint, drawn; None where there is no readable one."""
    path = run.folder / "checkpoints" / "last.ckpt"
    if not path.is_file():
        run.problems.append("checkpoints/last.ckpt is missing")
        return None
    try:
        weights = networks.critic_weights(read_archive(path))
        figure = networks.weight_histogram(weights, clipping_bound(run), colour)
    except Exception:  # truncated and foreign files raise a dozen types, and the page shows the rest of the run
        run.problems.append("checkpoints/last.ckpt cannot be read")
        return None
    return figures.svg(figure)


def clipping_bound(run: Run) -> float | None:
    """The bound of the part of the loss that has one; None where none has."""
    keys = [key for key, _ in leaves(run.config.get("loss")) if key.rpartition(".")[2] == "bound"]
    bound = drawn(run.config, f"loss.{keys[0]}") if keys else None
    return None if bound is None else float(bound)


def seconds_at(run: Run, step: int) -> float:
    """Seconds of training that a run took to a generator step."""
    return max((row["seconds"] for row in run.rows if row["step"] <= step and "seconds" in row), default=0.0)


def data_uri(path: Path) -> str:
    """A PNG file as a data: URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
