"""Exported generators: loaded without wganlab they make what the trained one makes; their card says what they are."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from torch import nn

from tests.conftest import TINY, wganlab
from tests.test_cli import MAIN, heavy_imports
from wganlab.build import trained_config
from wganlab.codegen import source
from wganlab.data.mnist import MNIST
from wganlab.evaluate import load
from wganlab.evaluate import main as evaluate
from wganlab.export import main as export
from wganlab.files import write_json
from wganlab.runs import Run
from wganlab.schema import ConfigError


def choose(dataset: str, model: str, /, **keys: object) -> dict[str, object]:
    """An arm of a sweep over models."""
    return {"defaults": [{"override /dataset": dataset}, {"override /model": model}], **keys}


def small(filters: int = 8, **keys: object) -> dict[str, object]:
    return {"generator": {"n_filters": filters, **keys}, "critic": {"n_filters": 4}}


DENSE = {"generator": {"hidden": [8, 16]}, "critic": {"hidden": [8]}}
#: Run -> what it is.
RUNS = {
    "mlp": choose("digits", "mlp", model=DENSE, dataset={"size": 8}),
    "dcgan": choose("digits", "dcgan", model=small(padding="tensorflow"), dataset={"size": 8}),
    "resnet": choose("digits", "resnet", model=small(n_blocks=2), dataset={"size": 8}),
    "r3gan": choose(
        "digits", "r3gan", model={"generator": {"widths": [16, 8]}, "critic": {"widths": [8, 8]}}, dataset={"size": 8}
    ),
    "upsample_dcgan": choose("digits", "upsample_dcgan", model=small(), dataset={"size": 8}),
    "toy_mlp": choose("gaussians8", "toy_mlp", model=DENSE),
    "drawn": choose(
        "digits", "random_architecture", model={"generator": {"width": 0.1, "number": 6}}, dataset={"size": 32}
    ),
    "double": choose("digits", "mlp", model=DENSE | {"latent": "uniform"}, dataset={"size": 8}, precision="64-true"),
}
#: Of a user, in the place of the mlp's: with wganlab's dropout and torch's, random, not traceable, coupled to a size.
MY_NETWORKS = """
import torch
from torch import nn
from wganlab.networks.layers import Dropout
from wganlab.networks.mlp import Generator

class Dropped(Generator):
    def __init__(self, **keys):
        super().__init__(**keys)
        self.dropout = nn.Sequential(Dropout(0.5), nn.Dropout(0.5))
    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.dropout(super().forward(latents))

class Noisy(Generator):
    def forward(self, latents):
        return super().forward(latents + torch.randn_like(latents))

class Branching(Generator):
    def forward(self, latents):
        return super().forward(latents if latents.sum() > 0 else -latents)

class Sized(Generator):
    def forward(self, latents):
        return super().forward(latents.view(len(latents), -1))
"""
#: Run in a new process, in the folders of exports: the lines of their cards, and what they make of given latents.
LOAD = """
import os, re, sys
import numpy as np
sys.path.insert(0, "")
for folder in sys.argv[1:]:
    os.chdir(folder)
    names = {}
    exec(re.search("```python\\n(.*?)```", open("README.md").read(), re.DOTALL)[1], names)
    assert len(names["images"]) == 16
    latents = np.load(folder + ".latents.npy")
    if "session" in names:
        (samples,) = names["session"].run(None, {"latents": latents})
    else:
        samples = names["generator"](names["torch"].from_numpy(latents)).detach().numpy()
    np.save(folder + ".samples.npy", samples)
    sys.modules.pop("generator", None)
