"""wganlab from Python: the command's bits, as objects, in a process that has other things to do."""

import csv
import logging
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from pytorch_lightning import Callback, Trainer

import wganlab
from tests.conftest import LOSSES, without_account
from tests.conftest import wganlab as command
from tests.test_resume import assert_same, outcome
from wganlab.callbacks.interruption import StoppedError
from wganlab.notebook import LoadedRun
from wganlab.sample import main as sample
from wganlab.schema import ConfigError, locate

SMALL = [
    "dataset=gaussians8",
    "model=toy_mlp",
    "model.generator.hidden=[16]",
    "model.critic.hidden=[16]",
    "accelerator.matmul_precision=highest",  # what is fastest is measured, in each process anew
    "steps=12",
    "batch_size=16",
    "log_every=4",
    "callbacks.evaluation.every=6",
    "callbacks.evaluation.n=32",
    "callbacks.samples.every=12",
    "callbacks.samples.n=16",
    "callbacks.checkpoints.every=6",
    "logger=csv",
]


class Signal(Callback):
    """Interrupts the process after a step, as the stop button of a notebook does."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        if trainer.global_step == self.at:
            os.kill(os.getpid(), signal.SIGINT)


class Exit(Callback):
    """Code of a user's that ends the process."""

    def __init__(self) -> None:
        sys.exit("enough")


def at(step: int) -> str:
    return f"+callbacks.signal={{_target_: {__name__}.Signal, at: {step}}}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    """A run made here, in the folder "here" of a user's."""
    folder = tmp_path_factory.mktemp("user")
    return wganlab.train([*SMALL, f"hydra.run.dir={folder / 'here'}"])


def test_import_is_light_and_knows_its_names() -> None:
    code = (
        "import sys, wganlab; print(wganlab.__version__, {'torch', 'hydra', 'pandas'} & {*sys.modules}, dir(wganlab))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{wganlab.__version__} set() [")
    assert {"LoadedRun", "load_run", "train"} <= set(dir(wganlab))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        wganlab.trian  # type: ignore[attr-defined]  # noqa: B018
    assert pickle.loads(pickle.dumps(wganlab.train)) is wganlab.train, "for a pool of processes"


def test_a_run_is_bit_for_bit_that_of_the_command(made: LoadedRun) -> None:
    done = command("train", *SMALL, "hydra.run.dir=there", cwd=made.folder.parent)
    assert done.returncode == 0, done.stderr
    there = made.folder.with_name("there")
    assert_same(outcome(made.folder), outcome(there))
    assert {path.relative_to(there) for path in there.rglob("*")} == {
        path.relative_to(made.folder) for path in made.folder.rglob("*")
    }
    for name in ("config", "overrides", "hydra"):
        one, other = (yaml.safe_load((run / ".hydra" / f"{name}.yaml").read_text()) for run in (made.folder, there))
        if name == "hydra":
            for content, run in ((one, made.folder), (other, there)):
                content = content["hydra"]
                assert content["runtime"].pop("output_dir") == str(run)
                for key in ("cwd", "config_sources"):
                    content["runtime"].pop(key)
                content["run"].pop("dir")
                content["overrides"]["hydra"].remove(f"hydra.run.dir={run if content is one['hydra'] else run.name}")
        assert one == other, name


