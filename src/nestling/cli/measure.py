"""`nestling measure`."""

from pathlib import Path
from typing import Any

import click

from nestling.cli.inputs import command_line, open_encoder_and_task
from nestling.cli.options import (
    DtypeList,
    IntList,
    OutputPath,
    bad_rows_option,
    debug_option,
    encoder_options,
    json_option,
    model_option,
    overwrite_option,
)
from nestling.cli.outputs import refuse_to_overwrite
from nestling.cli.tables import results_table
from nestling.cli.terminal import print_json, print_table, progress_bars, talk
from nestling.core import Dtype
from nestling.encode import cache_root
from nestling.errors import EvidenceError
from nestling.measure import Decision, Results, choose, measure, write_report
from nestling.measure.proposal import propose_adapter


@click.command(
    name="measure",
    epilog="""\b
TASK is one of:
  builtin           docstrings of the running Python's standard library
  builtin:wide      the same, with every installed package
  builtin:digits    scikit-learn's images of handwritten digits
  beir:DIR[#split]  corpus.jsonl, queries.jsonl and qrels/<split>.tsv, plain or .gz
  sts:FILE          sentence1, sentence2, score
  pairs:FILE        two texts and whether they belong together
  labels:FILE       label, text
  images:DIR        IDX files
  self:VECTORS|FILE|DIR   no judgements needed: how much of the full-width ranking is kept

\b
Examples:
  nestling measure --model static:wordllama --task builtin --dims 8,16,32,64,128,256
  nestling measure --model st:./my-model --task beir:./scifact --out results.json
  nestling measure --task self:embeddings.npy --out results.json""",
)
@model_option(required=False)
@click.option("--task", required=True, metavar="TASK", help="What to measure on; see below.")
@click.option("--dims", type=IntList(), help="Prefix widths.  [default: halving down to 8]")
@click.option(
    "--dtypes",
    type=DtypeList(),
    default="float32,int8,binary",
    show_default=True,
    help=f"Number formats: {', '.join(Dtype)}.",
)
@click.option(
    "--shortlist",
    "shortlist_size",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Candidates that a funnel re-scores at full width.",
)
@click.option("--queries", type=click.Path(path_type=Path), help="Queries for a self: task.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Same seed, same numbers.",
)
@click.option(
    "--out",
    type=OutputPath(),
    metavar="RESULTS.json",
    help="Results file; the report goes beside it as .html.",
)
@overwrite_option
@encoder_options
@bad_rows_option
@json_option
@debug_option
def command(
    model: str | None,
    task: str,
    dims: tuple[int, ...] | None,
    dtypes: tuple[Dtype, ...],
    shortlist_size: int,
    queries: Path | None,
    seed: int,
    out: Path | None,
    overwrite: bool,
    bad_rows: Any,
    as_json: bool,
    **encoder: Any,
) -> None:
    """Measure every prefix and number format on a task, all in one pass."""
    if out is not None:
        refuse_to_overwrite(out, overwrite)
    with progress_bars() as progress:
        opened, opened_task = open_encoder_and_task(
            model, task, queries=queries, progress=progress, **encoder
        )
        results = measure(
            opened,
            opened_task,
            model=model,
            dims=dims,
            dtypes=dtypes,
            shortlist_size=shortlist_size,
            cache=cache_root(),
            seed=seed,
            bad_rows=bad_rows,
            command=command_line(),
            progress=progress,
        )
    if out is not None:
        save(results, out, overwrite=overwrite)
    if as_json:
        print_json(without_per_query(results))
    else:
        print_table(results_table(results))
        if results.looks_nested is False:
            talk(
                "this model does not look nested here: its prefixes are not clearly better than random coordinates"
            )
            proposal = propose_adapter(results)
            if proposal is not None:
                talk(f"{proposal.text} To fit one to this model:\n  {proposal.command}")
        for note in results.notes:
            talk(note)


def save(results: Results, out: Path, *, overwrite: bool) -> None:
    """Write the results file and the report beside it, and say so."""
    results.save(out, overwrite=overwrite)
    report = out.with_suffix(".html")
    write_report(results, _decide(results), report, overwrite=overwrite)
    talk(f"wrote {out} and {report}")


def _decide(results: Results) -> Decision | None:
    # The report answers the usual question; some metrics (Spearman) cannot carry a certificate.
    try:
        return choose(results)
    except EvidenceError:
        return None


def without_per_query(results: Results) -> dict[str, Any]:
    """Return the results as JSON for stdout; values per query are in the file only."""
    data = results.to_json()
    data.pop("query_ids")
    for row in data["rows"]:
        row.pop("per_query")
    return data
