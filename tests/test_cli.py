"""The command line as its users meet it."""

import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.conftest import LOSSES, NARROW, TINY, in_process, wganlab
from wganlab.config import conf_dir

ROOT = Path(__file__).parents[1]
MAIN = "sys.argv = ['wganlab', *{}]; from wganlab.cli import main; main()"
HEAVY = {"torch", "torch._dynamo.eval_frame", "pytorch_lightning", "torchmetrics.functional", "matplotlib"}
HEAVY |= {"wandb", "sklearn", "scipy", "torchvision", "pandas"}


def heavy_imports(code: str, cwd: Path | None = None) -> set[str]:
    """Which slow packages a piece of code has imported when it is done."""
    probe = f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\n"
    probe += f"print('HEAVY', {HEAVY} & {{*sys.modules}} or {{}})"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=cwd)
    return set(eval(done.stdout.rpartition("HEAVY")[2]))


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["train", "--cfg", "job"], ["report", "--help"], ["sample", "--help"]],
)
def test_help_is_quick_and_has_an_example(arguments: list[str], tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = wganlab(*arguments, cwd=tmp_path, PYTHONHASHSEED="0")  # an interpreter of its own, whose imports are timed
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    seconds = (
        after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    )  # of the processor: machines are shared
    assert seconds < (1 if arguments == ["--help"] else 2)
    assert "--cfg" in arguments or f"wganlab {arguments[0].replace('--help', 'train')}" in done.stdout
    assert not heavy_imports(MAIN.format(arguments), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_takes_its_config_can_show(tmp_path: Path) -> None:
    unseen = [
        "dataset=mnist",
        "dataset.root=~/a b",
        "model.critic.norm=layer",
        "callbacks.checkpoints.monitor=eval/kid",
    ]
    done = wganlab("train", *unseen, "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert (shown["dataset"]["root"], shown["model"]["critic"]["norm"]) == ("~/a b", "layer")
    assert shown["callbacks"]["checkpoints"]["monitor"] == "eval/kid"
    done = wganlab("train", "model.critic.nor=layer", "--cfg", "job", cwd=tmp_path)
    assert done.stderr == "wganlab: model.critic.nor: unknown key; did you mean model.critic.norm?\n"


def test_a_run_imports_what_it_uses(tmp_path: Path) -> None:
    assert heavy_imports(MAIN.format(["train", "steps=1", "logger=csv", "callbacks=none"]), tmp_path) == {
        "torch",
        "pytorch_lightning",
    }


def test_torchmetrics_is_whole_for_those_who_use_it() -> None:
    code = """
import wganlab.training, sys
assert "torchmetrics.functional" not in sys.modules
import torchmetrics, torch
from torchmetrics.classification import BinaryAccuracy
accuracy = torchmetrics.Accuracy(task="binary")
accuracy.update(torch.tensor([1, 0]), torch.tensor([1, 1]))
assert accuracy.compute() == 0.5 and isinstance(accuracy, (torchmetrics.Metric, BinaryAccuracy))
from pytorch_lightning.trainer.connectors.logger_connector.result import Metric
assert Metric is torchmetrics.Metric and torchmetrics.functional.accuracy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torchs_compiler_is_whole_for_those_who_use_it() -> None:
    code = """
import wganlab.training, sys, torch
from wganlab.startup import is_stood_in_for
from pytorch_lightning.utilities.compile import OptimizedModule
assert is_stood_in_for("torch._dynamo")
calls = []
note = torch.compiler.disable(lambda: calls.append(torch.compiler.is_compiling()))
note()
import torch._dynamo.eval_frame as part  # by name, with no word of the whole
assert part is torch._dynamo.eval_frame is sys.modules["torch._dynamo"].eval_frame
assert part.__spec__.origin == part.__file__
layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
compiled = torch.compile(layer, backend="eager")
assert isinstance(compiled, OptimizedModule) and not isinstance(layer, OptimizedModule)
assert torch.equal(compiled(x), layer(x))

@torch.compile(backend="eager")
def function():
    note()
    return x + 1

function()
assert calls == [False, False]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_train_help_lists_the_choices_and_keys(tmp_path: Path) -> None:
    text = wganlab("train", "--help", cwd=tmp_path).stdout
    for loss in LOSSES:
        comment = (conf_dir() / "loss" / f"{loss}.yaml").read_text().splitlines()[0].removeprefix("# ")
        assert f"\n  {loss:22} {comment[:60]}" in text
    whole = "the critic sees real and generated images in changed colours, shifted and with a hole none"
    assert whole in " ".join(text.split()), "sentences end, and go on over lines"
    assert "the paper's code draws 100,000 points once\n  gaussians8 " in text, "without the command below"
    assert max(map(len, text.partition("== Config ")[0].splitlines())) <= 120
    assert "\nloss/regularizer\n  dragan " in text
    assert "  gaussians_wgan_gp      8 Gaussians as in the toy program" in text, "not the line of its package"
    assert "n_critic: 5" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["train", "loss.regularizer.gradient_penalty.weight=ten"],
            "weight=ten: must be a number >= 0",
        ),
        (["train", "-m", "loss=gan,wgan_gp", "loss.n_critic=1,0"], "loss.n_critic=0: must be an integer > 0"),
        (["train", "dataset=mnist"], "dataset.root=data: data/MNIST/raw lacks"),
        (["train", "--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["train", "--config-dir", "nowhere", "loss=gan"], "--config-dir nowhere: no such folder"),
        (["sample", "run=."], "run=.: is no run folder"),
        (["sample", "n=4"], "run: is missing"),
        (["sample", "run=.", "nn=4"], "nn: unknown key; did you mean n?"),
        (["evaluate", "run=.", "ckpt=best"], "ckpt: unknown key; allowed are checkpoint, dataset, extractor"),
        (["evaluate", "run=.", "dataset=mnist"], "dataset: unknown key; give keys in it, dataset.KEY=VALUE"),
        (["report", "nowhere"], "nowhere: does not exist"),
        (["report", "."], ".: holds no run"),
        (["report"], "the following arguments are required: PATH"),
        (["fly"], "unknown command fly: allowed are train, study, evaluate, report, sample"),
    ],
)
def test_bad_input_ends_with_one_line_and_code_2(arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = in_process(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [], "refused input must leave nothing behind"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("wganlab train loss=wgan_g", {"loss=wgan_gp"}),
        ("wganlab train averaging.", set()),
        ("wganlab train -m seed=0 loss/opt", {"loss/optimizer="}),
    ],
)
def test_a_shell_completes_command_lines(line: str, expected: set[str], tmp_path: Path) -> None:
    """Hydra's script for bash asks ``wganlab -sc query=bash``, with the line so far in the environment."""
    done = wganlab("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == expected


def test_folders_are_not_overwritten(tmp_path: Path) -> None:
    command = ["train", *TINY, *NARROW, "steps=1", "logger=csv", "hydra.run.dir=mine"]
    assert wganlab(*command, cwd=tmp_path).returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file()}
    again = in_process(*command, cwd=tmp_path)
    assert again.returncode == 2
    assert "hydra.run.dir=mine: already holds a run; continue it with run=mine" in again.stderr
    assert before == {path: path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file()}


def test_wheel_in_an_empty_folder_finds_its_config(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", str(wheel)], check=True, capture_output=True)
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    assert (tmp_path / "site" / "wganlab" / "py.typed").is_file()
    empty = tmp_path / "empty"
    empty.mkdir()
    where = "import wganlab.config; print(wganlab.config.conf_dir())"
    env = {"PYTHONPATH": str(tmp_path / "site")}
    conf = subprocess.run(
        [sys.executable, "-c", where], cwd=empty, env=env, capture_output=True, text=True, check=True
    ).stdout
    assert Path(conf.strip()) == tmp_path / "site" / "wganlab" / "conf"
    done = wganlab("train", *TINY, *NARROW, "steps=1", "logger=csv", "hydra.run.dir=run", cwd=empty, **env)
    assert done.returncode == 0, done.stderr
    done = wganlab("report", "run", cwd=empty, **env)
    assert done.returncode == 0, done.stderr
    assert (empty / "run" / "index.html").is_file()


def test_what_only_reading_the_data_shows_is_refused_in_one_line_too(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        Image.new("RGB", (9, 9)).save(tmp_path / "pictures" / f"{i}.png")
    (tmp_path / "pictures" / "broken.png").write_bytes(b"no image")
    command = ["train", "dataset=image_folder", "dataset.root=pictures", "dataset.size=8", "logger=csv", "steps=1"]
    for extra, expected in (
        (["dataset.max_broken=0", "batch_size=4"], "dataset.root=pictures: 1 of 5 files cannot be decoded"),
        (["batch_size=5"], "batch_size=5: must be at most the number of samples, 4"),
    ):
        done = in_process(*command, *extra, f"hydra.run.dir={expected[0]}", cwd=tmp_path)
        assert done.returncode == 2
        assert expected in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / expected[0]).exists(), "nothing is left of a run that could not begin"
