"""The best FID that k trials of the learning rate are expected to find, for each arm of the study.

    python experiments/tuning_fairness/best_of_k.py outputs/study/tuning_fairness

Writes best_of_k.md and best_of_k.svg beside this file. A trial is one learning rate, drawn without replacement; the
best of k is expected over all draws, for each seed alone, and shown as its mean over seeds with a 95% interval.
"""

import math
import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

from wganlab.runs import find_runs
from wganlab.statistics import interval

HERE = Path(__file__).parent


def expected_best(values: list[float], k: int) -> float:
    """Mean over all sets of k of the values of the smallest in the set."""
    ranked = sorted(values)
    n = len(ranked)
    # the i-th smallest is the best of a set of k when the other k - 1 come from those above it
    return sum(value * math.comb(n - 1 - i, k - 1) for i, value in enumerate(ranked)) / math.comb(n, k)


def main(folder: str) -> None:
    """Read the runs of the study; write the table and the figure."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in find_runs([folder]):
        final = run.summary.get("final", {}).get("eval/fid")
        # a rate at which training diverges is a trial, too, and the worst one
        found[run.overrides["arms"]][run.config["seed"]].append(math.inf if final is None else final)
    trials = max(len(values) for seeds in found.values() for values in seeds.values())
    lines = ["| trials | " + " | ".join(found) + " |", "|---:|" + "---:|" * len(found)]
    curves = {arm: [interval([expected_best(v, k) for v in s.values()]) for k in range(1, trials + 1)]
              for arm, s in found.items()}  # fmt: skip
    for k in range(trials):
        cells = [f"{curve[k][0]:.3g} ± {curve[k][2] - curve[k][0]:.2g}" for curve in curves.values()]
        lines.append(f"| {k + 1} | " + " | ".join(cells) + " |")
    (HERE / "best_of_k.md").write_text("\n".join(lines) + "\n")
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.add_subplot(xlabel="trials", ylabel="expected best FID", yscale="log")
    for arm, curve in curves.items():
        mean, low, high = zip(*curve, strict=True)
        (line,) = axes.plot(range(1, trials + 1), mean, marker="o", label=arm)
        axes.fill_between(range(1, trials + 1), low, high, color=line.get_color(), alpha=0.2, lw=0)
    axes.legend(frameon=False)
    figure.savefig(HERE / "best_of_k.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1])
