"""What happened when an adapter was fitted, as data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nestling.core import Dtype
from nestling.measure.drift import DriftReference
from nestling.train.adapter.candidates import Method
from nestling.train.adapter.choose import TIE, Below, Judged


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """A fitted adapter.

    Attributes:
        method: Kind of the map that was chosen.
        winner: Its name in the table.
        table: All candidates, and what each is worth at every width on held-out rows.
        below: Widths at which the chosen map is worse than the better of identity and pca.
        nesting_dims: Widths it was fitted for, the last the full one.
        recipe: What was asked for, each thing once; the other options of the learned rotations too.
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
    def judged_dtypes(self) -> tuple[Dtype, ...]:
        """Number formats that the choice looked at, and shortfalls are over."""
        return tuple(map(Dtype, self.recipe["dtypes"])) or (Dtype.FLOAT32,)

    @property
    def shortfall_title(self) -> str:
        """Head of the column of shortfalls, which names the formats they are over if these are codes."""
        if self.judged_dtypes == (Dtype.FLOAT32,):
            return "shortfall"
        return f"shortfall over {', '.join(self.judged_dtypes)}"

    @property
    def verdict(self) -> str:
        """What was gained, in a sentence or two."""
        won, asked = self.judged(self.winner), self.recipe["method"]
        if asked != "auto":
            stays = "The vectors stay as they are, as" if won.method == "identity" else "As"
            gain = f"{stays} asked for with the method {asked}: {self._gain}"
        elif won.method != "identity":
            gain = self._gain[0].upper() + self._gain[1:]
        elif won.shortfall <= TIE:
            return (
                f"No lossless map keeps more neighbours than the vectors as they are, to {TIE:.1%}: they are nested "
                f"already, and the adapter leaves them as they are."
            )
        else:
            return (
                f"No map that may be chosen unasked is clearly better than the vectors as they are, so the adapter leaves "
                f"them as they are: they fall short of the best lossless map by {won.shortfall:.1%} at most."
            )
        if won.is_lossless:
            return gain
        full = won.values[Dtype.FLOAT32][self.nesting_dims[-1]]
        return f"{gain} At full width they keep {full:.1%}: this map changes full-width scores."

    @property
    def _gain(self) -> str:
        """What is kept now and was before, where most was gained, in every format that was judged."""
        now, before = self.judged(self.winner).values, self.judged("identity").values
        is_same = self.method == "identity"
        parts: list[str] = []
        for dtype in self.judged_dtypes:
            gains = {dim: now[dtype][dim] - before[dtype][dim] for dim in self.nesting_dims[:-1]}
            dim = max(gains, key=lambda width: gains[width])
            stored = "" if dtype == Dtype.FLOAT32 else f" in {dtype}"
            value = f"{now[dtype][dim]:.1%}"
            if parts:
                part = f"at {dim} dims{stored} {value}"
            elif is_same:
                part = f"at {dim} dims they keep{stored} {value} of the ten nearest neighbours"
            else:
                part = f"at {dim} dims the first {dim} coordinates{stored} now keep {value} of the ten nearest neighbours"
            parts.append(part if is_same else f"{part}, before {before[dtype][dim]:.1%}")
        return "; ".join(parts) + "."

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
