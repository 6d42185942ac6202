"""From a composed config to the parts of a run, and what is refused on the way."""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, NonNegativeInt, PositiveInt
from pytorch_lightning import Callback
from torch import Tensor, nn

from wganlab import environment
from wganlab.accelerator import Precision
from wganlab.adversarial import AdversarialModule
from wganlab.callbacks.compilation import Compile
from wganlab.config import written_key
from wganlab.data import Source, size
from wganlab.data.stream import BatchStream, EndlessStream
from wganlab.runs import Run
from wganlab.schema import ConfigError, check_call, check_targets, is_node

Seed = Annotated[int, Field(ge=0, lt=2**32)]


def settings(
    *,
    dataset: Mapping,
    model: Mapping,
    loss: Mapping,
    training: Mapping,
    accelerator: Mapping,
    logger: Mapping | None,
    callbacks: Mapping,
    seed: Seed,
    steps: PositiveInt,
    images: PositiveInt | None,
    batch_size: PositiveInt,
    log_every: PositiveInt,
    compile: Compile,
    precision: Precision,
    hold_out: NonNegativeInt = 0,  # runs of earlier versions do without
    extractor: Mapping | None = None,
) -> None:
    """The keys of conf/train.yaml and what they may be: its schema."""


def construct(config: DictConfig, key: str, **extra: Any) -> Any:
    """Instantiate a node; what its constructor objects to becomes a ConfigError that names the key."""
    with objections(config, key):
        made = instantiate(OmegaConf.select(config, key), _convert_="all")
        return made(**extra) if extra else made


@contextmanager
def objections(config: DictConfig, key: str) -> Iterator[None]:
    """Turn what a part objects to into a ConfigError that names its key.

    A part may begin its message with ``parameter=value:`` to name the parameter at fault.
    """
    try:
        yield
        return
    except InstantiationException as error:
        cause = error.__cause__ or error
    except (ValueError, TypeError, AttributeError, OSError, RuntimeError) as error:
        cause = error
    at_parameter = re.match(r"(\w+)(=.*)", str(cause), re.DOTALL)
    if at_parameter:
        raise ConfigError(written_key(config, f"{key}.{at_parameter[1]}".lstrip(".")), at_parameter[2]) from cause
    raise ConfigError(key, f": {cause}") from cause


#: The two groups whose keys together are the arguments of the AdversarialModule.
MODEL = ("generator", "critic", "latent_dim", "latent")
LOSS = ("objective", "lipschitz", "optimizer", "n_critic", "feature_matching")
OPTIONAL = ("latent", "feature_matching")
#: What wganlab itself gives to the parts, and no config can set.
GIVEN = {
    "model.generator": ("latent_dim", "shape"),
    "model.critic": ("shape",),
    "training": (*MODEL, *LOSS),
    "loss.optimizer.generator": ("params",),
    "loss.optimizer.critic": ("params",),
    "accelerator": ("max_steps", "folder", "callbacks", "logger"),
    "logger": ("save_dir",),
}


def check(config: DictConfig, *, here: bool = True) -> None:
    """Refuse a composed config that cannot run, before any data is read: raises ConfigError.

    Unless it is to run ``here``, nothing is said of the machine.
    Integers that stand where floats are wanted become floats, in place.
    """
    try:
        plain: dict = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError("", " ".join(str(error).split())) from error
    try:
        for key, value in check_values(plain).items():
            OmegaConf.update(config, written_key(config, key), value)
        check_optimizers(config)
    except ConfigError as error:
        raise ConfigError(written_key(config, error.key), error.message) from None
    source = construct(config, "dataset")
    with objections(config, "dataset"):
        length, _ = size(source), tuple(source.shape)
    held_out = config.get("hold_out", 0)
    if length is None and held_out:
        raise ConfigError("hold_out", f"={held_out}: the data set is endless: all that it draws is fresh")
    if length is not None and config.batch_size > length - held_out:
        what = "data set" if not held_out else f"data set less hold_out={held_out}"
        allowed = f"must be at most the {max(0, length - held_out)} samples of the {what}"
        raise ConfigError("batch_size", f"={config.batch_size}: {allowed}")
    if here:
        construct(config, "accelerator", max_steps=1)
    with objections(config, "accelerator"):
        of = environment.devices(config.accelerator.get("devices", 1))
    if config.batch_size % of:
        raise ConfigError("batch_size", f"={config.batch_size}: must be a multiple of the {of} devices that share it")
    if config.get("extractor"):
        construct(config, "extractor")  # else what it objects to would be said of callbacks
    for name, callback in construct(config, "callbacks").items():
        if not isinstance(callback, Callback | None):
            raise ConfigError(f"callbacks.{name}", ": must be a Lightning callback, or null to switch it off")
    check_networks(config, source, of)


