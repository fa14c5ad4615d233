"""Loading is worth it if it is sooner, and nobody waits for it for much longer than computing takes."""

from diptych.policy.promotion import GRACE_S, is_worth_loading, load_patience_s


def test_whichever_is_sooner() -> None:
    assert is_worth_loading(0.1, 0.2)
    assert not is_worth_loading(0.2, 0.1)
    assert not is_worth_loading(0.0, 0.0)


def test_patience_is_in_proportion_to_what_is_saved() -> None:
    assert load_patience_s(2.0) - load_patience_s(1.0) == 1.0
    assert load_patience_s(0.0) == GRACE_S
