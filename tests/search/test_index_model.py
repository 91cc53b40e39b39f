"""Any sequence of changes leaves what a dictionary in memory holds, for its writer and for readers."""

import itertools
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nestling.errors import DataError
from nestling.search import Index
from tests.search.support import contents, fingerprint_of, random_rows, scratch_folder
from tests.search.workload import (
    PLANS,
    WIDTH,
    Model,
    Step,
    add_step,
    delete_step,
    ranking,
    start,
)

QUERIES = random_rows(2, WIDTH, seed=5)
NUMBERS = st.lists(st.integers(0, 15), min_size=1, max_size=4, unique=True)


class IndexLife(RuleBasedStateMachine):
    """An index, a reader that stays behind, and a model of each."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.folder = self.stack.enter_context(scratch_folder())
        self.numbers = itertools.count()

    @initialize(plan=st.sampled_from(PLANS))
    def build(self, plan):
        self.model: Model = start(self.folder / "index", 6, plan)
        self.index = Index.open(self.folder / "index")
        self.reader = Index.open(self.folder / "index")
        self.read: Model = self.model

    @rule(numbers=NUMBERS)
    def add_or_upsert(self, numbers):
        self._apply(add_step(self.model, [f"d{number}" for number in numbers], next(self.numbers)))

    @rule(numbers=NUMBERS)
    def add_known_ones_too(self, numbers):
        doc_ids = [f"d{number}" for number in numbers]
        if not self.model.keys() & set(doc_ids):
            return
        with pytest.raises(DataError, match="known"):
            self.index.add(
                random_rows(len(doc_ids), WIDTH),
                doc_ids=doc_ids,
                fingerprint=fingerprint_of(WIDTH),
            )

    @rule(numbers=NUMBERS)
    def delete(self, numbers):
        doc_ids = [f"d{number}" for number in numbers]
        if not self.model.keys() >= set(doc_ids):
            with pytest.raises(DataError, match="unknown"):
                self.index.delete(doc_ids)
            return
        self._apply(delete_step(self.model, doc_ids))

    @rule()
    def compact(self):
        self.index.compact()
        assert self.index.num_rows == len(self.model)
        assert self.index.snapshot.engine.num_rows == len(self.model)

    @rule(plan=st.sampled_from(PLANS))
    def resize(self, plan):
        self.index.resize(plan)
        assert self.index.plan == plan

    @rule()
    def reopen(self):
        self.index.close()
        self.index = Index.open(self.folder / "index")
        self.index.verify()

    @rule()
    def let_the_other_write(self):
        """It first takes in what it has missed; then they change places."""
        step = add_step(self.model, ["other"], next(self.numbers))
        step.apply(self.reader)
        self.index, self.reader = self.reader, self.index
        self.model, self.read = step.model, self.model

    @rule()
    def refresh(self):
        is_behind = self.reader.generation < self.index.generation
        assert self.reader.refresh() == is_behind
        assert not self.index.refresh()
        self.read = self.model

    @rule()
    def backup(self):
        target = self.folder / f"backup-{next(self.numbers)}"
        self.index.backup(target)
        with Index.open(target) as copy:
            copy.verify()
            assert contents(copy) == self.model

    @rule(top_k=st.integers(1, 20), offset=st.integers(0, 8))
    def search(self, top_k, offset):
        hits = self.index.search(QUERIES, top_k=top_k, offset=offset)
        for query, found in zip(QUERIES, hits, strict=True):
            expected = ranking(self.model, query)[offset : offset + top_k]
            assert [hit.doc_id for hit in found] == [doc_id for doc_id, _ in expected]
            np.testing.assert_allclose(
                [hit.score for hit in found], [score for _, score in expected], atol=1e-5
            )

    @rule(low=st.integers(0, 15))
    def search_some(self, low):
        chosen = {
            doc_id: document
            for doc_id, document in self.model.items()
            if document.metadata is not None and document.metadata.get("number", -1) >= low
        }
        (found,) = self.index.search(QUERIES[:1], top_k=5, where=f"number >= {low}")
        expected = ranking(chosen, QUERIES[0])[:5]
        assert [hit.doc_id for hit in found] == [doc_id for doc_id, _ in expected]

    @invariant()
    def holds_the_model(self):
        if hasattr(self, "index"):
            assert contents(self.index) == self.model
            assert contents(self.reader) == self.read

    def teardown(self):
        if hasattr(self, "index"):
            self.index.verify()
            self.index.close()
            self.reader.close()
        self.stack.close()

    def _apply(self, step: Step) -> None:
        step.apply(self.index)
        self.model = step.model


TestIndexLife = IndexLife.TestCase
TestIndexLife.settings = settings(max_examples=25, stateful_step_count=20)
