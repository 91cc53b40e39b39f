"""Open vectors that exist already as a vector folder, whatever file they are in."""

from pathlib import Path

from nestling.core import BadRowPolicy, check_same_space
from nestling.core.progress import Progress, silent
from nestling.data.types import Corpus
from nestling.data.vectors import read_vectors
from nestling.encode.encode_inputs import cache_folder, encode_corpus
from nestling.encode.fill_folder import Encoded
from nestling.encode.protocol import Encoder
from nestling.encode.vector_folder import VectorFolder
from nestling.encode.vectors import VectorsEncoder


def open_stored(
    path: Path,
    *,
    cache: Path,
    made_by: Encoder | None = None,
    bad_rows: BadRowPolicy = "error",
    progress: Progress = silent,
) -> Encoded:
    """Open a vector folder, or copy a vector file into one in the cache.

    Args:
        path: Vector folder, or .npy, .npz, .fvecs or .parquet file; rows of a file without ids are
            named by their number.
        cache: Where the copy goes, e.g. `cache_root()`.
        made_by: The model that made the vectors of a file, which does not say so itself. A folder
            does, and must agree.
        bad_rows: "error" refuses NaN, infinite and zero rows of a file by id; "drop" leaves them out.
        progress: Told after every block.

    Raises:
        DataError: If the file cannot be read.
        FingerprintError: If a folder was made by another model.
        FormatError: If the folder is damaged or unfinished.
        VectorError: If a row is bad and `bad_rows` is "error", or the widths differ.
    """
    if path.is_dir():
        folder = VectorFolder.open(path)
        if made_by is not None:
            check_same_space(
                folder.fingerprint,
                made_by.fingerprint,
                left_name=str(path),
                right_name="the model named",
            )
        return Encoded(
            folder=folder,
            num_resumed=len(folder),
            num_reused=0,
            num_encoded=0,
            dropped_ids=(),
        )
    stored = read_vectors(path)
    ids = stored.ids or [str(row) for row in range(len(stored.vectors))]
    encoder = VectorsEncoder(str(path), made_by=None if made_by is None else made_by.fingerprint)
    corpus = Corpus(doc_ids=ids, texts=[""] * len(ids), source=str(path))
    out = cache_folder(encoder.fingerprint, corpus.corpus_hash, "document", root=cache)
    return encode_corpus(encoder, corpus, out, bad_rows=bad_rows, progress=progress)
