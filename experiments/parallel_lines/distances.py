"""Distances between the parallel lines against theta, computed exactly: writes distances.md and distances.svg here.

    python experiments/parallel_lines/distances.py

P is uniform on 64 points of the line x = 0, Q on the same heights of the line x = theta: at theta = 0 they are one
distribution, at any other theta their supports do not meet.
"""

import math
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from wganlab.distances import earth_mover, js, kl, total_variation
from wganlab.report.figures import STYLE, svg

HERE = Path(__file__).parent
HEIGHTS = 64


def distances(theta: float) -> dict[str, float]:
    """KL, TV, JS in nats and EM in units of theta, between the two lines."""
    lines = [torch.stack([torch.full((HEIGHTS,), x), torch.linspace(0, 1, HEIGHTS)], dim=1) for x in (0.0, theta)]
    points, place = torch.unique(torch.cat(lines), dim=0, return_inverse=True)
    p, q = (
        torch.zeros(len(points)).index_add_(0, part, torch.full((HEIGHTS,), 1 / HEIGHTS)) for part in place.chunk(2)
    )
    return {"KL": kl(p, q), "TV": total_variation(p, q), "JS": js(p, q), "EM": earth_mover(p, q, points)}


def main() -> None:
    thetas = [i / 8 for i in range(-8, 9)]
    rows = {theta: distances(theta) for theta in thetas}
    lines = ["| theta | " + " | ".join(rows[0.0]) + " |", "|---:|---:|---:|---:|---:|"]
    for theta in (-1.0, -0.5, -0.125, 0.0, 0.125, 0.5, 1.0):
        lines.append(f"| {theta} | " + " | ".join(f"{value:.4f}" for value in rows[theta].values()) + " |")
    (HERE / "distances.md").write_text("\n".join(lines) + "\n")
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 2.2), layout="constrained")
        for axes, name, top in zip(figure.subplots(1, 3), ("EM", "JS", "TV"), (1.05, 1.05, 1.05), strict=True):
            axes.plot(thetas, [rows[theta][name] for theta in thetas], "o-", ms=3, lw=1)
            axes.set(title=name, xlabel="theta", ylim=(-0.05, top))
            if name == "JS":
                axes.axhline(math.log(2), color="0.4", ls=":", lw=1)
                axes.text(-1, math.log(2) + 0.03, "log 2")
                axes.axhline(math.log(2) / 2, color="0.7", ls=":", lw=1)
                axes.text(-1, math.log(2) / 2 + 0.03, "(1/2) log 2")
    (HERE / "distances.svg").write_text(svg(figure))


if __name__ == "__main__":
    main()
