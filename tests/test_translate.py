"""Run folders of version 1: continued, scored, sampled, reported and exported by this version."""

import csv
import shutil
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from tests.conftest import config, wganlab
from wganlab.cli import COMMANDS
from wganlab.runs import Run
from wganlab.translate import translate, translate_columns
from wganlab.validate import validate

VERSION_1 = Path(__file__).parent / "fixtures" / "version_1"
LOSSES = ["gan", "wgan_clip", "wgan_gp"]


#: What no two runs share, the scores of modes, which are now those of 10,000 points, and what is no longer measured.
CHANGED = {"seconds", "speed/images_per_second", "eval/modes", "eval/high_quality", "eval/mode_kl"}
CHANGED |= {"critic/value_density"}


def stored(loss: str) -> dict:
    return yaml.safe_load((VERSION_1 / loss / ".hydra" / "config.yaml").read_text())


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_of_version_1_goes_on(loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the rows of the same run, made in one go by version 1; every other command takes the folder as it was."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(VERSION_1 / loss, tmp_path / "run")
    COMMANDS["evaluate"](["run=run", "n=16"])
    COMMANDS["sample"](["run=run", "n=4", "output=made"])
    COMMANDS["export"](["run=run", "output=exported"])
    COMMANDS["report"](["run"])
    done = wganlab("train", "run=run", "steps=12", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with open(VERSION_1 / f"{loss}.csv", newline="") as file:
        expected = list(csv.DictReader(file))
    rows = Run(tmp_path / "run").rows
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        for key, value in translate_columns(wanted).items():
            if value and key not in CHANGED:
                assert row[key] == pytest.approx(float(value), rel=1e-4, abs=1e-6), (key, row["step"])


@pytest.mark.parametrize("loss", LOSSES)
def test_a_translated_config_is_one_of_this_version(loss: str) -> None:
    translated = translate(stored(loss))
    validate(OmegaConf.create(translated))
    assert translate(translated) == translated
    assert (
        list(translated["loss"]["regularizer"])
        == {
            "gan": [],
            "wgan_clip": ["weight_clipping"],
            "wgan_gp": ["gradient_penalty"],
        }[loss]
    )
    today: dict = OmegaConf.to_container(config(f"loss={loss}"))  # type: ignore[assignment]
    today["accelerator"].pop("strategy", None)
    assert translate(today) == today, "what is composed today needs no translation"
    assert translated.keys() == today.keys()


def test_every_old_name_is_translated() -> None:
    old = stored("wgan_gp")
    old["model"]["critic"]["_target_"] = "wganlab.networks.drawn.Critic"
    old["training"]["_target_"] = "wganlab.adversarial.SharedPass"
    new = translate(old)
    assert new["loss"]["regularizer"]["gradient_penalty"]["eval_mode"] is True
    assert new["callbacks"]["diagnostics"]["detailed"] is True
    assert new["model"]["critic"]["_target_"] == "wganlab.networks.random_architecture.Critic"
    assert new["training"]["_target_"] == "wganlab.alternation.SharedPass"
    assert "strategy" not in new["accelerator"]
    old["model"]["generator"] = {"_target_": "wganlab.networks.upsample_dcgan.Generator"}
    assert translate(old)["model"]["generator"]["output_bias"] is True, "it had a bias, and its weights are saved"
    today = {"_target_": "wganlab.networks.upsample_dcgan.Generator", "output_bias": False}
    old["model"]["generator"] = today
    assert translate(old)["model"]["generator"] == today
    assert translate({}) == {}
    assert new["callbacks"]["evaluation"]["split"] == "training"
    assert new["callbacks"]["checkpoints"]["monitor"] == "eval/emd_raw"


def test_columns_of_earlier_versions_are_read_by_their_present_names() -> None:
    """eval/emd was the distance itself, and its debiased value a column of its own."""
    old = {"step": 1, "eval/emd": 5.0, "eval/emd_debiased": 1.0}
    new = {"step": 1, "eval/emd_raw": 5.0, "eval/emd": 1.0}
    assert translate_columns(old) == translate_columns(new) == new
    assert translate_columns({"eval/emd": 5.0}) == {"eval/emd_raw": 5.0}
    assert "eval/emd" not in Run(VERSION_1 / "gan").rows[-1]
    assert Run(VERSION_1 / "gan").summary["final"]["eval/emd_raw"] == Run(VERSION_1 / "gan").rows[-1]["eval/emd_raw"]
