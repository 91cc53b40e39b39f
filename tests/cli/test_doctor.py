"""The doctor reports what is broken and does not break off."""

import json

import pytest
from click.testing import CliRunner

from nestling.cli import doctor, main


def test_everything_a_user_needs_works_here() -> None:
    result = CliRunner().invoke(main, ["doctor", "--json"])
    report = json.loads(result.stdout)
    assert result.exit_code == 0, report
    assert {check["name"] for check in report["checks"]} >= {"python", "kernel", "model", "cache"}
    assert {extra["name"] for extra in report["extras"]} == {
        "openai",
        "onnx",
        "parquet",
        "st",
        "train",
        "train-st",
    }


def test_a_broken_part_is_named_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str) -> None:
        raise RuntimeError("no weights")

    monkeypatch.setattr(doctor, "open_encoder", refuse)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "no weights" in result.stdout
