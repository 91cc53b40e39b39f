"""A funnel and the evidence that chose it: plain data in a JSON file."""

import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nestling.core import Dtype, Space, check_dim
from nestling.core.files import read_json, write_json
from nestling.errors import DimensionError, FormatError
from nestling.search.policy import Policy, QueryAdaptive, Static

PLAN_VERSION = 3
"""Version 1 knew no engines: it reads as the exact scan of the head. Version 2 knew no policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of a query.

    Attributes:
        dim: Prefix width that is scored.
        dtype: Number format of the corpus side.
        shortlist_size: Candidates handed to the next stage; None on the last stage, which returns
            the caller's `top_k`.
    """

    dim: int
    dtype: Dtype
    shortlist_size: int | None = None

    def describe(self) -> str:
        """Return the stage in words, e.g. "64-d int8, keep 100"."""
        kept = "" if self.shortlist_size is None else f", keep {self.shortlist_size}"
        return f"{self.dim}-d {self.dtype}{kept}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """What finds the candidates of the first stage.

    Attributes:
        name: As in the table of engines.
        build: Settings that shape its files; those left out take their defaults.
        search: Settings of a query, likewise.
    """

    name: str = "flat"
    build: Mapping[str, int] = field(default_factory=dict)
    search: Mapping[str, int] = field(default_factory=dict)

    def describe(self) -> str:
        """Return the engine in words, e.g. "graph (degree 32; window 64)"."""
        parts = [
            ", ".join(f"{name} {value}" for name, value in settings.items())
            for settings in (self.build, self.search)
            if settings
        ]
        return f"{self.name} ({'; '.join(parts)})" if parts else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A chain of stages; the first searches the head tier, each later one re-scores a shortlist.

    Attributes:
        stages: At least one. Widths never shrink along the chain, and shortlists never grow.
        embed_dim: Full width of the vectors the plan is for.
        space: The space the evidence was measured in, or None for a plan written by hand.
        evidence: Verdict and numbers behind the choice, as `choose` wrote them; empty if by hand.
        engine: What searches the head tier.
        policy: How it adapts, to a query and to load.
    """

    stages: tuple[Stage, ...]
    embed_dim: int
    space: Space | None
    evidence: Mapping[str, Any]
    engine: EngineChoice = EngineChoice()
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        if not self.stages:
            raise FormatError("`stages` of a plan must hold at least one stage, got none.")
        for stage in self.stages:
            check_dim(stage.dim, self.embed_dim)
        dims = [stage.dim for stage in self.stages]
        if dims != sorted(dims):
            raise DimensionError(
                f"`stages` must not get narrower along the chain, got widths {dims}."
            )
        sizes = [stage.shortlist_size for stage in self.stages]
        if sizes[-1] is not None or None in sizes[:-1]:
            raise FormatError(
                f"every stage but the last needs a `shortlist_size`, and the last has none, got {sizes}."
            )
        kept = [size for size in sizes if size is not None]
        if any(size < 1 for size in kept) or kept != sorted(kept, reverse=True):
            raise FormatError(
                f"`shortlist_size` must be at least 1 and never grow along the chain, got {kept}."
            )
        self.policy.check_stages(len(self.stages))

    @property
    def head(self) -> Stage:
        """The stage that searches all documents."""
        return self.stages[0]

    def describe(self) -> str:
        """Return the funnel in words, e.g. "graph: 64-d int8, keep 100 -> 256-d float32".

        The exact scan, which needs no settings, is not named.
        """
        stages = " -> ".join(stage.describe() for stage in self.stages)
        return stages if self.engine == EngineChoice() else f"{self.engine.describe()}: {stages}"

    def at_rung(self, place: int) -> "Plan":
        """Return the plan as a rung of its ladder runs it; the first rung is the plan itself.

        Raises:
            FormatError: If the ladder has no such rung. Without a ladder there is one, number 0.
        """
        rungs = () if self.policy.ladder is None else self.policy.ladder.rungs
        if not 0 <= place < max(1, len(rungs)):
            raise FormatError(
                f"`rung` must be 0 to {max(1, len(rungs)) - 1}, got {place}. Fit a longer ladder, or "
                f"name one of these."
            )
        if place == 0:
            return self
        rung = rungs[place]
        sizes = [*rung.shortlist_sizes, None]
        stages = tuple(
            replace(stage, shortlist_size=size)
            for stage, size in zip(self.stages[: rung.stages], sizes, strict=True)
        )
        depth = self.policy.depth
        if isinstance(depth, QueryAdaptive):
            depth = (
                replace(depth, rules=depth.rules[: rung.stages - 1])
                if len(stages) > 1
                else Static()
            )
        engine = replace(self.engine, search={**self.engine.search, **rung.search})
        policy = Policy(depth=depth, budget=self.policy.budget)
        return replace(self, stages=stages, engine=engine, policy=policy)

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads back."""
        return {
            "plan_version": PLAN_VERSION,
            "embed_dim": self.embed_dim,
            "stages": [asdict(stage) for stage in self.stages],
            "engine": {
                "name": self.engine.name,
                "build": dict(self.engine.build),
                "search": dict(self.engine.search),
            },
            "space": None if self.space is None else asdict(self.space),
            "policy": self.policy.to_json(),
            "evidence": dict(self.evidence),
        }

    @classmethod
    def from_json(cls, data: Any) -> "Plan":
        """Read what `to_json` wrote.

        Raises:
            FormatError: If a field is missing or of another kind, or the version is newer.
        """
        try:
            if data["plan_version"] > PLAN_VERSION:
                raise FormatError(
                    f"`plan_version` {data['plan_version']} is newer than {PLAN_VERSION}, the newest that "
                    f"this nestling reads. Upgrade nestling."
                )
            stages = tuple(
                Stage(
                    dim=operator.index(stage["dim"]),
                    dtype=Dtype(stage["dtype"]),
                    shortlist_size=None if size is None else operator.index(size),
                )
                for stage, size in ((each, each["shortlist_size"]) for each in data["stages"])
            )
            engine = EngineChoice()
            if data["plan_version"] > 1:
                engine = EngineChoice(
                    name=str(data["engine"]["name"]),
                    build=_whole_numbers(data["engine"]["build"]),
                    search=_whole_numbers(data["engine"]["search"]),
                )
            space = None if data["space"] is None else Space(**data["space"])
            return cls(
                stages=stages,
                embed_dim=operator.index(data["embed_dim"]),
                space=space,
                evidence=dict(data["evidence"]),
                engine=engine,
                policy=Policy.from_json(data["policy"]) if data["plan_version"] > 2 else Policy(),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, FormatError | DimensionError):
                raise
            raise FormatError(
                f"not a plan file: {error!r}. Write one with `nestling choose results.json --out plan.json`."
            ) from error

    def save(self, path: Path) -> None:
        """Write the plan file, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read a plan file.

        Raises:
            FormatError: If the file is not a plan this version reads.
        """
        data = read_json(path)
        try:
            return cls.from_json(data)
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from error


def _whole_numbers(settings: Mapping[str, Any]) -> dict[str, int]:
    return {str(name): operator.index(value) for name, value in settings.items()}
