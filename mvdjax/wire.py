"""The line between the processes of a run: who is here, who is missing, who has died, and small values to agree on.

Every process keeps one TCP connection to process 0, on which lines of JSON travel: `Hub` is process 0's end, `Spoke`
that of the others. It is there before jax.distributed is, which says nothing while it waits and names nobody when it
gives up, and it outlives no process: a connection that closes, or stays silent, is a process lost, and every other one
learns it.

The hub listens on the coordinator's own port until all are here, and leaves it, connections kept, to jax.distributed's
service: no second port has to be open between the hosts.
"""

import contextlib
import json
import selectors
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
# Called from a thread of the line when the run has to end: (sentence, exit code).
End = Callable[[str, int], None]


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


class _End:
    """What both ends share: the values that have come round, and ending only once."""

    def __init__(self, heartbeat: float, on_end: End) -> None:
        self.heartbeat, self._on_end = heartbeat, on_end
        self.news = threading.Condition()
        self.done: dict[str, list[Any]] = {}
        self.over = False  # nothing that happens to a connection means anything any more
        self.thread = threading.Thread(target=self._serve, daemon=True, name='mvdjax-line')

    def _serve(self) -> None:
        raise NotImplementedError

    def end(self, text: str, code: int) -> None:
        with self.news:
            over, self.over = self.over, True
        if not over:
            self._on_end(text, code)

    def _taken(self, name: str, timeout: float) -> list[Any] | None:
        with self.news:
            self.news.wait_for(lambda: name in self.done, timeout)
            return self.done.pop(name, None)


