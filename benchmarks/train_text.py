"""Is one nested static text model as good as many rigid ones, and how good is it?

The wide built-in corpus: names of functions and classes are the queries, the first paragraphs of
their docstrings the documents. Trained on the train split, measured as MRR@10 of the test queries
against all documents. Arms, each with its own seeds:

- pilot: a plain loop (EmbeddingBag with a dense gradient, Adam 0.02, batch 1,024, 3 epochs, the
  tokenizer of wordllama, each prefix normalised and multiplied by itself), from small random
  vectors, with which it does far better than from the unit-variance default;
- nested: `nestling train text` as it comes;
- nested-short: the same with half of the epochs, for the comparison at equal time;
- nested-warm: the same with the temperature 0.08, which favours short prefixes;
- rigid-32, rigid-64, rigid-128, rigid-256: the recipe of `nested` with one width.

    python benchmarks/train_text.py [--seeds 3] [--out report.md] [--work folder]

Finished runs are kept in the work folder, so that a killed benchmark goes on. Best on a quiet
machine; about an hour.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

cpu = Path("/proc/cpuinfo")
if cpu.exists() and " avx512f " in cpu.read_text():
    os.environ["OPENBLAS_CORETYPE"] = "SkylakeX"  # before NumPy is loaded

import numpy as np  # noqa: E402
import torch  # noqa: E402
from report import cpu_name, describe_revision  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from torch.nn import functional  # noqa: E402

from nestling.core import Dtype  # noqa: E402
from nestling.data import RetrievalTask, TrainingPairs, open_task, open_training_pairs  # noqa: E402
from nestling.encode import Encoder  # noqa: E402
from nestling.encode.static import wordllama_files  # noqa: E402
from nestling.measure import measure  # noqa: E402
from nestling.train.static_text import (  # noqa: E402
    STATIC_OPTIONS,
    StaticRecipe,
    in_memory_encoder,
    train_static_text,
)

EMBED_DIM = 1024
DIMS = tuple(8 << step for step in range(8))
RIGID = (32, 64, 128, 256)
WARM_TEMPERATURE = 0.08
PILOT_START = 0.1
PILOT_EPOCHS = 3
PILOT_BATCH = 1024
METRIC = "mrr_at_10"
CONFIDENCE = 0.95
RESAMPLES = 2000


# --- The arms ----------------------------------------------------------------------------------


def train_pilot(pairs: TrainingPairs, seed: int) -> tuple[Encoder, float]:
    """The plain loop, with nothing of nestling in it but the data."""
    _, tokenizer_file = wordllama_files()
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    started_s = time.perf_counter()
    torch.manual_seed(seed)
    queries, documents = (
        [
            torch.tensor(encoding.ids)
            for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ]
        for texts in (pairs.anchors, pairs.positives)
    )
    table = torch.nn.Parameter(PILOT_START * torch.randn(tokenizer.get_vocab_size(), EMBED_DIM))
    optimizer = torch.optim.Adam([table], lr=0.02)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(PILOT_EPOCHS):
        order = torch.randperm(len(pairs), generator=generator)
        for rows in order[: len(pairs) // PILOT_BATCH * PILOT_BATCH].split(PILOT_BATCH):
            sides = [_bag([texts[row] for row in rows], table) for texts in (queries, documents)]
            target = torch.arange(len(rows))
            loss = torch.zeros(())
            for dim in DIMS:
                left, right = (functional.normalize(side[:, :dim], dim=1) for side in sides)
                loss = loss + functional.cross_entropy(left @ right.T / 0.05, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    seconds = time.perf_counter() - started_s
    return in_memory_encoder(table.detach().numpy(), tokenizer, DIMS), seconds


def _bag(texts: Sequence[torch.Tensor], table: torch.Tensor) -> torch.Tensor:
    lengths = torch.tensor([len(text) for text in texts])
    return functional.embedding_bag(torch.cat(list(texts)), table, lengths.cumsum(0) - lengths)


def train_ours(
    pairs: TrainingPairs, seed: int, dims: tuple[int, ...], work: Path, arm: str
) -> tuple[Encoder, float]:
    """The product, checkpoints and model folder included."""
    from nestling.encode import open_encoder

    recipe = StaticRecipe(embed_dim=dims[-1], nesting_dims=dims)
    if arm == "nested-warm":
        recipe = replace(recipe, temperature=WARM_TEMPERATURE)
    epochs = STATIC_OPTIONS.num_epochs // (2 if arm == "nested-short" else 1)
    options = replace(STATIC_OPTIONS, seed=seed, num_epochs=epochs)
    out = work / "models" / f"{arm}-{seed}"
    started_s = time.perf_counter()
    train_static_text(pairs, recipe, out=out, options=options, validation_share=0.0, overwrite=True)
    seconds = time.perf_counter() - started_s
    return open_encoder(f"nest:{out}"), seconds


ARMS: dict[str, tuple[int, ...]] = {
    "pilot": DIMS,
    "nested": DIMS,
    "nested-short": DIMS,
    "nested-warm": DIMS,
    **{f"rigid-{dim}": (dim,) for dim in RIGID},
}


# --- Runs ----------------------------------------------------------------------------------------


def run_seed(seed: int, work: Path) -> None:
    """Train and measure every arm that has not run with this seed."""
    pairs, task = open_training_pairs("builtin:wide"), open_task("builtin:wide")
    assert isinstance(task, RetrievalTask)
    (work / "runs").mkdir(parents=True, exist_ok=True)
    for arm in ARMS:
        if not record_path(work, arm, seed).exists():
            started_s = time.perf_counter()
            run_arm(arm, seed, pairs, task, work)
            print(f"{arm} {seed}: {time.perf_counter() - started_s:.0f} s", file=sys.stderr)


def record_path(work: Path, arm: str, seed: int) -> Path:
    return work / "runs" / f"{arm}-{seed}.json"


def run_arm(arm: str, seed: int, pairs: TrainingPairs, task: RetrievalTask, work: Path) -> None:
    dims = ARMS[arm]
    encoder, seconds = (
        train_pilot(pairs, seed) if arm == "pilot" else train_ours(pairs, seed, dims, work, arm)
    )
    results = measure(
        encoder, task, dims=dims, dtypes=[Dtype.FLOAT32], baselines=False, bad_rows="drop"
    )
    place = {query_id: number for number, query_id in enumerate(task.query_ids)}
    kept = np.array([place[query_id] for query_id in results.query_ids])
    per_query = {}
    for row in results.rows:
        if row.metric == METRIC:
            values = np.zeros(len(task.query_ids), np.float32)  # no vector, nothing found
            values[kept] = row.per_query
            per_query[str(row.dim)] = values
    save_file(per_query, record_path(work, arm, seed).with_suffix(".safetensors"))
    told = {
        "arm": arm,
        "seed": seed,
        "train_s": seconds,
        "corpus_hash": task.corpus.corpus_hash,
        "num_documents": len(task.corpus),
        "num_queries": len(task.queries),
        "num_pairs": len(pairs),
        "pairs_hash": pairs.pairs_hash,
    }
    record_path(work, arm, seed).write_text(json.dumps(told))


# --- Report ----------------------------------------------------------------------------------------


class Runs:
    """What all runs came to: MRR@10 per query, averaged over seeds where arms are compared."""

    def __init__(self, work: Path, seeds: int) -> None:
        self.seeds = range(seeds)
        self.told = {
            (arm, seed): json.loads((work / "runs" / f"{arm}-{seed}.json").read_text())
            for arm in ARMS
            for seed in self.seeds
        }
        self.values = {
            key: load_file(work / "runs" / f"{key[0]}-{key[1]}.safetensors") for key in self.told
        }
        for name in ("corpus_hash", "pairs_hash"):
            assert len({told[name] for told in self.told.values()}) == 1, (
                f"{name} differs between runs"
            )

    def of(self, arm: str, dim: int) -> np.ndarray:
        """Seeds x queries."""
        return np.stack([self.values[arm, seed][str(dim)] for seed in self.seeds])

    def mean(self, arm: str, dim: int) -> float:
        return float(self.of(arm, dim).mean())

    def spread(self, arm: str, dim: int) -> str:
        means = self.of(arm, dim).mean(axis=1)
        return f"{means.mean():.4f} ({means.min():.4f} to {means.max():.4f})"

    def seconds(self, arm: str) -> list[float]:
        return [self.told[arm, seed]["train_s"] for seed in self.seeds]

    def interval(
        self,
        value: Callable[[np.ndarray, np.ndarray], float],
        left: tuple[str, int],
        right: tuple[str, int],
    ) -> tuple[float, float, float]:
        """Bootstrap over seeds and queries, paired by query."""
        a, b = self.of(*left), self.of(*right)
        generator = np.random.default_rng(0)
        draws = []
        for _ in range(RESAMPLES):
            columns = generator.integers(a.shape[1], size=a.shape[1])
            weights = np.bincount(columns, minlength=a.shape[1]) / a.shape[1]
            rows = generator.integers(len(a), size=len(a)), generator.integers(len(b), size=len(b))
            draws.append(
                value(a[rows[0]].mean(axis=0) @ weights, b[rows[1]].mean(axis=0) @ weights)
            )
        low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return value(a.mean(), b.mean()), float(low), float(high)


def difference(left: Any, right: Any) -> float:
    return float(left - right)


def share(left: Any, right: Any) -> float:
    return float(left / right)


def judge(met: bool) -> str:
    return "met" if met else "**missed**"


def make_report(runs: Runs, command: str) -> str:
    first = next(iter(runs.told.values()))
    lines = [
        "# Nested static text encoder against rigid ones, and against a plain loop",
        "",
        (
            f"{datetime.now(UTC):%Y-%m-%d}, {cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads. "
            f"Python {platform.python_version()}, PyTorch {version('torch')}, NumPy {version('numpy')}, "
            f"nestling {version('nestling')} at {describe_revision() or 'an unknown revision'}."
        ),
        "",
        f"`{command}`",
        "",
        (
            f"builtin:wide, {first['num_documents']:,} documents, corpus_hash `{first['corpus_hash']}`; "
            f"{first['num_pairs']:,} training pairs; MRR@10 of {first['num_queries']:,} test queries over all "
            f"documents; {len(runs.seeds)} seeds per arm. Means over seeds (lowest to highest)."
        ),
        "",
        "| width | nested | nested-short | nested-warm | pilot | rigid of that width | nested - pilot | nested - rigid |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for dim in DIMS:
        rigid = f"rigid-{dim}"
        has_rigid = rigid in ARMS
        against = runs.interval(difference, ("nested", dim), ("pilot", dim))
        beside = runs.interval(difference, ("nested", dim), (rigid, dim)) if has_rigid else None
        lines.append(
            f"| {dim} | {runs.spread('nested', dim)} | {runs.mean('nested-short', dim):.4f} | "
            f"{runs.mean('nested-warm', dim):.4f} | {runs.spread('pilot', dim)} | "
            f"{runs.spread(rigid, dim) if has_rigid else ''} | {signed(against)} | "
            f"{signed(beside) if beside else ''} |"
        )
    lines += [
        "",
        "Differences with 95% intervals, bootstrapped over queries (paired) and seeds.",
        "",
        "| arm | seconds of training (each seed) |",
        "|---|---|",
        *(
            f"| {arm} | {', '.join(f'{seconds:.0f}' for seconds in runs.seconds(arm))} |"
            for arm in ARMS
        ),
        "",
        "Ours include learning the tokenizer, checkpoints and writing the model folder.",
        "",
        "| promised | measured | |",
        "|---|---|---|",
    ]
    for arm in ("nested", "nested-short"):
        beats = all(runs.mean(arm, dim) > runs.mean("pilot", dim) for dim in DIMS)
        ratio = np.mean(runs.seconds(arm)) / np.mean(runs.seconds("pilot"))
        lines.append(
            f"| better than the pilot at every width, in the same time | {arm}: "
            f"{'better' if beats else 'not better'} at all, in {ratio:.2f} of its time | {judge(bool(beats and ratio <= 1))} |"
        )
    for dim in (32, 64, 128, 256):
        found = runs.interval(difference, ("nested", dim), (f"rigid-{dim}", dim))
        lines.append(
            f"| at least equal to rigid {dim}, within the interval | {signed(found)} | {judge(found[2] >= 0)} |"
        )
    for arm in ("nested", "nested-warm", "pilot"):
        for dim, wanted in ((128, 0.97), (64, 0.90)):
            found = runs.interval(share, (arm, dim), (arm, EMBED_DIM))
            lines.append(
                f"| {dim} dims keep {wanted:.0%} of the full width | {arm}: {found[0]:.1%} "
                f"({found[1]:.1%} to {found[2]:.1%}) | {judge(found[0] >= wanted)} |"
            )
    return "\n".join(lines) + "\n"


def signed(found: tuple[float, float, float]) -> str:
    return f"{found[0]:+.4f} ({found[1]:+.4f} to {found[2]:+.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path, default=Path("train_text_runs"))
    parser.add_argument("--run", type=int, metavar="SEED", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run is not None:
        run_seed(given.run, given.work)
        return
    for seed in range(given.seeds):
        subprocess.run(
            [sys.executable, __file__, "--work", str(given.work), "--run", str(seed)], check=True
        )
    command = f"python benchmarks/train_text.py --seeds {given.seeds}"
    report = make_report(Runs(given.work, given.seeds), command)
    print(report)
    if given.out:
        given.out.write_text(report)


if __name__ == "__main__":
    main()
