"""Hooks of MkDocs: pages from elsewhere in the repository, the choices of conf/, and links between all of them."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from wganlab.asking import opening_comment

ROOT = Path(__file__).parents[1]
#: What the site shows of the rest of the repository.
SHOWN = (
    "experiments/**/*.md",
    "experiments/**/*.svg",
    "experiments/**/*.png",
    "benchmarks/**/*.md",
    "benchmarks/**/*.svg",
    "lessons/*.md",
    "lessons/*.ipynb",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and figures that stand beside what they are about."""
    for pattern in (*SHOWN, "CONTRIBUTING.md", "CHANGELOG.md"):
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text(encoding="utf-8")))
    files.append(File.generated(config, "choices.md", content=choices()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at the site's pages; what it does not show keeps its words alone."""
    uri = page.file.src_uri
    standing = {"index.md": "README.md"}.get(uri, uri if (ROOT / uri).is_file() else f"docs/{uri}")

    def link(match: re.Match[str]) -> str:
        picture, words, target, anchor = match.groups()
        if target.startswith(("http", "mailto")) or not target:
            return match[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(standing), target))
        there = "index.md" if there == "README.md" else there.removeprefix("docs/")
        if (ROOT / there / "README.md").is_file():
            there += "/README.md"
        if files.get_file_from_path(there) is None:
            return words
        return f"{picture}[{words}]({posixpath.relpath(there, posixpath.dirname(uri) or '.')}{anchor})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s#]*)((?:#[^)\s]*)?)\)", link, markdown)


def choices() -> str:
    """Every choice of conf/: the comment that its YAML opens with, and the YAML."""
    lines = [
        "# Choices",
        "",
        "`KEY=CHOICE` takes one. Each is a YAML of `conf/`, and opens with what it is and its source.",
    ]
    for folder in sorted({path.parent for path in (ROOT / "conf").rglob("*/*.yaml")}):
        group = folder.relative_to(ROOT / "conf").as_posix()
        lines += ["", f"## {group}"]
        for path in sorted(folder.glob("*.yaml")):
            text = path.read_text(encoding="utf-8")
            said = "<br>".join(opening_comment(path)).replace("<root>", "`root`")
            lines += ["", f"### {group}={path.stem}", "", said, ""]
            lines += ['??? note "YAML"', "    ```yaml", *(f"    {line}" for line in text.splitlines()), "    ```"]
    return "\n".join(lines) + "\n"
