"""Compilation: the gradients of both networks as fused kernels, where that is right and pays."""

import functools
import logging
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor, nn

from wganlab import parallel
from wganlab.adversarial import AdversarialModule, Gradients
from wganlab.data.stream import Batch, BatchStream
from wganlab.window import Record

Compile = Literal["auto", "on", "off"]
#: "auto" tries only where a run makes as many critic steps: on two cores, warming up is repaid after some 10,000 of the
#: MLPs' (`compile_seconds` and rates in benchmarks/results/cpu.json).
AUTO_CRITIC_STEPS = 20_000
#: "auto" keeps what is faster by at least this factor, measured side by side.
GAIN = 1.03
#: Largest relative difference between a compiled gradient and the plain one. Rounding alone stays below 1e-6 in fp32,
#: but may carry an activation across the kink of a ReLU, which was seen to change a gradient by 1e-3.
TOLERANCE = 2e-2


class Compilation(Callback):
    """Has torch.compile fuse the gradients of critic and generator, penalty included.

    "on" wherever it can be done, "auto" also only in long runs and where it is found to be faster, "off" never. What is
    compiled must give the plain gradients, on a real batch, or is put aside; then, and where torch cannot compile, one
    line says so and training is plain. A continued run keeps to what it began with.
    """

    def __init__(self, wanted: Compile) -> None:
        self.wanted = wanted
        self.decided: bool | None = None

    def state_dict(self) -> dict[str, bool | None]:
        return {"compiled": self.decided}

    def load_state_dict(self, state_dict: dict[str, bool | None]) -> None:
        self.decided = state_dict["compiled"]

    def on_train_start(self, trainer: Trainer, module: AdversarialModule) -> None:  # type: ignore[override]
        enough = trainer.max_steps * module.loss.n_critic >= AUTO_CRITIC_STEPS
        asked = self.wanted == "on" or (self.wanted == "auto" and enough)
        if not (asked if self.decided is None else self.decided):
            self.decided = False
            return
        must_pay = self.wanted == "auto" and self.decided is None
        n = trainer.train_dataloader.batch_size // parallel.world_size()  # type: ignore[union-attr]
        real = fixed_batch(module, trainer.train_dataloader, n)  # type: ignore[arg-type]
        started = time.perf_counter()
        tell = print if parallel.is_rank_zero() else lambda *_, **__: None
        tell("compiling the gradients of both networks (compile=off trains without)", flush=True)
        compiled, gain = None, None
        try:
            with preserving_state(module), trainer.precision_plugin.forward_context():
                compiled = compile_gradients(module, real)
                gain = speed_up(module, compiled, real) if must_pay else None
        except Exception as error:  # torch.compile raises whatever its parts raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            tell(f"note: not compiled, training goes on plainly ({reason[:160]})", flush=True)
        seconds = time.perf_counter() - started
        self.decided = parallel.broadcast_flag(compiled is not None and (gain is None or gain > GAIN), module.device)
        if compiled is None:
            return
        measured = "" if gain is None else f", a critic step is {gain:.2f} times as fast"
        tell(f"compiled in {seconds:.0f} s{measured}{'' if self.decided else ': not used'}", flush=True)
        if self.decided:
            module.compiled = compiled


#: A network and the regularizers whose penalties are in its objective.
Key = tuple[str, tuple[str, ...]]
GradientsOf = Callable[..., tuple[Gradients, Record]]


def fixed_batch(module: AdversarialModule, stream: BatchStream, n: int) -> Batch:
    """n real images of the data, always the same, with labels for networks that take them."""
    images = module.scaled(stream.fixed_samples(n))
    labels = stream.fixed_labels(n) if module.labelled else None
    return Batch(images, labels, drawn=labels)


def critic_objectives(module: AdversarialModule) -> list[Key]:
    """The critic's objectives in one cycle of its regularizers, the most frequent first."""
    cycle = math.lcm(*(part.every for part in module.loss.regularizer.values()))
    return [("critic", active) for active, _ in Counter(map(module.loss.active, range(cycle))).most_common()]


def compile_gradients(module: AdversarialModule, real: Batch) -> dict[Key, GradientsOf]:
    """Both gradients, compiled and compared with the plain ones on one batch. Raises what torch raises, and
    ValueError when a gradient differs."""
    if not module.compilable:
        raise ValueError(f"{type(module).__name__} takes its gradients in a way of its own")
    if any(isinstance(part, parallel.SyncedBatchNorm) for part in module.modules()):
        raise ValueError("batch norm waits for other processes")
    if module.scaler is not None:
        raise ValueError("fp16 losses are scaled by a factor that changes")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # misses CUDA where there is none
    torch.compiler.reset()  # gradients of earlier runs of this process count against a limit
    torch._dynamo.config.trace_autograd_ops = True  # a penalty differentiates inside what is differentiated
    compiled: dict[Key, GradientsOf] = {}
    for name, active in [*critic_objectives(module), ("generator", ())]:
        if not module.weights[name]:
            continue
        plain = functools.partial(module.gradients, name, active)
        # the random numbers of the plain path, so that compiling changes nothing but rounding
        fused = torch.compile(plain, fullgraph=True, dynamic=False, options={"fallback_random": True})
        latents = module.critic_latents(real)
        expected, got = (call(function, module, real, latents) for function in (plain, fused))
        check_equal(name, expected, got)
        compiled[name, active] = fused
    return compiled


def call(function: GradientsOf, module: AdversarialModule, real: Batch, latents: Tensor) -> list[Tensor]:
    """The gradients for one and the same stream of random numbers and the same running statistics."""
    with preserving_state(module):
        torch.manual_seed(0)
        return [gradient for gradient in function(real, latents)[0] if gradient is not None]


def check_equal(name: str, expected: list[Tensor], got: list[Tensor]) -> None:
    """Raises ValueError when compiled gradients are not the plain ones up to rounding."""
    scale, error = (
        nn.utils.get_total_norm(tensors).item()
        for tensors in (expected, [one - other for one, other in zip(expected, got, strict=True)])
    )
    if not error <= scale * TOLERANCE:
        raise ValueError(f"the compiled gradient of the {name} differs by {error:.2g} of {scale:.2g}")


def speed_up(module: AdversarialModule, compiled: dict[Key, GradientsOf], real: Batch) -> float:
    """How many times as fast the critic's most frequent compiled gradient is: medians of calls side by side, for at
    most ten seconds."""
    latents, key = module.critic_latents(real), critic_objectives(module)[0]
    functions: tuple[GradientsOf, ...] = (functools.partial(module.gradients, *key), compiled[key])
    times: tuple[list[float], list[float]] = ([], [])
    begin = time.perf_counter()
    while len(times[0]) < 3 or (len(times[0]) < 30 and time.perf_counter() - begin < 10):
        for function, took in zip(functions, times, strict=True):
            started = time.perf_counter()
            function(real, latents)
            if latents.is_cuda:
                torch.cuda.synchronize()
            took.append(time.perf_counter() - started)
    return statistics.median(times[0]) / statistics.median(times[1])


@contextmanager
def preserving_state(module: AdversarialModule) -> Iterator[None]:
    """Random numbers and buffers afterwards are what they were."""
    buffers = [buffer.clone() for buffer in module.buffers()]
    devices: list[Any] = [module.device] if module.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for buffer, before in zip(module.buffers(), buffers, strict=True):
            buffer.copy_(before)
