"""Weights & Biases, such that it never prompts, blocks or fails a run."""

import functools
import hashlib
import math
import os
import secrets
import shlex
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from pytorch_lightning import loggers

from wganlab.files import from_here
from wganlab.metrics import METRICS
from wganlab.runs import Run

if TYPE_CHECKING:
    import wandb  # whose import takes half a second, which runs without it are spared


@functools.cache
def reachable(url: str, timeout: float = 5.0) -> bool:
    """Whether a server answers at all, asked once per process."""
    try:
        urllib.request.urlopen(url, timeout=timeout).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


Mode = Literal["online", "offline", "disabled"]


def choose_mode() -> tuple[Mode, str]:
    """(mode, reason): what WANDB_MODE, a run that is open already or the settings of W&B's session ask for, in this
    order; else online when a key is present and the server answers."""
    import wandb

    wanted = os.environ.get("WANDB_MODE", "")
    if wanted in get_args(Mode):
        return wanted, f"WANDB_MODE={wanted}"  # type: ignore[return-value]
    current, opened = session(), open_run()
    try:
        if opened and (opened.offline or opened.disabled):
            return "disabled" if opened.disabled else "offline", f"as run {opened.id}, which is open"
        mode = current.settings.mode if current else "online"
        if mode in ("offline", "dryrun", "disabled"):
            return "disabled" if mode == "disabled" else "offline", f"as W&B was set up, mode={mode}"
        # with a run open W&B refuses to log in, and has done so before
        if not opened and not wandb.login(prompt=False, verify=False):
            return "offline", "no API key"
        url = wandb.setup().settings.base_url
        return ("online", "") if reachable(url) else ("offline", f"{url} does not answer")
    except Exception as error:  # a malformed key or setting
        return "offline", first_line(error)


def session() -> Any:
    """W&B's state of this process; None before its first use. W&B's public functions would begin one."""
    found = getattr(sys.modules.get("wandb.sdk.wandb_setup"), "_singleton", None)
    return found if found is not None and found._pid == os.getpid() else None


def open_run() -> "wandb.Run | None":
    """The run that was begun last in this process and is not finished: wandb.run, or one beside it."""
    current = session()
    return (current and current.most_recent_active_run) or getattr(sys.modules.get("wandb"), "run", None)


@contextmanager
def own_session() -> Iterator[None]:
    """W&B's session ends afterwards if it began within: a notebook finds W&B as it was.

    W&B reads the environment when a process first uses it, and ignores it from then on. A session that was there
    before, or in which a run is open, stays.
    """
    reachable.cache_clear()  # the network may have changed since the last run
    if session():
        yield
        return
    hooks = sys.exit, sys.excepthook  # W&B wraps both in each session
    try:
        yield
    finally:
        if session() and not open_run():
            import wandb

            with suppress(Exception, SystemExit):  # whatever W&B has against it, the run has ended
                wandb.teardown()
            sys.exit, sys.excepthook = hooks


def in_agent() -> bool:
    """Whether ``wandb agent`` has started this process, as a run of its sweep."""
    return "WANDB_SWEEP_ID" in os.environ


def new_id() -> str:
    """An id for a new run: the agent's, by which the sweep knows the run, or one of our own."""
    return (in_agent() and os.environ.get("WANDB_RUN_ID")) or secrets.token_hex(4)


#: Rows of a table of samples at most: the last grid, and others at even distances before it.
GRIDS = 50


def shortened(text: str, most: int) -> str:
    """A name as W&B takes it, which refuses longer ones: its beginning, and a hash of the whole."""
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    return text if len(text) <= most else f"{text[: most - 9]}-{mark}"


