"""The road from a command line to a run: each folder is one run's, bugs stay visible, validation changes nothing."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from tests.conftest import NARROW, TINY, begin, config, plan, wait_for, wganlab, without_account
from wganlab.config import composer, conf_dir
from wganlab.runs import Run
from wganlab.schema import HYDRA_KEYS, locate, parameters
from wganlab.sweeps import plan_sweep
from wganlab.validate import validate

SMALL = [
    "dataset=gaussians8",
    "model=toy_mlp",
    "model.generator.hidden=[16]",
    "model.critic.hidden=[16]",
    "batch_size=8",
    "log_every=50",
    "logger=csv",
    "callbacks=none",
    "compile=off",
]


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


#: Runs two commands in one process each, without the seconds that it takes to start: a pipe says when.
RACER = """
import sys
from wganlab import launch, sweeps
from wganlab.cli import report_error
for line in sys.stdin:
    mode, *arguments = line.split()
    try:
        code = sweeps.sweep(arguments) if mode == "sweep" else launch.run(arguments) and 0
    except Exception as error:
        code = report_error(error)
    print("CODE", code, flush=True)
"""


class Racer:
    """A process that has imported everything, and makes runs as the command does."""

    def __init__(self, folder: Path) -> None:
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command, env = [sys.executable, "-c", RACER], without_account(folder)
        self.process = subprocess.Popen(command, cwd=folder, env=env, text=True, bufsize=1, **pipes)

    def start(self, *arguments: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(arguments) + "\n")
        self.process.stdin.flush()

    def code(self) -> int:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("CODE"):
                return int(line.split()[1])
        raise AssertionError(self.process.stderr and self.process.stderr.read())


def test_of_two_runs_that_are_launched_into_one_folder_one_is_made_and_is_whole(tmp_path: Path) -> None:
    """Twenty times, up to 0.2 s apart: the folder is that of one run, and the other ends with one line."""
    arms = {11: "wgan_clip", 22: "wgan_gp"}
    racers = {seed: Racer(tmp_path) for seed in arms}
    for attempt in range(20):
        folder = f"hydra.run.dir=run{attempt}"
        for seed, loss in arms.items():
            steps = "steps=70" if loss == "wgan_clip" else "steps=50"
            racers[seed].start("run", *SMALL, f"seed={seed}", f"loss={loss}", steps, folder)
            time.sleep((attempt % 5) * 0.05 if seed == 11 else 0)
        codes = {seed: racer.code() for seed, racer in racers.items()}
        assert sorted(codes.values()) in ([0, 1], [0, 2]), codes  # 2: where it came when the other had ended
        (winner,) = [seed for seed, code in codes.items() if code == 0]
        run = Run(tmp_path / f"run{attempt}")
        assert (run.config["seed"], run.choices["loss"]) == (winner, arms[winner])
        assert f"seed={winner}" in {f"{k}={v}" for k, v in run.overrides.items()}
        assert run.status["state"] == "completed"
        assert (run.summary["steps"], len(run.rows) > 0) == (run.config["steps"], True)
    for racer in racers.values():
        racer.process.stdin.close()  # type: ignore[union-attr]
    said = [line for racer in racers.values() for line in racer.process.stderr.read().splitlines()]  # type: ignore[union-attr]
    raced = sum("is being worked on by another process" in line for line in said)
    late = sum("already holds a run; continue it with run=" in line for line in said)
    assert (raced + late, len(said)) == (20, 20), said
    assert raced > 10


def test_the_loser_changes_no_byte_of_a_run_or_a_sweep(tmp_path: Path) -> None:
    """Against a run, a sweep and a study that are under way, stopped so that they write nothing."""
    of_sweep = ["train", "-m", "seed=0,1", "hydra.sweep.dir=s"]
    for command, other, folder, first_run in (
        (["train", "hydra.run.dir=run"], ["train", "hydra.run.dir=run", "seed=22"], "run", "run"),
        (of_sweep, of_sweep, "s", "s/seed=0"),
    ):
        first = begin(*command, *SMALL, "steps=100000", "log_every=10", cwd=tmp_path)
        wait_for((tmp_path / first_run / "metrics.csv").exists, "a row", of=first)
        first.send_signal(signal.SIGSTOP)
        before = content(tmp_path / folder)
        done = wganlab(*other, *SMALL, "steps=7", cwd=tmp_path)
        assert content(tmp_path / folder) == before
        assert (done.returncode, done.stderr) == (1, f"wganlab: {folder} is being worked on by another process\n")
        first.kill()
        first.wait()


def test_a_parameter_that_no_yaml_shows_is_a_key_like_any_other(tmp_path: Path) -> None:
    assert "slope" not in yaml.safe_load((conf_dir() / "model" / "mlp.yaml").read_text())["critic"]
    (settings,) = plan(["model.critic.slope=0.3"])
    assert settings.model.critic.slope == 0.3
    swept = plan(["model.critic.slope=0.1,0.3", "model.generator.norm=none"], multirun=True)
    assert [(s.model.critic.slope, s.model.generator.norm) for s in swept] == [(0.1, "none"), (0.3, "none")]


def test_a_checked_config_says_every_value_that_the_run_has() -> None:
    settings = config()
    validate(settings)
    known = parameters(locate(settings.model.critic._target_))
    assert settings.model.critic.keys() - HYDRA_KEYS == known.keys() - {"shape"}
    assert settings.model.latent == "normal"
    assert settings.callbacks.evaluation.extractor == {}


def yaml_nodes(node: Any, key: str = "") -> list[tuple[str, dict[str, Any]]]:
    below = [found for name, value in node.items() if isinstance(value, dict) for found in yaml_nodes(value, name)]
    return [(key, node), *below] if "_target_" in node else below


def test_a_yaml_repeats_no_default_without_saying_why() -> None:
    """Of a class' own parameters: a value that is the default stands in a line with a comment, or not at all."""
    repeated = []
    for path in sorted(conf_dir().rglob("*.yaml")):
        lines = path.read_text().splitlines()
        for _, node in yaml_nodes(yaml.safe_load(path.read_text()) or {}):
            if node["_target_"].startswith(("hydra_plugins", "torch")):
                continue
            known = parameters(locate(node["_target_"]))
            for name in node.keys() & known.keys():
                default = known[name].default
                default = list(default) if isinstance(default, tuple) else default
                if default == node[name] and type(default) in (type(node[name]), float):
                    shown = [line for line in lines if line.strip().startswith(f"{name}: ") and "#" not in line]
                    shown = [line for line in shown if yaml.safe_load(line)[name] == default]
                    repeated += [f"{path.relative_to(conf_dir())}: {line.strip()}" for line in shown]
    assert not repeated


