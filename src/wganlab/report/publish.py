"""Pieces of a report for READMEs and papers, and the pages of Markdown that show them."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from wganlab.files import write_text
from wganlab.overrides import folder_name
from wganlab.report import epochs, figures, networks, tuning
from wganlab.report.compare import arms, longest, results
from wganlab.report.tables import latex_table, markdown_table
from wganlab.runs import Run
from wganlab.schema import ConfigError
from wganlab.tune import Search


def export(
    runs: Sequence[Run],
    folder: Path,
    *,
    samples_at_epochs: Sequence[int] = (),
    grids_at_steps: Sequence[int] = (),
    published: Path | None = None,
    search: Search | None = None,
) -> None:
    """Write table.md and table.tex, samples.png (last grids side by side) and each curve as SVG.

    Of the longest run of each arm also, with ``samples_at_epochs``, epochs_ARM.png: its samples after so many epochs;
    with ``grids_at_steps``, grids_ARM.png: whole grids after so many steps; and epochs.md and epochs.svg: the losses of
    these epochs, beside what a source ``published`` (see :mod:`wganlab.report.epochs`). Where hyperparameters were
    tuned, by these runs or those of a search, also tuning.svg and tuning.md.
    """
    names = arms(runs)
    shown = longest(runs, names)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", markdown_table(results(runs)))
    write_text(folder / "table.tex", latex_table(results(runs)))
    grids = {name: list(run.samples.values())[-1] for name, run in shown.items() if run.samples}
    if grids:
        networks.side_by_side(grids).savefig(folder / "samples.png", dpi=100)
    for name, run in shown.items():
        for kind, drawn in (
            ("epochs", networks.samples_by_epoch(run, samples_at_epochs)),
            ("grids", networks.grids_by_step(run, grids_at_steps)),
        ):
            if drawn is not None:
                drawn.savefig(folder / f"{kind}_{folder_name(name)}.png", dpi=100)
    losses = {name: of for name, run in shown.items() if (of := epochs.epochs_of(run))} if samples_at_epochs else {}
    if losses:
        printed = epochs.read_published(published) if published else {}
        losses |= {epochs.PUBLISHED: printed} if printed else {}
        write_text(folder / "epochs.md", epochs.table(losses, [*samples_at_epochs, *printed]))
        write_text(folder / "epochs.svg", figures.svg(epochs.figure(losses)))
    for metric, curve in figures.curves(runs, names).items():
        name = re.sub(r"[^\w.-]", "_", metric)
        write_text(folder / f"{name}.svg", figures.svg(curve))
    tuned = tuning.figure(runs, search)
    if tuned is not None:
        write_text(folder / "tuning.svg", figures.svg(tuned))
        write_text(folder / "tuning.md", tuning.table(runs, search))


def publish_page(page: Path, pieces: Path) -> list[Path]:
    """Refresh what a page of Markdown shows with the pieces in a folder; returns the files that were written.

    These are the files beside the page that it links to, and the table between the page's lines ``<!-- table -->`` and
    ``<!-- end of table -->``. Raises ConfigError where there is no such page.
    """
    if not page.is_file():
        raise ConfigError(str(page), ": no such page; give a file of Markdown")
    written = []
    for name in dict.fromkeys(re.findall(r"\]\(([^()/\s]+)\)", page.read_text(encoding="utf-8"))):
        if (pieces / name).is_file():
            shutil.copyfile(pieces / name, page.parent / name)
            written.append(page.parent / name)
        elif (page.parent / name).is_file() and name.endswith((".svg", ".png")):
            print(f"note: {page.name} shows {name}, which these runs do not have; it stays as it was", flush=True)
    if fill(page, "table", (pieces / "table.md").read_text(encoding="utf-8")):
        written.append(page)
    return written


def fill(page: Path, section: str, text: str) -> bool:
    """Replace the lines between ``<!-- SECTION -->`` and ``<!-- end of SECTION -->``; False for a page without them."""
    begin, end = f"<!-- {section} -->\n", f"<!-- end of {section} -->"
    before, opened, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        return False
    write_text(page, before + begin + text + end + after)
    return True
