"""One run on several processes: the run of one process, in shares."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import NARROW, TINY, config, images, in_process, wganlab, without_account
from wganlab import environment, parallel
from wganlab.augmentation import DiffAugment
from wganlab.build import build_module, construct
from wganlab.data.stream import BatchStream
from wganlab.networks.layers import Dropout
from wganlab.pair import sample_latents
from wganlab.regularizers import interpolate
from wganlab.runs import Run, find_runs
from wganlab.schema import ConfigError
from wganlab.validate import validate

# fp64: Adam divides a gradient by its own size, so that rounding of fp32 soon shows in the third digit
EXACT = ["dataset=digits", "precision=64-true", "logger=csv", "compile=off", *TINY]
MLP = [*EXACT, *NARROW]
DDP = ["accelerator=ddp", "accelerator.accelerator=cpu", "accelerator.sync_batchnorm=true"]
#: With batch norm, layer norm and dropout, three steps: a bias before batch norm has no gradient but rounding.
DCGAN = ["model.generator.n_filters=8", "model.critic.n_filters=4", "steps=3"]
OWN = [sys.executable, "-m", "wganlab"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "wganlab"]


def state(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def difference(first: Path, second: Path) -> float:
    """Largest difference between the weights of two runs, relative to the largest of a layer.

    Those below 1e-2 are taken for that: the bias before a batch norm has no gradient but rounding.
    """
    a, b = state(first), state(second)
    return max(((a[key] - b[key]).abs().max() / a[key].abs().max().clamp(min=1e-2)).item() for key in a)


def children(pid: int) -> list[int]:
    """Ranks of a run: processes that torch has started, for the command or for torchrun."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if parent == pid and (b"spawn_main" in command or b"wganlab" in command):
            found.append(int(entry.name))
    return sorted(found)


def begin(*arguments: str, cwd: Path, by: Sequence[str] = OWN, **environment: str) -> subprocess.Popen[str]:
    """A run on two ranks in the background."""
    command = [*by, "train", *MLP, *DDP, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, env=without_account(cwd) | environment, text=True, **pipes)  # type: ignore[call-overload]


