import click
import pytest

from nestling.cli.options import DtypeList
from nestling.core import Dtype


def test_every_number_format_can_be_named() -> None:
    assert DtypeList().convert(",".join(Dtype), None, None) == tuple(Dtype)
    assert DtypeList().convert("int4,rotated-binary", None, None) == (
        Dtype.INT4,
        Dtype.ROTATED_BINARY,
    )


def test_an_unknown_number_format_is_told_all_that_are_known() -> None:
    with pytest.raises(
        click.BadParameter,
        match=r"knows float32, float16, int8, int4, binary, rotated-binary, got 'int2'\.",
    ):
        DtypeList().convert("int2", None, None)
