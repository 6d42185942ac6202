"""Studies: every arm composes and runs; arms differ in what they declare and in nothing else."""

import csv
import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from tests.conftest import TINY, first_job, wganlab
from wganlab.build import build_module
from wganlab.config import composer
from wganlab.report.verdicts import verdict_table
from wganlab.runs import find_runs
from wganlab.schema import ConfigError, leaves
from wganlab.study import arm_names, find_study, multirun, read_study, several_at_a_time, studies, verdicts
from wganlab.sweeps import plan_sweep
from wganlab.validate import parameters_at

#: Data that need no files, of the same shape as far as the networks care.
STAND_IN = {
    "s1_dcgan_mnist": ["dataset=digits"],
    "s2_mlp_mnist": ["dataset=digits"],
    "clip_vs_penalty_mnist": ["dataset=digits"],
    "tuned_twice_mnist": ["dataset=digits"],
    "s3_cifar_horses": ["dataset=digits", "dataset.size=32", "extractor=classifier"],
    "s4_anime_faces": ["dataset=digits", "dataset.size=64"],
}


def command_line(study: str, *overrides: str) -> list[str]:
    """What a study makes a multirun of, on data that are here, with the first trial of what is tuned."""
    folder = find_study(study)
    trial = ["trial=0"] if read_study(folder).tune else []
    return multirun(folder, [*trial, *STAND_IN.get(study, []), *overrides])[0]


def arm(study: str, name: str, *overrides: str) -> DictConfig:
    """The plain config of an arm."""
    return first_job(command_line(study, f"arms={name}", *overrides), config_dir=str(find_study(study)))


@pytest.mark.parametrize("study", studies())
def test_every_arm_can_run(study: str) -> None:
    folder = find_study(study)
    with composer("train", str(folder), parameters_at) as hydra:
        _, jobs = plan_sweep(hydra, command_line(study, "seed=0")).plan()
    assert {re.search(r"arms=(\w+)", name)[1] for name in jobs} == {*arm_names(folder)}  # type: ignore[index]


BUDGETS = [(name, budget) for name, folder in studies().items() for budget in read_study(folder).budgets]


@pytest.mark.parametrize(("study", "budget"), BUDGETS)
def test_every_budget_can_run(study: str, budget: str) -> None:
    folder = find_study(study)
    with composer("train", str(folder), parameters_at) as hydra:
        plan_sweep(hydra, command_line(study, f"budget={budget}", "seed=0")).plan()


def test_a_study_runs_a_job_on_each_core_unless_it_is_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    joblib = "hydra/launcher=joblib"
    for given in (["+arms=gan,wgan_gp"], ["+arms=glob(*)"], ["+arms=gan", "seed=range(3)"]):
        assert several_at_a_time(given) == [*given, joblib]
    two = ["+arms=gan,wgan_gp"]
    for given in (["+arms=gan", "seed=0"], [*two, "hydra/launcher=basic"], [*two, joblib], [*two, "accelerator=gpu"]):
        assert several_at_a_time(given) == given
    for name, value in (("joblib.cpu_count", 1), ("torch.cuda.is_available", True)):
        with monkeypatch.context() as patch:
            patch.setattr(name, lambda value=value: value)
            assert several_at_a_time(two) == two


def plain(config: DictConfig) -> dict:
    """The config as plain containers."""
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


PENALTY = "loss.regularizer.gradient_penalty"
FRESH: dict[str, object] = {"training._target_": "wganlab.adversarial.AdversarialModule"}
EPS: dict[str, object] = {f"loss.optimizer.{network}.eps": 1e-7 for network in ("generator", "critic")}
SYMMETRIC: dict[str, object] = {"model.generator.padding": "symmetric", "model.critic.padding": "symmetric"}
DIFFERENCES: dict[str, dict[str, dict[str, object]]] = {
    "s1_dcgan_mnist": {
        "layer_norm": {"model.critic.norm": "layer"},
        "training_mode_penalty": {f"{PENALTY}.eval_mode": False},
        "fresh_latents": {"training.tied_latents": False},
        "symmetric_padding": SYMMETRIC,
        "corrected": {
            "model.critic.norm": "layer",
            f"{PENALTY}.eval_mode": False,
            "training.tied_latents": False,
            **SYMMETRIC,
        },
    },
    "s2_mlp_mnist": {
        "norm_eps": {"model.generator.norm_eps": 1e-5},
        "norm_per_image": {f"{PENALTY}.norm_over": "image"},
        "fresh_latents": FRESH,
        "drop_last": {"drop_last": True},
        "corrected": {"model.generator.norm_eps": 1e-5, f"{PENALTY}.norm_over": "image", "drop_last": True, **FRESH},
    },
    "s3_cifar_horses": {
        "linear_critic": {"model.critic.output": "linear"},
        "norm_per_image": {f"{PENALTY}.norm_over": "image"},
        "penalty_with_dropout": {f"{PENALTY}.eval_mode": False},
        "no_dropout": {"model.critic.dropout": 0.0},
        "corrected": {
            "model.critic.output": "linear",
            f"{PENALTY}.norm_over": "image",
            f"{PENALTY}.eval_mode": False,
            "reshuffle": "epoch",
            **EPS,
        },
    },
    "s4_anime_faces": {
        "corrected": {"model.generator.norm_eps": 1e-5, **FRESH},
        "paper_rates": {
            "loss.optimizer.lr": 1e-4,
            "loss.optimizer.betas": [0.0, 0.9],
            **{f"loss.optimizer.{network}.lr": 1e-4 for network in ("generator", "critic")},
            **{f"loss.optimizer.{network}.betas": [0.0, 0.9] for network in ("generator", "critic")},
        },
    },
}


