"""What happened when an adapter was fitted, as data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nestling.core import Dtype
from nestling.measure.drift import DriftReference
from nestling.train.adapter.candidates import Method
from nestling.train.adapter.choose import Below, Judged


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """A fitted adapter.

    Attributes:
        method: Kind of the map that was chosen.
        winner: Its name in the table.
        table: All candidates, and what each is worth at every width on held-out rows.
        below: Widths at which the chosen map is worse than the better of identity and pca.
        nesting_dims: Widths it was fitted for, the last the full one.
        recipe: What was asked for, the options of the learnt rotations included.
        fitted_on: Where the vectors came from.
        corpus_hash: Of what they were encoded from.
        pairs: Where pairs came from, or None.
        pairs_hash: Of their texts, or None.
        num_fit_rows: Distinct rows that the maps were fitted on.
        num_held_out: Distinct rows that they were judged by.
        reference: What adapted vectors were like, to notice drift.
        environment: Versions, hardware, seed and command.
        seconds: Of fitting all candidates and judging them.
    """

    method: Method
    winner: str
    table: tuple[Judged, ...]
    below: tuple[Below, ...]
    nesting_dims: tuple[int, ...]
    recipe: Mapping[str, Any]
    fitted_on: str
    corpus_hash: str
    pairs: str | None
    pairs_hash: str | None
    num_fit_rows: int
    num_held_out: int
    reference: DriftReference
    environment: Mapping[str, Any]
    seconds: float

    def judged(self, name: str) -> Judged:
        """Return the line of a candidate."""
        return next(line for line in self.table if line.name == name)

    @property
    def dtypes(self) -> tuple[Dtype, ...]:
        """Number formats in the table, float32 first."""
        return tuple(self.table[0].values)

    @property
    def verdict(self) -> str:
        """What was gained, in a sentence or two."""
        won, before = self.judged(self.winner), self.judged("identity")
        if won.method == "identity":
            return (
                "No map keeps more neighbours than the vectors as they are: they are nested already, and the "
                "adapter leaves them as they are."
            )
        dtype = self.dtypes[-1]
        dim = max(
            self.nesting_dims[:-1],
            key=lambda width: won.values[dtype][width] - before.values[dtype][width],
        )
        kept, was = won.values[dtype][dim], before.values[dtype][dim]
        stored = "" if dtype == Dtype.FLOAT32 else f" in {dtype}"
        gain = (
            f"At {dim} dims the first {dim} coordinates{stored} now keep {kept:.1%} of the ten nearest "
            f"neighbours, before {was:.1%}."
        )
        if won.is_lossless:
            return gain
        full = won.values[Dtype.FLOAT32][self.nesting_dims[-1]]
        return f"{gain} At full width they keep {full:.1%}: this map changes full-width scores."

    def to_json(self) -> dict[str, Any]:
        """Return plain data, for `NestManifest.training`."""
        return {
            **asdict(self),
            "nesting_dims": list(self.nesting_dims),
            "table": [line.to_json() for line in self.table],
            "below": [asdict(cut) for cut in self.below],
            "verdict": self.verdict,
            "reference": self.reference.to_json(),
        }
