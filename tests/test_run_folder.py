"""What a real multirun leaves behind."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.plugins.environments import LightningEnvironment

from tests.conftest import NARROW, TINY, config, in_process, wganlab
from wganlab.adversarial import AdversarialModule
from wganlab.build import build_module, construct
from wganlab.callbacks import progress
from wganlab.callbacks.checkpoints import Checkpoints
from wganlab.callbacks.divergence import first_not_finite
from wganlab.callbacks.history import COLUMNS
from wganlab.notebook import train
from wganlab.runs import Run
from wganlab.schema import InvalidValueError
from wganlab.training import fit

FIXTURES = Path(__file__).parent / "fixtures" / "version_1"
LOSSES = {"gan": 1, "wgan_clip": 5, "wgan_gp": 5}


@pytest.mark.parametrize("loss", LOSSES)
def test_run_folder_is_the_contract(loss: str, run_of: Callable[[str], Path]) -> None:
    run = run_of(loss)
    assert {path.name for path in run.iterdir()} == {
        ".hydra", "status.json", "metrics.csv", "protocol.json", "summary.json", "samples", "checkpoints", "wandb",
    }  # fmt: skip
    assert sorted(path.name for path in (run / "samples").iterdir()) == [f"step_{step:08d}.png" for step in (0, 6, 12)]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    composed = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
    assert composed["loss"]["n_critic"] == LOSSES[loss]


@pytest.mark.parametrize("loss", LOSSES)
def test_metrics_count_generator_steps(loss: str, run_of: Callable[[str], Path]) -> None:
    with open(run_of(loss) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS
    assert [int(row["step"]) for row in rows] == [4, 6, 8, 12]
    assert [int(row["images_seen"]) for row in rows] == [step * LOSSES[loss] * 64 for step in (4, 6, 8, 12)]
    assert [row["eval/emd"] != "" for row in rows] == [False, True, False, True]
    assert all(float(row["critic/gradient_norm"]) > 0 for row in rows if int(row["step"]) % 4 == 0)
    at_bound = [float(row["critic/weights_at_bound"]) for row in rows if row["critic/weights_at_bound"]]
    assert all(share > 0.1 for share in at_bound) if loss == "wgan_clip" else not any(at_bound)
    assert any(float(row["critic/penalty"]) for row in rows) == (loss == "wgan_gp")


@pytest.mark.parametrize("loss", LOSSES)
def test_status_and_summary(loss: str, run_of: Callable[[str], Path]) -> None:
    status = json.loads((run_of(loss) / "status.json").read_text())
    assert (status["state"], status["error"]) == ("completed", None)
    summary = json.loads((run_of(loss) / "summary.json").read_text())
    assert (summary["steps"], summary["images_seen"]) == (12, 12 * LOSSES[loss] * 64)
    assert summary["images_per_second"] == pytest.approx(summary["images_seen"] / summary["seconds"])
    assert summary["final"]["step"] == 12
    assert summary["best"]["eval/emd"]["value"] <= summary["final"]["eval/emd"]
    assert summary["parameters"] == {"generator": 56_432, "critic": 52_353}
    assert summary["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["last", "best"])
def test_checkpoints_load_without_running_code(loss: str, name: str, run_of: Callable[[str], Path]) -> None:
    checkpoint = torch.load(run_of(loss) / "checkpoints" / f"{name}.ckpt", weights_only=True)
    assert checkpoint["global_step"] in (6, 12)
    assert len(checkpoint["optimizer_states"]) == 2
    if loss == "wgan_clip":
        critic = [value for key, value in checkpoint["state_dict"].items() if key.startswith("critic.")]
        assert max(value.abs().max().item() for value in critic) <= 0.01 + 1e-9


def test_samples_are_grids_of_distinct_digits(run_of: Callable[[str], Path]) -> None:
    grid = Image.open(run_of("gan") / "samples" / "step_00000012.png")
    assert grid.mode == "L"
    assert grid.size == (4 * 29 + 1, 4 * 29 + 1)
    assert len(set(grid.tobytes())) > 20


def test_arms_start_alike_and_samples_have_fixed_latents(run_of: Callable[[str], Path]) -> None:
    first = [(run_of(loss) / "samples" / "step_00000000.png").read_bytes() for loss in LOSSES]
    assert first[0] == first[1] == first[2]
    assert first[0] != (run_of("gan") / "samples" / "step_00000012.png").read_bytes()


def test_progress_is_plain_lines_where_stdout_is_no_terminal(sweep: Path) -> None:
    text = (sweep.parent / "stdout.txt").read_text()
    assert "\x1b" not in text
    assert text.count("step 12/12  critic ") == 3
    assert "images/s" in text
    assert text.count("W&B is offline (no API key); upload later with: wandb sync out/") == 3
    assert text.count("completed 12 generator steps") == 3


def test_progress_is_a_bar_on_a_terminal(tmp_path: Path) -> None:
    """Run under a pseudo-terminal, as a person does."""
    command = [sys.executable, "-m", "wganlab", "train", *TINY, *NARROW, "logger=csv", "hydra.run.dir=run"]
    program = f"import pty, sys; sys.exit(pty.spawn({command!r}) >> 8)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, stdin=subprocess.DEVNULL)
    text = done.stdout.decode()
    assert done.returncode == 0, text
    assert "12/12" in text
    assert "━" in text
    assert " W " in text


def test_a_run_that_fails_says_so(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from wganlab.objectives import Wasserstein\n"
        "class Broken(Wasserstein):\n"
        "    def generator_loss(self, fake_scores):\n"
        "        if fake_scores.device.type != 'meta':  # not while the config is checked\n"
        "            raise RuntimeError('broken on purpose')\n"
        "        return fake_scores.mean()\n"
    )
    done = wganlab(
        "train", *TINY, *NARROW, "logger=csv", "loss.objective._target_=mine.Broken", "hydra.run.dir=run", cwd=tmp_path
    )
    assert done.returncode == 1
    assert "broken on purpose" in done.stderr
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["error"]) == ("failed", "RuntimeError: broken on purpose")
    assert not (tmp_path / "run" / "summary.json").exists()


def half_precision(
    *, max_steps: int, folder: str, callbacks: list[Any], logger: Any, scale: float, precision: str = "", **_: Any
) -> pl.Trainer:
    """The trainer of fp16 on a GPU, on the CPU: its losses are scaled by ``scale`` at first."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    plugins: list[Any] = [LightningEnvironment(), MixedPrecision("16-mixed", "cpu", scaler)]
    options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "max_epochs": -1}
    return pl.Trainer(
        accelerator="cpu", plugins=plugins, max_steps=max_steps, default_root_dir=folder, callbacks=callbacks,
        logger=logger, **options,
    )  # fmt: skip


