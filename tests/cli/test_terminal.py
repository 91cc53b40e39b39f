"""Sparklines, progress and tables."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from nestling.cli import terminal
from nestling.cli.tables import results_table, steps_table
from nestling.cli.terminal import SPARKS, print_table, progress_bars, sparkline
from nestling.core import Dtype
from nestling.measure import choose
from tests.measure.handmade import make_results


def text_of(table: Table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    printed = console.file
    assert isinstance(printed, io.StringIO)
    return printed.getvalue()


def test_sparkline_rises_with_the_values() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == f"{SPARKS[0]}{SPARKS[4]}{SPARKS[7]}"


def test_sparkline_leaves_room_for_what_is_missing() -> None:
    assert sparkline([0.0, float("nan"), 1.0]) == f"{SPARKS[0]} {SPARKS[7]}"


def test_sparkline_of_nothing() -> None:
    assert sparkline([]) == ""


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_sparkline_keeps_the_order(values: list[float]) -> None:
    line = sparkline(values)
    heights = [SPARKS.index(mark) for mark in line]
    for (left, low), (right, high) in zip(
        zip(values, heights, strict=True), zip(values[1:], heights[1:], strict=True), strict=False
    ):
        assert (low <= high) if left <= right else (low >= high)


def test_a_table_is_never_cut_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = Table()
    for name in range(12):
        table.add_column(f"column {name}")
    table.add_row(*(["0.123456"] * 11), "self:data[bold].npy")
    print_table(table)
    printed = capsys.readouterr().out
    assert printed.count("0.123456") == 11
    assert "self:data[bold].npy" in printed


def test_progress_in_a_log_is_one_line_per_label(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as progress:
        for done in range(4):
            progress("encoding", done, 3)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("encoding: 3 in ")


def test_the_rest_of_a_resumed_run_takes_what_its_own_pace_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_s = iter([0.0, 0.0, 40.0, 100.0])  # one look when it is made, then one per call
    monkeypatch.setattr(terminal, "time", SimpleNamespace(perf_counter=lambda: next(clock_s)))
    with progress_bars() as progress:
        for done in (900, 910, 925):
            progress("train | epoch 9", done, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "train | epoch 9: 910 of 1,000, about 360 s left",
        "train | epoch 9: 925 of 1,000, about 300 s left",
    ]


def test_a_resumed_run_that_has_done_nothing_yet_guesses_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_s = iter([0.0, 0.0, 40.0])
    monkeypatch.setattr(terminal, "time", SimpleNamespace(perf_counter=lambda: next(clock_s)))
    with progress_bars() as progress:
        for _ in range(2):
            progress("encoding", 900, 1000)
    assert capsys.readouterr().err == ""


def test_a_label_may_tell_more_after_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as progress:
        for done in range(4):
            progress(f"train | epoch {done}", done, 3)
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert printed.startswith("train | epoch 3: 3 in ")


def test_a_label_that_tells_more_is_still_one_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bars() as progress:
        for done in range(4):
            progress(f"train | epoch {done}", done, 3)
    printed = capsys.readouterr().err
    assert "train | epoch 3" in printed
    assert printed.count("\n") == 1


def test_results_table_names_prefixes_first_and_says_what_a_funnel_is() -> None:
    values = np.full(50, 0.8)
    results = make_results(
        values,
        {("funnel", 64, Dtype.INT8): values, ("prefix", 64, Dtype.INT8): values / 2},
    )
    printed = text_of(results_table(results))
    assert printed.index("prefix") < printed.index("funnel (top 100 reranked)")
    assert "0.4000" in printed
    assert "ndcg_at_10" in printed


def test_steps_table_tells_certified_from_missing_and_hopeless() -> None:
    generator = np.random.default_rng(0)
    full = generator.uniform(0.5, 1.0, 400)
    results = make_results(
        full,
        {
            ("prefix", 512, Dtype.FLOAT32): full,
            ("prefix", 256, Dtype.FLOAT32): full * 0.5,
            ("funnel", 512, Dtype.INT8): np.clip(
                full * 0.985 + generator.normal(0, 0.2, 400), 0, 1
            ),
        },
    )
    printed = text_of(steps_table(choose(results, max_loss=0.05), embed_dim=results.embed_dim))
    assert "certified" in printed
    assert "none would do" in printed
    assert "2.0x" in printed
