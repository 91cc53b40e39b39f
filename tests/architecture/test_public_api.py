"""What a room lists in `__all__` is what it shows, and each of it says what it is."""

import importlib
import inspect
import types

import pytest

ROOMS = (
    "core",
    "data",
    "encode",
    "search",
    "measure",
    "measure.planner",
    "train",
    "train.adapter",
    "train.losses",
    "train.models",
    "train.sentence_transformers",
)


@pytest.mark.parametrize("room", ROOMS)
def test_all_is_complete(room: str) -> None:
    module = importlib.import_module(f"nestling.{room}")
    visible = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert set(module.__all__) == visible


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_are_documented(room: str) -> None:
    module = importlib.import_module(f"nestling.{room}")
    values = {name: getattr(module, name) for name in module.__all__}
    undocumented = [
        name
        for name, value in values.items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        # Array types such as Images are made by jaxtyping, which gives them no docstring.
        and value.__module__.startswith("nestling.")
        and not value.__doc__
    ]
    assert undocumented == []
