"""The three ways to pack a video: which frames, times, sides and pixels come out."""

import hashlib
import io
from fractions import Fraction

import av
import numpy as np
import pytest
import video_files
from video_files import X264, encode, picture, sequential

from mvdjax.data.decode import Blob, DecodeError, probe, read_frames
from mvdjax.data.transcode import pack_video

ENCODED = ('gop16', 'intra')
CLOSE = 33  # dB; the frame before or after is at 17


def blob(path, profile, size=0):
    return Blob('packed', pack_video(path, profile, size).data)


def frames_of(media):
    return read_frames(media, np.arange)


def times_of(media):
    """Presentation times in seconds, from the first frame's."""
    with av.open(io.BytesIO(media.data) if isinstance(media, Blob) else str(media)) as container:
        stream = container.streams.video[0]
        times = sorted(packet.pts * stream.time_base for packet in container.demux(stream) if packet.size)
    return np.array([float(t - times[0]) for t in times])


def streams(media):
    with av.open(io.BytesIO(media.data)) as container:
        return [stream.type for stream in container.streams]


def grey(media):
    """Luma, which unlike RGB does not depend on how FFmpeg interpolates the chroma of odd sides."""
    with av.open(io.BytesIO(media.data) if isinstance(media, Blob) else str(media)) as container:
        return np.stack([frame.to_ndarray(format='gray') for frame in container.decode(video=0)])


def psnr(a, b):
    assert a.shape == b.shape
    return 10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2))


