"""Values as people type them, and data that have moved since a run began."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.conftest import LOSSES, in_process, plan
from wganlab.overrides import as_typed, parse
from wganlab.runs import Run
from wganlab.schema import ConfigError

SMALL = ["model=mlp", "model.generator.hidden=[8]", "model.critic.hidden=[8]", "batch_size=8", "logger=csv"]
QUICK = [*SMALL, *(f"callbacks.{name}=null" for name in ("samples", "diagnostics", "evaluation")), "steps=1"]


def faces(folder: Path, seed: int = 0, n: int = 12) -> Path:
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for i in range(n):
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def folder_arguments(root: str) -> list[str]:
    return ["dataset=image_folder", "dataset.size=8", f"dataset.root={root}"]


@pytest.mark.parametrize(
    "text",
    [
        "~/faces",
        "/home/josé/faces",
        "/set#2",
        "faces [v1], final",
        "/x (1)/w.pth",
        'o\'neil "the" {great}',
        "a=1,b=2",
        "100% of {it}!",
        "[v1",
        r"C:\new (2)",
        r"it\'s \(odd)\\",
        "plain/path-1.0",
    ],
)
def test_texts_are_taken_as_typed(text: str) -> None:
    (read,) = parse(as_typed([f"dataset.root={text}"], sweep=False))
    assert read.value() == text
    assert read.key_or_group == "dataset.root"


def test_a_run_and_its_samples_may_lie_below_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    for command in (
        ["train", "dataset=digits", "dataset.size=8", *QUICK, "hydra.run.dir=~/run"],
        ["sample", "run=~/run", "n=4"],
        ["export", "run=~/run"],
    ):
        done = in_process(*command, cwd=tmp_path / "here")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "generated" / "last_seed0_n4" / "samples.png").is_file()
    assert (tmp_path / "run" / "export" / "last_safetensors" / "README.md").is_file()
    assert not [*(tmp_path / "here").iterdir()]


def test_a_folder_of_any_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("josé", "set #2", "faces [v1], final", "x (1)"):
        faces(tmp_path / name)
    for root in (str(tmp_path / "josé"), "~/set #2", str(tmp_path / "faces [v1], final")):
        (config,) = plan([*SMALL, *folder_arguments(root)])
        assert config.dataset.root == root
    two = [str(tmp_path / "josé"), str(tmp_path / "x (1)")]
    jobs = plan([*SMALL, *folder_arguments(",".join(two))], multirun=True)
    assert [job.dataset.root for job in jobs] == two


def test_a_run_folder_may_be_named_after_its_job(tmp_path: Path) -> None:
    folder = tmp_path / "arms=a,seed=0 (1)"
    assert in_process("train", *QUICK, f"hydra.run.dir={folder}", cwd=tmp_path).returncode == 0
    assert (folder / "summary.json").exists()
    done = in_process("sample", f"run={folder}", f"output={tmp_path}/my {{set}}, é", "n=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my {set}, é" / "samples.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["steps=5("], "steps=5(: must be an integer > 0"),
        (["loss=gan("], f"loss=gan(: no such choice; allowed are {', '.join(LOSSES)}"),
        (["loss=gan,wgan_gp"], "loss=gan,wgan_gp: several values are a sweep, which takes wganlab train -m"),
        (
            ["accelerator.precision=a,b"],
            "accelerator.precision=a,b: several values are a sweep, which takes wganlab train -m",
        ),
        (["dataset=mnist", "dataset.root=1,2"], "dataset.root=1,2: 1,2/MNIST/raw lacks"),
        (
            ["dataset=mnist", "dataset.root=2024"],
            """a text that looks otherwise is quoted twice: "dataset.root='...'\"""",
        ),
        (["logger=null"], "logger=null: no such choice; allowed are csv, mlflow, none, tensorboard, wandb"),
        (["a b=3"], "a b=3: no key has ' ' in it"),
        (["é=3"], "é=3: no key has 'é' in it"),
        (["=3"], "=3: has no key before its ="),
        (["hydra.run.dir="], "hydra.run.dir=: is empty; give a folder"),
        (["+search=wgan_gp", "dataset=digits"], "search: makes many runs, which takes -m"),
        (
            ["-m", "+search=wgan_gp", "steps=6"],
            "images=640000: is a budget, and so is steps; give images=, or no steps",
        ),
        (["hydra.job.chdir=true"], "hydra.job.chdir=true: paths in a config are those of where you are; must be false"),
        (["-m", "seed=0,1", "hydra.job.chdir=true"], "hydra.job.chdir=true: paths"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = in_process("train", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not [*tmp_path.iterdir()], "no folder is made"


def test_options_and_overrides_come_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    (tmp_path / "conf" / "dataset" / "mine.yaml").write_text("_target_: wganlab.data.digits.Digits\nsize: 16\n")
    orders = [
        ["logger=csv", "--config-dir", "conf", "dataset=mine", "--cfg", "job", "--package", "dataset"],
        ["--cfg", "job", "dataset=mine", "--package=dataset", "logger=csv", "--config-dir=conf"],
    ]
    command = [sys.executable, "-m", "wganlab", "train"]
    for order in orders:
        done = subprocess.run([*command, *order], cwd=tmp_path, capture_output=True, text=True)
        assert yaml.safe_load(done.stdout)["size"] == 16, done.stderr


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """A run that was begun in ``here`` with images in here/faces, which are now in there/faces."""
    faces(tmp_path / "here" / "faces")
    done = in_process("train", *QUICK, *folder_arguments("faces"), "hydra.run.dir=../run", cwd=tmp_path / "here")
    assert done.returncode == 0, done.stderr
    return tmp_path


def root_of(run: Path) -> Any:
    return Run(run).config["dataset"]["root"]


def test_a_relative_path_is_that_of_where_the_run_began(moved: Path) -> None:
    done = in_process("train", "run=run", "steps=2", cwd=moved)
    assert done.returncode == 0, done.stderr
    assert Run(moved / "run").summary["steps"] == 2
    (moved / "here" / "faces").rename(moved / "faces 2")
    done = in_process("train", "run=run", "steps=3", f"dataset.root={moved}/faces 2", cwd=moved)
    assert done.returncode == 0, done.stderr
    assert root_of(moved / "run") == f"{moved}/faces 2", "recorded"


def test_a_path_that_leads_nowhere_names_both_folders(moved: Path) -> None:
    (moved / "here" / "faces").rename(moved / "here" / "elsewhere")
    for command in (["train", "run=run", "steps=2"], ["evaluate", "run=run", "extractor=none", "n=8", "images=12"]):
        done = in_process(*command, cwd=moved)
        assert done.returncode == 2
        wanted = f"looked for in {moved} and in {moved}/here, where the run began; give its path as dataset.root=PATH"
        assert wanted in done.stderr


def test_data_that_have_moved_are_known_by_their_content(moved: Path) -> None:
    (moved / "here" / "faces").rename(moved / "there")
    faces(moved / "other", seed=1)
    before = (moved / "run" / ".hydra" / "config.yaml").read_text()
    for changes, message in [
        (["dataset.root=other"], "dataset: its content is not that with which this run began"),
        (["dataset.root=nowhere"], "dataset.root=nowhere: cannot change in a run that is continued"),
        (["dataset.size=16"], "dataset.size=16: cannot change in a run that is continued"),
    ]:
        done = in_process("train", "run=run", "steps=2", *changes, cwd=moved)
        assert done.returncode == 2
        assert message in done.stderr
    assert (moved / "run" / ".hydra" / "config.yaml").read_text() == before
    assert Run(moved / "run").status["state"] == "completed", "nothing finished is lost"
    scores = ["evaluate", "run=run", "extractor=none", "n=6", "images=12"]
    assert in_process(*scores, "dataset.root=there", cwd=moved).returncode == 0
    (path,) = (moved / "run" / "evaluation").glob("*.json")
    assert json.loads(path.read_text())["dataset"] == {"root": "there"}
    done = in_process(*scores, "dataset.root=other", cwd=moved)
    assert "its data set is no longer the one that it was trained on" in done.stderr
    done = in_process("train", "run=run", "steps=2", "dataset.root=there", cwd=moved)
    assert done.returncode == 0, done.stderr
    assert root_of(moved / "run") == str(moved / "there"), "from wherever it goes on next"
    done = in_process(*scores, "dataset.root=other", cwd=moved)
    assert done.returncode == 0, "data that are where they were are compared with others"


def test_a_refused_continuation_leaves_a_completed_run_as_it_was(moved: Path) -> None:
    """Its data have changed where they are, its checkpoint is damaged, or gone."""
    run = moved / "run"
    last = run / "checkpoints" / "last.ckpt"
    image = min((moved / "here" / "faces").rglob("*.png"))
    for spoil, path in (
        (lambda: image.write_bytes(max(image.parent.glob("*.png")).read_bytes()), image),
        (lambda: last.write_bytes(b"no checkpoint"), last),
        (last.unlink, last),
    ):
        content, before = path.read_bytes(), Run(run).status | Run(run).config
        spoil()
        done = in_process("train", "run=run", "steps=5", cwd=moved)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        path.write_bytes(content)
        assert Run(run).status | Run(run).config == before
        assert len(Run(run).rows) == 1
    assert in_process("train", "run=run", "steps=2", cwd=moved).returncode == 0


def test_a_folder_that_holds_files_of_something_else_is_not_taken(tmp_path: Path) -> None:
    for name in ("checkpoints/last.ckpt", "metrics.csv", "samples/step_00000000.png"):
        path = tmp_path / name.replace("/", "_") / name
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        for folder in (f"hydra.run.dir={path.relative_to(tmp_path).parts[0]}", "hydra.run.dir=."):
            there = path.parents[name.count("/")] if folder.endswith(".") else tmp_path
            done = in_process("train", *QUICK, folder, cwd=there)
            assert done.returncode == 2
            assert f"holds {name.partition('/')[0]} and no run (status.json); give a new folder" in done.stderr
        assert path.read_text() == "mine"
        assert [*path.parents[name.count("/")].iterdir()] == [path.parents[name.count("/")] / name.partition("/")[0]]


def test_what_is_written_to_a_link_goes_where_it_leads(moved: Path) -> None:
    (moved / "disk").mkdir()
    (moved / "link").symlink_to("disk")
    for output in ("link", "link/deeper"):
        done = in_process("sample", "run=run", "n=4", f"output={output}", cwd=moved)
        assert done.returncode == 0, done.stderr
        assert (moved / "link").is_symlink()
        assert (moved / output.replace("link", "disk") / "samples.png").is_file()


def test_a_report_takes_a_home_for_one(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(moved))
    assert in_process("report", "~/run", "--output=~/page", "--export=~/pieces", cwd=moved / "here").returncode == 0
    assert (moved / "page" / "index.html").is_file()
    assert (moved / "pieces" / "table.md").is_file()
    assert not [*(moved / "here").glob("~*")]


def test_what_needs_no_data_does_not_ask_for_them(moved: Path) -> None:
    (moved / "here" / "faces").rename(moved / "gone")
    for command in (["sample", "run=run", "n=4"], ["export", "run=run"], ["report", "run"]):
        done = in_process(*command, cwd=moved)
        assert done.returncode == 0, done.stderr


WITHOUT = """
import importlib.abc, signal, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "fcntl":
            raise ImportError(name)
sys.meta_path.insert(0, Missing())
sys.modules.pop("fcntl", None)
del signal.SIGUSR2
from wganlab.cli import main
main()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="nothing to hide")
def test_trains_without_what_windows_has_not(tmp_path: Path) -> None:
    for arguments in (["train", *QUICK, "hydra.run.dir=run"], ["train", "run=run", "steps=2"]):
        command = [sys.executable, "-c", WITHOUT, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "run").summary["steps"] == 2


def test_other_values_of_a_continued_run_are_checked(moved: Path) -> None:
    done = in_process("train", "run=run", "steps=2(", cwd=moved)
    assert (done.returncode, done.stderr) == (2, "wganlab: steps=2(: must be an integer > 0\n")
    with pytest.raises(ConfigError, match="no key has"):
        parse(as_typed(["run=run", "da ta=3"], sweep=False))
