"""``make bench``: textbook loop, bare loop and wganlab side by side, and how close they come to the machine's limit.

Writes results/NAME.md and NAME.json.
"""

import argparse
import json
import math
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.loops import bare, textbook
from benchmarks.turns import rate, train_in_turns
from benchmarks.workloads import LOSSES, WORKLOADS, Workload, write_images
from wganlab.accelerator import fastest_exact_matmul
from wganlab.training import commit

RESULTS = Path(__file__).parent / "results"


def measure(workload: Workload, loss: str, data: Path, options: argparse.Namespace, roof: float) -> dict[str, Any]:
    """Rates of all programs, turn by turn; ``roof`` in GFLOP/s is noted beside them."""
    config = workload.config(loss, data)
    loops = {"textbook": textbook(config, data), "bare": bare(config)}
    next(loops["textbook"])
    with Flops() as counter:
        images = next(loops["bare"])
    arguments = [
        *workload.arguments(loss, data),
        budget(workload, options.seconds * rate(loops["bare"], 1.0) / images),
    ]
    row: dict[str, Any] = {
        "workload": workload.name,
        "loss": loss,
        "rates": {"wganlab": train_in_turns([*arguments, "compile=off"], loops)},
        "gflop_per_image": counter.total / images / 1e9,
        "roof": roof,
    }
    if workload.slow:
        del loops["bare"]
        row["rates"]["wganlab bf16"] = train_in_turns([*arguments, "compile=off", "precision=bf16"], loops)
    elif options.compile:
        loops["bare"] = bare(config, compiled=True)
        started = time.perf_counter()
        next(loops["bare"])
        row["compile_seconds"] = time.perf_counter() - started
        row["rates"]["wganlab compiled"] = train_in_turns([*arguments, "compile=on"], loops)
    print(line(row), flush=True)
    return row


def budget(workload: Workload, steps: float) -> str:
    """A budget of about so many steps.

    A fast workload makes 500 steps or a multiple, so that every picture and evaluation counts. A slow one makes a few,
    and what happens every 20 or 500 steps is left out, below a hundredth there.
    """
    return f"steps={max(8, round(steps)) if workload.slow else 500 * max(1, round(steps / 500))}"


class Flops(TorchDispatchMode):
    """Counts floating-point operations by torch's table, which its own counter cannot do through a penalty."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def compared(turns: list[dict[str, float]], other: str, program: str = "wganlab") -> str:
    """program / other: the ratio of mean rates, ± the standard error of the ratio over turns."""
    ratios = [turn[program] / turn[other] for turn in turns]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else math.nan
    return f"{mean(turns, program) / mean(turns, other):.2f} ± {error:.2f}"


def mean(turns: list[dict[str, float]], program: str) -> float:
    """Images per second over all turns, which are equally long."""
    return statistics.mean(turn[program] for turn in turns)


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


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    plain, compiled, bf16 = (row["rates"].get(name, []) for name in ("wganlab", "wganlab compiled", "wganlab bf16"))
    cells = [row["workload"], row["loss"]]
    cells += [f"{mean(plain, program):,.0f}" for program in ("textbook", "bare", "wganlab")]
    cells += [compared(plain, "textbook"), compared(plain, "bare")]
    for turns, others in ((compiled, ("textbook", "bare")), (bf16, ("textbook",))):
        shown = [f"{mean(turns, 'wganlab'):,.0f}", *(compared(turns, other) for other in others)] if turns else []
        cells += shown or [""] * (1 + len(others))
    reached = mean(plain, "bare") * row["gflop_per_image"]
    cells += [f"{row['gflop_per_image'] * 1e3:.1f}", f"{reached:.0f}", f"{reached / row['roof']:.0%}"]
    return "| " + " | ".join(cells) + " |"


def table(found: dict[str, Any]) -> str:
    """All that was found, as Markdown."""
    head = [
        "workload", "loss", "textbook", "bare", "wganlab", "wganlab / textbook", "wganlab / bare",
        "compiled", "compiled / textbook", "compiled / bare compiled", "bf16", "bf16 / textbook",
        "MFLOP per image", "bare GFLOP/s", "of the roof",
    ]  # fmt: skip
    roof = found["roofline"]
    made = dict.fromkeys(f"`{row['command']}` at {row['commit']}" for row in found["rows"])
    return "\n".join(
        [
            f"Real images per second; made by {', '.join(made)}.",
            f"{found['machine']}.",
            f"Roof: {roof['matmul']:.0f} GFLOP/s in matrix products, {roof['convolution']:.0f} in convolutions.",
            "Programs took turns of a second; ratios are of means over all turns, ± the standard error over turns.",
            "",
            "| " + " | ".join(head) + " |",
            "|---|---|" + "---:|" * (len(head) - 2),
            *map(line, found["rows"]),
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
    parser.add_argument("--seconds", type=float, default=30.0, help="of training by wganlab, in each of its runs")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave out the compiled loops")
    parser.add_argument("--name", default="cpu", help="of the results")
    options = parser.parse_args()
    cells = [(name, loss) for name in options.workloads for loss in options.losses]
    command = f"make bench ARGS='{' '.join(sys.argv[1:])}'" if sys.argv[1:] else "make bench"
    rows = other_rows(RESULTS / f"{options.name}.json", cells)
    found: dict[str, Any] = {"machine": machine(), "roofline": roofline(), "rows": rows}
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        for name, loss in cells:
            peak = found["roofline"]["convolution" if WORKLOADS[name].slow else "matmul"]
            row = measure(WORKLOADS[name], loss, Path(folder), options, peak)
            rows.append(row | {"command": command, "commit": commit() or "no commit"})
            rows.sort(key=lambda row: (list(WORKLOADS).index(row["workload"]), LOSSES.index(row["loss"])))
            (RESULTS / f"{options.name}.json").write_text(json.dumps(found, indent=1) + "\n")
            (RESULTS / f"{options.name}.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