def wait_for(path: Path) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < until, f"{path} has not come"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of clipping and of the penalty in one process, and of the penalty on two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    for command in (
        ["-m", "loss=wgan_clip,wgan_gp", "hydra.sweep.dir=one"],
        ["loss=wgan_gp", "hydra.run.dir='two/loss=wgan_gp'", *DDP],
    ):
        done = wganlab("train", *MLP, *command, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_two_ranks_with_half_a_batch_each_train_the_weights_of_one_process(on_two: Path) -> None:
    assert_is_one_run_on_two_ranks(on_two / "one" / "loss=wgan_gp", on_two / "two" / "loss=wgan_gp")


def assert_is_one_run_on_two_ranks(one: Path, two: Path) -> None:
    """The second folder holds what the first does, but made on two ranks."""
    assert difference(one, two) < 1e-9
    # files are written once, budgets mean the same, and logged numbers are those of all ranks
    assert {path.name for path in one.rglob("*")} == {path.name for path in two.rglob("*")}
    # times; a count of weights at the very bound; a mean slope, which is observed at images of the first rank
    apart = {"seconds", "speed/images_per_second", "critic/weights_at_bound", "critic/gradient_norm"}
    for row, other in zip(Run(one).rows, Run(two).rows, strict=True):
        for key in row.keys() - apart:
            assert other[key] == pytest.approx(row[key], rel=1e-6, abs=1e-8), key
    assert Run(two).summary["ranks"] == 2


#: A callback that gives a test the time to kill a run of twelve steps.
SLOW = """
import time
from pytorch_lightning import Callback

class Slow(Callback):
    def on_train_batch_end(self, *arguments):
        time.sleep(0.3)
"""


def test_a_rank_that_is_killed_ends_the_run_and_it_continues_bit_for_bit(on_two: Path) -> None:
    (on_two / "slow.py").write_text(SLOW)
    arguments = [
        "loss=wgan_gp",
        "hydra.run.dir=killed",
        "callbacks.checkpoints.every=2",
        "+callbacks.slow._target_=slow.Slow",
    ]
    run = begin(*arguments, cwd=on_two)
    wait_for(on_two / "killed" / "checkpoints" / "last.ckpt")
    pids = children(run.pid)
    os.kill(pids[1], signal.SIGKILL)
    started = time.monotonic()
    _, stderr = run.communicate(timeout=60)
    assert time.monotonic() - started < 30
    assert run.returncode == 1
    assert [line for line in stderr.splitlines() if line.startswith("wganlab:")] == [
        "wganlab: ChildProcessError: rank 1 was killed by SIGKILL; the last checkpoint is good"
    ]
    assert "Traceback" not in stderr
    assert Run(on_two / "killed").status["state"] == "failed"
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    # continued, it becomes the run that was never killed
    done = wganlab("train", "run=killed", cwd=on_two)
    assert done.returncode == 0, done.stderr
    assert "continuing after generator step" in done.stdout
    assert difference(on_two / "two" / "loss=wgan_gp", on_two / "killed") == 0


def test_a_signal_stops_all_ranks_after_a_whole_step(tmp_path: Path) -> None:
    run = begin("loss=gan", "hydra.run.dir=out", "steps=100000", "callbacks.checkpoints.every=2", cwd=tmp_path)
    wait_for(tmp_path / "out" / "checkpoints" / "last.ckpt")
    pids = children(run.pid)
    os.kill(pids[1], signal.SIGTERM)  # is not for it
    time.sleep(1)
    assert run.poll() is None
    run.send_signal(signal.SIGTERM)
    _, stderr = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after generator step" in stderr
    assert "(saved)" in stderr
    assert "Traceback" not in stderr
    assert Run(tmp_path / "out").status["state"] == "stopped"
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.slow
def test_a_signal_that_comes_while_ranks_start_is_kept(tmp_path: Path) -> None:
    run = begin("loss=gan", "hydra.run.dir=out", "steps=100000", cwd=tmp_path)
    until = time.monotonic() + 120
    while len(children(run.pid)) < 2:
        assert time.monotonic() < until, "no ranks have come"
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    _, stderr = run.communicate(timeout=120)
    assert run.returncode == 128 + signal.SIGTERM
    assert stderr.startswith("wganlab: stopped by SIGTERM before its first step")
    assert Run(tmp_path / "out").status["state"] == "stopped"


@pytest.mark.slow
def test_a_bug_on_rank_zero_keeps_its_traceback_and_a_run_that_diverges_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from pytorch_lightning import Callback\n"
        "class Bug(Callback):\n"
        "    def on_train_batch_end(self, *arguments):\n"
        "        raise KeyError('a bug of mine')\n"
    )
    for arguments, last in (
        (["+callbacks.bug._target_=mine.Bug"], "KeyError: 'a bug of mine'"),
        (["loss.optimizer.lr=1e30", "precision=32-true"], "training has diverged"),
    ):
        done = wganlab("train", *MLP, *DDP, "hydra.run.dir=out", *arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert last in done.stderr
        assert ("mine.py" in done.stderr) == ("Traceback" in done.stderr) == (arguments[0][0] == "+")
        assert "ChildFailedError" not in done.stderr
        assert Run(tmp_path / "out").status["state"] == "failed"
        shutil.rmtree(tmp_path / "out")


@pytest.mark.slow
def test_a_callback_that_asks_for_a_stop_stops_all_ranks(tmp_path: Path) -> None:
    stop = "{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: eval/emd, stopping_threshold: 1e9}"
    done = wganlab("train", *MLP, *DDP, f"+callbacks.stop={stop}", "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Run.open(tmp_path / "out").summary["steps"] == 6, "of 12, with an evaluation after each six"


@pytest.mark.slow
def test_no_rank_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
    run = begin("loss=gan", "hydra.run.dir=out", "steps=100000", "callbacks.checkpoints.every=2", cwd=tmp_path)
    wait_for(tmp_path / "out" / "checkpoints" / "last.ckpt")
    pids = children(run.pid)
    assert len(pids) == 2
    run.kill()
    run.communicate(timeout=60)
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < until, "a rank lives on"
        time.sleep(0.1)
    assert Run(tmp_path / "out").status["state"] == "interrupted"


def test_torchrun_starts_the_jobs_of_a_sweep_one_after_the_other_on_two_ranks(on_two: Path) -> None:
    sweep = ["-m", "loss=wgan_clip,wgan_gp", "hydra.sweep.dir=by-torchrun"]
    run = begin(*sweep, cwd=on_two, by=TORCHRUN)
    stdout, stderr = run.communicate(timeout=300)
    assert run.returncode == 0, stderr
    assert stdout.count("completed 12 generator steps") == 2  # said once
    assert {path.name for path in (on_two / "by-torchrun").iterdir()} == {
        "loss=wgan_clip",
        "loss=wgan_gp",
        "sweep.json",
    }
    for loss in ("wgan_clip", "wgan_gp"):
        assert_is_one_run_on_two_ranks(on_two / "one" / f"loss={loss}", on_two / "by-torchrun" / f"loss={loss}")


@pytest.mark.slow
def test_what_rank_zero_of_torchrun_refuses_is_said_once_and_ends_both(on_two: Path) -> None:
    run = begin("loss=wgan_gp", "hydra.run.dir='two/loss=wgan_gp'", cwd=on_two, by=TORCHRUN)
    _, stderr = run.communicate(timeout=120)
    assert run.returncode == 1  # torchrun's
    (line,) = [line for line in stderr.splitlines() if line.startswith("wganlab:")]
    assert "already holds a run" in line
    assert "exitcode  : 2" in stderr


@pytest.mark.slow
def test_torchrun_passes_a_signal_on_to_rank_zero(tmp_path: Path) -> None:
    arguments = ["loss=gan", "hydra.run.dir=out", "steps=100000", "callbacks.checkpoints.every=2"]
    run = begin(*arguments, cwd=tmp_path, by=TORCHRUN)
    wait_for(tmp_path / "out" / "checkpoints" / "last.ckpt")
    run.send_signal(signal.SIGTERM)
    _, stderr = run.communicate(timeout=90)
    assert re.search(r"wganlab: stopped by SIGTERM after generator step \d+ \(saved\)", stderr)
    assert Run(tmp_path / "out").status["state"] == "stopped"


@pytest.mark.slow
def test_a_rank_of_torchrun_that_is_killed_ends_the_run(tmp_path: Path) -> None:
    arguments = ["loss=gan", "hydra.run.dir=out", "steps=100000", "callbacks.checkpoints.every=2"]
    run = begin(*arguments, cwd=tmp_path, by=TORCHRUN)
    wait_for(tmp_path / "out" / "checkpoints" / "last.ckpt")
    os.kill(children(run.pid)[1], signal.SIGKILL)
    _, stderr = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "wganlab: ChildProcessError: rank 0 has lost another rank; the last checkpoint is good" in stderr
    assert "exitcode  : -9" in stderr  # torchrun names the rank
    assert Run(tmp_path / "out").status["state"] == "failed"


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.slow
def test_torchrun_on_two_machines_makes_one_run(on_two: Path) -> None:
    where = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    launcher = [sys.executable, "-m", "torch.distributed.run", *where]
    arguments = ["loss=wgan_clip", "hydra.run.dir=machines"]
    runs = [begin(*arguments, cwd=on_two, by=[*launcher, f"--node_rank={n}", "-m", "wganlab"]) for n in (1, 0)]
    for run in runs:
        _, stderr = run.communicate(timeout=300)
        assert run.returncode == 0, stderr
    assert difference(on_two / "one" / "loss=wgan_clip", on_two / "machines") < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "devices"), [(1, 1), (2, 2)])
