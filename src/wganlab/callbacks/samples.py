"""Pictures of samples from fixed latents."""

from pathlib import Path

from pydantic import PositiveInt
from pytorch_lightning import Callback, Trainer

from wganlab.adversarial import AdversarialModule
from wganlab.callbacks import is_due
from wganlab.data.stream import Batch
from wganlab.networks.layers import compares_samples, evaluation_mode
from wganlab.pictures import drawable, save_samples


class Samples(Callback):
    """samples/step_XXXXXXXX.png: n samples from latents that stay the same at every step and for every method.

    Images are shown as a grid; 2-D points beside as many real ones, over contours of the critic's value, unless that
    depends on more than the point; rows of a table as a histogram of each column, beside that of as many real ones. Of
    a generator that takes labels, each row of the grid is one class, so that there may be fewer than n.
    """

    def __init__(self, *, every: PositiveInt, n: PositiveInt = 64) -> None:
        self.every, self.n = every, n

    def on_train_start(self, trainer: Trainer, module: AdversarialModule) -> None:  # type: ignore[override]
        if not drawable(module.shape, module.columns):
            print("note: no pictures of samples that are neither images nor rows nor points in the plane", flush=True)
        if trainer.global_step == 0:
            self._save(trainer, module)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: AdversarialModule, outputs: None, batch: list[Batch], batch_idx: int
    ) -> None:
        if is_due(trainer, self.every):
            self._save(trainer, module)

    def _save(self, trainer: Trainer, module: AdversarialModule) -> None:
        if not drawable(module.shape, module.columns):
            return
        path = Path(trainer.default_root_dir, "samples", f"step_{trainer.global_step:08d}.png")
        labels = module.classes.in_rows(self.n) if module.conditional["generator"] else None
        n = self.n if labels is None else len(labels)
        real = module.scaled(trainer.train_dataloader.fixed_samples(self.n))  # type: ignore[union-attr]
        with evaluation_mode(module.critic):
            no_one_surface = module.conditional["critic"] or compares_samples(module.critic)
            critic = None if no_one_surface else module.critic
            fake = module.generate(n, labels=labels)
            save_samples(fake, path, real=real, critic=critic, columns=module.columns, labels=labels)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image("samples", [str(path)], step=trainer.global_step)
