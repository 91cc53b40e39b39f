"""Train a static text encoder whose every prefix is an embedding."""

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn, optim

from nestling.core import Dtype, Fingerprint, Space, check_nesting_dims
from nestling.core.progress import Progress, silent
from nestling.data import RetrievalTask, TrainingPairs
from nestling.encode.static import wordllama_files
from nestling.encode.table_encoder import TableEncoder
from nestling.encode.token_table import TokenTable
from nestling.errors import DataError, DimensionError, TrainingError
from nestling.measure import measure
from nestling.train.coding import check_coding, with_codes
from nestling.train.job import LoopOptions, check_early_stopping
from nestling.train.loop import fit
from nestling.train.losses import LossValue
from nestling.train.losses.nested_info_nce import NestedInfoNCE
from nestling.train.losses.self_distillation import SelfDistillation
from nestling.train.losses.spread_out import SpreadOut
from nestling.train.model_card import Quality
from nestling.train.model_folder import CHECKPOINT_FOLDER, training_folder
from nestling.train.models.static_text import (
    DEFAULT_VOCABULARY,
    Bags,
    StaticText,
    TokenizedTexts,
    start_table,
    train_tokenizer,
)
from nestling.train.processes import process_state
from nestling.train.record import TrainingRecord
from nestling.train.static_folder import save_static

LARGEST_EMBED_DIM = 4096
LARGEST_USUAL_BATCH = 1024
VALIDATION_METRIC = "ndcg_at_10"

STATIC_OPTIONS = LoopOptions(
    num_epochs=8, learning_rate=0.02, schedule="constant", warmup_share=0.0
)
"""What suits a table of token vectors: short, fast, no schedule to wait for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticRecipe:
    """What is trained.

    Attributes:
        embed_dim: Full width.
        nesting_dims: Ascending widths; the full one is added if it is missing. A single one is a
            rigid model.
        start: "scratch" learns a tokenizer and starts from small random vectors; "wordllama" goes
            on from the weights of static:wordllama, with its tokenizer.
        dim_weights: Weight of each width in the loss; 1 by default.
        batch_size: Pairs per step, all other positives of which are negatives; None takes 1,024, or
            an eighth of the pairs if that is less, so that small data makes steps too.
        temperature: Of the loss.
        symmetric: Also tell the anchors of each positive apart.
        self_distillation_weight: Of the listwise KL from full-width similarities; 0 leaves it out.
        dims_per_step: Look at so many widths per step; None looks at all.
        vocabulary: Most distinct tokens of a tokenizer that is learned.
        max_tokens: Read at most so many tokens of a text in training; None reads all.
        quantize: Formats in which documents count besides float, see `QuantizedPrefixes`.
        quantize_weight: How much each of them counts beside float.
        spread_out_weight: Of the regularisation that spreads rows out, see `SpreadOut`; 0 leaves it
            out.
    """

    embed_dim: int
    nesting_dims: tuple[int, ...]
    start: Literal["scratch", "wordllama"] = "scratch"
    dim_weights: tuple[float, ...] | None = None
    batch_size: int | None = None
    temperature: float = 0.05
    symmetric: bool = False
    self_distillation_weight: float = 0.0
    dims_per_step: int | None = None
    vocabulary: int = DEFAULT_VOCABULARY
    max_tokens: int | None = None
    quantize: tuple[Dtype, ...] = ()
    quantize_weight: float = 1.0
    spread_out_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check the widths, the batch size, and what concerns the codes.

        Raises:
            DimensionError: If `embed_dim` or `nesting_dims` break the rules.
            DataError: If `batch_size` is below 2.
            TrainingError: If `quantize` names no codes, or one of them twice, or a weight of codes
                or of the spread is out of range.
        """
        if not 1 <= self.embed_dim <= LARGEST_EMBED_DIM:
            raise DimensionError(
                f"`embed_dim` must lie in [1, {LARGEST_EMBED_DIM}], got {self.embed_dim}."
            )
        if self.batch_size is not None and self.batch_size < 2:
            raise DataError(
                f"`batch_size` must be at least 2, as each pair is told from the others of its batch, "
                f"got {self.batch_size}. The usual one is 1024."
            )
        check_coding(self.quantize, self.quantize_weight, self.spread_out_weight)
        dims = check_nesting_dims(self.nesting_dims, self.embed_dim)
        object.__setattr__(self, "nesting_dims", dims)


class PairBatch(NamedTuple):
    """Tokens and groups of one batch; `document_groups` begins with those of the positives."""

    anchors: Bags
    documents: Bags
    anchor_groups: Int64[Tensor, " anchors"]
    document_groups: Int64[Tensor, " documents"]