def test_an_overflow_that_fp16_skips_is_no_divergence(tmp_path: Path) -> None:
    """Gradients overflow until the loss is scaled by less; a scale that is as good as nothing does not help."""
    own = "+accelerator.scale={0}"
    common = [*TINY, *NARROW, "logger=csv", f"accelerator._target_={__name__}.half_precision", "compile=off"]
    run = train([*common, own.format(2.0**122), f"hydra.run.dir={tmp_path}/run"])
    scaler = torch.load(run.run.checkpoint("last"), weights_only=True)["MixedPrecision"]
    assert 1 < scaler["scale"] < 2.0**122, "steps were skipped, and then there were others"
    assert run.history["critic/loss"].notna().all()
    with pytest.raises(FloatingPointError, match="training has diverged"):
        train([*common, own.format(1.0), "loss.optimizer.lr=1e30", f"hydra.run.dir={tmp_path}/diverged"])


@pytest.mark.parametrize(("scale", "diverged"), [(2.0**10, False), (2.0**-17, True)])
def test_gradients_that_overflow_at_any_scale_are_divergence(scale: float, diverged: bool) -> None:
    settings = config("model.generator.hidden=[4]", "model.critic.hidden=[4]", "dataset.size=8")
    module = build_module(settings, construct(settings, "dataset"))
    module.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    zero = torch.zeros(())
    module.window.critic, module.window.generator, module.window.critic_steps = [(zero,) * 4], [zero], [1]
    for parameter in module.critic.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    found = first_not_finite(module, 1)
    assert (found is not None) == diverged


