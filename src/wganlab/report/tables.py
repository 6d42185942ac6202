"""Tables of results: which columns they have, and the same cells in Markdown and LaTeX."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from wganlab.metrics import METRICS, Metric
from wganlab.report.compare import by_arm, by_protocol
from wganlab.runs import Status


class Column(NamedTuple):
    """A column of a table of results."""

    key: str  # of the records
    heading: str
    format: str
    meaning: str
    headline: bool = False  # shown at first, the others on request


class Table(NamedTuple):
    """A table as text: the names of its columns and its cells."""

    head: list[str]
    rows: list[list[str]]
    aligned: str = ""  # l or r for each column, as in LaTeX; if empty, all but the first are numbers, to the right


#: The row of real samples.
REAL = "real samples"
#: Columns that are no metrics.
BUDGET = (
    Column("images_per_second", "images/s", ",.0f", "real images seen by the critic per second", True),
    Column("seconds", "time (s)", ".1f", "wall time of training, evaluation included", True),
    Column("steps", "steps", ".0f", "generator steps", True),
    Column("epochs", "epochs", ".1f", "passes of the critic over the data set"),
)


def columns_of_metric(name: str, metric: Metric) -> list[Column]:
    """The last value of a metric; of losses and headlines also the best; of headlines also the gap between the two."""
    short, form, meaning = metric.short_title, metric.format, metric.meaning
    columns = [Column(f"final/{name}", short, form, f"{meaning}; after the last step", bool(metric.protocol))]
    if metric.direction and (metric.headline or metric.protocol is None):
        best = {"lower": "lowest", "higher": "highest"}[metric.direction]
        columns.append(Column(f"best/{name}", f"{best} {short}", form, f"{meaning}; {best} value during the run"))
    if metric.headline:
        columns.append(Column(f"gap/{name}", f"{short} last − best", form, "collapse since the best value"))
    return columns


#: Every column that a table may have: scores first.
COLUMNS = [
    *(
        column
        for name, metric in sorted(METRICS.items(), key=lambda item: item[1].protocol is None)
        if metric.short_title
        for column in columns_of_metric(name, metric)
    ),
    *BUDGET,
]


def columns_of(records: Sequence[dict[str, Any]], *, headline: bool = False) -> list[Column]:
    """The columns for which any of the records has a value; with ``headline`` last scores, speed and budget alone."""
    columns = [column for column in COLUMNS if column.headline or not headline]
    return [column for column in columns if any(record.get(column.key) is not None for record in records)]


def real_row(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What real samples score by the protocol of these records, in the place of generated ones; empty if unknown."""
    known = next((record for record in records if any(key.startswith("real/") for key in record)), {})
    return {f"final/{key.removeprefix('real/')}": known[key] for key in known if key.startswith("real/")}


def cell(value: float | tuple[float, float, float] | None, form: str) -> str:
    """A number as the tables show it; of (mean, low, high) the mean ± half the interval."""
    if isinstance(value, tuple):
        mean, low, high = value
        if form == ".0f" and not mean.is_integer():  # of counts
            form = ".1f"
        return format(mean, form) + (f" ± {format((high - low) / 2, form)}" if high > low else "")
    return "–" if value is None else format(value, form)


def named(row: dict[str, Any]) -> str:
    """The arm of a row, and the state of a run that has not completed."""
    state = row.get("state", Status.COMPLETED)
    return str(row["arm"]) + (f" ({state})" if state != Status.COMPLETED else "")


def counted(arm: dict[str, Any]) -> str:
    """How many runs an arm's means are over, and of how many, where some diverged or were given less."""
    completed, runs = arm["completed"], arm["runs"]
    return str(runs) if completed == runs else f"{completed} of {runs}"


def tables(records: Sequence[dict[str, Any]]) -> list[Table]:
    """A table of headlines per protocol, with a row per run, or per arm where arms have several runs."""
    found = []
    for members in by_protocol(records).values():
        arms = by_arm(members)
        several = len(arms) < len(members)
        rows = arms if several else members
        shown = columns_of(rows, headline=True)
        head = ["arm", "runs" if several else "seed", *(column.heading for column in shown)]
        cells = [[cell(row.get(column.key), column.format) for column in shown] for row in rows]
        leading = [[named(row), counted(row) if several else str(row["seed"])] for row in rows]
        if real := real_row(members):
            leading.append([REAL, "–"])
            cells.append([cell(real.get(column.key), column.format) for column in shown])
        found.append(Table(head, [left + right for left, right in zip(leading, cells, strict=True)]))
    return found


def markdown_table(records: Sequence[dict[str, Any]]) -> str:
    """:func:`tables` in Markdown."""
    return "\n".join(map(markdown, tables(records)))


def markdown(table: Table) -> str:
    """A table in Markdown."""
    aligned = table.aligned or "l" + "r" * (len(table.head) - 1)
    rule = "|" + "".join({"l": "---|", "r": "---:|"}[side] for side in aligned)
    escaped = [[in_a_cell(text) for text in row] for row in (table.head, *table.rows)]
    head, *rows = [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join([head, rule, *rows]) + "\n"


def in_a_cell(text: str) -> str:
    """A text as a cell of Markdown."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def latex_table(records: Sequence[dict[str, Any]]) -> str:
    """:func:`tables` as LaTeX tabulars, for booktabs."""
    text = []
    for table in tables(records):
        head, *rows = [" & ".join(map(latex, row)) + " \\\\" for row in (table.head, *table.rows)]
        begin = f"\\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}"
        text.append("\n".join([begin, "\\toprule", head, "\\midrule", *rows, "\\bottomrule", "\\end{tabular}", ""]))
    return "\n".join(text)


def latex(text: str) -> str:
    """Plain text with what LaTeX takes for commands escaped."""
    special = {"\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "$": "\\$", "~": "\\textasciitilde{}"}
    special |= {"^": "\\textasciicircum{}", "_": "\\_", "%": "\\%", "&": "\\&", "#": "\\#"}
    special |= {"±": "$\\pm$", "−": "$-$", "–": "--"}
    return "".join(special.get(character, character) for character in text)
