"""A tiny random BERT, its WordPiece vocabulary, and pairs of sentences, all made on the spot."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from nestling.data.training_pairs import TrainingPairs

WIDTH = 16
DIMS = (4, 8, 16)
SPECIAL_TOKENS: dict[str, Any] = {
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
}
SUBJECTS = ("cat", "dog", "horse", "bird", "fish", "child", "farmer", "pilot")
VERBS = {"eats": "swallows", "sees": "notices", "likes": "loves", "moves": "carries"}
OBJECTS = {"bread": "a loaf", "water": "a drink", "stone": "a rock", "book": "a novel"}
PLACES = ("home", "town", "sea", "hill")


def save_tiny_bert(folder: Path, *, dropout: float = 0.1, seed: int = 0) -> Path:
    """Save a random sentence-transformers BERT of width 16: mean pooling, unit length.

    Args:
        folder: Where to.
        dropout: Of hidden states and attention; a resumed run must draw the same.
        seed: Of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _save_tokenizer(folder / "bert")
    config: Any = BertConfig
    torch.manual_seed(seed)
    BertModel(
        config(
            vocab_size=len(vocabulary),
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=24,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            initializer_range=0.3,
        )
    ).save_pretrained(folder / "bert")
    modules = [Transformer(str(folder / "bert")), Pooling(WIDTH), Normalize()]
    SentenceTransformer(modules=modules).save_pretrained(
        str(folder / "tiny_bert"), create_model_card=False
    )
    return folder / "tiny_bert"


def load_tiny_bert(folder: Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """Open a saved one on the CPU, dropout off, in a number format."""
    return SentenceTransformer(str(folder), device="cpu").to(dtype).eval()


def make_sentences() -> tuple[list[str], list[str]]:
    """Return 512 different sentences and a paraphrase of each, in a fixed shuffled order."""
    anchors, positives = [], []
    for subject in SUBJECTS:
        for verb, other_verb in VERBS.items():
            for thing, other_thing in OBJECTS.items():
                for place in PLACES:
                    anchors.append(f"the {subject} {verb} {thing} at {place}")
                    positives.append(f"{subject} {other_verb} {other_thing} near the {place}")
    order = np.random.default_rng(0).permutation(len(anchors))
    return [anchors[row] for row in order], [positives[row] for row in order]


def make_pairs(
    num_pairs: int, *, with_negatives: bool = False, groups: np.ndarray | None = None
) -> TrainingPairs:
    """Return some pairs; a negative speaks of the same subject and of something else."""
    anchors, positives = make_sentences()
    negatives = [f"{text.split()[1]} sleeps under the stone" for text in anchors]
    return TrainingPairs(
        anchors=anchors[:num_pairs],
        positives=positives[:num_pairs],
        negatives=negatives[:num_pairs] if with_negatives else None,
        groups=np.arange(num_pairs, dtype=np.int64) if groups is None else groups,
        source="tiny sentences",
    )


def _save_tokenizer(folder: Path) -> dict[str, int]:
    anchors, positives = make_sentences()
    words = sorted({word for text in (*anchors, *positives) for word in text.split()})
    pieces = [*SPECIAL_TOKENS.values(), *words, "sleeps", "under", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    vocabulary |= {
        f"##{letter}": len(vocabulary) + ord(letter) - 97 for letter in "abcdefghijklmnopqrstuvwxyz"
    }
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, model_max_length=20, **SPECIAL_TOKENS).save_pretrained(folder)
    return vocabulary
