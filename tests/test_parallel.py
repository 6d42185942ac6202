"""One run on several processes: the run of one process, in shares."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import TINY, config, wganlab, without_account
from wganlab import parallel
from wganlab.adversarial import sample_latents
from wganlab.build import build_module, construct
from wganlab.data.stream import BatchStream
from wganlab.networks.layers import Dropout
from wganlab.regularizers import interpolate
from wganlab.runs import Run

# fp64: Adam divides a gradient by its own size, so that rounding of fp32 soon shows in the third digit
EXACT = ["dataset=digits", "precision=64-true", "logger=csv", "compile=off", *TINY]
DDP = ["accelerator=ddp", "accelerator.accelerator=cpu", "accelerator.sync_batchnorm=true"]


def state(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def difference(first: Path, second: Path) -> float:
    """Largest difference between the weights of two runs, relative to the largest of a layer.

    Those below 1e-2 are taken for that: the bias before a batch norm has no gradient but rounding.
    """
    a, b = state(first), state(second)
    return max(((a[key] - b[key]).abs().max() / a[key].abs().max().clamp(min=1e-2)).item() for key in a)


def children(pid: int) -> list[int]:
    """Ranks of a run: processes that multiprocessing has started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if parent == pid and b"spawn_main" in command:
            found.append(int(entry.name))
    return sorted(found)


