"""The command in a process of its own that is a fork of one which has imported everything: seconds faster than a new
interpreter, and as real for signals, exit codes and files."""

import atexit
import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path

#: What the process imports that others are forks of.
IMPORTED = [f"wganlab.{name}" for name in ("sweeps", "training", "report.page", "evaluate", "sample", "export")]
IMPORTED += ["wandb", "ot", "scipy.stats", "sklearn.metrics", "torchvision.transforms.functional"]


def run(arguments: list[str], cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """``wganlab`` with these arguments, and nothing in its environment but ``env``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder, name) for name in ("out", "err"))
        process = context.Process(target=work, args=(arguments, str(cwd), dict(env), str(out), str(err)))
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(["wganlab", *arguments], 300)
        return subprocess.CompletedProcess(["wganlab", *arguments], process.exitcode, out.read_text(), err.read_text())


def work(arguments: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    """Be the command: never returns."""
    for descriptor, name in ((1, out), (2, err)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(n, "w", closefd=False), line_buffering=True) for n in (1, 2))
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:0], sys.argv = [cwd], ["wganlab", *arguments]
    code: int | str | None = 0
    try:
        from wganlab.cli import main

        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0))
