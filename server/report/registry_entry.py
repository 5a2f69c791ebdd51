"""The report as an entry of the OpenDP deployments registry (https://registry.opendp.org), in YAML, for a person to complete.

The fields are those of the registry's schema of deployments. What only the people behind a deployment know is marked.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from server.report.report_model import PromiseStanding, RunReport

COMPLETE = "TO BE COMPLETED"
"""What a person has to write."""


def registry_entry(report: RunReport) -> str:
    """The entry, as YAML text.

    It is a draft of tier 3. Epsilon and delta are those of the platform that spent most, and every platform's is beside it.
    """
    promise, worst = report.promise, _worst(report)
    values: dict[str, Any] = {
        "url_slug": re.sub(r"[^a-z0-9]+", "-", f"fedfuse-{report.name}".lower()).strip("-")[:80],
        "status": "Draft",
        "tier": 3,
        "deployment": {
            "basic": {
                "name": f"{report.name} ({COMPLETE})",
                "data_curators": [one.platform for one in report.participants] or [COMPLETE],
                "intended_use": f"Recommendations on the participating platforms. {COMPLETE}",
                "data_product_type": "Machine learning model",
                "data_product_region": COMPLETE,
                "description": f"A cross-platform recommender made with Fedfuse {report.fedfuse}. {report.verdict.headline}",
                "publication_date": report.made[:10],
                "data_product_sector": "Technology",
            },
            "dp_variant": {
                "variant_name": "Approximate DP",
                "data_domain": "The interactions, profiles and texts that the platforms hold of their users.",
                "unprotected_quantities": _list(promise.unprotected),
            },
            "privacy_loss": {
                "privacy_unit": promise.privacy_unit,
                "privacy_unit_details": f"{promise.neighbours} {_units(promise.units)}",
                "privacy_parameters": worst,
                "privacy_parameters_details": _parameters(report),
            },
            "deployment_model": {
                "model_name": "Federated",
                "model_name_details": promise.deployment_model,
                "actors": _list(f"{a.who}: sees {a.sees}; trusted for {a.trusted_for}." for a in promise.actors),
                "release_type": "Many releases",
                "release_type_details": f"One ledger and one budget for all runs of a platform. {promise.composition}",
                "data_source_type": "Dynamic",
                "access_type": "Non-interactive",
            },
            "accounting": {"post_processing": promise.post_processing, "composition": promise.composition},
            "implementation": {
                "preprocessing_and_hyperparameter_tuning": promise.preprocessing_and_tuning,
                "mechanisms": _list((*promise.mechanisms, *_releases(report))),
                "justification": f"{_list(promise.assumptions)}Utility: {promise.utility}\n{COMPLETE}",
            },
            "administrative": {
                "notes": f"{promise.statement} Records: {report.verdict.verdict}. {' '.join(report.verdict.reasons)}",
                "registry_authors": [COMPLETE],
            },
        },
    }
    if report.verdict.standing is not PromiseStanding.PROMISED:
        values["deployment"]["basic"]["description"] = f"NOT A DEPLOYMENT: {promise.statement}"
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
    return text


def _worst(report: RunReport) -> dict[str, float]:
    """Of the platform that spent most; empty where that is infinite or not known."""
    spent = [one for one in report.budgets if one.spent is not None]
    if not spent or any(math.isinf(one.spent or 0.0) for one in spent):
        return {}
    one = max(spent, key=lambda line: line.spent or 0.0)
    return {"epsilon": one.spent or 0.0, **({} if one.delta is None else {"delta": one.delta})}


def _parameters(report: RunReport) -> str:
    def said(value: float | None) -> str:
        return "not known" if value is None else "infinite" if math.isinf(value) else f"{value:.6g}"

    lines = [f"{b.platform}: epsilon {said(b.spent)} of {said(b.budget)} at delta {said(b.delta)}." for b in report.budgets]
    if report.everywhere is not None:
        e = report.everywhere
        lines.append(f"A person on all {e.platforms} platforms: epsilon {said(e.epsilon)} at delta {said(e.delta)}.")
    return _list(lines)


def _releases(report: RunReport) -> list[str]:
    return [
        f"{r.platform}, {r.kind}: {r.times} times; one user: {r.one_user}; noise multiplier {r.noise_multiplier:.6g}; "
        f"sample rate {r.sample_rate:.6g}; {r.group} examples a user."
        for r in report.releases
    ]


def _list(items: Any) -> str:
    return "".join(f"- {one}\n" for one in items)


def _units(value: int | None) -> str:
    return f"Number of units: {COMPLETE}" if value is None else f"Number of units: {value} users, as declared."
