"""Command lines that nobody would type on purpose."""

import random

import pytest
from omegaconf import OmegaConf

from tests.conftest import config, plan
from wganlab.config import conf_dir
from wganlab.schema import ConfigError, leaves

VALUES = [
    "", "0", "-1", "1", "3", "1e30", "nan", "inf", "true", "null", "abc", "é", "a b", "a,b", "[1,2]", "[]", "{}",
    "{a:1}", "[[1]]", "'x'", '"', "(", "${seed}", "${nothing}", "${hydra:job.name}", "???", "range(1,3)", "choice(1,2)",
    "~", "#", "os", "os.path.join", "builtins.dict", "torch.nn", "torch.nn.Linear", "wganlab.networks.mlp.Critic",
    "{_target_: os.getcwd}", "{_target_: torch.nn.ReLU, _partial_: true}", "9999999999999999999999", "1.5", ".", "/",
]  # fmt: skip
FURTHER = ["_target_", "_partial_", "_args_", "_recursive_", "_convert_", "nothing", "steps", "size"]


def command_line(random: random.Random, keys: list[str], groups: dict[str, list[str]]) -> list[str]:
    """One to three overrides: of keys, of groups, additions and deletions."""
    overrides = []
    for _ in range(random.randint(1, 3)):
        key, group = random.choice(keys), random.choice([*groups])
        parent = key.rpartition(".")[0]
        overrides.append(
            random.choice(
                [
                    f"{key}={random.choice(VALUES)}",
                    f"{parent or 'loss'}={random.choice(VALUES)}",
                    f"{group}={random.choice([*groups[group], *VALUES])}",
                    f"+{parent or 'model'}.{random.choice(FURTHER)}={random.choice(VALUES)}",
                    f"++{key}={random.choice(VALUES)}",
                    f"~{random.choice([key, parent or key, group])}",
                    f"{parent or 'training'}._target_={random.choice(VALUES)}",
                    random.choice(VALUES),
                ]
            )
        )
    return overrides


@pytest.mark.slow
def test_any_command_line_is_planned_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand of them, always the same: each ends in configs, or in one line that is no traceback."""
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.chdir(empty)
    source = random.Random(0)
    keys = [key for key, _ in leaves(OmegaConf.to_container(config(), resolve=False))]
    groups: dict[str, list[str]] = {}
    for path in conf_dir().rglob("*/*.yaml"):
        group = path.parent.relative_to(conf_dir()).as_posix()
        if not group.startswith("hydra"):
            groups.setdefault(group, []).append(path.stem)
    planned, wrong = 0, []
    for _ in range(1000):
        overrides, multirun = command_line(source, keys, groups), source.random() < 0.2
        try:
            plan(overrides, multirun=multirun)
            planned += 1
        except ConfigError as error:
            if "\n" in str(error) or len(str(error)) < 6:
                wrong.append((overrides, str(error)))
        except Exception as error:
            wrong.append((overrides, repr(error)))
    assert not wrong
    assert planned, "some can run"
    assert not [*empty.iterdir()], "planning writes nothing"
