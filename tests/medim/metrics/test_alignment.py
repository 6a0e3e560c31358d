import numpy as np
import pytest

from medim.metrics.alignment import PhantomJudge, alignment

LABELS = ("left effusion", "right effusion", "cardiomegaly")
PICTURES = np.arange(4, dtype=np.uint8).repeat(48).reshape(4, 4, 4, 3)
SHOWN = ({}, {"left effusion": "present"}, {"left effusion": "present", "cardiomegaly": "uncertain"}, {})
REPORTS = ["", "left", "right", "left"]


class Words:
    """Reads a side out of a report."""

    def read(self, report):
        return {f"{report} effusion": "present"} if report else {}

    def is_valid(self, sentence):
        return True


def read_images(images):
    return [SHOWN[int(image[0, 0, 0])] for image in images]


JUDGE = PhantomJudge(Words(), read_images, LABELS)


def test_agreement_pair_by_pair():
    np.testing.assert_allclose(JUDGE.scores(PICTURES, REPORTS), [1, 1, 0, 0])
    partly = JUDGE.scores(PICTURES[2:3], ["left"])  # TP 1, said 1, shown 1.5
    np.testing.assert_allclose(partly, 2 / 2.5)


def test_mean_with_interval():
    got = alignment(JUDGE, PICTURES, REPORTS, seed=0, resamples=200)
    assert got.value == 0.5
    assert got.n == 4
    assert got.low < 0.5 < got.high


def test_shuffled_reports_agree_less():
    order = [1, 0, 3, 2]
    told = ["", "left", "left", ""]
    right = alignment(JUDGE, PICTURES, told, 0, 50).value
    assert right > 0.9
    assert alignment(JUDGE, PICTURES, [told[i] for i in order], 0, 50).value == 0


def test_numbers_must_fit():
    with pytest.raises(ValueError, match="4 pictures and 3 reports"):
        alignment(JUDGE, PICTURES, REPORTS[:3], 0, 10)
    with pytest.raises(ValueError, match="4 pictures and 3 reports"):
        JUDGE.scores(PICTURES, REPORTS[:3])


@pytest.mark.parametrize("bad", [np.array([0, 0.5, 1.2, 1]), np.array([0, np.nan, 1, 1]), np.ones(3)])
def test_a_judge_outside_its_range_is_an_error(bad):
    class Bad:
        def scores(self, images, reports):
            return bad

    with pytest.raises(ValueError, match="Bad gave scores"):
        alignment(Bad(), PICTURES, REPORTS, 0, 10)
