"""Weights & Biases, such that it never prompts, blocks or fails a run."""

import functools
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import wandb
from pytorch_lightning import loggers


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
    """(mode, reason): WANDB_MODE decides if it is set; else online when a key is present and the server answers."""
    wanted = os.environ.get("WANDB_MODE", "")
    if wanted in get_args(Mode):
        return wanted, f"WANDB_MODE={wanted}"  # type: ignore[return-value]
    try:
        if not wandb.login(prompt=False, verify=False):
            return "offline", "no API key"
        url = wandb.setup().settings.base_url
        return ("online", "") if reachable(url) else ("offline", f"{url} does not answer")
    except Exception as error:  # a malformed key or setting
        return "offline", first_line(error)


def first_line(error: Exception) -> str:
    """What an error says, cut to a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


class WandbLogger(loggers.WandbLogger):
    """Lightning's logger with the generator step as W&B's own step.

    Online when a key is present, otherwise offline with one line that says how to upload later. Records are
    flushed five times a second, so a killed run keeps its history.
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
    ) -> None:
        super().__init__(
            save_dir=save_dir, project=project, entity=entity, group=group, name=name, tags=tags, notes=notes
        )

    def start(self, *, config: Any, **identity: Any) -> bool:
        """Begin the run with the whole resolved config; ``identity`` fills name, group, tags and id left open.

        A run whose id W&B knows is continued.

        Returns False when W&B cannot even run offline, with a line that says why.
        """
        arguments = {k: v for k, v in self._wandb_init.items() if k not in ("resume", "anonymous", "mode")}
        arguments |= {"resume": "allow"}
        arguments |= {key: value for key, value in identity.items() if not arguments.get(key)}
        first, reason = choose_mode()
        for mode in dict.fromkeys([first, "offline"]):
            try:
                quiet = wandb.Settings(
                    silent=True, console="off", init_timeout=10, x_transaction_log_flush_interval=0.2
                )
                run = wandb.init(**arguments, config=config, settings=quiet, mode=mode)
            except Exception as error:  # whatever W&B has against it, the run goes on
                reason = first_line(error)
                continue
            self._experiment = run
            if mode == "offline":
                folder = Path(run.dir).parent  # the run's own folder; .dir is its files/
                print(f"W&B is offline ({reason}); upload later with: wandb sync {os.path.relpath(folder)}", flush=True)
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
        self.experiment.log({key: [wandb.Image(image) for image in images]}, step=step, commit=False)

    def log_histogram(self, key: str, counts: Sequence[float], edges: Sequence[float], step: int) -> None:
        """A histogram of ``len(edges) - 1`` bins, to be shown with the metrics of the same step."""
        histogram = wandb.Histogram(np_histogram=(np.asarray(counts), np.asarray(edges)))
        self.experiment.log({key: histogram}, step=step, commit=False)

    def finish(self, summary: Mapping[str, Any] | None, exit_code: int) -> None:
        """End the run: the next job of a multirun must start one of its own."""
        if self._experiment is not None:
            self._experiment.summary.update(dict(summary or {}))
            self._experiment.finish(exit_code=exit_code)
            self._experiment = None
