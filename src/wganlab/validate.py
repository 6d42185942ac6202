"""What is refused before anything runs: unknown keys, wrong values, and parts that do not fit together.

Nothing here changes the process: no folder is made, no setting of torch is touched. No data are read, but those whose
labels a network is to take.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger

from wganlab import environment
from wganlab.accelerator import Precision, check_flags, check_machine
from wganlab.augmentation import Augmentation
from wganlab.averaging import Averaging
from wganlab.build import construct, naming
from wganlab.callbacks.compilation import Compile
from wganlab.checks import check_call, check_value
from wganlab.config import compose_config, composer, source_key, without_hydra
from wganlab.contracts import Loss, MakeModule, Networks
from wganlab.data import Source, size
from wganlab.data.stream import Reshuffle
from wganlab.dry_run import check_networks
from wganlab.metrics.extractors import Extractor
from wganlab.ranges import ranges_in
from wganlab.runs import Run
from wganlab.schema import (
    ConfigError,
    Factory,
    factory_arguments,
    group_class,
    is_node,
    item_hint,
    locate,
    parameters,
    signature_hints,
)
from wganlab.targets import check_targets, is_kind

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class MakeTrainer(Factory, Protocol):
    """What fills ``accelerator``."""

    def __call__(self, *, max_steps: int, folder: str, callbacks: list[Callback], logger: Any) -> Trainer: ...


class MakeLogger(Factory, Protocol):
    """What fills ``logger``."""

    def __call__(self, *, save_dir: str) -> Logger: ...


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The keys of ``wganlab train`` and what they may be; their values stand in conf/train.yaml."""

    dataset: Source
    model: Networks
    loss: Loss
    training: MakeModule
    accelerator: MakeTrainer
    logger: Mapping[str, MakeLogger | None] | None
    callbacks: Mapping[str, Callback | None]
    extractor: Extractor | None
    averaging: Averaging | None
    augmentation: Augmentation | None
    seed: Seed
    trial: NonNegativeInt | None
    steps: PositiveInt
    images: PositiveInt | None
    batch_size: PositiveInt
    drop_last: bool
    reshuffle: Reshuffle
    hold_out: NonNegativeInt
    log_every: PositiveInt
    precision: Precision
    compile: Compile


def validate(config: DictConfig, *, here: bool = True) -> None:
    """Refuse a composed config that cannot run: raises ConfigError. A bug in a part of the user's keeps its traceback.

    Parameters that the config leaves out are written into it with their constructors' defaults, so that a run's folder
    says all. Unless it is to run ``here``, nothing is asked of this machine.
    """
    complete(config)
    check_optimizers(config)
    source = construct(config, "dataset")
    check_size(config, source)
    with naming(config, "accelerator"):
        check_flags(config.accelerator)
        devices = environment.devices(config.accelerator.get("devices", 1))
    if config.batch_size % devices:
        allowed = f"must be a multiple of the {devices} devices that share it"
        raise ConfigError("batch_size", f"={config.batch_size}: {allowed}")
    if here:
        with naming(config, "accelerator"):
            asked = {"accelerator": "auto", "precision": "32-true", "devices": 1}  # of a trainer without such keys
            check_machine(**{key: config.accelerator.get(key, default) for key, default in asked.items()})
    if config.extractor:
        construct(config, "extractor")  # before the callback that is given it, to name the right key
    for name, node in (config.logger or {}).items() if here else ():
        package = getattr(locate(node._target_), "package", "torch")
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"logger.{name}", f": {package} is not installed; pip install 'wganlab[{name}]'")
    for name in config.callbacks:
        callback = construct(config, f"callbacks.{name}")
        if not (callback is None or is_kind(type(callback), Callback)):
            raise ConfigError(f"callbacks.{name}", ": must be a Lightning callback, or null to switch it off")
    check_networks(config, source, devices)


def training_config(overrides: Sequence[str]) -> DictConfig:
    """conf/train.yaml with overrides, not checked yet; parameters that no YAML shows may be among them."""
    with composer("train", parameters_at=parameters_at) as hydra:
        return without_hydra(hydra.compose(overrides))


