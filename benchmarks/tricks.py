"""What each trick of the bare loop brings: wgan_gp without it, in turns. ``python -m benchmarks.tricks``

Writes results/tricks.md.
"""

import tempfile
from pathlib import Path

from benchmarks.bench import RESULTS, compared, machine
from benchmarks.loops import TRICKS, bare
from benchmarks.turns import rate
from benchmarks.workloads import WORKLOADS, write_images
from wganlab.training import commit


def main() -> None:
    lines = [
        f"Made by `python -m benchmarks.tricks` at {commit()}. {machine()}.",
        "wgan_gp: speed with all tricks over speed without the one named, in turns, ± the standard error over turns.",
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
            turns: dict[str, list[dict[str, float]]] = {trick: [] for trick in TRICKS}
            for _ in range(5 if slow else 20):
                for trick in TRICKS:
                    turns[trick].append({without: rate(loops[without], 0.5) for without in (trick, "")})
            cells = [compared(turns[trick], trick, "") for trick in TRICKS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / "tricks.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
