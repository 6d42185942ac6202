"""Nothing lost: a run that is killed and started again ends with the same bits as one that was never stopped."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from pytorch_lightning import Callback, Trainer

from tests.conftest import NARROW, begin, config, wait_for, wganlab
from wganlab.callbacks.checkpoints import random_state, restore_random_state
from wganlab.locks import BusyError, is_locked, locked
from wganlab.runs import Run
from wganlab.training import fit

TIMES = ("seconds", "speed/images_per_second")
QUICK = [
    "steps=18",
    "log_every=4",
    "batch_size=16",
    "logger=csv",
    "callbacks.evaluation.every=6",
    "callbacks.evaluation.n=32",
    "callbacks.samples.every=6",
    "callbacks.samples.n=16",
    "callbacks.checkpoints.every=5",
]
DCGAN = ["model=dcgan", "model.generator.n_filters=8", "model.critic.n_filters=4", "model.critic.norm=batch"]
TOY = ["dataset=gaussians8", "model=toy_mlp", "model.generator.hidden=[16]", "model.critic.hidden=[16]"]
SILENT = ["~callbacks.evaluation", "~callbacks.samples", "~callbacks.diagnostics"]


class Bomb(Callback):
    """Ends the process' training after a step, as a kill would: nothing is saved."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        if trainer.global_step == self.at:
            raise MemoryError("bomb")


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that must be the same: weights, optimizers, generators, rows without their times, images."""
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    with open(folder / "metrics.csv", newline="") as file:
        rows = [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]
    keys = ("state_dict", "optimizer_states", "window", "fingerprint", "global_step")
    images = {path.name: path.read_bytes() for path in (folder / "samples").glob("*.png")}
    state = {key: saved[key] for key in keys} | {"random": saved["wganlab"]["random"]}
    best = folder / "checkpoints" / "best.ckpt"
    state["best"] = torch.load(best, weights_only=True)["state_dict"] if best.exists() else None
    return {"rows": rows, "images": images, "state": state}


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Bit for bit."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert one == other, where


def interrupted_then_continued(settings: DictConfig, folder: Path, at: int) -> dict[str, Any]:
    bombed = OmegaConf.merge(settings, {"callbacks": {"bomb": {"_target_": f"{__name__}.Bomb", "at": at}}})
    with pytest.raises(MemoryError):
        fit(bombed, folder)  # type: ignore[arg-type]
    summary = fit(settings, folder)
    assert summary["steps"] == 18
    return outcome(folder)


@pytest.mark.parametrize(
    ("overrides", "at"),
    [
        (["loss=gan"], 13),
        (["loss=wgan_clip"], 15),
        (["loss=wgan_gp"], 13),
        (["loss=wgan_gp", "loss.n_critic=4", "batch_size=64"], 7),  # an epoch of 28 batches ends with step 7
        (["loss=wgan_gp", "loss.n_critic=4", "batch_size=64", "drop_last=false"], 8),  # it ends after 29 batches
        (["loss=gan", "training=shared_pass", "training.tied_latents=true", "reshuffle=step"], 13),
        (["loss=wgan_gp", *DCGAN], 13),  # batch norm and dropout
        (["loss=wgan_gp", *TOY], 13),
        (["loss=wgan_clip", *TOY], 15),
        (["loss=wgan_gp", "training=shared_pass"], 13),
        (["loss=wgan_gp", "precision=64-true"], 13),
        (["loss=wgan_gp", "training=fixed_generator", *TOY], 13),
        (["loss=wgan_gp"], 3),  # before the first checkpoint
    ],
    ids=lambda value: "-".join(value).replace("model.", "") if isinstance(value, list) else str(value),
)
def test_a_stopped_run_ends_with_the_same_bits(overrides: list[str], at: int, tmp_path: Path) -> None:
    narrow = [] if any(word.startswith("model=") for word in overrides) else NARROW
    settings = config(*QUICK, *narrow, *overrides)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    fit(settings, tmp_path / "whole")
    assert_same(outcome(tmp_path / "whole"), interrupted_then_continued(settings, tmp_path / "parts", at))


def test_observers_do_not_disturb_training(tmp_path: Path) -> None:
    for name, extra in (("watched", []), ("alone", SILENT)):
        (tmp_path / name).mkdir()
        fit(config(*QUICK, *NARROW, *extra), tmp_path / name)
    watched, alone = (outcome(tmp_path / name)["state"]["state_dict"] for name in ("watched", "alone"))
    assert_same(watched, alone)


def test_all_global_generators_are_restored() -> None:
    import random

    import numpy as np

    def draw() -> tuple:
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1)

    torch.manual_seed(1)
    state = random_state()
    first = draw()
    restore_random_state(state)
    assert draw() == first


def wait_for_step(run: Path, step: int) -> None:
    wait_for(lambda: (run / "metrics.csv").exists() and any(row["step"] >= step for row in Run(run).rows), "a step")


def state(run: Path) -> dict[str, Any]:
    return Run(run).status


def test_sigkill_and_run_again(tmp_path: Path) -> None:
    """A real process, really killed, continued with more steps by run=PATH; W&B's two parts are the whole history."""
    (tmp_path / "whole").mkdir()
    fit(config(*QUICK, *NARROW, "steps=120"), tmp_path / "whole")
    quick = [override for override in [*QUICK, *NARROW] if override != "logger=csv"]
    process = begin("train", *quick, "steps=100", "hydra.run.dir=run", cwd=tmp_path)
    wait_for_step(tmp_path / "run", 12)
    assert state(tmp_path / "run")["state"] == "running"
    process.send_signal(signal.SIGSTOP)
    busy = wganlab("train", "run=run", cwd=tmp_path)
    assert (busy.returncode, busy.stderr.count("\n")) == (1, 1)
    assert "is being worked on by another process" in busy.stderr
    process.kill()
    process.wait()
    assert state(tmp_path / "run")["state"] == "interrupted"
    done = wganlab("train", "run=run", "steps=120", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continuing after generator step" in done.stdout
    assert state(tmp_path / "run")["state"] == "completed"
    whole, parts = outcome(tmp_path / "whole"), outcome(tmp_path / "run")
    assert_same(whole["state"]["state_dict"], parts["state"]["state_dict"])
    assert whole["rows"] == parts["rows"]
    assert whole["images"] == parts["images"]
    again = wganlab("train", "run=run", cwd=tmp_path)
    assert "already completed" in again.stdout
    ids = {path.name.rpartition("-")[2] for path in (tmp_path / "run" / "wandb").glob("offline-run-*")}
    assert len(ids) == 1, "W&B continues the same run"
    files = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    steps = {step for path in files for step in logged_steps(path)}
    assert steps - {0} == {int(row["step"]) for row in parts["rows"]}


def logged_steps(path: Path) -> set[int]:
    """Generator steps in the history of an offline W&B run."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(path.parent)]
    read = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    records = [json.loads(line) for line in read.splitlines()]
    return {int(record["history"]["item"]["_step"]) for record in records if record["type"] == "history"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_and_saves(number: int, code: int, tmp_path: Path) -> None:
    endless = ["steps=100000", "compile=off", "callbacks.checkpoints.every=100000", "hydra.run.dir=run"]
    process = begin("train", *QUICK, *NARROW, *endless, cwd=tmp_path)
    wait_for_step(tmp_path / "run", 8)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.startswith(f"wganlab: stopped by {signal.Signals(number).name} after generator step")
    assert err.count("\n") == 1
    assert state(tmp_path / "run")["state"] == "stopped"
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert f"step {saved['global_step']} (saved)" in err


@contextmanager
def another(code: str) -> Iterator[subprocess.Popen[str]]:
    """Another process at this code, from the first line that it prints until the end of the block."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_who_asks_for_a_lock_keeps_nobody_from_it(tmp_path: Path) -> None:
    code = (
        "import pathlib, time; from wganlab.locks import is_locked; print('asks', flush=True)\n"
        f"while True: is_locked(pathlib.Path({str(tmp_path)!r})); time.sleep(1e-4)"
    )
    with another(code):
        for _ in range(3000):
            with locked(tmp_path):
                pass


def test_locks_die_with_their_holder(tmp_path: Path) -> None:
    code = (
        "import pathlib, time; from wganlab.locks import locked\n"
        f"with locked(pathlib.Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    )
    with another(code) as holder:
        assert is_locked(tmp_path)
        with pytest.raises(BusyError), locked(tmp_path):
            pass
        assert is_locked(tmp_path), "asking takes no lock"
        holder.kill()
        holder.wait()
    assert not is_locked(tmp_path)
    assert not list(tmp_path.iterdir()), "the lock leaves no file"
    assert os.path.isdir(tmp_path)


def test_a_last_evaluation_that_fails_costs_one_step(tmp_path: Path) -> None:
    """The state before the last step is saved: mended, the run makes that step and its evaluation again."""
    settings = config(
        *TOY, *QUICK, "callbacks.checkpoints.every=100", "+callbacks.bomb={_target_: tests.test_resume.Bomb, at: 18}"
    )
    for name in ("failed", "whole"):
        (tmp_path / name).mkdir()
    with pytest.raises(MemoryError):
        fit(settings, tmp_path / "failed")
    saved = torch.load(tmp_path / "failed" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 17
    mended = config(*TOY, *QUICK, "callbacks.checkpoints.every=100")
    fit(mended, tmp_path / "failed")
    fit(mended, tmp_path / "whole")
    assert_same(outcome(tmp_path / "failed"), outcome(tmp_path / "whole"))


def test_four_images_in_two_classes_train_to_their_end(tmp_path: Path) -> None:
    for i in range(4):
        path = tmp_path / "images" / ("cat" if i % 2 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 60 * i).save(path)
    few = ["steps=1", "batch_size=4", "callbacks.evaluation.images=8", "extractor=classifier"]
    data = ["dataset=image_folder", f"dataset.root={tmp_path / 'images'}", "dataset.size=8"]
    summary = fit(config(*QUICK, *few, *data), tmp_path)
    assert {"eval/emd", "eval/fid", "eval/classes"} <= summary["final"].keys()
    assert {"eval/inception_score", "eval/coverage"}.isdisjoint(summary["final"])
    assert all(map(math.isfinite, summary["final"].values()))
