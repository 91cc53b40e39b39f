import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.core import Dtype
from nestling.errors import DimensionError, FormatError
from nestling.search import Plan, Stage
from tests.search.support import fingerprint_of, plan_of


@given(
    dims=st.lists(st.integers(1, 64), min_size=1, max_size=4).map(sorted),
    sizes=st.lists(st.integers(1, 500), min_size=3, max_size=3),
    dtype=st.sampled_from(Dtype),
    has_space=st.booleans(),
)
def test_a_plan_file_reads_back(
    tmp_path_factory: pytest.TempPathFactory,
    dims: list[int],
    sizes: list[int],
    dtype: Dtype,
    has_space: bool,
) -> None:
    kept = [*sorted(sizes[: len(dims) - 1], reverse=True), None]
    plan = Plan(
        stages=tuple(
            Stage(dim=dim, dtype=dtype, shortlist_size=size)
            for dim, size in zip(dims, kept, strict=True)
        ),
        embed_dim=64,
        space=fingerprint_of(64).space if has_space else None,
        evidence={"verdict": "fine", "n": [1]},
    )
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan


def test_a_plan_is_told_in_words() -> None:
    plan = plan_of(256, (64, Dtype.INT8, 100), (256, Dtype.FLOAT32, None))
    assert plan.describe() == "64-d int8, keep 100 -> 256-d float32"
    assert plan.head.dim == 64


@pytest.mark.parametrize(
    ("stages", "error", "message"),
    [
        ((), FormatError, "at least one stage, got none"),
        (((65, Dtype.INT8, None),), DimensionError, r"\[1, 64\].*got 65"),
        (
            ((32, Dtype.INT8, 5), (16, Dtype.FLOAT32, None)),
            DimensionError,
            r"must not get narrower along the chain, got widths \[32, 16\]",
        ),
        (((8, Dtype.INT8, 5),), FormatError, r"the last has none, got \[5\]"),
        (
            ((8, Dtype.INT8, None), (16, Dtype.FLOAT32, None)),
            FormatError,
            "every stage but the last needs a `shortlist_size`",
        ),
        (((8, Dtype.INT8, 0), (16, Dtype.FLOAT32, None)), FormatError, r"at least 1.*got \[0\]"),
        (
            ((8, Dtype.INT8, 5), (16, Dtype.FLOAT32, 6), (16, Dtype.FLOAT32, None)),
            FormatError,
            r"never grow along the chain, got \[5, 6\]",
        ),
    ],
)
def test_a_chain_that_makes_no_sense_is_refused(
    stages: tuple[tuple[int, Dtype, int | None], ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan_of(64, *stages)


def test_a_newer_plan_is_refused(tmp_path: Path) -> None:
    data = plan_of(64, (64, Dtype.INT8, None)).to_json()
    (tmp_path / "plan.json").write_text(json.dumps({**data, "plan_version": 4}))
    with pytest.raises(FormatError, match=r"`plan_version` 4 is newer than 3.*Upgrade nestling"):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("content", ["[]", "{}", '{"plan_version": "x"}', "null", '"plan"'])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(FormatError, match=r"not a plan file.*nestling choose"):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize(
    "change", [{"evidence": [1]}, {"evidence": None}, {"embed_dim": 64.0}, {"stages": [{}]}]
)
def test_a_value_of_another_kind_is_refused(change: dict[str, object]) -> None:
    data = plan_of(64, (8, Dtype.INT8, 10), (64, Dtype.FLOAT32, None)).to_json()
    with pytest.raises(FormatError, match="not a plan file"):
        Plan.from_json(data | change)


@pytest.mark.parametrize(("field", "value"), [("dim", 8.0), ("dim", "8"), ("shortlist_size", 1.5)])
def test_sizes_are_whole_numbers(field: str, value: object) -> None:
    data = plan_of(64, (8, Dtype.INT8, 10), (64, Dtype.FLOAT32, None)).to_json()
    data["stages"][0][field] = value
    with pytest.raises(FormatError, match="not a plan file"):
        Plan.from_json(data)


def test_a_format_nobody_knows_is_refused() -> None:
    data = plan_of(64, (64, Dtype.INT8, None)).to_json()
    data["stages"][0]["dtype"] = "int3"
    with pytest.raises(FormatError, match=r"not a plan file.*int3"):
        Plan.from_json(data)
