"""What a room lists in `__all__` is what it shows: sorted, present, and nothing else public."""

import importlib
import types

import pytest

ROOMS = ("core", "data", "encode", "search", "measure")


@pytest.mark.parametrize("room", ROOMS)
def test_all_is_sorted_and_complete(room: str) -> None:
    module = importlib.import_module(f"nestling.{room}")
    visible = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert list(module.__all__) == sorted(module.__all__)
    # A name also given to a submodule (measure.choose) is shown as the function, not the module.
    assert set(module.__all__) == visible


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_are_documented(room: str) -> None:
    module = importlib.import_module(f"nestling.{room}")
    undocumented = [
        name
        for name in module.__all__
        if callable(getattr(module, name)) and not getattr(module, name).__doc__
    ]
    assert undocumented == []
