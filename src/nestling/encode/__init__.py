"""Text or images in, full-width embeddings out: encoders behind one Protocol, and a resumable folder."""

from nestling.encode.adapt_vectors import adapt_vectors
from nestling.encode.adapted import AdaptedEncoder
from nestling.encode.encode_inputs import Embedded, cache_folder, cache_root, embed, encode_corpus
from nestling.encode.fill_folder import Encoded
from nestling.encode.open import open_encoder, reopen_encoder
from nestling.encode.protocol import Encoder, Role
from nestling.encode.stored import open_stored
from nestling.encode.truncation import truncation_notes
from nestling.encode.vector_folder import VectorFolder

__all__ = [
    "AdaptedEncoder",
    "Embedded",
    "Encoded",
    "Encoder",
    "Role",
    "VectorFolder",
    "adapt_vectors",
    "cache_folder",
    "cache_root",
    "embed",
    "encode_corpus",
    "open_encoder",
    "open_stored",
    "reopen_encoder",
    "truncation_notes",
]
