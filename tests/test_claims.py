"""Claims of studies: what is measured, what is decided, and what is refused."""

import csv
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.conftest import SELDOM, TINY, wganlab
from tests.test_report import make_run
from wganlab.report.claims import read_claims
from wganlab.report.compare import arms, by_arm, by_protocol, longest, results
from wganlab.report.figures import every_seed
from wganlab.report.measured import Measured
from wganlab.report.publish import export
from wganlab.report.studies import publish, take_home
from wganlab.report.tables import Table, cell, latex_table, markdown, markdown_table
from wganlab.report.verdicts import Verdict, decide
from wganlab.runs import Run, find_runs
from wganlab.schema import ConfigError
from wganlab.study import budget_of, multirun, read_study

CLAIM = {"says": "A is better than B", "source": "a paper", "metric": "eval/fid", "arm": "a", "versus": "b", "below": 0}


def runs(folder: Path, values: Mapping[str, list[float]], state: str = "completed") -> list[Run]:
    """A run per arm and seed, whose FID fell to these values, from twice as much, by way of half as much."""
    for arm, finals in values.items():
        for seed, final in enumerate(finals):
            rows = "step,seconds,eval/fid,critic/loss\n" + "".join(
                f"{step},{step},{fid},{loss}\n"
                for step, fid, loss in ((10, 2 * final, 3.0), (20, final / 2, 1.0), (30, final, 2.0))
            )
            overrides = [f"+arms={arm}", f"seed={seed}"]
            make_run(folder / f"arms={arm},seed={seed}", {"seed": seed}, overrides, rows, state)
    return find_runs([folder])


def verdicts(found: list[Run], *contents: Mapping[str, Any], seeds: int = 8, **options: Any) -> list[Verdict]:
    """The verdicts on claims about arms a and b, for which so many seeds were planned; each gets words of its own."""
    worded = [dict(content) | {"says": f"{content['says']} {i}"} for i, content in enumerate(contents)]
    claims = read_claims(worded, ["a", "b"], "study.yaml")
    return decide(claims, [Measured.of(claim, found) for claim in claims], [*map(str, range(seeds))], **options)


def verdict(folder: Path, values: Mapping[str, list[float]], **changes: object) -> tuple[str, float]:
    """The verdict on CLAIM with some changes, and the centre that was measured."""
    (found,) = verdicts(runs(folder, values), CLAIM | changes)
    record = found.record()
    return record["verdict"], record["centre"]


A, B = [10.0, 11.0, 12.0, 10.5, 11.5, 10.0, 12.0, 11.0], [20.0, 21.5, 21.5, 20.5, 21.5, 20.5, 21.5, 21.0]


def test_paired_differences_decide(tmp_path: Path) -> None:
    assert verdict(tmp_path, {"a": A, "b": B}) == ("holds", pytest.approx(-10))


def test_the_opposite_does_not_hold(tmp_path: Path) -> None:
    assert verdict(tmp_path, {"a": B, "b": A}) == ("does not hold", pytest.approx(10))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"at": "best"}, -5),
        ({"at": "gap"}, -5),  # each fell to half of its last value on the way
        ({"at": "mean"}, -10 * (2 + 0.5 + 1) / 3),
        ({"ratio": True}, math.log10(10 / 20)),
    ],
)
def test_what_is_measured(changes: dict, expected: float, tmp_path: Path) -> None:
    _, mean = verdict(tmp_path, {"a": [10.0, 10.0], "b": [20.0, 20.0]}, **changes)
    assert mean == pytest.approx(expected)


def test_a_mean_over_a_run_counts_the_steps_of_each_row(tmp_path: Path) -> None:
    """A row of 98 steps, and one of 2 that an evaluation has cut off."""
    rows = "step,seconds,eval/fid,critic/loss\n98,1,,0\n100,2,7,1\n"
    make_run(tmp_path / "a", {"seed": 0}, ["+arms=a"], rows)
    content = CLAIM | {"metric": "critic/loss", "at": "mean", "versus": None, "above": 0, "below": None}
    (claim,) = read_claims([content], ["a", "b"], "study.yaml")
    assert Measured.of(claim, find_runs([tmp_path])).values == {"0": pytest.approx(0.02)}


def test_a_share_of_several_runs_of_a_seed_is_none(tmp_path: Path) -> None:
    for seed in range(8):
        for lr in (1, 2):
            overrides = ["+arms=a", f"seed={seed}", f"lr={lr}"]
            make_run(tmp_path / f"{seed}-{lr}", {"seed": seed, "lr": lr}, overrides, f"step,eval/fid\n10,{lr}\n")
    share = CLAIM | {"reaches": 1.5, "versus": None, "above": 0.4, "below": None}
    (mixed,) = verdicts(find_runs([tmp_path]), share)
    why = "several runs of one seed, of which a share is none, and no where that says which"
    assert mixed.description == f"incomplete ({why})"
    (one,) = verdicts(find_runs([tmp_path]), share | {"where": {"lr": 1}})
    assert one.decision == "holds"


def test_what_is_infinitely_worse_is_recorded_and_read_again(tmp_path: Path) -> None:
    (claim,) = read_claims([CLAIM | {"diverged": "worst"}], ["a", "b"], "study.yaml")
    found = Measured({**dict.fromkeys("0123456", -1.0), "7": -math.inf}, 1)
    (verdict,) = decide([claim], [found], [*"01234567"])
    record = json.loads(json.dumps({"claims": [verdict.record()]}, allow_nan=True))
    assert record["claims"][0]["values"]["7"] == "-inf"
    assert Measured.recorded(claim, record) == found
    (other,) = read_claims([CLAIM | {"metric": "eval/kid"}], ["a", "b"], "study.yaml")
    assert Measured.recorded(other, record) == Measured({}), "of another number"


