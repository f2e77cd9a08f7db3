"""fledge: a language model's whole life, stage by stage."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fledge.models.loaded import load

__all__ = ["load"]

# oneDNN keeps what it has made for the last 1,024 shapes, 1 to 3 MB each, and texts come in many lengths (LOG.md).
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for: `import fledge` and `--help` stay instant."""
    if name == "load":
        from fledge.models.loaded import load

        return load
    raise AttributeError(f"module 'fledge' has no attribute {name!r}")
