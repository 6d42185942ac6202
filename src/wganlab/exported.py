"""Exports that are read back, and given away on the Hugging Face Hub."""

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from wganlab.archive import refusing
from wganlab.build import build_generator
from wganlab.contracts import Networks
from wganlab.labels import Classes, spread
from wganlab.sample import draw_parts
from wganlab.schema import ConfigError
from wganlab.targets import check_targets

#: Latents (n, latent_dim), and labels (n,) where the generator takes them -> samples (n, *shape).
Function = Callable[..., Tensor]
#: What they are called, in that order.
INPUTS = ("latents", "labels")


@dataclass
class LoadedExport:
    """A generator as ``wganlab export`` wrote it: ``generator`` takes latents (n, latent_dim), and labels (n,) where
    ``classes`` are not None, and gives samples (n, *shape). ``config`` is the one that it was trained with."""

    config: dict[str, Any]
    generator: Function
    dtype: torch.dtype
    classes: list[int] | None

    @torch.no_grad()
    def sample(self, n: int, *, seed: int = 0, labels: Sequence[int] | Tensor | None = None) -> Tensor:
        """n samples (n, *shape), images in [-1, 1], always the same for a seed.

        They are of ``labels``, or all classes, equally many of each; of n of them where there are more. Raises
        ConfigError for labels that it cannot have.
        """
        if self.classes is None and labels is not None:
            raise ConfigError("labels", f"={[*labels]}: this generator takes none")
        known = None if self.classes is None else Classes.of(torch.tensor(self.classes))
        asked = None if known is None else spread(known.numbers, n) if labels is None else known.asked(labels, n)
        random = torch.Generator().manual_seed(seed)
        return torch.cat([*draw_parts(self.generator, self.config["model"], n, random, asked, dtype=self.dtype)])


def load_export(path: str | Path) -> LoadedExport:
    """The export in a folder, or in a repository USER/NAME of the Hugging Face Hub.

    No code of the folder is run: the network is built from its config. Raises ConfigError for what is no export, and
    where the repository cannot be had.
    """
    here = Path(path).expanduser()
    if not here.is_dir() and (here.is_absolute() or str(path).startswith(".")):
        raise ConfigError("path", f"={path}: no such folder")
    folder = here if here.is_dir() else download(str(path))
    weights, onnx = folder / "generator.safetensors", folder / "generator.onnx"
    if not (folder / "config.json").is_file() or not (weights.is_file() or onnx.is_file()):
        raise ConfigError("path", f"={path}: holds no export; wganlab export writes one")
    with reading(folder):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return (from_safetensors if weights.is_file() else from_onnx)(folder, config)


def reading(folder: Path) -> AbstractContextManager[None]:
    """What goes wrong with the files of an export becomes a ConfigError."""
    return refusing("path", f"={folder}: cannot be read")


def from_safetensors(folder: Path, config: dict[str, Any]) -> LoadedExport:
    """The network that the config describes, with the weights of the file."""
    from safetensors import safe_open

    with reading(folder), safe_open(folder / "generator.safetensors", "pt") as file:
        notes, state = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        shape, classes = (json.loads(notes.get(key, "null")) for key in ("shape", "classes"))
        model = dict(config["model"])
        if not (model["latent_dim"] and model["generator"]["_target_"]):
            raise ValueError("config.json describes no generator")
    if shape is None:
        raise ConfigError("path", f"={folder}: was written by an earlier version; export the run again")
    check_targets(Networks, model, "model")
    dtype = dtype_of(state)
    with torch.random.fork_rng(devices=[]):
        generator = build_generator(OmegaConf.create(config), tuple(shape))
    with reading(folder):
        generator.to(dtype).load_state_dict(state)
    return LoadedExport(config, generator.eval().requires_grad_(False), dtype, classes)


def from_onnx(folder: Path, config: dict[str, Any]) -> LoadedExport:
    """The file in onnxruntime."""
    with reading(folder):
        session = onnx_session(folder / "generator.onnx")
        notes, latents = session.get_modelmeta().custom_metadata_map, session.get_inputs()[0]
        dtype = torch.float64 if latents.type == "tensor(double)" else torch.float32
        return LoadedExport(config, in_onnxruntime(session), dtype, json.loads(notes.get("classes", "null")))


def onnx_session(path: Path) -> Any:
    """A file in onnxruntime, on the CPU."""
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def in_onnxruntime(session: Any) -> Function:
    """A session of onnxruntime, from INPUTS to "samples", as a function of tensors."""

    def generator(*inputs: Tensor) -> Tensor:
        named = {name: tensor.numpy() for name, tensor in zip(INPUTS, inputs, strict=False)}
        return torch.from_numpy(session.run(["samples"], named)[0])

    return generator


def dtype_of(state: Mapping[str, Tensor]) -> torch.dtype:
    """That of a network's weights, and so of its latents."""
    return next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32)


def check_push(repository: str) -> None:
    """Raises ConfigError where nothing could be pushed there: no package, no token, or no name of a repository."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ConfigError("push", f"={repository}: needs pip install 'wganlab[hub]'")
    from huggingface_hub import get_token

    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ConfigError("push", f"={repository}: is no repository; must be USER/NAME")
    if get_token() is None:
        raise ConfigError("push", f"={repository}: no token of the Hugging Face Hub; hf auth login, or set HF_TOKEN")


def push(folder: Path, repository: str) -> str:
    """Upload an export to a repository of the Hub, made where there is none; returns its address.

    Raises ConfigError where that fails; the folder stays.
    """
    from huggingface_hub import HfApi

    try:
        made = HfApi().create_repo(repository, exist_ok=True)
        HfApi().upload_folder(repo_id=repository, folder_path=folder, ignore_patterns="__pycache__/*")
    except Exception as error:  # the Hub's, or those of whichever client it speaks HTTP by
        said = " ".join(str(error).split())[:200]
        raise ConfigError("push", f"={repository}: {folder} is written, and could not be pushed ({said})") from error
    return str(made)


def download(repository: str) -> Path:
    """The files of a repository of the Hub, in its cache. Raises ConfigError where they cannot be had."""
    if repository.count("/") != 1 or importlib.util.find_spec("huggingface_hub") is None:
        raise ConfigError("path", f"={repository}: no such folder; of the Hub, USER/NAME (pip install 'wganlab[hub]')")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=["config.json", "generator.*"]))
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError("path", f"={repository}: no such folder, and the Hub does not have it ({said})") from error
