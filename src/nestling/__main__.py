"""`python -m nestling`."""

from nestling.cli import main

main(prog_name="nestling")
