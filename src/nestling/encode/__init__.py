"""Text or images in, full-width embeddings out: encoders behind one Protocol, and a resumable folder."""

from nestling.encode.encode_inputs import Embedded, cache_folder, cache_root, embed, encode_corpus
from nestling.encode.fill_folder import Encoded
from nestling.encode.open import open_encoder
from nestling.encode.protocol import Encoder, Role
from nestling.encode.stored import open_stored
from nestling.encode.truncation import truncation_notes
from nestling.encode.vector_folder import VectorFolder

__all__ = [
    "Embedded",
    "Encoded",
    "Encoder",
    "Role",
    "VectorFolder",
    "cache_folder",
    "cache_root",
    "embed",
    "encode_corpus",
    "open_encoder",
    "open_stored",
    "truncation_notes",
]
