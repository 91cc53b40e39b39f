"""Documents for an index: encoded now, or from vectors that exist."""

from pathlib import Path
from typing import Any

from nestling.cli.inputs import chunking_for, open_documents_once, talk_about
from nestling.core import Fingerprint
from nestling.core.progress import Progress
from nestling.data import Corpus
from nestling.encode import (
    Encoded,
    Encoder,
    cache_folder,
    cache_root,
    encode_corpus,
    open_encoder,
    open_stored,
    reopen_encoder,
)

TEXT_SUFFIXES = (".txt", ".md", ".markdown")


def encode_documents(
    encoder: Encoder, corpus: str, *, bad_rows: Any, progress: Progress
) -> tuple[Encoded, Corpus]:
    """Encode a corpus into the cache that `measure` uses too: what was measured is not encoded again."""
    documents = open_documents_once(corpus, chunking=chunking_for(encoder), progress=progress)
    cached = cache_folder(encoder.fingerprint, documents.corpus_hash, "document")
    encoded = encode_corpus(encoder, documents, cached, bad_rows=bad_rows, progress=progress)
    talk_about(encoded, documents, encoder=encoder)
    return encoded, documents


def open_documents(
    vectors: Path,
    corpus: str | None,
    *,
    made_by: Encoder | None,
    bad_rows: Any,
    progress: Progress,
    **encoder_options: Any,
) -> tuple[Encoded, Corpus | None]:
    """Open vectors that exist, and the texts that they stand for."""
    encoded = open_stored(
        vectors, cache=cache_root(), made_by=made_by, bad_rows=bad_rows, progress=progress
    )
    documents = None
    if corpus is not None:
        # A folder of texts must be cut as it was when it was encoded.
        needs_cutting = Path(corpus).is_dir() or Path(corpus).suffix in TEXT_SUFFIXES
        reader = made_by
        if needs_cutting and reader is None:
            reader = reopen_encoder(encoded.folder.fingerprint, **encoder_options)
        chunking = None if reader is None else chunking_for(reader)
        documents = open_documents_once(corpus, chunking=chunking, progress=progress)
    talk_about(encoded, documents, encoder=None)
    return encoded, documents


def find_encoder(
    model: str | None, fingerprint: Fingerprint, **encoder_options: Any
) -> Encoder | None:
    """Return the model named, else the one that made the vectors of an index, if it says which."""
    if model is not None:
        return open_encoder(model, **encoder_options)
    return reopen_encoder(fingerprint, **encoder_options)
