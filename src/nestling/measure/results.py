"""What was measured, as data: rows, what they were measured on, and by what."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nestling.core import Dtype, Fingerprint
from nestling.core.files import read_json, write_atomically
from nestling.errors import EvidenceError, FormatError, WriteError

RESULTS_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric of one way to cut.

    Attributes:
        model: Model URI.
        task: TASK.
        family: "prefix" for the vectors as they are cut and scored in one stage; "funnel" for a
            prefix whose shortlist is re-scored at full width; or a baseline: "pca" (uncentred
            rotation fitted on the corpus, then cut), "random" (a random choice of coordinates).
        dim: Width that is scanned.
        dtype: Number format that is scanned.
        metric: Name as in MTEB, e.g. "ndcg_at_10".
        value: Mean of `per_query`, or the metric itself where it is not a mean (Spearman).
        per_query: Value per query in the order of `Results.query_ids`; None where the metric has
            no value per query.
        bytes_per_vector: What the scanned tier takes per document, norms included.
        seconds: Scoring time of this (family, dtype), all its widths together.
        shortlist_size: Candidates re-scored at full width (funnels only).
    """

    model: str
    task: str
    family: str
    dim: int
    dtype: Dtype
    metric: str
    value: float
    bytes_per_vector: int
    seconds: float
    per_query: Sequence[float] | None = None
    shortlist_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """A results file.

    Attributes:
        rows: Everything measured.
        main_metric: The metric a choice is made by unless the user names another.
        query_ids: What `Row.per_query` runs over.
        embed_dim: Full width.
        fingerprint: Of the measured vectors.
        corpus_hash: Of the documents, or of all inputs where there is no corpus.
        num_documents: Documents searched (or train inputs); 0 for pair tasks.
        looks_nested: Whether prefixes beat random coordinates clearly; None if not measured.
        environment: Versions, hardware, seed, date, command.
        notes: What people should know, e.g. cut texts.
    """

    rows: Sequence[Row]
    main_metric: str
    query_ids: Sequence[str]
    embed_dim: int
    fingerprint: Fingerprint
    corpus_hash: str
    num_documents: int
    looks_nested: bool | None
    environment: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def find(self, *, family: str, dim: int, dtype: Dtype, metric: str | None = None) -> Row:
        """Return the row of one cut.

        Raises:
            EvidenceError: If it was not measured; the message lists what was.
        """
        wanted = metric or self.main_metric
        for row in self.rows:
            if (row.family, row.dim, row.dtype, row.metric) == (family, dim, dtype, wanted):
                return row
        have = sorted(
            {(row.family, row.dim, str(row.dtype)) for row in self.rows if row.metric == wanted}
        )
        raise EvidenceError(
            f"no row for {family} {dim}-d {dtype} with metric {wanted!r}. Measured with that metric: "
            f"{have or 'nothing; metrics are ' + ', '.join(sorted({row.metric for row in self.rows}))}."
        )

    def reference(self, metric: str | None = None) -> Row:
        """Return the row every loss is counted from: the full width in float32, uncut."""
        return self.find(family="prefix", dim=self.embed_dim, dtype=Dtype.FLOAT32, metric=metric)

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads back; `rows` has one object per row."""
        return {
            "results_version": RESULTS_VERSION,
            "main_metric": self.main_metric,
            "embed_dim": self.embed_dim,
            "num_documents": self.num_documents,
            "num_queries": len(self.query_ids),
            "corpus_hash": self.corpus_hash,
            "looks_nested": self.looks_nested,
            "fingerprint": self.fingerprint.to_json(),
            "environment": dict(self.environment),
            "notes": list(self.notes),
            "query_ids": list(self.query_ids),
            "rows": [asdict(row) for row in self.rows],
        }

    @classmethod
    def from_json(cls, data: Any) -> "Results":
        """Read what `to_json` wrote.

        Raises:
            FormatError: If a field is missing, or the version is newer than this one.
        """
        try:
            if data["results_version"] > RESULTS_VERSION:
                raise FormatError(
                    f"`results_version` {data['results_version']} is newer than {RESULTS_VERSION}, the newest "
                    f"that this nestling reads. Upgrade nestling."
                )
            rows = [Row(**{**row, "dtype": Dtype(row["dtype"])}) for row in data["rows"]]
            names = (
                "main_metric",
                "query_ids",
                "embed_dim",
                "corpus_hash",
                "num_documents",
                "looks_nested",
            )
            return cls(
                rows=rows,
                fingerprint=Fingerprint.from_json(data["fingerprint"]),
                environment=data["environment"],
                notes=data["notes"],
                **{name: data[name] for name in names},
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(
                f"not a results file: {error!r}. Write one with `nestling measure --out results.json`."
            ) from error

    def save(self, path: Path, *, overwrite: bool) -> None:
        """Write the results file, whole or not at all.

        Raises:
            WriteError: If the file exists and `overwrite` is false, or cannot be written.
        """
        if path.exists() and not overwrite:
            raise WriteError(
                f"{path} exists and is never overwritten silently. Pass --overwrite or another --out."
            )
        # One line: indented, every value per query would stand on a line of its own.
        write_atomically(path, json.dumps(self.to_json(), allow_nan=False).encode())

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read a results file.

        Raises:
            FormatError: If the file is not a results file this version reads.
        """
        data = read_json(path)
        try:
            return cls.from_json(data)
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from error


def per_query_array(row: Row) -> np.ndarray:
    """Return the values per query of a row.

    Raises:
        EvidenceError: If the metric has none (Spearman, average precision over all pairs).
    """
    if row.per_query is None:
        raise EvidenceError(
            f"`{row.metric}` has no value per query, so a loss cannot be certified query by query. "
            f"Choose by a metric that has, or read the table."
        )
    return np.asarray(row.per_query, dtype=np.float64)
