"""fledge: a language model's whole life, stage by stage."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fledge.models.loaded import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for: `import fledge` and `--help` stay instant."""
    if name == "load":
        from fledge.models.loaded import load

        return load
    raise AttributeError(f"module 'fledge' has no attribute {name!r}")
