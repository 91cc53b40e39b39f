"""The `nestling` command, also as `python -m nestling`."""

import sys


def run() -> None:
    """Load and run the command; Ctrl-C while it loads ends it as quietly as later on."""
    try:
        from nestling.cli import main
    except KeyboardInterrupt:
        sys.exit(130)
    main(prog_name="nestling")


if __name__ == "__main__":
    run()
