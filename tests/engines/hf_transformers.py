"""`transformers serve` for tests: Hugging Face's own server of one process, in an environment of its own (1.2 GB)."""

from pathlib import Path

from tests.engines.install import HERE, PLACE, environment, once, run

VERSION, TORCH = "5.24.0", "2.13.0"
FOLDER = PLACE / f"transformers-{VERSION}"


def folder() -> Path:
    """Its environment; makes it the first time.

    Raises:
        CalledProcessError: It cannot be installed.
    """
    steps = (f"torch=={TORCH}",), (f"transformers[serving]=={VERSION}",)
    return once(FOLDER, lambda: environment(FOLDER, *steps))


def model() -> Path:
    """The folder of a tiny Llama; makes it the first time."""
    python, made = str(folder() / "bin" / "python"), PLACE / "tiny-models" / "transformers-llama"
    return once(made, lambda: run(python, str(HERE / "tiny_models.py"), "llama", str(made)))
