"""The model card of an exported generator: its training, its scores, and how to load it."""

from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
import torch
from omegaconf import OmegaConf

import wganlab
from wganlab.build import generator_steps
from wganlab.metrics import METRICS, Metric
from wganlab.runs import Run
from wganlab.schema import HYDRA_KEYS, is_node, locate


def model_card(run: Run, config: Mapping[str, Any], *, step: int, **facts: Any) -> str:
    """The card in Markdown, of the generator of ``run`` after ``step`` steps; ``config`` is resolved.

    ``facts`` are those of the export: format, checkpoint, weights ("raw" or "averaged"), images_seen, shape, columns,
    classes, dtype, parameters, difference.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wganlab", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"zip": zip, "as_call": as_call, "description": description}
    return environment.get_template("card.md.jinja").render(
        **facts,
        config=config,
        step=step,
        choice={group: run.choices.get(group, "own") for group in ("dataset", "model", "loss", "training")},
        latent=config["model"].get("latent", "normal"),
        budget=generator_steps(OmegaConf.create(dict(config))),
        licence=licence(config["dataset"]),
        tables=list(tables(run, step, facts["weights"])),
        status=run.status,
        summary=run.summary,
        exporter={"wganlab": wganlab.__version__, "torch": torch.__version__},
    )


def as_call(node: Mapping[str, Any]) -> str:
    """A node of a config as a call: ``objectives.Wasserstein()``, ``optim.Adam(lr=0.0001)``."""
    arguments = [
        f"{key}={as_call(value) if is_node(value) else value}" for key, value in node.items() if key not in HYDRA_KEYS
    ]
    return f"{'.'.join(node['_target_'].split('.')[-2:])}({', '.join(arguments)})"


def description(protocol: Mapping[str, Any]) -> str:
    """A protocol in words, without its id and the hash of its real samples."""
    said = [
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in protocol.items()
        if key not in ("id", "real", "real_scores", "libraries")
    ]
    return ", ".join([*said, *(f"{name} {version}" for name, version in protocol.get("libraries", {}).items())])


def licence(dataset: Mapping[str, Any]) -> str:
    """The licence of a data set, an attribute of its class, or of that of the data set below it."""
    try:
        stated = getattr(locate(dataset["_target_"]), "licence", None)
        return stated or (licence(dataset["base"]) if "base" in dataset else "not stated")
    except (Exception, SystemExit):  # the import of a user's module may raise anything
        return "not stated"


def tables(run: Run, step: int, weights: str) -> Iterator[dict[str, Any]]:
    """Scores of these weights at a generator step: those taken in training, then those of each evaluation."""
    taken = [("in training", run.protocol, next((row for row in reversed(run.rows) if row["step"] == step), {}))]
    for name, record in run.evaluations.items():
        if record.get("step") == step and record["protocol"].get("statistics", "running") == "running":
            taken.append((f"by `wganlab evaluate`, {name}", record["protocol"], record["scores"]))
    for how, protocol, scores in taken:
        if protocol.get("generator", weights) == weights:
            yield from table(how, protocol, scores)


def table(taken: str, protocol: Mapping[str, Any], scores: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One table of scores, or none without any."""
    rows = []
    for name, value in scores.items():
        if name.startswith("eval/") and isinstance(value, float | int):
            metric = METRICS.get(name) or Metric("")
            rows.append(
                {
                    "name": name,
                    "value": format(value, metric.format),
                    "title": metric.title,
                    "better": metric.direction,
                }
            )
    if rows:
        yield {"taken": taken, "protocol": protocol, "rows": rows}
