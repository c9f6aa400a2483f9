"""Tables are no wider than the terminal, and no number of them is cut."""

from __future__ import annotations

import pytest

from spintune.plain_tables import PlainConsole, PlainTable, print_tables
from spintune.report.table import Cell, MeasureColumn, MeasureTable, Row

COLUMNS = tuple(MeasureColumn(f"m{n}", f"measure {n}", "", "lower") for n in range(6))
ROWS = tuple(
    Row(name, tuple(Cell(f"{n}.{place}", f"{n}.000001 to {n}.000002", "better") for n in range(6)), "3 seeds")
    for place, name in enumerate(("first", "the second"))
)
TABLE = MeasureTable("What was measured of two settings, paired by seed, in one long line", "setting", COLUMNS, ROWS)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_columns_that_do_not_fit_follow_below(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spintune.plain_tables.PlainConsole", lambda: PlainConsole(width))
    print_tables([TABLE, "A sentence."])
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines()[:-1])) <= width
    assert "…" not in told
    for n in range(6):
        assert told.count(f"measure {n}") == 1
        assert told.count(f"{n}.0 better") == told.count(f"{n}.1 better") == 1
        assert told.count(f"{n}.000001 to {n}.000002") == 2
    blocks = told.count("the second")
    assert told.count("first") == blocks
    assert (blocks == 1) == (width == 200)
    assert told.endswith("A sentence.\n")


@pytest.mark.parametrize("width", [60, 70, 80])
def test_a_long_text_at_the_front_leaves_room_for_numbers(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    table = PlainTable("Rates", ("stage", "before", "3.2e-06", "0.0001"))
    table.add_row(
        "iteration 1\nloss at λ = 1 and γ = 1 on 512 rows, 24 steps; taken: 1.3e-06", "2.0000", "1.7500", "broke"
    )
    PlainConsole(width).print(table)
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= width
    assert "…" not in told
    assert all(one in told for one in ("3.2e-06", "0.0001", "2.0000", "1.7500", "broke"))
    assert told.count("iteration 1") == 1


def test_a_table_of_labels_alone_has_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    table = PlainTable("Models", ("model",))
    table.add_row("base")
    PlainConsole(60).print(table)
    assert "base" in capsys.readouterr().out


def test_a_text_at_the_end_takes_as_many_lines_as_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    table = PlainTable("What was dropped", ("step", "read", "dropped"), wraps=True)
    words = [f"reason {n}" for n in range(12)]
    table.add_row("reading", "12 rows", ", ".join(words))
    PlainConsole(50).print(table)
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 50
    assert told.count("reading") == 1
    assert all(word in " ".join(told.split()) for word in words)
