"""Shared fixtures: the real command line in real folders."""

import contextlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from tests.forked import Fork
from tests.isolation import isolated
from wganlab.cli import main
from wganlab.config import composer, without_hydra
from wganlab.data.mnist import FILES
from wganlab.data.stream import Batch
from wganlab.launch import plan_run
from wganlab.overrides import parse, split_sweep
from wganlab.sweeps import plan_sweep
from wganlab.validate import parameters_at, training_config

#: Set by W&B's agent, schedulers and torchrun: with one of them a run would take itself for a part of something.
NOT_OURS = ("WANDB_", "WGANLAB_SWEEP", "SLURM_", "TORCHELASTIC_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_")

#: Whoever sets one of these gets an interpreter of their own.
READ_BY_IMPORTS = ("OMP_NUM_THREADS", "PYTHONPATH", "PYTHONHASHSEED")
#: Arguments of commands that start processes, which want to be children of an interpreter.
STARTS_PROCESSES = ("hydra/launcher", "accelerator", "+search")

#: Every method of conf/loss.
LOSSES = [
    "acgan",
    "dragan",
    "gan",
    "hinge",
    "lsgan",
    "r3gan",
    "rpgan",
    "sngan",
    "wgan_clip",
    "wgan_div",
    "wgan_gp",
    "wgan_lp",
]

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

#: For studies of many such runs, of which the last scores count.
SELDOM = ["callbacks.evaluation.every=20", "callbacks.checkpoints.every=20"]

#: The MLP pair with layers that take no time: what is tested seldom needs those of the walk-through.
NARROW = ["model.generator.hidden=[32,64]", "model.critic.hidden=[64,32]"]


def images(stream: Iterable[list[Batch]]) -> list[Tensor]:
    """The images of each generator step that is left of a stream, (critic steps * batch, *shape)."""
    return [torch.cat([batch.images for batch in batches]) for batches in stream]


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home for the session: tests neither read nor write the user's caches and accounts."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for key in [key for key in os.environ if key.startswith(NOT_OURS)]:
            patch.delenv(key)
        for key in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "NETRC"):
            patch.delenv(key, raising=False)
        patch.setenv("HOME", str(folder))
        patch.setenv("MPLCONFIGDIR", str(folder / "matplotlib"))  # its list of fonts is made once, for all processes
        yield folder


