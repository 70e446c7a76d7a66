"""A pass over many rows shows how far it is on a terminal, and nothing elsewhere."""

import pytest

from hopd.tasks.track import EVERY, track


def test_items_are_passed_on_and_their_count_is_shown_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    total = 2 * EVERY + 5
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert list(track(range(total), "reading", total)) == list(range(total))
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    assert list(track(range(total), "reading", total)) == list(range(total))
    out, err = capfd.readouterr()
    assert out == ""
    assert "reading" in err
    assert f"{2 * EVERY}/{total}" in err