def test_training_leaves_the_process_as_it_was(made: LoadedRun, tmp_path: Path) -> None:
    """Though it uses Hydra, logs, and draws random numbers itself."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "own.yaml").write_text("a: 1\n")

    def state() -> list[Any]:
        handlers = [(handler, handler.level) for handler in logging.root.handlers]
        numbers = [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()]
        return [os.getcwd(), list(sys.argv), logging.root.level, handlers, HydraConfig.instance().cfg, numbers]

    def seed() -> None:
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)

    with hydra.initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
        seed()
        before = state()
        seed()
        run = wganlab.train([*SMALL, "seed=7", f"hydra.run.dir={tmp_path / 'run'}"])
        assert state() == before
        assert hydra.compose("own").a == 1
    assert not GlobalHydra.instance().is_initialized()
    different = run.networks["critic"].state_dict(), made.critic.state_dict()
    assert not all(torch.equal(*pair) for pair in zip(*(state.values() for state in different), strict=True))


def test_a_run_stopped_from_the_notebook_goes_on(made: LoadedRun, tmp_path: Path) -> None:
    folder = tmp_path / "run=1,2"
    before = HydraConfig.instance().cfg
    with pytest.raises(StoppedError, match="after generator step 7"):
        wganlab.train([*SMALL, at(7), f"hydra.run.dir='{folder}'"])
    config = folder / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("at: 7", "at: 70"))
    run = wganlab.train([f"run={folder}"])
    assert run.folder == folder
    assert_same(outcome(run.folder), outcome(made.folder))
    assert wganlab.train(f"run='{folder}' steps=14").summary["steps"] == 14
    assert HydraConfig.instance().cfg is before


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("-m loss=gan,wgan_gp", "-m: wganlab.train makes one run of key=value; sweeps: wganlab train -m ..."),
        ("loss=gan,wgan_gp", "loss=gan,wgan_gp: several values are a sweep, which takes wganlab train -m"),
        ("hydra.mode=MULTIRUN", "hydra.mode=MULTIRUN: wganlab.train makes one run"),
        ("loss=hing", f"loss=hing: no such choice; allowed are {', '.join(LOSSES)}"),
        (
            "loss.regularizer.gradient_penalty.weight=ten",
            "loss.regularizer.gradient_penalty.weight=ten: must be a number",
        ),
        ("steps", "steps: not an override of the form key=value"),
        ("hydra.run.dir=here", "hydra.run.dir=here: already holds a run"),
        ("run=nowhere", "run=nowhere: does not exist"),
        ("run=here steps=3", "steps=3: may only be raised"),
        ("run=here -m", "-m: only a higher steps="),
    ],
)
def test_what_the_command_refuses_is_refused(
    overrides: str, expected: str, made: LoadedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made.folder.parent)
    before = sorted(made.folder.parent.iterdir())
    with pytest.raises(ConfigError) as error:
        wganlab.train(overrides)
    assert str(error.value).startswith(expected)
    assert sorted(made.folder.parent.iterdir()) == before


def test_failures_are_exceptions(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FloatingPointError, match="training has diverged"):
        wganlab.train([*SMALL, "loss.optimizer.lr=1e30", f"hydra.run.dir={tmp_path / 'diverged'}"])
    with pytest.raises(RuntimeError, match=r"sys.exit\(enough\)"):
        wganlab.train([*SMALL, f"+callbacks.exit={{_target_: {__name__}.Exit}}", f"hydra.run.dir={tmp_path / 'exit'}"])
    assert capfd.readouterr().err == ""


def test_history_and_config(made: LoadedRun) -> None:
    pytest.importorskip("pandas")
    history = made.history
    assert history.index.name == "step"
    assert list(history.index) == [4, 6, 8, 12]
    with open(made.folder / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            for key, value in row.items():
                if key != "step" and value != "":
                    assert history.loc[int(row["step"]), key] == float(value)
    assert history["eval/emd"].dropna().index.tolist() == [6, 12]
    assert made.config.loss.optimizer.critic.lr == 1e-4
    assert yaml.safe_load(str(made.config).replace("None", "null"))["callbacks"]["diagnostics"]["every"] == 4
    assert made.summary["final"]["eval/emd"] == history["eval/emd"].iloc[-1]


def test_history_says_what_it_needs(made: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'wganlab\[notebook\]'"):
        wganlab.load_run(made.folder).history  # noqa: B018


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_networks_are_those_of_the_checkpoint(checkpoint: str, made: LoadedRun) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    run = wganlab.load_run(str(made.folder), checkpoint)
    assert torch.equal(torch.rand(3), expected)
    path = made.folder / "checkpoints" / f"{checkpoint}.ckpt"
    saved = torch.load(path, weights_only=True)["state_dict"]
    for name, network in (("generator", run.generator), ("critic", run.critic)):
        assert not network.training
        for key, value in network.state_dict().items():
            assert torch.equal(value, saved[f"{name}.{key}"]), key
    assert run.critic(run.sample(5)).shape == (5,)


def test_samples_are_those_of_the_command(made: LoadedRun, tmp_path: Path) -> None:
    sample([f"run={made.folder}", "n=4", "seed=3", f"output={tmp_path / 'made'}"])
    drawn = made.sample(4, seed=3)
    assert not drawn.requires_grad
    assert drawn.tolist() == pytest.approx(np.loadtxt(tmp_path / "made" / "points.csv", delimiter=","), rel=1e-5)


NOISY = """
import torch
from wganlab.networks.mlp import Generator

