"""What benchmarks/orchestration.py prints of the seconds that it measures."""

import pytest

from benchmarks.orchestration import Timeline, mlflow_line, noop_line, prefect_line, seconds_of


def test_noop_gives_the_median_and_its_ratio_to_the_shortest_command():
    said = noop_line(35, [4.0, 3.0, 9.0], 0.5)
    assert "35 up-to-date stages 4.00 s (of 3: 3.00 to 9.00" in said and "8.0 times as long" in said


def notes(*times):
    return [{"time": time} for time in times]


def test_a_timeline_is_before_between_and_after_the_stages():
    found = Timeline.of(100.0, notes(103.0, 106.0, 110.0), notes(105.0, 108.0, 112.0), 113.0)
    assert found == Timeline(before=3.0, between=1.5, after=1.0)


def test_prefects_overhead_is_what_a_flow_takes_longer_between_stages():
    said = prefect_line([Timeline(1.0, 0.5, 1.0)], [Timeline(11.0, 1.5, 4.0)])
    assert "overhead 1.00 s a stage" in said and "(ratio 3.0)" in said
    assert "10.0 s more before the first stage and 3.0 s behind" in said


def test_mlflows_cost_holds_live_curves_and_the_recording():
    said = mlflow_line([100.0, 100.0], [101.0, 103.0], [1.0, 3.0])
    assert "100.0 s takes 102.0 s with live curves (+2.0%)" in said and "end 2.0 s, together +4.0%" in said


def test_a_failing_command_is_shown():
    with pytest.raises(SystemExit, match="exit code 3"):
        seconds_of("sh", "-c", "exit 3")
