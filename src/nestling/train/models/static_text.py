"""A static text encoder: a tokenizer and a table of token vectors, nothing else.

The module sums the vectors of a text's tokens. Every nested loss here scales a prefix to unit
length, so that the sum and the mean are the same embedding; the mean is what is served.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional

UNKNOWN = "[UNK]"
INNER = "##"
"""What WordPiece puts before a piece that does not begin a word."""

DEFAULT_VOCABULARY = 32_000
SMALLEST_FREQUENCY = 2
"""A word seen once teaches its pieces, not itself."""

START_SCALE = 0.02
"""Standard deviation of the first vectors. Adam moves each coordinate by about the learning rate
per step, so vectors that start at 1 are mostly noise after a few hundred steps."""


class Bags(NamedTuple):
    """The tokens of some texts, each distinct token named once.

    Attributes:
        tokens: Distinct token ids, ascending.
        places: For each token of each text in order, its place in `tokens`.
        offsets: Where each text begins in `places`.
    """

    tokens: Int64[Tensor, " distinct"]
    places: Int64[Tensor, " positions"]
    offsets: Int64[Tensor, " texts"]


class StaticText(nn.Module):
    """Sum of token vectors.

    The gradient of the table is sparse: it has the rows of the batch's tokens and no others, so
    that a step costs what its texts cost, however large the vocabulary.
    """

    def __init__(self, table: Float32[np.ndarray, "tokens embed_dim"]) -> None:
        super().__init__()
        # A module of its own: distributed training asks these for sparse gradients.
        self.table = nn.Embedding.from_pretrained(
            torch.from_numpy(table.copy()), freeze=False, sparse=True
        )

    def forward(self, bags: Bags) -> Float[Tensor, "texts embed_dim"]:
        """Return one embedding per text, not normalised; zero for a text without tokens."""
        rows = self.table(bags.tokens)
        return functional.embedding_bag(bags.places, rows, bags.offsets, mode="sum")

    def vectors(self) -> Float32[np.ndarray, "tokens embed_dim"]:
        """Return the table, without copying it where it lies in main memory."""
        return self.table.weight.detach().cpu().numpy()


class TokenizedTexts:
    """Token ids of many texts in one flat array, from which batches are cut without a loop."""

    def __init__(
        self, tokenizer: Tokenizer, texts: Sequence[str], *, max_tokens: int | None = None
    ) -> None:
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [encoding.ids[:max_tokens] for encoding in encodings]
        self.lengths: Int64[np.ndarray, " texts"] = np.array([len(row) for row in ids], np.int64)
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._flat: Int32[np.ndarray, " positions"] = np.concatenate(
            [np.array(row, dtype=np.int32) for row in ids] or [np.empty(0, np.int32)]
        )

    def take(self, rows: Int64[np.ndarray, " taken"]) -> Bags:
        """Return the bags of some texts, in the order of `rows`."""
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths)
        offsets = ends - lengths
        shift = np.repeat(self._starts[rows] - offsets, lengths)
        flat = self._flat[shift + np.arange(len(shift))]
        tokens, places = np.unique(flat, return_inverse=True)
        return Bags(
            torch.from_numpy(tokens.astype(np.int64)),
            torch.from_numpy(places.astype(np.int64)),
            torch.from_numpy(offsets),
        )

    def count(self, num_tokens: int) -> Int64[np.ndarray, " tokens"]:
        """Return how often each token occurs."""
        return np.bincount(self._flat, minlength=num_tokens).astype(np.int64)


def train_tokenizer(texts: Sequence[str], *, vocabulary: int = DEFAULT_VOCABULARY) -> Tokenizer:
    """Learn the words of a corpus and the pieces of rarer ones (WordPiece).

    Case and accents are dropped, words are split at camelCase and punctuation: `HTTPServer` and
    `http_server` share their words. Digits, letters and marks that never occurred are unknown.

    Args:
        texts: Training texts.
        vocabulary: Most distinct tokens; a small corpus has fewer.
    """
    learner = _word_pieces(models.WordPiece(unk_token=UNKNOWN))
    normalizer = learner.normalizer
    letters = sorted({letter for text in texts for letter in normalizer.normalize_str(text)})
    # The trainer numbers the inner letters of words in the order of a hash map, which differs from
    # run to run, and breaks ties by these numbers. Named first, they are numbered as named.
    inner = [f"{INNER}{letter}" for letter in letters if not letter.isspace()]
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocabulary, len(inner) + 1),
        min_frequency=SMALLEST_FREQUENCY,
        special_tokens=[UNKNOWN, *inner],
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return _word_pieces(models.WordPiece(learner.get_vocab(), unk_token=UNKNOWN))


def _word_pieces(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Replace(Regex(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"), " "),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def start_table(num_tokens: int, embed_dim: int, *, seed: int) -> Float32[np.ndarray, "tokens dim"]:
    """Return small random vectors to start from."""
    generator = np.random.default_rng(seed)
    table = generator.standard_normal((num_tokens, embed_dim), dtype=np.float32)
    return np.multiply(table, np.float32(START_SCALE), out=table)
