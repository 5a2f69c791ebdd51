"""The report's files: a page for people, JSON for machines, and an entry for the deployments registry."""

from __future__ import annotations

from pathlib import Path

from server.report.page import render_page
from server.report.registry_entry import registry_entry
from server.report.report_model import RunReport
from shared.base.atomic_files import write_whole
from shared.base.errors import StorageError

PAGE, JSON, YAML = "report.html", "report.json", "registry-entry.yaml"


def write_report(report: RunReport, folder: Path) -> tuple[Path, ...]:
    """Write the three files, each whole or not at all; earlier ones are replaced.

    Raises:
        StorageError: the folder cannot be written.
    """
    content = {PAGE: render_page(report), JSON: report.to_json(), YAML: registry_entry(report)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in content.items():
            write_whole(folder / name, text.encode("utf-8"))
    except OSError as error:
        raise StorageError(
            f"the report cannot be written ({error.strerror})", where=str(folder), do="name another folder with --out"
        ) from None
    return tuple(folder / name for name in content)
