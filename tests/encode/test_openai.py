import email.utils
import time
from collections.abc import Sequence

import numpy as np
import pytest

from nestling.encode import embed, open_encoder, openai
from nestling.encode.endpoint import RetryPolicy
from nestling.encode.openai import OpenAIEncoder
from nestling.errors import EncoderError, VectorError
from tests.encode.embedding_server import (
    WIDTH,
    answer,
    as_base64,
    drop,
    fail,
    items_for,
    send,
    serving,
    true_vector,
)

KEY = "sk-a-secret"
QUICK = RetryPolicy(num_attempts=4, first_wait_s=0.001, longest_wait_s=0.2, timeout_s=5.0)
TEXTS = ["one", "two", "three"]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as running:
        yield running


@pytest.fixture
def encoder(server):
    opened = OpenAIEncoder("served", base_url=server.base_url, retries=QUICK)
    server.requests.clear()
    return opened


def expected(texts: Sequence[str]) -> np.ndarray:
    rows = np.array([true_vector(text) for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_vectors_are_asked_for_in_base64_and_come_back_as_unit_rows(encoder, server):
    made = encoder.encode(TEXTS, role="document")
    np.testing.assert_allclose(made, expected(TEXTS), atol=1e-6)
    assert made.dtype == np.float32
    ((path, headers, body),) = server.requests
    assert path == "/v1/embeddings"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert body == {"model": "served", "input": TEXTS, "encoding_format": "base64"}
    assert encoder.embed_dim == WIDTH
    assert encoder.nesting_dims is None
    assert encoder.max_tokens is None


def test_the_uri_opens_it_and_the_fingerprint_says_where(server):
    encoder = open_encoder("openai:served", base_url=server.base_url + "/", max_tokens=5)
    assert encoder.fingerprint.space.model == "served"
    assert encoder.fingerprint.space.embed_dim == WIDTH
    assert encoder.fingerprint.encoder == {
        "backend": "openai",
        "endpoint": server.base_url + "/embeddings",
        "max_tokens": "5",
        "tokens": "estimated as UTF-8 bytes / 4",
    }
    assert encoder.fingerprint.origin == {"model": "openai:served", "base_url": server.base_url}
    assert KEY not in str(encoder.fingerprint)


def test_batches_keep_count_and_characters(encoder, server, monkeypatch):
    monkeypatch.setattr(openai, "MAX_TEXTS", 3)
    monkeypatch.setattr(openai, "MAX_CHARACTERS", 40)
    texts = [f"text {number} {'x' * (number % 30)}" for number in range(50)]
    np.testing.assert_allclose(encoder.encode(texts, role="query"), expected(texts), atol=1e-6)
    sent = [body["input"] for _, _, body in server.requests]
    assert [text for batch in sent for text in batch] == texts
    assert all(len(batch) <= 3 and sum(map(len, batch)) <= 40 for batch in sent)


def test_lists_of_numbers_and_shuffled_indexes_are_read(encoder, server):
    def lists_backwards(texts):
        return [
            {"index": place, "embedding": true_vector(texts[place]).tolist()}
            for place in reversed(range(len(texts)))
        ]

    server.steps = [answer(lists_backwards)]
    np.testing.assert_allclose(encoder.encode(TEXTS, role="query"), expected(TEXTS), atol=1e-6)


def test_missing_indexes_mean_the_order_of_the_texts(encoder, server):
    server.steps = [
        answer(lambda texts: [{"embedding": item["embedding"]} for item in items_for(texts)])
    ]
    np.testing.assert_allclose(encoder.encode(TEXTS, role="query"), expected(TEXTS), atol=1e-6)


@pytest.mark.parametrize(
    "trouble",
    [
        [fail(429, "slow down")],
        [fail(500, "oops"), fail(502, "oops"), fail(503, "oops")],
        [fail(408, "late"), fail(409, "busy")],
        [drop],
        [drop, fail(429, "slow down", retry_after="0"), drop],
    ],
    ids=["429", "5xx three times", "408 409", "dropped", "mixed"],
)
def test_passing_trouble_is_waited_out(trouble, encoder, server):
    server.steps = list(trouble)
    np.testing.assert_allclose(encoder.encode(TEXTS, role="query"), expected(TEXTS), atol=1e-6)
    assert len(server.requests) == len(trouble) + 1


def test_retry_after_is_honoured_as_seconds_and_as_a_date(encoder, server, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    soon = email.utils.formatdate(time.time() + 3600, usegmt=True)
    server.steps = [
        fail(429, "slow down", retry_after="0.125"),
        fail(429, "slow down", retry_after=soon),
        fail(429, "slow down", retry_after="soonish"),
    ]
    encoder.encode(TEXTS, role="query")
    assert waits[0] == 0.125
    assert waits[1] == QUICK.longest_wait_s
    assert 0.002 <= waits[2] <= 0.004


def test_waits_double_with_jitter_and_stay_below_the_longest(encoder, server, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.steps = [fail(500, "oops")] * 4
    with pytest.raises(EncoderError):
        encoder.encode(TEXTS, role="query")
    assert len(waits) == 3
    for wait, ceiling in zip(waits, (0.001, 0.002, 0.004), strict=True):
        assert ceiling / 2 <= wait <= ceiling


def test_lasting_trouble_ends_with_the_servers_words(encoder, server):
    server.steps = [fail(503, "no capacity left")] * 4
    with pytest.raises(
        EncoderError, match="/v1/embeddings answered 503: no capacity left; tried 4 times"
    ):
        encoder.encode(TEXTS, role="query")
    assert len(server.requests) == 4


def test_a_server_that_cannot_be_reached_is_named():
    with serving() as server:
        address = server.base_url
    with pytest.raises(
        EncoderError, match=r"/v1/embeddings could not be reached: .*; tried 4 times"
    ):
        OpenAIEncoder("served", base_url=address, retries=QUICK)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (fail(401, f"bad key {KEY}"), r"answered 401: bad key \[key\]\. Put a valid key"),
        (fail(404, "no model"), r"answered 404: no model\. Check the model's name and `base_url`"),
        (fail(400, "too long"), r"answered 400: too long\. Texts that are too long .*`max_tokens`"),
        (send(b'{"detail": "nope"}', 422), "answered 422: nope"),
        (send(b'{"error": "flat"}', 400), "answered 400: flat"),
        (send(b"plain words", 400), "answered 400: plain words"),
        (send(b"", 400), "answered 400: Bad Request"),
        (send(b'["odd"]', 400), r"answered 400: \['odd'\]"),
    ],
)
def test_a_refusal_is_not_repeated_and_shows_the_servers_message(step, message, encoder, server):
    server.steps = [step]
    with pytest.raises(EncoderError, match=message) as caught:
        encoder.encode(TEXTS, role="query")
    assert KEY not in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (send(b'{"data": [{"ind'), r"must answer with JSON that has a list `data`, got '\{"),
        (send(b'{"message": "hello"}'), r"must answer with JSON .* Check `base_url`"),
        (send(b'{"data": {}}'), "must return a list under `data`, got dict"),
        (send(f'<html>{KEY}'.encode()), r"got '<html>\[key\]'"),
        (answer(lambda texts: items_for(texts)[1:]), "one vector per text, got 2 for 3 texts"),
        (answer(lambda texts: items_for([*texts, "more"])), "got 4 for 3 texts"),
        (
            answer(lambda texts: [{**item, "index": 1} for item in items_for(texts)]),
            r"must number its vectors 0 to 2, got indexes \[1, 1, 1\]",
        ),
        (
            answer(lambda texts: [{**item, "index": None} for item in items_for(texts)]),
            r"must number its vectors 0 to 2, got indexes \[None, None, None\]",
        ),
        (
            answer(lambda texts: [{"index": i, "embedding": []} for i in range(3)]),
            r"vectors of one width, got widths \[0\] in one answer",
        ),
        (
            answer(lambda texts: [{"index": i, "embedding": as_base64(np.ones(i + 1))} for i in range(3)]),
            r"vectors of one width, got widths \[1, 2, 3\] in one answer",
        ),
        (
            answer(lambda texts: [{"index": i, "embedding": as_base64(np.ones(9))} for i in range(3)]),
            "must keep one width, got 9 after 6 on opening",
        ),
        (
            answer(lambda texts: [{"index": i, "embedding": "@@@"} for i in range(3)]),
            "must return numbers or base64 under `embedding`, got",
        ),
        (
            answer(lambda texts: [{"index": i, "embedding": [[1.0]]} for i in range(3)]),
            "must return numbers or base64",
        ),
        (answer(lambda texts: [{"index": i} for i in range(3)]), "must return numbers or base64"),
        (answer(lambda texts: ["a", "b", "c"]), "must return numbers or base64"),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_used_is_described(step, message, encoder, server):
    server.steps = [step]
    with pytest.raises(EncoderError, match=message) as caught:
        encoder.encode(TEXTS, role="query")
    assert KEY not in str(caught.value)


def test_nan_from_the_server_is_named_by_id(encoder, server):
    def with_nan(texts):
        items = items_for(texts)
        items[1]["embedding"] = [float("nan")] * WIDTH
        return items

    server.steps = [answer(with_nan)]
    with pytest.raises(VectorError, match="got 1 bad of 3: 'b'"):
        embed(encoder, TEXTS, role="query", ids=["a", "b", "c"])


def test_empty_texts_are_not_sent_and_give_zero_rows(encoder, server):
    made = encoder.encode(["", "one", ""], role="query")
    np.testing.assert_allclose(made[1:2], expected(["one"]), atol=1e-6)
    assert not made[[0, 2]].any()
    assert [body["input"] for _, _, body in server.requests] == [["one"]]
    assert encoder.encode([], role="query").shape == (0, WIDTH)


def test_tokens_are_estimated_and_max_tokens_cuts_by_that_estimate(server):
    encoder = OpenAIEncoder("served", base_url=server.base_url, max_tokens=2, retries=QUICK)
    assert encoder.count_tokens(["", "abcd", "abcde", "日本"]) == [0, 1, 2, 2]
    encoder.encode(["abcdefghij", "日本語"], role="query")
    assert server.requests[-1][2]["input"] == ["abcdefgh", "日本"]
    assert encoder.max_tokens == 2


def test_the_familys_rule_is_applied_to_what_the_server_returns(server):
    encoder = OpenAIEncoder("nomic-embed-text-v1.5", base_url=server.base_url, retries=QUICK)
    raw = true_vector("one")
    centred = (raw - raw.mean()) / np.sqrt(raw.var() + 1e-5)
    np.testing.assert_allclose(
        encoder.encode(["one"], role="query")[0], centred / np.linalg.norm(centred), atol=1e-5
    )
    assert encoder.fingerprint.space.normalization == "layer_norm+l2"


def test_without_a_key_the_vendors_own_address_is_not_asked(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(EncoderError, match="variable OPENAI_API_KEY, which is not set"):
        open_encoder("openai:text-embedding-3-small")


@pytest.mark.parametrize("key", ["sk-sécret", "sk-a\nsecret"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(key, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(EncoderError, match="OPENAI_API_KEY must be printable ASCII") as caught:
        OpenAIEncoder("served", base_url="http://127.0.0.1:1/v1", retries=QUICK)
    assert "secret" not in str(caught.value)


def test_blanks_around_the_key_are_left_out(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    OpenAIEncoder("served", base_url=server.base_url, retries=QUICK)
    assert server.requests[0][1]["authorization"] == f"Bearer {KEY}"


def test_a_server_of_ones_own_needs_no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as server:
        OpenAIEncoder("served", base_url=server.base_url, retries=QUICK)
        assert "authorization" not in server.requests[0][1]


def test_passwords_in_the_address_are_not_shown(server):
    address = server.base_url.replace("http://", "http://me:hunter2@")
    encoder = OpenAIEncoder("served", base_url=address, retries=QUICK)
    assert "hunter2" not in str(encoder.fingerprint)


@pytest.mark.parametrize("address", ["http://host:port", "nonsense", "ftp://host/v1", "https://"])
def test_an_address_that_is_none_is_refused(address, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(EncoderError, match=r"`base_url` must be an http or https address, got"):
        OpenAIEncoder("served", base_url=address, retries=QUICK)
