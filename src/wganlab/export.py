"""``wganlab export``: a trained generator as files that load without wganlab, and a card that says what it is."""

import contextlib
import importlib.util
import io
import json
import logging
import runpy
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import wganlab
from wganlab.archive import read_checkpoint
from wganlab.averaging import Weights, trained_weights
from wganlab.build import trained_config
from wganlab.card import model_card
from wganlab.codegen import source
from wganlab.exported import INPUTS, Function, check_push, dtype_of, in_onnxruntime, onnx_session, push
from wganlab.files import from_here, replacing, write_json, write_text
from wganlab.labels import Classes, inputs
from wganlab.pair import sample_latents
from wganlab.runs import Run
from wganlab.sample import columns_in, labels_for, load_networks
from wganlab.schema import ConfigError
from wganlab.validate import command_settings

#: Batch sizes at which what was written is compared with the generator.
SIZES = (1, 2, 7)
#: How far apart the two may be, relative to values above 1: deep networks in float32 are some 1e-5 from themselves in
#: float64, and a byte of an image is 8e-3.
TOLERANCE = 1e-4


def main(overrides: Sequence[str]) -> None:
    """The command: write a run's generator, and say where it is."""
    settings = command_settings(export, overrides)
    repository = settings["push"]
    if repository:
        check_push(repository)
    step, difference = export(**settings)
    what = f"the generator of step {step}, read back with a largest difference of {difference:.1g}"
    print(f"{what}: {from_here(settings['output'])}")
    if repository:
        print(f"pushed: {push(Path(settings['output']).expanduser(), repository)}")


def export(
    *,
    run: str,
    format: Literal["safetensors", "onnx"],
    checkpoint: str,
    weights: Weights,
    output: str,
    push: str | None = None,
) -> tuple[int, float]:
    """Write a generator, its config and its card to ``output``, checked, all or nothing; the command also pushes it.

    Returns its generator step, and how far what is read back is from it. conf/export.yaml has the same keys.
    """
    if not all(importlib.util.find_spec(package) for package in FORMATS[format].packages):
        raise ConfigError("format", f"={format}: needs pip install 'wganlab[export]'")
    opened, folder = Run.open(run), Path(output).expanduser()
    trained = trained_config(opened, "export")
    path = opened.checkpoint(checkpoint)
    check_output(folder)
    generator, saved = load(trained, path, weights)
    try:
        with replacing(folder) as new:
            difference = write_export(opened, trained, generator, saved, format, checkpoint, weights, new)
    except OSError as error:
        raise ConfigError("output", f"={output}: cannot be written ({error})") from error
    return saved["global_step"], difference


def check_output(output: Path) -> None:
    """Raises ConfigError unless the folder is new, empty, or holds an export and nothing else."""
    models = {"generator.safetensors", "generator.onnx"}
    ours = models | {"generator.py", "config.json", "README.md", "__pycache__"}
    found = {path.name for path in output.iterdir()} if output.is_dir() else {""} if output.exists() else set()
    if found and not (found <= ours and found & models):
        raise ConfigError("output", f"={output}: exists and holds something else than an export; name a new folder")


def load(config: DictConfig, checkpoint: Path, weights: Weights) -> tuple[nn.Module, Any]:
    """The generator of a checkpoint in evaluation mode, in the precision of its weights, and all that the file holds.

    Raises ConfigError when the file is damaged or does not fit the run's config.
    """
    (generator,) = load_networks(config, checkpoint, "generator", weights=weights)
    saved = read_checkpoint(checkpoint, "checkpoint")
    state = trained_weights(saved["state_dict"], "generator", weights)
    generator.to(dtype_of(state)).load_state_dict(state)  # load_networks has rounded what was trained in float64
    return generator.requires_grad_(False), saved


def write_export(
    run: Run,
    trained: DictConfig,
    generator: nn.Module,
    saved: Any,
    format: str,
    checkpoint: str,
    weights: Weights,
    folder: Path,
) -> float:
    """All files of an export in a new folder; returns how far what was written is from the generator."""
    folder.mkdir()
    classes = Classes.restored(saved.get("classes"))
    random = torch.Generator().manual_seed(0)
    dtype, latent = dtype_of(generator.state_dict()), trained.model.get("latent", "normal")

    def draw(n: int) -> tuple[Tensor, ...]:
        latents = sample_latents(n, trained.model.latent_dim, latent, dtype=dtype, generator=random)
        return inputs(latents, labels_for(generator, classes, None, n, seed=n))

    notes = {
        "wganlab": wganlab.__version__,
        "step": str(saved["global_step"]),
        "checkpoint": checkpoint,
        "choices": json.dumps(run.choices),
        "shape": json.dumps(list(saved["shape"])),
        "classes": json.dumps(None if classes is None else classes.numbers.tolist()),
    }
    difference = write_checked(generator, draw, format, folder, notes)
    resolved = resolve(run, trained)
    write_json(folder / "config.json", resolved)
    facts = {
        "format": format,
        "checkpoint": checkpoint,
        "weights": weights if trained.get("averaging") else "raw",
        "step": saved["global_step"],
        # version 1 did not note it, and had no other number of critic steps than n_critic
        "images_seen": saved.get("images_seen", saved["global_step"] * trained.loss.n_critic * trained.batch_size),
        "columns": columns_in(saved),
        "shape": saved["shape"],
        "dtype": str(dtype).removeprefix("torch."),
        "classes": None if classes is None else classes.numbers.tolist(),
        "parameters": sum(parameter.numel() for parameter in generator.parameters()),
        "difference": difference,
    }
    write_text(folder / "README.md", model_card(run, resolved, **facts))
    return difference