def with_sound(path, codec='libx264', audio='aac', frames=40, **options):
    with av.open(str(path), 'w') as container:
        video = container.add_stream(codec, rate=30, options=options)
        video.height, video.width, video.pix_fmt = 64, 96, 'yuv420p'
        sound = container.add_stream(audio, rate=48000)
        for i in range(frames):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(i, 64, 96), format='rgb24')))
        for i in range(frames * 1600 // 960):
            samples = np.random.default_rng(i).normal(0, 0.1, (1, 960)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format='fltp', layout='mono')
            frame.sample_rate, frame.pts = 48000, 960 * i
            container.mux(sound.encode(frame))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('transcode')


@pytest.fixture(scope='module')
def clip(folder):
    return encode(folder / 'clip.mp4', 'libx264', g='250', **X264)


@pytest.mark.parametrize(
    ('name', 'codec', 'audio', 'options'),
    [
        ('sound.mp4', 'libx264', 'aac', X264),  # B-frames: times that start below zero
        ('sound.mkv', 'libx264', 'aac', X264),
        ('sound.webm', 'libvpx-vp9', 'libopus', {'cpu-used': '8', 'deadline': 'realtime'}),
    ],
)
def test_copy_drops_the_sound_and_keeps_every_frame_to_the_bit(folder, name, codec, audio, options):
    path = with_sound(folder / name, codec, audio, **options)
    packed = blob(path, 'copy')
    assert streams(packed) == ['video']
    assert len(packed.data) < path.stat().st_size - 2000
    np.testing.assert_array_equal(frames_of(packed), sequential(path))
    np.testing.assert_allclose(times_of(packed), times_of(path), atol=1e-12)


def test_copy_keeps_the_file_where_there_is_nothing_to_drop_or_equality_is_not_proved(folder, clip):
    in_ts = with_sound(folder / 'sound.ts', frames=20)  # a container that is not written anew
    for path in (clip, in_ts):
        assert hashlib.sha256(blob(path, 'copy').data).digest() == hashlib.sha256(path.read_bytes()).digest()


def test_copy_keeps_the_rotation(folder):
    path = encode(folder / 'turned.mp4', 'libx264', frames=8, rotation=90)
    np.testing.assert_array_equal(frames_of(blob(path, 'copy')), frames_of(path))


@pytest.mark.parametrize('profile', ENCODED)
def test_frames_times_and_pixels(clip, profile):
    packed = blob(clip, profile)
    assert psnr(frames_of(packed), sequential(clip)) > CLOSE
    np.testing.assert_allclose(times_of(packed), times_of(clip), atol=1e-9 if profile == 'gop16' else 5.01e-4)
    assert probe(packed).fps == pytest.approx(30, abs=0.05)


@pytest.mark.parametrize('profile', ENCODED)
def test_variable_frame_rate(folder, profile):
    times = np.cumsum([0, 40, 7, 400, 33, 1, 90, 500, 20, 20, 20, 1000])  # ms
    path = encode(folder / f'vfr_{profile}.mkv', 'libx264', frames=12, times=times)
    packed = blob(path, profile)
    np.testing.assert_allclose(times_of(packed), times / 1000, atol=1e-9)
    assert psnr(frames_of(packed), sequential(path)) > CLOSE


def test_keyframes(clip):
    for profile, most in (('gop16', 16), ('intra', 1)):
        with av.open(io.BytesIO(blob(clip, profile).data)) as container:
            stream = container.streams.video[0]
            rows = [(p.is_keyframe, p.pts, p.dts) for p in container.demux(stream) if p.size]
            assert stream.codec_context.name == {'gop16': 'h264', 'intra': 'mjpeg'}[profile]
        keys = [i for i, row in enumerate(rows) if row[0]]
        assert keys[0] == 0
        assert max(np.diff([*keys, len(rows)])) <= most
        assert all(pts == dts for _, pts, dts in rows)  # no B-frames


@pytest.mark.parametrize('profile', ENCODED)
def test_times_are_counted_where_the_container_has_none(folder, profile):
    path = encode(folder / f'plain_{profile}.avi', 'mpeg4', frames=20, bf='2')
    packed = blob(path, profile)
    assert psnr(frames_of(packed), sequential(path)) > CLOSE
    np.testing.assert_allclose(times_of(packed), np.arange(20) / 30, atol=5.01e-4)


@pytest.mark.parametrize('profile', ENCODED)
@pytest.mark.parametrize(
    ('given', 'size', 'stored'),
    [
        ((96, 64), 0, (96, 64)),
        ((96, 64), 64, (96, 64)),
        ((96, 64), 320, (96, 64)),  # never larger
        ((96, 64), 32, (48, 32)),
        ((64, 96), 32, (32, 48)),
        ((100, 66), 32, (48, 32)),  # 48.48: the nearest even side
        ((97, 65), 0, (96, 64)),  # cut, not blurred
    ],
)
def test_sides(folder, profile, given, size, stored):
    width, height = given
    path = folder / f'sides_{width}_{height}.mkv'
    if not path.exists():
        encode(path, 'libvpx-vp9', frames=2, height=height, width=width, **{'cpu-used': '8', 'crf': '10', 'b': '0'})
    packed = blob(path, profile, size)
    found = frames_of(packed)
    assert (found.shape[2], found.shape[1]) == stored
    if not size or min(given) <= size:
        assert psnr(grey(packed), grey(path)[:, : stored[1], : stored[0]]) > CLOSE


def test_smaller_pictures_are_filtered(folder):
    """A fine chequered pattern becomes grey, not a coarser pattern."""
    board = np.where(np.indices((128, 192)).sum(0)[..., None] % 2, 255, 0).astype(np.uint8).repeat(3, 2)
    with av.open(str(folder / 'board.mkv'), 'w') as container:
        stream = container.add_stream('ffv1', rate=30)
        stream.height, stream.width, stream.pix_fmt = 128, 192, 'yuv444p'
        container.mux(stream.encode(av.VideoFrame.from_ndarray(board, format='rgb24')))
        container.mux(stream.encode(None))
    for profile in ENCODED:
        small = frames_of(blob(folder / 'board.mkv', profile, 60))[0, 4:-4, 4:-4].astype(int)
        assert np.abs(small - 128).max() < 24


@pytest.mark.parametrize('profile', ENCODED)
@pytest.mark.parametrize('angle', [90, 180, 270])
def test_rotation_is_applied(folder, profile, angle):
    path = folder / f'turned_{angle}.mp4'
    if not path.exists():
        encode(path, 'libx264', frames=4, height=48, rotation=angle)
    packed, expected = blob(path, profile), frames_of(path)
    assert psnr(frames_of(packed), expected) > CLOSE  # chroma is sited differently once turned
    assert psnr(sequential_blob(packed), expected) > CLOSE  # without any flag


def sequential_blob(packed):
    with av.open(io.BytesIO(packed.data)) as container:
        frames = list(container.decode(video=0))
    assert all(frame.rotation == 0 for frame in frames)
    return np.stack([frame.to_ndarray(format='rgb24') for frame in frames])


@pytest.mark.parametrize('profile', ENCODED)
@pytest.mark.parametrize(
    ('pixels', 'matrix', 'full'),
    [
        ('yuv420p', 1, 1),
        ('yuv420p', 5, 2),
        ('yuvj420p', 2, 2),
        ('yuv422p10le', 1, 1),
        ('yuv444p', 6, 1),
        ('rgb24', 0, 2),
    ],
)
def test_colours_are_what_a_reader_sees(folder, profile, pixels, matrix, full):
    """Matrices (1: BT.709, 5 and 6: BT.601), ranges (2: full) and depths: saturated patches keep their RGB values."""
    path = folder / f'colour_{pixels}_{matrix}_{full}.mkv'
    if not path.exists():
        patches = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
        still = av.VideoFrame.from_ndarray(patches.repeat(16, 0).repeat(16, 1), format='rgb24')
        codec = {'rgb24': 'libx264rgb', 'yuvj420p': 'mjpeg'}.get(pixels, 'ffv1')
        with av.open(str(path), 'w') as container:
            stream = container.add_stream(codec, rate=30, options={'crf': '0'} if codec == 'libx264rgb' else {})
            stream.height, stream.width, stream.pix_fmt = 64, 96, pixels
            stream.codec_context.colorspace, stream.codec_context.color_range = matrix, full
            for _ in range(2):
                frame = still.reformat(format=pixels, dst_colorspace=matrix or None, dst_color_range=full)
                frame.colorspace, frame.color_range = matrix, full
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    inner = np.s_[:, 8::16, 8::16]  # the middles of the patches: chroma is stored at half the resolution
    difference = frames_of(blob(path, profile))[inner].astype(int) - frames_of(path)[inner]
    assert np.abs(difference).max() <= 6


def test_pixel_aspect_is_passed_on(folder):
    path = folder / 'anamorphic.mkv'
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, 'yuv420p'
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0, 48, 64), format='rgb24')))
        container.mux(stream.encode(None))
    for profile in ('copy', *ENCODED):
        with av.open(io.BytesIO(blob(path, profile).data)) as container:
            assert container.streams.video[0].sample_aspect_ratio == pytest.approx(4 / 3, abs=0.01)


