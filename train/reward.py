"""Train a finished LoRA or adapter on, with rewards for pictures that it makes: the person, and the look.

    idgen train reward --on runs/anna --config train/configs/id_aligner_lora.yaml --out runs/anna-rewarded
    idgen train reward --on runs/adapter --config train/configs/id_aligner_adapter.yaml --out runs/rewarded

RUN is what `idgen train lora` or `idgen train adapter` left. Photos, model, encoder and everything else are
taken from it, as far as --config and --set say nothing else; terms, rollout and optimizer are of --config
alone. The loop is that of the program which made RUN, and so is the result: this one says where to begin.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from idgen.config import Parser, override, read_yaml
from idgen.errors import ConfigError, RunFolderError

REWARDS = ("identity_reward", "aesthetic_reward")
OWN = ("terms", "rollout", "optimizer")  # nothing of these is taken from RUN
RESULTS = {
    "lora": Path("pytorch_lora_weights.safetensors"),
    "adapter": Path("adapter") / "faceid.safetensors",
}


def kind_of(run: Path) -> str:
    """Which program made ``run``: "lora" or "adapter".

    Raises:
        RunFolderError: if neither did, it has not finished, or it trained identity tokens (lost here).
    """
    written = run / "config.yaml"
    if not written.is_file():
        raise RunFolderError(f"{run} is no run of `idgen train lora` or `idgen train adapter`: no {written}")
    settings = read_yaml(written)
    kind = "lora" if "photos" in settings else "adapter" if "pictures_per_person" in settings else None
    if kind is None:
        raise RunFolderError(f"{run} is a run of another program: {written} is not of a LoRA or an adapter")
    if settings.get("kind") == "wplus":
        raise RunFolderError(
            f"{run} trained a W+ adapter, and this program goes on from adapters of face vectors; put the "
            "terms identity_reward and aesthetic_reward into the configuration of that run instead"
        )
    if settings.get("stages"):
        raise RunFolderError(
            f"{run} trained identity tokens (stages), and a reward goes on from a LoRA or an adapter alone; "
            "put the terms identity_reward and aesthetic_reward into the configuration of that run instead"
        )
    if not (run / RESULTS[kind]).is_file():
        raise RunFolderError(f"{run} has not finished: there is no {run / RESULTS[kind]}; let it end first")
    return kind


def merged(run: Path, kind: str, config: Path | None, assignments: Sequence[str]) -> dict[str, Any]:
    """The settings of ``run``, with these over them, beginning with its result.

    Raises:
        ConfigError: if no reward has a weight.
    """
    own = override(read_yaml(config) if config else {}, assignments)
    before = {name: value for name, value in read_yaml(run / "config.yaml").items() if name not in OWN}
    terms = own.get("terms") or {}
    if not any((terms.get(name) or {}).get("weight", 1.0) for name in REWARDS if name in terms):
        raise ConfigError(
            f"no reward among the terms ({', '.join(terms) or 'none'}): give a --config such as "
            f"train/configs/id_aligner_{kind}.yaml, or `--set terms.identity_reward.weight=0.5`"
        )
    settings = {**before, **own, "start": str(run / RESULTS[kind])}
    drawn = sorted((run / "cache").glob("prior-*"))
    if kind == "lora" and "prior" not in own and not settings["prior"]["folder"] and drawn:
        settings["prior"] = {
            **settings["prior"],
            "folder": str(drawn[0]),
        }  # the same pictures, not drawn again
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Merge the settings, run the program that made RUN."""
    parser = Parser(description=__doc__)
    parser.add_argument("--on", type=Path, required=True, metavar="RUN", help="finished run to go on from")
    parser.add_argument("--config", type=Path, help="YAML file with terms, rollout and optimizer")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override a setting")
    parser.add_argument("--out", type=Path, required=True, help="run folder; a run found there goes on")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    options = parser.parse_args(argv)
    kind = kind_of(options.on)
    if options.out.resolve() == options.on.resolve():
        raise RunFolderError(f"--out {options.out} is the run to go on from; choose another folder")
    settings = merged(options.on, kind, options.config, options.set)
    with TemporaryDirectory() as place:
        file = Path(place) / "config.yaml"
        file.write_text(yaml.safe_dump(settings))
        command = ["train", kind, "--config", str(file), "--out", str(options.out)]
        dry = ["--dry-run"] if options.dry_run else []
        return subprocess.run([sys.executable, "-m", "idgen", *command, *dry], check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
