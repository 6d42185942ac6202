"""Shared fixtures: the real command line in real folders."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from wganlab.config import compose_config, composer, parse, split_sweep, without_hydra
from wganlab.launch import plan_run, plan_sweep

#: Small budgets that still pass every milestone: rows, samples, evaluations, checkpoints.
TINY = [
    "steps=12",
    "log_every=4",
    "callbacks.evaluation.every=6",
    "callbacks.evaluation.n=64",
    "callbacks.samples.every=6",
    "callbacks.samples.n=16",
    "callbacks.checkpoints.every=6",
    "callbacks.diagnostics.histograms_every=6",
]


def wganlab(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user without W&B account does."""
    command = [sys.executable, "-m", "wganlab", *arguments]
    env = without_account(cwd) | environment
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def without_account(cwd: Path) -> dict[str, str]:
    """The environment, with a home beside ``cwd`` that holds no W&B key."""
    home = cwd.with_name(cwd.name + "-home")
    home.mkdir(exist_ok=True)
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return env | {"HOME": str(home), "COLUMNS": "200"}


def config(*overrides: str) -> DictConfig:
    """A composed training config."""
    return compose_config("train", overrides)


def composed(overrides: Sequence[str], *, multirun: bool, config_dir: str | None = None) -> list[DictConfig]:
    """The configs of all jobs of a command line, whether they can run or not."""
    with composer("train", config_dir) as hydra:
        if not multirun:
            return [without_hydra(hydra.compose(overrides))]
        jobs = plan_sweep(hydra, overrides)
        return [hydra.compose(job, jobs.master) for job in split_sweep(parse(jobs.overrides))]


def plan(overrides: Sequence[str], *, multirun: bool = False, config_dir: str | None = None) -> list[DictConfig]:
    """The checked configs of all jobs of a command line, resolved: what the command does before anything runs."""
    with composer("train", config_dir) as hydra:
        if multirun:
            configs = list(plan_sweep(hydra, overrides).plan()[1].values())
        else:
            configs = [without_hydra(plan_run(hydra, overrides)[0])]
        for settings in configs:
            OmegaConf.resolve(settings)
        return configs


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real multirun over the three losses with W&B offline, and its report."""
    folder = tmp_path_factory.mktemp("user")
    command = ["train", "-m", "loss=gan,wgan_clip,wgan_gp", "dataset=digits", *TINY, "hydra.sweep.dir=out"]
    done = wganlab(*command, cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    done = wganlab("report", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.fixture(scope="session")
def run_of(sweep: Path) -> Callable[[str], Path]:
    """loss -> its run folder in the sweep."""

    def find(loss: str) -> Path:
        return sweep / f"loss={loss}"

    return find


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Where the real data sets lie, named by WGANLAB_TEST_DATA; tests that need them skip without."""
    root = os.environ.get("WGANLAB_TEST_DATA")
    if not root:
        pytest.skip("WGANLAB_TEST_DATA does not name a folder with the real data sets")
    return Path(root)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="store new golden traces in tests/golden")
