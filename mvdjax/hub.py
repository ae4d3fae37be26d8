"""Process 0's end of the line between the processes of a run, see mvdjax/wire.py."""

import contextlib
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from mvdjax.errors import UserError
from mvdjax.wire import HELLO, End, Line, Message, Side, lost, next_mention


class Hub(Side):
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
        found = self.taken(name, timeout)
        if found is None:
            given = self._rounds.get(name, {})
            late = ', '.join(f'{i} on {self.cards[i]["host"]}' for i in range(self.processes) if i not in given)
            raise UserError(f'{timeout:g} s passed at {name!r} without process {late}: see what it says or hangs at')
        return found

    def fail(self, text: str, code: int, hangs: bool = False) -> None:
        """Tells the others that this process ends, and why."""
        with self.news:
            self.over = True
        self._send_all({'kind': 'end', 'text': text, 'code': code, 'hangs': hangs})

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
            self._send_all({**message, 'text': text}, but=process)
            self.end(text, message['code'], message.get('hangs', False))

    def _lose(self, process: int, why: str) -> None:
        self._left.add(process)
        text = lost(process, self.cards[process]['host'], why)
        self._send_all({'kind': 'end', 'text': text, 'code': self.lost_code}, but=process)
        self.end(text, self.lost_code)


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
