"""What is timed: four pairs of networks, each under three losses."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from sklearn.datasets import load_digits
from torchvision.transforms.functional import resize, to_pil_image

from wganlab.validate import training_config

LOSSES = ("gan", "wgan_clip", "wgan_gp")


@dataclass(frozen=True)
class Workload:
    """``slow`` ones take seconds for a generator step on two CPU cores."""

    name: str
    overrides: tuple[str, ...]
    slow: bool = False

    def arguments(self, loss: str, data: Path) -> list[str]:
        """Overrides of ``wganlab train``."""
        toy = ("loss.regularizer.gradient_penalty.weight=0.1",) if self.name == "toy" and loss == "wgan_gp" else ()
        given = [override.format(data=data) for override in self.overrides]
        return [*given, f"loss={loss}", *toy]

    def config(self, loss: str, data: Path) -> DictConfig:
        """The composed config of ``wganlab train``."""
        return training_config(self.arguments(loss, data))


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("toy", ("dataset=gaussians8", "model=toy_mlp", "batch_size=256")),
        Workload("s2_mlp", ("dataset=digits", "model=mlp")),
        Workload(
            "s1_dcgan",
            ("dataset=digits", "model=dcgan", "model.latent=uniform", "batch_size=128", "loss.n_critic=1"),
            slow=True,
        ),
        Workload(
            "s3_upsample",
            (
                "dataset=image_folder",
                "dataset.root={data}",
                "dataset.size=32",
                "model=upsample_dcgan",
                "batch_size=256",
            ),
            slow=True,
        ),
    )
}


def write_images(folder: Path) -> None:
    """The digits of scikit-learn as colour PNGs of 32x32, in a folder of one class."""
    (folder / "digits").mkdir(parents=True, exist_ok=True)
    for i, digit in enumerate(load_digits().images):
        image = to_pil_image((digit * 255 / 16).astype("uint8")).convert("RGB")
        resize(image, [32, 32]).save(folder / "digits" / f"{i:04d}.png")
