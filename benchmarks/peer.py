"""A peer that needs a process of its own: started once, then asked for one round at a time."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any


class Peer:
    """A process that answers requests, each a line of JSON in and a line of JSON out.

    Between requests it waits and uses no processor, so that rounds can take turns.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None):
        """Start the process and wait for its first line, its `facts`."""
        self._words = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the process)
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.facts = self._read()

    def ask(self, request: Any) -> Any:
        """Send a request and wait for its answer.

        Raises:
          RuntimeError: with the process's last words, if it has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: `_read` says how
        return self._read()

    def close(self) -> None:
        """Let the process end, and wait for it."""
        try:
            self._process.communicate()
        except BrokenPipeError:
            self._process.wait()
        self._words.close()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._words.seek(0)
            raise RuntimeError(
                f"the peer ended with code {code}; its last words:\n{self._words.read()[-2000:]}"
            )
        return json.loads(line)


def close_together(peers: Collection[Peer]) -> None:
    """Close peers that are one run: each waits at its end for the others."""
    with ThreadPoolExecutor(len(peers)) as pool:
        list(pool.map(Peer.close, peers))


def serve(prepare: Callable[[], tuple[Any, Callable[[Any], Any]]]) -> None:
    """Be a peer: send the facts, then answer requests until the input ends.

    Args:
      prepare: returns the facts and the function that answers.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers

    def send(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    facts, answer = prepare()
    send(facts)
    for line in sys.stdin:
        send(answer(json.loads(line)))


def trainer_clock() -> Any:
    """Return a callback that times a transformers `Trainer`'s loop: `wall` and `cpu` seconds."""
    import transformers

    class Clock(transformers.TrainerCallback):
        """Times the training loop, from its begin to its end."""

        def on_train_begin(self, *args: Any, **others: Any) -> None:
            self.wall, self.cpu = time.perf_counter(), time.process_time()

        def on_train_end(self, *args: Any, **others: Any) -> None:
            self.wall = time.perf_counter() - self.wall
            self.cpu = time.process_time() - self.cpu

    return Clock()
