"""Run folders from other people: nothing in them is called, opened or shown that is not a run's."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import config, in_process
from tests.test_report import DRAWN, browse
from wganlab.archive import read_checkpoint
from wganlab.contracts import Networks
from wganlab.metrics.extractors import Classifier
from wganlab.report.page import write_report
from wganlab.runs import Run, find_runs
from wganlab.schema import ConfigError
from wganlab.targets import check_targets
from wganlab.validate import validate

COMMANDS: dict[str, list[str]] = {
    "train": ["train", "run=run", "steps=100"],
    "evaluate": ["evaluate", "run=run", "extractor=none"],
    "sample": ["sample", "run=run", "n=2"],
    "export": ["export", "run=run"],
}


@pytest.fixture
def run(run_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a finished run."""
    shutil.copytree(run_of("wgan_clip"), tmp_path / "run")
    return tmp_path / "run"


def plant(run: Path, key: str, node: Any) -> None:
    """Put a node into the config of a run folder."""
    file = run / ".hydra" / "config.yaml"
    stored = yaml.safe_load(file.read_text())
    *above, last = key.split(".")
    parent = stored
    for name in above:
        parent = parent[name]
    parent[last] = {**parent[last], "extra": node} if last == "loss" else node
    file.write_text(yaml.safe_dump(stored))


TOUCH = {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.Path", "_args_": ["touched"]}]}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("key", ["model.generator", "loss.optimizer.critic", "dataset", "callbacks.samples"])
def test_what_a_config_names_is_not_called(run: Path, command: str, key: str) -> None:
    plant(run, key, TOUCH | ({"_partial_": True} if "optimizer" in key or "model" in key else {}))
    done = in_process(*COMMANDS[command], cwd=run.parent)
    assert not (run.parent / "touched").exists()
    if command in ("sample", "export") and key in ("dataset", "callbacks.samples"):
        assert done.returncode == 0, "which needs neither"
        return
    assert done.returncode == 2
    assert f"{key}._target_=pathlib.Path.touch: is no " in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "wganlab.networks.mlp.Generator", "_partial_": True, "hidden": [{"_target_": "os.getcwd"}]},
        {"_target_": "torch.nn.Sequential", "_partial_": True, "_args_": [TOUCH]},
        {"_target_": "builtins.eval", "_partial_": True, "_args_": ["open('touched', 'w')"]},
        {"_target_": "os.system", "_partial_": True, "command": "touch touched"},
        {"_target_": "subprocess.Popen", "_partial_": True, "args": ["touch", "touched"]},
        {"_target_": "wganlab.files.write_text", "_partial_": True, "path": "touched", "text": ""},
        {"_target_": "hydra.utils.get_method", "path": "os.system"},
        {"_target_": "hydra.utils.instantiate", "config": {}},
        {"_target_": "functools.partial", "_args_": [{"_target_": "hydra.utils.get_method", "path": "os.system"}]},
        {"_target_": "torch.load", "_partial_": True, "f": "x"},
        {"_target_": "torch.serialization.FILE_LIKE", "_partial_": True},
        {"_target_": "abc"},
        {"_target_": "torch.nn"},
    ],
    ids=lambda node: node["_target_"],
)
def test_only_networks_are_networks(run: Path, node: dict[str, Any]) -> None:
    plant(run, "model.generator", node)
    for command in ("train", "sample"):
        done = in_process(*COMMANDS[command], cwd=run.parent)
        assert done.returncode == 2, done.stdout
        assert "model.generator" in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (run.parent / "touched").exists()


