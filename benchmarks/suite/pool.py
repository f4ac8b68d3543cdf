"""Starts the processes of rows, and asks them."""

import multiprocessing
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Any

from benchmarks.suite.worker import Job, serve

SECONDS_TO_ANSWER = 900.0


class Failed(Exception):
    """A row that cannot be measured, with the reason."""


@dataclass(frozen=True, eq=False)
class Worker:
    """The process of one row."""

    job: Job
    process: ForkProcess
    connection: Connection

    @classmethod
    def of(cls, job: Job) -> "Worker":
        """Forks, so that imports are paid once; nothing of torch has run here that a child could inherit broken."""
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, job), daemon=False)
        process.start()
        theirs.close()
        return cls(job, process, ours)

    def ask(self, command: str) -> dict[str, Any]:
        """Sends a command and waits for the answer.

        Raises:
            Failed: With what went wrong there.
        """
        self.send(command)
        return self.answer(command)

    def send(self, command: str) -> None:
        """Sends a command; a process that is gone shows in its answer."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(command)

    def answer(self, command: str) -> dict[str, Any]:
        """Waits for the answer to a command that was sent.

        Raises:
            Failed: With what went wrong there.
        """
        try:
            if not self.connection.poll(SECONDS_TO_ANSWER):
                raise Failed(f"no answer to {command!r} in {SECONDS_TO_ANSWER:.0f} s")
            answer: dict[str, Any] = self.connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.process.join(10)
            raise Failed(f"the process died at {command!r}, exit code {self.process.exitcode}") from None
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def end(self) -> None:
        """Ends the process, whatever it does."""
        try:
            self.connection.send("end")
            self.process.join(10)
        except (BrokenPipeError, ConnectionResetError):
            pass
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()
