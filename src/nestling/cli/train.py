"""`nestling train`: one verb per kind of data."""

import click

from nestling.cli.lazy import LazyGroup
from nestling.cli.options import debug_option


@click.command(
    name="train",
    cls=LazyGroup,
    verbs={
        "text": ("nestling.cli.train_text", "A text model from pairs of texts, or from labels."),
        "images": ("nestling.cli.train_images", "An image model from labelled images."),
        "adapter": ("nestling.cli.train_adapter", "A map that nests the vectors of any model."),
    },
    epilog="""\b
Examples:
  nestling train text --pairs builtin --dims 8,16,32,64,128,256 --out nest
  nestling train images --images builtin:digits --dims 2,4,8,16,32 --out digits
  nestling train adapter --model st:./all-MiniLM-L6-v2 --fit-on docs/ --dims 16,32,64 --out nested""",
)
@debug_option
def command() -> None:
    """Train a model whose every prefix is an embedding.

    Needs PyTorch: pip install 'nestling[train]'.
    """
