"""Sizes for people."""


def format_bytes(num_bytes: int) -> str:
    """Return a size for people, e.g. "6.7 MB"."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.1f} {unit}"
    return f"{num_bytes:,} bytes"
