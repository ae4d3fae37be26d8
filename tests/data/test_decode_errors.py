"""Damaged files, files that are no videos, odd names and images: one error type, with a reason; nothing left open."""

import contextlib
import os
import pickle
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from video_files import X264, chosen, encode, picture, sequential

from mvdjax.data import containers
from mvdjax.data.decode import DecodeError, probe, read_frames, read_image


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('videos')


@pytest.fixture(scope='module')
def mp4(folder):
    return encode(folder / 'plain.mp4', 'libx264', g='12', **X264)


def test_every_truncation_gives_real_frames_or_a_decode_error(folder):
    for name in ('front.mp4', 'end.mp4', 'cut.webm', 'cut.avi', 'cut2.ts'):
        codec = {'webm': 'libvpx-vp9', 'avi': 'mpeg4'}.get(name.split('.')[1], 'libx264')
        options = {'deadline': 'realtime', 'cpu-used': '8'} if codec == 'libvpx-vp9' else {'g': '12'}
        if name == 'front.mp4':
            options['movflags'] = 'faststart'
        path = encode(folder / name, codec, frames=40, **options)
        whole, data = sequential(path), path.read_bytes()
        outcomes = []
        for share in (0.02, 0.2, 0.5, 0.77, 0.95, 0.999):
            cut = folder / f'cut_{share}_{name}'
            cut.write_bytes(data[: int(len(data) * share)])
            try:
                frames = read_frames(cut, np.arange)
            except DecodeError:
                outcomes.append(0)
                continue
            outcomes.append(len(frames))
            # The last of a stream without packet boundaries may be half a picture.
            sure = len(frames) - (3 if name.endswith('.ts') else 0)
            common = [any(np.array_equal(frame, real) for real in whole) for frame in frames[:sure]]
            assert all(common), (name, share)
        if name == 'end.mp4':  # the index is at the end, and all of it but an optional last box is needed
            assert outcomes[:5] == [0] * 5
        else:
            assert outcomes == sorted(outcomes)
            assert outcomes[-1] >= 37


def test_damage_in_the_middle_never_leaks_another_error(mp4, folder):
    data = mp4.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(30):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 40):
            broken[at] = rng.integers(0, 256)
        path = folder / f'broken{trial}.mp4'
        path.write_bytes(broken)
        for call in (lambda path=path: read_frames(path, np.arange), lambda path=path: probe(path)):
            with contextlib.suppress(DecodeError):
                call()


def reasons(folder, mp4):
    Image.fromarray(picture(0, 64, 96)).save(folder / 'real.jpg')
    shutil.copy(folder / 'real.jpg', folder / 'jpeg.mp4')
    (folder / 'empty.mp4').write_bytes(b'')
    (folder / 'zeros.mp4').write_bytes(bytes(5000))
    (folder / 'text.mp4').write_text('no video here\n' * 50)
    (folder / 'notes.txt').write_text('no video here\n' * 50)
    (folder / 'list.m3u8').write_text('#EXTM3U\n#EXTINF:2,\nstream.ts\n#EXT-X-ENDLIST\n')
    (folder / 'dangling.mp4').symlink_to(folder / 'nowhere.mp4')
    return {
        'jpeg.mp4': 'is a still image, not a video',
        'real.jpg': 'is a still image, not a video',
        'empty.mp4': 'is empty',
        'zeros.mp4': 'cannot be decoded',
        'text.mp4': 'is a text file, not a video; it begins .no video here',
        'notes.txt': 'is a text file, not a video',
        'list.m3u8': 'is a playlist, not a video',
        'dangling.mp4': 'does not exist',
        'missing.mp4': 'does not exist',
        '.': 'is a directory',
        'zero\0byte.mp4': '(cannot be opened|does not exist)',
    }


def test_files_that_are_no_videos_say_why(folder, mp4):
    def never(frames):
        raise AssertionError('picked from something that is no video')

    for name, reason in reasons(folder, mp4).items():
        path = folder / name
        with pytest.raises(DecodeError, match=reason) as caught:
            read_frames(path, never)
        assert caught.value.path == path
        assert str(caught.value) == f'{path} {caught.value.reason}'
        with pytest.raises(DecodeError, match=reason):
            probe(str(path))


@pytest.mark.parametrize(('name', 'codec'), [('sound.m4a', 'aac'), ('sound.wav', 'pcm_s16le'), ('sound.mp4', 'aac')])
def test_audio_is_refused(name, codec, folder):
    with av.open(str(folder / name), 'w') as container:
        stream = container.add_stream(codec, rate=16000, layout='mono')
        samples = (np.sin(np.arange(16000) / 20) * 9000).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format='s16', layout='mono')
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DecodeError, match='has no video stream'):
        read_frames(folder / name, np.arange)


