"""The lessons: notebooks without outputs, whose links lead somewhere, and which run as they stand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "lessons").glob("*.ipynb"))


def test_there_are_six_lessons() -> None:
    assert [path.name[0] for path in LESSONS] == [*"123456"]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_asks_hides_its_answers_and_links_to_what_is_there(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    words = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert words.startswith(f"# {path.name[0]}. ")
    assert len(re.findall(r"<details><summary>Answer</summary>\n\n", words)) >= 2
    assert words.count("<details>") == words.count("\n\n</details>") <= words.count("**Question.**")
    for target in re.findall(r"\]\(([^)]+)\)", words):
        assert target.startswith("https://") or (path.parent / target).exists(), target
    assert all(cell["outputs"] == [] for cell in cells if cell["cell_type"] == "code"), (
        "make lessons keeps outputs apart"
    )


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[] if path.name[0] == "6" else pytest.mark.slow, id=path.stem) for path in LESSONS],
)
def test_a_lesson_runs(path: Path, tmp_path: Path) -> None:
    """Its own assertions hold; the page that comes out has figures."""
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--execute", "--output-dir", tmp_path, path]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "image/png" in (tmp_path / f"{path.stem}.html").read_text()
