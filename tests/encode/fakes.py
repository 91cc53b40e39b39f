"""A deterministic encoder that remembers what it was asked, and small corpora for it."""

from collections.abc import Sequence

import numpy as np

from nestling.core import Fingerprint, Space, normalize
from nestling.data.types import Corpus, Inputs
from nestling.encode import Role
from nestling.encode.job import content_hashes


class FakeEncoder:
    """A random unit vector per content; texts that say so come out bad."""

    nesting_dims = None
    max_tokens = None

    def __init__(self, *, embed_dim: int = 8, model: str = "fake", prompt: str = "") -> None:
        self.embed_dim = embed_dim
        self.asked: list[str] = []
        self.fingerprint = Fingerprint(
            space=Space(
                model=model,
                revision="1",
                pooling="none",
                normalization="l2",
                embed_dim=embed_dim,
            ),
            encoder={"backend": "fake", "prompt": prompt},
        )

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def encode(self, inputs: Inputs, *, role: Role, ids: Sequence[str] | None = None) -> np.ndarray:
        assert ids is not None
        self.asked.extend(ids)
        rows = [self._vector(role + content) for content in content_hashes(inputs)]
        made = normalize(np.array(rows, dtype=np.float32))
        if not isinstance(inputs, np.ndarray):
            for row, text in enumerate(inputs):
                if text in BAD:
                    made[row] = BAD[text]
        return made

    def _vector(self, seed: str) -> np.ndarray:
        return np.random.default_rng(list(seed.encode())).standard_normal(self.embed_dim)


BAD = {"zero": 0.0, "nan": np.nan, "infinite": np.inf}


def make_corpus(texts: Sequence[str], *, ids: Sequence[str] | None = None) -> Corpus:
    names = [f"doc {number}" for number in range(len(texts))] if ids is None else ids
    return Corpus(doc_ids=names, texts=texts, source="test")


def make_texts(num_texts: int, *, seed: int = 0) -> list[str]:
    """Different texts of one to thirty words."""
    generator = np.random.default_rng(seed)
    words = ["vector", "search", "nest", "prefix", "width", "index", "query", "héé", "日本", "🪆"]
    return [
        f"{number} {' '.join(generator.choice(words, generator.integers(0, 30)))}"
        for number in range(num_texts)
    ]
