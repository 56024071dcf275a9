"""Where data lies that does not travel with the repository."""

import os
from pathlib import Path

from idgen.errors import ConfigError


def data_file(given: Path | None, variable: str, name: str) -> Path:
    """``given``, or the file ``name`` of the folder that an environment variable names.

    Raises:
        ConfigError: if there is neither.
    """
    if given is None and variable not in os.environ:
        raise ConfigError(f"{name} is needed: set {variable} to the folder that holds it, or name the file")
    return given or Path(os.environ[variable]) / name