print([name for name in ("wganlab", "torch", "pytorch_lightning", "hydra") if name in sys.modules])
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny run of each of RUNS."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "conf" / "arms").mkdir(parents=True)
    for name, content in RUNS.items():
        (folder / "conf" / "arms" / f"{name}.yaml").write_text("# @package _global_\n" + yaml.safe_dump(content))
    arms = ["--config-dir=conf", f"+arms={','.join(RUNS)}", "hydra.sweep.dir=out", "logger=csv", "batch_size=16"]
    every = [f"callbacks.{name}.every=4" for name in ("evaluation", "samples", "checkpoints")]
    done = wganlab("train", "-m", *arms, *TINY, "steps=4", *every, "callbacks.evaluation.n=32", cwd=folder)
    assert done.returncode == 0, done.stderr
    for name in RUNS:
        next((folder / "out").glob(f"*arms={name}*")).rename(folder / name)
    return folder


@pytest.fixture
def my_run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Name of a class in MY_NETWORKS -> a run with that generator."""
    (tmp_path / "my_networks.py").write_text(MY_NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)

    def make(name: str) -> Path:
        shutil.copytree(runs / "mlp", tmp_path / name)
        path = tmp_path / name / ".hydra" / "config.yaml"
        path.write_text(path.read_text().replace("wganlab.networks.mlp.Generator", f"my_networks.{name}"))
        return tmp_path / name

    return make


def latents_of(run: Path, n: int) -> np.ndarray:
    """Latents for the generator of a run, in its dtype."""
    config = Run.open(run).config
    latents = torch.randn(n, config["model"]["latent_dim"], generator=torch.Generator().manual_seed(n))
    return latents.to(torch.float64 if config["precision"] == "64-true" else torch.float32).numpy()


def trained_samples(run: Path, latents: np.ndarray) -> np.ndarray:
    """What the AdversarialModule of a run makes of latents."""
    checkpoint = Run.open(run).checkpoint("last")
    module, _, _ = load(trained_config(Run.open(run), "test"), checkpoint)
    generator = module.generator.to(torch.from_numpy(latents).dtype)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    generator.load_state_dict({key[10:]: value for key, value in state.items() if key.startswith("generator.")})
    with torch.no_grad():
        return generator(torch.from_numpy(latents)).numpy()


def loaded_samples(folders: dict[Path, np.ndarray]) -> tuple[list[np.ndarray], list[str]]:
    """What exports make of latents in a new process, and which packages that process has imported."""
    for folder, latents in folders.items():
        np.save(f"{folder}.latents.npy", latents)
    command = [sys.executable, "-c", LOAD, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [np.load(f"{folder}.samples.npy") for folder in folders], eval(done.stdout)


def check_exports(runs: Path, names: list[str], form: str, tmp_path: Path) -> list[str]:
    """Export runs, load them without wganlab, compare; returns what was imported."""
    folders = {tmp_path / name: latents_of(runs / name, 5) for name in names}
    for name in names:
        export([f"run={runs / name}", f"format={form}", f"output={tmp_path / name}"])
    made, imported = loaded_samples(folders)
    for name, latents, samples in zip(names, folders.values(), made, strict=True):
        wanted = trained_samples(runs / name, latents)
        assert (samples.shape, samples.dtype) == (wanted.shape, wanted.dtype), name
        assert np.abs(samples - wanted).max() <= 1e-5, name
    return imported


def test_safetensors_load_without_wganlab(runs: Path, tmp_path: Path) -> None:
    assert check_exports(runs, list(RUNS), "safetensors", tmp_path) == ["torch"]
    for name in RUNS:
        files = {path.name for path in (tmp_path / name).iterdir()} - {"__pycache__"}
        assert files == {"README.md", "config.json", "generator.py", "generator.safetensors"}
        assert "wganlab" not in (tmp_path / name / "generator.py").read_text()
        with safe_open(tmp_path / name / "generator.safetensors", "pt") as file:
            state = torch.load(runs / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            weights = {key[10:]: value for key, value in state.items() if key.startswith("generator.")}
            assert set(file.keys()) == set(weights)
            assert all(torch.equal(file.get_tensor(key), value) for key, value in weights.items())
            assert file.metadata()["step"] == "4"
            assert json.loads(file.metadata()["choices"])["model"] == Run.open(runs / name).choices["model"]
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["model"]["generator"]["_target_"].startswith("wganlab.networks.")
        assert "${" not in json.dumps(config)


@pytest.mark.parametrize(
    "names",
    [["resnet", "r3gan", "toy_mlp"], pytest.param(["mlp", "dcgan", "upsample_dcgan", "drawn"], marks=pytest.mark.slow)],
    ids=" ".join,
)
def test_onnx_equals_torch(names: list[str], runs: Path, tmp_path: Path) -> None:
    import onnxruntime

    assert check_exports(runs, names, "onnx", tmp_path) == []
    for name in names:
        assert {path.name for path in (tmp_path / name).iterdir()} == {"README.md", "config.json", "generator.onnx"}
        session = onnxruntime.InferenceSession(tmp_path / name / "generator.onnx", providers=["CPUExecutionProvider"])
        assert session.get_modelmeta().custom_metadata_map["step"] == "4"
        assert session.get_inputs()[0].shape[0] == "batch"


def test_the_code_is_that_of_torch(runs: Path, tmp_path: Path) -> None:
    """As somebody would write it: what repeats is one class, what is by default is left out."""
    export([f"run={runs / 'resnet'}", f"output={tmp_path / 'resnet'}"])
    code = (tmp_path / "resnet" / "generator.py").read_text()
    assert code.count("class ") == 2
    assert code.count("            Block(),\n") == 2
    assert "nn.BatchNorm2d(8)," in code
    assert code.endswith("    def forward(self, latents):\n        return self.layers(latents)\n")
    export([f"run={runs / 'drawn'}", f"output={tmp_path / 'drawn'}"])
    assert "nn.functional.softplus(" in (tmp_path / "drawn" / "generator.py").read_text()


def test_dropout_is_left_out(my_run: Callable[[str], Path], runs: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    export([f"run={my_run('Dropped')}", f"output={made}"])
    assert "Dropout" not in (made / "generator.py").read_text()
    latents = latents_of(runs / "mlp", 3)
    (samples,), _ = loaded_samples({made: latents})
    assert np.abs(samples - trained_samples(runs / "mlp", latents)).max() <= 1e-5


class Odd(nn.Module):
    """What our own networks do not have."""

    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        shared = nn.PReLU()
        self.blocks = nn.ModuleList([nn.Linear(4, 16), nn.Sequential(shared, nn.Linear(16, 16), shared)])
        self.convolutions = nn.ModuleDict({"a": nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")})
        self.scale = nn.Parameter(torch.randn(16))
        self.register_buffer("count", torch.tensor(3))
        self.blocks.append(nn.Sequential())
        self.last = nn.Sequential()
        self.last.add_module("squash", nn.Hardtanh(-2.0, 2.0))
        self.last.add_module("shrink", nn.Hardshrink(0.3))
        self.last.add_module("grow", nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True))

    def forward(self, latents: torch.Tensor, /) -> torch.Tensor:
        for block in self.blocks:
            latents = block(latents)
        maps = (latents * self.scale + self.count).view(latents.shape[0], 1, 4, 4)
        return self.last(self.convolutions["a"](maps)).clamp(-float("inf"), 1.5)


def test_code_of_an_odd_network(tmp_path: Path) -> None:
    network = Odd().double().eval()
    names: dict = {}
    exec(source(network, "Generator", says="Odd."), names)
    written = names["Generator"]().eval()
    written.load_state_dict(network.state_dict())
    latents = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(written(latents), network(latents))


def test_the_card(runs: Path, tmp_path: Path) -> None:
    run = runs / "mlp"
    evaluate([f"run={run}", "n=32", "extractor=none"])
    evaluate([f"run={run}", "n=40", "extractor=none", "checkpoint=best", "seed=1"])
    export([f"run={run}", f"output={tmp_path / 'mlp'}"])
    card = (tmp_path / "mlp" / "README.md").read_text()
    row = next(row for row in Run(run).rows if row["step"] == 4)
    (path,) = run.glob("evaluation/last_*.json")
    scores = json.loads(path.read_text())["scores"]
    summary = json.loads((run / "summary.json").read_text())
    for expected in (
        "latents of shape (n, 100), standard normal, float32, to\nimages of shape (n, 1, 8, 8)",
        "licence of the data | CC BY 4.0: UCI's Optical Recognition of Handwritten Digits",
        "mlp.Generator(hidden=[8, 16], norm=batch",
        "| loss | wgan_gp |",
        "`objectives.Wasserstein()`",
        "`regularizers.GradientPenalty(weight=10.0, target=1.0, norm_over=image",
        "| critic steps per generator step | 5 |",
        "optimizer of the critic | `optim.Adam(lr=0.0001, betas=[0.0, 0.9]",
        "| batch size | 16 |",
        "| seed | 0 |",
        "| generator steps | 4 of 4, checkpoint `last` |",
        "| real images seen by the critic | 320 |",
        f"Taken in training, by protocol `{Run(run).protocol['id']}`: split training, n 32, generator raw, torch",
        f"| `eval/emd` | {row['eval/emd']:.2f} | Debiased earth mover's distance to real samples | lower |",
        f"by `wganlab evaluate`, {path.name}, by protocol `{path.stem[5:]}`",
        f"| `eval/memorisation` | {scores['eval/memorisation']:.3f} |",
        f"commit {summary['commit']}",
        f"torch {summary['versions']['torch']}",
    ):
        assert expected in card, expected
    assert "not complete" not in card
    assert len(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].splitlines()) == 6  # type: ignore[index]
    best = next(run.glob("evaluation/best_*.json"))
    same = json.loads(best.read_text())["step"] == 4  # then it is of the same weights
    assert (best.name in card) == same


def test_a_card_shows_the_scores_of_the_weights_that_are_exported(tmp_path: Path) -> None:
    toy = ["dataset=gaussians8", "model=toy_mlp", "model.generator.hidden=[8]", "model.critic.hidden=[8]", "steps=4"]
    few = ["callbacks.evaluation.n=16", "callbacks.samples.n=4", "logger=csv", f"hydra.run.dir={tmp_path / 'run'}"]
    assert wganlab("train", *toy, *few, "averaging=ema", "loss/schedule=cosine", cwd=tmp_path).returncode == 0
    evaluate([f"run={tmp_path / 'run'}", "n=16", "extractor=none", "weights=raw"])
    for weights in ("averaged", "raw"):
        export([f"run={tmp_path / 'run'}", f"output={tmp_path / weights}", f"weights={weights}"])
        card = (tmp_path / weights / "README.md").read_text()
        assert "| averaging | `averaging.Ema(half_life=10000" in card
        assert f"; these are the {weights} weights |" in card
        assert "| schedule of the critic | `schedules.Cosine(steps=4, end=0.0)` |" in card
        assert ("Taken in training" in card, "last_raw_" in card) == (weights == "averaged", weights == "raw")


def test_the_card_of_points_in_float64_and_of_a_stopped_run(runs: Path, tmp_path: Path) -> None:
    for name in ("toy_mlp", "double"):
        export([f"run={runs / name}", f"output={tmp_path / name}", "checkpoint=best"])
    points, double = ((tmp_path / name / "README.md").read_text() for name in ("toy_mlp", "double"))
    assert "points of shape (n, 2) in the units of its data" in points
    assert "none needed: its points are drawn from a formula" in points
    assert "`eval/modes`" in points
    assert "flatters that score" in points
    assert "uniform in [-1, 1), float64" in double
    assert "torch.rand(16, 100, dtype=torch.float64) * 2 - 1" in double
    run = tmp_path / "run"
    shutil.copytree(runs / "mlp", run)
    (run / "summary.json").unlink()
    (run / "metrics.csv").write_text("step\n")
    shutil.rmtree(run / "evaluation", ignore_errors=True)
    write_json(run / "status.json", {"state": "stopped", "error": "StoppedError: Ctrl-C"})
    path = run / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("steps: 4", "steps: 2000").replace("digits.Digits", "gone.Nowhere"))
    export([f"run={run}"])
    card = (run / "export" / "last_safetensors" / "README.md").read_text()
    assert "**The run is not complete**: it is stopped (StoppedError: Ctrl-C)." in card
    assert "4 of 2,000 steps" in card
    assert "Nothing was scored at this step" in card
    assert "this one has not" in card
    assert "| licence of the data | not stated |" in card
    assert MNIST.licence.startswith("CC BY-SA 3.0")


@pytest.mark.parametrize(
    ("name", "form", "expected"),
    [
        ("Branching", "safetensors", "TraceError: symbolically traced variables cannot be used"),
        ("Sized", "safetensors", "'len' is not supported in symbolic tracing"),
        ("Sized", "onnx", "Got invalid dimensions for input"),
        ("Noisy", "safetensors", "what was written differs from it by"),
        pytest.param("Branching", "onnx", "data-dependent", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_written_is_refused(
    name: str, form: str, expected: str, my_run: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    run = my_run(name)
    before = sorted(run.rglob("*"))
    with pytest.raises(ConfigError) as error:
        export([f"run={run}", f"format={form}"])
    assert str(error.value).startswith(f"format={form}: ")
    assert expected in str(error.value)
    assert len(str(error.value)) < 300
    assert capfd.readouterr() == ("", "")
    assert sorted(run.rglob("*")) == before


def test_by_the_command(my_run: Callable[[str], Path]) -> None:
    run = my_run("Branching")
    done = wganlab("export", "run=Branching", cwd=run.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("wganlab: format=safetensors: cannot hold this generator (TraceError: ")
    assert done.stderr.count("\n") == 1
    assert not (run / "export").exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("format=pickle", "format=pickle: must be one of safetensors, onnx"),
        ("checkpoint=first", "checkpoint=first: "),
        ("n=3", "n: unknown key"),
    ],
)
def test_bad_input(override: str, expected: str, runs: Path) -> None:
    with pytest.raises(ConfigError) as error:
        export([f"run={runs / 'mlp'}", override])
    assert expected in str(error.value)
    with pytest.raises(ConfigError, match="run: is missing"):
        export([])


@pytest.mark.parametrize(("form", "package"), [("safetensors", "safetensors"), ("onnx", "onnxruntime")])
def test_a_missing_extra_is_named_first(form: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as error:
        export(["run=nowhere", f"format={form}"])
    assert str(error.value) == f"format={form}: needs pip install 'wganlab[export]'"


def test_it_replaces_an_export_and_nothing_else(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run, keep, made = runs / "mlp", tmp_path / "keep", tmp_path / "made"
    there = os.path.relpath(made)
    keep.mkdir()
    (keep / "README.md").write_text("years of work")
    for output in (keep, run, keep / "README.md"):
        with pytest.raises(ConfigError, match="name a new folder"):
            export([f"run={run}", f"output={output}"])
    assert (keep / "README.md").read_text() == "years of work"
    for checkpoint in ("best", "last"):
        export([f"run={run}", f"output={made}", f"checkpoint={checkpoint}"])
        assert capfd.readouterr() == (
            f"the generator of step 4, read back with a largest difference of 0: {there}\n",
            "",
        )
        assert f"checkpoint `{checkpoint}`" in (made / "README.md").read_text()
        (made / "__pycache__").mkdir()  # of those who have loaded it
    before = {path: path.read_bytes() for path in made.glob("*.*")}

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wganlab.export.write_text", full)
    for output in (made, tmp_path / "new" / "folder"):
        with pytest.raises(ConfigError, match=r"cannot be written \(.*No space left"):
            export([f"run={run}", f"output={output}"])
    assert {path: path.read_bytes() for path in made.glob("*.*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keep", "made"]


def test_help_is_quick(tmp_path: Path) -> None:
    done = wganlab("export", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "format: safetensors" in done.stdout
    assert not heavy_imports(MAIN.format(["export", "--help"]))
