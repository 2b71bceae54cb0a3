import subprocess
from pathlib import Path

import pytest

from benchmarks.peers.installation import install_once, require

COUNTS = [["sh", "-c", "echo once >> ../installations"]]


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    file = tmp_path / "peer.txt"
    file.write_text("peer==1.0\n")
    return file


def installations(folder: Path) -> int:
    return len((folder / "installations").read_text().splitlines())


def test_what_is_installed_is_not_installed_again(tmp_path: Path, lock: Path) -> None:
    homes = {install_once(tmp_path / "peers", "peer", [lock], COUNTS) for _ in range(2)}
    assert len(homes) == 1
    assert installations(tmp_path / "peers") == 1


def test_another_lock_is_another_folder_which_holds_it(tmp_path: Path, lock: Path) -> None:
    first = install_once(tmp_path / "peers", "peer", [lock], COUNTS)
    lock.write_text("peer==1.1\n")
    second = install_once(tmp_path / "peers", "peer", [lock], COUNTS)
    assert [(home / lock.name).read_text() for home in (first, second)] == ["peer==1.0\n", "peer==1.1\n"]


def test_an_installation_that_failed_starts_over_from_nothing(tmp_path: Path, lock: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        install_once(tmp_path / "peers", "peer", [lock], [["touch", "half"], ["false"]])
    home = install_once(tmp_path / "peers", "peer", [lock], COUNTS)
    assert installations(tmp_path / "peers") == 1
    assert not (home / "half").exists()


def test_a_missing_program_says_which_package_has_it() -> None:
    with pytest.raises(SystemExit, match=r"no-such-server is missing.*apt-get install some-package"):
        require("no-such-server", debian_package="some-package")
