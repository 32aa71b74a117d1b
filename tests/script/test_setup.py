import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("awk", "bash", "cat", "dirname", "env", "flock", "ls", "mkdir", "rm", "sha256sum", "tee")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with what set-up reads, and beside it `bin`, all that is on PATH: no uv, no Python."""
    folder = tmp_path / "project"
    for name in ("script", "requirements"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or tool)
    return folder


def setup(project: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(project.parent / "bin"), "HOME": os.environ.get("HOME", "/"), **env}
    return subprocess.run(
        [str(project / "script/setup.sh"), *args],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def fake_python(project: Path, name: str, *, version_ok: bool, modules_ok: bool = True) -> None:
    """A Python that answers what set-up asks: its version, whether it has venv, and to make one."""
    file = project.parent / "bin" / name
    file.write_text(f"""#!{shutil.which("bash")}
case "$*" in
  *version_info*) exit {0 if version_ok else 1} ;;
  *ensurepip*) exit {0 if modules_ok else 1} ;;
  --version) echo "Python 3.99" ;;
  "-m venv"*) mkdir -p "${{@: -1}}/bin"; printf '#!/bin/bash\\nif [[ "$*" == *compile.py ]]; then echo >>"%s"; exit "${{FAKE_COMPILE:-0}}"; fi\\n[[ "$*" == *" install "* ]] || exit 0\\necho "$@" >>"%s"; echo "$FAKE_COMPLAINT" >&2; exit "${{FAKE_PIP:-0}}"\\n' "{project}/compile.log" "{project}/pip.log" \
    >"${{@: -1}}/bin/python"; chmod +x "${{@: -1}}/bin/python" ;;
