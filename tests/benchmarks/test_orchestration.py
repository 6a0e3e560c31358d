"""What benchmarks/orchestration.py prints of the seconds that it measures."""

import pytest

from benchmarks.orchestration import mlflow_line, noop_line, prefect_line, seconds_of


def test_noop_gives_the_median_and_its_ratio_to_the_shortest_command():
    said = noop_line(35, [4.0, 3.0, 9.0], 0.5)
    assert "35 up-to-date stages 4.00 s (of 3: 3.00 to 9.00" in said and "8.0 times as long" in said


def test_prefects_overhead_is_per_stage_with_and_without_the_beginning():
    said = prefect_line([20.0], [30.0], [5.0])
    assert "(ratio 1.50)" in said and "overhead 2.00 s a stage, 1.00 s without that beginning" in said


def test_mlflows_cost_holds_live_curves_and_the_recording():
    said = mlflow_line([100.0, 100.0], [101.0, 103.0], [1.0, 3.0])
    assert "100.0 s takes 102.0 s with live curves (+2.0%)" in said and "end 2.0 s, together +4.0%" in said


def test_a_failing_command_is_shown():
    with pytest.raises(SystemExit, match="exit code 3"):
        seconds_of("sh", "-c", "exit 3")
