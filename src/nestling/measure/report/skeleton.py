"""What every page of this room shares: how a template is filled in, the script, the file."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from nestling.core.files import write_atomically
from nestling.errors import WriteError

_COPY_SCRIPT = """
for (const button of document.querySelectorAll("button[data-copies]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copies);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
      button.textContent = "Selected: now copy";
    }
  });
}
"""


def render_page(
    template: str, filters: Mapping[str, Callable[..., Any]], values: Mapping[str, Any]
) -> str:
    """Return one HTML file that asks nothing of the network.

    Args:
        template: Name of the file beside this module; it extends base.html.
        filters: What it filters with, by name.
        values: What it shows, by name.
    """
    environment = Environment(
        loader=FunctionLoader(_read_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= dict(filters)
    return environment.get_template(template).render(
        script=Markup(_COPY_SCRIPT),  # noqa: S704  (a constant of this module)
        script_hash=base64.b64encode(hashlib.sha256(_COPY_SCRIPT.encode()).digest()).decode(),
        **values,
    )


def write_page(path: Path, html: str, *, overwrite: bool, option: str) -> None:
    """Write a page, whole or not at all.

    Args:
        path: Where to.
        html: The page.
        overwrite: Whether to replace what stands there.
        option: What names the path on the command line.

    Raises:
        WriteError: If the file exists and `overwrite` is false, or cannot be written.
    """
    if path.exists() and not overwrite:
        raise WriteError(
            f"{path} exists and is never overwritten silently. Pass --overwrite or another {option}."
        )
    write_atomically(path, html.encode())


def _read_template(name: str) -> str:
    return files("nestling.measure.report").joinpath(name).read_text("utf-8")
