"""A CA and certificates of it, as files that settings name."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trustme

from common.http.tls import TlsFiles

NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass
class Authority:
    """A CA whose files lie in a folder."""

    folder: Path
    ca: trustme.CA = field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.path)

    def issue(self, name: str, *names: str, days: float = 30) -> tuple[Path, Path]:
        """Certificate and key NAME, for `names` (localhost), that end in `days`; made anew over what is there."""
        now = datetime.now(UTC)
        made = self.ca.issue_cert(
            *(names or NAMES), not_before=now - timedelta(days=40), not_after=now + timedelta(days=days)
        )
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        for path, blobs in ((cert, made.cert_chain_pems), (key, [made.private_key_pem])):
            beside = path.with_suffix(".new")
            beside.write_bytes(b"".join(blob.bytes() for blob in blobs))
            beside.chmod(0o600)
            beside.replace(path)
        return cert, key

    def settings(self, name: str = "node", *, mutual: bool = False, **changes: Any) -> dict[str, Any]:
        """The settings of a service that shows NAME and believes this CA."""
        cert, key = self.issue(name)
        made = {"tls_cert_file": cert, "tls_key_file": key, "tls_ca_file": self.path}
        return {**made, **({"tls_client_ca_file": self.path} if mutual else {}), **changes}

    def files(self, name: str = "node", *, mutual: bool = False) -> TlsFiles:
        """The same for `Tls`."""
        cert, key = self.issue(name)
        return TlsFiles(cert, key, self.path if mutual else None, self.path)
