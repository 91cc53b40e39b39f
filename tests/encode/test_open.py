import subprocess
import sys

import pytest

from nestling.core import Fingerprint, Space
from nestling.encode import open_encoder, reopen_encoder
from nestling.errors import EncoderError


@pytest.mark.parametrize("uri", ["wordllama", "word2vec:x", "static:", "nests:folder", ""])
def test_an_unknown_scheme_lists_the_known_ones(uri):
    with pytest.raises(EncoderError) as caught:
        open_encoder(uri)
    assert str(caught.value) == (
        f"`model` must be one of static:..., st:..., openai:..., onnx:..., nest:..., vectors:..., got "
        f"{uri!r}. E.g. static:wordllama."
    )


def test_a_base_url_is_for_apis_only():
    with pytest.raises(EncoderError, match="`base_url` belongs to openai: models"):
        open_encoder("static:wordllama", base_url="http://127.0.0.1:1/v1")


def test_max_tokens_must_be_positive():
    with pytest.raises(EncoderError, match="`max_tokens` must be at least 1, got 0"):
        open_encoder("static:wordllama", max_tokens=0)


def test_an_encoder_is_opened_again_as_it_was():
    for asked, wanted in ((None, None), (5, "5")):
        first = open_encoder("static:wordllama", max_tokens=asked)
        again = reopen_encoder(first.fingerprint)
        assert again is not None
        assert again.fingerprint == first.fingerprint
        assert again.fingerprint.encoder["max_tokens"] == str(wanted)
        shorter = reopen_encoder(first.fingerprint, max_tokens=3)
        assert shorter is not None
        assert shorter.max_tokens == 3


def test_vectors_that_do_not_say_who_made_them_open_nothing():
    space = Space(model="m", revision="1", pooling="none", normalization="l2", embed_dim=4)
    assert reopen_encoder(Fingerprint(space=space, encoder={})) is None


def test_importing_the_room_and_opening_the_table_imports_no_heavy_part():
    program = (
        "import sys, nestling.encode as room; room.open_encoder('static:wordllama'); "
        "heavy = {'torch', 'transformers', 'onnxruntime', 'httpx', 'pyarrow', 'wordllama', 'requests'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
    assert run.stderr == ""
