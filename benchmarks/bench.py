"""``make bench``: textbook loop, bare loop and wganlab side by side, and how close they come to the machine's limit.

The programs take turns; ratios are taken within a turn and their median is shown, so that a machine that others use
too slows them alike. Writes results/NAME.md and NAME.json.
"""

import argparse
import csv
import json
import math
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.loops import bare, textbook
from benchmarks.workloads import LOSSES, WORKLOADS, Workload, write_images
from wganlab.accelerator import fastest_exact_matmul
from wganlab.train import commit

RESULTS = Path(__file__).parent / "results"
PROGRAMS = ("textbook", "bare", "wganlab", "bare compiled", "wganlab compiled", "wganlab bf16")


def rate(loop: Iterator[int], seconds: float) -> float:
    """Images per second of a loop over at least so many seconds and two generator steps."""
    images, steps, started = 0, 0, time.perf_counter()
    while steps < 2 or time.perf_counter() - started < seconds:
        images += next(loop)
        steps += 1
    return images / (time.perf_counter() - started)


def wganlab_rate(workload: Workload, loss: str, data: Path, per_step: float, seconds: float, *more: str) -> float:
    """Images per second of ``wganlab train``, everything on at its defaults, from its first row to its last.

    A fast workload makes 500 steps or a multiple, so that every evaluation, picture and checkpoint counts. A slow one
    makes a few, with denser rows, and what happens only every 500 steps is left out: it is below a thousandth there;
    so are the first steps, beside which the first pictures are encoded and W&B starts.
    """
    if workload.slow:
        budget = ["steps=8", "log_every=1", "callbacks.diagnostics.every=20"]
    else:
        budget = [f"steps={500 * max(1, round(seconds / per_step / 500))}"]
    folder = Path(tempfile.mkdtemp())
    command = [sys.executable, "-m", "wganlab", "train", *workload.arguments(loss, data), *budget, *more]
    try:
        subprocess.run([*command, f"hydra.run.dir={folder}/run"], check=True, stdout=subprocess.DEVNULL)
        with open(folder / "run" / "metrics.csv", newline="") as file:
            rows = [{key: float(row[key]) for key in ("images_seen", "seconds")} for row in csv.DictReader(file)]
    finally:
        shutil.rmtree(folder)
    first, last = (rows[2], rows[-2]) if workload.slow else (rows[0], rows[-1])
    return (last["images_seen"] - first["images_seen"]) / (last["seconds"] - first["seconds"])


def measure(workload: Workload, loss: str, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Rates of all programs in turns, until the ratios hold still."""
    config = workload.config(loss, data)
    loops = {"textbook": textbook(config, data), "bare": bare(config)}
    warm_up = {}
    compiled = options.compile and not workload.slow
    if compiled:
        loops["bare compiled"] = bare(config, compiled=True)
    for name, loop in loops.items():
        started = time.perf_counter()
        next(loop)
        warm_up[name] = time.perf_counter() - started
    with Flops() as counter:
        images = next(loops["bare"])
    rates: dict[str, list[float]] = {}
    while True:
        taken = {name: rate(loop, options.seconds) for name, loop in loops.items()}
        per_step = images / taken["bare"]
        common = (workload, loss, data, per_step, 2 * options.seconds)
        taken["wganlab"] = wganlab_rate(*common, "compile=off")
        if workload.slow:
            taken["wganlab bf16"] = wganlab_rate(*common, "compile=off", "precision=bf16")
        if compiled:
            taken["wganlab compiled"] = wganlab_rate(*common, "compile=on")
        for name, loop in loops.items():  # before and after: the speed of a shared machine drifts
            taken[name] = (taken[name] + rate(loop, options.seconds)) / 2
        for name, value in taken.items():
            rates.setdefault(name, []).append(value)
        turns = len(rates["bare"])
        still = all(spread(ratios(rates, "wganlab", other)) < options.spread for other in ("textbook", "bare"))
        if turns >= options.turns and (still or turns >= 2 * options.turns):
            break
    row = {
        "workload": workload.name,
        "loss": loss,
        "rates": rates,
        "gflop_per_image": counter.total / images / 1e9,
    }
    if compiled:
        row["compile_seconds"] = warm_up["bare compiled"]
    print(line(row), flush=True)
    return row


class Flops(TorchDispatchMode):
    """Counts floating-point operations by torch's table, which its own counter cannot do through a penalty."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def ratios(rates: dict[str, list[float]], one: str, other: str) -> list[float]:
    """one / other, turn by turn."""
    return [a / b for a, b in zip(rates.get(one, []), rates.get(other, []), strict=False)]


def spread(values: list[float]) -> float:
    """Median absolute deviation from the median, relative to it."""
    middle = statistics.median(values)
    return statistics.median(abs(value - middle) for value in values) / middle


def best_rate(work: float, function: Any, seconds: float = 1.0) -> float:
    """GFLOP/s in the best of many calls."""
    function()
    best, begin = math.inf, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        started = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - started)
    return work / best / 1e9


