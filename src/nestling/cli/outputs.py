"""Files a verb writes."""

from pathlib import Path

from nestling.errors import WriteError


def refuse_to_overwrite(out: Path, overwrite: bool, *, has_report: bool = True) -> None:
    """Refuse a JSON file, or the report beside it, that is there already, before any work is done.

    Raises:
        WriteError: If one is there and `overwrite` is false.
    """
    if out.suffix != ".json":
        raise WriteError(
            f"`--out` must end in .json, got {out}."
            f"{' The report goes beside it as .html.' if has_report else ' Name another.'}"
        )
    for path in (out, *([out.with_suffix(".html")] if has_report else [])):
        _refuse_existing(path, overwrite, option="--out")


def refuse_page(page: Path, overwrite: bool) -> None:
    """Refuse a --report that is no page or is there already, before any work is done.

    Raises:
        WriteError: Saying which.
    """
    if page.suffix != ".html":
        raise WriteError(f"`--report` must end in .html, got {page}. Name another.")
    _refuse_existing(page, overwrite, option="--report")


def _refuse_existing(path: Path, overwrite: bool, *, option: str) -> None:
    if path.exists() and not overwrite:
        raise WriteError(
            f"{path} exists and is never overwritten silently. Pass --overwrite or another {option}."
        )