def test_tasks_of_srun_make_one_run(nodes: int, devices: int, on_two: Path) -> None:
    """One task for each device, and one for each machine that starts the processes of its devices."""
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": str(nodes), "SLURM_JOB_ID": free_port()}
    folder = f"srun-{nodes}"
    arguments = ["loss=wgan_gp", f"hydra.run.dir={folder}", f"accelerator.devices={devices}"]
    tasks = []
    for rank in range(2):
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank if nodes == 1 else 0)}
        tasks.append(begin(*arguments, cwd=on_two, **step, **own))
    said = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert not said[1][0]  # rank zero prints
    assert Run(on_two / folder).summary["ranks"] == 2 * devices
    assert difference(on_two / "two" / "loss=wgan_gp", on_two / folder) < 1e-9


#: A script that trains from Python, in a thread, where no handler of a signal can be set.
IN_THREAD = """
import sys, threading
import wganlab

def train():
    print("made", wganlab.train(sys.argv[1:]).summary["ranks"])

if __name__ == "__main__":
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
"""


@pytest.mark.slow
def test_python_trains_on_two_ranks_in_a_thread_and_so_does_a_job_of_submitit(on_two: Path) -> None:
    (on_two / "script.py").write_text(IN_THREAD)
    command = [sys.executable, "script.py", *MLP, *DDP, "loss=wgan_clip", "hydra.run.dir=from-python"]
    done = subprocess.run(command, cwd=on_two, env=without_account(on_two), capture_output=True, text=True, timeout=200)
    assert "made 2" in done.stdout, done.stderr
    assert difference(on_two / "one" / "loss=wgan_clip", on_two / "from-python") < 1e-9
    where = ["hydra/launcher=submitit_local", "hydra.sweep.dir=submitted"]
    done = wganlab("train", "-m", *MLP, *DDP, "loss=wgan_clip", *where, cwd=on_two)
    assert done.returncode == 0, done.stderr
    (run,) = find_runs([on_two / "submitted"])
    assert run.summary["ranks"] == 2
    assert difference(on_two / "one" / "loss=wgan_clip", run.folder) < 1e-9


