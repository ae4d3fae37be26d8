"""A look at the tables of an MP4 or QuickTime file before FFmpeg reads them.

Such a file may state in a few bytes that it has a thousand million samples. FFmpeg's list of them, some 40 bytes for
each, is made when the file is opened: before any time limit or limit of the frame size can act. So the claims are
first held against the file's length.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

from mvdjax.data.watchdog import UnreadableError

_PARENTS = (b'moov', b'trak', b'mdia', b'minf', b'stbl', b'edts', b'mvex', b'moof', b'traf')
_FIRST = (b'ftyp', b'moov', b'moof', b'mdat', b'free', b'skip', b'wide', b'pnot', b'styp', b'sidx', b'uuid', b'udta')
_DEPTH = 10  # FFmpeg goes no deeper
_BOXES = 1_000_000
# A sample of sound may be as short as a sixth of a byte; nothing real has shorter ones. The second number spares small
# files the sum.
_PER_BYTE, _ALWAYS = 8, 1_000_000
_EDITED = 10_000_000


@dataclass
class _Claims:
    """What the boxes seen so far say."""

    boxes: int = 0
    samples: int = 0  # of the whole file, those without a table entry of their own
    listed: int = 0  # of the present track
    edits: int = 0


def check(file: io.RawIOBase | io.BytesIO) -> None:
    """Refuses an MP4 or QuickTime file whose tables cannot be true; other files are not looked at.

    Args:
        file: open; its position is changed.

    Raises:
        UnreadableError: impossible claims.
    """
    length = file.seek(0, io.SEEK_END)
    file.seek(4)
    if (file.read(4) or b'') in _FIRST:
        _walk(file, 0, length, 0, length, _Claims())


def _walk(file: io.RawIOBase | io.BytesIO, at: int, end: int, depth: int, length: int, claims: _Claims) -> None:
    """Looks at the boxes from `at` to `end`."""
    while at + 8 <= end:
        file.seek(at)
        head = file.read(16) or b''
        if len(head) < 8:
            return
        size, kind = struct.unpack('>I4s', head[:8])
        start = at + 8
        if size == 1 and len(head) == 16:
            size, start = struct.unpack('>Q', head[8:])[0], at + 16
        elif size == 0:
            size = end - at
        if size < 8:
            return  # FFmpeg stops here too
        claims.boxes += 1
        if claims.boxes > _BOXES:
            raise UnreadableError(f'has more than {_BOXES} boxes')
        stop = min(at + size, end)
        if kind in _PARENTS and depth < _DEPTH:
            if kind == b'trak':
                claims.listed = claims.edits = 0
            _walk(file, start, stop, depth + 1, length, claims)
        else:
            _look(file, kind, start, stop, length, claims)
        at += size


def _look(file: io.RawIOBase | io.BytesIO, kind: bytes, start: int, stop: int, length: int, claims: _Claims) -> None:
    """Adds up what one box claims."""
    if kind == b'cmov':
        raise UnreadableError('has a compressed header, which is not read: remux it')
    if kind not in (b'stsz', b'stz2', b'trun', b'elst'):
        return
    file.seek(start)
    body = (file.read(min(12, stop - start)) or b'').ljust(12, b'\0')
    flags, first, second = struct.unpack('>III', body)
    if kind == b'stsz':
        claims.listed = max(claims.listed, second)
        claims.samples += second if first else 0  # with no common size, each sample has its own entry
    elif kind == b'stz2':
        claims.listed = max(claims.listed, second)
    elif kind == b'trun':
        claims.samples += 0 if flags & 0xF00 else first  # likewise
    else:
        claims.edits += min(first, (stop - start) // 12)
    if claims.samples > _PER_BYTE * length + _ALWAYS:
        raise UnreadableError(f'claims {claims.samples} samples in {length} bytes')
    if claims.edits > 1 and claims.edits * min(claims.listed, length + _ALWAYS) > _EDITED:
        raise UnreadableError(f'claims an edit list of {claims.edits} parts over {claims.listed} samples')