def test_rank_correlation_over_a_run(tmp_path: Path) -> None:
    _, mean = verdict(tmp_path, {"a": A}, versus=None, tracks="critic/loss", above=0.5, below=None)
    assert mean == pytest.approx(1), "FID is 2f, f/2, f where the loss is 3, 1, 2"


def test_seeds_that_are_missing_make_a_claim_provisional_and_not_smaller(tmp_path: Path) -> None:
    found = runs(tmp_path, {"a": A, "b": B[:7]})
    (one,) = verdicts(found, CLAIM)
    assert list(one.values) == [*"0123456"]
    assert one.description == "provisional (7 of 8 seeds), leans towards holds"
    (tmp_path / "arms=a,seed=0" / "status.json").write_text(json.dumps({"state": "failed", "error": "OSError: disk"}))
    (one,) = verdicts(find_runs([tmp_path]), CLAIM)
    assert list(one.values) == [*"123456"]
    assert one.record()["p"] is None
    (none,) = verdicts([], CLAIM)
    assert none.measured == "not measured"
    assert none.description == "provisional (0 of 8 seeds), leans nowhere yet"


def test_runs_that_diverge_are_outcomes(tmp_path: Path) -> None:
    """Of A, a diverged run is the worst; of B, whose other seven runs are worse, too. Three of B's diverge."""
    runs(tmp_path, {"a": A, "b": B})
    lost = json.dumps({"state": "failed", "error": "FloatingPointError: critic/loss is nan at step 3"})
    for name in ("arms=a,seed=0", "arms=b,seed=0", "arms=b,seed=1", "arms=b,seed=2"):
        (tmp_path / name / "status.json").write_text(lost)
    share = {**CLAIM, "metric": "diverged", "arm": "b", "versus": "a", "below": None, "above": 0}
    silent, worst, more, few = verdicts(
        find_runs([tmp_path]),
        CLAIM,
        CLAIM | {"diverged": "worst", "ratio": True},
        share,
        share | {"versus": None, "arm": "a", "above": None, "below": 0.5},
    )
    assert silent.description == "incomplete (4 runs diverged, and the claim does not say what that counts as)"
    assert worst.values["0"] == 0, "both diverged: neither is better"
    assert worst.values["1"] == worst.values["2"] == -math.inf
    assert worst.values["3"] == pytest.approx(math.log10(10.5 / 20.5))
    assert worst.seeds == "8 (4 diverged)"
    assert worst.p_values["ranks"]["holds"] == 2 / 256, "seven of eight seeds, the eighth at zero"
    assert [*more.values.values()] == [0, 1, 1, 0, 0, 0, 0, 0]
    assert more.p_values["sign flips"]["holds"] == 0.25
    assert few.summary[0] == 1 / 8
    assert few.p_values["binomial"]["holds"] == pytest.approx(9 / 256)


def test_shares_of_runs_that_reach_a_score(tmp_path: Path) -> None:
    """An FID of 11 is reached by five runs of A at the end, by all at their best, and by B's best in all but three."""
    runs(tmp_path, {"a": A, "b": B})
    share = {**CLAIM, "below": None, "above": 0, "reaches": 11}
    final, best, alone = verdicts(
        find_runs([tmp_path]),
        share,
        share | {"at": "best", "reaches": 10.5},
        share | {"versus": None, "at": "best", "above": 0.5},
    )
    assert [*final.values.values()] == [1, 1, 0, 1, 0, 1, 0, 1]
    assert final.p_values == {"sign flips": {"holds": 2**-5, "does not hold": 1.0}}, "McNemar: five of five that differ"
    assert final.claim.number == "share of runs with Fréchet distance of features (FID) of 11 or better: a − b"
    assert [*best.values.values()] == [0, 1, 1, 0, 1, 0, 1, 0]
    assert alone.summary[0] == 1
    assert alone.p_values["binomial"]["holds"] == 2**-8
    (tmp_path / "arms=a,seed=0" / "status.json").write_text(
        json.dumps({"state": "failed", "error": "FloatingPointError: critic/loss is nan at step 3"})
    )
    (lost,) = verdicts(find_runs([tmp_path]), share | {"diverged": "worst"})
    assert lost.values["0"] == 0, "neither reaches it"


def test_where_narrows_and_other_sweeps_are_averaged(tmp_path: Path) -> None:
    for dataset, value in (("mnist", 1.0), ("digits", 3.0)):
        for seed in (0, 1):
            rows = f"step,eval/fid\n10,{value + seed}\n"
            folder = tmp_path / f"{dataset}{seed}"
            make_run(folder, {"seed": seed}, ["+arms=a", f"dataset={dataset}", f"seed={seed}"], rows)
    content = CLAIM | {"versus": None}
    every, digits = verdicts(find_runs([tmp_path]), content, content | {"where": {"dataset": "digits"}})
    assert every.values == {"0": 2.0, "1": 3.0}
    assert digits.values == {"0": 3.0, "1": 4.0}


def test_where_compares_settings_and_not_how_they_are_written(tmp_path: Path) -> None:
    overrides = ["+arms=a", "model.bn=true", "lr=1e-4", "loss=gan", "seed=0"]
    make_run(tmp_path / "run", {"seed": 0}, overrides, "step,eval/fid\n10,3\n")
    found = find_runs([tmp_path])
    for where, there in (
        ({"lr": 1e-4}, True),
        ({"lr": "0.0001"}, True),
        ({"model.bn": True, "loss": "gan"}, True),
        ({"lr": 1e-3}, False),
        ({"model.bn": False}, False),
        ({"loss": "wgan_gp"}, False),
    ):
        (one,) = verdicts(found, CLAIM | {"versus": None, "where": where})
        assert one.values == ({"0": 3.0} if there else {}), where


