"""Grids of samples from fixed latents."""

from pathlib import Path

import torch
from pydantic import PositiveInt
from pytorch_lightning import Callback, Trainer
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from wganlab.adversarial import AdversarialModule
from wganlab.callbacks import is_due
from wganlab.networks.layers import evaluating


def save_grid(images: Tensor, path: Path, *, columns: int | None = None) -> None:
    """Write images (n, channels, height, width) in [-1, 1] as one PNG, near square unless ``columns`` is given."""
    columns = columns or round(len(images) ** 0.5)
    grid = make_grid(images.float().cpu(), columns, padding=1, normalize=True, value_range=(-1, 1), pad_value=0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil_image(grid[: images.shape[1]]).save(path, optimize=True)  # grey images in one channel, not in three


class Samples(Callback):
    """samples/step_XXXXXXXX.png: n images from latents that stay the same at every step and for every method."""

    def __init__(self, *, every: PositiveInt, n: PositiveInt = 64) -> None:
        self.every, self.n = every, n

    def on_train_start(self, trainer: Trainer, module: AdversarialModule) -> None:  # type: ignore[override]
        self._save(trainer, module)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: AdversarialModule, outputs: None, batch: Tensor, batch_idx: int
    ) -> None:
        if is_due(trainer, self.every):
            self._save(trainer, module)

    def _save(self, trainer: Trainer, module: AdversarialModule) -> None:
        private = torch.Generator(module.device).manual_seed(0)
        with evaluating(module.generator), torch.no_grad():
            images = module.generator(module.latents(self.n, generator=private))
        path = Path(trainer.default_root_dir, "samples", f"step_{trainer.global_step:08d}.png")
        save_grid(images, path)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image("samples", [str(path)], step=trainer.global_step)
