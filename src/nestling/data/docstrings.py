"""Harvest docstrings from Python sources without importing them.

This file imports nothing beyond the standard library: it is also run by its path, as a worker
process that starts in an instant (see `builtin.py`).
"""

import ast
import gc
import json
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

SHORTEST_DOCUMENT = 30
PARAGRAPH_END = re.compile(r"\n\s*\n")

Found = list[tuple[str, str]]
"""Qualified name inside the module, and document."""


def harvest(paths: Sequence[str]) -> list[Found | None]:
    """Return the documents of each file, in the order of the source; None if it does not parse.

    A document is the first paragraph of the docstring of a function or class, whitespace
    normalised, of at least 30 characters.
    """
    # Trees hold no cycles, and the collector would walk their millions of nodes again and again.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the code being read
            return [_harvest_file(path) for path in paths]
    finally:
        if was_enabled:
            gc.enable()


def first_paragraph(docstring: str) -> str:
    """Return a docstring up to its first blank line, runs of whitespace turned into one space."""
    return " ".join(PARAGRAPH_END.split(docstring.strip(), maxsplit=1)[0].split())


def serve() -> None:
    """Answer each line of standard input, a JSON list of paths, with a line of what was found."""
    for line in sys.stdin:
        sys.stdout.write(json.dumps(harvest(json.loads(line))) + "\n")
        sys.stdout.flush()


def _harvest_file(path: str) -> Found | None:
    try:
        tree = ast.parse(Path(path).read_bytes())
        return [
            (name, text)
            for name, docstring in _find_docstrings(tree.body, "")
            if len(text := first_paragraph(docstring)) >= SHORTEST_DOCUMENT and _is_encodable(text)
        ]
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return None


def _find_docstrings(body: Sequence[ast.AST], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield name and docstring of what is defined in these statements, branches included."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = prefix + node.name
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield name, first.value.value
            yield from _find_docstrings(node.body, name + ".")
        else:
            for field in ("body", "orelse", "handlers", "finalbody", "cases"):
                inner = getattr(node, field, None)
                if isinstance(inner, list):
                    yield from _find_docstrings(inner, prefix)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


if __name__ == "__main__":
    serve()
