"""Certificates: a CA of one's own for development and for small clusters, and what a listener shows.

Keys are P-256, files are PEM, private keys are mode 0600. A company's own CA serves as well: the controller only reads
files, and reads them again when they change, so a certificate is renewed by replacing it.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from isoloss.controller.settings import Settings
from isoloss.errors import AlreadyExists, InvalidSpec, NotFound

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

CA_DAYS: Final = 3650
LEAF_DAYS: Final = 365


def server_credentials(settings: Settings) -> Any:
    """What a listener shows, looked at again at every new connection; clients show a certificate where a CA says so."""
    files = [Path(name) for name in (settings.tls_cert, settings.tls_key, settings.tls_client_ca) if name]
    seen = [_stamp(files)]

    def configured() -> Any:
        ca = Path(settings.tls_client_ca).read_bytes() if settings.tls_client_ca else None
        pair = (Path(settings.tls_key).read_bytes(), Path(settings.tls_cert).read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=ca)

    def fetch() -> Any:
        try:
            if (stamp := _stamp(files)) != seen[0]:
                seen[0] = stamp
                return configured()
        except OSError:  # one of them is being replaced: the next connection looks again
            return None
        return None

    return grpc.dynamic_ssl_server_credentials(
        configured(), fetch, require_client_authentication=bool(settings.tls_client_ca)
    )


def _stamp(files: Sequence[Path]) -> list[int]:
    return [file.stat().st_mtime_ns for file in files]


def make_ca(folder: Path) -> dict[str, str]:
    """A CA in ``folder`` (``ca.pem``, ``ca.key``); ``AlreadyExists`` rather than make every certificate of it worthless."""
    if (folder / "ca.key").exists():
        raise AlreadyExists(f"{folder / 'ca.key'} is there already; accepted is a folder without a CA.")
    return _issue(folder, "ca", "isoloss development CA", (), None, CA_DAYS)


def make_leaf(folder: Path, name: str, hosts: Sequence[str], *, days: int = LEAF_DAYS) -> dict[str, str]:
    """A certificate of the folder's CA for a server's ``hosts``, or without any for a client called ``name``."""
    if not (folder / "ca.key").exists():
        raise NotFound(f"There is no CA in {folder}.", hint="`isoloss certs ca` makes one.")
    if name == "ca" or not name.replace("-", "").replace(".", "").replace("_", "").isalnum():
        raise InvalidSpec(f"name is {name!r}; accepted are letters, digits, dot, dash and underscore, and not ca.")
    from cryptography import x509

    return _issue(folder, name, name, hosts, x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()), days)


def _issue(
    folder: Path, stem: str, common_name: str, hosts: Sequence[str], ca: Certificate | None, days: int
) -> dict[str, str]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(ca.subject if ca else subject)
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5)).not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca is None, path_length=0 if ca is None else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )  # fmt: skip
    if ca is None:
        signer: Any = key
    else:
        signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        used_for = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        made = made.add_extension(x509.ExtendedKeyUsage([used_for]), critical=False)
        made = made.add_extension(
            x509.SubjectAlternativeName([_name(host) for host in hosts or (stem,)]), critical=False
        )
        made = made.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    folder.mkdir(parents=True, exist_ok=True)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    cert = made.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    _write(folder / f"{stem}.key", private, 0o600)
    _write(folder / f"{stem}.pem", cert, 0o644)
    return {"cert": str(folder / f"{stem}.pem"), "key": str(folder / f"{stem}.key")}


def _name(host: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(file: Path, content: bytes, mode: int) -> None:
    """Whole or not there: a listener reads it again when it changes."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(content)
    draft.replace(file)
