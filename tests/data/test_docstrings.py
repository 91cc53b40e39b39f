import ast
import gc
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from nestling.data import docstrings
from nestling.data.docstrings import first_paragraph, harvest

Write = Callable[[str, str | bytes], Path]

SOURCE = '''"""The module itself is not a document, however long."""
import os


def documented():
    r"""Return   the first
    paragraph of a \\d docstring.

    Never the second paragraph of it.
    """

    def inner():
        """Functions inside functions count as well."""


class Owl:
    """A bird that hunts at night and sleeps by day."""

    async def hunt(self):
        "One line with single quotes is a docstring too."

    def short(self):
        """Too short."""

    def formatted(self):
        f"""An f-string is not a docstring, says the language {os}."""


if os.name == "nt":
    def branch():
        """The same name may be defined in two branches."""
else:
    def branch():
        """The same name may be defined in both branches."""

try:
    with open(os.devnull):
        def guarded():
            """Definitions hide below try and with as well."""
except OSError:
    class Handler:
        """Definitions hide in the handler of an error."""
finally:
    match os.name:
        case "nt":
            def matched():
                """Definitions hide below a case of a match."""
'''


def slow_twin(source: str) -> set[str]:
    """Every docstring of a function or class anywhere in the tree, by walking all of it."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = (
        ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)
    )
    texts = {" ".join((text or "").strip().split("\n\n")[0].split()) for text in found}
    return {text for text in texts if len(text) >= 30}


def test_names_and_first_paragraphs(write: Write) -> None:
    assert harvest([str(write("a.py", SOURCE))]) == [
        [
            ("documented", r"Return the first paragraph of a \d docstring."),
            ("documented.inner", "Functions inside functions count as well."),
            ("Owl", "A bird that hunts at night and sleeps by day."),
            ("Owl.hunt", "One line with single quotes is a docstring too."),
            ("branch", "The same name may be defined in two branches."),
            ("branch", "The same name may be defined in both branches."),
            ("guarded", "Definitions hide below try and with as well."),
            ("Handler", "Definitions hide in the handler of an error."),
            ("matched", "Definitions hide below a case of a match."),
        ]
    ]


@pytest.mark.parametrize("module", ["argparse", "inspect", "logging", "typing"])
def test_agrees_with_the_slow_twin_on_real_modules(module: str) -> None:
    path = __import__(module).__file__
    assert path is not None
    (found,) = harvest([path])
    assert found is not None
    assert {text for _, text in found} == slow_twin(Path(path).read_text())


def test_files_that_do_not_parse_give_none(write: Write) -> None:
    bad = [
        write("syntax.py", "def f(:\n"),
        write("bytes.py", b"x = '\xe9'\n"),
        write("zero.py", b"x = 1\0\n"),
        write("coding.py", b"# -*- coding: no-such-code -*-\n"),
        write("deep.py", "(" * 5000 + ")" * 5000),
    ]
    good = write(
        "latin.py",
        '# -*- coding: latin-1 -*-\ndef f():\n    """Café and thirty more characters here."""\n'.encode(
            "latin1"
        ),
    )
    paths = [*map(str, bad), str(bad[0].with_name("missing.py")), str(good)]
    assert harvest(paths) == [None] * 6 + [[("f", "Café and thirty more characters here.")]]


def test_text_that_no_tokenizer_takes_is_left_out(write: Write) -> None:
    source = 'def f():\n    "Half a surrogate pair: \\ud800, in thirty characters."\n'
    assert harvest([str(write("a.py", source))]) == [[]]


def test_warnings_about_the_code_are_not_ours(write: Write) -> None:
    path = write("a.py", 'def f():\n    """A docstring with a bad escape \\d in it."""\n')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert harvest([str(path)]) == [[("f", "A docstring with a bad escape \\d in it.")]]


def test_the_collector_is_left_as_it_was(write: Write) -> None:
    path = str(write("a.py", ""))
    assert gc.isenabled()
    harvest([path])
    assert gc.isenabled()
    gc.disable()
    try:
        harvest([path])
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("docstring", "paragraph"),
    [
        ("One.\n\nTwo.", "One."),
        ("\n   One\n\tline.  \n   \t \nTwo.", "One line."),
        ("", ""),
    ],
)
def test_first_paragraph(docstring: str, paragraph: str) -> None:
    assert first_paragraph(docstring) == paragraph


def test_runs_as_a_worker_by_its_path(write: Write) -> None:
    path = str(write("naïve.py", SOURCE))
    request = json.dumps([path]) + "\n"
    result = subprocess.run(
        [sys.executable, "-I", "-S", docstrings.__file__],
        input=request * 2,
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert answers == [json.loads(json.dumps(harvest([path])))] * 2
