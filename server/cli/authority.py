"""`fedfuse server authority`: a new certificate authority while platforms stay connected."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.operators import As
from shared.base.errors import FedfuseError, InputError

if TYPE_CHECKING:
    from server.deployment.folder import CoordinatorFolder
    from server.operators.rights import Verb


class RotationStep(StrEnum):
    """What is to be done."""

    STATUS = "status"
    BEGIN = "begin"
    SWITCH = "switch"
    FINISH = "finish"


def authority_command(
    step: Annotated[RotationStep, typer.Argument(help="status, or the next step: begin, switch, finish.")],
    folder: Annotated[Path, typer.Argument(help="The coordinator's folder.")] = Path("coordinator"),
    days: Annotated[int, typer.Option(help="Days that the server's new certificate holds (switch).", min=1)] = 365,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Switch although platforms have not said that they know the new authority.")
    ] = False,
    act_as: As = None,
) -> None:
    """Change the certificate authority without stopping a platform.

    \b
    begin    makes the next authority; platforms take it within a minute, signed by the federation's key
    switch   gives the server a certificate of it; start the server again afterwards
    finish   forgets the old one
    status   takes no right; the steps take the right to change certificates

    A platform that is away takes the new authority when it comes back.
    """
    from server.deployment.authority_rotation import (
        RotationStage,
        begin_rotation,
        finish_rotation,
        rotation_stage,
        switch_authority,
        trusted_bundle,
    )
    from server.deployment.folder import open_coordinator
    from server.operators.rights import Verb
    from shared.protocol.invitation import fingerprint_of_authorities

    coordinator = open_coordinator(folder)
    if step is RotationStep.BEGIN:
        begin_rotation(coordinator, record=_recorder(coordinator, act_as, Verb.AUTHORITY_BEGIN))
    elif step is RotationStep.SWITCH:
        record = _recorder(coordinator, act_as, Verb.AUTHORITY_SWITCH, days=str(days), anyway="yes" if anyway else "")
        if rotation_stage(coordinator.certificates) is RotationStage.BEGUN and not anyway:
            _require_known(folder)
        switch_authority(coordinator, days=days, record=record)
    elif step is RotationStep.FINISH:
        finish_rotation(coordinator, record=_recorder(coordinator, act_as, Verb.AUTHORITY_FINISH))
    stage = rotation_stage(coordinator.certificates)
    typer.echo(f"platforms get: {fingerprint_of_authorities(trusted_bundle(coordinator.certificates))}")
    if stage is RotationStage.BEGUN:
        try:
            late = _late(folder)
        except FedfuseError as error:
            typer.echo(f"who knows both is not known: {error.brief}")
        else:
            typer.echo(f"not yet known to: {', '.join(late)}" if late else "all approved platforms know both")
    typer.echo(
        {
            RotationStage.NONE: "one authority; a new one: fedfuse server authority begin",
            RotationStage.BEGUN: "begun; when the platforms know both: fedfuse server authority switch",
            RotationStage.SWITCHED: "switched; start the server again, then: fedfuse server authority finish",
        }[stage]
    )


def _recorder(coordinator: CoordinatorFolder, act_as: Path | None, verb: Verb, **details: str) -> Callable[[str], object]:
    """Writes a step into the operators' log, with the fingerprint of the authority that it is about.

    Raises:
        FedfuseError: as `server.operators.acting.acting_operator`.
    """
    from server.operators.acting import acting_operator
    from shared.protocol.invitation import fingerprint_of_authorities

    acting = acting_operator(coordinator, act_as, verb.right)

    def record(authority: str) -> None:
        acting.record(verb, coordinator.file.name, {"authority": fingerprint_of_authorities(authority), **details})

    return record


def _late(folder: Path) -> list[str]:
    """Approved platforms that have not said that they know all authorities.

    Raises:
        FedfuseError: the server does not answer.
    """
    from server.deployment.approved_platforms import Platforms
    from server.deployment.authority_rotation import trusted_bundle
    from server.deployment.flower_control import Control
    from server.deployment.folder import open_coordinator
    from shared.protocol.authorities import authorities_digest

    coordinator = open_coordinator(folder)
    told = authorities_digest(trusted_bundle(coordinator.certificates))
    with Control(coordinator) as control:
        seen = control.seen()
    names = [one.name for one in Platforms(coordinator.platforms).approved()]
    return sorted(name for name in names if seen.get(name, {}).get("authorities") != told)


def _require_known(folder: Path) -> None:
    late = _late(folder)
    if late:
        raise InputError(
            f"have not said that they know the new authority: {', '.join(late)}",
            where=str(folder),
            do="wait a minute, then see: fedfuse server authority status. Who is away takes it when it comes back; who has a "
            "version without this needs a new invitation (fedfuse client accept). Then: --anyway",
        )
