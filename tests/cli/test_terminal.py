"""What is printed in a real terminal, at two widths: no line is wider."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from bishare_dsl.cli.main import COMMANDS
from tests.support.parts import quick

RUN = """
import os, shlex, sys
from bishare_dsl.cli.main import main
for line in sys.argv[1:]:
    sys.stdout.flush()
    os.write(1, f"\\1{line}\\n".encode())
    main(shlex.split(line))
"""
LINES = [
    "plan bishare_ke --model llama-7b",
    "plan lora bishare_ke -m llama-7b -m llama-1-13b --set r=4,8",
    "diff bishare_ss bishare_ke --model mixtral-8x7b",
    "check nolora",
    "explain BS221",
    "specs",
    "plan lora --model llama-7z",
    "--help",
    *(f"{command} --help" for command in COMMANDS),
]


@pytest.mark.parametrize("columns", quick([60, 80], [60]))
def test_no_line_is_wider_than_the_terminal(columns):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-c", RUN, *LINES]
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 1 << 16):
            said += part
    except OSError:  # Linux says that the other end is closed.
        pass
    assert child.wait() == 0
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode()).replace("\r\n", "\n")
    shown = text.split("\1")[1:]
    assert [part.partition("\n")[0] for part in shown] == LINES
    lines = [(part.partition("\n")[0], line) for part in shown for line in part.split("\n")[1:]]
    assert [(command, line) for command, line in lines if len(line) > columns] == []
    assert not any("Traceback" in line for _, line in lines)
