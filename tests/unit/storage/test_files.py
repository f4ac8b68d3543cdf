"""Writers that meet at one file."""

from pathlib import Path

import pytest

from soda_compile.storage.files import replaced, write_atomic


def test_two_writers_of_one_file_leave_the_whole_of_one(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with replaced(target) as first, first.open("w") as slow:
        slow.write("first")
        write_atomic(target, b"the second one")
        assert target.read_bytes() == b"the second one"
        slow.write(" and more")
    assert target.read_text() == "first and more"
    assert list(tmp_path.iterdir()) == [target]


def test_a_writer_that_fails_leaves_what_the_other_wrote(tmp_path: Path) -> None:
    target = tmp_path / "file"

    def fail() -> None:
        with replaced(target) as temporary:
            temporary.write_text("half")
            write_atomic(target, b"whole")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [target]