class StaticTextJob:
    """A static encoder and its training pairs, as `fit` wants them."""

    def __init__(
        self,
        recipe: StaticRecipe,
        pairs: TrainingPairs,
        *,
        validation: RetrievalTask | None = None,
        seed: int = 0,
    ) -> None:
        self.recipe = recipe
        self._pairs = pairs
        self._validation = validation
        self._seed = seed
        self._batch_size = min(recipe.batch_size or _usual_batch(len(pairs)), len(pairs))
        negatives = pairs.negatives or ()
        texts = [*pairs.anchors, *pairs.positives, *filter(None, negatives)]
        self.tokenizer, table = _start(recipe, texts, seed=seed)
        self.encoder = StaticText(table)
        self._module = _LossOfText(self.encoder, recipe, seed=seed)
        self._anchors = self._tokenize(pairs.anchors)
        self._positives = self._tokenize(pairs.positives)
        self._negatives = self._tokenize(negatives)

    @property
    def module(self) -> nn.Module:
        """Encoder and loss."""
        return self._module

    @property
    def nesting_dims(self) -> tuple[int, ...]:
        """Widths of the recipe."""
        return self.recipe.nesting_dims

    @property
    def settings(self) -> Mapping[str, Any]:
        """Recipe and training data."""
        return {
            **asdict(self.recipe),
            "batch_size": self._batch_size,
            "pairs": self._pairs.source,
            "pairs_hash": self._pairs.pairs_hash,
            "num_pairs": len(self._pairs),
            "num_tokens": self.encoder.table.num_embeddings,
            "validation": None if self._validation is None else self._validation.name,
        }

    @property
    def num_batches(self) -> int:
        """Whole batches of an epoch; what is left over is another pair's turn next time."""
        return len(self._pairs) // self._batch_size

    def batch(self, epoch: int, index: int) -> PairBatch:
        """Return a batch; the order of an epoch depends on the seed and the epoch alone."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._pairs))
        rows = order[index * self._batch_size : (index + 1) * self._batch_size]
        groups = torch.from_numpy(self._pairs.groups[rows])
        documents, document_groups = self._positives.take(rows), groups
        if self._pairs.negatives is not None:
            hard = rows[self._negatives.lengths[rows] > 0]
            documents = _join(documents, self._negatives.take(hard))
            # A hard negative that is another row's positive is none for the rows of that group.
            hard_groups = torch.from_numpy(self._pairs.negative_groups[hard])
            document_groups = torch.cat([groups, hard_groups])
        return PairBatch(self._anchors.take(rows), documents, groups, document_groups)

    def make_optimizer(self, learning_rate: float) -> optim.Optimizer:
        """Return an Adam that touches only the tokens of the batch."""
        return optim.SparseAdam(self._module.parameters(), lr=learning_rate)

    def validate(self) -> Mapping[int, float] | None:
        """Return nDCG@10 of every prefix on the held-out pairs."""
        if self._validation is None:
            return None
        return quality_by_dim(self.token_encoder(), self._validation, self.nesting_dims)

    def token_encoder(self) -> TableEncoder:
        """Return the encoder as it stands, in NumPy."""
        return in_memory_encoder(self.encoder.vectors(), self.tokenizer, self.nesting_dims)

    def _tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        return TokenizedTexts(self.tokenizer, texts, max_tokens=self.recipe.max_tokens)


def in_memory_encoder(
    vectors: Float32[np.ndarray, "tokens embed_dim"],
    tokenizer: Tokenizer,
    nesting_dims: tuple[int, ...],
) -> TableEncoder:
    """Return a table that is in no folder yet as an encoder, for vectors that are not stored."""
    space = Space(
        model="in training",
        revision="",
        pooling="mean",
        normalization="l2",
        embed_dim=vectors.shape[1],
    )
    return TableEncoder(
        TokenTable(vectors, tokenizer),
        fingerprint=Fingerprint(space=space, encoder={"backend": "static"}),
        nesting_dims=nesting_dims,
        name="a static model",
    )


class _LossOfText(nn.Module):
    def __init__(self, encoder: StaticText, recipe: StaticRecipe, *, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        drawn: dict[str, Any] = {"dims_per_step": recipe.dims_per_step, "seed": seed}
        contrast = NestedInfoNCE(
            recipe.nesting_dims,
            recipe.dim_weights,
            temperature=recipe.temperature,
            symmetric=recipe.symmetric,
            **drawn,
        )
        self._loss = with_codes(contrast, recipe.quantize, recipe.quantize_weight)
        self._distillation_weight = recipe.self_distillation_weight
        self._distillation = None
        if self._distillation_weight:
            ranking = SelfDistillation(recipe.nesting_dims, temperature=recipe.temperature, **drawn)
            self._distillation = with_codes(ranking, recipe.quantize, recipe.quantize_weight)
        self._spread_out_weight = recipe.spread_out_weight
        self._spread_out = SpreadOut(recipe.nesting_dims, recipe.dim_weights, **drawn)

    def forward(self, batch: PairBatch, step: int) -> LossValue:
        queries, documents = self.encoder(batch.anchors), self.encoder(batch.documents)
        groups = {
            "query_groups": batch.anchor_groups,
            "document_groups": batch.document_groups,
        }
        value: LossValue = self._loss.value(queries, documents, **groups, step=step)
        total = value.total
        if self._distillation is not None:
            distilled = self._distillation.value(queries, documents, step=step)
            total = total + self._distillation_weight * distilled.total
        if self._spread_out_weight:
            spread = self._spread_out.value(queries, documents, **groups, step=step)
            total = total + self._spread_out_weight * spread.total
        return value._replace(total=total)


def quality_by_dim(
    encoder: TableEncoder, task: RetrievalTask, dims: Sequence[int]
) -> dict[int, float]:
    """Return nDCG@10 of every prefix of the vectors in float32."""
    results = measure(
        encoder, task, dims=dims, dtypes=[Dtype.FLOAT32], baselines=False, bad_rows="drop"
    )
    return {
        row.dim: row.value
        for row in results.rows
        if row.metric == VALIDATION_METRIC and row.family == "prefix"
    }


def train_static_text(
    pairs: TrainingPairs,
    recipe: StaticRecipe,
    *,
    out: Path,
    options: LoopOptions = STATIC_OPTIONS,
    validation_share: float = 0.05,
    overwrite: bool = False,
    command: str | None = None,
    progress: Progress = silent,
    warn: Callable[[str], object] = warnings.warn,
) -> TrainingRecord:
    """Train a tokenizer and a table of token vectors, and write a `nest:` folder.

    The folder is also a sentence-transformers model. Called again after an interruption, the
    training goes on where it was.

    Args:
        pairs: What belongs together.
        recipe: What is trained.
        out: Folder for the model; checkpoints are in it until the model is written.
        options: How it is trained.
        validation_share: Of the pairs, held out and measured after every epoch; 0 for none.
        overwrite: Replace a finished model that is there, once the new one is trained; and start
            over where checkpoints of another training are there.
        command: What was typed, for the model card.
        progress: Told as it goes on.
        warn: Told what a person should know.

    Returns:
        The training record, which is in the folder too.

    Raises:
        DimensionError: If a width or a weight breaks the rules.
        DataError: If there are too few pairs.
        TrainingError: As `fit`.
        WriteError: As `training_folder`, or if nothing can be written.
    """
    kept, validation = pairs.hold_out(validation_share)
    check_early_stopping(options, recipe.nesting_dims, has_validation=validation is not None)
    if options.precision != "float32":
        raise TrainingError(
            f"`precision` must be float32 for a static model, got {options.precision}: adding token vectors up "
            f"has no product to make faster. Leave --precision out."
        )
    if validation_share and validation is None:
        warn(
            f"{len(pairs):,} pairs are too few to hold any out: nothing is measured after the epochs"
        )
    job = StaticTextJob(recipe, kept, validation=validation, seed=options.seed)
    with training_folder(out, overwrite=overwrite):
        record = fit(
            job,
            options,
            checkpoint_folder=out / CHECKPOINT_FOLDER,
            restart=overwrite,
            progress=progress,
            warn=warn,
        )
        if process_state().is_main_process:
            save_static(
                out,
                job.encoder.vectors(),
                job.tokenizer,
                nesting_dims=recipe.nesting_dims,
                record=record,
                quality=_quality(record, validation),
                training_data=pairs.describe(),
                command=command,
            )
            shutil.rmtree(out / CHECKPOINT_FOLDER)
    return record


def _quality(record: TrainingRecord, validation: RetrievalTask | None) -> Quality | None:
    values = record.kept_epoch.validation_by_dim
    if validation is None or values is None:
        return None
    measured_on = (
        f"{len(validation.queries):,} held-out anchors, each seeking its own among "
        f"{len(validation.corpus):,} held-out texts"
    )
    return Quality(metric=VALIDATION_METRIC, measured_on=measured_on, by_dim=values)


def _usual_batch(num_pairs: int) -> int:
    return min(LARGEST_USUAL_BATCH, max(2, num_pairs // 8))


def _start(
    recipe: StaticRecipe, texts: Sequence[str], *, seed: int
) -> tuple[Tokenizer, Float32[np.ndarray, "tokens embed_dim"]]:
    if recipe.start == "scratch":
        tokenizer = train_tokenizer(texts, vocabulary=recipe.vocabulary)
        return tokenizer, start_table(tokenizer.get_vocab_size(), recipe.embed_dim, seed=seed)
    weights, tokenizer_file = wordllama_files()
    known = load_file(weights)["embedding.weight"].astype(np.float32)
    if recipe.embed_dim < known.shape[1]:
        raise DimensionError(
            f"`embed_dim` must be at least {known.shape[1]}, the width of static:wordllama, to go on from it, got "
            f"{recipe.embed_dim}. Its shorter prefixes are nested already."
        )
    table = start_table(len(known), recipe.embed_dim, seed=seed)
    table[:, : known.shape[1]] = known
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, table


def _join(first: Bags, second: Bags) -> Bags:
    tokens, places = torch.unique(
        torch.cat([first.tokens[first.places], second.tokens[second.places]]), return_inverse=True
    )
    offsets = torch.cat([first.offsets, second.offsets + len(first.places)])
    return Bags(tokens, places, offsets)
