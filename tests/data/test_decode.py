"""How frames are found: what is decoded, what is counted, what is not. That they are right: test_matrix.py."""

import shutil

import av
import numpy as np
import pytest
from video_files import X264, available, check_against, chosen, encode, opened, remux, sequential

from mvdjax.data import decode, packets
from mvdjax.data.decode import Blob, probe, read_frames
from mvdjax.data.recipes import pretrain
from mvdjax.data.schema import Record


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('videos')


@pytest.fixture(scope='module')
def mp4(folder):
    return encode(folder / 'plain.mp4', 'libx264', g='12', **X264)


@pytest.fixture
def no_counting(monkeypatch):
    """Makes the fallback an error, so that a test shows the fast path by itself to be right."""

    def refuse(*_):
        raise AssertionError('fell back to decoding from the start')

    monkeypatch.setattr(packets, 'decode_all', refuse)


VARIABLE = np.cumsum([0, *np.random.default_rng(3).integers(5, 90, 59)])


def test_only_the_needed_packets_are_decoded(mp4):
    with opened(mp4) as video:
        index = packets.read_index(video)
        assert packets._ranges(index, index.shown[[0]]) == [(0, 0)]
        ((first, last),) = packets._ranges(index, index.shown[[30, 31]])
        assert index.keyframe[first]
        assert last - first < 12
        assert packets._ranges(index, index.shown[np.arange(60)]) == [(0, 59)]


def test_a_file_too_large_to_keep_is_read_twice(mp4, monkeypatch, no_counting):
    monkeypatch.setattr(packets, '_KEEP_BYTES', 100)
    ids = [50, 3, 3, 27]
    np.testing.assert_array_equal(read_frames(mp4, chosen(ids)), sequential(mp4)[ids])


def test_a_missing_frame_falls_back_to_counting(mp4, monkeypatch):
    def fail(*_, **__):
        raise packets.UnreadableError('lacks frames')

    monkeypatch.setattr(packets, 'decode_ranges', fail)
    check_against(mp4, sequential(mp4))


def test_one_step_answers_any_order_with_repeats(mp4):
    ids = [59, 0, 7, 7, 58, 0]
    frames = read_frames(mp4, chosen(ids))
    assert frames.shape == (6, 64, 96, 3)
    assert frames.dtype == np.uint8
    assert frames.flags.c_contiguous
    np.testing.assert_array_equal(frames, sequential(mp4)[ids])


@pytest.mark.parametrize('name', ['plain.mp4', 'turned.mp4', 'counted.avi'])
def test_what_is_made_of_each_frame_is_made_of_the_frames_upright(name, folder, mp4):
    path = {
        'plain.mp4': lambda: mp4,
        'turned.mp4': lambda: encode(folder / name, 'libx264', frames=12, rotation=90),
        'counted.avi': lambda: encode(folder / name, 'mpeg4', frames=12),
    }[name]()
    ids, seen = [3, 9, 3, 0], []

    def each(frame):
        seen.append(frame.shape)
        return frame[1:4, 2:9].astype(np.int16) + 1

    whole, made = read_frames(path, chosen(ids)), read_frames(path, chosen(ids), each)
    np.testing.assert_array_equal(made, whole[:, 1:4, 2:9].astype(np.int16) + 1)
    assert seen == [whole.shape[1:]] * 3
    assert read_frames(path, chosen(np.zeros(0, int)), each).shape == (0, 0, 0, 3)


@pytest.mark.parametrize('resize', ['fast', 'exact'])
def test_frames_cropped_one_by_one_are_the_crops_of_the_clip(mp4, resize):
    """Alone, a crop is made as frames come; with a teacher's size beside it, of the whole clip."""
    options = {'size': 48, 'length': 8, 'stride': 2, 'patch': (2, 8, 8), 'mask': {'kind': 'tube', 'ratio': 0.75}}
    recipes = [pretrain.Recipe(**options, resize=resize, teacher_size=second) for second in (0, 40)]
    for seed in range(6):
        one, two = (recipe(Record(str(mp4), 0, 1), np.random.default_rng(seed)) for recipe in recipes)
        for name in ('video', 'mask'):
            np.testing.assert_array_equal(one[name], two[name])
        assert one['video'].flags.c_contiguous


def test_no_indices_give_no_frames(mp4):
    assert read_frames(mp4, chosen(np.zeros(0, int))).shape == (0, 0, 0, 3)


