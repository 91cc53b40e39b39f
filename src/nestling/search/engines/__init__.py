"""Engines by name. A new one is one file and one line here; the conformance suite finds it."""

from collections.abc import Mapping
from importlib import import_module

from nestling.errors import FormatError, MissingExtraError
from nestling.search.engines.base import Engine

ENGINES: Mapping[str, tuple[str, str, str | None]] = {
    "flat": ("nestling.search.engines.flat", "FlatEngine", None),
}
"""Name: (module, class, extra that brings what the module imports, or None)."""

DEFAULT_ENGINE = "flat"


def engine_class(name: str) -> type[Engine]:
    """Return the class of an engine.

    Raises:
        FormatError: If no engine has this name.
        MissingExtraError: If the engine needs a package that is not installed.
    """
    if name not in ENGINES:
        raise FormatError(
            f"`engine` must be one of {', '.join(sorted(ENGINES))}, got {name!r}. "
            f"Upgrade nestling, or build the index again."
        )
    module, class_name, extra = ENGINES[name]
    try:
        return getattr(import_module(module), class_name)
    except ModuleNotFoundError as error:
        if extra is None:
            raise
        raise MissingExtraError(error.name or module, extra) from error
