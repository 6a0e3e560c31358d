"""Which files of a model hold samples, and which the scores of sides."""

from pathlib import Path

from pipeline.paths import World


def test_samples_and_scores_of_sides_are_told_apart(tmp_path):
    world = World(tmp_path / "runs" / "w")
    names = ["phantom_cxr/image_to_report", "all/joint", "side/phantom_cxr", "phantom_cxr/report_to_image"]
    for name in names:
        path = world.generated("medim") / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def found(paths: list[Path]) -> list[str]:
        return [path.relative_to(world.generated("medim")).with_suffix("").as_posix() for path in paths]

    assert found(world.sample_files("medim")) == [names[1], names[0], names[3]]
    assert found(world.side_files("medim")) == [names[2]]
    assert world.sample_files("trivial") == world.side_files("trivial") == []
