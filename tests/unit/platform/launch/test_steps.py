"""What a job tells of its finished network."""

from pathlib import Path

from magicdistill.models.locations import PROJECT
from magicdistill.models.networks.transformer import load_transformer
from magicdistill.models.networks.weights import save_transformer
from magicdistill.platform.launch.steps import count_stored

STUDENT = PROJECT / "assets" / "portrait-tiny" / "student-4step"


def test_parameters_are_counted_in_the_files(tmp_path: Path) -> None:
    student = load_transformer(STUDENT)
    save_transformer(student, tmp_path, max_file_bytes=2**20)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    expected = sum(parameter.numel() for parameter in student.parameters())
    assert count_stored(STUDENT) == count_stored(tmp_path) == expected
