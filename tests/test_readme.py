"""README and docs/ say what works: commands compose, snippets train, numbers are the generated ones, links lead on."""

import math
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import NARROW, TINY, composed, wganlab, without_account
from wganlab.config import compose_config
from wganlab.study import find_study, multirun

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = "\n".join([README, *(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))])
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)
COMMANDS = [
    shlex.split(line, comments=True)
    for _, block in BLOCKS
    for line in block.splitlines()
    if line.startswith("wganlab ")
]

TRAIN = [c for c in COMMANDS if c[1] == "train" and "--config-dir" not in c and not c[2].startswith("run=")]


@pytest.mark.parametrize("command", TRAIN, ids=" ".join)
def test_train_commands_compose(command: list[str]) -> None:
    arguments = command[2:]
    multirun = "-m" in arguments
    found = composed([argument for argument in arguments if argument != "-m"], multirun=multirun)
    assert len(found) == math.prod(argument.count(",") + 1 for argument in arguments if multirun)


def test_other_commands_are_known() -> None:
    assert {command[1] for command in COMMANDS} == {"train", "study", "evaluate", "report", "sample", "export"}
    plain, of_classes = [command[2:] for command in COMMANDS if command[1] == "sample"]
    assert compose_config("sample", plain).n == 64
    assert compose_config("sample", of_classes).labels == [3, 7]
    (evaluate,) = [command[2:] for command in COMMANDS if command[1] == "evaluate"]
    assert compose_config("evaluate", evaluate).images == 10_000


PAGES = [*sorted((ROOT / "experiments").glob("*/README.md")), ROOT / "experiments" / "README.md"]
STUDIES = [
    shlex.split(line, comments=True)[2:]
    for text in (DOCS, *(page.read_text() for page in PAGES))
    for line in text.replace("\\\n", "").splitlines()
    if line.strip().startswith("wganlab study") and not line.startswith(("wganlab study lr", "wganlab study --list"))
]
STUDIES = [[argument for argument in command if argument != "--publish"] for command in STUDIES]
STUDIES += [
    [name, *shlex.split(arguments)]
    for page in PAGES
    for name, arguments in re.findall(r"make study NAME=(\w+) ARGS='([^']*)'", page.read_text())
]


@pytest.mark.parametrize("command", STUDIES, ids=" ".join)
def test_study_commands_compose(command: list[str]) -> None:
    folder = find_study(command[0])
    assert composed(multirun(folder, command[1:])[0], multirun=True, config_dir=str(folder), ends=True)


@pytest.fixture(scope="module")
def snippets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file that the docs show."""
    folder = tmp_path_factory.mktemp("user")
    for _, block in BLOCKS:
        name = re.search(r"^# ([\w/]+\.(?:py|yaml))$", block, re.MULTILINE)
        if name:
            path = folder / name[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block)
    shown = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    arms = {"lr/study.yaml", "lr/arms/fast.yaml", "lr/arms/slow.yaml"}
    assert shown == {"my_losses.py", "my_conf/loss/my_hinge.yaml", *arms}
    return folder


def test_the_study_of_ones_own_runs(snippets: Path) -> None:
    (command,) = [c[1:] for c in COMMANDS if c[1:3] == ["study", "lr"]]
    done = wganlab(*command, *TINY, *NARROW, "seed=0,1", "logger=csv", cwd=snippets)
    assert done.returncode == 0, done.stderr
    assert "A rate of 1e-3 is better than one of 1e-4 (a hunch)" in done.stdout


def test_custom_loss_snippet_runs(snippets: Path) -> None:
    tmp_path = snippets
    (command,) = [c[1:] for c in COMMANDS if "--config-dir" in c]
    done = wganlab(*command, *TINY, *NARROW, "logger=csv", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "completed 12 generator steps" in done.stdout
    assert "my_losses.Hinge" in (tmp_path / "run" / ".hydra" / "config.yaml").read_text(), "and not the built-in one"


def test_the_notebook_runs(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    (block,) = [block for _, block in BLOCKS if block.startswith("import wganlab")]
    env = without_account(tmp_path)
    shown = "\nassert (run.checkpoint, run.history.index[-1]) == ('best', 60)\n"
    done = subprocess.run([sys.executable, "-c", block + shown], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_table_is_the_generated_one() -> None:
    table = README.split("<!-- table -->\n")[1].split("<!-- end of table -->")[0]
    assert table == (ROOT / "experiments" / "demo" / "table.md").read_text()


def test_linked_files_exist() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *PAGES):
        text = re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)  # what a study will show once it is run
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_readme_is_one_screen() -> None:
    assert README.count("\n") < 60


def test_docs_build_without_a_warning_and_have_every_choice(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    choices = (tmp_path / "site" / "choices" / "index.html").read_text()
    for path in (ROOT / "conf").rglob("*/*.yaml"):
        group = path.parent.relative_to(ROOT / "conf").as_posix()
        assert f"{group}={path.stem}<a" in choices, path
    python = (tmp_path / "site" / "python" / "index.html").read_text()
    for name in ("load_run", "Regularizer", "sliced_wasserstein", "sign_flip_test"):
        assert f"{name}" in python, name
    index = (tmp_path / "site" / "index.html").read_text()
    assert "experiments/demo/samples.png" in index
    fetched = re.findall(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="(https?://[^"]*)"', index)
    assert not fetched, "a page fetches nothing from elsewhere"