def test_a_ratio_takes_positive_scores_or_two_losses_of_one_sign(tmp_path: Path) -> None:
    for metric, one, other, expected in (
        ("eval/kid", 0.01, 0.1, {"0": -1.0}),
        ("eval/kid", -0.1, -0.01, {}),
        ("eval/kid", 0.0, 0.1, {}),
        ("critic/loss", -300.0, -30.0, {"0": 1.0}),
        ("critic/loss", -300.0, 30.0, {}),
    ):
        folder = tmp_path / f"{metric.replace('/', '_')}{one}{other}"
        for arm, value in (("a", one), ("b", other)):
            make_run(folder / arm, {"seed": 0}, [f"+arms={arm}"], f"step,{metric}\n10,{value}\n")
        (found,) = verdicts(find_runs([folder]), CLAIM | {"metric": metric, "ratio": True})
        assert found.values == pytest.approx(expected), (metric, one, other)


def test_runs_of_different_lengths_or_protocols_are_not_put_together(tmp_path: Path) -> None:
    runs(tmp_path, {"a": A, "b": B})
    for path in tmp_path.glob("*/.hydra/config.yaml"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"steps": 30}))
    (alike, early) = verdicts(find_runs([tmp_path]), CLAIM, CLAIM | {"until": {"step": 20}})
    assert (alike.decision, early.decision) == ("holds", "holds")
    one = tmp_path / "arms=a,seed=3"
    (one / ".hydra" / "config.yaml").write_text(json.dumps({"seed": 3, "steps": 300}))
    (longer, early) = verdicts(find_runs([tmp_path]), CLAIM, CLAIM | {"until": {"step": 20}})
    assert longer.description == "incomplete (runs of 30 and 300 steps, and no until that says where to read them)"
    assert early.decision == "holds"
    (one / ".hydra" / "config.yaml").write_text(json.dumps({"seed": 3, "steps": 30}))
    for path in tmp_path.glob("arms=a*"):
        (path / "protocol.json").write_text(json.dumps({"id": "one"}))
    for path in tmp_path.glob("arms=b*"):
        (path / "protocol.json").write_text(json.dumps({"id": "other"}))
    (scores, losses) = verdicts(find_runs([tmp_path]), CLAIM, CLAIM | {"metric": "critic/loss"})
    assert scores.description == "incomplete (scores of different protocols)"
    assert losses.objection is None, "a loss knows no protocol"
    (one / "protocol.json").write_text(json.dumps({"id": "other"}))
    (alone,) = verdicts(find_runs([tmp_path]), CLAIM | {"versus": None})
    assert alone.description == "incomplete (scores of different protocols)"


def test_what_becomes_of_a_run_after_the_end_that_a_claim_names_changes_nothing(tmp_path: Path) -> None:
    """Both arms have made step 20; then one run of A diverged."""
    runs(tmp_path, {"a": [10.0], "b": [20.0]})
    lost = json.dumps({"state": "failed", "error": "FloatingPointError: critic/loss is nan at step 31"})
    (tmp_path / "arms=a,seed=0" / "status.json").write_text(lost)
    worst = CLAIM | {"diverged": "worst"}
    share = CLAIM | {"metric": "diverged", "versus": None}
    found = verdicts(
        find_runs([tmp_path]),
        worst,
        worst | {"until": {"step": 20}},
        share,
        share | {"until": {"step": 20}},
        share | {"until": {"step": 31}},
    )
    assert [dict(one.values) for one in found] == [{"0": math.inf}, {"0": -5.0}, {"0": 1.0}, {"0": 0.0}, {"0": 1.0}]
    assert [one.n_diverged for one in found] == [1, 0, 1, 0, 1]


def test_a_last_score_that_is_not_finite_is_not_replaced_by_an_earlier_one(tmp_path: Path) -> None:
    rows = "step,eval/fid\n10,4\n20,3\n30,nan\n"
    make_run(tmp_path / "run", {"seed": 0}, ["+arms=a"], rows)
    base = CLAIM | {"versus": None}
    found = verdicts(
        find_runs([tmp_path]), base, base | {"at": "best"}, base | {"at": "gap"}, base | {"until": {"step": 20}}
    )
    assert [dict(one.values) for one in found] == [{}, {"0": 3.0}, {}, {"0": 3.0}]
    (record,) = results(find_runs([tmp_path]))
    assert "final/eval/fid" not in record
    assert (record["best/eval/fid"], record["steps"]) == (3.0, 30)


def test_many_claims_are_corrected_for(tmp_path: Path) -> None:
    found = runs(tmp_path, {"a": A, "b": B})
    (alone,) = verdicts(found, CLAIM)
    among = verdicts(found, *[CLAIM] * 20)
    assert alone.decision == "holds"
    assert among[0].alpha == pytest.approx(alone.alpha / 20)
    assert among[0].decision == "undecided"


