"""Images and interpolations from a trained run."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import wganlab
from wganlab import export
from wganlab import sample as sampling
from wganlab.data.stream import to_bytes, to_unit_range
from wganlab.pictures import save_grid
from wganlab.sample import interpolate_latents, write_samples
from wganlab.sample import main as sample
from wganlab.schema import ConfigError
from wganlab.validate import command_settings


def test_sample_writes_grid_images_and_interpolation(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    """By the command a user types, on a folder of a sweep, whose name has an equals sign."""
    shutil.copytree(run_of("wgan_gp"), tmp_path / "out" / "loss=wgan_gp")
    done = wganlab("sample", "run=out/loss=wgan_gp", "n=9", "interpolations=3", "frames=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "out" / "loss=wgan_gp" / "generated" / "last_seed0_n9"
    assert sorted(path.name for path in made.iterdir()) == ["images", "interpolation.png", "samples.png"]
    assert sorted(path.name for path in (made / "images").iterdir()) == [f"{i:05d}.png" for i in range(9)]
    assert Image.open(made / "images" / "00000.png").size == (28, 28)
    assert Image.open(made / "samples.png").size == (3 * 29 + 1, 3 * 29 + 1)
    assert Image.open(made / "interpolation.png").size == (5 * 29 + 1, 3 * 29 + 1)


def test_every_grey_value_is_saved_as_itself(tmp_path: Path) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    save_grid(to_unit_range(values), tmp_path / "grid.png")
    write_samples([to_unit_range(values)], tmp_path / "made", None, None)
    for path in (tmp_path / "grid.png", tmp_path / "made" / "images" / "00000.png"):
        assert np.array(Image.open(path)).tolist() == values[0, 0].tolist()


def test_images_of_many_channels_are_arrays(tmp_path: Path) -> None:
    images = torch.rand(3, 5, 8, 8) * 2 - 1
    write_samples([images], tmp_path, None, None)
    assert Image.open(tmp_path / "samples.png").mode == "RGB"
    assert np.array_equal(np.load(tmp_path / "images" / "00002.npy"), to_bytes(images[2]).numpy())


def test_sample_is_reproducible_and_depends_on_the_seed(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    run = run_of("gan")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        sample([f"run={run}", "n=4", f"seed={seed}", "checkpoint=best", f"output={tmp_path / name}"])
    a, b, c = ((tmp_path / name / "samples.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("n=0", "n=0: must be an integer > 0"),
        ("checkpoint=first", "has no such checkpoint; allowed are best, last"),
        ("seed=-1", "seed=-1: must be an integer >= 0"),
        ("m=3", "m: unknown key"),
    ],
)
def test_bad_input(override: str, expected: str, run_of: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError) as error:
        sample([f"run={run_of('gan')}", override])
    assert expected in str(error.value)


def test_damaged_and_missing_checkpoints_are_refused(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_of("gan") / ".hydra", run / ".hydra")
    with pytest.raises(ConfigError, match=r"has no such checkpoint; the run has saved none$"):
        sample([f"run={run}"])
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(ConfigError, match="does not hold this run's generator"):
        sample([f"run={run}"])
    assert not (run / "generated").exists()


def test_interpolation_ends_at_its_ends_and_stays_on_the_sphere() -> None:
    start, end = torch.randn(2, 4, 100, generator=torch.Generator().manual_seed(0))
    for spherical in (True, False):
        path = interpolate_latents(start, end, frames=7, spherical=spherical)
        assert path.shape == (4, 7, 100)
        assert torch.allclose(path[:, 0], start, atol=1e-5)
        assert torch.allclose(path[:, -1], end, atol=1e-5)
    circle = interpolate_latents(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), frames=3, spherical=True)
    assert circle[0, 1].tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(0.5)])
    opposite = interpolate_latents(torch.tensor([[1.0]]), torch.tensor([[-0.5]]), frames=4, spherical=True)
    assert opposite.flatten().tolist() == pytest.approx([1, 0.5, 0, -0.5], abs=1e-6), "no circle joins them"


def test_sample_replaces_its_own_output_and_nothing_else(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    run, keep = run_of("gan"), tmp_path / "keep"
    keep.mkdir()
    (keep / "thesis.txt").write_text("years of work")
    for output in (keep, run, run.parent, tmp_path / "keep" / "thesis.txt"):
        with pytest.raises(ConfigError, match="name a new folder"):
            sample([f"run={run}", "n=2", f"output={output}"])
    assert (keep / "thesis.txt").read_text() == "years of work"
    for n in (2, 3):
        sample([f"run={run}", f"n={n}", f"output={tmp_path / 'made'}"])
        assert len(list((tmp_path / "made" / "images").iterdir())) == n
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keep", "made"]


def test_sample_needs_no_data_set(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    run = tmp_path / "moved"
    shutil.copytree(run_of("gan"), run)
    path = run / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("wganlab.data.digits.Digits", "wganlab.data.mnist.MNIST"))
    sample([f"run={run}", "n=2"])
    path.write_text("")
    with pytest.raises(ConfigError, match="is damaged"):
        sample([f"run={run}", "n=2"])


@pytest.mark.parametrize(
    ("command", "overrides", "folder"),
    [
        (sampling.sample, [], "generated/last_seed0_n64"),
        (sampling.sample, ["weights=raw", "n=8"], "generated/last_raw_seed0_n8"),
        (sampling.sample, ["labels=[3,7]", "checkpoint=best"], "generated/best_seed0_n64_3-7"),
        (export.export, [], "export/last_safetensors"),
        (export.export, ["weights=raw", "format=onnx"], "export/last_raw_onnx"),
    ],
)
def test_what_is_asked_for_has_a_folder_of_its_own(command: Callable, overrides: list[str], folder: str) -> None:
    assert command_settings(command, ["run=out", *overrides])["output"] == f"out/{folder}"