def command_settings(command: Callable[..., Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The arguments of a command on a trained run: conf/<its name>.yaml with overrides, checked against its signature.

    Raises ConfigError where one is missing or wrong.
    """
    name = command.__name__
    config = compose_config(
        name,
        overrides,
        parameters_at=lambda config, key: parameters_of_run(config, key) if key else signature_hints(command),
    )
    if OmegaConf.is_missing(config, "run"):
        raise ConfigError("run", f": is missing; give a run folder, as in wganlab {name} run=PATH")
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    for key, hint in signature_hints(command).items():
        check_targets(hint, plain.get(key), key)
    changes = check_call(command, plain, "")
    return plain | {key: value for key, value in changes.items() if key in plain}


def complete(config: DictConfig) -> None:
    """Check all values of a config against the signatures, and write what follows from these into it."""
    try:
        plain: dict[str, Any] = OmegaConf.to_container(without_hydra(config), resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        behind: BaseException | None = error
        while not isinstance(behind, ConfigError | None):  # of a resolver of ours
            behind = behind.__cause__ or behind.__context__
        raise behind or ConfigError("", " ".join(str(error).split())) from error
    raw: dict[str, Any] = OmegaConf.to_container(without_hydra(config), resolve=False)  # type: ignore[assignment]
    try:
        check_targets(RunConfig, plain, "")
        changes = check_call(RunConfig, plain, "")
    except ConfigError as error:
        raise ConfigError(source_key(raw, error.key), error.message) from None
    drawn = {key: OmegaConf.select(config, key) for key in ranges_in(raw)}  # what a run is made with, it keeps
    with open_dict(config):
        for key, value in (drawn | changes).items():
            if is_written(raw, key.rpartition(".")[0]):
                OmegaConf.update(config, source_key(raw, key), value, force_add=True)


def is_written(raw: Any, key: str) -> bool:
    """Whether a node stands in an unresolved config itself, not behind an interpolation."""
    for part in filter(None, key.split(".")):
        raw = raw.get(part) if isinstance(raw, dict) else None
    return isinstance(raw, dict)


def parameters_at(config: DictConfig, key: str) -> dict[str, Any]:
    """Keys that may stand at a node of a config, with their annotations: the parameters of what it constructs.

    There are none where that is unknown.
    """
    target: Any = RunConfig
    hint, node = Any, config
    try:
        for part in filter(None, key.split(".")):
            known = parameters(target) if target else {}
            hint = known[part].hint if part in known else item_hint(hint)
            node = node[part]
            target = locate(node["_target_"]) if "_target_" in node else group_class(hint)
        known = parameters(target) if target else {}
        return {name: one.hint for name, one in known.items() if name not in factory_arguments(hint)}
    except (Exception, SystemExit):  # an import runs whatever code the module holds; the check says what is wrong
        return {}


def parameters_of_run(config: DictConfig, key: str) -> dict[str, Any]:
    """:func:`parameters_at` of the run that the config of a command names."""
    try:
        return parameters_at(OmegaConf.create(Run.open(config.run).config), key)
    except (ConfigError, OmegaConfBaseException):
        return {}


def check_optimizers(config: DictConfig) -> None:
    """In ``loss.optimizer``, what stands beside the two optimizers is there to be shared by them, and is."""
    node: dict[str, Any] = OmegaConf.to_container(config.loss.optimizer, resolve=False)  # type: ignore[assignment]
    shared: set[str] = set()
    for name in ("generator", "critic"):
        if not is_node(node.get(name)):
            raise ConfigError(f"loss.optimizer.{name}", f"={node.get(name)}: must be a node with _target_")
        shared |= {str(value)[4:-1] for value in node[name].values() if str(value).startswith("${..")}
    shared |= node["generator"].keys() & node["critic"].keys()  # both may have been given values of their own
    check_value(PositiveFloat | None, node.get("clip_norm"), "loss.optimizer.clip_norm")
    for key in node.keys() - shared - {"generator", "critic", "clip_norm"}:
        known = sorted(key for key in shared if key[0] != "_" and key in node)
        allowed = ", ".join([*known, "clip_norm", "generator", "critic"])
        raise ConfigError(f"loss.optimizer.{key}", f": unknown key; allowed are {allowed}")
    for key in config.loss.get("schedule") or {}:
        if key not in ("generator", "critic"):
            raise ConfigError(f"loss.schedule.{key}", ": unknown key; allowed are critic, generator")


def check_size(config: DictConfig, source: Source) -> None:
    """A batch must fit into the samples that are trained on."""
    wanted = ("shape", "draw") if getattr(source, "endless", False) else ("shape", "__len__", "load")
    if missing := [name for name in wanted if not hasattr(source, name)]:
        has = "shape, __len__ and load(), or endless, shape and draw()"
        raise ConfigError("dataset", f": a {type(source).__name__} has no {missing[0]}; a data set has {has}")
    with naming(config, "dataset"):
        length, _ = size(source), tuple(source.shape)
    if length is None and config.hold_out:
        raise ConfigError("hold_out", f"={config.hold_out}: the data set is endless: all that it draws is fresh")
    if config.images is not None and not config.drop_last:
        raise ConfigError("images", f"={config.images}: counts whole batches; with drop_last=false give steps")
    if length is not None and config.hold_out >= length:
        raise ConfigError("hold_out", f"={config.hold_out}: must be less than the {length:,} samples of the data set")
    if length is not None and config.batch_size > length - config.hold_out:
        what = "data set" if not config.hold_out else f"data set less hold_out={config.hold_out}"
        allowed = f"must be at most the {length - config.hold_out} samples of the {what}"
        raise ConfigError("batch_size", f"={config.batch_size}: {allowed}")