def test_damaged_files_keep_the_frames_that_can_be_had(folder, clip):
    path = folder / 'cut.mkv'
    video_files.remux(clip, folder / 'whole.mkv', lambda position, packet: packet)
    data = (folder / 'whole.mkv').read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    expected = frames_of(path)
    assert 5 < len(expected) < 60
    np.testing.assert_array_equal(frames_of(blob(path, 'copy')), expected)
    for profile in ENCODED:
        assert psnr(frames_of(blob(path, profile)), expected) > CLOSE


def test_files_damaged_in_the_middle_are_not_encoded(folder):
    """Training never sees a frame that the decoder had to make up; encoded anew it would look sound."""
    clip = encode(folder / 'sound_gops.mp4', 'libx264', g='15', **X264)
    with av.open(str(clip)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(clip.read_bytes())
    position, size = packets[20]
    data[position + 4 : position + size] = bytes(reversed(data[position + 4 : position + size]))
    path = folder / 'hurt.mp4'
    path.write_bytes(data)
    with pytest.raises(DecodeError, match='is damaged'):
        frames_of(path)
    assert blob(path, 'copy').data == bytes(data)  # the other clips can be had
    for profile in ENCODED:
        with pytest.raises(DecodeError, match=r'hurt\.mp4 is damaged: \d+ of its \d+ frames'):
            pack_video(path, profile, 0)


@pytest.mark.parametrize(('content', 'reason'), [(b'', 'is empty'), (b'no video at all\n' * 50, 'decoded|text file')])
def test_no_video(tmp_path, content, reason):
    path = tmp_path / 'file.mp4'
    path.write_bytes(content)
    for profile in ('copy', 'gop16'):
        with pytest.raises(DecodeError, match=reason) as found:
            pack_video(path, profile, 0)
        assert str(path) in str(found.value)


def test_too_large(clip, monkeypatch):
    monkeypatch.setattr('mvdjax.data.transcode.MAX_BYTES', 10_000)
    for profile in ('copy', 'gop16', 'intra'):
        with pytest.raises(DecodeError, match=r'takes .* packed|takes .* GiB; cut it'):
            pack_video(clip, profile, 0)
