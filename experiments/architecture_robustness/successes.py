"""How many architectures each loss trains, by the least Inception score that counts as success (WGAN-GP, table 2).

    python experiments/architecture_robustness/successes.py outputs/study/architecture_robustness

Writes successes.md beside this file. The paper counts GAN and WGAN-GP; here is a column for clipping, too.
"""

import sys
from collections import defaultdict
from pathlib import Path

from wganlab.runs import final_and_best, find_runs

ARMS = ("gan", "wgan_clip", "wgan_gp")
THRESHOLDS = (1.5, 2, 2.5, 3, 4, 5, 7)


def main(folder: str) -> None:
    """Read the runs of the study; write the table."""
    best: dict[int, dict[str, float]] = defaultdict(dict)
    for run in find_runs([folder]):
        score = final_and_best(run.rows)["best"].get("eval/inception_score", {}).get("value", 0.0)
        best[run.config["seed"]][run.overrides["arms"]] = score
    whole = [scores for scores in best.values() if len(scores) == len(ARMS)]
    lines = [
        f"{len(whole)} architectures",
        "",
        "| least score | " + " | ".join(ARMS) + " | all three | none | only wgan_gp |",
        "|---:|" + "---:|" * (len(ARMS) + 3),
    ]
    for least in THRESHOLDS:
        trained = [{arm for arm in ARMS if scores[arm] >= least} for scores in whole]
        counts = [sum(arm in arms for arms in trained) for arm in ARMS]
        counts += [sum(len(arms) == len(ARMS) for arms in trained), sum(not arms for arms in trained)]
        counts += [sum(arms == {"wgan_gp"} for arms in trained)]
        lines.append(f"| {least} | " + " | ".join(map(str, counts)) + " |")
    (Path(__file__).parent / "successes.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
