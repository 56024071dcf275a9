"""The wheel, installed in a fresh environment: everything that the commands need travels in it."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from idgen.mini import BASE

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=out)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that has the wheel, the packages of this one, and not the source tree.

    A path in a .pth file is searched, but the .pth files there are not read: an editable idgen stays out.
    """
    folder = tmp_path_factory.mktemp("fresh") / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin/python"
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "-q",
        "--no-deps",
        "--no-compile",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(command, check=True)
    here = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})["purelib"]
    (Path(here) / "shared.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    return folder / "bin"


def run(installed: Path, cwd: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [str(installed / words[0]), *map(str, words[1:])]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=env)


def test_the_wheel_holds_library_programs_and_mini_and_nothing_else(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    expected = {
        f"idgen/programs/{file.relative_to(ROOT)}"
        for folder in ("train", "pipelines", "eval", "app")
        for file in (ROOT / folder).rglob("*.*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    expected |= {
        str(file.relative_to(ROOT))
        for file in (ROOT / "idgen").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    packed = {name for name in names if not name.startswith("idgen-0.1.0.dist-info/")}
    assert packed == expected
    assert "idgen-0.1.0.dist-info/licenses/LICENSE" in names


def test_the_installed_idgen_is_not_the_source_tree(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "python", "-c", "import idgen; print(idgen.__file__)")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed.parent)


def test_the_command_runs_from_another_folder(installed: Path, tmp_path: Path) -> None:
    assert "generate" in run(installed, tmp_path, "idgen", "--help").stdout
    done = run(installed, tmp_path, "idgen", "doctor")
    assert done.returncode == 0, done.stderr
    assert "torch 2" in done.stdout
    assert "cannot be read" not in done.stdout


@pytest.mark.parametrize(("command", "folder"), [("train", "train"), ("evaluate", "eval")])
def test_programs_are_found_in_the_wheel(installed: Path, tmp_path: Path, command: str, folder: str) -> None:
    done = run(installed, tmp_path, "idgen", command, "--help")
    assert done.returncode == 0, done.stderr
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert listed == {path.stem for path in (ROOT / folder).glob("*.py")}


def test_a_program_starts_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "idgen", "generate", "--no-such-option")
    assert done.returncode == 2
    assert done.stderr.startswith("idgen generate: --no-such-option is not an option")


@pytest.mark.skipif(
    not (BASE / "model_index.json").is_file(), reason="mini is not in this source tree: train/mini.py"
)
def test_a_photo_becomes_pictures(installed: Path, tmp_path: Path) -> None:
    from PIL import Image
    from skimage import data

    Image.fromarray(data.astronaut()).save(tmp_path / "photo.png")
    words = ["--face", "photo.png", "--prompt", "a photo of a woman", "--count", "1", "--steps", "2"]
    done = run(installed, tmp_path, "idgen", "generate", *words, "--out", "made")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"0000.png", "run.json", "sheet.png"}
    shown = run(installed, tmp_path, "idgen", "inspect", "made/0000.png")
    assert "prompt: a photo of a woman" in shown.stdout
