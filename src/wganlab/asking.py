"""What Hydra is asked to say: its help, with a sentence for each choice, a composed config, or a completion."""

import os
import re
import sys
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from io import StringIO
from itertools import pairwise, takewhile
from pathlib import Path


def as_hydra_takes(overrides: Sequence[str], *, config_dir: str | None, name: str) -> list[str]:
    """What a run makes of overrides, for Hydra's own parser. Raises ConfigError for what a run refuses, too."""
    from wganlab.config import composer
    from wganlab.validate import parameters_at

    with composer(name, config_dir, parameters_at) as hydra:
        typed = hydra.of_one_run(overrides)
        hydra.compose(typed)
        return hydra.as_hydra_takes(typed)


def ask_hydra(arguments: Sequence[str]) -> None:
    """Let Hydra print its help, a composed config, or the completion of a command line."""
    import hydra
    from hydra.core.config_store import ConfigStore

    from wganlab.config import conf_dir, import_plugins, prefer_own_choices

    import_plugins()
    prefer_own_choices()
    # Hydra copies all that its plugins have registered anew for each group that it lists: half of the time of --help
    store = ConfigStore.instance()
    store.__deepcopy__ = lambda memo: store  # type: ignore[attr-defined]
    sys.argv = [sys.argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through, for report_error() to word them
    answer = hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")(lambda config: None)
    if not {"--help", "-h"} & set(arguments):
        answer()
        return
    with redirect_stdout(StringIO()) as text, suppress(SystemExit):  # what it refuses is an exception of its own
        answer()
    given = [Path(folder) for flag, folder in pairwise(arguments) if flag in ("--config-dir", "-cd")]
    print(explained(text.getvalue(), [*given, conf_dir()]), end="")


def explained(text: str, folders: Sequence[Path]) -> str:
    """Hydra's help with a sentence for each choice of a group: the first of the comment that its YAML opens with."""
    before, title, rest = text.partition("== Choices (key=choice) ==\n")
    groups, config_title, after = rest.partition("\n== Config ")
    lines = []
    for line in groups.splitlines():
        group, _, choices = line.partition(": ")
        lines.append(group)
        for choice in choices.split(", "):
            found = [path for folder in folders if (path := folder / group / f"{choice}.yaml").is_file()]
            comment = " ".join(takewhile(not_indented, opening_comment(found[0]) if found else []))
            said = re.split(r"(?<=\.)\s+(?=[A-Z]|\w+[=/])", comment)[0].removesuffix(".")
            lines.append(textwrap.fill(f"  {choice:22} {said}".rstrip(), 120, subsequent_indent=" " * 25))
    return before + title + "\n".join(lines) + "\n" + config_title + after


def not_indented(line: str) -> bool:
    """Whether a line of a comment is no command."""
    return not line.startswith(" ")


def opening_comment(path: Path) -> list[str]:
    """The lines of the comment that a YAML opens with, after the one that names its package; commands are indented."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = takewhile(lambda line: line.startswith("#"), lines)
    return [line.removeprefix("#").removeprefix(" ").rstrip() for line in comment if not line.startswith("# @package")]
