"""The README's goodput is that of the committed results."""

import make_goodput_table


def test_the_table_is_the_one_of_the_committed_results() -> None:
    assert make_goodput_table.README.read_text() == make_goodput_table.render(), "run `make docs`"
