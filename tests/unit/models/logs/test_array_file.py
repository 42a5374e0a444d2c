from pathlib import Path

import numpy as np

from models.logs.array_file import forget_pages, mapped


def test_pages_that_were_let_go_of_are_read_again(tmp_path: Path):
    path = tmp_path / "rows.npy"
    np.save(path, np.arange(10_000, dtype=np.float32).reshape(-1, 10))
    for mode in ("r", "c"):
        array = mapped(path, mode)  # type: ignore[arg-type]
        total = array.sum()
        forget_pages(array)
        assert array.sum() == total
    forget_pages(np.zeros(3))
