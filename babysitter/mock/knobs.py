"""What can be set on the mock server: by flag at start, and (all but the marked ones) by `POST /mock/knobs` later."""

from typing import Literal

from common.settings import Settings, option


class Knobs(Settings):
    """How the mock server answers and misbehaves."""

    ttft_s: float = option(0.0, "Wait before the first byte of an answer, in seconds.", ge=0)
    token_delay_s: float = option(0.0, "Wait between two tokens, in seconds.", ge=0)
    tokens: int = option(16, "Tokens of an answer whose request has no max_tokens.", ge=0)
    seeded: bool = option(
        False, "Each word follows from all the text before it, so that an answer can be gone on with."
    )
    paths: Literal["both", "v1", "bare"] = option("both", "Which forms of the paths are served; the other is 404.")
    models_call: Literal["ok", "list", "missing", "empty", "broken"] = option(
        "ok", "How the models call answers: properly, as a bare list, 404, with no model, or with no JSON."
    )
    health_status: int = option(200, "Status of GET /health.", ge=200, le=599)
    fail_first: int = option(0, "So many inference requests, from now on, are answered fail_status.", ge=0)
    fail_status: int = option(503, "Status of the failing answers.", ge=400, le=599)
    fail_word: str = option("", "Requests whose prompt contains this word are answered fail_status.")
    retry_after_s: int | None = option(None, "Retry-After of the failing answers, in seconds.")
    die_after_chunks: int | None = option(None, "os._exit after so many chunks; 0: before the first byte.", ge=0)
    reset_after_chunks: int | None = option(None, "Reset the connection after so many chunks; 0: at once.", ge=0)
    vanish_after_chunks: int | None = option(
        None, "Close the connection without a word (no FIN, no RST; only as root) after so many chunks.", ge=0
    )
    hang_after_chunks: int | None = option(None, "Say nothing more after so many chunks; 0: never begin.", ge=0)
    close_without_done: bool = option(False, "End a stream cleanly, but without its [DONE].")
    wrong_length: int = option(0, "Added to the Content-Length of whole answers, in bytes.", ge=0)
    hold: bool = option(False, "Park each inference request before its first byte until POST /mock/release.")
    ignore_sigterm: bool = option(False, "Do not end on SIGTERM.")
    refuse_s: float = option(0.0, "Close the port for so many seconds, then listen again.", ge=0)
    log_lines_per_s: float = option(0.0, "Lines written to standard output, per second.", ge=0, le=10_000)
    leak_mb_per_s: float = option(0.0, "Memory taken and never given back, MB per second.", ge=0)
    exit_after_s: float | None = option(None, "Exit so many seconds after the start (only as a flag).", ge=0)
    exit_code: int = option(1, "Exit code of exit_after_s and die_after_chunks.", ge=0, le=255)
    slow_start_s: float = option(0.0, "Open the port so many seconds after the start (only as a flag).", ge=0)
    wake_s: float = option(0.0, "How long it takes to wake, in seconds.", ge=0)
    drain_s: float = option(1.0, "How long open requests may take after SIGTERM, in seconds.", ge=0)
    idle_close_s: float = option(75.0, "Close idle connections after so many seconds (only as a flag).", gt=0)
    grandchild: bool = option(False, "Start a process in a session of its own that outlives this one (only as a flag).")
