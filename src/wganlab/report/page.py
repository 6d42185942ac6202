"""``wganlab report``: results.csv and one self-contained index.html over any runs and sweeps."""

import base64
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from wganlab.config import folder_name
from wganlab.files import write_text
from wganlab.report import figures
from wganlab.report.compare import ABSENT, arms, differing_keys, results, select, to_csv
from wganlab.runs import Run

#: Column of the page's table -> (heading, format, what it means).
TABLE = {
    "final/eval/emd": (
        "EMD to real",
        ".2f",
        "exact earth mover's distance to real images after the last step",
    ),
    "best/eval/emd": ("lowest EMD", ".2f", "smallest such distance during the run"),
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


def write_report(runs: Sequence[Run], output: Path) -> None:
    """results.csv and index.html in ``output``, each written whole."""
    records = results(runs)
    page = render(runs, records)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "results.csv", to_csv(records))
    write_text(output / "index.html", page)


def export(runs: Sequence[Run], folder: Path) -> None:
    """Pieces for a README or a paper: table.md, samples.png (last grids side by side), each curve as SVG, and of each
    run epochs_ARM.png, its samples after 1, 2, 4, 10, 50 and 100 epochs (those that it reached).
    """
    names = arms(runs)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", markdown_table(results(runs)))
    grids = {name: list(run.samples.values())[-1] for run, name in zip(runs, names, strict=True) if run.samples}
    if grids:
        figures.side_by_side(grids).savefig(folder / "samples.png", dpi=100)
    for run, name in zip(runs, names, strict=True):
        epochs = figures.samples_by_epoch(run)
        if epochs is not None:
            epochs.savefig(folder / f"epochs_{folder_name(name)}.png", dpi=100)
    for metric in figures.CURVES:
        curve = figures.learning_curve(metric, runs, names)
        if curve is not None:
            write_text(folder / f"{metric.replace('/', '_')}.svg", figures.svg(curve))


def markdown_table(records: Sequence[dict[str, Any]]) -> str:
    """The page's table in Markdown, a row per run."""
    columns = {key: TABLE[key] for key in TABLE if any(record.get(key) is not None for record in records)}
    lines = ["| arm | seed | " + " | ".join(heading for heading, _, _ in columns.values()) + " |"]
    lines.append("|---|" + "---:|" * (len(columns) + 1))
    for record in records:
        cells = [cell(record.get(key), form) for key, (_, form, _) in columns.items()]
        lines.append(f"| {record['arm']} | {record['seed']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(value: float | None, form: str) -> str:
    """A number as the tables show it."""
    return "–" if value is None else format(value, form)


def render(runs: Sequence[Run], records: Sequence[dict[str, Any]]) -> str:
    """The page as one HTML document: images, figures, style and script inside, nothing fetched."""
    names = arms(runs)
    colours = figures.colours(names)
    curves = [figures.learning_curve(metric, runs, names) for metric in figures.CURVES]
    panels = [
        {
            "arm": name,
            "seed": run.config.get("seed"),
            "colour": colours[name],
            "samples": {step: data_uri(path) for step, path in run.samples.items()},
            "histogram": histogram(run, colours[name]),
        }
        for run, name in zip(runs, names, strict=True)
    ]
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
        table=[
            (key, *column) for key, column in TABLE.items() if any(record.get(key) is not None for record in records)
        ],
        records=records,
        emd_real={r["final/eval/emd_real"] for r in records if "final/eval/emd_real" in r},
        differing=differing_keys(runs),
        curves=[figures.svg(curve) for curve in curves if curve is not None],
        panels=panels,
        steps=sorted({step for run in runs for step in run.samples}),
        samples_json=json.dumps([panel["samples"] for panel in panels]).replace("</", "<\\/"),
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


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
    bound = select(run.config, "loss.lipschitz.bound")
    try:
        weights = figures.critic_weights(torch.load(path, map_location="cpu", weights_only=True))
        figure = figures.weight_histogram(weights, float(bound) if bound not in (ABSENT, None) else None, colour)
    except Exception:  # a truncated or foreign file fails in many ways, and a report shows what there is
        run.problems.append("checkpoints/last.ckpt cannot be read")
        return None
    return figures.svg(figure)


def data_uri(path: Path) -> str:
    """A PNG file as a URI that needs no file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
