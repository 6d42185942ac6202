"""TensorBoard and MLflow, beside W&B, in real runs that are read back."""

import importlib.util
from pathlib import Path

import pytest

from tests.conftest import NARROW, TINY, in_process, wganlab

RUN = ["logger=[wandb,tensorboard,mlflow]", "dataset=digits", *TINY, *NARROW, "callbacks.samples.every=6", "steps=12"]
RUN += ["callbacks.diagnostics.histograms_every=6", "hydra.run.dir=run"]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a user with one run that all three were told of; it went on after 12 of 18 steps."""
    folder = tmp_path_factory.mktemp("user")
    for command in (["train", *RUN], ["train", "run=run", "steps=18"]):
        done = wganlab(*command, cwd=folder, WANDB_MODE="offline", MLFLOW_ALLOW_FILE_STORE="true")
        assert done.returncode == 0, done.stderr
    return folder


def test_tensorboard_shows_curves_grids_and_histograms(user: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(user / "run" / "tensorboard"), size_guidance={"images": 0, "histograms": 0}).Reload()
    assert [point.step for point in events.Scalars("generator/loss")][-1] == 18
    assert [point.step for point in events.Images("samples")] == [0, 6, 12, 18]
    histogram = next(name for name in events.Tags()["histograms"] if name.startswith("critic/weights/"))
    assert [point.step for point in events.Histograms(histogram)] == [6, 12, 18]
    assert "config/text_summary" in events.Tags()["tensors"]


def test_an_mlflow_server_that_does_not_answer_is_one_line(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    nobody = ["logger=[csv,mlflow]", "logger.mlflow.tracking_uri=http://localhost:9", "dataset=digits", "steps=1"]
    done = in_process("train", *TINY, *NARROW, *nobody, "hydra.run.dir=out", cwd=user)
    assert done.returncode == 0, done.stderr
    assert [line[:15] for line in done.stdout.splitlines() if "MLflow" in line] == ["MLflow is off ("]


def test_mlflow_goes_on_with_the_run_that_it_knows(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient((user / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("wganlab")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["loss.n_critic"] == "5"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "eval/emd")] == [6, 12, 18]
    assert {file.path for file in client.list_artifacts(run.info.run_id, "samples")} == {
        f"samples/step_{step:08d}.png" for step in (0, 6, 12, 18)
    }


def test_wandb_beside_them_has_its_run(user: Path) -> None:
    assert len([*(user / "run" / "wandb").glob("offline-run-*")]) == 2, "one part for each time it was begun"


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec  # for whatever else is imported meanwhile
    monkeypatch.setattr("importlib.util.find_spec", lambda *name: None if name[0] == "mlflow" else real(*name))
    done = in_process("train", "logger=mlflow", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "wganlab: logger.mlflow: mlflow is not installed; pip install 'wganlab[mlflow]'\n"
    assert not [*tmp_path.iterdir()]
