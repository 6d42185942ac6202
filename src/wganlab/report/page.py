"""``wganlab report``: results.csv and one self-contained index.html over any runs and sweeps."""

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from wganlab.config import folder_name
from wganlab.files import write_json, write_text
from wganlab.metrics import METRICS
from wganlab.report import figures, tuning
from wganlab.report.claims import Verdict, conclusion, verdict_table
from wganlab.report.compare import ABSENT, arms, by_arm, by_protocol, differing_keys, results, select, to_csv
from wganlab.runs import Run

#: Scores of which the best and the gap are tabulated, too.
FIGURES_OF_MERIT = ("eval/fid", "eval/modes", "eval/classes")

#: Column of the page's table -> (heading, format, what it means).
TABLE: dict[str, tuple[str, str, str]] = {
    "final/eval/emd": (
        "EMD to real",
        ".2f",
        "exact earth mover's distance to real images after the last step",
    ),
    "best/eval/emd": ("lowest EMD", ".2f", "smallest such distance during the run"),
    "gap/eval/emd": ("EMD last − best", ".2f", "how far it has collapsed since its best"),
    **{
        f"{when}/{name}": (title, metric.form, meaning)
        for name, metric in METRICS.items()
        if name.startswith("eval/") and name != "eval/emd"
        for when, title, meaning in (
            ("final", metric.title, "after the last step"),
            ("best", f"{metric.title}, best", "during the run"),
            ("gap", f"{metric.title}, last − best", "how far it has collapsed since its best"),
        )
        if when == "final" or name in FIGURES_OF_MERIT
    },
    "final/critic/wasserstein_estimate": ("W estimate", ".4g", "mean real score minus mean fake score"),
    "final/critic/loss": ("critic loss", ".4g", "last value, penalty included"),
    "best/critic/loss": ("lowest critic loss", ".4g", "smallest value; comparable only between equal objectives"),
    "final/generator/loss": ("generator loss", ".4g", "last value"),
    "best/generator/loss": ("lowest generator loss", ".4g", "smallest value; comparable only between equal objectives"),
    "images_per_second": ("images/s", ",.0f", "real images seen by the critic per second"),
    "seconds": ("time (s)", ".1f", "wall time of training, evaluation included"),
    "steps": ("steps", ".0f", "generator steps"),
    "epochs": ("epochs", ".1f", "passes of the critic over the data set"),
}


def write_report(
    runs: Sequence[Run], output: Path, *, question: str | None = None, verdicts: Sequence[Verdict] = ()
) -> None:
    """results.csv and index.html in ``output``, each written whole; of a study also verdicts.json and verdicts.md."""
    records = results(runs)
    page = render(runs, records, question=question, verdicts=verdicts)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "results.csv", to_csv(records))
    if verdicts:
        write_json(output / "verdicts.json", {"question": question} | conclusion(runs, verdicts))
        write_text(output / "verdicts.md", verdict_table(verdicts))
    write_text(output / "index.html", page)


def export(runs: Sequence[Run], folder: Path) -> None:
    """Pieces for a README or a paper: table.md and table.tex, samples.png (last grids side by side), each curve as SVG,
    and of each run epochs_ARM.png, its samples after 1, 2, 4, 10, 50 and 100 epochs (those that it reached); where
    hyperparameters were tuned, tuning.svg and tuning.md.
    """
    names = arms(runs)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", markdown_table(results(runs)))
    write_text(folder / "table.tex", latex_table(results(runs)))
    grids = {name: list(run.samples.values())[-1] for run, name in zip(runs, names, strict=True) if run.samples}
    if grids:
        figures.side_by_side(grids).savefig(folder / "samples.png", dpi=100)
    for run, name in zip(runs, names, strict=True):
        epochs = figures.samples_by_epoch(run)
        if epochs is not None:
            epochs.savefig(folder / f"epochs_{folder_name(name)}.png", dpi=100)
    for metric in METRICS:
        curve = figures.learning_curve(metric, runs, names)
        if curve is not None:
            write_text(folder / f"{metric.replace('/', '_')}.svg", figures.svg(curve))
    tuned = tuning.figure(runs)
    if tuned is not None:
        write_text(folder / "tuning.svg", figures.svg(tuned))
        write_text(folder / "tuning.md", tuning.table(runs))


def columns(records: Sequence[dict[str, Any]]) -> dict[str, tuple[str, str, str]]:
    """What of TABLE any of the records has."""
    return {key: column for key, column in TABLE.items() if any(record.get(key) is not None for record in records)}


def cells(record: dict[str, Any], shown: Mapping[str, tuple[str, str, str]]) -> list[str]:
    """A row of a table."""
    return [cell(record.get(key), form) for key, (_, form, _) in shown.items()]


