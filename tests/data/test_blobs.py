"""Files in memory: the same frames as from the path, and no way from their bytes to another file."""

import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image
from video_files import X264, chosen, encode, picture

from mvdjax.data import packets
from mvdjax.data.decode import Blob, DecodeError, probe, read_frames, read_image


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('blobs')


@pytest.mark.parametrize('name', ['a.mp4', 'a.webm', 'a.avi', 'a.ts'])
def test_bytes_give_what_the_file_gives(name, folder):
    codec = {'webm': 'libvpx-vp9', 'avi': 'mpeg4'}.get(name[2:], 'libx264')
    options = {'deadline': 'realtime', 'cpu-used': '8'} if codec == 'libvpx-vp9' else {'g': '12'}
    path = encode(folder / name, codec, frames=30, **options)
    blob = Blob('pack://x#3', path.read_bytes())
    for ids in (np.arange(30), [29, 2, 2], [17]):
        np.testing.assert_array_equal(read_frames(blob, chosen(ids)), read_frames(path, chosen(ids)))
    assert probe(blob) == probe(path)


def test_bytes_too_many_to_keep_as_packets_are_read_twice(folder, monkeypatch):
    path = encode(folder / 'twice.mp4', 'libx264', frames=30, **X264)
    monkeypatch.setattr(packets, '_KEEP_BYTES', 100)
    blob = Blob('x', path.read_bytes())
    np.testing.assert_array_equal(read_frames(blob, chosen([20, 3])), read_frames(path, chosen([20, 3])))


def test_images_in_memory(folder):
    Image.fromarray(picture(1, 40, 60)).save(folder / 'a.png')
    blob = Blob('a.png', (folder / 'a.png').read_bytes())
    np.testing.assert_array_equal(read_image(blob), picture(1, 40, 60))


def test_errors_carry_the_name_given(folder):
    path = encode(folder / 'cut.mp4', 'libx264', frames=5)
    for data, reason in ((b'', 'is empty'), (b'\1\2' * 99, 'cannot be decoded'), (path.read_bytes()[:300], 'decoded')):
        for call in (lambda blob: read_frames(blob, np.arange), probe):
            with pytest.raises(DecodeError, match=reason) as caught:
                call(Blob('pack://shard#7', data))
            assert caught.value.path == 'pack://shard#7'
    with pytest.raises(DecodeError, match=r'^bucket/a\.jpg is not a readable image'):
        read_image(Blob('bucket/a.jpg', b'text' * 99))


def test_bytes_open_no_other_file(folder):
    encode(folder / 'target.ts', 'libx264', frames=10)
    playlist = f'#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile:{folder}/target.ts\n#EXT-X-ENDLIST\n'
    concat = f"ffconcat version 1.0\nfile '{folder}/target.ts'\n"
    for text in (playlist, concat):
        with pytest.raises(DecodeError):
            read_frames(Blob('list', text.encode()), np.arange)


def test_a_blob_is_a_value():
    blob = Blob('a', b'b')
    assert pickle.loads(pickle.dumps(blob)) == blob
    with pytest.raises(dataclasses.FrozenInstanceError):
        blob.name = 'c'
