"""The README.md of an adapter: what each candidate was worth, how to use it, what it cannot do."""

from collections.abc import Mapping
from pathlib import Path

from nestling.core import Dtype
from nestling.core.files import write_atomically
from nestling.encode.nest_manifest import NestManifest
from nestling.train.adapter.record import AdapterRecord
from nestling.train.model_card import CARD_FILE, facts, front_matter, listed

KINDS: Mapping[str, str] = {
    "identity": "no change at all",
    "pca": "the uncentred PCA, a rotation",
    "rotation": "a rotation, started at the PCA and learned without labels",
    "banded": "a rotation that turns only within bands of coordinates, learned without labels",
    "variance": "another order of the coordinates, by their variance",
    "random": "a rotation by chance",
    "supervised": "a rotation, learned from pairs that belong together",
    "residual": "a residual perceptron (arXiv:2407.20243)",
}


def write_card(
    folder: Path, manifest: NestManifest, record: AdapterRecord, *, command: str | None
) -> None:
    """Write the card.

    Raises:
        WriteError: If the folder cannot be written.
    """
    sections = (
        front_matter(manifest),
        _introduction(manifest, record),
        *(_table(record, dtype) for dtype in record.dtypes),
        *_pairs_table(record),
        _usage(manifest, record),
        _fit(record, command),
        _limits(manifest, record),
    )
    write_atomically(folder / CARD_FILE, ("\n\n".join(sections) + "\n").encode())


def _introduction(manifest: NestManifest, record: AdapterRecord) -> str:
    parent = "" if manifest.parent is None else f" of {manifest.parent.space.model}"
    won = record.judged(record.winner)
    full = (
        "Full-width scores stay what they were."
        if won.is_lossless
        else "Full-width scores change: see the table."
    )
    return (
        f"# {manifest.model}\n\nA map from the vectors{parent}, {manifest.embed_dim:,} numbers each, to as many "
        f"of which the first {listed(manifest.nesting_dims[:-1])} are each an embedding by themselves. It is "
        f"{KINDS[record.method]}. {full}\n\n{record.verdict}"
    )


def _table(record: AdapterRecord, dtype: Dtype) -> str:
    dims = record.nesting_dims
    is_judged = dtype in record.judged_dtypes
    titles = ["map", *(f"{dim:,}" for dim in dims), *([record.shortfall_title] * is_judged)]
    rows = []
    for line in record.table:
        values = [f"{line.values[dtype][dim]:.1%}" for dim in dims]
        name = f"**{line.name}**" if line.name == record.winner else line.name
        rows.append(_row(name, *values, *([f"{line.shortfall:.1%}"] * is_judged)))
    worse = [cut for cut in record.below if cut.dtype == dtype]
    notes = [
        f"At {cut.dim:,} dims the chosen map keeps {cut.difference:.1%} less than {cut.baseline} (95% interval "
        f"{cut.low:.1%} to {cut.high:.1%})."
        for cut in worse
    ]
    formats = "" if record.judged_dtypes == (Dtype.FLOAT32,) else " and formats"
    rule = (
        f" The shortfall of a map is the most that it is below the best lossless one, over these widths{formats}; the "
        f"smallest wins, and a simpler map that may be as good."
    )
    return "\n".join(
        [
            f"## Neighbours kept by width, in {dtype}",
            "",
            (
                f"Mean overlap of the ten nearest neighbours at each width with those at full width of the original "
                f"vectors, of {record.num_held_out:,} vectors that no map was fitted on among all that were drawn."
            )
            + (rule if is_judged else ""),
            "",
            _row(*titles),
            "|---" + "|---:" * (len(titles) - 1) + "|",
            *rows,
            *(["", *notes] if notes else []),
        ]
    )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _pairs_table(record: AdapterRecord) -> list[str]:
    if record.table[0].on_pairs is None:
        return []
    dims = record.nesting_dims
    rows = []
    for line in record.table:
        by_dim = line.on_pairs or {}
        rows.append(_row(line.name, *(f"{by_dim[dim]:.4f}" for dim in dims)))
    table = [
        (
            f"nDCG@10 of anchors seeking their positives, in groups or classes whose pairs no map was fitted on, of "
            f"{record.pairs}."
        ),
        "",
        _row("map", *(f"{dim:,}" for dim in dims)),
        "|---" + "|---:" * len(dims) + "|",
        *rows,
    ]
    return ["## Held-out pairs by width\n\n" + "\n".join(table)]


def _usage(manifest: NestManifest, record: AdapterRecord) -> str:
    short = manifest.nesting_dims[len(manifest.nesting_dims) // 2 - 1]
    nestling = f"""## Use

A cut vector is shorter than 1, by another factor for each row: scale it to unit length again before
a cosine or a dot product.

```python
from nestling.core import take_prefix
from nestling.encode import open_encoder

encoder = open_encoder("nest:path/to/this/folder")
short = take_prefix(encoder.encode(texts, role="document"), {short}, renormalize=True)
```

Vectors that exist already need no model:

```
nestling encode --model nest:path/to/this/folder --vectors VECTORS --out ADAPTED
```"""
    if not record.judged(record.winner).is_lossless:
        return nestling
    return f"""{nestling}

The map is one matrix, in NumPy:

```python
adapted = vectors @ np.load("path/to/this/folder/rotation.npy")
```

and with sentence-transformers, behind the model that made the vectors:

```python
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense

model = SentenceTransformer("the model")
model.append(Dense.load("path/to/this/folder/Dense"))
short = model.encode(texts, truncate_dim={short}, normalize_embeddings=True)
```"""


def _fit(record: AdapterRecord, command: str | None) -> str:
    parts = ["## Fit"]
    if command is not None:
        parts.append(f"```\n{command}\n```")
    labels = "without labels and without queries"
    if record.method == "supervised":
        labels = f"and on the pairs of {record.pairs}, pairs_hash {record.pairs_hash}"
    parts.append(
        f"Fitted on {record.num_fit_rows:,} distinct vectors of {record.fitted_on}, corpus_hash "
        f"{record.corpus_hash}, in {record.seconds:,.0f} s, {labels}."
    )
    return "\n\n".join([*parts, facts(record.recipe), "### Environment", facts(record.environment)])


def _limits(manifest: NestManifest, record: AdapterRecord) -> str:
    points = [
        "Adapted vectors and original ones cannot be mixed: map the queries, too.",
        (
            f"It was fitted for {listed(manifest.nesting_dims)} dims, and on vectors of {record.fitted_on}. On other "
            f"documents it keeps less: `nestling measure` measures it on yours, and `nestling doctor --adapter` says "
            f"when to fit it again."
        ),
        "The map was chosen by the values above, which makes them a little too good.",
    ]
    if record.judged(record.winner).is_lossless:
        points.insert(0, "Lossless at full width only. A cut loses what the table says.")
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)
