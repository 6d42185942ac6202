"""Lightning's loggers of other trackers than W&B, which also show grids of samples and histograms of weights."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning import loggers

from wganlab.loggers import first_line
from wganlab.schema import leaves


class TensorBoardLogger(loggers.TensorBoardLogger):
    """Lightning's logger, with its event files in the run's folder; the step is the generator step."""

    package = "tensorboard"

    def __init__(self, *, save_dir: str, prefix: str = "") -> None:
        super().__init__(save_dir=save_dir, name="tensorboard", version="", default_hp_metric=False, prefix=prefix)

    def start(self, *, config: Mapping[str, Any], **identity: Any) -> bool:
        """Show the run's config as a text."""
        self.experiment.add_text("config", "\n".join(f"    {key}: {value}" for key, value in leaves(config)))
        return True

    def log_image(self, key: str, images: list[str], step: int) -> None:
        """Show images, given as paths."""
        for image in images:
            self.experiment.add_image(key, pixels(image), step, dataformats="HWC")

    def log_histogram(self, key: str, counts: Sequence[float], edges: Sequence[float], step: int) -> None:
        """Show a histogram of ``len(edges) - 1`` bins."""
        number, middle = np.asarray(counts), (np.asarray(edges[1:]) + edges[:-1]) / 2
        self.experiment.add_histogram_raw(
            key,
            min=edges[0],
            max=edges[-1],
            num=number.sum(),
            sum=number @ middle,
            sum_squares=number @ middle**2,
            bucket_limits=list(edges[1:]),
            bucket_counts=list(counts),
            global_step=step,
        )


class MLFlowLogger(loggers.MLFlowLogger):
    """Lightning's logger, with the generator step as MLflow's; a run that is continued goes on as the same run there.

    ``tracking_uri`` is a server or a folder, by default ./mlruns, as MLflow has it.
    """

    package = "mlflow"

    def __init__(
        self,
        *,
        save_dir: str,
        experiment_name: str = "wganlab",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, Any] | None = None,
    ) -> None:
        if tracking_uri is None:  # a folder needs no server, and MLflow asks whether one is meant
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        where = tracking_uri or Path("mlruns").absolute().as_uri()
        super().__init__(experiment_name=experiment_name, run_name=run_name, tracking_uri=where, tags=tags)
        self.named = run_name is not None

    def start(self, *, config: Mapping[str, Any], **identity: Any) -> bool:
        """Begin the run, or go on with the one that has this identity's ``id``; note its config as parameters.

        Returns False when MLflow cannot, as where its server does not answer, with a line that says why.
        """
        try:
            self._begin(config, identity)
        except Exception as error:  # whatever MLflow has against it, the run goes on
            print(f"MLflow is off ({first_line(error)}); metrics.csv has everything", flush=True)
            return False
        return True

    def _begin(self, config: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
        client, mine = self._mlflow_client, f"tags.wganlab_id = '{identity.get('id')}'"
        known = client.get_experiment_by_name(self._experiment_name)
        before = client.search_runs([known.experiment_id], mine) if known and identity.get("id") else []
        if before:
            self._run_id = before[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")
        else:
            self._run_name = self._run_name if self.named else identity.get("name")
            self.tags = {**(self.tags or {}), "wganlab_id": identity.get("id"), "group": identity.get("group")}
            self.log_hyperparams(dict(leaves(config)))

    def log_image(self, key: str, images: list[str], step: int) -> None:
        """Keep images, given as paths, as artifacts."""
        for i, image in enumerate(images):
            name = f"{key}/step_{step:08d}{f'_{i}' if i else ''}.png"
            self.experiment.log_image(self.run_id, pixels(image), name)

    def log_histogram(self, key: str, counts: Sequence[float], edges: Sequence[float], step: int) -> None:
        """Keep a histogram as an artifact: MLflow has none of its own."""
        self.experiment.log_dict(self.run_id, {"counts": [*counts], "edges": [*edges]}, f"{key}/step_{step:08d}.json")


def pixels(path: str) -> np.ndarray:
    """The pixels of an image file: (height, width, 3)."""
    return np.asarray(Image.open(path).convert("RGB"))
