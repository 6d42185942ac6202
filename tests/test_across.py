"""Comparison of arms over several data sets, against values that can be counted by hand."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import in_process
from tests.test_report import make_run
from wganlab.report.across import figure, improvement, profile, read_scores, scores_csv, table
from wganlab.runs import find_runs
from wganlab.schema import ConfigError

GRID = np.arange(10.0)


def test_probability_of_improvement_counts_pairs_of_seeds() -> None:
    data_sets = {"one": {"a": GRID, "b": GRID + 100}, "other": {"a": 5 * GRID, "b": 5 * GRID}}
    found = improvement(data_sets, "a", "b")
    assert found.probability == pytest.approx((1 + 0.5) / 2), "better on one data set, even on the other"
    assert found.low < found.probability < found.high
    assert improvement(data_sets, "b", "a").probability == pytest.approx(1 - found.probability)
    certain = improvement({"one": data_sets["one"]}, "a", "b")
    assert (certain.probability, certain.low, certain.high) == (1, 1, 1)


def test_a_run_that_diverged_is_worse_than_any_other_and_even_with_its_like() -> None:
    worse = np.array([np.inf, np.inf, 1.0, 1.0])
    assert improvement({"one": {"a": worse, "b": np.full(4, 2.0)}}, "a", "b").probability == 0.5
    assert improvement({"one": {"a": worse, "b": np.full(4, np.inf)}}, "a", "b").probability == 0.75


def test_the_interval_covers_the_probability() -> None:
    """Of normal scores that differ by one standard deviation: P = Phi(1 / sqrt 2) = 0.760."""
    random, covered = np.random.default_rng(1), 0
    for _ in range(60):
        data_sets = {str(i): {"a": random.normal(0, 1, 10), "b": random.normal(1, 1, 10)} for i in range(3)}
        found = improvement(data_sets, "a", "b")
        covered += found.low <= 0.760 <= found.high
    assert covered >= 50, "19 of 20, less what percentile intervals of ten seeds miss"


def test_a_profile_is_the_share_of_runs_within_a_factor_of_the_best_median() -> None:
    data_sets = {"one": {"a": np.array([1.0, 1, 4]), "b": np.array([2.0, 3, np.inf])}}
    assert profile(data_sets, "a", np.array([0.5, 1, 4])) == pytest.approx([0, 2 / 3, 1])
    assert profile(data_sets, "b", np.array([2, 3, 1000])) == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_profiles_of_scores_that_are_to_be_high_rise_too() -> None:
    """They come negated. A has 8 modes, B half of them, or none."""
    modes = {"one": {"a": np.full(3, -8.0), "b": np.array([-4.0, -4, 0])}}
    factors = np.array([0.8, 1, 1.9, 2, 1000])
    assert profile(modes, "a", factors) == pytest.approx([0, 1, 1, 1, 1])
    assert profile(modes, "b", factors) == pytest.approx([0, 0, 0, 2 / 3, 2 / 3])


def test_runs_that_diverged_are_within_no_factor() -> None:
    lost = {"one": {"a": np.array([np.inf, np.inf, 1]), "b": np.array([np.inf, np.inf, 2])}}
    assert profile(lost, "a", np.array([1.0, 10])).tolist() == [0, 0], "there is no best median"
    assert figure({"one": {"a": np.full(3, np.inf), "b": np.full(3, np.inf)}}).axes


def test_scores_below_zero_are_within_where_they_are_to_be_low() -> None:
    """As the debiased distance of a good generator may be."""
    near = {"one": {"a": np.array([-0.1, 0.1, 0.2]), "b": np.array([1.0, 2, 3])}}
    assert profile(near, "a", np.array([0.8, 1, 2])) == pytest.approx([1 / 3, 2 / 3, 1])
    below = {"one": {"a": np.array([-0.2, -0.1, 0.1]), "b": np.array([1.0, 2, 3])}}
    assert profile(below, "a", np.array([0.5, 1, 4])) == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert figure(below).axes


def test_the_table_is_its_own_mirror() -> None:
    """A pair of arms is decided from both of its sides, or from none."""
    random = np.random.default_rng(3)
    data_sets = {name: {"a": random.normal(0.4, 1, 10), "b": random.normal(0, 1, 10)} for name in ("one", "two")}
    first, second = ([float(x) for x in re.findall(r"\d\.\d\d", row)] for row in table(data_sets).splitlines()[2:])
    assert first == pytest.approx([1 - second[0], 1 - second[2], 1 - second[1]], abs=0.0101)
    assert first[1] < first[0] < first[2]


def test_a_handful_of_seeds_is_not_set_in_bold() -> None:
    few, many = ({"one": {"a": np.arange(n) + 0.0, "b": np.arange(n) + 100.0}} for n in (7, 8))
    assert "**" not in table(few)
    assert "**1.00 [1.00, 1.00]**" in table(many)


def test_arms_of_several_swept_keys_keep_their_names(tmp_path: Path) -> None:
    """Which hold commas."""
    for name, seed, score in (("one", 0, 1.5), ("other", 1, 2.5)):
        make_run(tmp_path / name, {"seed": seed}, [], f"step,eval/fid\n1,{score}\n")
    runs = find_runs([tmp_path])
    (tmp_path / "scores.csv").write_text(scores_csv(runs, ["a, dataset=x", "b, dataset=x"]))
    scores = read_scores(tmp_path, "eval/fid")
    assert {arm: values.tolist() for arm, values in scores.items()} == {"a, dataset=x": [1.5], "b, dataset=x": [2.5]}


def test_seeds_of_different_budgets_are_not_mixed(tmp_path: Path) -> None:
    """The length that most runs of an arm have counts, and those that diverged on the way."""
    for seed, (steps, score) in enumerate([(30, 9.0), (100, 1.0), (100, 2.0), (1000, 0.1)]):
        make_run(tmp_path / str(seed), {"seed": seed}, [], f"step,eval/fid\n{steps},{score}\n")
    diverged = make_run(tmp_path / "4", {"seed": 4}, [], "step,eval/fid\n200,7\n")
    (diverged / "status.json").write_text('{"state": "failed", "error": "FloatingPointError: no finite loss"}')
    (tmp_path / "scores.csv").write_text(scores_csv(find_runs([tmp_path]), "aaaaa"))
    assert sorted(read_scores(tmp_path, "eval/fid")["a"]) == [1.0, 2.0, np.inf]


def own_studies(folder: Path) -> None:
    """Two published studies with the arms a and b, and one with others."""
    for name, arms, shift in (("one", "ab", 0), ("other", "abc", 5), ("alone", "xy", 0)):
        (folder / "experiments" / name / "arms").mkdir(parents=True)
        for arm in arms:
            (folder / "experiments" / name / "arms" / f"{arm}.yaml").write_text("# @package _global_\nsteps: 3\n")
        claim = f"{{says: A, source: B, metric: eval/modes, arm: {arms[0]}, versus: {arms[1]}, above: 0}}"
        text = f"question: Which?\nsweep: {{seed: range(8)}}\nclaims: [{claim}]\n"
        (folder / "experiments" / name / "study.yaml").write_text(text)
        rows = [f"{arm},{seed},completed,{10 - 5 * i + shift}" for i, arm in enumerate(arms) for seed in range(8)]
        (folder / "experiments" / name / "scores.csv").write_text(
            "\n".join(["arm,seed,state,eval/modes", *rows]) + "\n"
        )


def test_across_published_studies(tmp_path: Path) -> None:
    own_studies(tmp_path)
    scores = read_scores(tmp_path / "experiments" / "one", "eval/modes")
    assert scores["a"].tolist() == [-10] * 8, "of modes, more is better"
    done = in_process("study", "--across", "one", "other", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["outputs/across.md", "outputs/across.svg"]
    text = (tmp_path / "outputs" / "across.md").read_text()
    assert done.stdout.startswith(text)
    assert not (tmp_path / "experiments" / "across.md").exists()
    assert in_process("study", "--publish", "--across", "one", "other", cwd=tmp_path).returncode == 0
    assert (tmp_path / "experiments" / "across.md").read_text() == text
    assert "| a | – | **1.00 [1.00, 1.00]** |" in text
    assert "over one (eval/modes), other (eval/modes), 8 seeds or more each" in text
    for names, expected in (
        (["one", "alone"], "one (eval/modes) alone (eval/modes): have fewer than two arms in common"),
        (["nothing"], "nothing: no such study"),
        ([], "--across: needs studies"),
    ):
        done = in_process("study", "--across", *names, cwd=tmp_path)
        assert done.returncode == 2
        assert expected in done.stderr
    with pytest.raises(ConfigError, match=r"scores.csv: has no column eval/fid"):
        read_scores(tmp_path / "experiments" / "one", "eval/fid")
    (tmp_path / "experiments" / "one" / "scores.csv").unlink()
    with pytest.raises(ConfigError, match=r"scores.csv: no such file; wganlab study --publish one writes it"):
        read_scores(tmp_path / "experiments" / "one", "eval/modes")
