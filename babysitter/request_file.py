"""The create request of a replica that is made of a template, as its agent wrote it down."""

from __future__ import annotations  # read by those who have one only

import json
from pathlib import Path
from typing import TYPE_CHECKING

from babysitter.spec import Requested
from common.atomic_file import read_bounded

if TYPE_CHECKING:
    from common.wire.create import Timeouts

LIMIT_BYTES = 1 << 20


def read(replica_dir: Path) -> tuple[Timeouts | None, Requested]:
    """The deadlines that were asked for, and what every report says of the request.

    One that cannot be read asks for nothing: its server's settings are written down apart.
    """
    from common.nulls import without_nulls  # noqa: PLC0415
    from common.wire.create import TemplateRequest  # noqa: PLC0415

    try:
        body = json.loads(read_bounded(replica_dir / "request.json", limit_bytes=LIMIT_BYTES))
        request = TemplateRequest.model_validate(without_nulls(TemplateRequest, body))
    except (OSError, ValueError, AttributeError):
        return None, Requested()
    return request.timeouts, Requested(
        model_name=request.model_name, request_id=request.request_id, metadata=request.metadata
    )
