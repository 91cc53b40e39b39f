"""How a plan adapts: to a query, to a budget, to load. Plain data, saved in the plan file.

`measure/` fits and certifies these; the index runs them. Without any, a plan treats all queries alike.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nestling.errors import FormatError


@dataclass(frozen=True, slots=True, kw_only=True)
class Static:
    """Every query goes through the same shortlists."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `Policy.from_json` reads back."""
        return {"kind": "static"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRule:
    """Which of a stage's rows are worth a look at greater width.

    Those whose score is at most `slack` below that of the `top_k`-th best row of the stage.

    Attributes:
        margin: Of the rule, in units of `error`.
        error: Standard deviation of what a row's score changes by from this stage to the last one, as
            measured.
        fewest: Rows handed on at least.
    """

    margin: float
    error: float
    fewest: int

    def __post_init__(self) -> None:
        if not (self.margin >= 0.0 and 0.0 <= self.error < float("inf")):
            raise FormatError(
                f"`margin` and `error` of a rule must be at least 0, and `error` finite, got "
                f"{self.margin} and {self.error}. Fit the rule anew."
            )
        if self.fewest < 1:
            raise FormatError(
                f"`fewest` of a rule must be at least 1, got {self.fewest}. Fit the rule anew."
            )

    @property
    def slack(self) -> float:
        """How far below the `top_k`-th best score a row may be."""
        return self.margin * self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryAdaptive:
    """Every query gets the shortlists that it needs, and at most those of the plan.

    Attributes:
        top_k: The place that margins are counted from: as many results as the policy was certified for.
        rules: One per stage but the last.
    """

    top_k: int
    rules: tuple[StageRule, ...]

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise FormatError(
                f"`top_k` of a policy must be at least 1, got {self.top_k}. Fit the policy anew."
            )
        if any(rule.fewest < self.top_k for rule in self.rules):
            raise FormatError(
                f"`fewest` of every rule must be at least `top_k`, {self.top_k}, got "
                f"{[rule.fewest for rule in self.rules]}. Fit the policy anew."
            )

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `Policy.from_json` reads back."""
        return {"kind": "query_adaptive", **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a plan was allowed to cost when it was chosen; None is no limit.

    Attributes:
        bytes_per_vector: RAM of head tier and engine per document.
        memory_bytes: RAM of head tier and engine, all documents together.
        latency_ms: Mean time of a single query on one thread.
        money_per_month: For everything, by the prices that were given.
        currency: Of `money_per_month`.
    """

    bytes_per_vector: float | None = None
    memory_bytes: int | None = None
    latency_ms: float | None = None
    money_per_month: float | None = None
    currency: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A cheaper way to run the same head, with its measured price in quality.

    Attributes:
        stages: How many of the plan's stages are run, from the first on.
        shortlist_sizes: Of these stages but the last.
        search: Settings of the engine for a query that differ from the plan's.
        quality: Share of the exact full-width metric, as measured.
        quality_low: Lower end of a one-sided interval of it, at the ladder's confidence.
        latency_ms: Mean time of a single query on one thread, as measured.
        bytes_read: Mean bytes of vectors read per query; None where an engine does not tell.
    """

    stages: int
    shortlist_sizes: tuple[int, ...]
    search: Mapping[str, int] = field(default_factory=dict)
    quality: float
    quality_low: float
    latency_ms: float
    bytes_read: float | None = None

    def __post_init__(self) -> None:
        if len(self.shortlist_sizes) != self.stages - 1:
            raise FormatError(
                f"`shortlist_sizes` of a rung must be one per stage but the last, "
                f"{self.stages - 1}, got {list(self.shortlist_sizes)}. Fit the ladder anew."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadLadder:
    """What to fall back to under load, rung by rung, each cheaper than the one before.

    Attributes:
        rungs: The first is the plan itself.
        metric: Of which `quality` is a share.
        confidence: Of `quality_low`, of each rung by itself.
    """

    rungs: tuple[Rung, ...]
    metric: str
    confidence: float

    def __post_init__(self) -> None:
        times = [rung.latency_ms for rung in self.rungs]
        if not self.rungs or times != sorted(times, reverse=True):
            raise FormatError(
                f"`rungs` of a ladder must be at least one, and never slower than the one before, "
                f"got {times} ms. Fit the ladder anew."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a plan adapts.

    Attributes:
        depth: To a query.
        budget: What it was chosen to fit into; None if nothing was asked.
        ladder: To load; None if there is nothing to fall back to.
    """

    depth: Static | QueryAdaptive = Static()
    budget: Budget | None = None
    ladder: LoadLadder | None = None

    def check_stages(self, num_stages: int) -> None:
        """Refuse a policy that was made for another number of stages.

        Raises:
            FormatError: If rules or rungs do not fit.
        """
        if isinstance(self.depth, QueryAdaptive) and len(self.depth.rules) != num_stages - 1:
            raise FormatError(
                f"`rules` of a policy must be one per stage but the last, {num_stages - 1}, got "
                f"{len(self.depth.rules)}. Fit the policy to this plan."
            )
        if self.ladder is not None:
            counts = [rung.stages for rung in self.ladder.rungs]
            if any(not 1 <= count <= num_stages for count in counts):
                raise FormatError(
                    f"`stages` of every rung must be 1 to {num_stages}, got {counts}. Fit the ladder "
                    f"to this plan."
                )

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads back."""
        return {
            "depth": self.depth.to_json(),
            "budget": None if self.budget is None else asdict(self.budget),
            "ladder": None if self.ladder is None else asdict(self.ladder),
        }

    @classmethod
    def from_json(cls, data: Any) -> "Policy":
        """Read what `to_json` wrote.

        Raises:
            FormatError: If the policy is of a kind that this version does not know.
            KeyError, TypeError, ValueError: If a field is missing or of another kind.
        """
        return cls(
            depth=_read_depth(data["depth"]),
            budget=None if data["budget"] is None else Budget(**data["budget"]),
            ladder=None if data["ladder"] is None else _read_ladder(data["ladder"]),
        )


def _read_depth(data: Any) -> Static | QueryAdaptive:
    if data["kind"] == "static":
        return Static()
    if data["kind"] != "query_adaptive":
        raise FormatError(
            f"`depth` of a policy must be static or query_adaptive, got {data['kind']!r}. Upgrade nestling, "
            f"or choose again."
        )
    return QueryAdaptive(
        top_k=operator.index(data["top_k"]),
        rules=tuple(
            StageRule(
                margin=float(rule["margin"]),
                error=float(rule["error"]),
                fewest=operator.index(rule["fewest"]),
            )
            for rule in data["rules"]
        ),
    )


def _read_ladder(data: Any) -> LoadLadder:
    rungs = tuple(
        Rung(**{**rung, "shortlist_sizes": _sizes(rung["shortlist_sizes"])})
        for rung in data["rungs"]
    )
    return LoadLadder(rungs=rungs, metric=data["metric"], confidence=data["confidence"])


def _sizes(sizes: Sequence[Any]) -> tuple[int, ...]:
    return tuple(operator.index(size) for size in sizes)
