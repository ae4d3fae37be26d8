"""Progress: a line now and then where there is no terminal, nothing where none is wanted."""

import pytest

from mvdjax.data import progress


def test_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, '_EVERY', 0.0)
    with progress.Progress('checked', 3) as bar:
        bar.update()
        bar.update('1 bad')
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith('checked 1 of 3 files; ')
    assert second.startswith('checked 2 of 3 files, 1 bad; ')
    assert second.endswith(' left')
    with progress.Progress('checked', 3, shown=False) as bar:
        bar.update()
    assert capsys.readouterr() == ('', '')


def test_several_at_once_are_one_line(capsys, monkeypatch):
    monkeypatch.setattr(progress, '_EVERY', 0.0)
    times = iter([100.0, 130.0])
    monkeypatch.setattr(progress.time, 'perf_counter', lambda: next(times))
    with progress.Progress('packed', 32) as bar:
        bar.update(count=4)
    assert capsys.readouterr().out == 'packed 4 of 32 files; 8 a minute, 4 min left\n'


@pytest.mark.parametrize(
    ('rate', 'text'), [(40, '40 a second'), (1, '1 a second'), (0.2, '12 a minute'), (0.001, '4 an hour')]
)
def test_paces(rate, text):
    assert progress.pace(rate) == text


@pytest.mark.parametrize(('seconds', 'text'), [(0.4, '0 s'), (89, '89 s'), (600, '10 min'), (9000, '2.5 h')])
def test_spans(seconds, text):
    assert progress.span(seconds) == text
