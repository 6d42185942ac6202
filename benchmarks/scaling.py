"""``make bench-scaling``: how speed and memory change with batch size, image size, data set size and parallel jobs;
what a start, a further job of a sweep, and scores cost.

All by ``wganlab train loss=wgan_gp``. Writes results/scaling.md and scaling.svg.
"""

import functools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench import RESULTS, machine
from wganlab.build import build_module, construct, open_stream
from wganlab.metrics.features import frechet_distance
from wganlab.training import commit, fit
from wganlab.validate import training_config


class Noise:
    """n grey images of random bytes: speed and memory do not depend on what they show."""

    def __init__(self, *, n: int, size: int = 28) -> None:
        self.n, self.shape = n, (1, size, size)

    def __len__(self) -> int:
        return self.n

    def load(self) -> Tensor:
        return torch.randint(256, (self.n, *self.shape), dtype=torch.uint8)

    def labels(self) -> None:
        return None


def train(steps: int, *overrides: str) -> dict[str, Any]:
    """The summary of ``wganlab train`` without observers."""
    arguments = ["callbacks=none", "logger=csv", "log_every=2", f"steps={steps}", *overrides]
    with tempfile.TemporaryDirectory() as folder:
        return fit(training_config(arguments), Path(folder))


def curve(of: Callable[[int], Sequence[str]], values: Sequence[int], *, seconds: float = 3.0) -> dict[int, float]:
    """Images per second with the overrides of each value: medians of three runs of so many seconds, in turns."""
    steps = {}
    for value in values:
        short = train(6, *of(value))
        steps[value] = max(6, round(6 * seconds / short["seconds"]))
    rates: dict[int, list[float]] = {value: [] for value in values}
    for _ in range(3):
        for value in values:
            rates[value].append(train(steps[value], *of(value))["images_per_second"])
    return {value: statistics.median(measured) for value, measured in rates.items()}


def noise(n: int) -> list[str]:
    """Overrides for a data set of n images of noise."""
    return ["dataset._target_=benchmarks.scaling.Noise", f"+dataset.n={n}", "dataset.size=28"]


def peak_memory(n: int) -> float:
    """MiB that a process which trains on n images holds at most."""
    arguments = json.dumps([*noise(n), "callbacks=none", "logger=csv", "steps=5"])
    code = f"from benchmarks.scaling import report_peak; report_peak({arguments!r})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def report_peak(arguments: str) -> None:
    """Train, and print the peak of resident memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        fit(training_config(json.loads(arguments)), Path(folder))
    # not getrusage: a new process inherits the peak of the one that started it
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(int(peak[1]) / 1024 if peak else "nan")


def seconds_of(*command: str) -> float:
    """Wall time of a Python command."""
    return timed(lambda: subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL))


def start_up() -> tuple[float, float]:
    """Seconds of ``wganlab train steps=1`` without observers and of ``import torch``: medians of nine, in turns."""
    took: list[tuple[float, float]] = []
    for _ in range(9):
        with tempfile.TemporaryDirectory() as folder:
            short = ["train", "steps=1", "logger=csv", "callbacks=none", f"hydra.run.dir={folder}/run"]
            took.append((seconds_of("-m", "wganlab", *short), seconds_of("-c", "import torch")))
    train, imported = map(statistics.median, zip(*took, strict=True))
    return train, imported


def evaluation() -> tuple[float, float, float]:
    """What ``extractor=classifier`` costs on digits: its share of a first run of 2,000 steps of the S2 MLP, for which
    the classifier is trained, and of any later one; and the seconds of an FID of 10,000 images."""
    with tempfile.TemporaryDirectory() as cache:
        config = training_config(["dataset=digits", "extractor=classifier", f"extractor.cache={cache}"])
        source = construct(config, "dataset")
        module, stream = build_module(config, source), open_stream(config, source, torch.device("cpu"))
        scheduled = construct(config, "callbacks")["evaluation"]
        classifier, score = scheduled.protocol.extractor, functools.partial(
            scheduled.protocol.scores, module.generate_parts, module.shown_labels
        )  # fmt: skip
        learning, once = (timed(lambda: scheduled.protocol.prepare(stream)) for _ in range(2))
        scores = 2000 // scheduled.every * statistics.median(timed(score) for _ in range(5))
        real = classifier.features(module.generate(10_000, seed=1))[0]
        fid = timed(lambda: frechet_distance(real, classifier.features(module.generate(10_000))[0]))
    training = 10 * train(200, "dataset=digits")["seconds"]
    return *(cost / (cost + training) for cost in (learning + scores, once + scores)), fid


def timed(function: Callable[[], Any]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def sweep_seconds(*launcher: str) -> float:
    """Wall time of four runs of 300 steps on digits."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["train", "-m", "dataset=digits", "seed=0,1,2,3", "steps=300", f"hydra.sweep.dir={folder}", *launcher]
        return seconds_of("-m", "wganlab", *command)


