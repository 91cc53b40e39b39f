"""What to do about a model that does not look nested: fit an adapter to its vectors."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nestling.core import Dtype
from nestling.encode.open import token_limit_of
from nestling.measure.results import Results, Row

NOISE_ERRORS = 2.0
"""Standard errors by which a gain must lie above nothing to be spoken of."""

LEAST_GAIN = 0.01
"""Of the full-width value; less is not worth a sentence."""

MOST_DIMS = 8
"""Widths that the command asks for; of more that were measured, as many evenly spaced ones."""

BUILTIN_CORPORA = ("builtin", "builtin:wide")
"""Tasks that have documents; another of that form, builtin:digits, has images."""

CORPUS_FORMS = ("beir:", "self:")
"""Beginnings of the other tasks that have documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What a rotation of the measured vectors keeps, and what the prefix keeps, as shares."""

    dim: int
    rotated: float
    prefix: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterProposal:
    """An adapter to fit.

    Attributes:
        gains: Widths at which PCA is clearly better than the prefix, narrowest first.
        text: What it promises, in a sentence or two.
        command: What to type.
    """

    gains: tuple[Gain, ...]
    text: str
    command: str

    @property
    def best(self) -> Gain | None:
        """Where the most is gained."""
        return max(self.gains, key=lambda gain: gain.rotated - gain.prefix, default=None)


def propose_adapter(results: Results, *, metric: str | None = None) -> AdapterProposal | None:
    """Propose to fit an adapter where that helps.

    The evidence is the PCA baseline, the simplest map that an adapter chooses among: it is spoken of
    at the widths where it keeps at least one point more of the full-width value than the prefix
    does, by more than two standard errors of the difference per query.

    Args:
        results: What was measured.
        metric: Metric to speak of; by default the main one.

    Returns:
        None if the model looks nested or nobody knows, if its vectors have an adapter already, or
        if PCA was measured and was better at no width.
    """
    if results.looks_nested is not False or results.fingerprint.space.adapter is not None:
        return None
    wanted = metric or results.main_metric
    rows = [row for row in results.rows if row.metric == wanted and row.dtype == Dtype.FLOAT32]
    prefixes = {row.dim: row for row in rows if row.family == "prefix"}
    cuts = [dim for dim in sorted(prefixes) if dim < results.embed_dim]
    if not cuts:
        return None
    rotated = {row.dim: row for row in rows if row.family == "pca" and row.dim in cuts}
    if rotated and all(row.value <= prefixes[dim].value for dim, row in rotated.items()):
        return None
    full = prefixes.get(results.embed_dim)
    gains = tuple(
        Gain(
            dim=dim,
            rotated=rotated[dim].value / full.value,
            prefix=prefixes[dim].value / full.value,
        )
        for dim in cuts
        if dim in rotated and full is not None and _is_clear(rotated[dim], prefixes[dim], full)
    )
    return AdapterProposal(
        gains=gains,
        text=_text(gains, task=_task(results), metric=wanted),
        command=_command(results, cuts),
    )


def has_documents(task: str) -> bool:
    """Return whether something can be built from or fitted to what a task is measured on."""
    return task.partition("#")[0] in BUILTIN_CORPORA or task.startswith(CORPUS_FORMS)


def _is_clear(rotated: Row, prefix: Row, full: Row) -> bool:
    if rotated.per_query is None or prefix.per_query is None or full.value <= 0:
        return False
    gains = np.asarray(rotated.per_query) - np.asarray(prefix.per_query)
    if len(gains) < 2 or gains.mean() < LEAST_GAIN * full.value:
        return False
    return bool(gains.mean() > NOISE_ERRORS * gains.std(ddof=1) / np.sqrt(len(gains)))


def _text(gains: Sequence[Gain], *, task: str, metric: str) -> str:
    promise = (
        "An adapter is fitted without labels, is chosen by what it keeps on held-out vectors, and leaves "
        "full-width scores as they are."
    )
    if not gains:
        return promise
    fitted_on = "documents" if has_documents(task) else "vectors"
    of_what = "the full-width ranking" if task.startswith("self:") else metric
    first, *rest = gains
    kept = [f"{first.rotated:.1%} of {of_what} instead of {first.prefix:.1%} at {first.dim} dims"]
    kept += [f"{gain.rotated:.1%} instead of {gain.prefix:.1%} at {gain.dim}" for gain in rest]
    return (
        f"{promise} A rotation fitted on these {fitted_on} (PCA) already keeps {', '.join(kept)}."
    )


def _command(results: Results, cuts: Sequence[int]) -> str:
    task, model = _task(results), results.rows[0].model
    kind, _, path = model.partition(":")
    if not path and task.startswith("self:"):
        # Nobody named a model to encode with: what was measured are vectors.
        kind, path = "vectors", task.removeprefix("self:")
    if kind == "vectors":
        source = f"--fit-on {shlex.quote(path)}"
    else:
        documents = shlex.quote(task.removeprefix("self:")) if has_documents(task) else "DOCUMENTS"
        source = f"--model {shlex.quote(model)}{_as_measured(results)} --fit-on {documents}"
    places = np.linspace(0, len(cuts) - 1, min(MOST_DIMS, len(cuts))).round().astype(int)
    dims = ",".join(str(cuts[place]) for place in places)
    return f"nestling train adapter {source} --dims {dims} --out adapter"


def _as_measured(results: Results) -> str:
    """Return the options that open the model as it was opened here."""
    base_url = results.fingerprint.origin.get("base_url")
    max_tokens = token_limit_of(results.fingerprint)
    options = {"--base-url": base_url, "--max-tokens": max_tokens}
    return "".join(
        f" {name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None
    )


def _task(results: Results) -> str:
    return results.rows[0].task
