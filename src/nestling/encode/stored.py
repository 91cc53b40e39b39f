"""Open vectors that exist already as a vector folder, whatever file they are in."""

from pathlib import Path

from nestling.core import BadRowPolicy
from nestling.core.progress import Progress, silent
from nestling.data.types import Corpus
from nestling.data.vectors import read_vectors
from nestling.encode.encode_inputs import cache_folder, encode_corpus
from nestling.encode.vector_folder import VectorFolder
from nestling.encode.vectors import VectorsEncoder


def open_stored(
    path: Path, *, cache: Path, bad_rows: BadRowPolicy = "error", progress: Progress = silent
) -> VectorFolder:
    """Open a vector folder, or copy a vector file into one in the cache.

    Args:
        path: Vector folder, or .npy, .npz, .fvecs or .parquet file; rows of a file without ids are
            named by their number.
        cache: Where the copy goes, e.g. `cache_root()`.
        bad_rows: "error" refuses NaN, infinite and zero rows of a file by id; "drop" leaves them out.
        progress: Told after every block.

    Raises:
        DataError: If the file cannot be read.
        FormatError: If the folder is damaged or unfinished.
        VectorError: If a row is bad and `bad_rows` is "error".
    """
    if path.is_dir():
        return VectorFolder.open(path)
    stored = read_vectors(path)
    ids = stored.ids or [str(row) for row in range(len(stored.vectors))]
    encoder = VectorsEncoder(str(path))
    corpus = Corpus(doc_ids=ids, texts=[""] * len(ids), source=str(path))
    out = cache_folder(encoder.fingerprint, corpus.corpus_hash, "document", root=cache)
    return encode_corpus(encoder, corpus, out, bad_rows=bad_rows, progress=progress).folder