def test_seeds_that_are_added_are_a_second_stage(tmp_path: Path) -> None:
    """They decide what the first look has left open, and change nothing of what it has decided."""
    found = runs(tmp_path, {"a": A * 2, "b": [a + 10 for a in A[:6]] + [a - 8 for a in A[6:]] + B})
    looked = [run for run in found if int(run.config["seed"]) < 8]
    best = CLAIM | {"at": "best", "versus": None, "below": 7}
    open_, decided = verdicts(looked, CLAIM, best)
    assert (open_.decision, decided.decision) == ("undecided", "holds")
    second, still = verdicts(found, CLAIM, best, earlier=open_.stages)
    assert second.stages == [[*"01234567"], ["8", "9", *map(str, range(10, 16))]]
    assert second.alpha == pytest.approx(open_.alpha / 5)
    assert second.seeds == "16 at look 2"
    assert second.decision == "holds"
    assert still.record() == decided.record()
    assert still.seeds == "8 (8 more not counted)"


def test_a_seed_without_a_run_that_others_have_has_no_number(tmp_path: Path) -> None:
    """FID is about 100 with one critic step and 10 with five: a mean over five alone would be of another question."""
    for arm, finals in {"a": A, "b": B}.items():
        for seed, final in enumerate(finals):
            for n_critic, more in ((1, 100), (5, 0)):
                given = [f"+arms={arm}", f"seed={seed}", f"n_critic={n_critic}"]
                folder = tmp_path / f"{arm}{seed}{n_critic}"
                make_run(folder, {"seed": seed, "n_critic": n_critic}, given, f"step,eval/fid\n10,{final + more}\n")
    lost = json.dumps({"state": "failed", "error": "FloatingPointError: critic/loss is nan at step 3"})
    assert verdicts(find_runs([tmp_path]), CLAIM)[0].decision == "holds"
    (tmp_path / "a01" / "status.json").write_text(lost)
    (one,) = verdicts(find_runs([tmp_path]), CLAIM)
    assert list(one.values) == [*"1234567"]
    assert one.description.startswith("incomplete (1 run diverged, and the claim does not say")
    for path in tmp_path.glob("a?1"):
        shutil.rmtree(path)
    (none,) = verdicts(find_runs([tmp_path]), CLAIM)
    why = "a has not been run with n_critic=1, as others have been, and no where says which are meant"
    assert none.description == f"incomplete ({why})"
    (five,) = verdicts(find_runs([tmp_path]), CLAIM | {"where": {"n_critic": 5}})
    assert five.decision == "holds"


def test_what_some_seeds_were_given_is_no_sweep(tmp_path: Path) -> None:
    """As when a study goes on without a tracker."""
    for run in runs(tmp_path, {"a": A, "b": B}):
        if run.config["seed"] > 3:
            path = run.folder / ".hydra" / "overrides.yaml"
            path.write_text(json.dumps([*json.loads(path.read_text()), "logger=none"]))
    (found,) = verdicts(find_runs([tmp_path]), CLAIM)
    assert (found.decision, len(found.values)) == ("holds", 8)