def write_checked(
    generator: nn.Module, draw: Callable[[int], tuple[Tensor, ...]], format: str, folder: Path, notes: dict[str, str]
) -> float:
    """Write a generator in a format; returns how far what was written is from it, on inputs that ``draw(n)`` makes.

    Raises ConfigError for a generator that cannot be written so, and where that is too far.
    """
    try:
        written = FORMATS[format].write(generator, draw(SIZES[-1]), folder, notes)
        return max(compare(generator, written, draw(n)) for n in SIZES)
    except OSError:
        raise
    except Exception as error:  # torch.fx, torch.export and onnxruntime raise a dozen types
        raise ConfigError("format", f"={format}: cannot hold this generator ({reason(error)})") from error


def resolve(run: Run, config: DictConfig) -> dict[str, Any]:
    """The config of a run as plain values, with ${hydra:...} as it was in the run."""
    stored = run.folder / ".hydra" / "hydra.yaml"
    if stored.is_file():
        HydraConfig.instance().cfg = OmegaConf.load(stored)  # type: ignore[assignment]
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


@torch.no_grad()
def compare(generator: nn.Module, written: Function, inputs: tuple[Tensor, ...]) -> float:
    """Largest absolute difference between two functions of inputs. Raises ValueError where it is too large."""
    expected, actual, n = generator(*inputs), written(*inputs), len(inputs[0])
    if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
        raise ValueError(f"of {n} latents it makes {describe(actual)}, and not {describe(expected)}")
    difference = (actual - expected).abs().max().item()
    if not torch.allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE):
        raise ValueError(f"what was written differs from it by {difference:.2g} on {n} latents")
    return difference


def describe(samples: Tensor) -> str:
    """Shape and dtype in words."""
    return f"{'x'.join(map(str, samples.shape))} of {samples.dtype}"


def reason(error: BaseException) -> str:
    """What lies at the bottom of an error, in its first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200].rstrip(": ")


def write_safetensors(
    generator: nn.Module, inputs: tuple[Tensor, ...], folder: Path, notes: dict[str, str]
) -> Function:
    """generator.py, code without wganlab, and generator.safetensors; returns what they are when read back."""
    from safetensors.torch import load_file, save

    code, weights = folder / "generator.py", folder / "generator.safetensors"
    shape = ", ".join(map(str, generator(*inputs).shape[1:]))
    takes = f"Latents (n, {inputs[0].shape[1]})" + " and labels (n,)" * (len(inputs) > 1)
    says = f"{takes} -> samples (n, {shape}). README.md says what they are, and how to load it."
    write_text(code, source(generator, "Generator", says=says))
    # a copy of each: networks lie in memory as convolutions like them, and may share tensors
    state = {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in generator.state_dict().items()
    }
    weights.write_bytes(save(state, metadata={"format": "pt"} | notes))  # save_file would hide it from other users
    written: nn.Module = runpy.run_path(str(code))["Generator"]().eval()
    written.load_state_dict(load_file(weights))
    return written


def write_onnx(generator: nn.Module, inputs: tuple[Tensor, ...], folder: Path, notes: dict[str, str]) -> Function:
    """generator.onnx, from INPUTS to "samples" for any size of a batch; returns what it is in onnxruntime."""
    path = folder / "generator.onnx"
    with silence():
        program = torch.onnx.export(
            generator,
            inputs,
            dynamo=True,
            input_names=[*INPUTS[: len(inputs)]],
            output_names=["samples"],
            dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in inputs),
            verbose=False,
        )
        assert program is not None  # as it is where it writes a file by itself
        program.model.metadata_props.update(notes)
        program.save(path, external_data=False)
        return in_onnxruntime(onnx_session(path))


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing printed, warned or logged for a while: torch.onnx tells its progress, and its errors in pages."""
    logged = logging.root.manager.disable
    logging.disable()
    try:
        quiet = io.StringIO()
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logged)


class Format(NamedTuple):
    """A way to write a generator down: what it needs, and what writes and reads it."""

    packages: tuple[str, ...]
    write: Callable[[nn.Module, tuple[Tensor, ...], Path, dict[str, str]], Function]


FORMATS = {
    "safetensors": Format(("safetensors",), write_safetensors),
    "onnx": Format(("onnx", "onnxscript", "onnxruntime"), write_onnx),
}
