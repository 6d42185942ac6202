"""Scores of the generator during training, by the same protocol for every method."""

from pathlib import Path
from typing import Literal

from pydantic import PositiveInt
from pytorch_lightning import Callback, Trainer

from wganlab.adversarial import AdversarialModule
from wganlab.callbacks import is_due
from wganlab.data.stream import Batch
from wganlab.files import write_json
from wganlab.metrics.extractors import Extractor
from wganlab.metrics.protocol import Protocol


class Evaluation(Callback):
    """Scores the generator (``eval/...``) every ``every`` generator steps, and writes their protocol to protocol.json.

    ``eval/emd`` is the debiased exact earth mover's distance between ``n`` generated and ``n`` real samples of
    ``split``: "held_out" from training, those of "training", or "auto", the first where there are some. Points also get
    ``eval/w2``, mixtures of Gaussians the modes captured, and images, with an ``extractor``, scores of the features of
    ``images`` samples, such as FID. The real samples and the latents are the same at every step and for every method
    and seed. Images that are closer to real ones in pixels do not always look better.
    """

    def __init__(
        self,
        *,
        every: PositiveInt,
        n: PositiveInt = 512,
        images: PositiveInt = 2048,
        split: Literal["auto", "held_out", "training"] = "auto",
        extractor: Extractor | None = None,
    ) -> None:
        self.every, self.split = every, split
        self.protocol = Protocol(n=n, images=images, extractor=extractor or None)

    def on_train_start(self, trainer: Trainer, module: AdversarialModule) -> None:  # type: ignore[override]
        self.protocol.prepare(trainer.train_dataloader, split=self.split)  # type: ignore[arg-type]
        write_json(
            Path(trainer.default_root_dir, "protocol.json"),
            self.protocol.describe(module.shown_weights),
        )

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: AdversarialModule, outputs: None, batch: list[Batch], batch_idx: int
    ) -> None:
        if is_due(trainer, self.every):
            module.observed |= self.protocol.scores(module.generate_parts, module.shown_labels)
