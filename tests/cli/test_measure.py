"""`nestling measure` says what to do about vectors that do not look nested."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from nestling.cli import main

EMBED_DIM = 32


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors that are nested in another basis than their own."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((1500, EMBED_DIM)) / np.arange(1, EMBED_DIM + 1)
    basis = np.linalg.qr(generator.standard_normal((EMBED_DIM, EMBED_DIM)))[0]
    path = tmp_path_factory.mktemp("turned") / "my vectors.npy"
    np.save(path, (rows @ basis).astype(np.float32))
    return path


def test_an_adapter_is_proposed_on_the_terminal_and_in_the_report(
    turned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.json"
    result = CliRunner().invoke(main, ["measure", "--task", f"self:{turned}", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["looks_nested"] is False
    command = f"nestling train adapter --fit-on '{turned}' --dims 8,16 --out adapter"
    assert "this model does not look nested here" in result.stderr
    assert f"To fit one to this model:\n  {command}\n" in result.stderr
    assert "A rotation fitted on these documents (PCA) already keeps " in result.stderr
    assert command.replace("'", "&#39;") in out.with_suffix(".html").read_text()


def test_nested_vectors_need_none(nested_vectors: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", nested_vectors)
    result = CliRunner().invoke(main, ["measure", "--task", f"self:{tmp_path / 'vectors.npy'}"])
    assert result.exit_code == 0, result.output
    assert "adapter" not in result.stderr