def begin(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """A run on two ranks in the background."""
    command = [sys.executable, "-m", "wganlab", "train", *EXACT, *DDP, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, env=without_account(cwd) | environment, text=True, **pipes)  # type: ignore[call-overload]


def wait_for(path: Path) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < until, f"{path} has not come"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of the three losses on two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    done = wganlab("train", "-m", *EXACT, *DDP, "loss=gan,wgan_clip,wgan_gp", "hydra.sweep.dir=two", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_two_ranks_with_half_a_batch_each_train_the_weights_of_one_process(on_two: Path) -> None:
    done = wganlab("train", "-m", *EXACT, "loss=gan,wgan_clip,wgan_gp", "hydra.sweep.dir=one", cwd=on_two)
    assert done.returncode == 0, done.stderr
    for loss in ("gan", "wgan_clip", "wgan_gp"):
        one, two = on_two / "one" / f"loss={loss}", on_two / "two" / f"loss={loss}"
        assert difference(one, two) < 1e-9
        # files are written once, budgets mean the same, and logged numbers are those of all ranks
        assert {path.name for path in one.rglob("*")} == {path.name for path in two.rglob("*")}
        # times; a count of weights at the very bound; a mean slope, which is observed at images of the first rank
        apart = {"seconds", "speed/images_per_second", "critic/weights_at_bound", "critic/gradient_norm"}
        for row, other in zip(Run(one).rows, Run(two).rows, strict=True):
            for key in row.keys() - apart:
                assert other[key] == pytest.approx(row[key], rel=1e-6, abs=1e-8), key
        assert Run(two).summary["ranks"] == 2


def test_a_rank_that_is_killed_ends_the_run_and_it_continues_bit_for_bit(on_two: Path) -> None:
    arguments = ["loss=wgan_gp", "hydra.run.dir=killed", "steps=4000", "callbacks.checkpoints.every=2"]
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
    # continued to the same budget, it becomes the run that was never killed
    reached = torch.load(on_two / "killed/checkpoints/last.ckpt", weights_only=True)["global_step"]
    stored = on_two / "killed" / ".hydra" / "config.yaml"
    settings = OmegaConf.load(stored)
    settings.steps = max(reached, 12) + 4
    OmegaConf.save(settings, stored)
    for name in ("killed", "two/loss=wgan_gp"):
        done = wganlab("train", f"run={name}", *[f"steps={settings.steps}"] * (name != "killed"), cwd=on_two)
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
def test_a_signal_that_comes_while_ranks_start_stops_them_after_their_first_step(tmp_path: Path) -> None:
    run = begin("loss=gan", "hydra.run.dir=out", "steps=100000", cwd=tmp_path)
    until = time.monotonic() + 120
    while len(children(run.pid)) < 2:
        assert time.monotonic() < until, "no ranks have come"
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    _, stderr = run.communicate(timeout=120)
    assert run.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after generator step 1 (saved)" in stderr
    assert Run(tmp_path / "out").status["state"] == "stopped"


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


def test_the_same_command_on_two_nodes_is_one_run(on_two: Path) -> None:
    nodes = ["accelerator.devices=1", "accelerator.nodes=2", "loss=wgan_clip", "hydra.run.dir=nodes"]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(parallel.find_free_network_port())}
    first = begin(*nodes, cwd=on_two, NODE_RANK="0", **where)
    wait_for(on_two / "nodes" / "status.json")  # the second may come later
    second = begin(*nodes, cwd=on_two, NODE_RANK="1", **where)
    for node in (first, second):
        _, stderr = node.communicate(timeout=180)
        assert node.returncode == 0, stderr
    assert difference(on_two / "two" / "loss=wgan_clip", on_two / "nodes") < 1e-9


@pytest.mark.parametrize("precision", ["64-true", pytest.param("bf16-mixed", marks=pytest.mark.slow)])
def test_synchronised_batch_norm_is_that_of_the_whole_batch(precision: str, on_two: Path) -> None:
    """In the critic too, where the penalty differentiates it twice."""
    norm = ["model=dcgan", "model.generator.n_filters=8", "model.critic.n_filters=4", "model.critic.norm=batch"]
    norm += ["model.critic.dropout=0", "loss=wgan_gp", "steps=3", f"precision={precision}"]
    for name, devices in (("alone", ["accelerator=cpu"]), ("shared", DDP)):
        folder = f"norm-{name}-{precision}"
        done = wganlab("train", *EXACT, *norm, *devices, f"hydra.run.dir={folder}", cwd=on_two)
        assert done.returncode == 0, done.stderr
    apart = difference(*(on_two / f"norm-{name}-{precision}" for name in ("alone", "shared")))
    assert apart < (1e-6 if precision == "64-true" else 1)


@pytest.mark.slow
def test_compiled_gradients_are_averaged_like_plain_ones(on_two: Path) -> None:
    compiled = [argument for argument in EXACT if argument != "compile=off"]
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
    run = on_two / "two" / "loss=gan"
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
        (["accelerator.nodes=2"], "accelerator.nodes=2: each node needs NODE_RANK, MASTER_ADDR, MASTER_PORT"),
        (["accelerator.devices=0"], "accelerator.devices=0: must be an integer > 0"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_one_line(overrides: list[str], line: str, tmp_path: Path) -> None:
    done = wganlab("train", *DDP, "dataset=digits", "hydra.run.dir=out", *overrides, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"wganlab: {line}")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out" / "checkpoints").exists()


def both(monkeypatch: pytest.MonkeyPatch, draw: object) -> list[torch.Tensor]:
    """What each of two ranks draws."""
    drawn = []
    for rank in range(2):
        monkeypatch.setattr(parallel, "HERE", parallel.Place(rank, 2))
        torch.manual_seed(5)
        drawn.append(draw())  # type: ignore[operator]
    monkeypatch.setattr(parallel, "HERE", parallel.Place())
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

    first, second = both(monkeypatch, lambda: Dropout(0.5)(torch.ones(4, 64)))
    assert not torch.equal(first, second)


def test_real_images_are_sharded_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    def batches() -> torch.Tensor:
        samples = torch.arange(20.0).view(20, 1)
        return torch.stack([b.images for b in BatchStream(samples, batch_size=4, n_critic=2, steps=3, seed=0)])

    first, second = both(monkeypatch, batches)
    assert first.shape == second.shape == (3, 2, 2, 1)
    assert torch.equal(torch.cat([first, second], dim=2), batches())
