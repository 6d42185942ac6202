"""``wganlab evaluate`` and scheduled scores: by the command, on real runs."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from tests.conftest import TINY, in_process, wganlab
from wganlab.build import trained_config
from wganlab.evaluate import load
from wganlab.metrics import METRICS
from wganlab.runs import Run

SMALL = ["dataset.size=16", "model.generator.hidden=[16,16]", "model.critic.hidden=[16]", "logger=csv"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits with a classifier's scores, close diagnostics and held-out images."""
    folder = tmp_path_factory.mktemp("user")
    extra = ["extractor=classifier", "callbacks.diagnostics.detailed=true", "hold_out=300", "hydra.run.dir=out"]
    done = wganlab("train", "dataset=digits", *SMALL, *TINY, *extra, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "training a classifier of this data set" in done.stdout
    assert "1,497 samples of 1x16x16" in done.stdout
    return folder / "out"


def test_scheduled_scores_and_their_protocol(run: Path) -> None:
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    scored = [int(row["step"]) for row in rows if row["eval/fid"]]
    assert scored == [6, 12]
    for name in ("kid", "precision", "recall", "density", "coverage", "inception_score", "classes", "class_kl"):
        assert rows[-1][f"eval/{name}"], name
    protocol = json.loads((run / "protocol.json").read_text())
    assert protocol["extractor"] == "classifier"
    assert protocol["accuracy"] >= 0.97
    assert (protocol["split"], protocol["n"], protocol["images"]) == ("held_out", 64, 300)
    real = protocol["real_scores"]
    assert real["eval/fid"] < float(rows[-1]["eval/fid"]) / 3, "training images in the place of generated ones"
    assert abs(real["eval/emd"]) < 0.2
    assert real["eval/precision"] > 0.7
    assert Run(run).problems == []


def test_close_diagnostics(run: Path) -> None:
    with open(run / "metrics.csv", newline="") as file:
        *_, row = csv.DictReader(file)
    value = {key: float(cell) for key, cell in row.items() if cell}
    assert 0 < value["critic/gradient_norm"] <= value["critic/lipschitz_lower"] <= value["critic/lipschitz_upper"]
    assert value["critic/slope_real"] <= value["critic/lipschitz_lower"]
    assert value["critic/estimate_per_lipschitz"] <= value["eval/emd_raw"] * 1.2
    gap = value["critic/heldout_loss"] - value["critic/training_loss"]
    assert abs(gap) < abs(value["critic/training_loss"])
    for layer in ("features.1", "head.0"):
        assert value[f"critic/layer_gradient/{layer}"] > 0
        assert value[f"critic/layer_at_bound/{layer}"] == 0


def test_the_table_knows_every_column(run: Path) -> None:
    """But for those of single layers, which are known by their family."""
    with open(run / "metrics.csv", newline="") as file:
        _, _, _, _, *columns = next(csv.reader(file))
    assert {"/".join(column.split("/")[:2]) for column in columns} <= METRICS.keys()
    for name, metric in METRICS.items():
        assert not metric.headline or (metric.short_title and metric.direction), name
        assert format(1.5, metric.format)


def evaluate(run: Path, *overrides: str, by: Callable[..., CompletedProcess[str]] = in_process) -> dict:
    done = by("evaluate", f"run={run}", "n=64", "images=400", *overrides, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    path = run.parent / done.stdout.rstrip().rpartition(": ")[2]
    return json.loads(path.read_text())


def test_evaluate_scores_a_checkpoint(run: Path) -> None:
    first, again = evaluate(run, by=wganlab), evaluate(run)
    assert first == again
    assert first["step"] == 12
    assert first["scores"]["eval/fid"] > 0
    assert first["scores"]["eval/memorisation"] > 0
    assert first["scores"]["critic/lipschitz_lower"] <= first["scores"]["critic/lipschitz_upper"]
    assert first["protocol"]["weights"] == json.loads((run / "protocol.json").read_text())["weights"]
    assert (run / "evaluation" / f"last_{first['protocol']['id']}.png").is_file()
    assert evaluate(run, "seed=1")["scores"]["eval/fid"] != first["scores"]["eval/fid"]


def test_a_generator_with_batch_norm_is_compared_with_another_form_of_its_data(run: Path) -> None:
    alike = evaluate(run, "dataset.size=16", "extractor=none")
    assert alike["protocol"]["split"] == "size=16"
    assert alike["scores"]["eval/emd"] > 0
    done = in_process("evaluate", f"run={run}", "n=64", "dataset.size=28", "extractor=none", cwd=run.parent)
    assert done.stderr == "wganlab: dataset: its samples would be 1x28x28, and the generator makes 1x16x16\n"


def test_standing_statistics_are_those_of_the_weights_as_they_are(run: Path) -> None:
    """After a dozen steps the running ones are still near those of the first weights."""
    running, standing = (evaluate(run, f"statistics={name}", "extractor=none") for name in ("running", "standing"))
    assert running["scores"]["eval/emd_raw"] != standing["scores"]["eval/emd_raw"]
    assert standing["protocol"]["statistics"] == "standing"
    assert len(list((run / "evaluation").glob("last_standing_*.json"))) == 1
    pair, _, _ = load(trained_config(Run.open(run), "score"), run / "checkpoints" / "last.ckpt")
    (norm,) = [layer for layer in pair.generator.modules() if isinstance(layer, torch.nn.BatchNorm1d)]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    pair.take_standing_statistics(batches=3, size=5)
    inputs = []
    norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for seed in range(3):
        pair.generate(5, seed=seed)
    assert norm.running_mean.tolist() == pytest.approx(torch.cat(inputs).mean(0).tolist(), abs=1e-6)
    variance = torch.stack([rows.var(0) for rows in inputs]).mean(0)
    assert norm.running_var.tolist() == pytest.approx(variance.tolist(), rel=1e-5)


def test_a_run_of_a_larger_machine_is_scored_here(run: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    shutil.copytree(run, there)
    config = there / ".hydra" / "config.yaml"
    for old, new in (("devices: 1", "devices: 8"), ("accelerator: auto", "accelerator: gpu"), ("32-true", "16-mixed")):
        text = config.read_text()
        assert old in text
        config.write_text(text.replace(old, new))
    assert evaluate(there)["scores"] == evaluate(run)["scores"]


def test_evaluate_on_held_out_samples_is_another_protocol(run: Path) -> None:
    training, held_out = (evaluate(run, f"split={split}", "extractor=none") for split in ("training", "held_out"))
    assert evaluate(run, "extractor=none")["protocol"] == held_out["protocol"], "by default, where there are some"
    assert training["protocol"]["id"] != held_out["protocol"]["id"]
    assert held_out["protocol"]["split"] == "held_out"
    assert training["scores"]["eval/emd"] != held_out["scores"]["eval/emd"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["checkpoint=first"], "checkpoint=first: "),
        (["n=1"], "n=1: must be an integer > 1"),
        (["split=test"], "split=test: must be one of auto, training, held_out"),
        (["extractor=inception", "extractor.weights=none.pth"], "extractor.weights=none.pth: no such file"),
        (["dataset.sise=8"], "dataset.sise: unknown key"),
        (["extractor=clasifier"], "extractor=clasifier"),
    ],
)
def test_bad_input(overrides: list[str], expected: str, run: Path) -> None:
    done = in_process("evaluate", f"run={run}", *overrides, cwd=run.parent)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


def test_nothing_held_out_and_other_data_are_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    path = other / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("hold_out: 300", "hold_out: 200"))
    done = in_process("evaluate", f"run={other}", cwd=tmp_path)
    assert "its data set is no longer the one that it was trained on" in done.stderr
    path.write_text(path.read_text().replace("hold_out: 200", "hold_out: 0"))
    done = in_process("evaluate", f"run={other}", "split=held_out", cwd=tmp_path)
    assert done.returncode == 2


