"""Callbacks, loggers and flags that are Lightning's own do in a run what their documentation says."""

import csv
import json
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from pytorch_lightning import Callback, Trainer

from tests.conftest import config, in_process
from wganlab.archive import read_checkpoint
from wganlab.build import build_module
from wganlab.data.digits import Digits
from wganlab.training import fit

SMALL = ["dataset.size=8", "model.generator.hidden=[16]", "model.critic.hidden=[16]", "callbacks.samples.every=100"]
SCORED = [*SMALL, "callbacks.evaluation.every=10", "callbacks.evaluation.n=64", "steps=60", "compile=off"]
#: Scores fall throughout: the generator learns.
FAST = [*SCORED, "loss.optimizer.lr=1e-3", "logger=csv"]


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("lightning", ["pytorch_lightning", "lightning.pytorch"])
def test_early_stopping_ends_a_run_after_an_evaluation(lightning: str, tmp_path: Path) -> None:
    stopping = f"{{_target_: {lightning}.callbacks.EarlyStopping, monitor: eval/emd, mode: max, patience: 2}}"
    command = ["train", *FAST, f"+callbacks.stopping={stopping}", "hydra.run.dir=run"]
    done = in_process(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "completed 30 generator steps" in done.stdout, "no evaluation is above the first, and two may be worse"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["budget"]) == (30, 60)
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 30
    assert [row["step"] for row in rows(tmp_path / "run") if row["eval/emd"]] == ["10", "20", "30"]
    again = in_process("train", "run=run", cwd=tmp_path)
    assert "already completed" in again.stdout, "its budget has not grown"


@pytest.mark.parametrize("lightning", ["pytorch_lightning", "lightning.pytorch"])
def test_model_checkpoint_keeps_the_best_by_any_column(lightning: str, tmp_path: Path) -> None:
    keep = f"_target_: {lightning}.callbacks.ModelCheckpoint, monitor: eval/emd, save_top_k: 2"
    fit(config(*FAST, f"+callbacks.keep={{{keep}, dirpath: {tmp_path}/kept}}"), tmp_path)
    scores = {int(row["step"]): float(row["eval/emd"]) for row in rows(tmp_path) if row["eval/emd"]}
    best = sorted(scores, key=lambda step: scores[step])[:2]
    kept = {path.stem.rpartition("step=")[2]: path for path in tmp_path.glob("kept/*.ckpt")}
    assert sorted(map(int, kept)) == sorted(best)
    for step, path in kept.items():
        assert read_checkpoint(path)["global_step"] == int(step)


def test_a_row_reaches_callbacks_that_are_not_ours(tmp_path: Path) -> None:
    settings = config(*FAST, "+callbacks.seen._target_=tests.test_callbacks.Seen", "log_every=5")
    Seen.values.clear()
    fit(settings, tmp_path)
    written = [float(row["critic/loss"]) for row in rows(tmp_path)]
    assert [*dict.fromkeys(Seen.values)] == pytest.approx(written[:-1])


class Seen(Callback):
    """A user's observer, which reads what Lightning's callbacks read."""

    values: ClassVar[list[float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.callback_metrics:  # of the row before
            Seen.values.append(trainer.callback_metrics["critic/loss"].item())


def test_a_timer_ends_a_run_with_a_row_and_a_checkpoint(tmp_path: Path) -> None:
    done = in_process(
        "train", *FAST, "steps=100000", "+accelerator.max_time=00:00:00:03", "hydra.run.dir=run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    last = int(rows(tmp_path / "run")[-1]["step"])
    assert 0 < last < 100_000
    assert f"completed {last} generator steps of 100,000, ended by a callback or max_time, in" in done.stdout
    again = in_process("train", "run=run", cwd=tmp_path)
    assert f"already completed after {last:,} of 100,000 steps, of which a higher steps= makes more" in again.stdout
    assert rows(tmp_path / "run")[-1]["eval/emd"], "the end is scored"
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == last


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("+accelerator.gradient_clip_val=1", "loss.optimizer.clip_norm does"),
        ("+accelerator.accumulate_grad_batches=2", "raise batch_size"),
        ("+accelerator.max_epochs=3", "the budget is steps, or images"),
        ("+accelerator.fast_dev_run=true", "give steps=3"),
        ("+accelerator.strategy=fsdp", "torchrun does it; see devices"),
        ("+accelerator.profilr=simple", "unknown key; allowed are accelerator, devices, "),
        ("+loss.optimizer.clip_norm=0", "must be a number > 0"),
    ],
)
def test_flags_that_a_run_cannot_take_are_refused_with_the_reason(override: str, expected: str, tmp_path: Path) -> None:
    done = in_process("train", override, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"wganlab: {override.lstrip('+').partition('=')[0]}")
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_a_profile_is_written_beside_the_run(tmp_path: Path) -> None:
    done = in_process("train", *FAST, "steps=3", "+accelerator.profiler=simple", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "run_training_batch" in (tmp_path / "run" / "fit-profile.txt").read_text()


@pytest.mark.parametrize("clip_norm", [1e-3, 1e6])
def test_gradients_are_scaled_down_to_the_norm(clip_norm: float) -> None:
    """By SGD, whose step is the gradient: its norm is the smaller of its own and the bound."""
    norms = []
    for chosen in ([], [f"+loss.optimizer.clip_norm={clip_norm}"]):
        module = build_module(config(*SMALL, *chosen), Digits(size=8)).double()
        gradients = [torch.ones_like(parameter) for parameter in module.weights["critic"]]
        before = [parameter.detach().clone() for parameter in module.weights["critic"]]
        module.update("critic", torch.optim.SGD(module.critic.parameters(), lr=1.0), gradients, ())
        moved = [new - old for new, old in zip(module.weights["critic"], before, strict=True)]
        norms.append(torch.cat([step.flatten() for step in moved]).norm().item())
    assert norms[1] == pytest.approx(min(norms[0], clip_norm), rel=1e-6)


def test_a_critic_that_compares_samples_has_no_surface_of_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its value at a point depends on the others of a batch."""

    def surface(*_: object) -> None:
        raise AssertionError("drawn")

    monkeypatch.setattr("wganlab.pictures.value_surface", surface)
    toy = ["dataset=gaussians8", "model=toy_mlp", *SMALL[1:], "steps=1", "loss=gan", "logger=csv"]
    for kernels in (3, 0):
        folder = tmp_path / str(kernels)
        folder.mkdir()
        with nullcontext() if kernels else pytest.raises(AssertionError, match="drawn"):
            fit(config(*toy, f"+model.critic.minibatch_kernels={kernels}"), folder)
    assert len(list((tmp_path / "3" / "samples").glob("*.png"))) == 2


def test_overfitting_is_seen_on_as_many_samples_of_either_kind(tmp_path: Path) -> None:
    """Where more are held out than are trained on; a relativistic critic compares them one by one."""
    often = ["callbacks.diagnostics.detailed=true", "callbacks.diagnostics.every=1", "logger=csv", "compile=off"]
    fit(config(*SMALL, *often, "loss=rpgan", "hold_out=1700", "batch_size=32", "steps=2"), tmp_path)
    assert all(row["critic/overfitting"] for row in rows(tmp_path))
