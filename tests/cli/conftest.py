"""A folder with small files of every kind that a command takes."""

from pathlib import Path

import pytest

from models.sample_files import write_samples


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    write_samples(folder)
    return folder
