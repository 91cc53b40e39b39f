"""Engines by name. A new one is one file and one line here; the conformance suite finds it."""

from collections.abc import Mapping
from importlib import import_module

from nestling.errors import FormatError, MissingExtraError
from nestling.search.engines.base import Engine, Setting

ENGINES: Mapping[str, tuple[str, str, str | None]] = {
    "flat": ("nestling.search.engines.flat", "FlatEngine", None),
    "nested": ("nestling.search.engines.nested", "NestedEngine", None),
    "graph": ("nestling.search.engines.graph", "GraphEngine", None),
    "hnsw": ("nestling.search.engines.hnsw", "HnswEngine", None),
    "ivf": ("nestling.search.engines.ivf", "IvfEngine", None),
    "signs": ("nestling.search.engines.signs", "SignsEngine", None),
    "vamana": ("nestling.search.engines.vamana", "VamanaEngine", "svs"),
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


def full_settings(
    engine: str, given: Mapping[str, int], known: Mapping[str, Setting]
) -> dict[str, int]:
    """Return the settings of an engine, those left out at their defaults.

    Raises:
        FormatError: If one is unknown, or out of its range.
    """
    for name, value in given.items():
        if name not in known:
            raise FormatError(
                f"`{name}` is no setting of the engine {engine!r}, which takes "
                f"{', '.join(known) or 'none'}. Leave it out."
            )
        setting = known[name]
        if not setting.low <= value <= setting.high:
            raise FormatError(
                f"`{name}` of the engine {engine!r} must lie in [{setting.low}, {setting.high}], "
                f"got {value}. It is {setting.help}; {setting.default} is the default."
            )
    return {name: given.get(name, setting.default) for name, setting in known.items()}
