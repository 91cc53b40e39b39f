"""Open an adapter and new vectors, and measure whether it still fits them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from nestling.core import Fingerprint, check_same_space, distinct_rows, find_bad_rows, normalize
from nestling.data import read_vectors
from nestling.encode import AdaptedEncoder, VectorFolder, open_encoder
from nestling.encode.nest_manifest import NestManifest
from nestling.errors import EncoderError, FormatError, VectorError
from nestling.measure.drift import DriftReference, measure_drift
from nestling.measure.drift_report import DriftReport

SAMPLE_ROWS = 10_000
"""Rows that are looked at; more would say the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterCheck:
    """An adapter beside new vectors.

    Attributes:
        adapter: Its folder.
        vectors: Where the vectors are.
        num_vectors: How many there are.
        is_adapted: Whether they were mapped already, by this adapter.
        report: What was found in a sample of them.
        notes: What people should know.
    """

    adapter: Path
    vectors: Path
    num_vectors: int
    is_adapted: bool
    report: DriftReport
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "adapter": str(self.adapter),
            "vectors": str(self.vectors),
            "num_vectors": self.num_vectors,
            "is_adapted": self.is_adapted,
            **self.report.to_json(),
            "notes": list(self.notes),
        }


def check_adapter(adapter: Path, vectors: Path) -> AdapterCheck:
    """Compare new vectors with those that an adapter was fitted on.

    Args:
        adapter: Folder of the adapter.
        vectors: Vector folder or vector file, of the model that the adapter was fitted on or mapped
            by this very adapter. A plain file does not say which; it is taken as not mapped yet.

    Raises:
        DataError: If the vectors cannot be read.
        EncoderError: If `adapter` is no adapter.
        FingerprintError: If the vectors are of another space.
        FormatError: If a folder is damaged, or the adapter holds no reference.
        VectorError: If the vectors are of another width, or too few can be compared.
    """
    encoder = open_encoder(f"nest:{adapter}")
    if not isinstance(encoder, AdaptedEncoder):
        raise EncoderError(
            f"`adapter` must be a folder that nestling train adapter wrote, got {adapter}, which holds a model "
            f"of another kind. Name an adapter."
        )
    reference = _reference(adapter)
    stored, made_by = _open(vectors)
    is_adapted = made_by is not None and made_by.space == encoder.fingerprint.space
    if made_by is not None and not is_adapted:
        check_same_space(
            made_by,
            encoder.parent,
            left_name=f"the folder {vectors}",
            right_name=f"what the adapter {adapter} was fitted on",
        )
    if stored.shape[1] != encoder.embed_dim:
        raise VectorError(
            f"vectors of {vectors} must be as wide as those that {adapter} was fitted on, "
            f"{encoder.embed_dim}, got {stored.shape[1]}. Name the adapter of the model that made them."
        )
    rows, notes = _sample(stored, seed=reference.seed)
    if len(rows) < 2:
        raise VectorError(
            f"`vectors` must hold at least two different rows that are finite and not zero, got {len(rows)} in "
            f"{vectors}. Give more vectors."
        )
    if made_by is None:
        notes.insert(
            0,
            f"{vectors} does not say which model made it: taken as vectors of {encoder.parent.space.model!r}, "
            f"not mapped yet",
        )
    return AdapterCheck(
        adapter=adapter,
        vectors=vectors,
        num_vectors=len(stored),
        is_adapted=is_adapted,
        report=measure_drift(reference, rows if is_adapted else encoder.map(rows)),
        notes=tuple(notes),
    )


def _reference(adapter: Path) -> DriftReference:
    manifest = NestManifest.load(adapter.expanduser())
    if "reference" not in manifest.training:
        raise FormatError(
            f"{adapter} must say what vectors were like when it was fitted, but its training has no "
            f"`reference`. Fit the adapter again."
        )
    return DriftReference.from_json(manifest.training["reference"])


def _open(path: Path) -> tuple[Float[np.ndarray, "rows embed_dim"], Fingerprint | None]:
    """Return vectors, and what made them if they say so."""
    if not path.is_dir():
        return read_vectors(path).vectors, None
    folder = VectorFolder.open(path)
    folder.verify()
    return folder.vectors, folder.fingerprint


def _sample(
    stored: Float[np.ndarray, "rows embed_dim"], *, seed: int
) -> tuple[Float32[np.ndarray, "kept embed_dim"], list[str]]:
    """Return distinct unit rows, as a fit takes them: a duplicate is found at any width."""
    num_drawn = min(SAMPLE_ROWS, len(stored))
    chosen = np.random.default_rng(seed).permutation(len(stored))[:num_drawn]
    drawn = np.ascontiguousarray(stored[np.sort(chosen)], dtype=np.float32)
    good = normalize(drawn[~find_bad_rows(drawn)])
    distinct = distinct_rows(good)
    num_bad, num_repeated = num_drawn - len(good), len(good) - len(distinct)
    counts = ((num_bad, "zero, NaN or infinite"), (num_repeated, "repeated"))
    notes = [f"left out {count:,} {kind} rows of {num_drawn:,}" for count, kind in counts if count]
    return distinct, notes