def check_values(plain: dict[str, Any]) -> dict[str, Any]:
    """Check every plain value against the signature that it fills; returns the values that become another type."""
    converted = check_call(settings, plain, "")
    converted |= check_targets(plain, GIVEN)
    for group, names, others in (("model", MODEL, LOSS), ("loss", LOSS, MODEL)):
        converted |= check_call(AdversarialModule, plain[group], f"{group}.", given=others)
        if missing := [name for name in names if name not in plain[group] and name not in OPTIONAL]:
            raise ConfigError(f"{group}.{missing[0]}", ": is missing and has no default")
    return converted


def check_optimizers(config: DictConfig) -> None:
    """In ``loss.optimizer``, what stands beside the two optimizers is there to be shared by them, and is."""
    node: dict[str, Any] = OmegaConf.to_container(config.loss.optimizer, resolve=False)  # type: ignore[assignment]
    shared: set[str] = set()
    for name in ("generator", "critic"):
        if not is_node(node.get(name)):
            raise ConfigError(f"loss.optimizer.{name}", f"={node.get(name)}: must be a node with _target_")
        shared |= {str(value)[4:-1] for value in node[name].values() if str(value).startswith("${..")}
    shared |= node["generator"].keys() & node["critic"].keys()  # both may have been given values of their own
    for key in node.keys() - shared - {"generator", "critic"}:
        allowed = ", ".join([*sorted(key for key in shared if key[0] != "_" and key in node), "generator", "critic"])
        raise ConfigError(f"loss.optimizer.{key}", f": unknown key; allowed are {allowed}")


def check_networks(config: DictConfig, source: Source, devices: int = 1) -> None:
    """Try the networks and the loss on tensors without storage: shapes must fit."""
    n = config.batch_size
    with torch.device("meta"):
        module = build_module(config, source)
        try:
            fake = module.generator(module.latents(n).to("meta"))
            if fake.shape[1:] != tuple(source.shape):
                made, wanted = ("x".join(map(str, shape)) for shape in (fake.shape[1:], source.shape))
                raise ConfigError("model.generator", f": makes samples of {made}, the data set has {wanted}")
            scores = module.critic(fake)
        except NotImplementedError:
            return  # a network that looks at values cannot be tried without them
        except (ValueError, RuntimeError) as error:
            raise ConfigError("model", f": the networks cannot run at batch_size={n}: {error}") from error
        if scores.shape != (n,):
            raise ConfigError("model.critic", f": must give one score per sample, not {tuple(scores.shape)}")
        if devices > 1 and not config.accelerator.get("sync_batchnorm"):
            check_local_batch(module, n, devices)
        check_loss(module, scores)


def check_local_batch(module: AdversarialModule, batch_size: int, devices: int) -> None:
    """The networks must run on one device's images, too: batch norm cannot normalise a single vector."""
    n = batch_size // devices
    try:
        module.critic(module.generator(module.latents(n).to("meta")))
    except (ValueError, RuntimeError) as error:
        if n > 1:
            message = f"the networks cannot run on the {n} images of each of the {devices} devices: {error}"
        else:
            message = f"leaves one image to each of the {devices} devices, and batch norm needs two; "
            message += f"must be at least {2 * devices}, or accelerator.sync_batchnorm=true"
        raise ConfigError("batch_size", f"={batch_size}: {message}") from error


