"""Builds the papers as a site in `build/site`, strictly: `python docs/site.py`, or `make site`.

The papers stay where they are in the repository, so that links work there, too. They are copied to `build/papers` under the same
paths; a link to something that is no paper becomes plain text, as the site has papers alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAPERS = ROOT / "build" / "papers"
FOLDERS = ("docs", "simulations", "shared")
KEPT = {".md", ".svg", ".png", ".css"}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def stage() -> list[Path]:
    """Copy the papers, and what they show, to `build/papers`.

    Returns:
        The papers' paths, relative to the repository.
    """
    shutil.rmtree(PAPERS, ignore_errors=True)
    found = [*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.suffix in KEPT)]
    papers = sorted(path.relative_to(ROOT) for path in found)
    for paper in papers:
        target = PAPERS / paper
        target.parent.mkdir(parents=True, exist_ok=True)
        if paper.suffix == ".md":
            target.write_text(_among_papers((ROOT / paper).read_text(encoding="utf-8"), paper, set(papers)), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / paper, target)
    return papers


def _among_papers(text: str, paper: Path, papers: set[Path]) -> str:
    """The text, its links to files that are no papers as plain text."""

    def kept(link: re.Match[str]) -> str:
        title, target, _ = link.groups()
        if "://" in target or target.startswith("mailto:"):
            return link[0]
        path = (ROOT / paper.parent / target).resolve()
        return link[0] if path.is_relative_to(ROOT) and path.relative_to(ROOT) in papers else title

    return LINK.sub(kept, text)


def main() -> int:
    """Build; the exit status is not 0 where anything is to be warned of."""
    stage()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    return subprocess.run(command, check=False, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}).returncode  # noqa: S603 - no word is from outside


if __name__ == "__main__":
    sys.exit(main())
