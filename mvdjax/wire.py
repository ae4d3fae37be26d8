"""The line between the processes of a run: who is here, who is missing, who has died, and small values to agree on.

Every process keeps one TCP connection to process 0, on which lines of JSON travel: `Hub` is process 0's end, `Spoke`
that of the others. It is there before jax.distributed is, which says nothing while it waits and names nobody when it
gives up, and it outlives no process: a connection that closes, or stays silent, is a process lost, and every other one
learns it.

The hub, in mvdjax/hub.py, listens on the coordinator's own port until all are here, and leaves it, connections kept, to
jax.distributed's service: no second port has to be open between the hosts.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from mvdjax.errors import UserError

HELLO = 'mvdjax-1'  # of the protocol; anything else that connects is shown the door
MAX_LINE = 2**26  # bytes
TELL_AFTER = (5, 15, 30)  # seconds before a wait is mentioned; then every minute

Message = dict[str, Any]
# Called from a thread of the line when the run has to end: (sentence, exit code, whether it hangs).
End = Callable[[str, int, bool], None]


class Line:
    """A connection that carries JSON objects, one to a line."""

    def __init__(self, connection: socket.socket) -> None:
        """Takes over a connected socket."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self.heard = time.monotonic()
        self._rest = b''
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Sends; a connection that is gone is noticed by whoever reads."""
        data = json.dumps(message).encode() + b'\n'
        with self._lock, contextlib.suppress(OSError):
            self.socket.sendall(data)

    def read(self) -> list[Message]:
        """What has arrived, which may be nothing yet.

        Raises:
          EOFError: the connection has closed.
          ValueError: what came is none of ours.
        """
        try:
            data = self.socket.recv(2**16)
        except (BlockingIOError, TimeoutError):
            return []
        except OSError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b'\n')
        if len(self._rest) > MAX_LINE:
            raise ValueError('a line without end')
        found = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in found):
            raise ValueError('not an object')
        return found

    def close(self) -> None:
        """Closes."""
        with contextlib.suppress(OSError):
            self.socket.close()


def next_mention(waited: float) -> float:
    """Seconds of waiting after which to say so (again)."""
    return next((t for t in TELL_AFTER if t > waited), (waited // 60 + 1) * 60)


def lost(process: int, host: str, why: str) -> str:
    """The sentence about a process that has gone."""
    return (
        f'process {process} on {host} was lost: {why}; start the same command again to go on from the last checkpoint'
    )


class Side:
    """What both ends share: the values that have come round, and ending only once."""

    def __init__(self, heartbeat: float, on_end: End) -> None:
        """`heartbeat` in seconds of silence; `on_end` is called at most once."""
        self.heartbeat, self._on_end = heartbeat, on_end
        self.news = threading.Condition()
        self.done: dict[str, list[Any]] = {}
        self.over = False  # nothing that happens to a connection means anything any more
        self.thread = threading.Thread(target=self._serve, daemon=True, name='mvdjax-line')

    def _serve(self) -> None:
        raise NotImplementedError

    def end(self, text: str, code: int, hangs: bool = False) -> None:
        """Another process has ended, or is lost."""
        with self.news:
            over, self.over = self.over, True
        if not over:
            self._on_end(text, code, hangs)

    def taken(self, name: str, timeout: float) -> list[Any] | None:
        """Waits for the values of a name, and takes them; None when time is up."""
        with self.news:
            self.news.wait_for(lambda: name in self.done, timeout)
            return self.done.pop(name, None)


class Spoke(Side):
    """The end of every other process."""

    def __init__(
        self,
        address: str,
        process: int,
        processes: int,
        card: Mapping[str, Any],
        heartbeat: float,
        on_end: End,
        lost_code: int,
    ) -> None:
        """Nothing is connected yet; the arguments are `Hub`'s, but for the coordinator's `address` HOST:PORT."""
        super().__init__(heartbeat, on_end)
        self.address, self.process, self.processes, self.card, self.lost_code = (
            address,
            process,
            processes,
            card,
            lost_code,
        )
        self._line: Line | None = None
        self._host = address.rpartition(':')[0]

    def roll_call(self, timeout: float, tell: Callable[[str], None]) -> list[Any] | None:
        """Finds process 0 and waits until it has found everybody.

        Args:
          timeout: seconds to wait for process 0. Waiting for the others is process 0's business.
          tell: called now and then with what is being waited for.

        Returns:
          What the processes may know of each other, or None when time is up.

        Raises:
          UserError: process 0 has found that this run cannot start.
        """
        begin = time.monotonic()
        mention = next_mention(0)
        while (waited := time.monotonic() - begin) < timeout:
            if waited >= mention:
                tell('process 0' if self._line is None else 'all processes to start')
                mention = next_mention(waited)
            if self._line is None:
                self._connect(min(5.0, timeout - waited))
                continue
            try:
                for message in self._line.read():
                    if message['kind'] == 'begin':
                        self._host = message['seen'][0]['host']
                        self.thread.start()
                        return message['seen']
                    if message['kind'] == 'end':
                        raise UserError(message['text'])
            except (EOFError, ValueError, KeyError):
                self._line.close()
                self._line = None
                time.sleep(0.5)
        return None

    def exchange(self, name: str, value: Any, timeout: float) -> list[Any]:
        """As `Hub.exchange`."""
        self._send({'kind': 'put', 'name': name, 'value': value})
        found = self.taken(name, timeout + self.heartbeat)  # process 0 gives up first: it knows who is late
        if found is None:
            raise UserError(f'{timeout:g} s passed at {name!r} without an answer from process 0 on {self._host}')
        return found

    def fail(self, text: str, code: int, hangs: bool = False) -> None:
        """Tells the others that this process ends, and why."""
        with self.news:
            self.over = True
        self._send({'kind': 'end', 'text': text, 'code': code, 'hangs': hangs})

    def bye(self) -> None:
        """Ends the line in peace; the others leave at the same point of the program."""
        self._send({'kind': 'bye'})
        with self.news:
            self.over = True
        if self.thread.is_alive():
            self.thread.join(5)
        if self._line is not None:
            self._line.close()

    def _send(self, message: Message) -> None:
        if self._line is not None:
            self._line.send(message)

    def _connect(self, timeout: float) -> None:
        host, _, port = self.address.rpartition(':')
        try:
            connection = socket.create_connection((host.strip('[]'), int(port)), timeout)
        except OSError:  # not started, not reachable, or a name that is not known yet
            time.sleep(min(0.5, timeout))
            return
        connection.settimeout(1.0)
        self._line = Line(connection)
        hello = {'hello': HELLO, 'process': self.process, 'processes': self.processes, 'card': dict(self.card)}
        self._line.send(hello)

    def _serve(self) -> None:
        line = self._line
        assert line is not None
        line.heard = time.monotonic()
        pause = min(5.0, self.heartbeat / 4)
        line.socket.settimeout(min(pause, 0.5))
        ping = time.monotonic()
        while not self.over:
            try:
                for message in line.read():
                    if message['kind'] == 'all':
                        with self.news:
                            self.done[message['name']] = message['values']
                            self.news.notify_all()
                    elif message['kind'] == 'end':
                        self.end(message['text'], message['code'], message.get('hangs', False))
                    elif message['kind'] == 'bye':
                        return
            except (EOFError, ValueError):
                why = 'its connection closed without a word (killed, out of memory, or crashed)'
                self.end(lost(0, self._host, why), self.lost_code)
                return
            now = time.monotonic()
            if now - ping >= pause:
                ping = now
                line.send({'kind': 'ping'})
            if now - line.heard > self.heartbeat:
                why = f'no sign of life for {self.heartbeat:g} s (run.heartbeat_timeout)'
                self.end(lost(0, self._host, why), self.lost_code)