class Hub(_End):
    """Process 0's end."""

    def __init__(
        self, port: int, processes: int, card: Mapping[str, Any], heartbeat: float, on_end: End, lost_code: int
    ) -> None:
        """Listens.

        Args:
          port: the coordinator's.
          processes: of the run, this one included.
          card: what this process says of itself, see `startup_checks`; it has a 'host'.
          heartbeat: seconds without a sign of life after which a process counts as lost.
          on_end: called when another process has failed or is lost.
          lost_code: exit code for the latter.

        Raises:
          UserError: the port is taken.
        """
        super().__init__(heartbeat, on_end)
        self.processes, self.lost_code = processes, lost_code
        self.cards: dict[int, Mapping[str, Any]] = {0: card}
        self._lines: dict[int, Line] = {}
        self._left: set[int] = set()
        self._rounds: dict[str, dict[int, Any]] = {}
        self._listener: socket.socket | None = _listen(port)
        self._started = False
        self._open: set[Line] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.thread.start()

    def roll_call(self, timeout: float, tell: Callable[[list[int]], None]) -> list[Mapping[str, Any]] | None:
        """Waits until all processes are here.

        Args:
          timeout: seconds.
          tell: called now and then with those that are missing.

        Returns:
          The cards by process, or None when time is up.
        """
        begin = time.monotonic()
        mention = next_mention(0)
        with self.news:
            while missing := self.missing():
                waited = time.monotonic() - begin
                if waited >= timeout:
                    return None
                if waited >= mention:
                    tell(missing)
                    mention = next_mention(waited)
                self.news.wait(min(1.0, timeout - waited))
            return [self.cards[i] for i in range(self.processes)]

    def missing(self) -> list[int]:
        """The processes that are not here."""
        return [i for i in range(self.processes) if i not in self.cards]

    def begin(self, seen: list[Any]) -> None:
        """Frees the port and lets the others go on, with what they may know of each other."""
        with self.news:
            self._started = True
            if self._listener is not None:
                self._selector.unregister(self._listener)
                self._listener.close()
                self._listener = None
            for line in self._lines.values():
                line.heard = time.monotonic()
        self._send_all({'kind': 'begin', 'seen': seen})

    def exchange(self, name: str, value: Any, timeout: float) -> list[Any]:
        """The values that all processes give for a name, by process.

        Raises:
          UserError: one has not given its within `timeout` seconds.
        """
        self._put(0, name, value)
        found = self._taken(name, timeout)
        if found is None:
            given = self._rounds.get(name, {})
            late = ', '.join(f'{i} on {self.cards[i]["host"]}' for i in range(self.processes) if i not in given)
            raise UserError(f'{timeout:g} s passed at {name!r} without process {late}: see what it says or hangs at')
        return found

    def fail(self, text: str, code: int) -> None:
        """Tells the others that this process ends, and why."""
        with self.news:
            self.over = True
        self._send_all({'kind': 'end', 'text': text, 'code': code})

    def bye(self) -> None:
        """Ends the line in peace; the others leave at the same point of the program."""
        self._send_all({'kind': 'bye'})
        with self.news:
            self.over = True
        self.thread.join(5)
        for line in self._open:
            line.close()
        if self._listener is not None:
            self._listener.close()
        self._selector.close()

    def _send_all(self, message: Message, but: int | None = None) -> None:
        for process, line in list(self._lines.items()):
            if process != but:
                line.send(message)

    def _put(self, process: int, name: str, value: Any) -> None:
        with self.news:
            given = self._rounds.setdefault(name, {})
            given[process] = value
            if len(given) < self.processes:
                return
            values = [given[i] for i in range(self.processes)]
            del self._rounds[name]
            self.done[name] = values
            self.news.notify_all()
        self._send_all({'kind': 'all', 'name': name, 'values': values})

    def _serve(self) -> None:
        pause = min(5.0, self.heartbeat / 4)
        ping = time.monotonic()
        while not self.over:
            for key, _ in self._selector.select(min(pause, 0.5)):
                if key.data is None:
                    self._accept()
                else:
                    self._hear(key.data)
            now = time.monotonic()
            if now - ping >= pause:
                ping = now
                self._send_all({'kind': 'ping'})
            if self._started:
                self._check_silence(now)

    def _check_silence(self, now: float) -> None:
        for process, line in list(self._lines.items()):
            if now - line.heard > self.heartbeat and process not in self._left:
                self._lose(process, f'no sign of life for {self.heartbeat:g} s (run.heartbeat_timeout)')

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.settimeout(self.heartbeat)  # of a send; what is read has been announced
            line = Line(connection)
            self._open.add(line)
            self._selector.register(connection, selectors.EVENT_READ, [line, None])

    def _hear(self, who: list[Any]) -> None:
        """Reads from a connection: [line, process, or None before it has said hello]."""
        line, process = who
        try:
            for message in line.read():
                if process is None:
                    process = who[1] = self._welcome(line, message)
                else:
                    self._take(process, message)
        except (EOFError, ValueError):
            self._selector.unregister(line.socket)
            self._open.discard(line)
            line.close()
            if process is None or self._lines.get(process) is not line:
                return
            if not self._started:  # it may come again, started anew
                with self.news:
                    del self._lines[process], self.cards[process]
            elif process not in self._left:
                self._lose(process, 'its connection closed without a word (killed, out of memory, or crashed)')

    def _welcome(self, line: Line, message: Message) -> int:
        """The process that says hello.

        Raises:
          ValueError: it is none of this run's.
        """
        if message.get('hello') != HELLO:
            raise ValueError('not of this program')
        process, card = message['process'], message['card']
        if message['processes'] != self.processes:
            text = (
                f'process {process} on {card["host"]} was started as one of {message["processes"]}, process 0 on '
                f'{self.cards[0]["host"]} as one of {self.processes}: start all with the same number of processes'
            )
        elif process in self.cards:
            text = (
                f'two processes were started as number {process}, on {self.cards[process]["host"]} and on '
                f'{card["host"]}: give each a number of its own'
            )
        else:
            with self.news:
                self.cards[process], self._lines[process] = card, line
                self.news.notify_all()
            return process
        line.send({'kind': 'end', 'text': text, 'code': 1})
        self._send_all({'kind': 'end', 'text': text, 'code': 1})
        self.end(text, 1)
        raise ValueError(text)

    def _take(self, process: int, message: Message) -> None:
        if message['kind'] == 'put':
            self._put(process, message['name'], message['value'])
        elif message['kind'] == 'bye':
            self._left.add(process)
        elif message['kind'] == 'end':
            self._left.add(process)
            text = f'process {process} on {self.cards[process]["host"]} has ended: {message["text"]}'
            self._send_all({'kind': 'end', 'text': text, 'code': message['code']}, but=process)
            self.end(text, message['code'])

    def _lose(self, process: int, why: str) -> None:
        self._left.add(process)
        text = lost(process, self.cards[process]['host'], why)
        self._send_all({'kind': 'end', 'text': text, 'code': self.lost_code}, but=process)
        self.end(text, self.lost_code)


class Spoke(_End):
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
        found = self._taken(name, timeout + self.heartbeat)  # process 0 gives up first: it knows who is late
        if found is None:
            raise UserError(f'{timeout:g} s passed at {name!r} without an answer from process 0 on {self._host}')
        return found

    def fail(self, text: str, code: int) -> None:
        """Tells the others that this process ends, and why."""
        with self.news:
            self.over = True
        self._send({'kind': 'end', 'text': text, 'code': code})

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
                        self.end(message['text'], message['code'])
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


def _listen(port: int) -> socket.socket:
    """A listening socket on all addresses of this host, IPv6 and IPv4 where there are both.

    Raises:
      UserError: the port is taken.
    """
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ('', port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=1024
        )
    except OSError as error:
        raise UserError(
            f'port {port} of this host cannot be opened for the other processes ({error.strerror}): another run may '
            'have it; give the coordinator another port'
        ) from error
