"""What every training program shares: the run folder, progress, the moving average and the data's order."""

import json
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from idgen.config import to_yaml
from idgen.errors import RunFolderError
from idgen.storage import write_bytes

HALF_FROM = 1024  # numbers in a tensor from which on it is stored in halves: not biases and slopes
CHECKPOINT_EVERY = 200  # steps: a few minutes of work at most are done again


@dataclass
class Progress:
    """The part of a run that a checkpoint must bring back."""

    step: int = 0
    images_seen: int = 0


class TrainingRun:
    """A run folder: resolved configuration, versions, the log as JSON lines, checkpoints written whole."""

    def __init__(self, folder: Path, config: Any) -> None:  # noqa: ANN401 - any configuration dataclass
        """Open ``folder`` for ``config``, new or to go on with.

        Raises:
            RunFolderError: if the folder holds a run with other settings.
        """
        self.check(folder, config)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(to_yaml(config))
        (folder / "versions.json").write_text(json.dumps(_versions(), indent=1) + "\n")
        self._started = time.monotonic()

    @staticmethod
    def check(folder: Path, config: Any) -> None:  # noqa: ANN401
        """Refuse a folder that holds a run with other settings; nothing is written.

        Raises:
            RunFolderError: if it does, or is a file.
        """
        written = folder / "config.yaml"
        if folder.is_file():
            raise RunFolderError(f"{folder} is a file; a run goes into a folder")
        if written.exists() and written.read_text() != to_yaml(config):
            raise RunFolderError(
                f"{folder} holds a run with other settings ({written}); "
                "choose another --out, or give the settings of that run to go on with it"
            )

    def abandon(self) -> None:
        """Let the folder of a run that was refused before its first step be used with other settings.

        Does nothing where something was trained. What was found in the pictures stays.
        """
        if any(self.folder.glob("*.pt")) or any(self.folder.glob("*.jsonl")):
            return
        for name in ("config.yaml", "versions.json", "data.json", "held_out_pairs.csv"):
            (self.folder / name).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def rewind(self, name: str, step: int) -> None:
        """Drop what the log says of steps after ``step``: a run that was killed does them again.

        Raises:
            RunFolderError: if the log is damaged.
        """
        path = self.folder / f"{name}.jsonl"
        if path.exists():
            # the last line may be cut off where the process was killed while it wrote
            try:
                lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
                kept = [line for line in lines if json.loads(line)["step"] <= step]
            except (ValueError, KeyError, TypeError):
                raise RunFolderError(f"{path} is damaged; move it away to go on without it") from None
            write_bytes(path, "".join(f"{line}\n" for line in kept).encode())

    def log(self, name: str, progress: Progress, terms: Mapping[str, float]) -> None:
        """Add a line to ``<name>.jsonl`` and show it."""
        line = {**asdict(progress), "seconds": round(time.monotonic() - self._started, 1), **terms}
        with (self.folder / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        shown = "  ".join(f"{k} {v:.4f}" for k, v in terms.items())
        print(f"{name} {progress.step:6d}  {line['seconds']:7.1f} s  {shown}", flush=True)

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Write a checkpoint under a temporary name, then rename: it is whole or absent."""
        path = self.folder / f"{name}.pt"
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(path)

    def checkpoint_due(self, step: int, last: int) -> bool:
        """Whether step ``step`` of ``last`` is one to save after."""
        return step % CHECKPOINT_EVERY == 0 or step == last

    def load(self, name: str) -> dict[str, Any] | None:
        """The checkpoint of that name, or None if there is none yet.

        Raises:
            RunFolderError: if it is damaged.
        """
        path = self.folder / f"{name}.pt"
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # foreign bytes: whatever the readers of zip, pickle and storages say
            reason = str(error).partition("\n")[0]
            raise RunFolderError(f"{path} is damaged; delete it to begin anew: {reason}") from None


def store_halves(path: Path) -> None:
    """Rewrite an ONNX file: large weights as float16, each with a Cast to float32: the same arithmetic."""
    import onnx

    model = onnx.load(path)
    casts = []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= HALF_FROM:
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
            casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def store_bytes(path: Path) -> None:
    """Rewrite an ONNX file: large weights as 8-bit whole numbers, with a scale for each output channel.

    ``w ~ q * s`` with ``s = max |w| / 127`` over a channel (DequantizeLinear, ONNX opset 13); what is
    computed stays float32.
    """
    import onnx

    model = onnx.load(path)
    wide, small, nodes = [], [], []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < HALF_FROM or values.ndim < 2:
            wide.append(tensor)
            continue
        rows = values.reshape(len(values), -1)
        scale = np.maximum(np.abs(rows).max(axis=1), 1e-12).astype(np.float32) / 127
        numbers = np.rint(rows / scale[:, None]).astype(np.int8).reshape(values.shape)
        names = [f"{tensor.name}_bytes", f"{tensor.name}_scale"]
        small += [
            onnx.numpy_helper.from_array(numbers, names[0]),
            onnx.numpy_helper.from_array(scale, names[1]),
        ]
        nodes.append(onnx.helper.make_node("DequantizeLinear", names, [tensor.name], axis=0))
    nodes += model.graph.node
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend([*wide, *small])
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    names = ("torch", "diffusers", "transformers", "numpy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "commit": commit.stdout.strip() or "unknown",
    }


class MovingAverage:
    """Exponential moving average of weights, with a warm-up so that the first steps are forgotten.

    ``decay_t = min(decay, (1 + t) / (10 + t))``, as TensorFlow's ExponentialMovingAverage has it.
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self.decay = decay
        self.weights = {
            f"{name}/{key}": value.detach().clone()
            for name, module in modules.items()
            for key, value in module.state_dict().items()
        }

    @torch.no_grad()
    def update(self, modules: Mapping[str, nn.Module], step: int) -> None:
        """Move the averages towards the weights of ``modules`` after optimizer step ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, module in modules.items():
            for key, value in module.state_dict().items():
                average = self.weights[f"{name}/{key}"]
                if average.is_floating_point():
                    average.lerp_(value, 1 - decay)
                else:
                    average.copy_(value)

    def of(self, name: str) -> dict[str, Tensor]:
        """The averaged state dict of one module."""
        prefix = f"{name}/"
        return {k.removeprefix(prefix): v for k, v in self.weights.items() if k.startswith(prefix)}


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16; CPUs that only imitate it are 6 to 60 times slower so."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def reduced_precision(device: torch.device, *, wanted: bool = True) -> torch.autocast:
    """A block that computes in bfloat16, where the hardware can.

    Args:
        device: that computes.
        wanted: False for float32 in any case.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and has_bfloat16(device))


def step_generator(seed: int, step: int, *, rank: int = 0) -> torch.Generator:
    """Randomness that depends on (seed, rank, step) alone, so that resuming equals not stopping."""
    mixed = np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed) & 0x7FFF_FFFF_FFFF_FFFF)


def batch_rows(num_rows: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Rows of batch ``step``: every epoch is one permutation, a function of (seed, epoch) alone."""
    start = step * batch_size
    positions = np.arange(start, start + batch_size)
    epochs = positions // num_rows
    orders = {e: np.random.default_rng([seed, int(e)]).permutation(num_rows) for e in np.unique(epochs)}
    return np.asarray([orders[e][p % num_rows] for e, p in zip(epochs, positions, strict=True)])
