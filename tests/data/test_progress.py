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


@pytest.mark.parametrize(('seconds', 'text'), [(0.4, '0 s'), (89, '89 s'), (600, '10 min'), (9000, '2.5 h')])
def test_spans(seconds, text):
    assert progress.span(seconds) == text