def test_points_have_modes_and_no_features(tmp_path: Path) -> None:
    toy = ["dataset=gaussians8", "model=toy_mlp", "model.generator.hidden=[8]", "model.critic.hidden=[8]", "logger=csv"]
    done = wganlab("train", *toy, *TINY, "callbacks.diagnostics.detailed=true", "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out" / "metrics.csv", newline="") as file:
        *_, row = csv.DictReader(file)
    assert float(row["eval/w2"]) >= float(row["eval/emd_raw"]), "W2 is never below W1"
    assert 0 <= float(row["eval/modes"]) <= 8
    assert -1 <= float(row["critic/potential_correlation"]) <= 1
    assert float(row["critic/distance_found"]) <= 1, "no critic finds more than W1"
    refused = in_process("evaluate", "run=out", "statistics=standing", cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "statistics=standing: the generator has no batch norm with running statistics" in refused.stderr
    scores = evaluate(tmp_path / "out")["scores"]
    assert "eval/fid" not in scores
    assert {"eval/modes", "eval/high_quality", "eval/mode_kl", "eval/w2"} <= scores.keys()
    refused = in_process("train", *toy, "hold_out=5", cwd=tmp_path)
    assert refused.returncode == 2
    assert "hold_out=5: the data set is endless" in refused.stderr


@pytest.mark.parametrize(
    ("hold_out", "expected"),
    [
        (1790, "must be at most the 7 samples of the data set less hold_out=1790"),
        (5000, "hold_out=5000: must be less than the 1,797 samples of the data set"),
    ],
)
def test_too_few_samples_left_to_train_on(hold_out: int, expected: str, tmp_path: Path) -> None:
    done = in_process("train", "dataset=digits", f"hold_out={hold_out}", cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert not (tmp_path / "outputs").exists()
