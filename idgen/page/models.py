"""Models and adapters that lie on this disk: whoever makes pictures chooses, one is open at a time."""

import functools
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError, safe_open

from idgen import mini
from idgen.config import nearest
from idgen.errors import ConfigError
from idgen.opening import model_folder
from idgen.page.making import Workshop, open_workshop
from idgen.page.turns import Place
from idgen.pipeline import ADAPTER_FOLDER

OWN = "the model's own"  # adapter
PICKLE = ".bin"  # as the adapters of the paper are published
DEPTH = 3  # folders below each other that are looked into
WANTED = "ip_adapter."  # begins the names of tensors in an IP-Adapter FaceID file


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """What can be chosen, by the name that people see; the first of each is what is open from the start.

    Attributes:
        models: name -> as in `model_folder`.
        adapters: name -> file; None for the one that came with the model.
        folders: that were searched.
    """

    models: dict[str, str]
    adapters: dict[str, Path | None]
    folders: tuple[Path, ...] = ()

    @property
    def is_a_choice(self) -> bool:
        """Whether there is more than one of anything."""
        return len(self.models) > 1 or len(self.adapters) > 1


def find_models(folders: Sequence[Path], *, model: str = "mini", adapter: Path | None = None) -> Shelf:
    """What lies in folders, beside what the command line names; mini is always there.

    Models are folders in the layout of diffusers, adapters are safetensors files with the tensors of an
    IP-Adapter FaceID file, and ``.bin`` files; nothing is opened yet.

    Args:
        folders: are searched, `DEPTH` deep.
        model: that is open from the start.
        adapter: likewise.

    Raises:
        ConfigError: if one is no folder.
    """
    models = {_name_of(model): model, "mini": "mini"}
    adapters: dict[str, Path | None] = {adapter.stem: adapter, OWN: None} if adapter else {OWN: None}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"--models {folder}: there is no such folder")
        for path in _below(folder):
            name = path.relative_to(folder).as_posix()
            if path.is_dir():
                models.setdefault(folder.resolve().name if path == folder else name, str(path))
            else:
                adapters.setdefault(name, path)
    return Shelf(models=models, adapters=adapters, folders=tuple(folders))


def _name_of(model: str) -> str:
    return "mini" if model_folder(model) == mini.BASE else model_folder(model).name


def _below(root: Path) -> list[Path]:
    """Models and adapters, in order; what lies within a model is part of it."""
    found: list[Path] = []
    for place, folders, files in os.walk(root):
        folder = Path(place)
        if (folder / DiffusionPipeline.config_name).is_file():
            found.append(folder)
            folders.clear()
            continue
        found += [folder / name for name in files if _is_adapter(folder / name)]
        is_deep = len(folder.relative_to(root).parts) >= DEPTH
        folders[:] = [] if is_deep else [name for name in folders if not name.startswith(".")]
    return sorted(found)


def _is_adapter(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return path.suffix == PICKLE  # what is in it is seen when it is opened, by a restricted reader
    try:
        with safe_open(path, framework="np") as file:
            return any(name.startswith(WANTED) for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError):
        return False


class Models:
    """Workshops by choice: those that are in use are found again, others are opened anew.

    Args:
        shelf: what can be chosen.
        opening: makes a workshop of a model and an adapter, as `open_workshop` does.
    """

    def __init__(self, shelf: Shelf, opening: Callable[..., Workshop] = open_workshop) -> None:
        self.shelf = shelf
        self._opening = functools.partial(opening, place=Place())
        self._shops: weakref.WeakValueDictionary[tuple[str, str], Workshop] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def choose(self, model: str | None = None, adapter: str | None = None) -> Workshop:
        """The workshop of a model with an adapter; the first of each where nothing is named.

        The model itself is opened at the workshop's next turn.

        Raises:
            ConfigError: if there is no such choice, or the model needs an adapter and brings none.
            IdgenError: if the adapter or its encoder cannot be opened.
        """
        shelf = self.shelf
        choice = (model or next(iter(shelf.models)), adapter or next(iter(shelf.adapters)))
        for what, name, known in zip(
            ("model", "adapter"), choice, (shelf.models, shelf.adapters), strict=True
        ):
            if name not in known:
                raise ConfigError(
                    f"no {what} {name!r} here{nearest(name, list(known))} (there is: {', '.join(known)})"
                )
        with self._lock:
            shop = self._shops.get(choice)
            if shop is None:
                shop = self._shops[choice] = self._open(*choice)
            return shop

    def _open(self, model: str, adapter: str) -> Workshop:
        where, file = self.shelf.models[model], self.shelf.adapters[adapter]
        folder = model_folder(where)
        if file is None and folder != mini.BASE and not (folder / ADAPTER_FOLDER).is_dir():
            raise ConfigError(f"{model} brings no adapter of its own; choose one of the others beside it")
        return self._opening(where, adapter=file)
