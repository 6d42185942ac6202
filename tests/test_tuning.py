"""Tuning fairness: the best of so many trials."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.test_report import make_run
from wganlab.files import write_json
from wganlab.report import tuning
from wganlab.report.page import write_report
from wganlab.report.publish import export
from wganlab.runs import Run, find_runs
from wganlab.tune import Search, Tune


def test_the_best_of_k_is_expected_over_all_sets_of_k() -> None:
    values = [3.0, 1.0, 4.0, 1.5]
    for k in range(1, 5):
        sets = [min(chosen) for chosen in itertools.combinations(values, k)]
        assert tuning.expected_best(values, k) == pytest.approx(sum(sets) / len(sets))
    assert tuning.expected_best([*values, math.inf], 4) == pytest.approx(1.0 + 0.5 / 5)  # one set of five lacks the 1
    assert tuning.expected_best([1.0, math.inf], 1) == math.inf


def trials(folder: Path, found: Mapping[str, Sequence[Sequence[float]]], *, search: bool = False) -> list[Run]:
    """Runs whose FID ended at these values: arm -> seed -> trial; of infinite ones that have failed."""
    for arm, seeds in found.items():
        for seed, values in enumerate(seeds):
            for number, value in enumerate(values):
                failed = math.isinf(value)
                overrides = [f"lr={number}", f"seed={seed}", f"+search={arm}" if search else f"+arms={arm}"]
                run = make_run(folder / f"{arm}{seed}{9 - number}", {"seed": seed, "lr": number}, overrides)
                write_json(run / "summary.json", {"final": {} if failed else {"eval/fid": value}})
                error = "FloatingPointError: diverged" if failed else None
                status = {
                    "state": "failed" if failed else "completed",
                    "error": error,
                    "started": f"2026-01-01T00:00:0{number}",
                }
                write_json(run / "status.json", status)
                if search:
                    choices = {"hydra": {"runtime": {"choices": {"search": arm}}}}
                    (run / ".hydra" / "hydra.yaml").write_text(json.dumps(choices))
    return find_runs([folder])


def test_a_grid_is_taken_in_any_order_and_seeds_give_the_interval(tmp_path: Path) -> None:
    runs = trials(tmp_path, {"a": [[4, 3, 2, 1], [8, 6, 4, 2]], "b": [[9, math.inf, 9, 9]] * 2})
    metric, found = tuning.curves(runs)
    assert metric == "eval/fid"
    mean, low, high = zip(*found["a"], strict=True)
    assert mean == pytest.approx([3.75, 2.5, 1.875, 1.5])  # means of 2.5 and 5, ..., of 1 and 2
    assert all(a < b < c for a, b, c in zip(low, mean, high, strict=True))
    # one of four trials diverged: whoever makes one may have that one
    assert [one[0] for one in found["b"]] == [math.inf, 9, 9, 9]


def test_a_search_is_taken_in_its_order(tmp_path: Path) -> None:
    _, found = tuning.curves(trials(tmp_path, {"wgan_gp": [[5, 7, 3, 4]]}, search=True))
    assert [one[0] for one in found["wgan_gp"]] == [5, 5, 3, 3]


def test_a_trial_without_a_last_score_is_the_worst(tmp_path: Path) -> None:
    """As one is whose FID ended as nan, for which summary.json has null."""
    trials(tmp_path, {"wgan_gp": [[5, 7, 3]]}, search=True)
    write_json(tmp_path / "wgan_gp07" / "summary.json", {"final": {"eval/fid": math.nan}})
    _, found = tuning.curves(find_runs([tmp_path]))
    assert [one[0] for one in found["wgan_gp"]] == [5, 5, 5]


def test_a_study_is_tuned_by_the_score_that_it_names(tmp_path: Path) -> None:
    """Two trials of an arm had inception scores of 2 and 4 at their best, one of 3, and one diverged after 9."""
    best = [2.0, 4.0, 3.0, 9.0]
    for trial, value in enumerate(best):
        rows = f"step,eval/emd,eval/inception_score\n10,1,{value}\n20,1,1\n"
        state = "failed" if value == 9 else "completed"
        folder = make_run(tmp_path / f"{trial}", {"seed": 0, "trial": trial}, ["+arms=a"], rows, state)
        write_json(folder / "summary.json", {"final": {"eval/emd": 1.0, "eval/inception_score": 1.0}})
        if value == 9:
            write_json(folder / "status.json", {"state": state, "error": "FloatingPointError: diverged"})
    search = Search(Tune(trials=4, seed=0, score="eval/inception_score", rule="BestScore"), find_runs([tmp_path]))
    metric, found = tuning.curves([], search)
    assert metric == "eval/inception_score"
    # the worst of a score that is to be high is minus infinity; of sets of two, three have 4 and two more have 3
    assert [one[0] for one in found["a"]] == [-math.inf, pytest.approx((3 * 4 + 2 * 3 + 2) / 6), pytest.approx(3.75), 4]


def test_the_report_shows_it_and_leaves_it_out_where_nothing_was_tuned(tmp_path: Path) -> None:
    tuned = trials(tmp_path / "tuned", {"a": [[4, 3, 2, 1]], "b": [[9, 8, 7, 6]]})
    export(tuned, tmp_path / "export")
    assert (tmp_path / "export/tuning.md").read_text().splitlines()[2:6] == [
        "| 1 | 2.5 | 7.5 |",
        "| 2 | 1.67 | 6.67 |",
        "| 3 | 1.25 | 6.25 |",
        "| 4 | 1 | 6 |",
    ]
    assert "<svg" in (tmp_path / "export/tuning.svg").read_text()
    write_report(tuned, tmp_path / "page")
    assert "best of so many trials" in (tmp_path / "page/index.html").read_text()
    alone = trials(tmp_path / "alone", {"a": [[4], [3], [2], [1]]})
    assert tuning.figure(alone) is None
    assert tuning.table(alone) == ""