def roofline() -> dict[str, float]:
    """What this machine reaches on large products and on a convolution of S1, in fp32 GFLOP/s, at its best."""
    torch.set_float32_matmul_precision(fastest_exact_matmul())
    left, right = torch.randn(2, 1024, 1024)
    layer = nn.Conv2d(64, 128, 5, stride=2, padding=2).to(memory_format=torch.channels_last)
    images = torch.randn(128, 64, 28, 28).to(memory_format=torch.channels_last)
    with torch.no_grad():
        return {
            "matmul": best_rate(2 * 1024**3, lambda: left @ right),
            "convolution": best_rate(2 * 128 * 128 * 14 * 14 * 64 * 25, lambda: layer(images)),
        }


def line(row: dict[str, Any], roof: dict[str, float] | None = None) -> str:
    """A row of the table."""
    rates = row["rates"]
    shown = [f"{statistics.median(rates[name]):,.0f}" if name in rates else "" for name in PROGRAMS]
    pairs = (
        ("wganlab", "textbook"),
        ("wganlab compiled", "textbook"),
        ("wganlab bf16", "textbook"),
        ("wganlab", "bare"),
        ("wganlab compiled", "bare compiled"),
    )
    compared = []
    for one, other in pairs:
        values = ratios(rates, one, other)
        compared.append(
            f"{statistics.median(values):.2f} ± {spread(values) * statistics.median(values):.2f}" if values else ""
        )
    cells = [row["workload"], row["loss"], *shown, *compared]
    if roof:
        reached = statistics.median(rates["bare"]) * row["gflop_per_image"]
        peak = roof["convolution" if WORKLOADS[row["workload"]].slow else "matmul"]
        cells += [f"{row['gflop_per_image'] * 1e3:.1f}", f"{reached:.0f}", f"{reached / peak:.0%}"]
    return "| " + " | ".join(cells) + " |"


def table(found: dict[str, Any]) -> str:
    """All that was found, as Markdown."""
    head = [
        "workload", "loss", *PROGRAMS, "wganlab / textbook", "compiled / textbook",
        "bf16 / textbook", "wganlab / bare", "compiled / bare compiled", "MFLOP per image", "bare GFLOP/s",
        "of the roof",
    ]  # fmt: skip
    machine, roof = found["machine"], found["roofline"]
    made = dict.fromkeys(f"`{row['command']}` at {row['commit']}" for row in found["rows"])
    return "\n".join(
        [
            f"Real images per second; made by {', '.join(made)}.",
            f"{machine}.",
            f"Roof: {roof['matmul']:.0f} GFLOP/s in matrix products, {roof['convolution']:.0f} in convolutions.",
            "Ratios are medians over turns, ± their median absolute deviation.",
            "",
            "| " + " | ".join(head) + " |",
            "|---|---|" + "---:|" * (len(head) - 2),
            *(line(row, roof) for row in found["rows"]),
            "",
        ]
    )


def machine() -> str:
    """What everything ran on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            text.partition(":")[2].strip() for text in info.read_text().splitlines() if text.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


def other_rows(results: Path, cells: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """What was measured before on this machine, of other workloads and losses."""
    before = json.loads(results.read_text()) if results.exists() else {}
    rows = before["rows"] if before.get("machine") == machine() else []
    return [row for row in rows if (row["workload"], row["loss"]) not in cells]


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--turns", type=int, default=3, help="at least; twice as many while ratios vary")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each loop in a turn; wganlab takes twice that")
    parser.add_argument("--spread", type=float, default=0.05, help="of the ratios, below which turns end")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave out the compiled loops")
    parser.add_argument("--name", default="cpu", help="of the results")
    options = parser.parse_args()
    cells = [(name, loss) for name in options.workloads for loss in options.losses]
    command = f"make bench ARGS='{' '.join(sys.argv[1:])}'" if sys.argv[1:] else "make bench"
    found = {"machine": machine(), "roofline": roofline(), "rows": other_rows(RESULTS / f"{options.name}.json", cells)}
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        for name, loss in cells:
            row = measure(WORKLOADS[name], loss, Path(folder), options)
            found["rows"].append(row | {"command": command, "commit": commit() or "no commit"})
            found["rows"].sort(key=lambda row: (list(WORKLOADS).index(row["workload"]), LOSSES.index(row["loss"])))
            (RESULTS / f"{options.name}.json").write_text(json.dumps(found, indent=1) + "\n")
            (RESULTS / f"{options.name}.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
