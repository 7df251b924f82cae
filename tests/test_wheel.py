"""What `pip install .` brings: embedstore with its loaders, and a command that runs."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from embedstore import __version__

ROOT = Path(__file__).parent.parent
MODULES = {
    f"embedstore/{path.relative_to(ROOT / 'embedstore').as_posix()}"
    for path in (*(ROOT / "embedstore").rglob("*.py"), *(ROOT / "embedstore" / "loaders").glob("*.py"))
}


def succeed(*command: str | Path, cwd: Path, **env: str) -> str:
    """Run a command as a user would, outside of the checkout; return what it printed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COLUMNS")}
    done = subprocess.run(
        command, cwd=cwd, env={**kept, **env}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(target: Path, *flags: str) -> None:
    succeed(
        sys.executable, "-m", "build", "--no-isolation", *flags, "--outdir", target, ROOT, cwd=target.parent
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel that is built from the checkout."""
    target = tmp_path_factory.mktemp("wheel")
    build(target, "--wheel")
    return next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an sdist and the wheel that is built from it."""
    target = tmp_path_factory.mktemp("archives")
    build(target)
    return target


def names_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    assert "embedstore/loaders/__init__.py" in MODULES
    inside = {name for name in names_of(wheel) if ".dist-info/" not in name}
    assert inside == {*MODULES, "embedstore/py.typed"}


def test_wheel_has_the_licence_and_the_command(wheel: Path) -> None:
    info = f"embedstore-{__version__}.dist-info"
    assert f"{info}/licenses/LICENSE" in names_of(wheel)
    with zipfile.ZipFile(wheel) as archive:
        assert "embedstore = embedstore.cli:main" in archive.read(f"{info}/entry_points.txt").decode()


def test_a_wheel_by_way_of_the_sdist_is_the_same(wheel: Path, archives: Path) -> None:
    assert names_of(next(archives.glob("*.whl"))) == names_of(wheel)


def test_sdist_holds_what_an_installer_needs_and_no_link(archives: Path) -> None:
    with tarfile.open(next(archives.glob("*.tar.gz"))) as archive:
        members = archive.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    assert {"LICENSE", "README.md", "constraints.txt", "requirements-serve.txt", "pyproject.toml"} <= names
    assert names >= MODULES
    assert all(member.isfile() or member.isdir() for member in members)


def fresh_environment(folder: Path, wheel: Path) -> Path:
    """Install the wheel into a new environment that borrows the dependencies; return its bin folder."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    succeed(
        *(
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--python",
            python,
            "install",
            "--quiet",
        ),
        *("--no-deps", "--no-index", wheel),
        cwd=folder,
    )
    site = Path(
        succeed(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    )
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    return folder / "bin"


def test_the_installed_command_runs(wheel: Path, tmp_path: Path) -> None:
    bin_folder = fresh_environment(tmp_path / "env", wheel)
    assert succeed(bin_folder / "embedstore", "--version", cwd=tmp_path).strip().endswith(__version__)
    assert "Usage: embedstore" in succeed(bin_folder / "embedstore", "--help", cwd=tmp_path)
    where = succeed(
        *(bin_folder / "python", "-c", "import embedstore.loaders as l; print(l.__file__, l.load)"),
        cwd=tmp_path,
    )
    assert where.startswith(str(tmp_path / "env"))


def test_no_file_of_the_package_names_a_host_to_install_from() -> None:
    for name in ("constraints.txt", "requirements-serve.txt", "pyproject.toml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "://" not in text, name
        assert "index-url" not in text, name
