"""A forest plot of the verdicts of a study."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from wganlab.report.figures import STYLE, as_text
from wganlab.report.verdicts import FAILS, HOLDS, SMALL, Verdict

#: The colour of each verdict in the forest plot.
DECIDED = {HOLDS: "#227755", SMALL: "#227755", FAILS: "#aa3333"}


def figure(verdicts: Sequence[Verdict]) -> Figure:
    """A row for each claim: its centre and interval, with the bounds that it speaks of; each row on a scale of its own.

    Shaded is what would bear the claim out.
    """
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(9, 0.3 + 0.72 * len(verdicts)), layout="constrained")
        for axes, verdict in zip(drawn.subplots(len(verdicts), 1, squeeze=False)[:, 0], verdicts, strict=True):
            centre, low, high = verdict.summary
            bounds = [bound for bound in (verdict.claim.low, verdict.claim.high) if np.isfinite(bound)]
            points = [value for value in (centre, low, high, *bounds) if np.isfinite(value)]
            margin = 0.15 * (max(points) - min(points)) or 1.0
            left, right = min(points) - margin, max(points) + margin
            axes.axvspan(max(verdict.claim.low, left), min(verdict.claim.high, right), color="0.93", lw=0)
            for bound in bounds:
                axes.axvline(bound, color="0.4", lw=1, ls=":")
            colour = DECIDED.get(verdict.decision, "0.45")
            axes.plot([max(low, left), min(high, right)], [0, 0], color=colour, lw=2, solid_capstyle="butt")
            axes.plot(centre, 0, "o", color=colour, ms=5)
            axes.set(xlim=(left, right), ylim=(-1, 1), yticks=[])
            axes.tick_params(labelsize=7)
            axes.grid(False)
            axes.spines["left"].set_visible(False)
            words = f"{verdict.claim.says}: {verdict.decision}"
            axes.set_title(as_text(words if len(words) < 120 else f"{words[:117]}..."), fontsize=8.5, loc="left", pad=2)
    return drawn
