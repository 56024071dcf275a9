import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from idgen import cli
from idgen.config import Parser, override
from idgen.errors import ConfigError

ROOT = Path(__file__).parents[1]
HEAVY = {
    "torch",
    "diffusers",
    "transformers",
    "onnxruntime",
    "onnx",
    "numpy",
    "PIL",
    "yaml",
    "huggingface_hub",
}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs in place of the real ones."""
    (tmp_path / "train").mkdir()
    monkeypatch.setattr(cli, "programs_root", lambda: tmp_path)
    return tmp_path


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on stderr, which must be one line."""
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.endswith("\n")
    return said


# ---- the table


def test_help_is_quick() -> None:
    """0.4 s for the whole process, in time of the processor: other processes do not count."""
    seconds = []
    for _ in range(5):
        start = _seconds_of_children()
        done = subprocess.run(
            [sys.executable, "-m", "idgen", "--help"], capture_output=True, text=True, check=True
        )
        seconds.append(_seconds_of_children() - start)
    assert min(seconds) < 0.4
    assert all(name in done.stdout for name in cli.COMMANDS)


def _seconds_of_children() -> float:
    spent = os.times()
    return spent.children_user + spent.children_system


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from idgen.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & {name.partition(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize("command", ["generate", "embed", "inspect", "doctor", "blocklist"])
def test_help_of_a_command_imports_neither_torch_nor_diffusers(command: str) -> None:
    code = f"""
import sys
from idgen.cli import main
try:
    main(["{command}", "--help"])
except SystemExit:
    print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: idgen {command}")
    assert not {"torch", "diffusers"} & {name.partition(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_one_line_of_help_and_something_to_run(command: str) -> None:
    entry = cli.COMMANDS[command]
    assert entry.help
    assert "\n" not in entry.help
    if entry.target.endswith(("/", ".py")):
        assert (ROOT / entry.target).exists()
    else:
        assert (ROOT / f"{entry.target.replace('.', '/')}.py").is_file()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "idgen 0.1.0\n"


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["genrate"]) == 2
    assert (
        one_line(capsys)
        == "idgen: 'genrate' is not a command; did you mean 'generate'? (`idgen --help` lists them)\n"
    )


def test_an_unknown_word_of_a_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["synthesize", "exprot", "made"]) == 2
    assert one_line(capsys) == (
        "idgen: synthesize has no command 'exprot'; did you mean 'export'? "
        "(there is: plan, diff, export, import, check)\n"
    )


def test_no_command_shows_the_commands_and_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "generate" in capsys.readouterr().err


# ---- programs


def test_training_programs_are_listed_with_their_first_line(
    programs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (programs / "train/toy.py").write_text('"""Fit a toy.\n\nAt length."""')
    assert cli.main(["train", "--help"]) == 0
    assert "  toy  Fit a toy.\n" in capsys.readouterr().out
    assert cli.main(["train", "tyo"]) == 2
    assert "no program 'tyo'; did you mean 'toy'? (there is: toy)" in one_line(capsys)


def test_a_program_runs_as_main_with_its_arguments(
    programs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (programs / "train/toy.py").write_text("import sys; print(__name__, sys.argv)")
    before = list(sys.argv)
    assert cli.main(["train", "toy", "--steps", "3"]) == 0
    assert capsys.readouterr().out == f"__main__ ['{programs}/train/toy.py', '--steps', '3']\n"
    assert sys.argv == before


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("raise SystemExit(0)", 0, ""),
        ("raise SystemExit(None)", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('it broke')", 1, "it broke\n"),
        ("from idgen.errors import ConfigError; raise ConfigError('steps: 0')", 2, "idgen: steps: 0\n"),
        ("from idgen.errors import StorageError; raise StorageError('disk full')", 2, "idgen: disk full\n"),
        ("from idgen.errors import UnknownNameError; raise UnknownNameError('who')", 2, "idgen: who\n"),
        ("raise KeyboardInterrupt", 130, "idgen: interrupted\n"),
    ],
)
def test_how_a_program_ends(
    programs: Path, capsys: pytest.CaptureFixture[str], body: str, code: int, said: str
) -> None:
    (programs / "train/toy.py").write_text(body)
    assert cli.main(["train", "toy"]) == code
    assert capsys.readouterr().err == said


def test_a_fault_of_ours_keeps_its_traceback(programs: Path) -> None:
    (programs / "train/toy.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "toy"])


def test_an_installation_without_its_programs_says_so(
    programs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", "--help"]) == 2
    assert f"lacks the program {programs}/pipelines/portrait.py" in one_line(capsys)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/toy.py").write_text("import time; print('on', flush=True); time.sleep(60)")
    code = "from pathlib import Path; from idgen import cli; "
    code += (
        f"cli.programs_root = lambda: Path({str(tmp_path)!r}); raise SystemExit(cli.main(['train', 'toy']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert said == "idgen: interrupted\n"


def test_a_closed_pipe_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "idgen", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == ""


# ---- options


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--promt", "x"],
            "--promt is not an option; did you mean '--prompt'?",
        ),  # before: --prompt is missing
        (["--prompt", "x", "--prom", "y"], "--prom is not an option; did you mean '--prompt'?"),
        (["--prompt", "x", "--cuont=3"], "--cuont is not an option; did you mean '--count'?"),
        (["--prompt", "x", "--zzz"], "--zzz is not an option (`"),
        (["--prompt", "x", "--count", "three"], "argument --count: invalid int value: 'three'"),
        (["--count", "3"], "the following arguments are required: --prompt"),
        (["--prompt", "x", "y"], "unrecognized arguments: y"),
    ],
)
def test_a_wrong_option_is_answered_in_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    parser = Parser(prog="idgen toy")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--count", type=int)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(words)
    assert stop.value.code == 2
    line = one_line(capsys)
    assert line.startswith("idgen toy: ")
    assert said in line


def test_words_that_look_like_options_can_be_values() -> None:
    parser = Parser(prog="idgen toy")
    parser.add_argument("--prompt")
    parser.add_argument("--count", type=int)
    options = parser.parse_args(["--prompt=--odd", "--count", "-1"])
    assert (options.prompt, options.count) == ("--odd", -1)
    assert parser.parse_args(["--prompt", "-- a prompt with spaces"]).prompt == "-- a prompt with spaces"


def test_a_training_program_goes_by_the_name_of_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/train/mini.py"])
    assert Parser().prog == "idgen train mini"


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("rate", "--set takes NAME=VALUE, got 'rate'"),
        ("steps.many=1", "steps is one setting and no group of them"),
        ("rate=[", r"'\[' is no value in YAML"),
    ],
)
def test_a_setting_that_cannot_be_set_is_said(assignment: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        override({"steps": 3}, [assignment])
    assert override({"steps": 3}, ["optimizer.rate=1e-3", "steps=4"]) == {
        "steps": 4, "optimizer": {"rate": "1e-3"}
    }  # fmt: skip