def test_nothing_is_called_to_see_whether_data_have_moved(run: Path) -> None:
    plant(
        run, "dataset", {"_target_": "torchvision.datasets.utils.download_url", "url": "file:///x", "root": "touched"}
    )
    done = in_process(*COMMANDS["evaluate"], "dataset.root=.", cwd=run.parent)
    assert done.returncode == 2
    assert "dataset._target_=torchvision.datasets.utils.download_url: is no Source" in done.stderr
    assert not (run.parent / "touched").exists(), "which it would make a folder of"


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ("logger.wandb._target_=abc", "a module"),
        ("logger.wandb._target_=wganlab.loggers.artifacts_of", "no Logger"),
        ("accelerator._target_=os.system", "no Trainer"),
        ("training._target_=wganlab.networks.mlp.Critic", "no LightningModule"),
        ("dataset._target_=pickle.Unpickler", "no Source"),
        ("loss.optimizer.critic._target_=torch.nn.Linear", "no Optimizer"),
        ("+callbacks.mine._target_=torch.nn.ReLU", "no Callback"),
        ("+averaging._target_=torch.nn.ReLU", "no Averaging"),
        ("+loss.warmup._target_=builtins.print", "no Warmup"),
    ],
)
def test_every_slot_takes_its_kind_alone(override: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=kind) as error:
        validate(config(override))
    assert "\n" not in str(error.value)


def test_what_others_have_published_is_taken() -> None:
    """A function that is annotated to return a network, a class of torch's, one of torchvision's transforms."""
    validate(
        config(
            "dataset.size=32",
            "~model.critic",
            "+model.critic={_target_: tests.test_hostile.own, _partial_: true, activation: {_target_: torch.nn.ELU}}",
            "loss.optimizer.critic._target_=torch.optim.AdamW",
        )
    )
    resnet = {"_target_": "torchvision.models.resnet18", "_partial_": True}
    check_targets(Networks, {"critic": resnet}, "model")
    check_targets(Any, {"_target_": "torchvision.transforms.Normalize", "mean": 0, "std": 1}, "dataset.transform")


def own(shape, activation):  # type: ignore[no-untyped-def]  # as people write them
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(1), activation, torch.nn.Flatten(0))


class Pickled:
    """Touches a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("touched",)


def bomb(path: Path) -> None:
    """A checkpoint of half a megabyte that unpacks to half a gigabyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data.pkl", "w") as file:
        for _ in range(512):
            file.write(bytes(2**20))


def expanded(path: Path) -> None:
    """A tensor of 4 TB in a file of a few bytes."""
    saved = torch.load(path, weights_only=True)
    torch.save(saved | {"state_dict": {"critic.layers.0.weight": torch.zeros(1).expand(2**40)}}, path)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(pickle.dumps(Pickled())), ""),
        (lambda path: torch.save({"wganlab": Pickled()}, path), ""),
        (bomb, "content is larger than the file"),
        (expanded, "a tensor is larger than its content"),
    ],
    ids=["pickle", "zipped pickle", "bomb", "expanded"],
)
def test_foreign_checkpoints_are_refused_and_not_run(run: Path, write: Callable[[Path], Any], reason: str) -> None:
    last = run / "checkpoints" / "last.ckpt"
    write(last)
    for command in COMMANDS.values():
        done = in_process(*command, cwd=run.parent)
        assert done.returncode == 2
        assert "last.ckpt" in done.stderr
        assert reason in done.stderr
    with pytest.raises(ConfigError):
        read_checkpoint(last)
    write_report(find_runs([run]), run.parent / "report")
    assert "last.ckpt cannot be read" in (run.parent / "report" / "index.html").read_text()
    assert not (run.parent / "touched").exists()


def test_foreign_caches_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    samples, labels = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8), torch.arange(60) % 2
    Classifier(cache="cache").prepare(samples, labels, "x")
    (cached,) = Path("cache").glob("*.pt")
    torch.save(Pickled(), cached)
    Classifier(cache="cache").prepare(samples, labels, "x")
    assert not Path("touched").exists()
    assert set(torch.load(cached, weights_only=True)) == {"weights", "accuracy"}, "made anew"


