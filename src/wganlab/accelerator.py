"""How and where a run is computed: Lightning's Trainer from the keys of conf/accelerator/."""

import contextlib
import ctypes
import functools
import logging
import math
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.profilers import AdvancedProfiler, SimpleProfiler

from wganlab import parallel
from wganlab.callbacks import is_lightnings
from wganlab.schema import InvalidValueError, extends

# Lightning sets this when it is imported, so that a process may fork after it has looked for GPUs. Where there is none,
# every optimizer step of torch then looks for NVIDIA's library anew, which takes longer than a small step itself.
if not torch.cuda.is_available():
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)

#: Flags of Lightning's Trainer that a run cannot take, and why; all others that are not ours pass through.
REFUSED = {
    **dict.fromkeys(
        ("gradient_clip_val", "gradient_clip_algorithm"),
        "Lightning clips no gradients under manual optimization; +loss.optimizer.clip_norm does",
    ),
    "accumulate_grad_batches": "Lightning accumulates none under manual optimization; raise batch_size",
    **dict.fromkeys(("max_epochs", "min_epochs", "min_steps", "limit_train_batches"), "the budget is steps, or images"),
    **dict.fromkeys(("fast_dev_run", "overfit_batches", "barebones"), "it would change the run; give steps=3"),
    **dict.fromkeys(
        ("val_check_interval", "check_val_every_n_epoch", "limit_val_batches", "num_sanity_val_steps"),
        "the generator is scored by callbacks.evaluation",
    ),
    **dict.fromkeys(("limit_test_batches", "limit_predict_batches", "inference_mode"), "training takes no such loop"),
    **dict.fromkeys(("strategy", "num_nodes", "plugins", "use_distributed_sampler"), "torchrun does it; see devices"),
    **dict.fromkeys(("default_root_dir", "log_every_n_steps"), "hydra.run.dir and log_every say it"),
    **dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), "callbacks do it"),
    "reload_dataloaders_every_n_epochs": "the stream of images is the run's own; see reshuffle",
}

#: Lightning's profilers by the words for them.
PROFILERS: dict[Any, Any] = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}
Matmul = Literal["auto", "highest", "high", "medium"]
Precision = Literal["32-true", "16-mixed", "bf16-mixed", "bf16", "64-true"]


@extends(Trainer)
def build_trainer(
    *,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    devices: PositiveInt = 1,
    precision: Precision = "32-true",
    sync_batchnorm: bool = False,
    matmul_precision: Matmul = "auto",
    deterministic: bool = False,
    max_steps: int = -1,
    folder: str = ".",
    callbacks: Sequence[Callback] = (),
    logger: Any = False,
    **flags: Any,
) -> Trainer:
    """A Trainer that stops after ``max_steps`` generator steps and leaves progress and checkpoints to callbacks.

    Several ``devices`` share every batch: each has a process of its own (:mod:`wganlab.torchrun`) with a Trainer for it
    alone. ``sync_batchnorm`` takes the statistics of batch norm over the whole batch, not over the rows of one device.

    ``matmul_precision`` is torch's, process-wide. "auto" is "high" on CUDA (TF32) and on a CPU "medium", which
    hands matrix products to oneDNN, where a probe shows that this keeps fp32 accuracy and is faster, else "highest".
    ``deterministic`` makes torch refuse kernels whose results vary from run to run; only GPUs have such.
    These settings and malloc's limits are the process', and are made here only. Further ``flags`` are Lightning's;
    what a ``profiler`` finds is written to fit-profile.txt. Raises ValueError when the machine has no such accelerator,
    and for flags that are REFUSED.
    """
    quiet_lightning()
    check_machine(accelerator, precision, devices)
    check_flags(flags)
    if flags.get("profiler") in PROFILERS:
        flags["profiler"] = PROFILERS[flags["profiler"]](dirpath=folder, filename="profile")
    trainer = Trainer(
        accelerator=accelerator,
        devices=[parallel.local_rank()] if parallel.world_size() > 1 and uses_cuda(accelerator) else 1,
        plugins=[LightningEnvironment()],  # it would look for torchrun and Slurm, which are not for it to serve
        precision="bf16-mixed" if precision == "bf16" else precision,
        # said only where it changes something: to say it, torch imports its compiler
        deterministic=None if deterministic == torch.are_deterministic_algorithms_enabled() else deterministic,
        max_steps=max_steps,
        max_epochs=-1,
        default_root_dir=folder,
        callbacks=list(callbacks),
        logger=logger,
        log_every_n_steps=1,  # the history decides what is logged; this silences advice on it
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        # an evaluation is what Lightning calls a validation: callbacks wait for it, not for the end of an epoch
        check_val_every_n_epoch=None,
        val_check_interval=1,
        **flags,
    )
    # a stop that one of Lightning's asks for is seen by ours in the same step
    trainer.callbacks.sort(key=lambda one: (isinstance(one, Checkpoint), not is_lightnings(one)))  # type: ignore[attr-defined]
    set_matmul_precision(matmul_precision, trainer.strategy.root_device)
    keep_freed_memory()
    return trainer


