"""Files that lead decoders astray: edit lists, mirrors, false keyframes, joined recordings, missing hints."""

import struct

import av
import numpy as np
import pytest
from test_matrix import FRAMES, GOP, check, hashes, made
from video_files import X264, Bits, available, chosen, encode, opened, picture, rebuilt, remux, sequential

from mvdjax.data import packets
from mvdjax.data.decode import DecodeError, read_frames


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('special')


@pytest.fixture(scope='module')
def mp4(folder):
    return made(folder, 'plain.mp4', 'libx264', {**GOP, 'bf': '0'})


@pytest.fixture
def no_counting(monkeypatch):
    def refuse(*_):
        raise AssertionError('fell back to decoding from the start')

    monkeypatch.setattr(packets, 'decode_all', refuse)


def edited(mp4, target, *parts):
    """The file with an edit list of (start, frames) in frames of 30 a second. The header must come last."""
    with av.open(str(mp4)) as container:
        base = container.streams.video[0].time_base
    second = int(1 / base)

    def edits(_):
        rows = [struct.pack('>IiHH', 1000 * frames // 30, start * second // 30, 1, 0) for start, frames in parts]
        return struct.pack('>II', 0, len(rows)) + b''.join(rows)

    target.write_bytes(rebuilt(mp4.read_bytes(), b'elst', edits))
    return target


def test_an_edit_list_that_cuts_the_middle_out(mp4, folder, no_counting):
    path = edited(mp4, folder / 'middle.mp4', (0, 6), (12, 8))
    whole = hashes(sequential(mp4))
    expected = sequential(path)
    assert 13 <= len(expected) <= 15
    assert set(hashes(expected)) <= set(whole[:7] + whole[11:])
    check(path, expected, len(expected))


def test_an_edit_list_that_starts_between_keyframes(mp4, folder, no_counting):
    path = edited(mp4, folder / 'late.mp4', (5, 15))
    expected = sequential(path)
    assert hashes(expected) == hashes(sequential(mp4))[5:]
    check(path, expected, 15)


@pytest.mark.parametrize(('hflip', 'vflip', 'degrees'), [(1, 0, 0), (1, 1, 0), (1, 0, 90), (0, 1, -90), (1, 1, 90)])
def test_mirrored_videos_are_turned_as_a_player_turns_them(hflip, vflip, degrees, folder):
    path = folder / f'mirror{hflip}{vflip}{degrees}.mp4'
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=30, options=X264)
        stream.height, stream.width, stream.pix_fmt = 48, 64, 'yuv420p'
        if not hasattr(stream, 'set_display_matrix'):
            pytest.skip('this PyAV sets no display matrix')
        turn = {0: [[1, 0], [0, 1]], 90: [[0, -1], [1, 0]], -90: [[0, 1], [-1, 0]]}[degrees]
        matrix = np.array(turn) @ np.diag([-1 if hflip else 1, -1 if vflip else 1])  # (x, y) -> (x, y) @ matrix
        one = 1 << 16
        stream.set_display_matrix([*(matrix[0] * one), 0, *(matrix[1] * one), 0, 0, 0, 1 << 30])
        frame = av.VideoFrame.from_ndarray(picture(3, 48, 64), format='rgb24')
        frame.pts = 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    stored = sequential(path)[0]
    y, x = np.mgrid[:48, :64]
    places = np.stack([x - 31.5, y - 23.5], -1) @ matrix
    places -= places.min((0, 1))
    shown = np.empty_like(stored if not degrees else stored.swapaxes(0, 1))
    shown[places[..., 1].astype(int), places[..., 0].astype(int)] = stored
    np.testing.assert_array_equal(read_frames(path, np.arange)[0], shown)


@pytest.mark.parametrize('codec', ['libx264', 'mpeg4', 'libvpx-vp9', 'libx265'])
@pytest.mark.parametrize('suffix', ['mkv', 'mp4'])
def test_packets_falsely_marked_as_keyframes(codec, suffix, folder):
    options = {'libx265': {'preset': 'ultrafast', 'x265-params': 'keyint=30'}, 'libx264': {**X264, 'g': '30'}}
    whole = made(folder, f'whole_{codec}.{suffix}', codec, options.get(codec, {'g': '30', 'deadline': 'realtime'}))

    def mark(position, packet):
        packet.is_keyframe = True
        return packet

    path = remux(whole, folder / f'marked_{codec}.{suffix}', mark)
    check(path, sequential(whole))


def test_joined_recordings_keep_their_order(folder):
    for name, options in (('a', {}), ('b', {'g': '5'})):
        made(folder, f'{name}.ts', 'libx264', {**GOP, **options})
    path = folder / 'joined.ts'
    path.write_bytes((folder / 'a.ts').read_bytes() + (folder / 'b.ts').read_bytes())
    expected = sequential(path)
    assert len(expected) == 2 * FRAMES
    check(path, expected, 2 * FRAMES)


def test_joined_recordings_whose_times_overlap(folder):
    """No time occurs twice, but they start again: in the order of time the recordings would be mixed."""
    first = made(folder, 'first.ts', 'libx264', GOP)
    whole = made(folder, 'next.ts', 'libx264', {**GOP, 'g': '5'})

    def later(_, packet):
        packet.pts, packet.dts = packet.pts + 1500, packet.dts + 1500  # half a frame
        return packet

    second = remux(whole, folder / 'second.ts', later)
    path = folder / 'mixed.ts'
    path.write_bytes(first.read_bytes() + second.read_bytes())
    expected = np.concatenate([sequential(first), sequential(whole)])
    assert hashes(sequential(path)) == hashes(expected)
    check(path, expected, 2 * FRAMES)


def test_times_far_from_the_order_of_the_file(folder):
    whole = made(folder, 'straight.mkv', 'mjpeg', {'frames': 80, 'height': 16, 'width': 16})

    def mix(position, packet):
        packet.dts = position
        packet.pts = 2000 + 20 * (position % 40) + 10 * (position // 40)
        return packet

    path = remux(whole, folder / 'mixed.mkv', mix)
    assert hashes(sequential(path)) == hashes(sequential(whole))
    check(path, sequential(whole), 80)


def test_packets_that_say_nothing_new_give_no_frame(folder):
    whole = made(folder, 'talking.mkv', 'mpeg4', {'g': '20'})

    def silence(position, packet):
        if position not in (5, 11):
            return packet
        # A predicted picture, time increment in 5 bits, not coded.
        bits = f'0101{position:05b}1001'.ljust(16, '1')
        quiet = av.Packet(b'\0\0\1\xb6' + int(bits, 2).to_bytes(2, 'big'))
        quiet.pts, quiet.dts, quiet.time_base = packet.pts, packet.dts, packet.time_base
        return quiet

    path = remux(whole, folder / 'silent.mkv', silence)
    expected = sequential(path)
    assert len(expected) == FRAMES - 2
    check(path, expected, FRAMES - 2)


def test_interlaced_video_is_counted(folder, monkeypatch):
    """Its packets may hold a field each; x264 makes none that do, so only the precaution can be seen."""
    path = made(folder, 'interlaced.mkv', 'libx264', {**GOP, 'x264-params': 'tff=1'})
    counted = []
    real = packets.decode_all
    monkeypatch.setattr(packets, 'decode_all', lambda *given: counted.append(1) or real(*given))
    read_frames(path, chosen([3]))
    assert counted


def test_damage_spoils_no_frames_but_those_that_refer_to_it(folder):
    """Closed groups of five: the eighth packet is damaged, so that frames 5 to 9 cannot all be had."""
    whole = made(
        folder, 'whole.mkv', 'libx264', {'g': '5', 'preset': 'veryfast', 'bf': '0', 'x264-params': 'scenecut=0'}
    )

    def damage(position, packet):
        if position != 7:
            return packet
        data = bytearray(bytes(packet))
        data[len(data) // 2 :] = b'\xff' * (len(data) - len(data) // 2)
        changed = av.Packet(bytes(data))
        changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
        return changed

    path = remux(whole, folder / 'damaged.mkv', damage)
    expected = sequential(whole)
    sound = [0, 4, 5, 6, 10, 14, 19]
    assert hashes(read_frames(path, chosen(sound))) == hashes(expected[sound])
    for spoilt in (7, 8, 9):
        with pytest.raises(DecodeError, match='is damaged: 3 of its 20 frames, 1 of them wanted'):
            read_frames(path, chosen([spoilt, 0]))
    with pytest.raises(DecodeError, match='is damaged: 3 of its 20 frames, 3 of them wanted'):
        read_frames(path, np.arange)


def test_a_stream_that_does_not_say_how_far_frames_are_reordered(folder, request):
    path = made(
        folder, 'hinted.mp4', 'libx264', {'g': '20', 'preset': 'veryfast', 'bf': '3', 'profile': 'main', 'refs': '4'}
    )
    data = path.read_bytes()
    start = data.index(b'avcC') + 4
    size = int.from_bytes(data[start + 6 : start + 8], 'big')
    sps = data[start + 8 : start + 8 + size]
    bits = Bits(sps[4:].replace(b'\0\0\3', b'\0\0'))
    bits.ue()
    bits.ue()
    if bits.ue() == 0:
        bits.ue()
    bits.ue()
    bits.u(1)
    bits.ue()
    bits.ue()
    assert bits.u(1) == 1  # frames, not fields
    bits.u(1)
    if bits.u(1):
        for _ in range(4):
            bits.ue()
    assert bits.u(1) == 1  # the hints follow
    text = bits.text[: bits.at - 1] + '01'
    text += '0' * (-len(text) % 8)
    body = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    assert b'\0\0' not in body
    stripped = (sps[:4] + body).ljust(size, b'\0')  # zeros after the end are allowed
    bare = folder / 'bare.mp4'
    bare.write_bytes(data[: start + 8] + stripped + data[start + 8 + size :])
    # MP4 shows the delay by its times; from elsewhere a decoder learns it only as frames come too late.
    again, counted = (remux(bare, folder / name, lambda _, packet: packet) for name in ('bare.mkv', 'bare.flv'))
    expected = sequential(path)
    check(counted, expected)
    request.getfixturevalue('no_counting')
    check(bare, expected)
    check(again, expected)


def test_pictures_that_only_higher_layers_refer_to_are_decoded(folder, no_counting):
    if not available('libx265'):
        pytest.skip('this FFmpeg has no libx265')
    params = 'keyint=32:bframes=3:b-adapt=0:temporal-layers=3'
    whole = made(folder, 'layers.mp4', 'libx265', {'preset': 'ultrafast', 'x265-params': params})

    def rename(position, packet):
        """Marks references of a middle layer as such for higher layers only, as the standard allows."""
        data = bytearray(bytes(packet))
        at = 0
        while at + 6 <= len(data):
            kind, layer = data[at + 4] >> 1 & 0x3F, (data[at + 5] & 7) - 1
            if layer > 0 and kind in (1, 3, 5):
                data[at + 4] &= ~2  # the last bit of the kind: 1 reference, 0 none within the layer
            at += 4 + int.from_bytes(data[at : at + 4], 'big')
        changed = av.Packet(bytes(data))
        changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
        changed.is_keyframe = packet.is_keyframe
        return changed

    path = remux(whole, folder / 'renamed.mp4', rename)
    expected = sequential(path)
    assert hashes(expected) == hashes(sequential(whole))
    assert path.read_bytes() != whole.read_bytes()
    check(path, expected)


def with_sound(path, cover=False, codec='libx264'):
    with av.open(str(path), 'w') as container:
        picture_first = container.add_stream('mjpeg', rate=1) if cover else None
        video = container.add_stream(codec, rate=30, options=GOP)
        video.height, video.width, video.pix_fmt = 48, 64, 'yuv420p'
        sound = container.add_stream('aac', rate=48000, layout='mono')
        if picture_first is not None:
            picture_first.height, picture_first.width, picture_first.pix_fmt = 32, 32, 'yuvj420p'
            picture_first.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(picture(9, 32, 32), format='rgb24')
            frame.pts = 0
            container.mux([*picture_first.encode(frame), *picture_first.encode(None)])
        for i in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(picture(i, 48, 64), format='rgb24')
            frame.pts = i
            container.mux(video.encode(frame))
            wave = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), format='fltp', layout='mono')
            wave.sample_rate, wave.pts = 48000, 1600 * i
            container.mux(sound.encode(wave))
        container.mux([*video.encode(None), *sound.encode(None)])
    return path


@pytest.mark.parametrize('name', ['sound.mp4', 'sound.mkv', 'sound.ts'])
def test_sound_beside_the_video(name, folder, no_counting):
    path = with_sound(folder / name)
    check(path, sequential(path))


def test_a_cover_picture_before_the_video(folder, no_counting):
    path = with_sound(folder / 'cover.mp4', cover=True)
    with av.open(str(path)) as container:
        names = [stream.codec_context.name for stream in container.streams.video]
        assert sorted(names) == ['h264', 'mjpeg']
        frames = container.decode(container.streams.video[names.index('h264')])
        expected = np.stack([frame.to_ndarray(format='rgb24') for frame in frames])
    check(path, expected)


def test_a_wrong_extension_changes_nothing(mp4, folder):
    expected = sequential(mp4)
    for name in ('video.avi', 'video.txt', 'video.jpg', 'video'):
        path = folder / name
        path.write_bytes(mp4.read_bytes())
        np.testing.assert_array_equal(read_frames(path, chosen([7, 3])), expected[[7, 3]])


def test_a_changed_size_is_refused_only_where_it_is_asked_for(folder):
    for name, width in (('small', 64), ('large', 96)):
        encode(folder / f'{name}.h264', 'libx264', frames=6, height=48, width=width, **GOP)
    path = folder / 'changing.h264'
    path.write_bytes((folder / 'small.h264').read_bytes() + (folder / 'large.h264').read_bytes())
    assert read_frames(path, chosen([0, 5])).shape == (2, 48, 64, 3)
    assert read_frames(path, chosen([6, 11])).shape == (2, 48, 96, 3)
    with pytest.raises(DecodeError, match='changes its frame size on the way'):
        read_frames(path, chosen([0, 11]))


def test_long_gaps_are_jumped_over(folder, monkeypatch, no_counting):
    monkeypatch.setattr(packets, '_KEEP_BYTES', 0)
    monkeypatch.setattr(packets, '_JUMP', 4)
    for name in ('jump.mp4', 'jump.mkv'):
        path = encode(folder / name, 'libx264', frames=60, height=48, width=64, **{**GOP, 'x264-params': 'open-gop=1'})
        expected = sequential(path)
        with opened(path) as video:
            index = packets.read_index(video)
            assert index.packets is None
        for ids in ([59], [3, 30, 58], [0, 59], list(range(0, 60, 9)), list(range(60))):
            np.testing.assert_array_equal(read_frames(path, chosen(ids)), expected[ids])