def first_line(error: Exception) -> str:
    """What an error says, cut to a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


class WandbLogger(loggers.WandbLogger):
    """Lightning's logger with the generator step as W&B's own step.

    Online when a key is present, otherwise offline with one line that says how to upload later. Records are
    flushed five times a second, so a killed run keeps its history. With ``artifacts``, a run that completes online
    uploads those of :func:`artifacts_of`, and :func:`samples_table`. Offline there are none, and a later ``wandb sync``
    uploads what was logged, not the checkpoints of every job of a sweep.
    """

    def __init__(
        self,
        *,
        save_dir: str,
        project: str = "wganlab",
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        artifacts: bool = True,
    ) -> None:
        super().__init__(
            save_dir=save_dir, project=project, entity=entity, group=group, name=name, tags=tags, notes=notes
        )
        self.artifacts = artifacts
        self.mode: Mode | None = None  # of the run that is under way

    def start(self, *, config: Any, **identity: Any) -> bool:
        """Begin the run with the whole resolved config; ``identity`` fills name, group, tags and id left open.

        A run whose id W&B knows is continued; in a sweep of W&B's the agent's id, project and entity come before ours.
        A run that a notebook has open stays so.

        Returns False when W&B cannot even run offline, with a line that says why.
        """
        import wandb

        arguments = {k: v for k, v in self._wandb_init.items() if k not in ("resume", "anonymous", "mode")}
        arguments |= {"resume": "allow"}
        arguments |= {key: value for key, value in identity.items() if not arguments.get(key)}
        arguments |= {key: shortened(arguments[key], 128) for key in ("name", "group") if arguments.get(key)}
        arguments |= {"tags": [shortened(str(tag), 64) for tag in arguments.get("tags") or []]}
        first, reason = choose_mode()
        for mode in dict.fromkeys([first, "offline"]):
            try:
                quiet = wandb.Settings(
                    silent=True, console="off", init_timeout=10, x_transaction_log_flush_interval=0.2
                )
                reinit: Any = "create_new" if open_run() else None
                run = wandb.init(**arguments, config=config, settings=quiet, mode=mode, reinit=reinit)
            except Exception as error:  # whatever W&B has against it, the run goes on
                reason = first_line(error)
                continue
            self._experiment, self.mode = run, mode
            if mode == "offline":
                folder = Path(run.dir).parent  # the run's own folder; .dir is its files/
                parts, what = [*folder.parent.glob(f"offline-run-*-{run.id}")], shlex.quote(from_here(folder))
                if len(parts) > 1:  # one for each time that the run was begun or continued
                    beside = shlex.quote(from_here(folder.parent))
                    what = f"{beside}/offline-run-*-{run.id} (all {len(parts)} parts at once)"
                print(f"W&B is offline ({reason}); upload later with: wandb sync {what}", flush=True)
            elif mode == "online":
                print(f"W&B: {run.url}", flush=True)
            return True
        print(f"W&B is off ({reason}); metrics.csv has everything", flush=True)
        return False

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        # W&B would hold a step back until a later one begins, and a killed run would lose it
        self.experiment.log(dict(metrics), step=step, commit=True)

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Images to be shown with the metrics of the same step, which are logged after them."""
        import wandb

        self.experiment.log({key: [wandb.Image(image) for image in images]}, step=step, commit=False)

    def log_histogram(self, key: str, counts: Sequence[float], edges: Sequence[float], step: int) -> None:
        """A histogram of ``len(edges) - 1`` bins, to be shown with the metrics of the same step."""
        import wandb

        histogram = wandb.Histogram(np_histogram=(np.asarray(counts), np.asarray(edges)))
        self.experiment.log({key: histogram}, step=step, commit=False)

    def upload(self, summary: Mapping[str, Any]) -> None:
        """The artifacts of a completed run, and a table of its grids beside their scores, where it is online."""
        if not self.artifacts or self.mode != "online":
            return
        try:
            for artifact in artifacts_of(Path(self.save_dir or "."), self.experiment.id, summary):
                self.experiment.log_artifact(artifact)
            if table := samples_table(Path(self.save_dir or ".")):
                self.experiment.summary["samples_by_step"] = table
        except Exception as error:  # whatever W&B has against them, the run has completed
            print(f"W&B has no artifacts of this run ({first_line(error)})", flush=True)

    def upload_page(self, page: Path, runs: Sequence[str]) -> None:
        """A page about runs as an artifact, page-ID, that comes of their models; where this is online."""
        if self.mode != "online":
            return
        import wandb

        artifact = wandb.Artifact(f"page-{self.experiment.id}", "page")
        artifact.add_file(str(page), page.name, policy="immutable", skip_cache=True)
        try:
            self.experiment.log_artifact(artifact)
            for run in runs:
                with suppress(Exception):  # a run that was offline has no model there
                    self.experiment.use_artifact(f"model-{run}:latest")
        except Exception as error:
            print(f"W&B has no page of this study ({first_line(error)})", flush=True)

    def finish(self, summary: Mapping[str, Any] | None, exit_code: int) -> None:
        """End the run: the next job of a multirun must start one of its own."""
        if self._experiment is not None:
            self._experiment.summary.update(dict(summary or {}))
            self._experiment.finish(exit_code=exit_code)
            self._experiment = self.mode = None


def samples_table(folder: Path) -> "wandb.Table | None":
    """A row per grid of a run, :data:`GRIDS` at most: its step, the grid, and the scores of the evaluation before it;
    None where there are no grids."""
    import wandb

    run = Run(folder)
    grids = list(run.samples.items())
    if not grids:
        return None
    scores = [name for name, metric in METRICS.items() if metric.protocol and any(name in row for row in run.rows)]
    rows = []
    for step, path in grids[:: -max(1, -(-len(grids) // GRIDS))][::-1]:
        seen: dict[str, float] = {}
        for row in run.rows:
            seen |= row if row["step"] <= step else {}
        rows.append([step, wandb.Image(str(path)), *(seen.get(name) for name in scores)])
    return wandb.Table(columns=["step", "samples", *scores], data=rows)


def artifacts_of(folder: Path, run_id: str, summary: Mapping[str, Any]) -> "list[wandb.Artifact]":
    """The artifacts of a completed run, of those files that it has: model-ID, its last and best checkpoint, with their
    steps and scores; and samples-ID, its last grid of samples.

    Files stay where they are: W&B makes no copies of its own.
    """
    import wandb

    scores = {key: value for key, value in summary["final"].items() if key.startswith("eval/") and math.isfinite(value)}
    best = {key: found for key, found in summary["best"].items() if key in scores}
    model = wandb.Artifact(
        f"model-{run_id}", "model", metadata={"step": summary["steps"], "final": scores, "best": best}
    )
    grids = sorted(folder.glob("samples/step_*.png"))[-1:]
    samples = wandb.Artifact(f"samples-{run_id}", "samples", metadata={"step": summary["steps"]})
    checkpoints = [folder / "checkpoints" / name for name in ("last.ckpt", "best.ckpt")]
    for artifact, files in ((model, checkpoints), (samples, grids)):
        for file in filter(Path.is_file, files):
            artifact.add_file(str(file), file.name, policy="immutable", skip_cache=True)
    return [artifact for artifact in (model, samples) if artifact.manifest.entries]