def markdown_table(records: Sequence[dict[str, Any]]) -> str:
    """The page's tables in Markdown, one for each protocol: a row per run, or per arm where arms have several runs."""
    tables = []
    for members in by_protocol(records).values():
        arms = by_arm(members)
        several = len(arms) < len(members)
        rows = arms if several else members
        shown = columns(rows)
        counted = "runs" if several else "seed"
        lines = [f"| arm | {counted} | " + " | ".join(heading for heading, _, _ in shown.values()) + " |"]
        lines.append("|---|" + "---:|" * (len(shown) + 1))
        lines += [f"| {row['arm']} | {row[counted]} | " + " | ".join(cells(row, shown)) + " |" for row in rows]
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def latex_table(records: Sequence[dict[str, Any]]) -> str:
    """:func:`markdown_table` as LaTeX tabulars, for booktabs."""
    text = []
    for block in markdown_table(records).split("\n\n"):
        head, _, *rows = [
            [part.strip() for part in line.strip("|").split("|")] for line in block.splitlines() if line.strip()
        ]
        lines = [f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "\\toprule"]
        lines += [" & ".join(map(latex, head)) + " \\\\", "\\midrule"]
        lines += [" & ".join(map(latex, row)) + " \\\\" for row in rows]
        text.append("\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""]))
    return "\n".join(text)


def latex(text: str) -> str:
    """Plain text with what LaTeX takes for commands escaped."""
    special = {"_": "\\_", "%": "\\%", "&": "\\&", "#": "\\#", "±": "$\\pm$", "−": "$-$", "–": "--"}
    return "".join(special.get(sign, sign) for sign in text)


def cell(value: float | tuple[float, float, float] | None, form: str) -> str:
    """A number as the tables show it; of (mean, low, high) the mean ± half the interval."""
    if isinstance(value, tuple):
        mean, low, high = value
        return format(mean, form) + (f" ± {format((high - low) / 2, form)}" if high > low else "")
    return "–" if value is None else format(value, form)


def render(
    runs: Sequence[Run],
    records: Sequence[dict[str, Any]],
    *,
    question: str | None = None,
    verdicts: Sequence[Verdict] = (),
) -> str:
    """The page as one HTML document: images, figures, style and script inside, nothing fetched."""
    names = arms(runs)
    colours = figures.colours(names)
    curves = [figures.learning_curve(metric, runs, names) for metric in METRICS]
    curves += [figures.every_seed(metric, runs, names) for metric in figures.JUDGED]
    curves.append(tuning.figure(runs))
    panels = [panel(run, name, colours[name]) for run, name in zip(runs, names, strict=True)]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wganlab.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell
    return environment.get_template("page.html.jinja").render(
        title=title(runs, names),
        arms=colours,
        several_seeds=len(set(names)) < len(runs),
        runs=runs,
        names=names,
        question=question,
        verdicts=verdicts,
        tables=[
            {"arms": by_arm(members), "records": members, "protocol": describe(runs, protocol)} | {"columns": shown}
            for protocol, members in by_protocol(records).items()
            for shown in [[(key, *column) for key, column in columns(members).items()]]
        ],
        emd_real={r["final/eval/emd_real"] for r in records if "final/eval/emd_real" in r},
        differing={key: [values[names.index(arm)] for arm in colours] for key, values in differing_keys(runs).items()},
        curves=[figures.svg(curve) for curve in curves if curve is not None],
        panels=panels,
        steps=sorted({step for run in runs for step in run.samples}),
        samples_json=json.dumps([panel["samples"] for panel in panels]).replace("</", "<\\/"),
        seconds_json=json.dumps([panel["seconds"] for panel in panels]),
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def panel(run: Run, arm: str, colour: str) -> dict[str, Any]:
    """What the page shows of one run beside its row in the table."""
    return {
        "arm": arm,
        "seed": run.config.get("seed"),
        "colour": colour,
        "samples": {step: data_uri(path) for step, path in run.samples.items()},
        "seconds": {step: seconds_at(run, step) for step in run.samples},
        "histogram": histogram(run, colour),
    }


def describe(runs: Sequence[Run], protocol: str | None) -> str:
    """A protocol in words."""
    content = next((run.protocol for run in runs if run.protocol.get("id") == protocol), {})
    return ", ".join(f"{key} {value}" for key, value in content.items() if not isinstance(value, dict))


def title(runs: Sequence[Run], names: Sequence[str]) -> str:
    """What is compared, and what all runs have in common."""
    common = [group for group in ("dataset", "model", "loss") if len({run.choices.get(group) for run in runs}) == 1]
    shared = ", ".join(f"{runs[0].choices.get(group)}" for group in common if runs[0].choices.get(group))
    different = list(dict.fromkeys(names))
    shown = " · ".join(different) if len(different) <= figures.MANY_ARMS else f"{len(different)} arms"
    return shown + (f" on {shared}" if shared and len(set(names)) > 1 else "")


def histogram(run: Run, colour: str) -> str | None:
    """Weights of the critic in the last checkpoint, drawn; None where there is no readable one."""
    import torch

    path = run.folder / "checkpoints" / "last.ckpt"
    if not path.is_file():
        run.problems.append("checkpoints/last.ckpt is missing")
        return None
    bound = select(run.config, "loss.regularizer.weight_clipping.bound")
    try:
        weights = figures.critic_weights(torch.load(path, map_location="cpu", weights_only=True))
        figure = figures.weight_histogram(weights, float(bound) if bound not in (ABSENT, None) else None, colour)
    except Exception:  # a truncated or foreign file fails in many ways, and a report shows what there is
        run.problems.append("checkpoints/last.ckpt cannot be read")
        return None
    return figures.svg(figure)


def seconds_at(run: Run, step: int) -> float:
    """Seconds of training that a run took to a generator step."""
    return max((row["seconds"] for row in run.rows if row["step"] <= step and "seconds" in row), default=0.0)


def data_uri(path: Path) -> str:
    """A PNG file as a URI that needs no file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
