"""idgen: identity-preserving face generation with diffusion models."""

import os

# Before anything else is imported: the libraries below read these once, at import. An explicit setting wins.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime >= 1.29 reports to Microsoft by default
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idgen.blocklist import Blocklist as Blocklist
    from idgen.errors import IdgenError as IdgenError
    from idgen.identity import Identity as Identity
    from idgen.identity import fuse as fuse
    from idgen.identity import similarity as similarity
    from idgen.pipeline import IDPipeline as IDPipeline
    from idgen.pipeline import IDPipelineXL as IDPipelineXL

__version__ = "0.1.0"

# Public name -> module. Loaded on first use, so that `import idgen` costs nothing.
_HOMES = {
    "Blocklist": "idgen.blocklist",
    "IDPipeline": "idgen.pipeline",
    "IDPipelineXL": "idgen.pipeline",
    "Identity": "idgen.identity",
    "IdgenError": "idgen.errors",
    "fuse": "idgen.identity",
    "similarity": "idgen.identity",
}

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    "Blocklist",
    "IDPipeline",
    "IDPipelineXL",
    "Identity",
    "IdgenError",
    "__version__",
    "fuse",
    "similarity",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'idgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