esac
""")
    file.chmod(0o755)
    (project.parent / "bin" / "chmod").unlink(missing_ok=True)
    (project.parent / "bin" / "chmod").symlink_to(shutil.which("chmod") or "chmod")


def test_without_a_suitable_python_the_remedy_is_told(project: Path) -> None:
    fake_python(project, "python3", version_ok=False)
    done = setup(project)
    assert done.returncode == 78
    assert "no Python 3.11 or newer found" in done.stderr
    assert "apt-get install python3 python3-venv" in done.stderr
    assert not (project / ".venv").exists()


def test_a_python_without_venv_is_told_with_the_remedy(project: Path) -> None:
    fake_python(project, "python3", version_ok=True, modules_ok=False)
    done = setup(project)
    assert done.returncode == 78
    assert "python3 has no venv module" in done.stderr
    assert "apt-get install python3-venv" in done.stderr


def test_the_newest_python_is_taken_and_unsuitable_ones_are_passed_over(project: Path) -> None:
    fake_python(project, "python3.13", version_ok=False)
    fake_python(project, "python3.12", version_ok=True)
    fake_python(project, "python3", version_ok=False)
    done = setup(project)
    assert done.returncode == 0, done.stderr
    assert "set-up: making" in done.stdout


def test_packages_are_installed_with_hashes_and_the_project_without_dependencies(project: Path) -> None:
    fake_python(project, "python3", version_ok=True)
    assert setup(project).returncode == 0
    first, second = (project / "pip.log").read_text().splitlines()
    assert "--require-hashes -r" in first
    assert first.endswith("requirements/run.lock")
    assert "--no-deps --no-build-isolation -e" in second


def test_the_second_run_does_nothing(project: Path) -> None:
    fake_python(project, "python3", version_ok=True)
    setup(project)
    (project / "pip.log").unlink()
    done = setup(project)
    assert (done.returncode, done.stdout) == (0, "")
    assert not (project / "pip.log").exists()


def test_an_environment_for_development_serves_to_run_and_not_the_other_way_round(project: Path) -> None:
    fake_python(project, "python3", version_ok=True)
    setup(project, "run")
    assert "requirements/dev.lock" in setup(project, "dev").stdout
    assert setup(project, "run").stdout == ""
    assert setup(project, "dev").stdout == ""


def test_a_changed_lock_is_installed(project: Path) -> None:
    fake_python(project, "python3", version_ok=True)
    setup(project)
    with (project / "requirements/run.lock").open("a") as lock:
        lock.write("# changed\n")
    assert "installing the locked packages" in setup(project).stdout


def test_an_interrupted_set_up_is_done_again_from_the_start(project: Path) -> None:
    fake_python(project, "python3", version_ok=True)
    done = setup(project, FAKE_PIP="1")
    assert done.returncode == 1
    assert "the packages could not be installed" in done.stderr
    (project / ".venv/half-installed").touch()
    assert setup(project).returncode == 0
    assert not (project / ".venv/half-installed").exists()


def test_a_folder_that_is_not_ours_is_left_alone(project: Path) -> None:
    fake_python(project, "python3", version_ok=True)
    (project / ".venv").mkdir()
    (project / ".venv/precious").touch()
    done = setup(project)
    assert done.returncode == 78
    assert "was not made by this script" in done.stderr
    assert (project / ".venv/precious").exists()


def test_another_folder_may_be_named(project: Path) -> None:
    fake_python(project, "python3", version_ok=True)
    assert setup(project, SVC_VENV=str(project.parent / "elsewhere")).returncode == 0
    assert (project.parent / "elsewhere/bin/python").exists()
    assert not (project / ".venv").exists()


def test_skip_uses_what_is_there_and_needs_it(project: Path) -> None:
    done = setup(project, SVC_SETUP="skip")
    assert done.returncode == 78
    assert "SVC_SETUP=skip, but there is no" in done.stderr


def test_the_data_plane_is_compiled_with_the_environment_and_when_its_sources_changed(project: Path) -> None:
    """The program itself sees whether there is anything to do."""
    fake_python(project, "python3", version_ok=True)
    for asked, is_called in ((None, True), (None, True), ("no", False), ("new", False), ("yes", True)):
        (project / "compile.log").unlink(missing_ok=True)
        assert setup(project, **({} if asked is None else {"SVC_COMPILE": asked})).returncode == 0
        assert (project / "compile.log").exists() == is_called, asked


def test_a_launch_compiles_only_with_an_environment_that_it_makes(project: Path) -> None:
    fake_python(project, "python3", version_ok=True)
    assert setup(project, SVC_COMPILE="new").returncode == 0
    assert (project / "compile.log").exists()
    assert 'SVC_COMPILE="${SVC_COMPILE:-new}" "$SVC_ROOT/script/setup.sh" run' in (ROOT / "script/lib.sh").read_text()


@pytest.mark.parametrize(("asked", "code"), [("", 0), ("yes", 69)])
def test_what_cannot_be_compiled_fails_only_who_demands_it(project: Path, asked: str, code: int) -> None:
    fake_python(project, "python3", version_ok=True)
    done = setup(project, FAKE_COMPILE="69", SVC_COMPILE=asked)
    assert done.returncode == code, done.stderr
    assert ("is not compiled" in done.stderr) == bool(code)
    again = setup(project, FAKE_COMPILE="69")
    assert (again.returncode, again.stdout) == (0, "")


def test_an_unknown_word_about_compiling_is_refused(project: Path) -> None:
    fake_python(project, "python3", version_ok=True)
    done = setup(project, SVC_COMPILE="maybe")
    assert done.returncode == 78
    assert "SVC_COMPILE must be no, yes or new" in done.stderr


def test_an_unknown_kind_is_refused(project: Path) -> None:
    assert setup(project, "everything").returncode == 2


def test_the_locks_are_hashed_and_hold_every_floor() -> None:
    for name in ("run", "dev"):
        text = (ROOT / f"requirements/{name}.lock").read_text()
        pinned = [line.split("==")[0] for line in text.splitlines() if "==" in line and not line.startswith(("#", " "))]
        assert {"aiohttp", "pydantic", "uvloop", "hatchling", "editables"} <= set(pinned)
        assert text.count("--hash=sha256:") >= len(pinned)


@pytest.mark.parametrize(
    ("complaint", "cause"),
    [
        ("WARNING: Retrying … [Errno -3] Temporary failure in name resolution\nERROR: No matching distribution", "DNS"),
        ("WARNING: … [Errno 111] Connection refused\nERROR: No matching distribution found for x", "cannot be reached"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "PIP_CERT"),
        ("ProxyError('Cannot connect to proxy.', NewConnectionError('Name or service not known'", "HTTPS_PROXY"),
        ("ERROR: HTTP error 401 while getting https://index/x.whl", "credentials"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "other files than the locked"),
        ("ERROR: No matching distribution found for x==1", "lacks a locked package"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
    ],
)
def test_a_failed_installation_names_its_own_cause_W29(project: Path, complaint: str, cause: str) -> None:
    fake_python(project, "python3", version_ok=True)
    done = setup(project, FAKE_PIP="1", FAKE_COMPLAINT=complaint)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert cause in done.stderr.splitlines()[-1]


BACKEND = """
import zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(f"{folder}/ours-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("ours-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: ours\\nVersion: 1\\n")
        wheel.writestr("ours-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("ours-1.dist-info/RECORD", "")
        wheel.writestr("ours.py", "")
    return "ours-1-py3-none-any.whl"
"""


def test_settings_of_the_callers_pip_and_python_change_nothing_but_the_index_W29(project: Path, tmp_path: Path) -> None:
    """A real pip: a pip.conf and variables that would put packages elsewhere, and an index that only they name."""
    index, home, elsewhere = tmp_path / "an index", tmp_path / "home", tmp_path / "elsewhere"
    for folder in (index, home / ".config" / "pip", elsewhere):
        folder.mkdir(parents=True)
    wheel = index / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n")
        archive.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.dist-info/RECORD", "")
        archive.writestr("tiny.py", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (project / "requirements" / "run.lock").write_text(f"tiny==1 --hash=sha256:{digest}\n")
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n[project]\nname = "ours"\nversion = "1"\n'
    )
    (project / "backend.py").write_text(BACKEND)
    (home / ".config" / "pip" / "pip.conf").write_text(
        f"[global]\nno-index = true\nfind-links = {index.as_uri()}\n[install]\nuser = true\nno-binary = :all:\n"
    )
    (elsewhere / "pip.py").write_text("raise SystemExit('somebody else is imported')")
    (project.parent / "bin" / "python3.11").symlink_to(sys.executable)
    told = {f"PIP_{name}": str(elsewhere) for name in ("TARGET", "PREFIX", "ROOT", "CONSTRAINT")}
    done = setup(
        project,
        **told,
        HOME=str(home),
        PYTHONPATH=str(elsewhere),
        PIP_USER="1",
        PIP_DRY_RUN="1",
        SVC_PYTHON_FOR_VENV=sys.executable,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [packages] = (project / ".venv" / "lib").glob("python3.*/site-packages")
    assert {"tiny.py", "ours.py"} <= {path.name for path in packages.iterdir()}
    assert [path.name for path in elsewhere.iterdir()] == ["pip.py"]
