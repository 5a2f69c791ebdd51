"""What Helm makes of the charts, kept in `rendered/` for machines without it: `python -m tests.deploy.rendered_charts`.

A rendered chart begins with the SHA-256 of the chart's files: a chart that was changed since is noticed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

HELM = Path(__file__).parents[2] / "shared" / "deploy" / "helm"
RENDERED = Path(__file__).parent / "rendered"
VALUES = {
    "fedfuse-coordinator": {
        "plain": ["federation.name=spring", "federation.host=fed.example.org"],
        "full": [
            "federation.name=spring", "federation.host=fed.example.org", "keys.existingSecret=spring-keys", "registrySecret=s3",
            "storage.storageClassName=local", "networkPolicy.from[0].ipBlock.cidr=10.0.0.0/8", "nodeSelector.disk=local",
            "networkPolicy.egress[0].ports[0].port=443", "tolerations[0].operator=Exists", "service.annotations.a=b",
            "image.repository=registry.example.org/fedfuse", "image.tag=other", "image.pullPolicy=Always", "storage.size=1Gi",
            "service.type=ClusterIP", "service.port=9000", "resources.limits.cpu=2",
        ],
        "open": ["federation.name=spring", "federation.host=fed.example.org", "networkPolicy.enabled=false"],
    },
    "fedfuse-platform": {
        "plain": [],
        "full": [
            "secrets.worker=w", "secrets.messenger=m", "secrets.environment=passwords", "tables.existingClaim=exports",
            "cage=false", "coordinator.cidrs[0]=198.51.100.7/32", "storage.storageClassName=local", "nodeSelector.disk=local",
            "networkPolicy.egress[0].ports[0].port=5432", "tolerations[0].operator=Exists",
            "image.repository=registry.example.org/fedfuse", "image.tag=other", "image.pullPolicy=Always", "storage.size=1Gi",
            "coordinator.port=9000", "worker.resources.limits.nvidia\\.com/gpu=1", "messenger.resources.limits.cpu=1",
        ],
        "open": ["networkPolicy.enabled=false"],
    },
}  # fmt: skip
"""Chart -> case -> what is set. Together they set every value there is."""


def chart_digest(chart: str) -> str:
    """SHA-256 of a chart's files and of what is set in the cases."""
    digest = hashlib.sha256(repr(VALUES[chart]).encode())
    for path in sorted((HELM / chart).rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(HELM).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def render(chart: str, case: str) -> str:
    """What `helm template` makes of it."""
    program = shutil.which("helm")
    assert program is not None
    words = [word for value in VALUES[chart][case] for word in ("--set", value)]
    done = subprocess.run(
        [program, "template", "spring", str(HELM / chart), *words], capture_output=True, text=True, check=True
    )  # fmt: skip
    return done.stdout


def kept(chart: str, case: str) -> tuple[str, list[dict[str, Any]]]:
    """The digest of the chart that was rendered, and its documents."""
    text = (RENDERED / f"{chart}-{case}.yaml").read_text()
    return text.splitlines()[0].removeprefix("# "), [one for one in yaml.safe_load_all(text) if one]


def main() -> int:
    """Render all cases anew."""
    RENDERED.mkdir(exist_ok=True)
    for chart, cases in VALUES.items():
        for case in cases:
            (RENDERED / f"{chart}-{case}.yaml").write_text(f"# {chart_digest(chart)}\n{render(chart, case)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
