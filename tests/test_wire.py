import contextlib
import socket
import threading
import time

import pytest
from multiprocess import free_port

from mvdjax.errors import UserError
from mvdjax.hub import Hub
from mvdjax.wire import Spoke, next_mention

LOST = 75


class Ends:
    """What the ends of a line were told to end with."""

    def __init__(self):
        self.found = []
        self.hangs = None
        self._any = threading.Event()

    def __call__(self, text, code, hangs):
        self.found.append((text, code))
        self.hangs = hangs
        self._any.set()

    def wait(self):
        assert self._any.wait(10)
        return self.found


def card(process):
    return {'host': f'host{process}'}


@contextlib.contextmanager
def line(count, heartbeat=10.0, missing=()):
    """(hub, {process: spoke}, {process: Ends}), all but `missing` connected; the roll is called."""
    port = free_port()
    ends = {i: Ends() for i in range(count)}
    hub = Hub(port, count, card(0), heartbeat, ends[0], LOST)
    spokes = {
        i: Spoke(f'127.0.0.1:{port}', i, count, card(i), heartbeat, ends[i], LOST)
        for i in range(1, count)
        if i not in missing
    }

    def come(spoke):
        with contextlib.suppress(UserError):
            spoke.roll_call(10, lambda _: None)

    threads = [threading.Thread(target=come, args=(spoke,)) for spoke in spokes.values()]
    for thread in threads:
        thread.start()
    try:
        if not missing:
            cards = hub.roll_call(10, lambda _: None)
            assert [c['host'] for c in cards] == [f'host{i}' for i in range(count)]
            hub.begin([{'host': c['host']} for c in cards])
            for thread in threads:
                thread.join()
        yield hub, spokes, ends
    finally:
        for end in (*spokes.values(), hub):
            end.bye()


def everywhere(hub, spokes, function):
    """Calls `function(end, process)` on all ends at once; what they return, by process."""
    found = {}

    def call(process, end):
        try:
            found[process] = function(end, process)
        except UserError as error:
            found[process] = str(error)

    threads = [threading.Thread(target=call, args=item) for item in {0: hub, **spokes}.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[i] for i in sorted(found)]


def test_values_come_round_in_order():
    with line(4) as (hub, spokes, _):
        for turn in range(3):
            values = everywhere(hub, spokes, lambda end, i, t=turn: end.exchange(f'x {t}', {'i': i, 't': t}, 10))
            assert values == [[{'i': i, 't': turn} for i in range(4)]] * 4


def test_the_port_is_free_once_all_are_here_and_the_line_goes_on():
    with line(2) as (hub, spokes, _):
        port = int(spokes[1].address.rpartition(':')[2])
        with socket.create_server(('127.0.0.1', port)):
            assert everywhere(hub, spokes, lambda end, i: end.exchange('x', i, 10)) == [[0, 1], [0, 1]]


def test_who_is_missing_is_named():
    with line(4, missing=(1, 3)) as (hub, _, _):
        told = []
        assert hub.roll_call(1.0, told.append) is None
        assert hub.missing() == [1, 3]
    assert [next_mention(t) for t in (0, 5, 29, 30, 61)] == [5, 15, 30, 60, 120]


def test_who_is_late_at_a_barrier_is_named():
    with line(3, heartbeat=2.0) as (hub, spokes, _):
        others = {1: spokes[1]}
        found = everywhere(hub, others, lambda end, i: end.exchange('save 7', i, 0.5))
        assert "'save 7' without process 2 on host2" in found[0]


def test_a_process_that_dies_is_named_to_all():
    with line(3) as (_, spokes, ends):
        spokes[2].over = True
        spokes[2]._line.socket.shutdown(socket.SHUT_RDWR)
        for process in (0, 1):
            ((text, code),) = ends[process].wait()
            assert 'process 2 on host2 was lost' in text
            assert code == LOST