def per_job_overhead() -> float:
    """Seconds that each job of a sweep of sixteen spends outside training."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = []
        for n in (1, 17):
            seeds = ",".join(map(str, range(n)))
            command = ["train", "-m", "dataset=digits", f"seed={seeds}", "steps=25", f"hydra.sweep.dir={folder}/{n}"]
            took = seconds_of("-m", "wganlab", *command)
            trained = sum(
                json.loads(path.read_text())["seconds"] for path in Path(folder, str(n)).rglob("summary.json")
            )
            sizes.append(took - trained)
        return (sizes[1] - sizes[0]) / 16


def main() -> None:
    conv = ["model=upsample_dcgan", "batch_size=64", "loss.n_critic=1"]
    curves: dict[str, dict[int, float]] = {
        "batch size, S2 MLP": curve(lambda n: [f"batch_size={n}"], (16, 64, 256, 1024)),
        "image side, S3 pair": curve(lambda n: [*conv, f"dataset.size={n}"], (16, 32, 64)),
        "images in the data set, S2 MLP": curve(noise, (1000, 10_000, 60_000)),
    }
    memory = {n: peak_memory(n) for n in (1000, 60_000, 240_000)}
    per_image = (memory[240_000] - memory[1000]) * 2**20 / 239_000
    (start, imported), (first, later, fid) = start_up(), evaluation()
    one, two = sweep_seconds(), sweep_seconds("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    text = [
        f"Made by `make bench-scaling` at {commit()}. {machine()}.",
        "",
        "| images/s against | |",
        "|---|---|",
        *(f"| {name} | {', '.join(f'{n:,}: {v:,.0f}' for n, v in rates.items())} |" for name, rates in curves.items()),
        "",
        f"- peak memory: {', '.join(f'{n:,} images {mib:,.0f} MiB' for n, mib in memory.items())}: "
        f"{per_image / 784:.2f} bytes per pixel beside a constant",
        f"- a sweep of 4 runs x 300 steps: {one:.0f} s one after the other, {two:.0f} s with joblib and two workers",
        f"- `wganlab train steps=1 logger=csv callbacks=none`: {start:.1f} s, {start / imported:.2f} times as long as "
        "`import torch`",
        f"- each further job of a sweep spends {per_job_overhead():.2f} s outside training",
        f"- extractor=classifier: {first:.1%} of the first run of 2,000 steps on digits, which it learns in it, and "
        f"{later:.1%} of others; an FID of 10,000 images of 28x28 takes {fid:.1f} s",
        "",
    ]  # fmt: skip
    (RESULTS / "scaling.md").write_text("\n".join(text))
    print("\n".join(text))
    draw(curves)


def draw(curves: dict[str, dict[int, float]]) -> None:
    """The three curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    axes: Any = figure.subplots(1, len(curves))
    for ax, (name, rates) in zip(axes, curves.items(), strict=True):
        ax.plot(list(rates), list(rates.values()), marker="o")
        ax.set(xscale="log", xlabel=name, ylabel="images/s", ylim=(0, 1.1 * max(rates.values())))
        ax.set_xticks(list(rates), labels=[f"{n:,}" for n in rates])
        ax.minorticks_off()
    figure.savefig(RESULTS / "scaling.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
