"""What each trick of the bare loop brings: wgan_gp without it, in turns. ``python -m benchmarks.tricks``

Writes results/tricks.md.
"""

import statistics
import tempfile
from pathlib import Path

from benchmarks.bench import RESULTS, machine
from benchmarks.loops import TRICKS, bare
from benchmarks.turns import rate
from benchmarks.workloads import WORKLOADS, write_images
from wganlab.train import commit


def main() -> None:
    lines = [
        f"Made by `python -m benchmarks.tricks` at {commit()}. {machine()}.",
        "wgan_gp: speed with all tricks over speed without the one named; medians over turns, ± largest deviation.",
        "",
        "| workload | " + " | ".join(TRICKS) + " |",
        "|---|" + "---:|" * len(TRICKS),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        for name in WORKLOADS:
            slow, config = WORKLOADS[name].slow, WORKLOADS[name].config("wgan_gp", Path(folder))
            loops = {without: bare(config, without=without) for without in ("", *TRICKS)}
            for loop in loops.values():
                next(loop)
            turns = [{without: rate(loop, 1.5) for without, loop in loops.items()} for _ in range(2 if slow else 3)]
            cells = []
            for trick in TRICKS:
                gains = [turn[""] / turn[trick] for turn in turns]
                middle = statistics.median(gains)
                cells.append(f"{middle:.2f} ± {max(abs(gain - middle) for gain in gains):.2f}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / "tricks.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
