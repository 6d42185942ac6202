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


class Fork:
    """``wganlab`` with these arguments, and nothing in its environment but ``env``; has what tests use of Popen."""

    def __init__(self, arguments: list[str], cwd: Path, env: Mapping[str, str]) -> None:
        self.arguments, self.folder = arguments, tempfile.TemporaryDirectory()
        self.printed = [Path(self.folder.name, name) for name in ("out", "err")]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        given = (arguments, str(cwd), dict(env), *map(str, self.printed))
        self.process = context.Process(target=work, args=given)
        self.process.start()
        atexit.register(self.kill)  # before multiprocessing waits for what a test that has failed has left behind

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float = 300) -> int:
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(["wganlab", *self.arguments], timeout)
        atexit.unregister(self.kill)
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (path.read_text() for path in self.printed)
        return out, err


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
