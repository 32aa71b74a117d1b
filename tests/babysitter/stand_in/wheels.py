"""Wheels made by hand: a zip with a module or two and the metadata that pip reads."""

import base64
import hashlib
import zipfile
from pathlib import Path

SERVER = Path(__file__).with_name("server.py").read_text()


def make_wheel(
    directory: Path,
    name: str,
    version: str,
    *,
    files: dict[str, str] | None = None,
    requires: tuple[str, ...] = (),
    file_version: str | None = None,
) -> Path:
    """Write `name-version-py3-none-any.whl`; `file_version` misnames the file as builds do."""
    spelled = name.replace("-", "_")
    info = f"{spelled}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    content = {
        **(files or {f"{spelled}_here.py": f"VERSION = {version!r}\n"}),
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in content.items():
        raw = text.encode()
        digest = base64.urlsafe_b64encode(hashlib.sha256(raw).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(raw)}\n"
    content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{spelled}-{file_version or version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
    return target


def suite(directory: Path, version: str, *, dependency: str = "stand-in-dep") -> list[Path]:
    """The five packages of one build, the server among them, and a public dependency of theirs."""
    module = {
        "cerebras/inference/workload/__init__.py": "",
        "cerebras/inference/workload/main.py": SERVER,
    }
    return [
        make_wheel(directory, "cerebras-pytorch", version, requires=(dependency,)),
        make_wheel(directory, "cerebras-inference-api-server", version, requires=(f"{dependency}>=1",)),
        make_wheel(directory, "cerebras-inference-compiler", version, requires=("cerebras-pytorch",)),
        make_wheel(directory, "cerebras_appliance", version, requires=("no-such-package-anywhere",)),
        make_wheel(directory, "cerebras_inference_workload", version, files=module, requires=("no-such-package",)),
    ]
