"""No test depends on those before it: what one changes, the next finds as it was."""

import gc
import logging
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
import torch._dynamo.config
import wandb
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from tests.conftest import config
from tests.isolation import RESTORED, UNTOUCHED, isolated
from wganlab import loggers, schema
from wganlab.data import reading
from wganlab.metrics import protocol


def change_everything(folder: Path) -> None:
    """All that RESTORED names, by the ways that tests and wganlab change it."""
    os.environ["WANDB_MODE"] = "offline"
    os.environ["PL_GLOBAL_SEED"] = "7"
    os.environ.pop("PATH")
    with wandb.init(dir=str(folder), settings=wandb.Settings(silent=True, console="off")):
        pass
    os.chdir(folder)
    sys.argv = ["another"]
    sys.path.insert(0, str(folder))
    gc.set_threshold(12_345)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.getLogger("pytorch_lightning").setLevel(5)
    logging.getLogger().setLevel(5)
    logging.getLogger().addHandler(logging.NullHandler())
    config("loss=gan")
    GlobalHydra.instance().hydra = object()  # type: ignore[assignment]
    HydraConfig.instance().cfg = object()  # type: ignore[assignment]
    ConfigStore.instance().store("anything", {"a": 1}, group="loss")
    OmegaConf.register_new_resolver("anything", lambda: 1)
    matplotlib.rcParams["lines.linewidth"] = 17
    torch.set_float32_matmul_precision("medium")
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    torch._dynamo.config.trace_autograd_ops = not torch._dynamo.config.trace_autograd_ops
    reading.LAST_READ["anything"] = reading.Data(torch.zeros(1), None)
    protocol.REAL_SCORES["anything"] = {}


def read() -> dict[str, Any]:
    return {name: part[0]() for name, part in RESTORED.items()}


def test_what_a_test_changes_is_put_back(tmp_path: Path) -> None:
    with isolated():
        pass  # reads the config store for the first time
    before = read()
    with isolated():
        change_everything(tmp_path)
        changed = read()
    after = read()
    for found in (before, changed, after):  # modules of wganlab that were imported stay so
        found["sys.path"] = found["sys.path"][0]
    assert {name for name in RESTORED if changed[name] == before[name]} == set(), "the test changes all there is"
    assert {name: after[name] for name in RESTORED if after[name] != before[name]} == {}
    assert not OmegaConf.has_resolver("anything")
    assert "WANDB_SERVICE" not in os.environ


def test_a_class_of_the_same_name_in_another_folder_is_another(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "of_a_user.py").write_text(f"class Mine:\n    name = {name!r}\n")
        with isolated():
            sys.path.insert(0, str(tmp_path / name))
            assert schema.locate("of_a_user.Mine").name == name
    assert "of_a_user" not in sys.modules


def test_random_numbers_start_at_the_same_point() -> None:
    def draw() -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(1).item()]

    first = draw()
    with isolated():
        assert draw() == first


def leave_open(folder: Path) -> None:
    with isolated():
        os.environ["WANDB_MODE"] = "offline"
        wandb.init(dir=str(folder), settings=wandb.Settings(silent=True, console="off"))


def test_a_run_left_open_is_said_to_be_and_ended(tmp_path: Path) -> None:
    assert not UNTOUCHED["a W&B run that is open"]()
    with pytest.raises(AssertionError, match="left behind for the next test: a W&B run that is open"):
        leave_open(tmp_path)
    assert loggers.open_run() is loggers.session() is None


def test_the_home_of_tests_is_not_the_users(home: Path) -> None:
    assert Path.home() == home
    assert not [key for key in os.environ if key.startswith(("WANDB_", "SLURM_"))]
