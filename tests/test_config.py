"""The vocabulary: every YAML composes, instantiates and runs; whatever else is refused in one line."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import LOSSES, config, plan
from wganlab.build import build_module, construct, generator_steps
from wganlab.config import conf_dir
from wganlab.overrides import folder_name
from wganlab.schema import ConfigError
from wganlab.training import fit
from wganlab.validate import validate

CHOICES = sorted(
    (path.relative_to(conf_dir()).parent.as_posix(), path.stem)
    for path in conf_dir().rglob("*.yaml")
    if path.parent != conf_dir()
)

#: The data that a model is for, where digits do not fit.
FITTING = {
    "parallel_line": ["dataset=parallel_line"],
    "r3gan": ["dataset.size=8", "model.generator.widths=[16,16]", "model.critic.widths=[16,16]"],
    "random_architecture": ["dataset.size=32", "model.generator.width=0.1"],
}
#: Trains the second head of a critic that has one, beside any loss.
CLASSIFIED = "+loss/classification=auxiliary"
NEED_FILES = [
    *(
        ("dataset", name)
        for name in ("mnist", "fashion_mnist", "cifar10", "cifar_horse", "image_folder", "anime_faces", "csv")
    ),
    ("extractor", "cifar10"),
]


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda value: value)
def test_every_choice_builds(group: str, choice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    added = group in ("loss/feature_matching", "loss/classification", "search")
    overrides = [f"+{group}={choice}" if added else f"{group}={choice}"]
    overrides += FITTING.get(choice, ["dataset.size=32"]) if group == "model" else []
    if choice == "auxiliary" or (group, choice) == ("loss", "acgan"):
        overrides.append("model=acgan_mlp")
    elif "acgan" in choice:
        overrides.append(CLASSIFIED)
    if (group, choice) in NEED_FILES:
        with pytest.raises(ConfigError, match=r"dataset\.(root|path)=data"):
            validate(config(*overrides))
        return
    if (group, choice) == ("accelerator", "gpu") and not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="allowed here: auto, cpu"):
            validate(config(*overrides))
        return
    if choice == "inception":  # its weights are fetched when a run begins
        monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a check touches the network"))
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    validate(config(*overrides))


def pairs() -> Iterator[Any]:
    """Every model with every loss; by default every model with each kind of gradient, and every loss with each kind of
    network."""
    models, losses = ([choice for group, choice in CHOICES if group == kind] for kind in ("model", "loss"))
    for model, loss in itertools.product(models, losses):
        kinds = loss in ("wgan_gp", "sngan", "r3gan", "acgan") or model in ("mlp", "dcgan", "acgan_dcgan")
        yield pytest.param(model, loss, marks=[] if kinds else pytest.mark.slow)


@pytest.mark.parametrize(("model", "loss"), [*pairs()])
def test_every_model_trains_with_every_loss(model: str, loss: str, tmp_path: Path) -> None:
    classifies = model.startswith("acgan")
    if loss == "acgan" and not classifies:
        with pytest.raises(ConfigError, match=r"^loss.classification: the critic of this model has no classifier"):
            validate(config(f"model={model}", f"loss={loss}", *FITTING.get(model, ["dataset.size=32"])))
        return
    if (model, loss) == ("r3gan", "sngan"):
        with pytest.raises(ConfigError, match=r"^loss.regularizer.spectral_norm.* begin at zero"):
            validate(config(f"model={model}", f"loss={loss}", *FITTING[model]))
        return
    small = (
        FITTING.get(model, [])
        if "mlp" in model or model in FITTING
        else ["model.generator.n_filters=8", "model.critic.n_filters=4", "dataset.size=32"]
    )
    settings = config(
        f"model={model}",
        f"loss={loss}",
        "steps=2",
        "batch_size=8",
        "logger=csv",
        "callbacks=none",
        *small,
        *([CLASSIFIED] if classifies and loss != "acgan" else []),
    )
    summary = fit(settings, tmp_path)
    assert summary["steps"] == 2
    assert all(torch.isfinite(torch.tensor(value)) for value in summary["final"].values())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_every_precision_trains_and_is_observed(precision: str, tmp_path: Path) -> None:
    every = [f"callbacks.{name}.every=2" for name in ("evaluation", "samples", "checkpoints")]
    quick = ["steps=2", "log_every=1", "batch_size=8", "logger=csv", "callbacks.evaluation.n=16", *every]
    summary = fit(config(f"accelerator.precision={precision}", *quick), tmp_path)
    assert summary["final"]["critic/penalty"] > 0
    assert summary["final"]["eval/emd"] > 0


def test_losses_are_the_papers_algorithms() -> None:
    clip, penalty, gan = (config(f"loss={loss}").loss for loss in ("wgan_clip", "wgan_gp", "gan"))
    assert clip.optimizer.critic._target_ == "torch.optim.RMSprop"
    assert (clip.optimizer.critic.lr, clip.regularizer.weight_clipping.bound, clip.n_critic) == (5e-5, 0.01, 5)
    assert penalty.optimizer.generator._target_ == "torch.optim.Adam"
    assert (penalty.optimizer.critic.lr, penalty.optimizer.critic.betas) == (1e-4, [0.0, 0.9])
    assert (penalty.regularizer.gradient_penalty.weight, penalty.n_critic) == (10.0, 5)
    assert gan.objective._target_ == "wganlab.objectives.NonSaturating"
    assert gan.n_critic == 1
    assert config().batch_size == 64


def test_variations_are_one_override() -> None:
    def module(*overrides: str):  # type: ignore[no-untyped-def]
        settings = config(*overrides)
        return build_module(settings, construct(settings, "dataset"))

    clip_adam = module("loss=wgan_clip", "loss/optimizer=adam")
    assert all(isinstance(optimizer, torch.optim.Adam) for optimizer in clip_adam.configure_optimizers())
    assert clip_adam.loss.regularizer["weight_clipping"].bound == 0.01
    assert module("loss=wgan_gp", "loss.n_critic=1").loss.n_critic == 1
    saturating = module("loss=gan", "loss/objective=minimax")
    assert saturating.loss.objective.generator_loss(torch.zeros(1)).item() < 0
    generator, critic = module("loss.optimizer.lr=1e-3", "loss.optimizer.critic.lr=4e-3").configure_optimizers()
    assert (generator.defaults["lr"], critic.defaults["lr"]) == (1e-3, 4e-3)


OPTIMIZERS = "adam, adam_dcgan, adam_r3gan, adam_sngan, rmsprop"
BAD = [
    ("foo=1", "foo: unknown key"),
    ("+foo=1", "foo: unknown key; allowed are dataset"),
    ("n_critic=0", "n_critic: unknown key; did you mean loss.n_critic?"),
    ("loss=wgan_clip loss.regularizer.weight_clipping.bonud=1", "did you mean loss.regularizer.weight_clipping.bound?"),
    ("loss.regularizer.gradient_penalty.wieght=1", "did you mean loss.regularizer.gradient_penalty.weight?"),
    ("loss=wgann", f"loss=wgann: no such choice; allowed are {', '.join(LOSSES)}"),
    ("averaging=emma", "averaging=emma: no such choice; allowed are ema, none"),
    ("loss/optimizer=sgd", f"loss/optimizer=sgd: no such choice; allowed are {OPTIMIZERS}"),
    (
        "loss.regularizer.gradient_penalty.weight=ten",
        "loss.regularizer.gradient_penalty.weight=ten: must be a number >= 0",
    ),
    (
        "loss.regularizer.gradient_penalty.weight=nan",
        "loss.regularizer.gradient_penalty.weight=nan: must be a number >= 0",
    ),
    ("loss.n_critic=0", "loss.n_critic=0: must be an integer > 0"),
    ("loss.n_critic=2.5", "loss.n_critic=2.5: must be an integer > 0"),
    ("loss.n_critic=true", "loss.n_critic=true: must be an integer > 0"),
    ("batch_size=-1", "batch_size=-1: must be an integer > 0"),
    ("batch_size=0", "batch_size=0: must be an integer > 0"),
    ("batch_size=5000", "batch_size=5000: must be at most the 1797 samples"),
    ("batch_size=1", "batch_size=1"),
    ("steps=0", "steps=0: must be an integer > 0"),
    ("drop_last=no-thanks", "drop_last=no-thanks: must be true or false"),
    ("drop_last=false images=300", "images=300: counts whole batches; with drop_last=false give steps"),
    ("drop_last=false batch_size=4", "drop_last=false: leaves 1 of 1,797 samples for the last batch, and batch norm"),
    ("reshuffle=never", "reshuffle=never: must be one of epoch, step"),
    (
        "training=shared_pass training.tied_latents=true dataset=gaussians8",
        "training: ties latents to the samples of the data set, and this one is endless",
    ),
    ("images=-3", "images=-3: must be an integer > 0"),
    ("seed=-1", "seed=-1: must be an integer >= 0 and < 4294967296"),
    ("loss.optimizer.lr=0", "loss.optimizer.lr=0: must be a number > 0"),
    ("loss.optimizer.critic.lr=-1e-4", "loss.optimizer.critic.lr=-0.0001: must be a number > 0"),
    ("loss.optimizer.betas=[0.5,1.0]", "loss.optimizer.betas=[0.5, 1.0]: must be [a number >= 0 and < 1, "),
    ("loss.optimizer.betas=[-0.1,0.9]", "loss.optimizer.betas=[-0.1, 0.9]: must be [a number >= 0 and < 1, "),
    ("loss.optimizer.betas=0.5", "loss.optimizer.betas=0.5: must be [a number"),
    ("+loss.optimizer.typo=1", "loss.optimizer.typo: unknown key"),
    (
        "+loss.schedule.discriminator={_target_:wganlab.schedules.Linear,_partial_:true,steps:9}",
        "loss.schedule.discriminator: unknown key",
    ),
    (
        "loss=wgan_clip loss.regularizer.weight_clipping.bound=0",
        "loss.regularizer.weight_clipping.bound=0: must be a number > 0",
    ),
    (
        "loss=wgan_clip loss.regularizer.weight_clipping.bound=-1",
        "loss.regularizer.weight_clipping.bound=-1: must be a number > 0",
    ),
    ("model=dcgan dataset.size=30", "model.generator.n_blocks=2: cannot make images of 1x30x30; allowed are"),
    ("model.generator.norm=batchy", "model.generator.norm=batchy: must be one of batch, layer, instance, none"),
    ("model.generator.hidden=[a]", 'model.generator.hidden=["a"]: must be a list, each element an integer > 0'),
    ("model.latent=gauss", "model.latent=gauss: must be one of normal, uniform"),
    ("model.critic=null", "model.critic=null: must be a choice"),
    ("~loss.optimizer", "optimizer: is missing"),
    ("warmup=paper", "warmup: unknown key; did you mean loss/warmup?"),
    ("loss/regulariser=r1", "loss/regulariser: unknown key; did you mean loss/regularizer?"),
    ("loss/feature_matching=only", "unknown key; +loss/feature_matching= chooses one of added, only"),
    ("loss/regularizer=[r1,r3]", "loss/regularizer=r3: no such choice; allowed are dragan, gradient_penalty, "),
    ("search=wgan_gp", "search: unknown key; +search= chooses one of gan, wgan_clip, wgan_gp"),
    ("averaging.decay=0.9", "averaging.decay: unknown key; averaging holds nothing"),
    (
        "loss=gan loss.regularizer.gradient_penalty.weight=2",
        "unknown key; gradient_penalty is not chosen, which loss/regularizer=gradient_penalty does",
    ),
    ("loss.regularizer.weight_clipping.bound=0.1", "weight_clipping is not chosen, which loss/regularizer=weight_clip"),
    ("hydra.run.dri=x", "hydra.run.dri: unknown key; wganlab train --cfg hydra lists Hydra's own"),
    ("loss.objective=5", "loss.objective=5: must be a choice"),
    ("loss.objective._target_=no.such.Thing", "cannot be imported (No module named 'no')"),
    ("loss.objective._target_=wganlab.objectives.Wassertein", "has no Wassertein; did you mean Wasserstein?)"),
    ("drop_last='false'", "drop_last='false' (a text): must be true or false"),
    ("hold_out=5000", "hold_out=5000: must be less than the 1,797 samples of the data set"),
    ("callbacks.samples.every=0", "callbacks.samples.every=0: must be an integer > 0"),
    ("dataset=mnist dataset.root=/nowhere", "dataset.root=/nowhere: /nowhere/MNIST/raw lacks train-images-idx3-ubyte"),
    ("accelerator.precision=31", "accelerator.precision=31: must be one of 32-true"),
    ("accelerator=tpu", "accelerator=tpu: no such choice; allowed are auto, cpu, ddp, gpu"),
    ("steps", "steps: not an override of the form key=value"),
    ("dataset=null", "dataset=null: "),
    ("steps=3 images=300", "images=300: is a budget, and so is steps"),
    ("++steps=3 ++images=300", "images=300: is a budget, and so is steps"),
    ("+loss.optimizer.weight_decay=0.5", "loss.optimizer.weight_decay: unknown key; allowed are betas, lr"),
    ("+model.generator.shape=[1]", "model.generator.shape: unknown key"),
    ("+accelerator.max_steps=5", "accelerator.max_steps: unknown key"),
    ("+model.n_critic=7", "model.n_critic: unknown key"),
    ("+callbacks.foo._target_=builtins.dict", "callbacks.foo"),
    (
        "+callbacks.foo._target_=wganlab.objectives.Minimax",
        "callbacks.foo._target_=wganlab.objectives.Minimax: is no Callback",
    ),
    ("loss.objective._target_=wganlab.regularizers.Regularizer", "wganlab.regularizers.Regularizer: is no Objective"),
    (
        "loss=gan +loss.regularizer.r._target_=wganlab.objectives.Minimax",
        "Minimax: is no Regularizer",
    ),
    ("steps=${foo}", "foo"),
    ("loss.optimizer.lr=${loss.optimizer.lr}", "loss.optimizer.lr"),
    ("~nothing", "~nothing: there is no such key to delete"),
    ("accelerator.devices=0", "accelerator.devices=0: must be an integer > 0"),
    ("accelerator=cpu accelerator.precision=16-mixed", "accelerator.precision=16-mixed: needs a GPU"),
    ("hydra.run.dir=/dev/null", "hydra.run.dir=/dev/null: /dev/null is no folder"),
]


@pytest.mark.parametrize(("overrides", "expected"), BAD, ids=lambda value: value[:40])
def test_bad_input_is_refused_in_one_line(overrides: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan(overrides.split())
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("loss=gan,typo", "loss=typo: no such choice"),
        ("loss=gan,wgan_gp loss.n_critic=1,0", "loss.n_critic=0: must be"),
        ("seed=0,0", "two jobs of the sweep would share"),
    ],
)
def test_a_sweep_is_checked_before_its_first_job(overrides: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan(overrides.split(), multirun=True)
    assert expected in str(error.value)


def test_integers_become_floats_where_floats_are_wanted() -> None:
    """torch's Adam refuses betas of mixed types, and the paper writes (0, 0.9)."""
    settings = config("loss.optimizer.betas=[0,0.9]", "loss.regularizer.gradient_penalty.weight=10")
    validate(settings)
    assert settings.loss.optimizer.betas == [0.0, 0.9]
    assert all(isinstance(beta, float) for beta in settings.loss.optimizer.critic.betas)
    validate(config("loss=gan", "loss/optimizer=rmsprop"))
    validate(config("loss=wgan_clip", "loss/optimizer=adam_dcgan"))


