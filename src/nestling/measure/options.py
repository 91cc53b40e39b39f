"""What a caller of `measure` may choose, and what a task comes to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nestling.core import (
    BadRowPolicy,
    Dtype,
    Fingerprint,
    check_nesting_dims,
    default_nesting_dims,
)
from nestling.core.progress import Progress
from nestling.data import Inputs
from nestling.encode import Encoder, Role
from nestling.measure.cuts import Cut, Vectors, make_cuts, sample_rows
from nestling.measure.embed import Side, encode_side
from nestling.measure.table import Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a caller may choose; `measure` says what each of them does."""

    dims: Sequence[int] | None
    dtypes: Sequence[Dtype]
    shortlist_size: int
    cache: Path | None
    seed: int
    bad_rows: BadRowPolicy
    progress: Progress
    baselines: bool = True

    def widths(self, embed_dim: int) -> tuple[int, ...]:
        """Return the widths to measure, the full one among them.

        Raises:
            DimensionError: If those asked for break the rules of `check_dims`.
        """
        if self.dims is None:
            return default_nesting_dims(embed_dim)
        return check_nesting_dims(self.dims, embed_dim)

    def cuts(self, corpus: Vectors) -> list[Cut]:
        """Return what to compare, fitted on a sample of a corpus."""
        return make_cuts(
            sample_rows(corpus, seed=self.seed),
            dims=self.widths(corpus.shape[1]),
            dtypes=self.dtypes,
            seed=self.seed,
            corpus=corpus,
            baselines=self.baselines,
        )

    def encode(
        self,
        encoder: Encoder,
        inputs: Inputs,
        ids: Sequence[str],
        *,
        name: str,
        role: Role = "document",
    ) -> Side:
        """Encode one side of a task as the caller wants it."""
        return encode_side(
            encoder,
            inputs,
            ids,
            name=name,
            role=role,
            cache=self.cache,
            bad_rows=self.bad_rows,
            progress=self.progress,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a task came to.

    Attributes:
        measured: Every cut at every width, random draws one by one.
        main_metric: As in `Results`.
        nested_metric: What to judge by whether the model looks nested.
        query_ids: As in `Results`.
        fingerprint: As in `Results`.
        corpus_hash: As in `Results`.
        num_documents: As in `Results`.
        notes: What people should know beside the notes of the task.
    """

    measured: Sequence[Measured]
    main_metric: str
    nested_metric: str
    query_ids: Sequence[str]
    fingerprint: Fingerprint
    corpus_hash: str
    num_documents: int
    notes: Sequence[str]