def set_matmul_precision(precision: Matmul, device: torch.device) -> None:
    """torch's precision of products, process-wide; :func:`build_trainer` says what "auto" is."""
    if precision == "auto":
        precision = "high" if device.type == "cuda" else fastest_exact_matmul()
    torch.set_float32_matmul_precision(precision)


def check_flags(flags: Mapping[str, Any]) -> None:
    """Raises InvalidValueError for a flag of Lightning's Trainer that a run cannot take."""
    for name, value in flags.items():
        if name in REFUSED:
            raise InvalidValueError(name, value, f"is not for this Trainer: {REFUSED[name]}")


def check_machine(accelerator: str, precision: str, devices: int) -> None:
    """Raises ValueError when this machine cannot compute so. Changes nothing."""
    if accelerator not in available():
        raise InvalidValueError(
            "accelerator", accelerator, f"this machine has none; allowed here: {', '.join(available())}"
        )
    if precision == "16-mixed" and (accelerator == "cpu" or "gpu" not in available()):
        raise InvalidValueError("precision", precision, "needs a GPU; allowed here: 32-true, bf16-mixed, 64-true")
    gpus = 0 if accelerator == "cpu" or "gpu" not in available() else max(1, torch.cuda.device_count())
    if gpus and devices > gpus:
        raise InvalidValueError("devices", devices, f"this machine has {gpus} GPUs; allowed are at most so many")


def uses_cuda(accelerator: str) -> bool:
    """Whether a run computes on NVIDIA's GPUs."""
    return accelerator != "cpu" and torch.cuda.is_available()


def available() -> list[str]:
    """Names of the accelerators that this machine has."""
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    return ["auto", "cpu", *(["gpu"] if gpu else [])]


@functools.cache
def fastest_exact_matmul() -> Literal["highest", "medium"]:
    """ "medium" where it keeps fp32 accuracy on this CPU (it may mean bf16 on CPUs with matrix units) and is faster.

    By a fifth at least, in the best of many tries: between machines it is 0.8 to 2.3 times as fast, and a choice that
    differed from run to run would change rounding.
    """
    random = torch.Generator().manual_seed(0)
    left, right = torch.randn(64, 784, generator=random), torch.randn(784, 512, generator=random)
    exact = left.double() @ right.double()
    before = torch.get_float32_matmul_precision()
    best = {"highest": math.inf, "medium": math.inf}
    for _ in range(20):
        for precision in best:
            torch.set_float32_matmul_precision(precision)
            started = time.perf_counter()
            product = left @ right
            best[precision] = min(best[precision], time.perf_counter() - started)
    error = (product.double() - exact).norm() / exact.norm()
    torch.set_float32_matmul_precision(before)
    return "medium" if error < 1e-5 and best["medium"] * 1.2 < best["highest"] else "highest"


def keep_freed_memory(keep: bool = True) -> None:
    """Have malloc keep what is freed for the next tensor of that size, where it is GNU's.

    It would give large blocks back to the system, which clears them page by page when the next step asks again
    (``python -m benchmarks.tricks`` measures what that costs). Without ``keep`` its limits are those that it arrives
    at by itself.
    """
    m_trim_threshold, m_mmap_threshold, most = -1, -3, 2**25  # of malloc.h; older versions accept no more than that
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        if not (keep and mallopt(m_mmap_threshold, 2**30)):
            mallopt(m_mmap_threshold, most)
        mallopt(m_trim_threshold, 2**31 - 1 if keep else 2 * most)


def quiet_lightning() -> None:
    """Silence Lightning's banners and its advice on loaders and loops that wganlab does not use."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*GPU available but not used.*",
        ".*isinstance.treespec.*",
    ):
        warnings.filterwarnings("ignore", message)