def test_a_budget_of_a_users_yaml_does_not_silently_beat_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "budget").mkdir()
    (tmp_path / "budget" / "small.yaml").write_text("# @package _global_\nimages: 640\n")
    own = str(tmp_path)
    assert [generator_steps(settings) for settings in plan(["+budget=small"], config_dir=own)] == [2]
    with pytest.raises(ConfigError, match="images=640: is a budget, and so is steps; give images=null beside steps"):
        plan(["+budget=small", "steps=3"], config_dir=own)
    (settings,) = plan(["+budget=small", "steps=3", "images=null"], config_dir=own)
    assert generator_steps(settings) == 3


@pytest.mark.parametrize("content", ["a: [", "a: 1\na: 2", "5", "defaults: [nope]"])
def test_a_broken_yaml_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError) as error:
        plan(["loss=mine"], config_dir=str(tmp_path))
    assert "mine" in str(error.value)
    assert "\n" not in str(error.value)


def test_hydras_grammar_of_sweeps() -> None:
    assert len(plan(["loss=glob(*,exclude=acgan)"], multirun=True)) == len(LOSSES) - 1 == 11
    assert len(plan(["loss=gan,wgan_gp", "hydra.sweep.subdir=${hydra.job.num}"], multirun=True)) == 2
    (settings,) = plan(["experiment=digits_wgan_gp", "debug=fast", "loss.n_critic=2"])
    assert (settings.dataset.size, settings.loss.regularizer.gradient_penalty.weight) == (16, 3.1067)
    assert (settings.steps, settings.logger, settings.loss.n_critic) == (3, {}, 2), "debug, then the command line"
    (settings,) = plan(["logger.wandb.group=${hydra:runtime.choices.loss}"])
    assert settings.logger.wandb.group == "wgan_gp"


def test_sweep_jobs_are_those_of_hydra() -> None:
    settings = plan(["loss=gan,wgan_gp", "seed=range(3)", "steps=5"], multirun=True)
    assert [(s.loss.n_critic, s.seed, s.steps) for s in settings] == [(n, s, 5) for n in (1, 5) for s in (0, 1, 2)]


def test_a_fixed_key_of_a_swept_choice() -> None:
    """n is a key of the toys and not of the default data set."""
    settings = plan(["dataset=gaussians8,swiss_roll", "dataset.n=300", "model=toy_mlp"], multirun=True)
    assert [s.dataset.n for s in settings] == [300, 300]


def test_folder_names_are_safe_and_tell_jobs_apart() -> None:
    assert folder_name("loss=gan,seed=0") == "loss=gan,seed=0"
    assert folder_name("loss/optimizer=adam") == "loss.optimizer=adam"
    assert folder_name("") == "defaults"
    names = [folder_name(f"+note='{text}'") for text in ("a b", "a:b", "ä" * 500, "ä" * 501)]
    assert len(set(names)) == 4
    assert all(len(name.encode()) <= 255 and "/" not in name for name in names)