@pytest.mark.parametrize("name", ["samples/step_00000099.png", "metrics.csv", "checkpoints/other.ckpt", "evaluation"])
def test_links_out_of_a_folder_are_not_followed(run: Path, name: str) -> None:
    secret = run.parent / "secret.png"
    shutil.copy(next(run.glob("samples/*.png")), secret)
    secret.write_bytes(secret.read_bytes() + b"MY SECRET")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(secret)
    for command in COMMANDS.values():
        done = in_process(*command, cwd=run.parent)
        assert done.returncode == 2
        assert f"run=run: {name} is a link that leads out of the run folder" in done.stderr
    found = Run(run)
    write_report([found], run.parent / "report")
    assert 99 not in found.samples


def test_links_within_a_folder_are_as_good_as_files(run: Path) -> None:
    (run / "checkpoints" / "copy.ckpt").symlink_to("last.ckpt")
    (run.parent / "linked").symlink_to(run)
    done = in_process("sample", "run=linked", "n=2", "output=out", cwd=run.parent)
    assert done.returncode == 0, done.stderr


SCRIPT = "<script>document.title='HACKED'</script><img src=x onerror=\"document.title='HACKED'\">"


def test_nothing_runs_in_the_page_of_a_hostile_folder(run: Path, tmp_path: Path) -> None:
    names = [
        "a" + SCRIPT.replace("/", "\u2215"),
        "'\"><svg onload=\"document.title='HACKED'\">",
        "$\\frac{",
        "{{ 7*7 }}",
    ]
    folder = tmp_path / "sweep"
    for i, name in enumerate(names):
        copy = folder / name
        shutil.copytree(run, copy)
        for file in ("config", "hydra", "overrides"):
            path = copy / ".hydra" / f"{file}.yaml"
            stored = yaml.safe_load(path.read_text())
            if file == "config":
                stored |= {"seed": SCRIPT + str(i), SCRIPT: SCRIPT + str(i), "precision": name}
                stored["loss"]["n_critic"] = name
            elif file == "hydra":
                stored["hydra"]["runtime"]["choices"] |= {"loss": SCRIPT, "model": name, SCRIPT: name}
            else:
                stored = [f"{SCRIPT}={name}", f"arms={name}", f"loss={SCRIPT}"]
            path.write_text(yaml.safe_dump(stored))
        (copy / "status.json").write_text(json.dumps({"state": SCRIPT, "error": SCRIPT}))
        (copy / "protocol.json").write_text(json.dumps({"id": SCRIPT, SCRIPT: SCRIPT}))
        (copy / "samples" / f"step_{SCRIPT.replace('/', '.')}.png").write_bytes(b"\x89PNG")
        header, *rest = (copy / "metrics.csv").read_text().splitlines()
        lines = [
            f"{header},{name.replace(',', '')},</script>{name.replace(',', '')}",
            *(f"{line},1,2" for line in rest),
        ]
        (copy / "metrics.csv").write_text("\n".join(lines))
    write_report(find_runs([folder]), tmp_path / "report")
    page = tmp_path / "report" / "index.html"
    look = f"""
    {DRAWN}
    const listens = (element) => [...element.attributes].some((attribute) => attribute.name.startsWith("on"));
    const legend = [...document.querySelectorAll(".legendtext")].map((text) => text.textContent).join();
    return {{title: document.title, text: document.body.textContent, legend,
            scripts: [...document.scripts].filter((script) => !script.type).length,
            handlers: [...document.querySelectorAll("*")].filter(listens).length}};
    """
    seen = browse(page, look, 1200, tmp_path)
    assert "HACKED" not in seen["title"].replace(SCRIPT, "").replace(names[1], "").replace(names[0], "")
    assert seen["title"].startswith("wganlab: ")
    assert seen["handlers"] == 0
    assert seen["scripts"] == 4, "the page's own two, the plotting library, and that of this test"
    assert names[1] in seen["legend"], "shown as text"
    assert "document.title='HACKED'" in seen["text"], "shown as text"


def test_a_command_line_may_not_name_a_module(tmp_path: Path) -> None:
    done = in_process("train", "logger.wandb._target_=abc", cwd=tmp_path)
    assert done.returncode == 2
    said = "logger.wandb._target_=abc: is a module; allowed are classes of that kind and code of your own"
    assert said in done.stderr
    assert not [*tmp_path.iterdir()]
