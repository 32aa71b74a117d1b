"""A CA of one's own in a folder, and certificates of it for the nodes: `ca.pem`, `ca.key`, `NODE.pem`, `NODE.key`.

Needs `cryptography`, the extra `tls`. Keys are EC P-256 and of mode 0600; what the CA signs may serve and ask alike. It signs
no other CA.
"""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.atomic_file import write_atomic
from common.names import LOOPBACK, is_address

CA, KEY, CERTIFICATE = "ca", ".key", ".pem"
CA_DAYS = 3650
SKEW = timedelta(hours=1)
"""By which another node's clock may be behind."""
EVERY_NODE = ("localhost", *LOOPBACK)
"""What the services of a node call each other."""


def make_ca(folder: Path) -> bool:
    """Make the CA, unless the folder has one; whether it was made."""
    if (folder / f"{CA}{KEY}").exists():
        return False
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "inference-svc CA")])
    made = (
        _builder(name, name, key.public_key(), key.public_key(), days=CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(folder, CA, made, key)
    return True


def make_node(folder: Path, node: str, others: tuple[str, ...], days: float) -> None:
    """Make a node's certificate and key, over what is there.

    Args:
        folder: Has the CA.
        node: Its name.
        others: Further names and addresses that it is reached at.
        days: How long the certificate holds.

    Raises:
        OSError: The CA's files cannot be read, or the node's not written.
        ValueError: They hold no CA.
    """
    pem = (folder / f"{CA}{KEY}").read_bytes()
    ca_key = cast("ec.EllipticCurvePrivateKey", serialization.load_pem_private_key(pem, None))  # any other does as well
    ca = x509.load_pem_x509_certificate((folder / f"{CA}{CERTIFICATE}").read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    names = dict.fromkeys((node, *others, *EVERY_NODE))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node[:64])])
    made = (
        _builder(subject, ca.subject, key.public_key(), ca_key.public_key(), days=days)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    _write(folder, node, made, key)


def read(path: Path) -> tuple[tuple[str, ...], datetime]:
    """The names of the certificate in `path`, and when it ends.

    Raises:
        ValueError: It holds none.
    """
    made = x509.load_pem_x509_certificate(path.read_bytes())
    try:
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return (), made.not_valid_after_utc
    return tuple(str(name.value) for name in names), made.not_valid_after_utc


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    *,
    days: float,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(name)) if is_address(name) else x509.DNSName(name)


def _write(folder: Path, name: str, made: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    """The key first: a reader that meets the old certificate with it refuses the pair, and keeps what it has."""
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_atomic(folder / f"{name}{KEY}", secret)
    write_atomic(folder / f"{name}{CERTIFICATE}", made.public_bytes(serialization.Encoding.PEM), mode=0o644)