@functools.cache
def published_values(study: str) -> dict[str, object]:
    """All values of the arm as_published, by key."""
    return dict(leaves(plain(arm(study, "as_published"))))


@pytest.mark.parametrize(("study", "name"), [(s, a) for s, arms in DIFFERENCES.items() for a in arms])
def test_an_arm_differs_from_the_published_one_in_its_corrections_alone(study: str, name: str) -> None:
    published, other = published_values(study), dict(leaves(plain(arm(study, name))))
    assert {key: other[key] for key in other if other[key] != published.get(key)} == DIFFERENCES[study][name]
    assert published.keys() == other.keys()


def test_published_settings() -> None:
    """Batch, steps, rates, n_critic and the order of images as the four sources have them."""
    s1, s2, s3, s4 = (arm(name, "as_published") for name in STAND_IN if name.startswith("s"))
    assert (s1.batch_size, s1.steps, s1.loss.n_critic, s1.model.latent_dim) == (128, 100 * (60_000 // 128), 1, 20)
    assert (s2.batch_size, s2.steps, s2.loss.n_critic, s2.model.latent_dim) == (64, 100 * 938, 1, 100)
    assert (s3.batch_size, s3.steps, s3.loss.n_critic, s3.model.latent_dim) == (256, 12_000, 5, 100)
    assert (s4.batch_size, s4.images, s4.loss.n_critic, s4.model.latent_dim) == (64, 1000 * 93 * 64, 5, 100)
    assert [c.drop_last for c in (s1, s2, s3, s4)] == [True, False, True, True]
    assert [c.reshuffle for c in (s1, s2, s3, s4)] == ["epoch", "epoch", "step", "epoch"]
    rates = [[c.loss.optimizer[net].lr for net in ("critic", "generator")] for c in (s1, s2, s3, s4)]
    assert rates == [[2e-4, 2e-4], [4e-3, 1e-3], [2e-4, 2e-4], [2e-4, 2e-4]]
    assert all(c.loss.optimizer.critic.betas == [0.9, 0.999] for c in (s1, s2, s3))
    assert s1.training._target_.endswith("SharedPass")
    assert s2.training._target_.endswith("ReusedLatents")
    assert s4.training._target_.endswith("ReusedLatents")
    assert s1.model.latent == "uniform"
    assert s1.training.tied_latents
    assert s4.loss.optimizer.critic.betas == [0.5, 0.999]
    assert all(c.loss.regularizer.gradient_penalty.weight == 10 for c in (s1, s2, s3, s4))


def test_published_networks() -> None:
    """Trainable parameters as the sources print them, or as their layers add up."""

    def sizes(study: str, shape: tuple[int, ...]) -> tuple[int, int]:
        config = arm(study, "as_published")
        module = build_module(config, SimpleNamespace(shape=shape))
        return tuple(sum(p.numel() for p in net.parameters()) for net in (module.generator, module.critic))  # type: ignore[return-value]

    assert sizes("s1_dcgan_mnist", (1, 28, 28)) == (804_832, 1_039_489)
    assert sizes("s2_mlp_mnist", (1, 28, 28)) == (1_510_032, 533_505)
    assert sizes("s3_cifar_horses", (3, 32, 32)) == (877_344, 670_401)
    assert sizes("s4_anime_faces", (3, 64, 64)) == (13_301_632, 6_423_553)


def test_a_study_runs_and_reports(tmp_path: Path) -> None:
    # dataset.n is a key of what the arms choose, not of the default data set
    few = [
        "arms=w1_penalty,js_minimax",
        "seed=0",
        "hydra/launcher=basic",
        *TINY,
        "logger=csv",
        "callbacks.evaluation.n=32",
        "dataset.n=300",
        "images=null",
    ]
    done = wganlab("study", "parallel_lines", *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "study" / "parallel_lines"
    assert "compared 2 runs: outputs/study/parallel_lines/index.html" in done.stdout
    names = {run.folder.name: run for run in find_runs([folder])}
    assert set(names) == {"arms=w1_penalty,seed=0", "arms=js_minimax,seed=0"}
    composed = yaml.safe_load((names["arms=js_minimax,seed=0"].folder / ".hydra" / "config.yaml").read_text())
    assert composed["loss"]["objective"]["_target_"] == "wganlab.objectives.Minimax"
    with open(folder / "results.csv", newline="") as file:
        assert [row["arm"] for row in csv.DictReader(file)] == ["js_minimax", "w1_penalty"]


def test_one_job_of_a_study_has_the_name_it_has_in_the_whole() -> None:
    arguments, folder = multirun(
        find_study("s1_dcgan_mnist"), ["arms=as_published", "seed=1", "steps=3", "dataset=digits"]
    )
    assert folder == "outputs/study/s1_dcgan_mnist"
    assert "+arms=as_published" in arguments
    assert "seed=1" in arguments
    assert "steps=3" in arguments


def test_a_studys_numbers_and_folder_may_be_written_as_usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine" / "arms").mkdir(parents=True)
    (tmp_path / "mine" / "arms" / "a.yaml").write_text("# @package _global_\nseed: 0\n")
    claim = "{says: It is low, source: a hunch, metric: eval/emd, arm: a, below: 1e-3}"
    (tmp_path / "mine" / "study.yaml").write_text(f"question: How low?\nsweep: {{seed: 0}}\nclaims: [{claim}]\n")
    assert read_study(tmp_path / "mine").claims[0]["below"] == 0.001
    assert multirun(tmp_path / "mine", ["hydra.sweep.dir=~/out"])[1] == str(tmp_path / "out")
    assert multirun(tmp_path / "mine", ["hydra.sweep.dir='a b'"])[1] == "a b"
    with pytest.raises(ConfigError, match="must be a plain path"):
        multirun(tmp_path / "mine", ["hydra.sweep.dir=${oc.env:SCRATCH}/out"])


@pytest.mark.parametrize("name", sorted(path.parent.name for path in Path("experiments").glob("*/verdicts.json")))
def test_published_verdicts_are_those_of_the_published_numbers(name: str) -> None:
    folder = Path("experiments", name)
    found = verdicts(folder, [], folder)
    assert verdict_table(found) == (folder / "verdicts.md").read_text(encoding="utf-8")
    published = json.loads((folder / "verdicts.json").read_text(encoding="utf-8"))["claims"]
    assert [verdict.description for verdict in found] == [claim["description"] for claim in published]


def test_a_users_own_study(tmp_path: Path) -> None:
    own = tmp_path / "mine"
    (own / "arms").mkdir(parents=True)
    (own / "study.yaml").write_text("question: Does it?\nsweep: {seed: '0,1'}\n")
    with pytest.raises(ConfigError, match="has no arms"):
        multirun(find_study(str(own)), [])
    (own / "arms" / "one.yaml").write_text("# @package _global_\nsteps: 3\n")
    arguments, _ = multirun(find_study(str(own)), ["logger=csv"])
    assert arguments == ["+arms=one", "seed=0,1", "hydra.sweep.dir=outputs/study/mine", "logger=csv"]
    (own / "study.yaml").write_text("question: Does it?\nswep: 1\n")
    with pytest.raises(ConfigError, match=r"study.yaml: swep: unknown key; allowed are question, sweep"):
        read_study(own)
    (own / "study.yaml").unlink()
    with pytest.raises(ConfigError, match=r"mine: has no study\.yaml"):
        find_study(str(own))
    (own / "arms" / "one.yaml").write_text("\n# @package _global_\nsteps: 3\n")
    assert arm_names(own) == ["one"]
    (own / "arms" / "one.yaml").write_text("steps: 3\n")
    with pytest.raises(ConfigError, match=r"arms/one.yaml: its first line must be # @package _global_"):
        arm_names(own)
    with pytest.raises(ConfigError, match=r"nothing: no such study; allowed are .*parallel_lines, .*s1_dcgan_mnist"):
        find_study("nothing")
