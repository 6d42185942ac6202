"""Studies that tune their arms first, and test what they have found on fresh seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from tests.conftest import SELDOM, TINY, config, wganlab
from tests.test_report import make_run
from wganlab.ranges import choice, is_at_edge, log_uniform, position
from wganlab.report.tuning import curves
from wganlab.runs import find_runs
from wganlab.schema import ConfigError
from wganlab.study import read_study
from wganlab.tune import Search, Tune, searched, settings
from wganlab.validate import validate

RANGE = "${log_uniform:1e-6,1e-1}"


def test_trials_draw_from_their_range_and_from_nothing_else() -> None:
    drawn = [position(trial, "loss.optimizer.lr") for trial in range(2000)]
    assert np.histogram(drawn, 10, (0, 1))[0] == pytest.approx(200, abs=45)
    assert abs(np.corrcoef(drawn, [position(trial, "loss.n_critic") for trial in range(2000)])[0, 1]) < 0.08
    assert log_uniform(0.5, 1e-4, 1e-2) == pytest.approx(1e-3)
    assert [choice(x, "a", "b") for x in (0.0, 0.49, 0.5, 0.99)] == ["a", "a", "b", "b"]
    settings = config(f"loss.optimizer.lr={RANGE}", "loss.n_critic=${choice:3,4}", "trial=3")
    assert settings.loss.optimizer.lr == pytest.approx(10 ** (-6 + 5 * drawn[3]), rel=1e-5)
    assert settings.loss.optimizer.generator.lr == settings.loss.optimizer.lr
    validate(settings)
    kept = yaml.safe_load(OmegaConf.to_yaml(settings))
    assert kept["loss"]["n_critic"] in (3, 4), "the draw stands in the config of the run, not the range"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([f"loss.optimizer.lr={RANGE}"], "trial=null: loss.optimizer.lr is a range, of which trial=0, 1, 2"),
        (["loss.optimizer.lr=${log_uniform:0,1}", "trial=1"], "loss.optimizer.lr=${log_uniform:0,1}: is no range"),
        (["loss.optimizer.lr=${uniform:1}", "trial=1"], "loss.optimizer.lr=${uniform:1}: is no range"),
        (["loss.optimizer.lr=${uniform:-2,-1}", "trial=1"], "must be a number > 0"),
    ],
)
def test_wrong_ranges_are_refused(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(config(*overrides))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_the_best_trial_is_chosen_and_one_at_an_edge_is_marked(tmp_path: Path) -> None:
    """FID of each trial after its last step; at its best it is half of that."""
    finals = {"a": [5.0, 3.0, 4.0], "b": [9.0, 8.0, 7.0]}
    for arm, values in finals.items():
        for trial, value in enumerate(values):
            best = 0.5 if (arm, trial) == ("b", 0) else value / 2
            rows = f"step,eval/fid\n10,{best}\n20,{value}\n"
            made = {"seed": 1000, "trial": trial, "loss": {"lr": RANGE}}
            make_run(tmp_path / f"{arm}{trial}", made, [f"+arms={arm}", f"trial={trial}"], rows)
    ranges = {arm: {"loss.lr": RANGE} for arm in finals}
    found = settings(Search(Tune(trials=3), find_runs([tmp_path])), ranges)
    assert {arm: (setting.trial, setting.score) for arm, setting in found.items()} == {"a": (1, 3.0), "b": (2, 7.0)}
    lr = log_uniform(position(1, "loss.lr"), 1e-6, 1e-1)
    assert found["a"].values == {"loss.lr": pytest.approx(lr, rel=1e-5)}
    assert settings(Search(Tune(trials=3, rule="BestScore"), find_runs([tmp_path])), ranges)["b"].trial == 0
    lost = json.dumps({"state": "failed", "error": "FloatingPointError: critic/loss is nan at step 3"})
    (tmp_path / "a1" / "status.json").write_text(lost)
    assert settings(Search(Tune(trials=3), find_runs([tmp_path])), ranges)["a"].trial == 2, "what diverged is the worst"
    (tmp_path / "b2" / "status.json").write_text(json.dumps({"state": "failed", "error": "OSError: disk"}))
    with pytest.raises(ConfigError, match="tune: of arm b, trials are missing or have failed: 2; run it again"):
        settings(Search(Tune(trials=3), find_runs([tmp_path])), ranges)
    edges = [trial for trial in range(100) if is_at_edge("loss.lr", RANGE, trial)]
    assert all(not 0.1 <= position(trial, "loss.lr") <= 0.9 for trial in edges)
    assert 10 < len(edges) < 30


def test_trials_of_a_longer_search_are_left_out_and_other_swept_keys_are_averaged(tmp_path: Path) -> None:
    """Trial 7 is of an earlier plan; over two data sets, trial 1 is the better of two, and trial 0 on the second."""
    scores = {(0, "one"): 10.0, (0, "two"): 4.0, (1, "one"): 5.0, (1, "two"): 6.0, (7, "one"): 1.0}
    for (trial, dataset), value in scores.items():
        overrides = ["+arms=a", f"trial={trial}", f"dataset={dataset}"]
        made = {"seed": 1000, "trial": trial, "loss": {"lr": RANGE}}
        make_run(tmp_path / "s_tuning" / f"{trial}{dataset}", made, overrides, f"step,eval/fid\n10,{value}\n")
    search = searched(Tune(trials=2), tmp_path / "s")
    assert search is not None
    assert len(search.runs) == 4
    (found,) = settings(search, {"a": {"loss.lr": RANGE}}).values()
    assert (found.trial, found.score) == (1, 5.5)
    for dataset, value, seed in (("one", 0.0, 7), ("two", 0.0, 7)):  # of a search with another seed, before this one
        made = {"seed": seed, "trial": 0, "loss": {"lr": RANGE}}
        folder = tmp_path / "s_tuning" / f"seven{dataset}"
        make_run(folder, made, ["+arms=a", "trial=0", f"dataset={dataset}"], f"step,eval/fid\n10,{value}\n")
    again = searched(Tune(trials=2), tmp_path / "s")
    assert again is not None
    assert settings(again, {"a": {"loss.lr": RANGE}})["a"] == found
    (tmp_path / "s_tuning" / "1two" / "status.json").write_text(json.dumps({"state": "failed", "error": "OSError: x"}))
    torn = searched(Tune(trials=2), tmp_path / "s")
    assert torn is not None
    with pytest.raises(ConfigError, match="of arm a, trials are missing or have failed: 1; run it again"):
        settings(torn, {"a": {"loss.lr": RANGE}})


def test_the_best_of_so_many_trials_is_of_means_over_what_else_is_swept(tmp_path: Path) -> None:
    for trial, hard in enumerate((99.0, 51.0, 60.0)):
        for dataset, value in (("easy", 1.0), ("hard", hard)):
            made = {"seed": 1000, "trial": trial}
            overrides = ["+arms=a", f"trial={trial}", f"dataset={dataset}"]
            make_run(tmp_path / "s_tuning" / f"{trial}{dataset}", made, overrides, f"step,eval/fid\n10,{value}\n")
    metric, found = curves([], searched(Tune(trials=3), tmp_path / "s"))
    assert metric == "eval/fid"
    assert [point[0] for point in found["a"]] == pytest.approx([(50 + 26 + 30.5) / 3, (26 + 26 + 30.5) / 3, 26])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"sweep": {"seed": "0,1,1"}}, "sweep.seed: 1 is planned twice"),
        ({"tune": {"trials": 2, "sweep": {"seed": 3}}}, "tune.sweep.seed: is the search's own; its seed is tune.seed"),
        ({"claims": 11}, "sweep.seed: 8 decide none of 11 claims; allowed are 9 or more"),
        ({"budgets": {"big": {"seed": "range(8)"}}, "sweep": {"seed": 0}, "claims": 11}, "budgets.big.seed: 8 decide"),
        ({1: 2}, "key 1 must be a text"),
        ({"claims": [{"says": "x", 3: 4}]}, "key 3 must be a text"),
        ({"question": "costs ${5"}, "study.yaml: "),
    ],
)
def test_a_plan_that_cannot_be_is_refused(content: dict, expected: str, tmp_path: Path) -> None:
    (tmp_path / "arms").mkdir()
    (tmp_path / "arms" / "a.yaml").write_text("# @package _global_\n")
    claim = {"source": "x", "metric": "eval/fid", "arm": "a", "above": 0}
    whole: dict = {"question": "?", "sweep": {"seed": "range(8)"}} | content
    if isinstance(whole.get("claims"), int):
        whole["claims"] = [claim | {"says": f"{i}"} for i in range(whole["claims"])]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(whole))
    with pytest.raises(ConfigError) as error:
        read_study(tmp_path)
    assert expected in str(error.value)
    assert str(tmp_path) in str(error.value) or "tune" in expected
    assert "\n" not in str(error.value)


def test_the_seed_of_a_search_is_none_of_the_test(tmp_path: Path) -> None:
    (tmp_path / "arms").mkdir()
    (tmp_path / "arms" / "a.yaml").write_text("# @package _global_\n")
    content = {"question": "?", "sweep": {"seed": "range(8)"}, "tune": {"trials": 2, "seed": 3}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"tune.seed=3: is planned for the test, whose seeds are fresh"):
        read_study(tmp_path)


def test_a_study_tunes_its_arms_and_decides_by_fresh_seeds(tmp_path: Path) -> None:
    """Of a range of five decades, three trials must find a better rate than one that learns nothing."""
    folder = tmp_path / "mine"
    (folder / "arms").mkdir(parents=True)
    for arm, lr in (("fixed", "${log_uniform:1e-8,2e-8}"), ("tuned", RANGE)):
        (folder / "arms" / f"{arm}.yaml").write_text(
            f"# @package _global_\nmodel: {{generator: {{hidden: [32]}}, critic: {{hidden: [32]}}}}\n"
            f"dataset: {{size: 8}}\nloss: {{optimizer: {{lr: '{lr}'}}}}\n"
        )
    claim = {"says": "Tuned is nearer", "source": "us", "metric": "eval/emd", "arm": "tuned", "versus": "fixed"}
    content = {
        "question": "Does tuning help?",
        "sweep": {"seed": "range(8)", "steps": 60},
        "tune": {"trials": 3, "score": "eval/emd", "sweep": {"steps": 40}},
        "claims": [claim | {"below": 0}],
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    (folder / "README.md").write_text("[verdicts](verdicts.md), [tuning](tuning.md), ![best of k](tuning.svg)\n")
    command = ["study", "mine", *TINY, *SELDOM, "logger=csv", "dataset=digits", "model=mlp", "hydra/launcher=basic"]
    done = wganlab(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tuning: 3 trials of each arm by random search, one run each (seed 1000), by FinalScore" in done.stdout
    assert "holds: Tuned is nearer (us)" in done.stdout
    searched, tested = (find_runs([tmp_path / "outputs" / "study" / name]) for name in ("mine_tuning", "mine"))
    assert [(run.config["seed"], run.config["steps"]) for run in searched] == [(1000, 40)] * 6
    assert sorted(run.config["seed"] for run in tested) == [seed for seed in range(8) for _ in range(2)]
    (best,) = {run.config["trial"] for run in tested if run.overrides["arms"] == "tuned"}
    scores = {run.config["trial"]: run.summary["final"]["eval/emd"] for run in searched[3:]}
    assert best == min(scores, key=scores.__getitem__)
    assert f"tuned: trial {best}, {scores[best]:.4g}: loss.optimizer.lr=" in done.stdout
    published = wganlab("study", "--publish", "mine", cwd=tmp_path)
    assert published.returncode == 0, published.stderr
    table = (folder / "tuning.md").read_text()
    assert f"| tuned | {best} | {scores[best]:.4g} | loss.optimizer.lr = " in table

    (folder / "arms" / "fixed.yaml").write_text("# @package _global_\n")
    refused = wganlab(*command, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("wganlab: mine/arms/fixed.yaml: has no range to tune")
