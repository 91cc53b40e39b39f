import subprocess
import sys

import pytest

from nestling.encode import open_encoder
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