@pytest.mark.parametrize("precision", ["64-true", pytest.param("bf16-mixed", marks=pytest.mark.slow)])
def test_synchronised_batch_norm_is_that_of_the_whole_batch(precision: str, on_two: Path) -> None:
    """In the critic too, where the penalty differentiates it twice, and in a last batch of four images."""
    norm = ["model=dcgan", "model.generator.n_filters=8", "model.critic.n_filters=4", "model.critic.norm=batch"]
    norm += ["dataset.size=16", "loss.n_critic=3", "hold_out=1", "batch_size=256", "drop_last=false"]
    norm += ["model.critic.dropout=0", "loss=wgan_gp", "steps=3", f"precision={precision}"]
    for name, devices in (("alone", ["accelerator=cpu"]), ("shared", DDP)):
        folder = f"norm-{name}-{precision}"
        done = wganlab("train", *EXACT, *norm, *devices, f"hydra.run.dir={folder}", cwd=on_two)
        assert done.returncode == 0, done.stderr
    apart = difference(*(on_two / f"norm-{name}-{precision}" for name in ("alone", "shared")))
    assert apart < (1e-6 if precision == "64-true" else 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        ["loss=dragan", "loss/objective=relativistic_average", "augmentation=diffaug", "averaging=ema"],
        ["loss=sngan", "loss/schedule=cosine", "loss/warmup=paper", "loss.warmup.n=7"],
        ["loss=gan", "+loss/feature_matching=added"],
        ["loss=r3gan", "model=conditional_mlp"],
        ["loss=acgan", "model=acgan_dcgan", *DCGAN],
        ["loss=wgan_gp", "model=conditional_dcgan", *DCGAN],
    ],
)
def test_two_ranks_train_any_method_as_one_process_does(method: list[str], tmp_path: Path) -> None:
    for name, devices in (("one", ["accelerator=cpu"]), ("two", DDP)):
        done = wganlab("train", *EXACT, *method, *devices, f"hydra.run.dir={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-9


@pytest.mark.slow
def test_compiled_gradients_are_averaged_like_plain_ones(on_two: Path) -> None:
    compiled = [argument for argument in MLP if argument != "compile=off"]
    arguments = ["loss=wgan_gp", "compile=on", "accelerator.sync_batchnorm=false", "hydra.run.dir=compiled"]
    done = wganlab("train", *compiled, *DDP[:2], *arguments, cwd=on_two)
    assert done.returncode == 0, done.stderr
    assert "compiled in" in done.stdout
    plain = [*arguments[:1], *arguments[2:3], "compile=off", "hydra.run.dir=plain"]
    done = wganlab("train", *compiled, *DDP[:2], *plain, cwd=on_two)
    assert done.returncode == 0, done.stderr
    assert difference(on_two / "plain", on_two / "compiled") < 1e-9


@pytest.mark.slow
def test_another_number_of_ranks_is_said_to_be_inexact(on_two: Path) -> None:
    run = Path(shutil.copytree(on_two / "two" / "loss=wgan_gp", on_two / "alone"))
    done = wganlab("train", f"run={run}", "steps=14", cwd=on_two)
    assert done.returncode == 0, done.stderr
    settings = OmegaConf.load(run / ".hydra" / "config.yaml")
    settings.accelerator.devices = 1
    settings.steps = 16
    OmegaConf.save(settings, run / ".hydra" / "config.yaml")
    done = wganlab("train", f"run={run}", cwd=on_two)
    assert done.returncode == 0, done.stderr
    assert "was shared by 2 devices and now by 1: equal up to rounding only" in done.stdout


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["batch_size=63"], "batch_size=63: must be a multiple of the 2 devices that share it"),
        (
            ["drop_last=false"],
            "drop_last=false: leaves 5 of 1,797 samples for the last batch, which must be a multiple",
        ),
        (["accelerator.nodes=2"], "accelerator.nodes: unknown key"),
        (["accelerator.devices=0"], "accelerator.devices=0: must be an integer > 0"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_one_line(overrides: list[str], line: str, tmp_path: Path) -> None:
    done = in_process("train", *DDP, "dataset=digits", "hydra.run.dir=out", *overrides, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"wganlab: {line}")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_what_cannot_be_joined_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(key, value)
    assert environment.place() == environment.Place(rank=1, world_size=4, local_rank=0, nodes=1)
    assert environment.devices(1) == environment.devices(4) == 4
    assert not environment.launches(4)
    with pytest.raises(ConfigError, match=r"accelerator.devices=3: torchrun has started 4 processes; must be 4"):
        validate(config("dataset=digits", "accelerator.devices=3"))
    with pytest.raises(ConfigError, match="batch_size=66: must be a multiple of the 4 devices"):
        validate(config("dataset=digits", "batch_size=66"))


def test_a_batch_script_of_slurm_is_none_of_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}.items():
        monkeypatch.setenv(key, value)
    assert environment.place() is None
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "4")
    assert environment.devices(2) == 8
    assert environment.launches(2)


