"""The command line: parses, calls, prints."""

from nestling.cli.app import main

__all__ = ["main"]
