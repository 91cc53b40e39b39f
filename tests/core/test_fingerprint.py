import json
from dataclasses import replace
from typing import Any

import pytest

from nestling.core import Fingerprint, Space, check_same_space
from nestling.errors import FingerprintError, FormatError

SPACE = Space(model="m", revision="1", pooling="mean", normalization="l2", embed_dim=8)
FINGERPRINT = Fingerprint(space=SPACE, encoder={"backend": "static"})


def test_a_fingerprint_survives_json() -> None:
    assert Fingerprint.from_json(json.loads(json.dumps(FINGERPRINT.to_json()))) == FINGERPRINT


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        None,
        {"space": {"model": "m"}, "encoder": {}},
        {"space": {**FINGERPRINT.to_json()["space"], "colour": "red"}, "encoder": {}},
        {"space": FINGERPRINT.to_json()["space"]},
        {"space": FINGERPRINT.to_json()["space"], "encoder": "static"},
    ],
)
def test_what_is_no_fingerprint_is_refused(data: Any) -> None:
    with pytest.raises(FormatError, match="`fingerprint` must hold a space and an encoder"):
        Fingerprint.from_json(data)


def test_one_space_may_have_several_encoders() -> None:
    other = Fingerprint(space=SPACE, encoder={"backend": "onnx"})
    check_same_space(FINGERPRINT, other, left_name="a", right_name="b")


def test_two_spaces_are_named_with_what_differs() -> None:
    other = replace(FINGERPRINT, space=replace(SPACE, model="n", embed_dim=4))
    message = (
        r"two spaces .*: index i is 'm' and the query is 'n'; they differ in "
        r"model 'm' against 'n'; embed_dim 8 against 4\. Encode both sides"
    )
    with pytest.raises(FingerprintError, match=message):
        check_same_space(FINGERPRINT, other, left_name="index i", right_name="the query")


def test_what_to_do_may_be_said_by_the_caller() -> None:
    other = replace(FINGERPRINT, space=replace(SPACE, model="n"))
    with pytest.raises(FingerprintError, match=r"model 'm' against 'n'\. Do this\.$"):
        check_same_space(FINGERPRINT, other, left_name="one", right_name="two", advice="Do this.")
