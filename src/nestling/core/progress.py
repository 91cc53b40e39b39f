"""How long work reports where it stands, without knowing about terminals."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Called with a label, the units done so far and the units in all; `done == total` ends it.

    What stands before " | " in the label names the work; what follows may change from call to call.
    """

    def __call__(self, label: str, done: int, total: int) -> None:
        """Report one step."""


def silent(label: str, done: int, total: int) -> None:
    """Report nothing."""