def test_a_run_that_no_look_has_planned_takes_no_verdict_back(tmp_path: Path) -> None:
    found = runs(tmp_path, {"a": [*A, 1.0], "b": [*B, 1.0]})
    (tmp_path / "arms=a,seed=8" / "metrics.csv").write_text("step,seconds,critic/loss\n10,1,2\n")
    (still,) = verdicts(find_runs([tmp_path]), CLAIM)
    assert still.decision == "holds"
    (now,) = verdicts(find_runs([tmp_path]), CLAIM, seeds=9)
    assert now.description == "incomplete (seed 8 of a has no eval/fid)"
    assert len(found) == 18


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"metric": "eval/fdi"}, "incomplete (seed 0 of a has no eval/fdi)"),
        ({"where": {"lr": 3}}, "incomplete (no run has lr=3)"),
        ({"until": {"step": 31}}, "incomplete (seed 0 of a is shorter than until asks)"),
        ({"tracks": "critic/loss", "metric": "critic/penalty"}, "incomplete (seed 0 of a has no critic/penalty)"),
        ({"metric": "eval/kid", "ratio": True}, "incomplete (seed 3 of b has -1, of which there is no ratio)"),
    ],
)
def test_what_has_no_number_says_why(changes: dict, expected: str, tmp_path: Path) -> None:
    for run in runs(tmp_path, {"a": A, "b": B}):
        path, seed = run.folder / "metrics.csv", run.config["seed"]
        kid = -1 if "arms=b,seed=3" in run.folder.name else seed + 1
        path.write_text(path.read_text() + f"30,30,,,{kid}\n")
        path.write_text(path.read_text().replace("critic/loss", "critic/loss,eval/kid", 1))
    (found,) = verdicts(find_runs([tmp_path]), CLAIM | changes)
    assert found.description == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"arm": "c"}, "claims[0].arm=c: no such arm; allowed are a, b"),
        ({"below": None}, "claims[0]: needs above or below"),
        ({"above": 1, "below": 0}, "claims[0]: above=1 must be less than below=0"),
        ({"at": "last"}, "claims[0].at=last: must be one of final, best, gap, mean"),
        ({"metrik": "x"}, "claims[0].metrik: unknown key"),
        ({"metric": "mine", "at": "best"}, "claims[0]: at=best needs a metric with a best value; mine has only"),
        ({"metric": "critic/penalty", "diverged": "worst"}, "claims[0]: diverged=worst needs a metric with a worst"),
        ({"reaches": 3, "ratio": True}, "claims[0]: reaches needs a final or best value that has a direction, and no"),
        ({"reaches": 3, "metric": "critic/penalty"}, "claims[0]: reaches needs a final or best value"),
        ({"matters": 0}, "claims[0].matters=0: must be a number > 0"),
        ({"ratio": True, "versus": None}, "claims[0]: ratio needs versus, or versus_epoch"),
        ({"versus": "a"}, "claims[0]: versus=a must be another arm"),
        ({"matters": 1, "above": -1}, "claims[0]: matters is a distance from one bound, not from two"),
        ({"tracks": "critic/loss", "at": "best"}, "claims[0]: tracks is over the whole run; leave at out"),
        ({"epoch": 1, "until": {"step": 3}}, "claims[0]: epoch is a mean over it; leave at, until and tracks out"),
        ({"metric": "diverged", "ratio": True}, "claims[0]: metric=diverged is 0 or 1 for a run; leave at, epoch"),
        ({"metric": "diverged", "versus": None, "below": 1.5}, "claims[0]: a share lies between 0 and 1, and so do"),
        ({"reaches": 3, "below": 0.1}, "claims[0]: a difference of shares is tested against 0 alone; leave other"),
        ({"reaches": 3, "matters": 0.1}, "claims[0]: a difference of shares is tested against 0 alone; leave other"),
    ],
)
def test_wrong_claims_are_refused(changes: dict, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_claims([CLAIM | changes], ["a", "b"], "study.yaml")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def own_study(folder: Path) -> Path:
    """A user's study of two rates, with a claim that must hold and one that must not."""
    (folder / "arms").mkdir(parents=True)
    for arm, lr in (("slow", 1e-7), ("fast", 1e-3)):
        (folder / "arms" / f"{arm}.yaml").write_text(
            f"# @package _global_\nmodel: {{generator: {{hidden: [32]}}, critic: {{hidden: [32]}}}}\n"
            f"dataset: {{size: 8}}\nloss: {{optimizer: {{lr: {lr}}}}}\n"
        )
    claims = [
        {"says": "Fast is nearer", "source": "us", "metric": "eval/emd", "arm": "fast", "versus": "slow", "below": 0}
        | {"headline": True},
        {"says": "Fast is farther", "source": "us", "metric": "eval/emd", "arm": "fast", "versus": "slow", "above": 0},
    ]
    content = {
        "question": "How fast?",
        "sweep": {"seed": "range(8)"},
        "claims": claims,
        "budgets": {"long": {"seed": "7"}},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    return folder


TINY_STUDY = [*TINY, *SELDOM, "steps=60", "hydra/launcher=basic", "logger=csv", "dataset=digits", "model=mlp"]


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a user has run a study, mine, of 16 runs; what it printed is in stdout.txt."""
    folder = tmp_path_factory.mktemp("user")
    own_study(folder / "experiments" / "mine")
    done = wganlab("study", "mine", *TINY_STUDY, cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def test_a_study_ends_with_its_verdicts(studied: Path) -> None:
    printed = (studied / "stdout.txt").read_text()
    assert "holds: Fast is nearer (us)" in printed
    assert "does not hold: Fast is farther (us)" in printed
    folder = studied / "outputs" / "study" / "mine"
    record = json.loads((folder / "verdicts.json").read_text())
    assert record["question"] == "How fast?"
    assert [claim["verdict"] for claim in record["claims"]] == ["holds", "does not hold"]
    assert record["runs"] == 16
    assert record["stages"] == [[*"01234567"]]
    table = (folder / "verdicts.md").read_text()
    assert "| **holds** |" in table
    assert "Look 1 at 8 planned seeds: every test is one-sided at 0.02" in table
    page = (folder / "index.html").read_text()
    assert "How fast?" in page
    assert "does not hold" in page
    again = wganlab("study", "mine", *TINY_STUDY, cwd=studied)
    assert again.stdout.count("already completed") == 16
    assert "holds: Fast is nearer (us)" in again.stdout


def epochs_of_four_steps(folder: Path, arm: str, seed: int, epochs: int, scale: float = 1.0) -> Path:
    """A run with a row after the third and the last step of each epoch; losses are a tenth of those an epoch before."""
    rows = "step,seconds,epoch,critic/loss,generator/loss,critic/real_score,critic/fake_score\n"
    for epoch in range(epochs):
        one = scale / 10**epoch
        for step, value in ((3, -10 * one), (4, -30 * one)):  # over three steps and over one: -15 in all
            step += 4 * epoch
            rows += f"{step},{60 * step},{step / 4},{value},{-value},{2 * value},{3 * value}\n"
    config = {"seed": seed, "steps": 4 * epochs}
    return make_run(folder / f"{arm}-{seed}", config, [f"+arms={arm}", f"steps={4 * epochs}"], rows)


def test_claims_on_epochs_take_the_mean_over_their_steps(tmp_path: Path) -> None:
    for seed, scale in enumerate((1.0, 2.0)):
        epochs_of_four_steps(tmp_path, "a", seed, 3, scale)
        epochs_of_four_steps(tmp_path, "b", seed, 2, 3 * scale)
    found = find_runs([tmp_path])
    base: dict[str, Any] = {"says": "x", "source": "y", "metric": "critic/loss", "arm": "a", "below": 0, "epoch": 1}
    for changes, values, words in (
        ({}, [-15, -30], "Critic loss: a in epoch 1"),
        ({"epoch": 3}, [-0.15, -0.3], "Critic loss: a in epoch 3"),
        ({"epoch": 4}, [], "Critic loss: a in epoch 4"),
        ({"versus": "b"}, [30, 60], "Critic loss: a in epoch 1 − b in epoch 1"),
        ({"versus_epoch": 2}, [-13.5, -27], "Critic loss: a in epoch 1 − a in epoch 2"),
        ({"versus_epoch": 2, "ratio": True}, [1, 1], "log10 of Critic loss: a in epoch 1 / a in epoch 2"),
    ):
        (claim,) = read_claims([base | changes], ["a", "b"], "study.yaml")
        assert list(Measured.of(claim, found).values.values()) == pytest.approx(values)
        assert claim.number == words
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"epoch": None, "versus_epoch": 2}, "versus_epoch needs epoch"),
        ({"at": "mean"}, "epoch is a mean over it"),
        ({"epoch": 0}, "epoch=0: must be an integer > 0"),
    ]
    for changes, message in wrong:
        with pytest.raises(ConfigError, match=message):
            read_claims([base | changes], ["a", "b"], "study.yaml")


def test_claims_may_take_runs_as_if_they_had_ended_earlier(tmp_path: Path) -> None:
    """FID goes from twice the last value by half of it to that, at steps 10, 20 and 30."""
    runs(tmp_path / "done", {"a": [10.0, 12.0]})
    runs(tmp_path / "going on", {"a": [7.0, 7.0, 14.0]}, "running")
    found = find_runs([tmp_path])
    base: dict[str, Any] = {"says": "x", "source": "y", "metric": "eval/fid", "arm": "a", "below": 0}
    for changes, values in (
        ({}, [10, 12]),
        ({"until": {"step": 20}}, [(5 + 3.5) / 2, (6 + 3.5) / 2, 7]),
        ({"until": {"step": 29}}, [(5 + 3.5) / 2, (6 + 3.5) / 2, 7]),
        ({"until": {"step": 20}, "at": "mean"}, [(12.5 + 8.75) / 2, (15 + 8.75) / 2, 17.5]),
        ({"until": {"seconds": 25}}, [(5 + 3.5) / 2, (6 + 3.5) / 2, 7]),
        ({"until": {"step": 31}}, []),
    ):
        (claim,) = read_claims([base | changes], ["a"], "study.yaml")
        assert list(Measured.of(claim, found).values.values()) == pytest.approx(values)
    assert claim.number.endswith(": a, until step 31")
    with pytest.raises(ConfigError, match="until"):
        read_claims([base | {"until": {"hours": 3}}], ["a"], "study.yaml")


def test_seeds_of_a_study_may_have_run_for_different_budgets(tmp_path: Path) -> None:
    for seed, epochs in enumerate((2, 3, 3)):
        epochs_of_four_steps(tmp_path, "a", seed, epochs, seed + 1.0)
    epochs_of_four_steps(tmp_path, "b", 0, 2)
    found = find_runs([tmp_path])
    assert arms(found) == ["a", "a", "a", "b"]
    assert [run.folder.name for run in longest(found, arms(found)).values()] == ["a-1", "b-0"]
    one, other = by_arm(results(found))
    assert (one["runs"], one["completed"], other["completed"]) == (3, 2, 1)
    assert one["final/critic/loss"][0] == pytest.approx(-0.3 * 2.5), "of the two long runs"
    assert "| a | 2 of 3 |" in markdown_table(results(found)), "a mean says how many runs it leaves out"
    assert "| b | 1 |" in markdown_table(results(found))


def test_the_only_arm_of_a_study_has_its_name(tmp_path: Path) -> None:
    assert arms(runs(tmp_path, {"a": [1.0, 2.0]})) == ["a", "a"]


def test_data_that_were_moved_between_two_seeds_make_no_other_arm(tmp_path: Path) -> None:
    for seed, root in enumerate(("data", "/scratch/data")):
        for arm in ("a", "b"):
            folder = make_run(
                tmp_path / f"{arm}{seed}",
                {"seed": seed, "loss": {"n_critic": 1 if arm == "a" else 5}, "dataset": {"root": root}},
                [f"loss.n_critic={1 if arm == 'a' else 5}", f"dataset.root={root}"],
            )
            (folder / "protocol.json").write_text(json.dumps({"id": "one", "real": "same"}))
    assert arms(find_runs([tmp_path])) == ["loss.n_critic=1"] * 2 + ["loss.n_critic=5"] * 2
    (tmp_path / "b1" / "protocol.json").write_text(json.dumps({"id": "two", "real": "other"}))
    assert len(set(arms(find_runs([tmp_path])))) == 4, "other data are another arm"


def test_means_are_of_all_seeds_that_callbacks_have_ended_and_of_no_number_that_one_lacks(tmp_path: Path) -> None:
    for seed, step in enumerate((600, 850, 500)):
        kid = "nan" if seed == 2 else "1"
        folder = make_run(
            tmp_path / str(seed), {"seed": seed}, [], f"step,eval/fid,eval/kid\n{step},{seed + 2},{kid}\n"
        )
        summary = {"steps": step, "budget": 1000, "final": {"step": step, "eval/fid": seed + 2}, "best": {}}
        (folder / "summary.json").write_text(json.dumps(summary))
    make_run(tmp_path / "killed", {"seed": 3}, [], "step,eval/fid\n10,500\n", state="failed")
    found = find_runs([tmp_path])
    (record,) = by_arm(results(found))
    assert (record["runs"], record["completed"], record["final/eval/fid"][0]) == (4, 3, 3.0)
    assert "final/eval/kid" not in record, "a mean of two would stand beside 3 of 4"
    figure = every_seed("eval/fid", found, arms(found))
    assert figure is not None
    (line,) = figure.axes[0].lines
    assert np.asarray(line.get_xdata()).tolist() == [3.0, 3.0], "the run that was killed at step 10 is a hollow dot"


def test_the_losses_of_epochs_stand_beside_what_a_source_printed(tmp_path: Path) -> None:
    epochs_of_four_steps(tmp_path / "runs", "a", 0, 2)
    epochs_of_four_steps(tmp_path / "runs", "b", 0, 1, 10.0)
    (tmp_path / "published.csv").write_text("epoch,critic,generator,minutes\n1,-305.89,186.47,1.58\n10,-34.56,,\n")
    options: dict[str, Any] = {"samples_at_epochs": [1, 2, 4], "published": tmp_path / "published.csv"}
    export(find_runs([tmp_path / "runs"]), tmp_path / "pieces", **options)
    assert (tmp_path / "pieces" / "epochs.md").read_text().splitlines()[2:] == [
        "| 1 | a | 4.00 | 15.00 | -15.00 | 30.00 | -45.00 |",
        "| 1 | b | 4.00 | 150.00 | -150.00 | 300.00 | -450.00 |",
        "| 1 | published | 1.58 | 186.47 | -305.89 | – | – |",
        "| 2 | a | 8.00 | 1.50 | -1.50 | 3.00 | -4.50 |",
        "| 10 | published | – | – | -34.56 | – | – |",
    ]
    assert "published" in (tmp_path / "pieces" / "epochs.svg").read_text()
    (tmp_path / "published.csv").write_text("epoch,critic\none,2\n")
    with pytest.raises(ConfigError, match=r"published.csv: must be a CSV of numbers with a column epoch"):
        export(find_runs([tmp_path / "runs"]), tmp_path / "pieces", **options)


README = """# Mine

![distance](eval_emd.svg) and [the table](table.md), written by hand: [notes](notes.md)

<!-- once it is run: [verdicts](verdicts.md), ![samples](epochs_fast.png), ![grids](grids_fast.png) -->

<!-- table -->
stale
<!-- end of table -->
The end.
"""


def test_publishing_refreshes_what_the_readme_shows(studied: Path, tmp_path: Path) -> None:
    folder = tmp_path / "experiments" / "mine"
    shutil.copytree(studied / "experiments" / "mine", folder)
    (folder / "study.yaml").write_text(
        (folder / "study.yaml").read_text() + "samples_at_epochs: [1, 11]\ngrids_at_steps: [6, 12, 13]\n"
    )
    (folder / "README.md").write_text(README)
    (folder / "notes.md").write_text("by hand")
    (tmp_path / "experiments" / "README.md").write_text(
        "Before.\n<!-- studies -->\n<!-- end of studies -->\nAfter.\n<!-- take home -->\n<!-- end of take home -->\n"
    )
    sweep = studied / "outputs" / "study" / "mine"
    command = ["study", "--publish", "experiments/mine", f"hydra.sweep.dir={sweep}"]
    done = wganlab(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = [
        "eval_emd.svg",
        "table.md",
        "verdicts.md",
        "epochs_fast.png",
        "grids_fast.png",
        "README.md",
        "scores.csv",
        "verdicts.json",
    ]
    shown = [f"experiments/mine/{name}" for name in names] + ["experiments/README.md"]
    assert done.stdout.splitlines() == shown
    table = markdown_table(results(find_runs([sweep])))
    assert (folder / "table.md").read_text() == table
    assert (folder / "README.md").read_text() == README.replace("stale\n", table)
    assert (folder / "notes.md").read_text() == "by hand"
    with open(folder / "scores.csv", newline="") as file:
        rows = {(row["arm"], row["seed"]): row for row in csv.DictReader(file)}
    assert len(rows) == 16
    for run in find_runs([sweep]):
        scored = rows[run.overrides["arms"], str(run.config["seed"])]
        assert scored["state"] == "completed"
        assert float(scored["eval/emd"]) == pytest.approx(run.summary["final"]["eval/emd"], rel=1e-5)
    verdicts = json.loads((folder / "verdicts.json").read_text())
    assert [claim["verdict"] for claim in verdicts["claims"]] == ["holds", "does not hold"]
    index = (tmp_path / "experiments" / "README.md").read_text()
    before, row, rest = index.partition("| [mine](mine/README.md) | How fast? | 1 holds, 1 does not hold | 16 runs, ")
    assert before.startswith("Before.\n<!-- studies -->\n| study ")
    assert row
    corrected = "Of 2 published claims 2 are decided, 2 of them also when corrected for all 2."
    after, opened, home = rest.partition("After.\n<!-- take home -->\n")
    assert after.endswith(f"|\n\n{corrected}\n<!-- end of studies -->\n")
    assert opened
    centre = f"{verdicts['claims'][0]['centre']:.3g}"
    assert home.startswith("1. Fast is nearer: **[holds](mine/verdicts.md)** (")
    assert f": fast − slow {centre} [" in home
    assert home.count("\n") == 2, "one headline"
    # fast saw 11 epochs of digits in 60 steps of 5 batches, and its samples of step 6 are those of epoch 1
    assert Image.open(folder / "epochs_fast.png").height == 2 * 80
    assert Image.open(folder / "grids_fast.png").width == 2 * 150
    written = {path: path.read_bytes() for path in tmp_path.glob("experiments/**/*") if path.is_file()}
    assert wganlab(*command, cwd=tmp_path).returncode == 0
    assert {path: path.read_bytes() for path in tmp_path.glob("experiments/**/*") if path.is_file()} == written
    record = json.loads((folder / "verdicts.json").read_text())
    for claim in record["claims"]:
        claim["verdict"], claim["centre"] = "holds", 0.0
    (folder / "verdicts.json").write_text(json.dumps(record))
    done = wganlab(*command[:-1], cwd=tmp_path)  # a reader of the published study, who has not the runs
    assert done.stdout.startswith("no runs in outputs/study/mine: the claims are decided again from verdicts.json\n")
    assert {path: path.read_bytes() for path in tmp_path.glob("experiments/**/*") if path.is_file()} == written


def test_a_headline_without_an_interval_is_listed_too(tmp_path: Path) -> None:
    """Of a single seed, for which verdicts.json has null."""
    folder = own_study(tmp_path / "mine")
    for arm, value in (("fast", 1.0), ("slow", 3.0)):
        make_run(tmp_path / "sweep" / arm, {"seed": 0}, [f"+arms={arm}"], f"step,eval/emd,eval/emd_raw\n10,{value},9\n")
    (folder / "README.md").write_text("[verdicts](verdicts.md)\n")
    publish(folder, tmp_path / "sweep")
    (line,) = take_home({"mine": folder}).splitlines()
    assert line.endswith(": fast − slow -2 [–, –]).")


def test_publishing_loses_no_seeds_and_keeps_nothing_that_is_gone(tmp_path: Path) -> None:
    folder, sweep = own_study(tmp_path / "mine"), tmp_path / "sweep"
    for seed in range(8):
        for arm, value in (("fast", 1.0 + seed), ("slow", 3.0)):
            rows = f"step,eval/emd,eval/emd_raw,eval/fid\n5,9,9,9\n10,{value},9,4\n"
            make_run(sweep / f"{arm}{seed}", {"seed": seed}, [f"+arms={arm}", f"seed={seed}"], rows)
    (folder / "README.md").write_text("[verdicts](verdicts.md) ![FID](eval_fid.svg)\n")
    publish(folder, sweep)
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    shutil.rmtree(sweep / "slow7")
    with pytest.raises(ConfigError, match="has no number of seed 7, by which it was published that: Fast is near"):
        publish(folder, sweep)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == written
    record = json.loads((folder / "verdicts.json").read_text())
    for claim in record["claims"]:
        claim["number"] = "another"
    (folder / "verdicts.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"which study\.yaml claims; that takes the runs"):
        publish(folder, tmp_path / "none")
    (folder / "verdicts.json").write_text("{")
    with pytest.raises(ConfigError, match=r"verdicts.json: is damaged \(.*\); restore it, or delete it"):
        publish(folder, sweep)
    (folder / "verdicts.json").unlink()
    content = yaml.safe_load((folder / "study.yaml").read_text())
    (folder / "study.yaml").write_text(yaml.safe_dump(content | {"claims": []}))
    for path in sweep.glob("*/metrics.csv"):
        path.write_text(path.read_text().replace("eval/fid", "mine"))
    publish(folder, sweep)
    assert not (folder / "verdicts.md").exists()
    assert not (sweep / "export" / "eval_fid.svg").exists(), "of earlier runs"


def test_publishing_without_runs_is_refused(tmp_path: Path) -> None:
    own_study(tmp_path / "mine")
    done = wganlab("study", "--publish", "mine", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "wganlab: outputs/study/mine: does not exist; give run folders, or folders that hold them\n"


def test_budgets_are_named_changes_of_the_sweep(tmp_path: Path) -> None:
    study = own_study(tmp_path / "mine")
    arguments, where = multirun(study, ["budget=long", "logger=csv"])
    assert "seed=7" in arguments
    assert "budget=long" not in arguments
    assert where == "outputs/study/mine_long"
    with pytest.raises(ConfigError, match="budget=huge: no such budget; allowed are long"):
        multirun(study, ["budget=huge"])
    assert multirun(study, ["+budget=long"]) == multirun(study, ["budget=long"])
    assert budget_of(["+budget=long"]) == budget_of(["seed=1", "budget=long"]) == "long"
    assert read_study(study).question == "How fast?"


def test_scores_of_different_protocols_stand_in_tables_of_their_own(tmp_path: Path) -> None:
    found = runs(tmp_path, {"a": [1.0, 2.0], "b": [3.0, 4.0]})
    for run in found:
        name = "one" if "arms=a" in str(run.folder) else "two"
        (run.folder / "protocol.json").write_text(json.dumps({"id": name}))
    records = results(find_runs([tmp_path]))
    assert set(by_protocol(records)) == {"one", "two"}
    tables = markdown_table(records).split("\n\n")
    assert ["a" in table.splitlines()[2] for table in tables] == [True, False]


def test_arms_are_summed_up_with_intervals(tmp_path: Path) -> None:
    records = results(runs(tmp_path, {"a": [10.0, 11.0, 12.0], "b": [20.0, 21.5, 21.5]}))
    arm_a, _ = by_arm(records)
    mean, low, high = arm_a["final/eval/fid"]
    # t(0.975, 2) sd / sqrt 3 with sd = 1
    assert (mean, high - mean) == pytest.approx((11, 4.302653 / math.sqrt(3)))
    assert mean - low == pytest.approx(high - mean)
    assert arm_a["gap/eval/fid"][0] == pytest.approx(5.5)
    table = markdown_table(records)
    assert "| a | 3 | 11 ± 2.484 |" in table
    text = latex_table(records)
    assert text.count("\\\\") == 3
    assert "11 $\\pm$ 2.484" in text


def test_a_mean_of_counts_is_not_rounded_to_a_count() -> None:
    assert cell((7.5, 6.5, 8.5), ".0f") == "7.5 ± 1.0"
    assert cell((8.0, 7.0, 9.0), ".0f") == "8 ± 1"
    assert cell(8, ".0f") == "8"


def test_what_would_end_a_cell_or_a_row_does_not() -> None:
    table = Table(["a"], [["one\ntwo | three \\| four\n"]])
    assert markdown(table) == "| a |\n|---|\n| one two \\| three \\\\\\| four |\n"
