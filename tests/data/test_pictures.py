"""Single pictures out of `intra` packs: the frames that the whole video gives, and no other one whatever is damaged."""

import functools
import json
import zlib

import av
import numpy as np
import pytest
from packs import copied, flip, in_this_process, listed

from mvdjax.data import media, pack, packed, pictures
from mvdjax.data.decode import DecodeError, Pictures, read_frames
from mvdjax.data.pack import verify_pack, write_pack
from mvdjax.data.pack_state import PackSpec
from mvdjax.data.pipeline import BadFiles, Data, train_batches
from mvdjax.data.sources import read_list
from mvdjax.errors import UserError

INTRA = PackSpec('intra', size=32, shards=2, max_bad=0.5)


@pytest.fixture(scope='module')
def intra(videos, tmp_path_factory):
    """A finished pack of the profile intra. Read only."""
    folder = tmp_path_factory.mktemp('intra') / 'pack'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, 'run_jobs', in_this_process)
        write_pack(listed(videos), '', str(folder), INTRA, progress=False)
    return folder


def clips(folder, pick):
    """What is read of each video as a clip, and out of the whole video; None for what cannot be read."""
    for record in packed.read_pack(str(folder)).records:
        found = []
        for fetch in (media.fetch_clip, media.fetch):
            try:
                found.append(read_frames(fetch(record.path), pick))
            except DecodeError:
                found.append(None)
        yield found


def test_a_picture_by_itself_is_the_frame_of_the_video(intra):
    for record in packed.read_pack(str(intra)).records:
        one = media.fetch_clip(record.path)
        assert isinstance(one, Pictures)
        whole = read_frames(packed.read_blob(record.path), np.arange)
        assert one.frames == len(whole)
        np.testing.assert_array_equal(read_frames(one, np.arange), whole)
        ids = np.array([7, 2, 13, 2])
        np.testing.assert_array_equal(read_frames(one, lambda n: ids), whole[ids])  # noqa: B023
        assert read_frames(one, lambda n: np.zeros(0, int)).shape == (0, 0, 0, 3)
        with pytest.raises(ValueError, match='pick returned frames 0 to 99 of a video of'):
            read_frames(one, lambda n: np.array([0, 99]))


def test_only_the_pictures_of_a_clip_are_fetched(intra, monkeypatch):
    read = []
    real = pictures.os.pread
    monkeypatch.setattr(pictures.os, 'pread', lambda file, size, at: read.append(size) or real(file, size, at))
    monkeypatch.setattr(packed, 'read_blob', lambda path: pytest.fail('the whole video is read'))
    record = packed.read_pack(str(intra)).records[0]
    assert len(read_frames(media.fetch_clip(record.path), lambda n: np.array([1, 5]))) == 2
    assert 0 < len(read) <= 6


def test_pictures_that_cross_the_blocks_of_the_file(tmp_path, monkeypatch):
    """Pictures of more than half a block of 64 KiB, in a shard of several videos."""
    monkeypatch.setattr(pack, 'run_jobs', in_this_process)
    rng = np.random.default_rng(0)
    for i in range(3):
        with av.open(str(tmp_path / f'{i}.avi'), 'w') as output:
            stream = output.add_stream('ffv1', rate=10)
            stream.height, stream.width, stream.pix_fmt = 240, 320, 'yuv420p'
            for _ in range(3 + i):
                noise = rng.integers(0, 256, (240, 320, 3), np.uint8)
                output.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format='rgb24')))
            output.mux(stream.encode(None))
    (tmp_path / 'list.txt').write_text(''.join(f'{i}.avi {i}\n' for i in range(3)))
    target = tmp_path / 'p'
    summary = write_pack(
        read_list(str(tmp_path / 'list.txt')), '', str(target), PackSpec('intra', shards=1), progress=False
    )
    assert summary['counts']['bytes'] > 6 * 65536
    for one, whole in clips(target, np.arange):
        np.testing.assert_array_equal(one, whole)
    assert all(isinstance(media.fetch_clip(r.path), Pictures) for r in packed.read_pack(str(target)).records)