class Noisy(Generator):
    def forward(self, latents):
        return super().forward(latents) + torch.randn(len(latents), 1)
"""


def test_a_generator_that_draws_noise_draws_the_same_for_a_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noisy_nets.py").write_text(NOISY)
    monkeypatch.syspath_prepend(tmp_path)
    given = ["model.generator._target_=noisy_nets.Noisy", f"hydra.run.dir={tmp_path / 'run'}"]
    run = wganlab.train([*SMALL, *given])
    before = torch.get_rng_state()
    assert torch.equal(run.sample(5, seed=1), run.sample(5, seed=1))
    assert not torch.equal(run.sample(5, seed=1), run.sample(5, seed=2))
    assert torch.equal(torch.get_rng_state(), before)
    (tmp_path / "noisy_nets.py").write_text(NOISY + "        raise NameError\n    def __init__(self, **x): gian\n")
    monkeypatch.delitem(sys.modules, "noisy_nets")
    locate.cache_clear()
    with pytest.raises(NameError):
        wganlab.load_run(tmp_path / "run")


def test_a_fixed_generator_leaves_the_critic(tmp_path: Path) -> None:
    wganlab.train([*SMALL, "training=fixed_generator", f"hydra.run.dir={tmp_path / 'run'}"])
    run = wganlab.load_run(tmp_path / "run")
    assert run.critic(torch.zeros(3, 2)).shape == (3,)
    for wanted in (lambda: run.generator, lambda: run.sample(3)):
        with pytest.raises(ConfigError, match="its generator was fixed"):
            wanted()


def test_a_run_without_checkpoints_has_a_history(tmp_path: Path) -> None:
    run = wganlab.train([*SMALL, "~callbacks.checkpoints", f"hydra.run.dir={tmp_path / 'run'}"])
    assert run.summary["steps"] == 12
    with pytest.raises(ConfigError, match=r"has no such checkpoint; the run has saved none$"):
        run.critic  # noqa: B018


def test_data_are_not_needed_and_damage_is_refused(made: LoadedRun, tmp_path: Path) -> None:
    run = tmp_path / "moved"
    shutil.copytree(made.folder, run)
    config = run / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("wganlab.data.toys.Gaussians", "wganlab.data.mnist.MNIST"))
    assert wganlab.load_run(run).sample(2).shape == (2, 2)
    with pytest.raises(ConfigError, match=r"checkpoint=first: .* has no such checkpoint; allowed are best, last"):
        wganlab.load_run(run, "first")
    (run / "checkpoints" / "last.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(ConfigError, match="does not hold this run's generator and critic"):
        wganlab.load_run(run)
    config.write_text("")
    with pytest.raises(ConfigError, match="is damaged"):
        wganlab.load_run(run, "best")
    with pytest.raises(ConfigError, match="is no run folder"):
        wganlab.load_run(tmp_path)


NOTEBOOK = f"""
import wganlab
short = wganlab.train("{" ".join(SMALL)} loss=gan")
%
longer = wganlab.train(f"run={{short.folder}} steps=16")
%
again = wganlab.load_run(longer.folder)
%
print(again.summary["steps"], *again.sample(2).shape, again.folder.parts[-3:-1] == short.folder.parts[-3:-1])
"""


def test_cells_of_a_notebook(tmp_path: Path) -> None:
    """One after the other in one process, whose arguments are the kernel's, in the default folder."""
    (tmp_path / "kernel.py").write_text(f"for cell in {NOTEBOOK!r}.split('%'):\n    exec(cell, globals())\n")
    kernel = [sys.executable, "kernel.py", "-f", "connection.json", "--multirun"]
    done = subprocess.run(kernel, cwd=tmp_path, env=without_account(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "16 2 2 True"
    (run,) = tmp_path.glob("outputs/*/*_gaussians8_gan")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kernel.py", "outputs"]
    assert (run / "status.json").is_file()
