"""One OpenAI-compatible embeddings endpoint: requests, retries, and what came back, checked."""

import base64
import binascii
import email.utils
import random
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from nestling.encode.batches import reason_of
from nestling.errors import EncoderError, MissingExtraError

RETRIED_STATUSES = frozenset({408, 409, 429})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long to insist.

    Attributes:
        num_attempts: Tries per request, the first included.
        first_wait_s: Before the second try; doubled before each further one, less up to half by
            chance, so that many clients do not return together.
        longest_wait_s: No wait is longer, not even one the server asks for.
        timeout_s: For connecting, and for each pause while reading an answer.
    """

    num_attempts: int = 6
    first_wait_s: float = 0.5
    longest_wait_s: float = 60.0
    timeout_s: float = 60.0


class EmbeddingEndpoint:
    """POSTs texts to `<base_url>/embeddings` and returns the vectors in the order of the texts."""

    def __init__(
        self, model: str, *, base_url: str, api_key: str | None, retries: RetryPolicy
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingExtraError("httpx", "openai") from error
        self._model = model
        self._api_key = api_key
        self._retries = retries
        self._transport_error = httpx.TransportError
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        try:
            self._url = httpx.URL(f"{base_url.rstrip('/')}/embeddings")
        except httpx.InvalidURL as error:
            raise EncoderError(_not_an_address(base_url)) from error
        if self._url.scheme not in {"http", "https"} or not self._url.host:
            raise EncoderError(_not_an_address(base_url))
        self._client = httpx.Client(headers=headers, timeout=retries.timeout_s)
        weakref.finalize(self, self._client.close)

    @property
    def address(self) -> str:
        """Where requests go, without any password in it."""
        return str(self._url.copy_with(username=None, password=None, query=None))

    @property
    def base_url(self) -> str:
        """Root of the API, without any password in it."""
        return self.address.removesuffix("/embeddings")

    def embed(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts width"]:
        """Return one vector per text, as the server made them.

        Raises:
            EncoderError: If the server refuses, keeps failing, or does not answer with one vector
                per text, all of one width.
        """
        request = {"model": self._model, "input": list(texts), "encoding_format": "base64"}
        items = self._post(request)
        if len(items) != len(texts):
            raise EncoderError(
                f"{self.address} must return one vector per text, got {len(items)} for {len(texts)} texts. "
                f"Check that it is an embeddings endpoint."
            )
        try:
            order = [item.get("index", place) for place, item in enumerate(items)]
            vectors = [_decode(item["embedding"]) for item in items]
        except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
            raise EncoderError(
                f"{self.address} must return numbers or base64 under `embedding`, got {items[0]!r:.200}."
            ) from error
        # Among values that are no numbers, `sorted` itself would fail.
        if sorted(order, key=str) != sorted(range(len(texts)), key=str):
            raise EncoderError(
                f"{self.address} must number its vectors 0 to {len(texts) - 1}, got indexes {order!r:.200}."
            )
        widths = sorted({len(vector) for vector in vectors})
        if len(widths) > 1 or widths[0] == 0:
            raise EncoderError(
                f"{self.address} must return vectors of one width, got widths {widths} in one answer. "
                f"Check which model it serves."
            )
        return np.stack([vectors[place] for place in np.argsort(order)])

    def _post(self, request: dict[str, Any]) -> list[Any]:
        """Return the items of the answer, trying again where that may help."""
        wait_s = self._retries.first_wait_s
        for attempt in range(1, self._retries.num_attempts + 1):
            asked_wait_s = None
            try:
                response = self._client.post(self._url, json=request)
            except self._transport_error as error:
                failure = f"could not be reached: {self._hide_key(reason_of(error))}"
            else:
                if response.is_success:
                    return self._read_items(response)
                message = self._hide_key(_server_message(response))
                failure = f"answered {response.status_code}: {message}"
                status = response.status_code
                if status not in RETRIED_STATUSES and status < 500:
                    raise EncoderError(f"{self.address} {failure}. {_advice(status)}")
                asked_wait_s = _retry_after_s(response.headers.get("retry-after"))
            if attempt < self._retries.num_attempts:
                planned_s = wait_s * random.uniform(0.5, 1.0)
                pause_s = planned_s if asked_wait_s is None else asked_wait_s
                time.sleep(min(pause_s, self._retries.longest_wait_s))
                wait_s *= 2
        raise EncoderError(
            f"{self.address} {failure}; tried {self._retries.num_attempts} times. What is encoded so far is "
            f"kept: run the same command again later."
        )

    def _read_items(self, response: Any) -> list[Any]:
        try:
            items = response.json()["data"]
        except (ValueError, KeyError, TypeError) as error:
            raise EncoderError(
                f"{self.address} must answer with JSON that has a list `data`, got "
                f"{self._hide_key(response.text)[:200]!r}. Check `base_url`: it usually ends in /v1."
            ) from error
        if not isinstance(items, list):
            raise EncoderError(
                f"{self.address} must return a list under `data`, got {type(items).__name__}."
            )
        return items

    def _hide_key(self, text: str) -> str:
        return text if not self._api_key else text.replace(self._api_key, "[key]")


def _not_an_address(base_url: str) -> str:
    return f"`base_url` must be an http or https address, got {base_url!r}. E.g. http://127.0.0.1:8000/v1."


def _decode(embedding: str | list[float]) -> Float32[np.ndarray, " width"]:
    """Read base64 little-endian float32, or the list of numbers that many servers send anyway."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    vector = np.asarray(embedding, dtype=np.float32)
    if vector.ndim != 1:
        raise ValueError(f"an embedding must be a flat list, got {vector.ndim} axes")
    return vector


def _server_message(response: Any) -> str:
    """Return what the server says went wrong, in any of the common shapes."""
    try:
        body = response.json()
    except ValueError:
        return response.text[:300].strip() or response.reason_phrase
    if isinstance(body, dict):
        error = body.get("error", body)
        if isinstance(error, dict):
            error = error.get("message", error.get("detail", error))
        return str(error)[:300]
    return str(body)[:300]


def _advice(status: int) -> str:
    if status in {401, 403}:
        return "Put a valid key into the environment variable OPENAI_API_KEY."
    if status == 404:
        return "Check the model's name and `base_url`, which usually ends in /v1."
    return "Texts that are too long for the model can be cut with `max_tokens`."


def _retry_after_s(header: str | None) -> float | None:
    """Return the seconds a Retry-After header asks for: a number, or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