def test_batch_norm_with_one_image_for_each_device_is_refused_before_the_start() -> None:
    wrong = "batch_size=2: leaves one image to each of the 2 devices, and batch norm needs two; must be at least 4, or "
    for arguments, allowed in (([], False), (["accelerator.sync_batchnorm=true"], True), (["batch_size=4"], True)):
        settings = config("dataset=digits", *DDP[:2], "batch_size=2", *arguments)
        with nullcontext() if allowed else pytest.raises(ConfigError, match=wrong):
            validate(settings)


def both(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
    """What each of two ranks draws."""
    drawn = []
    with monkeypatch.context() as patch:
        patch.setattr(parallel, "world_size", lambda: 2)
        for rank in range(2):
            patch.setattr(parallel, "rank", lambda rank=rank: rank)
            torch.manual_seed(5)
            drawn.append(draw())
    torch.manual_seed(5)
    return drawn


def test_noise_differs_between_ranks_and_is_together_that_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config("dataset=digits")
    module = build_module(settings, construct(settings, "dataset"))
    first, second = both(monkeypatch, lambda: module.latents(8))
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat([first, second]), sample_latents(16, module.latent_dim, "normal"))

    real, fake = torch.zeros(4, 1, 2, 2), torch.ones(4, 1, 2, 2)
    first, second = both(monkeypatch, lambda: interpolate(real, fake))
    assert torch.equal(torch.cat([first, second]), interpolate(real.repeat(2, 1, 1, 1), fake.repeat(2, 1, 1, 1)))
    first, second = both(monkeypatch, lambda: interpolate(real, fake, alpha_per="batch"))
    assert torch.equal(first, second)

    augment = DiffAugment()
    first, second = both(monkeypatch, lambda: augment(fake))
    assert torch.equal(torch.cat([first, second]), augment(fake.repeat(2, 1, 1, 1)))

    first, second = both(monkeypatch, lambda: Dropout(0.5)(torch.ones(4, 64)))
    assert not torch.equal(first, second)


def test_real_images_are_sharded_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    def batches() -> torch.Tensor:
        samples = torch.arange(20.0).view(20, 1)
        return torch.stack(images(BatchStream(samples, batch_size=4, n_critic=2, steps=3, seed=0))).view(3, 2, -1, 1)

    first, second = both(monkeypatch, batches)
    assert first.shape == second.shape == (3, 2, 2, 1)
    assert torch.equal(torch.cat([first, second], dim=2), batches())
