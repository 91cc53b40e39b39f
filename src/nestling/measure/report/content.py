"""What the sections of the page hold, computed before the template lays them out."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nestling.core import Dtype
from nestling.measure.decision import Decision
from nestling.measure.proposal import has_documents, propose_adapter
from nestling.measure.report.focus import Focus, find_point
from nestling.measure.report.labels import flatten, metric_label
from nestling.measure.report.wording import floor_warning
from nestling.measure.results import Results, per_query_array

NUM_WORST_QUERIES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Caution:
    """Something to know before acting.

    Attributes:
        title: What it is about.
        text: What to know.
        anchor: Id of the table row to look at, if any.
        command: What to type, if anything.
    """

    title: str
    text: str
    anchor: str | None = None
    command: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstQuery:
    """A query that a cut answers worse than the full width does."""

    query_id: str
    full_value: float
    cut_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstQueries:
    """How one cut does query by query.

    Attributes:
        cut: The cut in words.
        is_chosen: False if nothing was chosen and the first candidate tested stands in.
        worst: At most 20, largest loss first.
        num_worse: Queries the cut answers worse than the full width.
        num_equal: Queries it answers equally well.
        num_better: Queries it answers better.
    """

    cut: str
    is_chosen: bool
    worst: tuple[WorstQuery, ...]
    num_worse: int
    num_equal: int
    num_better: int


def cautions(results: Results, decision: Decision | None, focus: Focus) -> list[Caution]:
    """Return what people should know before they act."""
    found = []
    if results.looks_nested is False:
        found.append(_not_nested(results, focus))
    floor = None if decision is None else floor_warning(decision)
    if floor is not None:
        found.append(Caution(title="The tolerance is finer than the evidence can be", text=floor))
    if decision is None and not focus.has_per_query:
        found.append(
            Caution(
                title="No certificate is possible with this metric",
                text=f"{metric_label(focus.metric)} is one number for the whole task. It has no "
                f"value per query, hence no intervals here, and no loss can be certified from it.",
            )
        )
    return found


def worst_queries(results: Results, decision: Decision | None, focus: Focus) -> WorstQueries | None:
    """Return how the chosen cut does query by query; None without a tested cut."""
    if decision is None or not decision.steps or focus.reference is None:
        return None
    point = focus.chosen or find_point(focus.series, decision.steps[0])
    if point is None or point.row.per_query is None:
        return None
    full, cut = per_query_array(focus.reference), per_query_array(point.row)
    losses = full - cut
    order = np.argsort(-losses, kind="stable")[:NUM_WORST_QUERIES]
    return WorstQueries(
        cut=point.label,
        is_chosen=focus.chosen is not None,
        worst=tuple(
            WorstQuery(
                query_id=str(results.query_ids[index]),
                full_value=float(full[index]),
                cut_value=float(cut[index]),
            )
            for index in order.tolist()
            if losses[index] > 0
        ),
        num_worse=int((losses > 0).sum()),
        num_equal=int((losses == 0).sum()),
        num_better=int((losses < 0).sum()),
    )


def plan_json(decision: Decision | None) -> str:
    """Return the plan file as `choose --out` writes it, or "" without a plan."""
    if decision is None or decision.plan is None:
        return ""
    return json.dumps(decision.plan.to_json(), indent=1, allow_nan=False, ensure_ascii=False)


def deploy_commands(focus: Focus) -> list[str]:
    """Return the lines that build an index by the plan and search it."""
    kind, _, path = focus.model.partition(":")
    if not path and focus.is_self:
        # Nobody named a model to encode with: what was measured are vectors.
        kind, path = "vectors", focus.task.removeprefix("self:")
    if kind == "vectors":
        source = f"--vectors {shlex.quote(path)}"
        search_model = " --model MODEL"
    else:
        task = focus.task
        corpus = shlex.quote(task.removeprefix("self:")) if has_documents(task) else "DOCUMENTS"
        source = f"--model {shlex.quote(focus.model)} --corpus {corpus}"
        search_model = ""
    return [
        f"nestling build {source} --plan plan.json --out index",
        f'nestling search index "a query" --top-k 10{search_model}',
    ]


def run_facts(known: Mapping[str, Any]) -> list[str]:
    """Return when and on what it was measured, as far as the environment tells."""
    cores = f"{known['num_cores']} cores, " if "num_cores" in known else ""
    hardware = cores + known["cpu"] if "cpu" in known else None
    facts = [known.get("date"), hardware]
    return [flatten(fact) for fact in facts if fact is not None]


def facts(results: Results, focus: Focus) -> list[tuple[str, str]]:
    """Return everything that explains or repeats the measurement, by name."""
    space = results.fingerprint.space
    listed = {
        "model": focus.model,
        "space": f"{space.model}, revision {space.revision}",
        "pooling": space.pooling,
        "normalization": space.normalization,
        "adapter": space.adapter,
        "embed_dim": f"{results.embed_dim:,}",
        "encoder": flatten(results.fingerprint.encoder),
        "task": focus.task,
        "documents": f"{results.num_documents:,}" if results.num_documents else None,
        "corpus_hash": results.corpus_hash,
        "queries" if focus.has_per_query else "pairs": f"{len(results.query_ids):,}",
        "main metric": results.main_metric,
        **{name: flatten(value) for name, value in results.environment.items()},
    }
    return [(name, value) for name, value in listed.items() if value]


def _not_nested(results: Results, focus: Focus) -> Caution:
    text = (
        "On this task its prefixes were not clearly better than random choices of coordinates: what "
        "stands first may matter no more than what a cut throws away."
    )
    title = "This model does not look nested"
    proposal = propose_adapter(results, metric=focus.metric)
    if proposal is None:
        return Caution(title=title, text=text)
    best = proposal.best
    anchors = {
        point.row.dim: point.anchor
        for line in focus.series
        if (line.family, line.dtype) == ("pca", Dtype.FLOAT32)
        for point in line.points
    }
    return Caution(
        title=title,
        text=f"{text} {proposal.text.replace(focus.metric, metric_label(focus.metric))}",
        anchor=None if best is None else anchors[best.dim],
        command=proposal.command,
    )