def test_a_diverged_run_stops_says_so_and_keeps_its_last_good_state(tmp_path: Path) -> None:
    command = ["train", *TINY, *NARROW, "loss.optimizer.lr=1e12", "hydra.run.dir=run"]
    done = wganlab(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "training has diverged" in done.stderr
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "at generator step 1" in status["error"]
    assert not list((tmp_path / "run").glob("checkpoints/*.ckpt"))
    assert in_process("report", "run", cwd=tmp_path).returncode == 0
    assert "diverged" in (tmp_path / "run" / "index.html").read_text()


def test_long_epochs_end_with_a_row_and_a_line_of_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digits in batches of 64 are 28 batches an epoch; rows every 8 steps do not divide it. Short ones share a line."""
    monkeypatch.setattr(progress, "LINE", 0.0)
    overrides = [*NARROW, "loss=gan", "steps=60", "callbacks=none", "logger=csv"]
    rows: dict[int, list[dict[str, str]]] = {}
    printed: dict[int, str] = {}
    for every in (1, 8):
        folder = tmp_path / str(every)
        folder.mkdir()
        fit(config(*overrides, f"log_every={every}"), folder)
        printed[every] = capsys.readouterr().out
        with open(folder / "metrics.csv", newline="") as file:
            rows[every] = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows[8]] == [8, 16, 24, 28, 32, 40, 48, 56, 60]
    for epoch in (1, 2):
        of_epoch = rows[1][28 * (epoch - 1) : 28 * epoch]
        generator, critic = (sum(float(row[f"{net}/loss"]) for row in of_epoch) / 28 for net in ("generator", "critic"))
        assert f"epoch {epoch}  generator {generator:.2f}  critic {critic:.2f}  scores: real" in printed[8]
    assert printed[8].count("epoch ") == 2
    monkeypatch.setattr(progress, "LINE", 100.0)
    (tmp_path / "quick").mkdir()
    fit(config(*overrides, "steps=56", "log_every=8"), tmp_path / "quick")
    generator = sum(float(row["generator/loss"]) for row in rows[1][:56]) / 56
    assert re.findall(r"epoch.*critic", capsys.readouterr().out) == [
        f"epochs 1 to 2  generator {generator:.2f}  critic"
    ]


class Scores(Callback):
    """Observes the same made-up values in every column, at every tenth step."""

    def __init__(self, *, columns: list[str]) -> None:
        self.columns = columns

    def on_train_batch_end(self, trainer: Trainer, module: AdversarialModule, *_: object) -> None:  # type: ignore[override]
        if trainer.global_step % 10 == 0:
            value = {10: 0.5, 20: 0.2, 30: 0.9, 40: float("nan"), 50: 0.4}[trainer.global_step]
            module.observed |= dict.fromkeys(self.columns, value)


@pytest.mark.parametrize(
    ("monitor", "mode", "best"),
    [
        ("eval/precision", "auto", 30),
        ("eval/fid", "auto", 20),
        ("mine", "auto", 20),
        ("mine", "max", 30),
        ("eval/precision", "min", 20),
    ],
)
def test_the_best_checkpoint_follows_the_direction(monitor: str, mode: str, best: int, tmp_path: Path) -> None:
    overrides = ["steps=50", "callbacks=none", "logger=csv", "dataset.size=8", "loss=gan", "batch_size=8"]
    overrides += ["model.generator.hidden=[8]", "model.critic.hidden=[8]", f"+callbacks.scores.columns=[{monitor}]"]
    overrides += ["+callbacks.scores._target_=tests.test_run_folder.Scores", "+callbacks.checkpoints.every=50"]
    overrides += ["+callbacks.checkpoints._target_=wganlab.callbacks.checkpoints.Checkpoints"]
    overrides += [f"+callbacks.checkpoints.monitor={monitor}", f"+callbacks.checkpoints.mode={mode}"]
    fit(config(*overrides), tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert saved["global_step"] == best
    (state,) = [value for key, value in saved["callbacks"].items() if "Checkpoints" in key]
    assert state == {"best": {20: 0.2, 30: 0.9}[best]}


def test_the_best_so_far_survives_as_version_1_wrote_it() -> None:
    saved = torch.load(FIXTURES / "gan" / "checkpoints" / "last.ckpt", weights_only=True)
    (state,) = [value for key, value in saved["callbacks"].items() if "Checkpoints" in key]
    checkpoints = Checkpoints(every=1)
    checkpoints.load_state_dict(state)
    assert checkpoints.state_dict() == state
    assert state["best"] == min(row["eval/emd_raw"] for row in Run(FIXTURES / "gan").rows if "eval/emd_raw" in row)
    with pytest.raises(InvalidValueError, match="is a mean over many steps"):
        Checkpoints(every=1, monitor="critic/loss")
    never = Checkpoints(every=1, monitor="eval/precision")
    never.load_state_dict({"best": float("inf")})
    assert never.state_dict() == {"best": float("inf")} == Checkpoints(every=1).state_dict()
    assert never.best is None, "infinity is no precision that later ones must exceed"
