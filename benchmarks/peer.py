"""``make bench-peer ARGS='--peer PATH --data ROOT'``: wganlab beside scripts that no one here wrote, on MNIST.

PATH is a checkout of PyTorch-GAN, whose wgan_gp.py and wgan.py train the same networks in the same batches as
``model=mlp``, and are run unchanged; ROOT holds MNIST/raw. Writes results/peer.md and peer.json, or another name's.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.bench import RESULTS, compared, machine, mean
from benchmarks.turns import train_in_turns
from wganlab.training import commit

#: Our loss, and their script of the same method.
SCRIPTS = {"wgan_gp": "wgan_gp", "wgan_clip": "wgan"}
#: Real images in five critic steps, after which a script prints a line.
IMAGES = 5 * 64
VARIANTS = {
    "plain": ["compile=off"],
    "compiled": ["compile=on"],
    "bf16": ["compile=off", "precision=bf16"],
    # bf16 in products alone, where the processor has units for it; all else, sums included, in fp32
    "medium": ["compile=off", "+accelerator.matmul_precision=medium"],
    "medium_compiled": ["compile=on", "+accelerator.matmul_precision=medium"],
}


@contextmanager
def running(script: Path, data: Path) -> Iterator[Iterator[int]]:
    """The images of each generator step of a script, which stands still between them."""
    with tempfile.TemporaryDirectory() as folder:
        cwd = Path(folder, "implementations", "peer")
        cwd.mkdir(parents=True)
        (Path(folder) / "data" / "mnist").mkdir(parents=True)
        (Path(folder) / "data" / "mnist" / "MNIST").symlink_to((data / "MNIST").absolute())
        with subprocess.Popen(
            [sys.executable, "-u", script.absolute()], cwd=cwd, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                steps = one_by_one(process)
                for _ in range(20):
                    next(steps)  # its first steps are its slowest
                yield steps
            finally:
                process.kill()


def one_by_one(process: "subprocess.Popen[str]") -> Iterator[int]:
    """Let a process go on until it has printed the line of its next generator step. Raises RuntimeError at its end."""
    assert process.stdout
    while True:
        process.send_signal(signal.SIGCONT)
        for line in process.stdout:
            if "[G loss" in line:
                break
        else:
            raise RuntimeError(f"the peer has ended with code {process.wait()}")
        process.send_signal(signal.SIGSTOP)
        yield IMAGES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer", description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True, help="a checkout of PyTorch-GAN")
    parser.add_argument("--data", type=Path, required=True, help="a folder with MNIST/raw")
    parser.add_argument("--steps", type=int, default=1500, help="generator steps of wganlab in each of its runs")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["plain", "compiled"])
    parser.add_argument("--name", default="peer", help="of the files in results/; a machine may have its own")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for loss, name in SCRIPTS.items():
        for variant in options.variants:
            with running(options.peer / "implementations" / name / f"{name}.py", options.data) as steps:
                arguments = ["dataset=mnist", f"dataset.root={options.data.absolute()}", f"loss={loss}", "model=mlp"]
                arguments += [f"steps={options.steps}", *VARIANTS[variant]]
                rows.append({"loss": loss, "variant": variant, "turns": train_in_turns(arguments, {"peer": steps}, 2)})
    command = f"--peer PATH --data ROOT --steps {options.steps} --variants {' '.join(options.variants)}"
    command += f" --name {options.name}" * (options.name != "peer")
    lines = [
        f"Real images per second; `make bench-peer ARGS='{command}'` at {commit()}.",
        f"{machine()}.",
        "Programs took turns of two seconds and one; ratios are of means over all turns, ± their standard error.",
        "",
        "| loss | wganlab | its images/s | PyTorch-GAN's images/s | ratio |",
        "|---|---|---:|---:|---:|",
    ]
    for row in rows:
        turns = row["turns"]
        rates = f"{mean(turns, 'wganlab'):,.0f} | {mean(turns, 'peer'):,.0f}"
        lines.append(f"| {row['loss']} | {row['variant']} | {rates} | {compared(turns, 'peer')} |")
    text = "\n".join([*lines, ""])
    print(text)
    (RESULTS / f"{options.name}.md").write_text(text)
    (RESULTS / f"{options.name}.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
