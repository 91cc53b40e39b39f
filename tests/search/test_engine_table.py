"""What single engines refuse or offer, and the table that names them."""

from pathlib import Path

import pytest

from nestling.errors import FormatError, MissingExtraError
from nestling.search.engines import DEFAULT_ENGINE, ENGINES, engine_class, full_settings
from nestling.search.tier import SIGNS, derive_tier
from tests.search.engine_cases import (
    DIM,
    QUERIES,
    ROWS,
    Case,
    assert_good,
    assert_true,
    first_case,
    load_class,
)


def test_signs_of_a_width_that_is_no_whole_number_of_words() -> None:
    for dtype in SIGNS:
        for dim in (1, 7, 40, 48):
            case = Case(load_class("signs"), derive_tier(ROWS, dim=dim, dtype=dtype), ROWS)
            found = case.find(case.build(), QUERIES, 50)
            assert_true(case, QUERIES, found)
            assert_good(case, found, case.judge(QUERIES, 50))


def test_lists_are_not_formed_wider_than_the_tier() -> None:
    case = first_case(load_class("ivf"))
    settings = case.build_settings | {"clustering_dim": DIM + 1}
    with pytest.raises(
        FormatError, match=r"`clustering_dim` .* at most the tier's width 32, got 33"
    ):
        case.kind.build(case.tier, case.rows, settings=settings)


@pytest.mark.parametrize("bits", [(5, 0), (16, 4), (4, 3), (32, 8)])
def test_codes_that_do_not_exist_are_refused(bits: tuple[int, int]) -> None:
    case = first_case(load_class("vamana"))
    settings = case.build_settings | {"bits": bits[0], "residual_bits": bits[1]}
    with pytest.raises(FormatError, match=rf"`residual_bits` .*got {bits[0]} and {bits[1]}"):
        case.kind.build(case.tier, case.rows, settings=settings)


def test_codes_of_another_processor_are_refused_before_the_package_ends_the_process() -> None:
    case = first_case(load_class("vamana"))
    from nestling.search.engines.vamana import runs_lvq

    settings = case.build_settings | {"bits": 8}
    if runs_lvq():
        engine = case.kind.build(case.tier, case.rows, settings=settings)
        assert_good(case, case.find(engine, QUERIES, 10), case.judge(QUERIES, 10))
    else:
        with pytest.raises(FormatError, match=r"`bits` 8 .*Intel processors only"):
            case.kind.build(case.tier, case.rows, settings=settings)


@pytest.mark.parametrize("bits", [(8, 0), (4, 0), (4, 4), (4, 8), (8, 8)])
def test_lvq_codes(bits: tuple[int, int], tmp_path: Path) -> None:
    case = first_case(load_class("vamana"))
    from nestling.search.engines.vamana import runs_lvq

    if not runs_lvq():
        pytest.skip("LVQ codes run on Intel processors only, and this is none")
    settings = case.build_settings | {"bits": bits[0], "residual_bits": bits[1]}
    engine = case.kind.build(case.tier, case.rows, settings=settings)
    engine.save(tmp_path)
    loaded = case.kind.load(
        tmp_path, case.tier, case.rows, settings=settings, num_rows=engine.num_rows
    )
    for each in (engine, loaded):
        found = case.find(each, QUERIES, 10)
        assert_true(case, QUERIES, found)
        assert_good(case, found, case.judge(QUERIES, 10))


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_an_engine_is_named_as_in_the_table(name: str) -> None:
    assert load_class(name).name == name
    assert DEFAULT_ENGINE in ENGINES


def test_an_unknown_engine_is_refused() -> None:
    names = ", ".join(sorted(ENGINES))
    with pytest.raises(FormatError, match=rf"`engine` must be one of {names}, got 'warp'"):
        engine_class("warp")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"flat": ("no_such_package", "FlatEngine", "fast")}
    monkeypatch.setattr("nestling.search.engines.ENGINES", table)
    with pytest.raises(MissingExtraError, match=r"no_such_package.*nestling\[fast\]"):
        engine_class("flat")


def test_settings_are_completed_and_checked() -> None:
    known = load_class("hnsw").build_settings
    assert full_settings("hnsw", {"degree": 8}, known) == {"degree": 8, "build_window": 80}
    with pytest.raises(FormatError, match=r"`reach` is no setting of the engine 'hnsw'"):
        full_settings("hnsw", {"reach": 8}, known)
    with pytest.raises(FormatError, match=r"`degree` .* must lie in \[2, 512\], got 1"):
        full_settings("hnsw", {"degree": 1}, known)