def test_a_flipped_bit_gives_no_other_frame(intra, tmp_path):
    """Anywhere in a shard or in the list of its pictures: the frame of the video, or none at all."""
    (shard,) = intra.glob('*-00000-of-00002')
    rng = np.random.default_rng(0)
    truth = [one for one, _ in clips(intra, np.arange)]
    hurt = 0
    inside = shard.read_bytes().index(b'\xff\xd8\xff') + 900  # of the first picture
    for number, (file, places) in enumerate(((shard, [0, inside]), (intra / packed.pictures_name(0), [0, 30]))):
        for place in [*places, *rng.integers(0, file.stat().st_size, 3 + 5 * number).tolist()]:
            target = tmp_path / f'{number}_{place}'
            target.parent.mkdir(exist_ok=True)
            copied_to = copied(intra, target.parent)
            copied_to.rename(target)
            flip(target / file.relative_to(intra), place)
            for (one, whole), right in zip(clips(target, np.arange), truth, strict=True):
                for found in (one, whole):
                    if found is None:
                        hurt += 1
                    else:
                        np.testing.assert_array_equal(found, right)
    assert hurt


def test_verification_reads_every_picture(intra, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, 'run_jobs', in_this_process)
    assert verify_pack(str(intra), progress=False) == 9
    target = copied(intra, tmp_path)
    name = packed.pictures_name(1)
    flip(target / name, (target / name).stat().st_size - 1)
    with pytest.raises(UserError, match=r'does not hold what was written: a picture of video \d, or .*00001\.pictures'):
        verify_pack(str(target), progress=False)


def test_a_list_of_pictures_that_is_missing_or_of_another_pack(intra, tmp_path):
    target = copied(intra, tmp_path)
    file = target / packed.pictures_name(0)
    summary = json.loads((target / 'pack.json').read_text())
    data = file.read_bytes()
    file.write_bytes(data[:-16])
    with pytest.raises(UserError, match=rf'{file.name} has {len(data) - 16} bytes, {len(data)} bytes were written'):
        packed.read_pack(str(target))
    head = data[:24] + np.frombuffer(data[24:], '<i8', 6).copy()[::-1].tobytes()  # its length, and other videos' rows
    file.write_bytes(head + data[len(head) :])
    assert zlib.crc32(head) != summary['pictures']['0'][1]
    assert isinstance(media.fetch_clip(f'pack://{target}/train#0'), media.Blob)
    file.unlink()
    with pytest.raises(UserError, match=f'{file.name} is missing'):
        packed.read_pack(str(target))


def test_packs_without_lists_of_pictures_are_read_as_before(intra, tmp_path):
    """As earlier versions wrote them."""
    target = copied(intra, tmp_path)
    summary = json.loads((target / 'pack.json').read_text())
    del summary['pictures'], summary['shard_videos']
    (target / 'pack.json').write_text(json.dumps(summary))
    for file in target.glob('records/*.pictures'):
        file.unlink()
    for (one, whole), (right, _) in zip(clips(target, np.arange), clips(intra, np.arange), strict=True):
        np.testing.assert_array_equal(one, right)
        np.testing.assert_array_equal(whole, right)


def test_training_with_single_pictures_is_training_with_whole_videos(intra, monkeypatch):
    options = {'size': 16, 'length': 4, 'stride': 2, 'patch': (2, 8, 8), 'mask': {'kind': 'tube', 'ratio': 0.5}}
    data = Data(files=str(intra), recipe='pretrain', options=options)
    batches = functools.partial(train_batches, seed=3, global_batch=4, start_step=0, steps=3, bad=BadFiles(None))
    singly = list(batches(data, data.read()))
    monkeypatch.setattr(media, 'fetch_clip', media.fetch)
    for a, b in zip(singly, batches(data, data.read()), strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
