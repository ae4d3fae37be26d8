"""Some forty kinds of video file: every frame, alone and in company, is the one a full sequential decode gives."""

import hashlib

import numpy as np
import pytest
from video_files import X264, available, chosen, encode, picture, sequential

from mvdjax.data import packets
from mvdjax.data.decode import Blob, probe, read_frames

FRAMES = 20
TIMES = np.cumsum([0, *np.random.default_rng(3).integers(5, 90, FRAMES - 1)])
GOP = {'g': '8', **X264}
OPEN = {'g': '8', **X264, 'x264-params': 'open-gop=1:scenecut=0'}
REFRESH = {'g': '8', 'preset': 'veryfast', 'x264-params': 'intra-refresh=1:scenecut=0'}
X265 = {'preset': 'ultrafast', 'x265-params': 'keyint=8:min-keyint=8:bframes=3'}
VP9 = {'deadline': 'realtime', 'cpu-used': '8', 'g': '8'}
B = {'g': '8', 'bf': '2'}

# name -> (codec, options); 'fast' files have to be right without decoding from the start.
FAST = {
    'h264_closed.mp4': ('libx264', GOP),
    'h264_open.mp4': ('libx264', OPEN),
    'h264_open.mkv': ('libx264', OPEN),
    'h264_open.ts': ('libx264', OPEN),
    'h264_intra.mp4': ('libx264', {'g': '1', 'preset': 'veryfast'}),
    'h264_vfr.mp4': ('libx264', {'times': TIMES, **GOP}),
    'h264_vfr.mkv': ('libx264', {'times': TIMES, **GOP}),
    'h264_fragments.mp4': ('libx264', {'movflags': 'frag_keyframe+empty_moov', **GOP}),
    'h264_front.mov': ('libx264', {'movflags': 'faststart', **GOP}),
    'h264_odd.mkv': ('libx264', {'height': 46, 'width': 50, **GOP}),
    'h264_10bit.mp4': ('libx264', {'pix_fmt': 'yuv420p10le', **GOP}),
    'h264_444.mp4': ('libx264', {'pix_fmt': 'yuv444p', **GOP}),
    'h264_full_range.mp4': ('libx264', {'pix_fmt': 'yuvj420p', **GOP}),
    'h264_grey.mp4': ('libx264', {'pix_fmt': 'gray', **GOP}),
    'h264_deep_pyramid.mp4': ('libx264', {'g': '20', 'preset': 'veryfast', 'bf': '7', 'refs': '6'}),
    'hevc_closed.mp4': ('libx265', X265),
    'hevc_open.mkv': ('libx265', {**X265, 'x265-params': 'keyint=8:min-keyint=8:bframes=3:open-gop=1'}),
    'hevc_open.ts': ('libx265', {**X265, 'x265-params': 'keyint=8:min-keyint=8:bframes=3:open-gop=1'}),
    'hevc_10bit.mp4': ('libx265', {**X265, 'pix_fmt': 'yuv420p10le'}),
    'hevc_layers.mp4': ('libx265', {**X265, 'x265-params': 'keyint=16:bframes=3:temporal-layers=3'}),
    'vp8.webm': ('libvpx', VP9),
    'vp8_hidden.webm': ('libvpx', {'deadline': 'good', 'cpu-used': '5', 'lag-in-frames': '10', 'auto-alt-ref': '1'}),
    'vp9.webm': ('libvpx-vp9', VP9),
    'vp9_hidden.webm': ('libvpx-vp9', {'deadline': 'good', 'cpu-used': '5', 'lag-in-frames': '12'}),
    'vp9.mp4': ('libvpx-vp9', VP9),
    'vp9_444.webm': ('libvpx-vp9', {**VP9, 'pix_fmt': 'yuv444p'}),
    'av1.mp4': ('libsvtav1', {'preset': '12', 'g': '8'}),
    'av1.mkv': ('libsvtav1', {'preset': '12', 'g': '8'}),
    'mpeg4_b.mp4': ('mpeg4', B),
    'mpeg4_b.mkv': ('mpeg4', B),
    'mjpeg.mkv': ('mjpeg', {}),
    'mjpeg.mov': ('mjpeg', {}),
    'ffv1.mkv': ('ffv1', {'pix_fmt': 'yuv422p'}),
    'prores.mov': ('prores_ks', {'pix_fmt': 'yuv422p10le'}),
}
COUNTED = {
    'h264_refresh.mp4': ('libx264', REFRESH),
    'h264_interlaced.mkv': ('libx264', {**GOP, 'x264-params': 'tff=1'}),
    'h264.avi': ('libx264', GOP),
    'h264.flv': ('libx264', GOP),
    'raw.h264': ('libx264', OPEN),
    'raw.hevc': ('libx265', X265),
    'mpeg4_b.avi': ('mpeg4', B),
    'msmpeg4.avi': ('msmpeg4', {'g': '8'}),
    'mjpeg.avi': ('mjpeg', {}),
    'raw_rgb.avi': ('rawvideo', {'pix_fmt': 'bgr24'}),
    'huffyuv.avi': ('huffyuv', {'pix_fmt': 'yuv422p'}),
    'mpeg1.mpg': ('mpeg1video', B),
    'mpeg2_b.mpg': ('mpeg2video', B),
    'mpeg2_b.ts': ('mpeg2video', B),
    'mpeg2_b.mp4': ('mpeg2video', B),
    'mpeg2_b.mxf': ('mpeg2video', B),
    'wmv2.wmv': ('wmv2', {'g': '8'}),
    'sorenson.flv': ('flv', {'g': '8'}),
    'mpeg4.nut': ('mpeg4', B),
    'vp8.ivf': ('libvpx', VP9),
    'vp8.ogv': ('libvpx', VP9),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('matrix')


def made(folder, name, codec, options):
    if not available(codec):
        pytest.skip(f'this FFmpeg has no encoder {codec}')
    return encode(folder / name, codec, **{'frames': FRAMES, 'height': 48, 'width': 64, **options})


def hashes(frames):
    return [hashlib.sha256(np.ascontiguousarray(frame)).hexdigest() for frame in frames]


def check(path, expected, frames=FRAMES):
    """Every index alone, all at once, and picks in any order, from the file and from memory."""
    known = hashes(expected)
    assert len(known) == frames
    assert hashes(read_frames(path, np.arange)) == known
    assert hashes(np.concatenate([read_frames(path, chosen([i])) for i in range(frames)])) == known
    blob = Blob('memory', path.read_bytes())
    rng = np.random.default_rng(0)
    for size in (2, 3, 5, 16):
        ids = rng.integers(0, frames, size)
        assert hashes(read_frames(blob, chosen(ids))) == [known[i] for i in ids], ids
    assert probe(path).frames == frames


def looks_right(frames, height=48, width=64, grey=False):
    """Whether they are the pictures that were encoded, in order, colours and range included."""
    for i, frame in enumerate(frames):
        original = picture(i, height, width).astype(float)
        if grey:
            original = np.repeat((original @ [0.299, 0.587, 0.114])[..., None], 3, 2)
        assert np.abs((original - frame).mean()) < 6, i
        assert np.abs(original.mean(2) - frame.mean(2)).mean() < 16, i
        assert np.abs(original - frame).mean() < 20, i


@pytest.mark.parametrize('name', FAST)
def test_exact_from_the_index_alone(name, folder, monkeypatch):
    path = made(folder, name, *FAST[name])
    expected = sequential(path)

    def refuse(*_):
        raise AssertionError('fell back to decoding from the start')

    monkeypatch.setattr(packets, 'decode_all', refuse)
    check(path, expected)
    looks_right(expected, *expected.shape[1:3], grey='grey' in name)


@pytest.mark.parametrize('name', COUNTED)
def test_exact_by_counting(name, folder):
    path = made(folder, name, *COUNTED[name])
    expected = sequential(path)
    check(path, expected)
    looks_right(expected)
