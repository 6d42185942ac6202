"""The parts of a run, tried out together before it begins: networks and losses on tensors without storage.

Raises ConfigError where they do not fit. No data are read, but those whose labels a network is to take.
"""

import re

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from wganlab.adversarial import AdversarialModule
from wganlab.build import build_critic, build_module, check_last_batch, has_batch_norm, naming
from wganlab.contracts import Loss
from wganlab.data import Source, size
from wganlab.data.reading import read_once
from wganlab.data.stream import Batch
from wganlab.regularizers import Regularizer
from wganlab.schema import ConfigError


def check_networks(config: DictConfig, source: Source, devices: int) -> None:
    """Try networks and losses on tensors without storage, of the batch of one device: shapes must fit."""
    n = config.batch_size if config.accelerator.get("sync_batchnorm") else config.batch_size // devices
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        module = build_module(config, source)
        labels = check_labels(module, config, source, n)
        try:
            scores = check_shapes(module, config, source, n, labels)
        except ValueError as error:
            if n == 1 and has_batch_norm(module):
                raise too_small_for_batch_norm(config.batch_size, devices) from error
            raise
        if scores is not None:
            check_losses(module, config, scores)
    if any(type(part).prepare is not Regularizer.prepare for part in module.loss.regularizer.values()):
        with torch.random.fork_rng(devices=[]):
            build_critic(config, source.shape, module.loss)  # what becomes of weights shows on real ones
    check_second_derivatives(config, source, module.loss, n)
    length = size(source)
    if module.numbers_samples and length is None:
        raise ConfigError("training", ": ties latents to the samples of the data set, and this one is endless")
    if length is not None:
        check_last_batch(config, module, length - config.hold_out, devices)


#: How torch says that a gradient cannot be differentiated, with the operation where it names it.
NO_SECOND_DERIVATIVE = re.compile(r"derivative for '?(?:aten::)?(\w+)'? is not implemented|differentiate twice")


def check_second_derivatives(config: DictConfig, source: Source, loss: Loss, n: int) -> None:
    """Try the penalties of a user's critic on up to eight random samples: their gradients must have gradients.

    Raises ConfigError where an operation has none. Whatever else is wrong shows in training, with its traceback.
    """
    penalised = [name for name, part in loss.regularizer.items() if type(part).penalty is not Regularizer.penalty]
    if not penalised or str(config.model.critic._target_).startswith("wganlab."):
        return
    with torch.random.fork_rng(devices=[]):
        try:
            module = build_module(config, source)
            real, fake = torch.randn(2, min(n, 8), *source.shape)
            batch = Batch(real, torch.zeros(len(real), dtype=torch.long))
            for name in penalised:
                module.penalty((name,), batch, fake).backward()  # to all weights: autograd.grad skips what it cannot
        except RuntimeError as error:
            if found := NO_SECOND_DERIVATIVE.search(str(error)):
                operation = found[1] or "an operation marked as once_differentiable"
                fault = f"differentiates the gradient of {config.model.critic._target_}, "
                fault += f"and {operation} has no derivative"
                kernel = "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
                advice = f"call it under {kernel}" if "dot_product" in operation else "choose another operation there"
                allowed = f"{advice}, or a loss/regularizer without a penalty"
                raise ConfigError(f"loss.regularizer.{name}", f": {fault}; {allowed}") from error
        except Exception:
            return