@pytest.fixture(autouse=True)
def isolation(home: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """No test depends on those before it: global state is put back, random numbers start at the same point, and the
    runs that tests share are read, not written."""
    shared = request.getfixturevalue("sweep").parent if "sweep" in request.fixturenames else None
    before = files(shared) if shared else {}
    with isolated():
        yield
    changed = before.items() ^ files(shared).items() if shared else set()
    assert not changed, f"changes the runs that tests share: {sorted({name for name, _ in changed})}"


def files(folder: Path) -> dict[str, int]:
    """All that is in a folder, with the time of its last change."""
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def wganlab(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user without W&B account does, in a process of its own."""
    process = begin(*arguments, cwd=cwd, **environment)
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(["wganlab", *arguments], process.returncode or 0, out, err)


def in_process(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command as a function call: seconds faster than a process, for what is refused before a run begins."""
    code: int | str | None = 0
    out, err = io.StringIO(), io.StringIO()
    with isolated(), contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.argv = ["wganlab", *arguments]
        try:
            main()
        except SystemExit as error:
            code = error.code
    return subprocess.CompletedProcess(["wganlab", *arguments], int(code or 0), out.getvalue(), err.getvalue())


def begin(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str] | Fork:
    """The command in the background."""
    env = without_account(cwd) | environment
    given = [one for one in arguments if one != "hydra/launcher=basic"]
    studies = arguments[0] == "study" and len(given) == len(arguments) and not any(one[:2] == "--" for one in given)
    starts_others = studies or any(one.startswith(STARTS_PROCESSES) for one in given)
    if not starts_others and all(env.get(key) == os.environ.get(key) for key in READ_BY_IMPORTS):
        return Fork([*arguments], cwd, env)
    command = [sys.executable, "-m", "wganlab", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, **pipes)  # type: ignore[call-overload]


def wait_for(
    condition: Callable[[], Any], what: str, seconds: float = 120, *, of: subprocess.Popen | Fork | None = None
) -> None:
    """Until a condition holds, at the longest as long as the process goes on that it is to come ``of``."""
    until = time.monotonic() + seconds
    while not condition():
        assert of is None or of.poll() is None, f"ended before {what} came"
        assert time.monotonic() < until, f"{what} has not come"
        time.sleep(0.02)


def without_account(cwd: Path) -> dict[str, str]:
    """The environment, with a home beside ``cwd`` that holds no W&B key."""
    home = cwd.with_name(cwd.name + "-home")
    home.mkdir(exist_ok=True)
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return env | {"HOME": str(home), "COLUMNS": "200"}


def config(*overrides: str) -> DictConfig:
    """A composed training config."""
    return training_config(overrides)


def composed(
    overrides: Sequence[str], *, multirun: bool, config_dir: str | None = None, ends: bool = False
) -> list[DictConfig]:
    """The configs of all jobs of a command line, or of the first and the last, whether they can run or not."""
    with composer("train", config_dir, parameters_at) as hydra:
        if not multirun:
            return [without_hydra(hydra.compose(overrides))]
        jobs = plan_sweep(hydra, overrides)
        combinations = split_sweep(parse(jobs.overrides))
        chosen = combinations[:: max(1, len(combinations) - 1)] if ends else combinations
        return [hydra.compose(job, jobs.master) for job in chosen]


def plan(overrides: Sequence[str], *, multirun: bool = False, config_dir: str | None = None) -> list[DictConfig]:
    """The checked configs of all jobs of a command line, resolved: what the command does before anything runs."""
    with composer("train", config_dir, parameters_at) as hydra:
        if multirun:
            configs = list(plan_sweep(hydra, overrides).plan()[1].values())
        else:
            configs = [without_hydra(plan_run(hydra, overrides)[0])]
        for settings in configs:
            OmegaConf.resolve(settings)
        return configs


def first_job(overrides: Sequence[str], *, config_dir: str | None = None) -> DictConfig:
    """The checked config of the first job of a multirun, resolved: the others differ in what is swept."""
    with composer("train", config_dir, parameters_at) as hydra:
        jobs = plan_sweep(hydra, overrides)
        config = without_hydra(jobs.load_sweep_config(jobs.master, split_sweep(parse(jobs.overrides))[0]))
        OmegaConf.resolve(config)
        return config


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real multirun over the three losses with W&B offline, and its report."""
    folder = tmp_path_factory.mktemp("user")
    command = ["train", "-m", "loss=gan,wgan_clip,wgan_gp", "dataset=digits", *TINY, *NARROW]
    command += ["hydra.sweep.dir=out"]
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


@pytest.fixture
def tiny_mnist(tmp_path: Path) -> Path:
    """A root with well-formed MNIST files of a few images, in the format of the originals."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        n = 6 if name.startswith("train") else 3
        if "images" in name:
            sizes = [2051, n, 28, 28]
            body = bytes((i * 37 + j) % 256 for i in range(n) for j in range(784))
        else:
            sizes, body = [2049, n], bytes(range(n))
        (raw / name).write_bytes(b"".join(size.to_bytes(4, "big") for size in sizes) + body)
    return tmp_path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Where the real data sets lie, named by WGANLAB_TEST_DATA; tests that need them skip without."""
    root = os.environ.get("WGANLAB_TEST_DATA")
    if not root:
        pytest.skip("WGANLAB_TEST_DATA does not name a folder with the real data sets")
    return Path(root)


#: The files that take longest begin first, so that no worker ends with one while the others have nothing left.
LONG = ("parallel", "sweep", "wandb", "resume", "readme", "study", "report", "vocabulary", "conditional", "launchers")


@pytest.hookimpl(trylast=True)  # after their order has been drawn
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


def pytest_configure(config: pytest.Config) -> None:
    config.option.randomly_reset_seed = False  # isolation seeds, and torch too


#: Files of the tests that this process has run, in order.
RAN: dict[str, None] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails says which files came before it in its process."""
    RAN[item.nodeid.partition("::")[0]] = None
    report = yield
    if report.failed:
        seed = item.config.getoption("randomly_seed", None)
        order = "-p no:randomly" if seed in (None, "default") else f"--randomly-seed={seed}"
        report.sections.append(("to repeat the order of this process", f"python -m pytest {order} {' '.join(RAN)}"))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    seed = config.getoption("randomly_seed", None)
    if seed not in (None, "default"):
        terminalreporter.write_line(f"random order; the same again: make test ARGS='--randomly-seed={seed}'")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="store new golden traces in tests/golden")
