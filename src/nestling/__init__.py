"""nestling: embeddings that can be cut anywhere, and the evidence for where to cut them."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("nestling")
