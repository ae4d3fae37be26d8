"""Where files are fetched from, and one error for all that can go wrong on the way."""

import fsspec
import pytest

from mvdjax.data import media
from mvdjax.data.decode import Blob, DecodeError
from mvdjax.errors import UserError


@pytest.fixture
def store():
    """An object store in memory."""
    system = fsspec.filesystem('memory')
    system.pipe('/bucket/clips/a b.mp4', b'encoded')
    system.pipe('/bucket/empty.mp4', b'')
    yield system
    system.rm('/bucket', recursive=True)


def test_local_paths_stay_paths():
    for path in ('a.mp4', '/data/x y.mp4', './a.mp4', 'C://odd', 'sub/name:part.mp4'):
        assert media.fetch(path) == path
    assert media.fetch('file:///data/a.mp4') == '/data/a.mp4'


def test_object_stores_give_bytes(store):
    assert media.fetch('memory://bucket/clips/a b.mp4') == Blob('memory://bucket/clips/a b.mp4', b'encoded')


@pytest.mark.parametrize(
    ('path', 'reason'),
    [
        ('memory://bucket/none.mp4', 'cannot be fetched: no such file'),
        ('memory://bucket/clips', 'is a directory'),
        ('memory://bucket/empty.mp4', 'is empty'),
        ('nowhere://bucket/a.mp4', 'cannot be fetched: there is no file system for nowhere://'),
    ],
)
def test_what_cannot_be_fetched(store, path, reason):
    with pytest.raises(DecodeError) as found:
        media.fetch(path)
    assert (found.value.path, found.value.reason) == (path, reason)


def test_a_driver_that_is_not_installed_is_named(monkeypatch):
    def missing(path):
        raise ImportError('Please install gcsfs to access Google Storage')

    monkeypatch.setattr(fsspec.core, 'url_to_fs', missing)
    with pytest.raises(DecodeError, match=r'gs:// needs the package gcsfs; pip install it'):
        media.fetch('gs://bucket/a.mp4')


def test_errors_of_a_driver_become_one_line(store, monkeypatch):
    def fail(self, path, **kwargs):
        raise RuntimeError('HTTP 503\n  try again')

    monkeypatch.setattr(type(store), 'cat_file', fail)
    with pytest.raises(DecodeError, match=r'cannot be fetched: HTTP 503 try again'):
        media.fetch('memory://bucket/clips/a b.mp4')


def test_a_file_too_large_for_memory_is_not_fetched(store, monkeypatch):
    monkeypatch.setattr(media, 'MAX_BYTES', 6)
    monkeypatch.setattr(type(store), 'cat_file', lambda *args, **kwargs: pytest.fail('was fetched'))
    with pytest.raises(DecodeError, match='too large to fetch into memory; copy it to a local disk'):
        media.fetch('memory://bucket/clips/a b.mp4')


def test_joining():
    assert media.join('/data', 'a/b.mp4') == '/data/a/b.mp4'
    assert media.join('/data', '/far/b.mp4') == '/far/b.mp4'
    assert media.join('gs://bucket/lists/', './a b.mp4') == 'gs://bucket/lists/a b.mp4'
    assert media.join('/data', 's3://bucket/a.mp4') == 's3://bucket/a.mp4'
    assert media.join('gs://bucket', '/local/a.mp4') == '/local/a.mp4'
    assert media.folder_of('gs://bucket/lists/train.txt') == 'gs://bucket/lists'


def test_small_text_files(store, tmp_path):
    store.pipe('/bucket/list.txt', '\ufeffa.mp4 1\r\n'.encode())
    assert media.read_text('memory://bucket/list.txt', 'list') == 'a.mp4 1\r\n'
    (tmp_path / 'list.txt').write_bytes('über 1'.encode('utf-16'))
    with pytest.raises(UserError, match=r'list .*list\.txt cannot be read as UTF-8 text .*; save it as UTF-8'):
        media.read_text(str(tmp_path / 'list.txt'), 'list')
    with pytest.raises(UserError, match=r'list memory://bucket/x\.txt cannot be fetched: no such file; check the path'):
        media.read_text('memory://bucket/x.txt', 'list')
