"""Where SB3's loggers make their folders, one for each model that learns."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="package")
def folder_of_the_loggers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("SB3_LOGDIR")
    os.environ["SB3_LOGDIR"] = str(tmp_path_factory.mktemp("logs"))
    yield
    del os.environ["SB3_LOGDIR"]
    if before is not None:
        os.environ["SB3_LOGDIR"] = before