def check_labels(module: AdversarialModule, config: DictConfig, source: Source, n: int) -> Tensor | None:
    """Labels without storage for networks that take them, else None.

    Raises ConfigError for data that have none, or more classes than the networks, and for losses that the networks
    cannot have.
    """
    classifies, classified = hasattr(module.critic, "scores_and_logits"), module.loss.classification is not None
    if classified and not (classifies and module.conditional["generator"]):
        lacks = "the critic of this model has no classifier" if not classifies else "its generator takes no labels"
        raise ConfigError("loss.classification", f": {lacks}; allowed are model=acgan_mlp, acgan_dcgan")
    if classifies and not classified:
        trains = "+loss/classification=auxiliary does, beside any loss"
        raise ConfigError("model.critic", f": has a classifier, which this loss does not train; {trains}")
    if not module.labelled:
        return None
    with torch.device("cpu"):
        if hasattr(source, "draw"):
            labels = source.draw(1024, torch.Generator().manual_seed(0))[1]
        else:
            with naming(config, "dataset"):
                labels = read_once(source, OmegaConf.to_yaml(config.dataset, resolve=True)).labels
    if labels is None:
        raise ConfigError("model", ": its networks take labels, and the data set has none; choose another of the two")
    if (smallest := int(labels.min())) < 0:
        raise ConfigError("model", f": its networks take labels from 0 on, and the data set has {smallest}")
    built_for = config.model.get("n_classes")
    if built_for is not None and (largest := int(labels.max())) >= built_for:
        allowed = f"the classes of this data set go up to {largest}; must be at least {largest + 1}"
        raise ConfigError("model.n_classes", f"={built_for}: {allowed}")
    return torch.zeros(n, dtype=torch.long, device="meta")


def check_shapes(
    module: AdversarialModule, config: DictConfig, source: Source, n: int, labels: Tensor | None
) -> Tensor | None:
    """Scores of the critic at n samples; None for networks that look at values, which these tensors lack."""
    try:
        with naming(config, "model.generator"):
            fake = module.fake(module.latents(n).to("meta"), labels)
        if fake.shape[1:] != tuple(source.shape):
            found, wanted = ("x".join(map(str, shape)) for shape in (fake.shape[1:], source.shape))
            raise ConfigError("model.generator", f": makes samples of {found}, the data set has {wanted}")
        with naming(config, "model.critic"):
            scores = module.scorer(labels)(fake)
    except Exception as error:
        if needs_values(error):
            return None
        raise
    if scores.shape != (n,):
        fault = f": must give scores of shape ({n},), one for each of {n} samples, not {tuple(scores.shape)}"
        squeeze = "; .squeeze(1) makes them so" if tuple(scores.shape) == (n, 1) else ""
        raise ConfigError("model.critic", fault + squeeze)
    return scores


def too_small_for_batch_norm(batch_size: int, devices: int) -> ConfigError:
    """Batch norm takes its statistics over the images of one device, unless it is synchronised."""
    if devices == 1:
        return ConfigError("batch_size", f"={batch_size}: batch norm needs two images; must be at least 2")
    message = f"leaves one image to each of the {devices} devices, and batch norm needs two; "
    allowed = f"must be at least {2 * devices}, or accelerator.sync_batchnorm=true"
    return ConfigError("batch_size", f"={batch_size}: {message}{allowed}")


def needs_values(error: Exception) -> bool:
    """Whether code has failed only because a tensor without storage has no values to look at."""
    return isinstance(error, NotImplementedError) or "meta tensor" in str(error)


def check_losses(module: AdversarialModule, config: DictConfig, scores: Tensor) -> None:
    """The objective must keep its contract, and give scalars."""
    objective = module.loss.objective
    for name in ("critic_loss", "generator_loss"):
        if not callable(getattr(objective, name, None)):
            raise ConfigError("loss.objective", f": has no method {name}")
    if module.loss.feature_matching and not hasattr(module.critic, "features"):
        raise ConfigError("loss.feature_matching", ": the critic of this model has no features")
    of_generator = (scores, scores) if getattr(objective, "relativistic", False) else (scores,)
    try:
        with naming(config, "loss.objective"):
            losses = objective.critic_loss(scores, scores), objective.generator_loss(*of_generator)
    except Exception as error:
        if needs_values(error):
            return
        raise
    if any(not isinstance(loss, Tensor) or loss.dim() for loss in losses):
        raise ConfigError("loss.objective", ": must give scalar tensors")
