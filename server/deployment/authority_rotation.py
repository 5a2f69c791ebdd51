"""A new certificate authority in three steps, between which platforms trust both: begin, switch, finish.

`ca/` holds the authority that signs (`ca.key`, `ca.crt`), while a rotation goes on the next one (`next.key`, `next.crt`) or the
certificate of the one before (`old.crt`), and `trusted.crt`: all that the server's certificate may be of, as it is announced to
platforms. Each step can be repeated after a crash.
"""

from __future__ import annotations

import socket
import ssl
from enum import StrEnum
from pathlib import Path

from server.deployment.certificates import Certificates, Record
from server.deployment.folder import CoordinatorFolder
from shared.base.atomic_files import write_whole
from shared.base.errors import InputError, StorageError
from shared.protocol.authorities import certificates_in, pem_bundle
from shared.protocol.keys import read_secret


class RotationStage(StrEnum):
    """How far the change to a new authority is."""

    NONE = "none"  # one authority
    BEGUN = "begun"  # the next one is made and announced; the server is still of the old one
    SWITCHED = "switched"  # the server's certificate is of the new one; the old one is still announced


def rotation_stage(certificates: Certificates) -> RotationStage:
    """Read from which files are there."""
    if _next(certificates).authority.exists():
        return RotationStage.BEGUN
    return RotationStage.SWITCHED if _old(certificates).exists() else RotationStage.NONE


def begin_rotation(coordinator: CoordinatorFolder, *, record: Record | None = None) -> None:
    """Make the next authority, and announce it beside the present one from now on.

    Raises:
        InputError: the rotation before is not finished.
        FedfuseError: as `record`; nothing is written then.
    """
    certificates = coordinator.certificates
    if rotation_stage(certificates) is RotationStage.SWITCHED:
        raise InputError("the rotation before is not finished", where=str(_old(certificates)), do="authority finish")
    made = _next(certificates)
    if not made.authority.exists():
        made.authority_key.unlink(missing_ok=True)  # of a beginning that was cut short
        made.make_authority(coordinator.file.name, record=record)
    elif record is not None:
        record(made.authority.read_text(encoding="ascii"))
    _tell(certificates, certificates.authority, made.authority)


def switch_authority(coordinator: CoordinatorFolder, *, days: int, record: Record | None = None) -> None:
    """Give the server a certificate of the next authority; the server shows it once it is started again.

    Raises:
        InputError: none was begun.
        FedfuseError: as `record`; nothing is written then.
    """
    certificates = coordinator.certificates
    made, old = _next(certificates), _old(certificates)
    if rotation_stage(certificates) is not RotationStage.BEGUN:
        raise InputError("no rotation was begun", where=str(made.authority), do="authority begin, and wait for the platforms")
    if record is not None:
        record(made.authority.read_text(encoding="ascii"))
    if not old.exists():
        write_whole(old, certificates.authority.read_bytes())
    _tell(certificates, old, made.authority)
    write_whole(certificates.authority_key, read_secret(made.authority_key), mode=0o600)
    write_whole(certificates.authority, made.authority.read_bytes())
    certificates.issue(coordinator.file.host, days=days)
    made.authority_key.unlink()
    made.authority.unlink()


def finish_rotation(coordinator: CoordinatorFolder, *, record: Record | None = None) -> None:
    """Forget the old authority: from now on platforms get the new one alone.

    Raises:
        InputError: nothing was switched, or the server that runs still shows a certificate of the old authority.
        FedfuseError: as `record`; nothing is written then.
    """
    certificates = coordinator.certificates
    if rotation_stage(certificates) is not RotationStage.SWITCHED:
        raise InputError("no rotation was switched", where=str(certificates.authority), do="authority begin, authority switch")
    if not _shows(coordinator, certificates.authority):
        raise InputError(
            "the server that runs shows a certificate of the old authority",
            where=coordinator.control,
            do="start it again, then finish",
        )
    if record is not None:
        record(certificates.authority.read_text(encoding="ascii"))
    _tell(certificates, certificates.authority)
    _old(certificates).unlink()


def tell_authorities(certificates: Certificates) -> None:
    """Write what platforms get, where no rotation has yet: Flower's processes read that file as long as the server runs."""
    if certificates.trusted == certificates.authority:
        _tell(certificates, certificates.authority)


def trusted_bundle(certificates: Certificates) -> str:
    """All authorities that the server's certificate may be of, in PEM: what platforms get.

    Raises:
        StorageError: they cannot be read.
    """
    try:
        return certificates.trusted.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot be read: {error}", where=str(certificates.trusted), do="restore it") from None


def _tell(certificates: Certificates, *paths: Path) -> None:
    found = [one for path in paths for one in certificates_in(path.read_text(encoding="ascii"))]
    write_whole(certificates.authority.with_name("trusted.crt"), pem_bundle(found).encode("ascii"))


def _next(certificates: Certificates) -> Certificates:
    folder = certificates.authority.parent
    return Certificates(certificates.next_authority_key, folder / "next.crt", certificates.server_key, certificates.server)


def _old(certificates: Certificates) -> Path:
    return certificates.authority.with_name("old.crt")


def _shows(coordinator: CoordinatorFolder, authority: Path) -> bool:
    """Whether the server that runs, if one does, has a certificate of that authority."""
    context = ssl.create_default_context(cafile=str(authority))
    try:
        with (
            socket.create_connection(("127.0.0.1", coordinator.file.control_port), timeout=10.0) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1"),
        ):
            return True
    except ssl.SSLCertVerificationError:
        return False
    except OSError:
        return True  # nobody listens, so nobody shows the old one
