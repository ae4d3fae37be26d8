"""The arithmetic of `mvdjax bench checkpoint`."""

import pytest

from mvdjax.bench.checkpoint import Round, summary, text


def test_a_save_is_told_in_steps():
    plain = [Round(wall=8.0, cpu=12.0), Round(wall=10.0, cpu=16.0), Round(wall=8.0, cpu=12.0)]
    saving = [Round(9.0, 15.0, blocked=0.5, late=0.1), Round(11.5, 19.0, 0.4, 0.0), Round(9.0, 15.0, 0.6, 0.2)]
    found = summary(plain, saving, 4)
    assert found['step_s'] == 2.0
    assert found['save_blocked_steps'] == pytest.approx(0.25)
    assert found['save_extra_s'] == pytest.approx(1.0)
    assert found['save_extra_steps'] == pytest.approx(0.5)
    assert found['save_cpu_steps'] == pytest.approx(1.0)
    table = text(found, 2**30, 1000)
    assert '| a save: its round takes longer | 1.00 | 0.50 |' in table
    assert table.endswith('at one save in 1000 steps at most 0.10 % of the time, under 5 % from one in 20 steps on')
