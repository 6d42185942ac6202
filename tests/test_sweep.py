"""Sweeps: one job's end is not the others', and the same command again runs only what is missing."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import begin, config, in_process, wait_for, wganlab, without_account
from wganlab.folders import check_same_run
from wganlab.launch import resume
from wganlab.runs import Run, Status
from wganlab.schema import ConfigError
from wganlab.validate import validate

SABOTEUR = '''
import os, signal, sys, time
from pathlib import Path

import torch
from pytorch_lightning import Callback


class Saboteur(Callback):
    """Breaks a run after its sixth step, in one of several ways, until a file says that all is repaired."""

    def __init__(self, how: str) -> None:
        self.how = how

    def on_train_batch_end(self, trainer, module, *rest):
        if trainer.global_step != 6 or Path(os.environ["REPAIRED"]).exists():
            return
        if self.how == "raise":
            raise ValueError("broken on purpose\\nsecond line")
        if self.how == "exit":
            sys.exit(3)
        if self.how == "diverge":
            with torch.no_grad():
                next(module.generator.parameters()).fill_(torch.nan)
        if self.how == "wait":
            time.sleep(5)
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
'''
TOY = ["dataset=gaussians8", "model=toy_mlp", "model.generator.hidden=[16]", "model.critic.hidden=[16]"]
QUICK = ["steps=12", "batch_size=8", "log_every=3", "logger=csv", "callbacks.checkpoints.every=4"]
SILENT = ["~callbacks.evaluation", "~callbacks.samples", "~callbacks.diagnostics"]
COMMAND = ["train", "-m", *TOY, *QUICK, *SILENT, "hydra.sweep.dir=out", "+callbacks.bad._target_=saboteur.Saboteur"]


def states(folder: Path) -> dict[str, str]:
    return {re.findall(r"how=(\w+)", path.name)[0]: Run(path).status["state"] for path in folder.glob("*how=*")}


def test_every_way_to_fail_leaves_the_others_alone(tmp_path: Path) -> None:
    (tmp_path / "saboteur.py").write_text(SABOTEUR)
    command = [*COMMAND, "+callbacks.bad.how=raise,exit,diverge,nothing"]
    broken = wganlab(*command, cwd=tmp_path, REPAIRED=str(tmp_path / "repaired"))
    assert broken.returncode == 1
    assert states(tmp_path / "out") == {
        "raise": "failed",
        "exit": "failed",
        "diverge": "failed",
        "nothing": "completed",
    }
    table = [line for line in broken.stdout.splitlines() if re.match(r"(failed|completed) +\S+how=", line)]
    assert len(table) == 4
    assert "ValueError: broken on purpose" in broken.stdout
    assert "sys.exit(3)" in broken.stdout
    assert re.search(
        r"critic/loss is nan at generator step 7: training has diverged; "
        r"the last finite checkpoint is that of step 4", broken.stdout
    )  # fmt: skip
    assert "1 of 4 jobs completed" in broken.stdout
    preserving_state = (tmp_path / "out" / "callbacks.bad.how=nothing" / "summary.json").stat().st_mtime_ns

    (tmp_path / "repaired").touch()
    again = wganlab(*command, cwd=tmp_path, REPAIRED=str(tmp_path / "repaired"))
    assert again.returncode == 0, again.stderr
    assert set(states(tmp_path / "out").values()) == {"completed"}
    assert again.stdout.count("already completed") == 1
    assert again.stdout.count("continuing after generator step 4") == 3
    assert (tmp_path / "out" / "callbacks.bad.how=nothing" / "summary.json").stat().st_mtime_ns == preserving_state


def test_a_sweep_over_fewer_keys_does_not_repeat_the_runs_of_its_folder(tmp_path: Path) -> None:
    sweep = ["train", "-m", *TOY, *QUICK, *SILENT, "hydra.sweep.dir=out", "steps=2"]
    assert in_process(*sweep, "loss=gan,wgan_gp", "seed=0,1", cwd=tmp_path).returncode == 0
    fewer = in_process(*sweep, "loss=wgan_gp", "seed=0,1,2", cwd=tmp_path)
    assert fewer.returncode == 2
    named = "hydra.sweep.dir=out: its run loss=wgan_gp,seed=0 is seed=0 of this sweep; sweep over the same keys"
    assert fewer.stderr == f"wganlab: {named}, or give a new folder\n"
    more = in_process(*sweep, "loss=gan,wgan_gp", "seed=0,1,2", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert len([*(tmp_path / "out").glob("loss=*")]) == 6
    few = in_process(*sweep, "loss=gan,wgan_gp", "seed=0,1", cwd=tmp_path)
    assert few.returncode == 0, few.stderr
    again = in_process(*sweep, "loss=wgan_gp", "seed=2,3", cwd=tmp_path)
    assert again.returncode == 2, "which jobs there have been is not forgotten"
    (tmp_path / "out" / "sweep.json").write_text("{")
    damaged = in_process(*sweep, "loss=gan,wgan_gp", "seed=0,1", cwd=tmp_path)
    assert damaged.stderr == "wganlab: hydra.sweep.dir=out: its sweep.json is damaged; delete that file\n"


def test_a_sweep_and_a_run_have_folders_of_their_own(tmp_path: Path) -> None:
    given = [*TOY, *QUICK, *SILENT, "steps=2"]
    for name, kind, other in (
        ("one", "hydra.run.dir", "hydra.sweep.dir"),
        ("many", "hydra.sweep.dir", "hydra.run.dir"),
    ):
        flags = {"hydra.run.dir": [], "hydra.sweep.dir": ["-m", "seed=0,1"]}
        assert in_process("train", *flags[kind], *given, f"{kind}={name}", cwd=tmp_path).returncode == 0
        before = sorted(tmp_path.rglob("*"))
        mixed = in_process("train", *flags[other], *given, f"{other}={name}", cwd=tmp_path)
        assert mixed.returncode == 2
        held = "holds a sweep (sweep.json)" if name == "many" else "holds a run (status.json)"
        assert mixed.stderr == f"wganlab: {other}={name}: {held}; give a new folder\n"
        assert sorted(tmp_path.rglob("*")) == before


def test_a_killed_worker_takes_no_other_job_with_it(tmp_path: Path) -> None:
    (tmp_path / "saboteur.py").write_text(SABOTEUR)
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    command = [*COMMAND, *launcher, "+callbacks.bad.how=wait,kill"]  # it is at step 6 when the other dies
    broken = wganlab(*command, cwd=tmp_path, REPAIRED=str(tmp_path / "repaired"), OMP_NUM_THREADS="1")
    assert broken.returncode == 1, broken.stdout + broken.stderr
    assert states(tmp_path / "out") == {"wait": "completed", "kill": "interrupted"}, broken.stdout
    assert re.search(r"^interrupted +\S+how=kill$", broken.stdout, re.MULTILINE)
    (tmp_path / "repaired").touch()
    again = wganlab(*COMMAND, command[-1], cwd=tmp_path, REPAIRED=str(tmp_path / "repaired"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert set(states(tmp_path / "out").values()) == {"completed"}, "by another launcher, too"


def test_a_signal_to_the_sweep_alone_stops_its_workers_once_they_have_saved(tmp_path: Path) -> None:
    command = ["train", "-m", *TOY, *QUICK, *SILENT, "hydra.sweep.dir=out", "seed=0,1", "steps=100000"]
    line = [sys.executable, "-m", "wganlab", *command, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    runs = [Run(tmp_path / "out" / f"seed={seed}") for seed in (0, 1)]
    with subprocess.Popen(line, cwd=tmp_path, env=without_account(tmp_path), stdout=subprocess.DEVNULL) as sweep:
        wait_for(
            lambda: all((run.folder / "checkpoints" / "last.ckpt").exists() for run in runs), "checkpoints", of=sweep
        )
        sweep.terminate()
        assert sweep.wait(timeout=60) == 128 + signal.SIGTERM
    for run in runs:
        assert run.state == Status.STOPPED, "and nobody goes on"
        assert re.search(r"stopped by SIGTERM after generator step \d+ \(saved\)", run.status["error"])


def test_two_processes_on_one_sweep_do_not_run_a_job_twice(tmp_path: Path) -> None:
    command = ["train", "-m", *TOY, *QUICK, *SILENT, "hydra.sweep.dir=out", "seed=0,1", "steps=600"]
    first = begin(*command, cwd=tmp_path)
    wait_for((tmp_path / "out" / "seed=0" / "metrics.csv").exists, "a row", of=first)
    first.send_signal(signal.SIGSTOP)
    second = wganlab(*command, cwd=tmp_path)
    first.send_signal(signal.SIGCONT)
    printed, _ = first.communicate(timeout=120)
    assert second.returncode == 1
    assert re.search(r"^running +seed=0", second.stdout, re.MULTILINE)
    assert re.search(r"^completed +seed=1", second.stdout, re.MULTILINE)
    assert first.returncode == 0
    assert "already completed: out/seed=1" in printed


def test_what_else_changes_is_refused(tmp_path: Path) -> None:
    command = ["train", "-m", *TOY, *QUICK, *SILENT, "hydra.sweep.dir=out", "seed=0,1"]
    assert wganlab(*command, cwd=tmp_path).returncode == 0
    before = (tmp_path / "out" / "seed=0" / ".hydra" / "config.yaml").read_text()
    other = in_process(*command, "loss.n_critic=3", cwd=tmp_path)
    assert other.returncode == 2
    assert other.stderr == (
        "wganlab: loss.n_critic=3: cannot change in a run that is continued; it is 5 in out/seed=0; "
        "give a new folder for a new run\n"
    )
    assert (tmp_path / "out" / "seed=0" / ".hydra" / "config.yaml").read_text() == before
    fewer = in_process(*command, "steps=6", cwd=tmp_path)
    assert "steps=6: may only be raised; it is 12" in fewer.stderr
    more = wganlab(*command, "steps=15", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert json.loads((tmp_path / "out" / "seed=1" / "summary.json").read_text())["steps"] == 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run=run", "loss.n_critic=3"], "loss.n_critic=3: cannot change in a run that is continued; it is 5"),
        (["run=run", "images=4000"], "images=4000: the budget of this run is steps=12; raise that"),
        (["run=run", "steps=4"], "steps=4: may only be raised; it is 12"),
        (["run=run", "loss=gan"], "loss=gan: cannot change in a run that is continued; it is wgan_gp"),
        (["run=run", "foo=4"], "foo=4: cannot change in a run that is continued; it is absent"),
        (["run=run", "-m"], "-m: only a higher steps= or images= can be given"),
        (["run=nowhere"], "run=nowhere: does not exist"),
    ],
)
def test_bad_continuations_are_refused(
    arguments: list[str], message: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    with pytest.raises(ConfigError) as error:
        resume(arguments)
    assert message in str(error.value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a stopped run: its record says that it is not complete."""
    folder = tmp_path_factory.mktemp("trained")
    done = wganlab("train", *TOY, *QUICK, *SILENT, "hydra.run.dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    status = json.loads((folder / "run" / "status.json").read_text())
    (folder / "run" / "status.json").write_text(json.dumps(status | {"state": "stopped"}))
    return folder


def test_a_run_killed_after_its_last_step_is_finished(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the last checkpoint and summary.json; a torn last row of metrics.csv does no harm."""
    monkeypatch.chdir(trained)
    shutil.copytree("run", "late")
    before = json.loads(Path("late", "summary.json").read_text())
    Path("late", "summary.json").unlink()
    with open("late/metrics.csv", "a") as file:
        file.write("1\n")
    resume(["run=late"])
    after = json.loads(Path("late", "summary.json").read_text())
    assert {key: after[key] for key in ("steps", "images_seen", "final")} == {
        key: before[key] for key in ("steps", "images_seen", "final")
    }
    assert Run(Path("late")).status["state"] == "completed"
    Path("late", "metrics.csv").unlink()
    resume(["run=late", "steps=15"])
    assert [row["step"] for row in Run(Path("late")).rows] == [15]


def test_foreign_and_damaged_checkpoints_are_refused_without_running_them(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    path = trained / "run" / "checkpoints" / "last.ckpt"
    whole = path.read_bytes()

    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path.touch, (trained / "ran",))

    saved = torch.load(path, weights_only=True)
    for content, message in (
        (whole[: len(whole) // 2], "is damaged or no checkpoint"),
        (b"", "is damaged or no checkpoint"),
        (Evil(), "is damaged or no checkpoint"),
        ({"state_dict": {}}, "has schema None"),
        (saved | {"wganlab": saved["wganlab"] | {"schema": 0}}, "has schema 0"),
        (saved | {"fingerprint": "other"}, "dataset: its content is not that with which this run began"),
        (saved | {"fingerprint_of_labels": "other"}, "dataset: its content is not that with which this run began"),
    ):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        damaged = path.read_bytes()
        with pytest.raises(ConfigError) as error:
            resume(["run=run"])
        assert message in str(error.value)
        assert "\n" not in str(error.value)
        assert path.read_bytes() == damaged
    assert not (trained / "ran").exists()
    path.write_bytes(whole)


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(trained: Path) -> None:
    """A limit on the size of files stands for the disk: a checkpoint does not fit, metrics.csv does."""
    shutil.copytree(trained / "run", trained / "full")
    path = trained / "full" / "checkpoints" / "last.ckpt"
    whole = path.read_bytes()
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(whole) // 2},) * 2); "
        "sys.argv = ['wganlab', 'train', 'run=full', 'steps=30']; from wganlab.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", limited], cwd=trained, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "OSError" in done.stderr
    assert path.read_bytes() == whole
    assert not list((trained / "full" / "checkpoints").glob("*.part"))
    assert Run(trained / "full").status["state"] == "failed"


def test_a_run_of_a_version_without_a_key_goes_on_with_its_default(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    now = config("logger=csv")
    validate(now)
    before = now.copy()
    del before.accelerator.sync_batchnorm, before.callbacks.diagnostics.detailed, before.hold_out
    OmegaConf.save(before, folder / ".hydra" / "config.yaml")
    check_same_run(folder, now, "run")
    other = config("logger=csv", "hold_out=3")
    with pytest.raises(ConfigError, match=r"hold_out=3: cannot change in a run that is continued; it is 0"):
        check_same_run(folder, other, "run")