def test_cover_pictures_are_refused(folder):
    path = folder / 'song.mp4'
    with av.open(str(path), 'w') as container:
        sound = container.add_stream('aac', rate=16000, layout='mono')
        cover = container.add_stream('mjpeg', rate=1)
        cover.height, cover.width, cover.pix_fmt = 64, 96, 'yuvj420p'
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(picture(0, 64, 96), format='rgb24')
        frame.pts = 0
        container.mux(cover.encode(frame))
        container.mux(cover.encode(None))
        wave = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), format='s16', layout='mono')
        wave.sample_rate, wave.pts = 16000, 0
        container.mux(sound.encode(wave))
        container.mux(sound.encode(None))
    assert len(sequential(path)) == 1  # FFmpeg would read it as a video
    with pytest.raises(DecodeError, match='has no video stream, only a cover picture'):
        read_frames(path, np.arange)


def test_absurd_sizes_are_refused_before_decoding(mp4, folder, monkeypatch):
    for size, allowed in (((16384, 1000), True), ((16385, 1), False), ((10001, 10000), False), ((0, 0), True)):
        if allowed:
            containers.check_size(*size)
        else:
            with pytest.raises(containers.UnreadableError, match=f'{size[0]} x {size[1]} pixels'):
                containers.check_size(*size)
    monkeypatch.setattr(containers, 'MAX_SIDE', 95)
    with pytest.raises(DecodeError, match='96 x 64 pixels'):
        read_frames(mp4, np.arange)
    Image.new('RGB', (96, 4)).save(folder / 'wide.png')
    with pytest.raises(DecodeError, match='96 x 4 pixels'):
        read_image(folder / 'wide.png')


@pytest.mark.parametrize('name', ['two words.mp4', 'vidéo_視頻_😀.mp4', 'a:b%03d?.mp4', "quote'd.mp4", '-dash.mp4'])
def test_any_file_name_works(name, mp4, folder, monkeypatch):
    shutil.copy(mp4, folder / name)
    monkeypatch.chdir(folder)
    for path in (folder / name, str(folder / name), name):
        assert read_frames(path, chosen([3])).shape == (1, 64, 96, 3)


def test_decode_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(DecodeError(Path('a.mp4'), 'is empty')))
    assert (str(error), error.path, error.reason) == ('a.mp4 is empty', Path('a.mp4'), 'is empty')


def test_two_hundred_reads_leave_no_file_open(mp4, folder):
    if not Path('/proc/self/fd').exists():
        pytest.skip('the system does not list open files')
    (folder / 'leak.mp4').write_bytes(mp4.read_bytes()[:3000])
    avi = encode(folder / 'leak.avi', 'mpeg4', frames=3)
    before = len(os.listdir('/proc/self/fd'))
    for i in range(200):
        read_frames((mp4, avi)[i % 2], chosen([i % 3]))
        if i % 10 == 0:
            with pytest.raises(DecodeError):
                read_frames(folder / 'leak.mp4', np.arange)
            probe(mp4)
    assert len(os.listdir('/proc/self/fd')) == before


def test_images_are_rgb_and_upright(folder):
    pixels = picture(4, 40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned 90 degrees; shown after a clockwise quarter turn
    Image.fromarray(pixels).save(folder / 'turned.png', exif=exif)
    np.testing.assert_array_equal(read_image(folder / 'turned.png'), np.rot90(pixels, -1))
    Image.fromarray(pixels).convert('L').save(folder / 'grey.png')
    grey = read_image(str(folder / 'grey.png'))
    assert grey.shape == (40, 60, 3)
    assert grey.dtype == np.uint8
    assert (grey[..., 0] == grey[..., 2]).all()
    Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(folder / 'alpha.png')
    np.testing.assert_array_equal(read_image(folder / 'alpha.png'), pixels)


def test_images_that_are_none_say_why(folder, mp4):
    data = (folder / 'turned.png').read_bytes() if (folder / 'turned.png').exists() else b''
    (folder / 'cut.png').write_bytes(data[: len(data) // 2] or b'\x89PNG')
    (folder / 'empty.png').write_bytes(b'')
    (folder / 'text.png').write_text('not an image')
    cases = {
        'cut.png': 'not a readable image',
        'empty.png': 'is empty',
        'text.png': 'not a readable image',
        'missing.png': 'does not exist',
        '.': 'is a directory',
        mp4.name: 'not a readable image',
    }
    for name, reason in cases.items():
        with pytest.raises(DecodeError, match=reason):
            read_image(folder / name)