@pytest.mark.parametrize('name', ['plain.mp4', 'range.avi'])
def test_bad_indices_are_the_callers_mistake(name, folder, mp4):
    path = mp4 if name == 'plain.mp4' else encode(folder / name, 'mpeg4', frames=60)
    for ids in ([60], [-1], [3, 1000]):
        with pytest.raises(ValueError, match='of a video of 60'):
            read_frames(path, chosen(ids))
    for ids in ([0.5], [[1]]):
        with pytest.raises(ValueError, match='vector of integers'):
            read_frames(path, chosen(ids))


def test_errors_of_pick_pass_through(mp4):
    def pick(frames):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read_frames(mp4, pick)


@pytest.mark.parametrize('degrees', [90, 180, -90])
def test_rotation_is_applied(degrees, folder):
    path = encode(folder / f'turned{degrees}.mp4', 'libx264', frames=5, rotation=degrees, **X264)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).rotation in (degrees, -180 if degrees == 180 else degrees)
    upright = np.rot90(sequential(path), degrees // 90, axes=(1, 2))
    np.testing.assert_array_equal(read_frames(path, np.arange), upright)
    info = probe(path)
    assert (info.height, info.width) == upright.shape[1:3]


def test_probe_reports_the_file(mp4, folder):
    info = probe(mp4)
    assert (info.frames, info.height, info.width, info.codec) == (60, 64, 96, 'h264')
    assert info.fps == pytest.approx(30)
    assert 'mp4' in info.container
    vfr = encode(folder / 'probe_vfr.mkv', 'libx264', times=VARIABLE, **X264)
    assert probe(vfr).fps == pytest.approx(59 / (VARIABLE[-1] / 1000), rel=1e-3)
    assert probe(encode(folder / 'one.mp4', 'libx264', frames=1, **X264)).fps == 0
    avi = probe(encode(folder / 'probe.avi', 'mpeg4', frames=30))
    assert (avi.frames, avi.fps, avi.container) == (30, 30, 'avi')


def test_a_lying_frame_count_in_the_header_is_not_believed(folder):
    path = encode(folder / 'honest.avi', 'mpeg4', frames=30)
    data = bytearray(path.read_bytes())
    main, stream = data.index(b'avih') + 8 + 16, data.index(b'strh') + 8 + 32
    for at in (main, stream):
        assert int.from_bytes(data[at : at + 4], 'little') == 30
        data[at : at + 4] = (7).to_bytes(4, 'little')
    lying = folder / 'lying.avi'
    lying.write_bytes(data)
    with av.open(str(lying)) as container:
        assert container.streams.video[0].frames == 7
    check_against(lying, sequential(path))


def test_a_packet_that_gives_no_frame_is_not_counted(mp4, monkeypatch):
    real = packets.read_index

    def one_too_many(video):
        index = real(video)
        return packets.Index(False, index.pts, index.keyframe, np.append(index.shown, 0), index.packets, index.fps)

    monkeypatch.setattr(packets, 'read_index', one_too_many)
    frames = read_frames(mp4, lambda frames: np.array([frames - 1]))
    np.testing.assert_array_equal(frames[0], sequential(mp4)[59])


def test_a_stream_cut_out_of_a_transport_stream_is_counted(folder):
    whole = encode(folder / 'whole.ts', 'libx264', g='12', **{**X264, 'x264-params': 'open-gop=1:scenecut=0'})
    data = whole.read_bytes()
    cut = folder / 'cut.ts'
    cut.write_bytes(data[188 * (len(data) // 188 // 3) :])
    check_against(cut, sequential(cut))


@pytest.mark.parametrize('codec', ['libx264', 'libx265'])
def test_leading_pictures_whose_references_were_cut_off_do_not_count(codec, folder):
    if not available(codec):
        pytest.skip(f'this FFmpeg has no {codec}')
    options = {
        'libx264': {'g': '10', **X264, 'x264-params': 'open-gop=1:scenecut=0'},
        'libx265': {'preset': 'ultrafast', 'x265-params': 'keyint=12:bframes=3:open-gop=1'},
    }
    whole = encode(folder / f'leading_{codec}.mkv', codec, **options[codec])
    with opened(whole) as video:
        index = packets.read_index(video)
    starts = np.flatnonzero(index.keyframe[1:-1] & (index.pts[2:] < index.pts[1:-1])) + 1
    cut = remux(whole, folder / f'headless_{codec}.mkv', lambda i, packet: packet if i >= starts[0] else None)
    with opened(cut) as video:
        assert not packets.read_index(video).exact
    check_against(cut, sequential(cut))


def test_hidden_vp8_frames_do_not_count(folder):
    if not available('libvpx'):
        pytest.skip('this FFmpeg has no libvpx')
    whole = encode(folder / 'shown.webm', 'libvpx', frames=40, g='40', deadline='realtime')

    def hide(position, packet):
        if position % 7 != 3:
            return packet
        data = bytearray(bytes(packet))
        data[0] &= ~0x10  # the show_frame bit
        hidden = av.Packet(bytes(data))
        hidden.pts, hidden.dts, hidden.time_base = packet.pts, packet.dts, packet.time_base
        return hidden

    path = remux(whole, folder / 'hidden.webm', hide)
    expected = sequential(path)
    assert len(expected) == 34
    check_against(path, expected)


def test_frames_before_an_edit_lists_start_do_not_count(mp4, folder, no_counting):
    def earlier(position, packet):
        shift = int(15 / 30 / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        return packet

    path = remux(mp4, folder / 'edited.mp4', earlier, avoid_negative_ts='disabled')
    expected = sequential(path)
    assert len(expected) == 45
    with opened(path) as video:
        index = packets.read_index(video)
    assert len(index.pts) > index.frames  # some packets are there only for others to refer to
    check_against(path, expected)


def test_repeated_times_are_counted(folder):
    whole = encode(folder / 'distinct.mkv', 'mjpeg', frames=20)

    def pair(position, packet):
        packet.pts = packet.dts = 33 * (position // 2)
        return packet

    path = remux(whole, folder / 'paired.mkv', pair)
    check_against(path, sequential(whole))


@pytest.fixture
def cache(monkeypatch):
    """A cache that takes files of 20 packets and more, up to 150 packets in all."""
    cache = packets.IndexCache(least=20, total=150)
    monkeypatch.setattr(decode, '_INDICES', cache)
    return cache


@pytest.mark.parametrize('name', ['known.mp4', 'known.mkv', 'known.ts'])
def test_a_remembered_index_gives_the_same_frames(name, folder, cache, no_counting, monkeypatch):
    monkeypatch.setattr(packets, '_JUMP', 5)
    path = encode(folder / name, 'libx264', g='8', **{**X264, 'x264-params': 'open-gop=1:scenecut=0'})
    expected = sequential(path)
    assert cache.get(path) is None
    read_frames(path, chosen([0]))
    index = cache.get(path)
    assert index.packets is None
    monkeypatch.setattr(packets, 'read_index', None)  # nobody reads it again
    for ids in ([59], [3, 30, 58], [0, 59], list(range(0, 60, 9)), list(range(60))):
        np.testing.assert_array_equal(read_frames(path, chosen(ids)), expected[ids])
    assert cache.get(path) is index


def test_a_changed_file_is_read_anew(folder, cache):
    path = encode(folder / 'first.mp4', 'libx264', g='8', **X264)
    read_frames(path, chosen([0]))
    other = encode(folder / 'second.mp4', 'libx264', frames=40, g='8', **X264)
    other.replace(path)
    assert cache.get(path) is None
    assert read_frames(path, np.arange).shape[0] == 40


def test_a_remembered_index_that_is_wrong_does_no_harm(folder, cache):
    path = encode(folder / 'truth.mp4', 'libx264', frames=40, g='8', **X264)
    lie = encode(folder / 'lie.mkv', 'libx264', times=VARIABLE[:40], frames=40, g='8', **X264)
    with opened(lie) as video:
        cache.put(path, packets.read_index(video))
    np.testing.assert_array_equal(read_frames(path, chosen([20, 7])), sequential(path)[[20, 7]])


def test_the_cache_is_bounded_and_keeps_what_is_used(folder, cache, mp4):
    files = [shutil.copy(mp4, folder / f'copy{i}.mp4') for i in range(3)]
    short = encode(folder / 'short.mp4', 'libx264', frames=10, **X264)
    for path in (*files[:2], files[0], short, files[2]):  # of 60 packets each
        read_frames(path, chosen([5]))
    assert [cache.get(path) is not None for path in (*files, short)] == [True, False, True, False]
    blob = Blob(str(files[1]), mp4.read_bytes())
    read_frames(blob, chosen([5]))
    assert cache.get(files[1]) is None
