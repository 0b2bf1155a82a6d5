"""A program on a pseudo-terminal, and what its screen shows: enough of a VT100 for ncurses with TERM=vt100 or linux."""
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time

SEQUENCE = re.compile(rb"\x1b(?:\[([?>]?)([0-9;]*)([@-~])|[()][A-Za-z0-9]|[=>78cDEHM]|#8)|[\x0e\x0f\x07]")


class Terminal:
    """Starts a command; `screen` is what stands there, `raw` all that it has written."""

    def __init__(self, command, rows=24, columns=80, **environment):
        self.rows, self.columns = rows, columns
        self.lines = [[" "] * columns for _ in range(rows)]
        self.row = self.column = 0
        self.strict = True
        self.raw = self.left = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(environment)
            os.execv(command[0], command)
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.fd)

    def resize(self, rows, columns):
        self.rows, self.columns = rows, columns
        self.lines = [(line + [" "] * columns)[:columns] for line in self.lines + [[] for _ in range(rows)]][:rows]
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def feed(self, data):
        self.raw += data
        data, self.left = self.left + data, b""
        at = 0
        while at < len(data):
            found = SEQUENCE.match(data, at)
            if found:
                if found[3]:
                    self.control(found[3], [int(n or 0) for n in found[2].split(b";")], bool(found[1]))
                at = found.end()
            elif data[at] == 0x1b and len(data) - at < 16:
                self.left = data[at:]  # the rest of it comes later
                return
            elif data[at] >= 0x80:
                size = 4 if data[at] >= 0xf0 else 3 if data[at] >= 0xe0 else 2
                if len(data) - at < size:
                    self.left = data[at:]
                    return
                self.write(data[at:at + size].decode())
                at += size
            else:
                self.plain(data[at])
                at += 1

    def plain(self, byte):
        if byte == 0x0d:
            self.column = 0
        elif byte == 0x0a:
            self.row = min(self.row + 1, self.rows - 1)
        elif byte == 0x08:
            self.column = max(self.column - 1, 0)
        elif byte == 0x09:
            self.column = min(self.column // 8 * 8 + 8, self.columns - 1)
        elif byte >= 0x20:
            self.write(chr(byte))

    def write(self, character):
        if self.column >= self.columns:
            self.column, self.row = 0, min(self.row + 1, self.rows - 1)
        self.lines[self.row][self.column] = character
        self.column += 1

    def control(self, final, numbers, private):
        n = max(numbers[0], 1)
        if final in b"Hf":
            self.row = min(n, self.rows) - 1
            self.column = min(max(numbers[1] if len(numbers) > 1 else 1, 1), self.columns) - 1
        elif final in b"ABCD":
            self.row = min(max(self.row + {b"A": -n, b"B": n}.get(final, 0), 0), self.rows - 1)
            self.column = min(max(self.column + {b"C": n, b"D": -n}.get(final, 0), 0), self.columns - 1)
        elif final == b"d":
            self.row = min(n, self.rows) - 1
        elif final == b"G":
            self.column = min(n, self.columns) - 1
        elif final == b"K":
            first, behind = {0: (self.column, self.columns), 1: (0, self.column + 1), 2: (0, self.columns)}[numbers[0]]
            self.lines[self.row][first:behind] = [" "] * (behind - first)
        elif final == b"J":
            if numbers[0] == 2:
                self.lines = [[" "] * self.columns for _ in range(self.rows)]
            else:
                self.lines[self.row][self.column:] = [" "] * (self.columns - self.column)
                for row in range(self.row + 1, self.rows):
                    self.lines[row] = [" "] * self.columns
        elif final == b"X":
            self.lines[self.row][self.column:self.column + n] = [" "] * min(n, self.columns - self.column)
        elif self.strict and final not in b"mhlrcn":
            raise AssertionError(f"a sequence that this terminal does not know: {final} {numbers}")

    @property
    def screen(self):
        return "\n".join("".join(line).rstrip() for line in self.lines)

    def pump(self, seconds):
        """Takes what comes within that time; False once the program has closed its side."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.feed(data)
        return bool(data)

    def wait_for(self, condition, limit_s=30):
        """Until the condition of the screen holds; a string: until it stands there."""
        holds = condition if callable(condition) else lambda screen: condition in screen
        deadline = time.monotonic() + limit_s
        while not holds(self.screen):
            if time.monotonic() > deadline or not self.pump(0.1):
                raise AssertionError(f"the screen does not become {condition}:\n{self.screen}")
        return self.screen

    def press(self, keys):
        os.write(self.fd, keys.encode())

    def end(self, limit_s=20):
        """The exit status, as waitpid has it, of a program that is about to end."""
        deadline = time.monotonic() + limit_s
        while True:
            alive = self.pump(0.1)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                while alive and self.pump(0.05) and select.select([self.fd], [], [], 0)[0]:
                    pass
                self.pid = None
                return status
            if time.monotonic() > deadline:
                raise AssertionError(f"the program does not end:\n{self.screen}")

    def close(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)
