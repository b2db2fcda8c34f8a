"""predictions.parquet: what is written comes back, twice the same bytes, and damage is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from accel_flowers.core.errors import UserError
from accel_flowers.metrics.predictions import load_predictions, save_predictions
from tests.made_runs import make_predictions

NAMES = ("daisy", "<b>rose</b>", "薔薇")
FILES = {"val": [f"daisy/{place} \"'.png" for place in range(6)], "test": [f"rose/{place}.png" for place in range(4)]}


def write(path: Path) -> dict[str, object]:
    parts = {"val": make_predictions([0, 1, 2, 0, 1, 2], 3), "test": make_predictions([0, 0, 1, 2], 3, seed=1)}
    save_predictions(path, parts, FILES, NAMES)
    return dict(parts)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    parts = write(tmp_path / "p.parquet")
    found = load_predictions(tmp_path / "p.parquet")
    assert found.class_names == NAMES
    assert list(found.parts) == ["val", "test"]
    for part, rows in found.parts.items():
        assert list(rows.files) == FILES[part]
        for name in ("labels", "probabilities", "losses", "predicted"):
            expected = getattr(parts[part], name)
            np.testing.assert_array_equal(getattr(rows, name), expected)
            assert getattr(rows, name).dtype == expected.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]


def test_any_tool_reads_it(tmp_path: Path) -> None:
    write(tmp_path / "p.parquet")
    table = pd.read_parquet(tmp_path / "p.parquet")
    assert list(table.columns) == ["part", "file", "label", "predicted", "loss", "probabilities"]
    assert table["loss"].dtype == np.float32
    assert table["label"][1] == "<b>rose</b>"
    assert len(table["probabilities"][0]) == 3


def test_equal_answers_give_equal_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one.parquet")
    write(tmp_path / "two.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    with pytest.raises(UserError, match=r"no .*p\.parquet: a run writes it"):
        load_predictions(path)
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        load_predictions(path)
    pd.DataFrame({"file": ["x"]}).to_parquet(path)
    with pytest.raises(UserError, match="it lacks label"):
        load_predictions(path)


def test_names_that_are_no_text_are_told(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write(path)
    content = path.read_bytes()
    assert b"probabilities" in content
    path.write_bytes(content.replace(b"probabilities", b"pr\xffbabilities"))
    with pytest.raises(UserError, match="damaged"):
        load_predictions(path)


@pytest.mark.parametrize(
    ("column", "value", "cause"),
    [
        ("label", "tulip", "tulip"),
        ("loss", float("nan"), "numbers that are none"),
        ("predicted", "daisy", "most probable"),
        ("probabilities", [0.5, 0.5], "damaged"),
        ("probabilities", None, "damaged"),
        ("part", ["val"], "part must be text"),
        ("file", 7, "file must be text"),
    ],
)
def test_values_that_cannot_be_are_told(tmp_path: Path, column: str, value: object, cause: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "p.parquet"
    write(path)
    table = pq.read_table(path)
    place = table.column_names.index(column)
    values = [*table[column].to_pylist()[:-1], value]
    if column == "predicted":
        values[0:0] = [("daisy" if values[0] != "daisy" else "薔薇")]
        values.pop(1)
    if column in ("part", "file"):  # of another type throughout
        kind, values = pa.array([value]).type, [value] * len(values)
    else:
        kind = table.schema.field(column).type
    changed = table.set_column(place, column, pa.array(values, type=kind))
    pq.write_table(changed, path)
    with pytest.raises(UserError, match=cause):
        load_predictions(path)
