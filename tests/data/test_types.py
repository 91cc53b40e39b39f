from nestling.data.types import Corpus, content_hash


def make(ids: list[str], texts: list[str]) -> Corpus:
    return Corpus(doc_ids=ids, texts=texts, source="here")


def test_corpus_hash_depends_on_ids_texts_and_order() -> None:
    corpus = make(["a", "b"], ["x", "y"])
    assert corpus.corpus_hash == make(["a", "b"], ["x", "y"]).corpus_hash
    others = [
        make(["a", "b"], ["x", "z"]),
        make(["a", "c"], ["x", "y"]),
        make(["b", "a"], ["y", "x"]),
        make(["ax", "b"], ["", "y"]),
    ]
    assert len({corpus.corpus_hash, *(other.corpus_hash for other in others)}) == 5


def test_describe_shows_count_and_hash() -> None:
    corpus = make(["a"] * 1200, ["x"] * 1200)
    assert corpus.describe() == f"1,200 documents, corpus_hash {corpus.corpus_hash}"


def test_content_hash_is_short_and_of_the_text() -> None:
    assert content_hash("owl") == content_hash("owl") != content_hash("Owl")
    assert len(content_hash("owl")) == 32