def check_loss(module: AdversarialModule, scores: Tensor) -> None:
    """Objective and constraint must keep their contracts, as far as tensors without storage can tell."""
    for name in ("penalty", "project"):
        if not callable(getattr(module.lipschitz, name, None)):
            raise ConfigError("loss.lipschitz", f": has no method {name}; subclass wganlab.regularizers.Unconstrained")
    try:
        losses = module.objective.critic_loss(scores, scores), module.objective.generator_loss(scores)
        if module.feature_matching and not hasattr(module.critic, "features"):
            raise ConfigError("loss.feature_matching", ": the critic of this model has no features")
    except NotImplementedError:
        return
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError("loss.objective", f": cannot run: {error}") from error
    if any(not isinstance(loss, Tensor) or loss.dim() for loss in losses):
        raise ConfigError("loss.objective", ": must give scalar tensors")


def build_module(config: DictConfig, source: Source) -> AdversarialModule:
    """Networks, objective, constraint and optimizers; weights depend on the seed alone, network by network."""
    torch.manual_seed(2 * config.seed)
    generator: nn.Module = construct(config, "model.generator", latent_dim=config.model.latent_dim, shape=source.shape)
    torch.manual_seed(2 * config.seed + 1)
    critic: nn.Module = construct(config, "model.critic", shape=source.shape)
    rest = {key: config.model[key] for key in config.model if key not in ("generator", "critic")}
    parts = {"generator": generator, "critic": critic, **rest, **construct(config, "loss")}
    module: AdversarialModule = construct(config, "training", **parts)
    module.shape = tuple(source.shape)
    try:
        module.configure_optimizers()
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError("loss.optimizer", f": {error}") from error
    return module


def trained_config(run: Run, purpose: str) -> DictConfig:
    """The config that a run was trained with. Raises ConfigError where there is none, or no generator was trained."""
    if "model" not in run.config:
        raise ConfigError("run", f"={run.folder}: its .hydra/config.yaml is damaged")
    if run.choices.get("training") == "fixed_generator":
        raise ConfigError(
            "run", f"={run.folder}: its generator was fixed (training=fixed_generator); nothing to {purpose}"
        )
    return OmegaConf.create(run.config)


def generator_steps(config: DictConfig) -> int:
    """The budget in generator steps: ``steps``, or as many as show the critic ``images`` real images."""
    if config.images is None:
        return config.steps
    return math.ceil(config.images / (config.loss.n_critic * config.batch_size))


def open_stream(config: DictConfig, source: Source, n_critic: int, device: torch.device) -> BatchStream:
    """Read the data, or get ready to draw them."""
    options: dict[str, Any] = {
        "device": device,
        "batch_size": config.batch_size,
        "n_critic": n_critic,
        "steps": generator_steps(config),
        "seed": config.seed,
    }
    if size(source) is None:
        return EndlessStream(source, **options)
    with objections(config, "dataset"):
        samples, labels = read_once(source, OmegaConf.to_yaml(config.dataset, resolve=True))
    kept, held_out = hold_out(len(samples), config.get("hold_out", 0))
    with objections(config, ""):  # broken files may have left fewer samples than a batch
        return BatchStream(
            samples[kept] if len(held_out) else samples,
            source=source,
            labels=labels if labels is None else labels[kept],
            held_out=samples[held_out],
            flip=getattr(source, "flip", False),
            **options,
        )


#: The samples and labels that were read last, by the config of their data set.
LAST_READ: dict[str, tuple[Tensor, Tensor | None]] = {}


def read_once(source: Source, described: str) -> tuple[Tensor, Tensor | None]:
    """All samples of a source, and their labels; jobs of a sweep that ask for the same in one process share them."""
    if described not in LAST_READ:
        LAST_READ.clear()  # before the next are read: never two at a time
        LAST_READ[described] = source.load(), source.labels()
    return LAST_READ[described]


def hold_out(n: int, held_out: int) -> tuple[Tensor, Tensor]:
    """Which of n samples are trained on, and which are not: row numbers, always the same ones."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return order[held_out:].sort().values, order[:held_out].sort().values