def test_validation_changes_nothing_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    plan(["loss=wgan_gp", "accelerator.deterministic=true"])
    assert torch.equal(torch.rand(4), expected)
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.are_deterministic_algorithms_enabled()
    assert not list(tmp_path.iterdir())


def test_each_job_of_a_multirun_is_composed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with composer() as hydra:
        seen: list[tuple[str, ...]] = []
        compose = hydra.compose

        def counted(given: Sequence[str], master: DictConfig | None = None) -> DictConfig:
            seen.append(tuple(given))
            return compose(given, master)

        monkeypatch.setattr(hydra, "compose", counted)
        jobs = plan_sweep(hydra, [*SMALL, "seed=0,1,2", "steps=2", "hydra.sweep.dir=out"])
        assert jobs.launch(hydra.context(jobs.master, jobs)) == 0
    assert len(seen) == 1 + 3, "what is fixed, and each job"


BROKEN = """
from torch import nn
from pytorch_lightning import Callback
from wganlab.schema import InvalidValueError

class Critic(nn.Module):
    def __init__(self, *, shape):
        super().__init__()
        self.layer = nn.Linear(2, 1)
    def forward(self, points):
        return self.layr(points)

class Observer(Callback):
    def __init__(self, *, n: int):
        raise TypeError("a bug of mine")

class Careful(Callback):
    def __init__(self, *, n: int):
        raise InvalidValueError("n", n, "must be even")
"""


@pytest.mark.parametrize(
    ("overrides", "line", "traceback"),
    [
        (["~model.critic", "+model.critic={_target_: broken.Critic, _partial_: true}"],
         "AttributeError, raised by the config's model.critic (broken.Critic)", "self.layr(points)"),
        (["+callbacks.mine={_target_: broken.Observer, n: 1}"],
         "TypeError, raised by the config's callbacks.mine (broken.Observer)", 'raise TypeError("a bug of mine")'),
        (["+callbacks.mine={_target_: broken.Careful, n: 1}"], "callbacks.mine.n=1: must be even", ""),
    ],
)  # fmt: skip
def test_a_bug_keeps_its_traceback_and_a_bad_value_is_one_line(
    overrides: list[str], line: str, traceback: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    small = [text for text in SMALL if not text.startswith(("callbacks", "model.critic"))]
    done = wganlab("train", *small, *overrides, "hydra.run.dir=run", cwd=tmp_path)
    assert done.stderr.splitlines()[0] == f"wganlab: {line}"
    assert traceback in done.stderr
    assert done.returncode == (1 if traceback else 2)
    assert (len(done.stderr.splitlines()) == 1) == (not traceback)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_version_of_hydra_habits(tmp_path: Path) -> None:
    """Overrides before and after options; Hydra's own files, written by the run that owns the folder."""
    command = ["train", *TINY, *NARROW, "--config-dir", str(conf_dir()), "steps=1", "logger=csv", "hydra.run.dir=run"]
    assert wganlab(*command, cwd=tmp_path).returncode == 0
    stored = {path.name: OmegaConf.load(path) for path in (tmp_path / "run" / ".hydra").iterdir()}
    assert sorted(stored) == ["config.yaml", "hydra.yaml", "overrides.yaml"]
    assert stored["hydra.yaml"].hydra.runtime.choices.loss == "wgan_gp"
