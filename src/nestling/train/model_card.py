"""The README.md of a trained model: what was measured and how it was made, and nothing else."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestling.core.files import write_atomically
from nestling.encode.nest_manifest import NestManifest
from nestling.train.record import TrainingRecord

CARD_FILE = "README.md"

_PIPELINES = {
    "static": "feature-extraction",
    "images": "image-feature-extraction",
    "sentence-transformers": "sentence-similarity",
    "adapter": "feature-extraction",
}


OPENED_BY_SENTENCE_TRANSFORMERS = ("static", "sentence-transformers")
"""Kinds of model whose folder that package opens too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What each prefix is worth.

    Attributes:
        metric: Name, e.g. "ndcg_at_10"; higher is better.
        measured_on: The data, e.g. "beir:scifact, test queries".
        by_dim: The value of each width.
    """

    metric: str
    measured_on: str
    by_dim: Mapping[int, float]


def write_model_card(
    folder: Path,
    manifest: NestManifest,
    *,
    quality: Quality | None = None,
    training_data: str | None = None,
    command: str | None = None,
) -> None:
    """Write the model card of a `nest:` folder, with the front matter that model hubs read.

    Args:
        folder: The model folder.
        manifest: Of the model; `training` must be a `TrainingRecord` as JSON.
        quality: For the table of quality by width; without it, the validation values of the epoch
            whose weights are kept, if there are any.
        training_data: What it was trained on, a sentence or two.
        command: That trained it.

    Raises:
        WriteError: If the folder cannot be written.
    """
    record = TrainingRecord.from_json(manifest.training)
    shown = quality or _validation(record)
    sections = (
        front_matter(manifest),
        _introduction(manifest),
        _quality_section(shown),
        _usage(manifest),
        _training_section(record, training_data, command),
        _limits(manifest, record, quality=shown),
    )
    write_atomically(folder / CARD_FILE, ("\n\n".join(sections) + "\n").encode())


def front_matter(manifest: NestManifest) -> str:
    """Return what model hubs read."""
    is_st = manifest.kind in OPENED_BY_SENTENCE_TRANSFORMERS
    tags = ["matryoshka", "embeddings", "nestling", *(["sentence-transformers"] if is_st else [])]
    library = "sentence-transformers" if is_st else "nestling"
    lines = [f"library_name: {library}", f"pipeline_tag: {_PIPELINES[manifest.kind]}", "tags:"]
    return "\n".join(["---", *lines, *(f"- {tag}" for tag in tags), "---"])


def _introduction(manifest: NestManifest) -> str:
    shorter = listed(manifest.nesting_dims[:-1])
    cut = f"Its first {shorter} coordinates are each an embedding by themselves" if shorter else ""
    nested = f"{cut} (Matryoshka representation learning, arXiv:2205.13147)." if cut else ""
    kind = "images" if manifest.kind == "images" else "texts"
    return (
        f"# {manifest.model}\n\n"
        f"An embedding model for {kind}, {manifest.embed_dim:,} numbers per vector. {nested}"
    ).rstrip()


def _validation(record: TrainingRecord) -> Quality | None:
    epoch = record.kept_epoch
    if epoch.validation_by_dim is None:
        return None
    return Quality(
        metric="validation value",
        measured_on=f"the data held out from training, after epoch {epoch.epoch}",
        by_dim=epoch.validation_by_dim,
    )


def _quality_section(quality: Quality | None) -> str:
    title = "## Quality by width\n\n"
    if quality is None:
        return (
            title
            + "Nothing was held out from training, so nothing was measured. `nestling measure` "
            "measures every width on a task of yours."
        )
    full = quality.by_dim[max(quality.by_dim)]
    rows = [
        f"| {dim:,} | {value:.4f} | {_share(value, full)} | {4 * dim:,} |"
        for dim, value in sorted(quality.by_dim.items())
    ]
    head = f"| dims | {quality.metric} | of the full width | bytes per vector (float32) |"
    measured_on = f"{quality.metric} on {quality.measured_on}; higher is better."
    return title + "\n".join([measured_on, "", head, "|---:|---:|---:|---:|", *rows])


def _share(value: float, full: float) -> str:
    return f"{value / full:.1%}" if full > 0 else "-"


def _usage(manifest: NestManifest) -> str:
    short = manifest.nesting_dims[len(manifest.nesting_dims) // 2]
    inputs = "images" if manifest.kind == "images" else "texts"
    nestling = f"""## Use

A cut vector is shorter than 1, by another factor for each row: scale it to unit length again before
a cosine or a dot product.

```python
from nestling.core import take_prefix
from nestling.encode import open_encoder

encoder = open_encoder("nest:path/to/this/folder")
vectors = encoder.encode({inputs}, role="document")
short = take_prefix(vectors, {short}, renormalize=True)
```"""
    if manifest.kind not in OPENED_BY_SENTENCE_TRANSFORMERS:
        return nestling
    return f"""{nestling}

With sentence-transformers, where `truncate_dim` cuts after the normalisation and does not repeat it,
`normalize_embeddings=True` is needed:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder", truncate_dim={short})
short = model.encode(texts, normalize_embeddings=True)
```"""


def _training_section(
    record: TrainingRecord, training_data: str | None, command: str | None
) -> str:
    parts = ["## Training"]
    if training_data is not None:
        parts.append(training_data)
    if command is not None:
        parts.append(f"```\n{command}\n```")
    parts.append(
        f"{record.num_parameters:,} parameters, {record.num_steps:,} steps in {len(record.epochs)} "
        f"epochs, {record.seconds:,.0f} s."
    )
    if record.num_resumes:
        parts.append(f"It was interrupted and continued {record.num_resumes} times.")
    parts.append(facts({**record.options, **record.settings}))
    dims = record.nesting_dims
    rows = [
        f"| {epoch.epoch} | {epoch.loss:.4f} | "
        + " | ".join(_number(epoch.loss_by_dim.get(dim)) for dim in dims)
        + " |"
        for epoch in record.epochs
    ]
    head = "| epoch | loss | " + " | ".join(f"at {dim:,}" for dim in dims) + " |"
    parts.append("\n".join([head, "|---:" * (2 + len(dims)) + "|", *rows]))
    return "\n\n".join([*parts, "### Environment", facts(record.environment)])


def _limits(manifest: NestManifest, record: TrainingRecord, *, quality: Quality | None) -> str:
    points = [_trained_widths(manifest)]
    if quality is not None:
        points.append(
            "The values above are for one data set. What a cut costs differs from task to task: "
            "`nestling measure` measures it on yours."
        )
        if record.best_epoch is not None and quality.by_dim == record.kept_epoch.validation_by_dim:
            points.append(
                "The epoch was chosen by the values above, which makes them a little too good."
            )
    points.append("Its vectors can be compared with vectors of this model only.")
    points.append(
        "No licence is stated here: it depends on the training data and on the model that the "
        "training started from."
    )
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)


def _trained_widths(manifest: NestManifest) -> str:
    if len(manifest.nesting_dims) == 1:
        return f"It was trained at {manifest.embed_dim:,} dims only, not to be cut."
    return f"It was trained to be cut at {listed(manifest.nesting_dims)}, not at other widths."


def facts(known: Mapping[str, Any]) -> str:
    """Return a list of what is known, one line each."""
    lines = [f"- {name}: `{_plain(value)}`" for name, value in known.items() if value is not None]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("`", "'").replace("\n", " ")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def listed(dims: tuple[int, ...]) -> str:
    """Return widths in words."""
    return ", ".join(f"{dim:,}" for dim in dims)