def test_a_process_that_falls_silent_is_named_to_all():
    with line(3, heartbeat=1.5) as (_, spokes, ends):
        spokes[1].over = True  # its thread ends, its connection stays
        for process in (0, 2):
            ((text, _),) = ends[process].wait()
            assert 'process 1 on host1 was lost: no sign of life for 1.5 s' in text


def test_process_0_that_dies_is_named():
    with line(2) as (hub, _, ends):
        hub.over = True
        for connection in hub._lines.values():
            connection.socket.shutdown(socket.SHUT_RDWR)
        ((text, code),) = ends[1].wait()
        assert 'process 0 on host0 was lost' in text
        assert code == LOST


def test_an_error_travels_with_its_sentence_and_its_code():
    with line(3) as (_, spokes, ends):
        spokes[1].fail('the list is broken: repair it', 1)
        for process in (0, 2):
            assert ends[process].wait() == [('process 1 on host1 has ended: the list is broken: repair it', 1)]
            assert ends[process].hangs is False
        time.sleep(0.2)
        assert ends[1].found == []


@pytest.mark.parametrize('process', [0, 1])
def test_a_hang_travels_as_one(process):
    with line(3) as (hub, spokes, ends):
        (hub if process == 0 else spokes[process]).fail('no step for 30 minutes', LOST, hangs=True)
        for other in {0, 1, 2} - {process}:
            assert ends[other].wait()[0][0].endswith('no step for 30 minutes')
            assert ends[other].hangs is True


def test_leaving_in_peace_alarms_nobody():
    with line(2, heartbeat=2.0) as (hub, spokes, ends):
        for end in (spokes[1], hub):
            end.bye()
        time.sleep(0.5)
        assert ends[0].found == ends[1].found == []


def test_a_number_given_twice_and_another_number_of_processes():
    for other, said in (
        (Spoke, 'two processes were started as number 1'),
        (None, 'one of 4, process 0 on host0 as one'),
    ):
        with line(3, missing=(2,)) as (hub, spokes, ends):
            while 1 not in hub.cards:
                time.sleep(0.01)
            port = spokes[1].address
            number, count = (1, 3) if other else (2, 4)
            late = Spoke(port, number, count, card(9), 10, Ends(), LOST)
            with pytest.raises(UserError, match=said):
                late.roll_call(10, lambda _: None)
            assert said in ends[0].wait()[0][0]
            late._line.close()


def test_a_process_that_starts_again_before_all_are_here_is_welcome():
    with line(3, missing=(1, 2)) as (hub, _, ends):
        port = hub._listener.getsockname()[1]
        for _ in range(2):
            spoke = Spoke(f'127.0.0.1:{port}', 1, 3, card(1), 10, Ends(), LOST)
            spoke._connect(5)
            until = time.monotonic() + 5
            while 1 not in hub.cards and time.monotonic() < until:
                time.sleep(0.01)
            assert hub.missing() == [2]
            spoke._line.close()
            while 1 in hub.cards and time.monotonic() < until:
                time.sleep(0.01)
        assert hub.missing() == [1, 2]
        assert ends[0].found == []


def test_strangers_are_shown_the_door():
    with line(2, missing=(1,)) as (hub, _, ends):
        port = hub._listener.getsockname()[1]
        for data in (b'GET / HTTP/1.0\r\n\r\n', b'{"hello": "other"}\n', b'[1]\n', b'\x00\xff\n'):
            with socket.create_connection(('127.0.0.1', port)) as stranger:
                stranger.sendall(data)
                stranger.settimeout(5)
                with contextlib.suppress(ConnectionResetError):
                    assert stranger.recv(1) == b''
        assert hub.missing() == [1]
        assert ends[0].found == []


def test_a_port_that_is_taken():
    with socket.create_server(('', port := free_port())), pytest.raises(UserError, match=f'port {port} .*another port'):
        Hub(port, 2, card(0), 10, Ends(), LOST)
