import json
import os
import re
import subprocess
import sys
from pathlib import Path

SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "RAY_USAGE_STATS_ENABLED": "0",
}

SESSION = """
import idgen
import sys
import numpy
import onnxruntime
from onnx import TensorProto, helper

a, b = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "ab")
graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "relu", [a], [b])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
print(session.run(None, {"a": numpy.float32([-1])})[0][0])
"""


def run(code: str, home: Path, **settings: str) -> str:
    """Run code as a user who has set nothing. This process has: it imported idgen."""
    env = {k: v for k, v in os.environ.items() if k not in SWITCHES and not k.startswith("XDG_")}
    env |= {"HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[1]), **settings}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=home)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_onnxruntime_leaves_no_file_once_idgen_is_imported(tmp_path: Path) -> None:
    """Without the switch, onnxruntime >= 1.29 makes ~/.cache/Microsoft/DeveloperTools/.onnxruntime."""
    assert run(SESSION, tmp_path).strip() == "0.0"
    assert not list(tmp_path.rglob("*"))


def test_importing_idgen_switches_telemetry_off(tmp_path: Path) -> None:
    code = f"import idgen, json, os; print(json.dumps({{k: os.environ.get(k) for k in {list(SWITCHES)}}}))"
    assert json.loads(run(code, tmp_path)) == SWITCHES


def test_the_tests_report_nothing_either() -> None:
    """A test that imports onnxruntime before idgen would; so conftest.py, which is first, imports idgen."""
    conftest = (Path(__file__).parent / "conftest.py").read_text(encoding="utf-8")
    assert re.search(r"^(from|import) idgen\b", conftest, re.MULTILINE)


def test_an_explicit_setting_wins(tmp_path: Path) -> None:
    code = "import idgen, os; print(os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    assert run(code, tmp_path, HF_HUB_DISABLE_TELEMETRY="0").strip() == "0"
