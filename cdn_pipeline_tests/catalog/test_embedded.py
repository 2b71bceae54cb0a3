import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import psutil
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdn_pipeline.catalog import embedded_home, embedded_programs
from cdn_pipeline.catalog.embedded import EmbeddedPostgres, EmbeddedPostgresError
from cdn_pipeline.catalog.embedded_home import PostgresHome, Progress
from cdn_pipeline.catalog.embedded_programs import Account, programs_for
from cdn_pipeline_tests.postgres import connect, empty_database, open_folder, postgres_server

__all__ = ["empty_database", "postgres_server"]

PROJECT = Path(__file__).parents[2]

# a process that holds a handle until its standard input ends
HOLDER = """
import sys
from pathlib import Path
from cdn_pipeline.catalog.embedded import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1])) as server:
    print(server.url("postgres"), flush=True)
    sys.stdin.read()
"""

FORGETFUL_HOLDER = """
import sys
from pathlib import Path
from cdn_pipeline.catalog.embedded import EmbeddedPostgres
EmbeddedPostgres(Path(sys.argv[1])).start()
print(Path(sys.argv[1], "data", "postmaster.pid").read_text().split()[0])
"""

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="about what root does")


@pytest.fixture
def data_root() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder / "postgres"


@pytest.fixture(scope="module")
def used_data_root() -> Iterator[Path]:
    """A folder that has served before, and whose table `kept` has one row; each test leaves it without a server."""
    with open_folder() as folder:
        with EmbeddedPostgres(folder / "postgres") as server:
            query(server, "CREATE TABLE kept AS SELECT 42 AS answer")
        yield folder / "postgres"


def query(server: EmbeddedPostgres, statement: str) -> object:
    """The first column of the first row, if there are any."""
    with connect(server.url("postgres")) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def postmaster_pid(data_root: Path) -> int:
    return int((data_root / "data" / "postmaster.pid").read_text().split()[0])


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up, "this does not happen"
        time.sleep(0.02)


def start_holder(data_root: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(data_root)],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def holder(data_root: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds a handle, with the server running."""
    with start_holder(data_root) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("postgresql+psycopg://")
            yield process
        finally:
            process.kill()


def crash(data_root: Path) -> None:
    """Ends a server that nobody holds with kill -9, as the machine's end would."""
    with holder(data_root) as process:
        os.kill(postmaster_pid(data_root), signal.SIGKILL)
        process.kill()


# Starting and stopping


def test_the_first_start_makes_a_durable_utf8_server_without_tcp(data_root: Path) -> None:
    with EmbeddedPostgres(data_root) as server:
        names = ("fsync", "synchronous_commit", "listen_addresses", "server_encoding", "timezone")
        assert [query(server, f"SHOW {name}") for name in names] == ["on", "on", "", "UTF8", "UTC"]
        assert str(query(server, "SHOW server_version")).startswith("18.")
        locale = query(
            server, "SELECT datlocprovider::text || ' ' || datlocale FROM pg_database WHERE datname = 'postgres'"
        )
        assert locale == "b C.UTF-8"


def test_only_the_account_of_the_server_may_enter_the_folder_of_its_socket(used_data_root: Path) -> None:
    with EmbeddedPostgres(used_data_root):
        assert (used_data_root / "run").stat().st_mode & 0o777 == 0o700


def test_the_last_handle_to_close_stops_the_server(used_data_root: Path) -> None:
    first, second = EmbeddedPostgres(used_data_root).start(), EmbeddedPostgres(used_data_root).start()
    pid = postmaster_pid(used_data_root)
    first.close()
    first.close()
    assert query(second, "SELECT 1") == 1
    assert postmaster_pid(used_data_root) == pid
    second.close()
    assert not is_alive(pid)


def test_data_outlive_the_server(used_data_root: Path) -> None:
    with EmbeddedPostgres(used_data_root) as server:
        assert query(server, "SELECT answer FROM kept") == 42


def test_six_processes_at_once_get_one_server(data_root: Path) -> None:
    processes = [start_holder(data_root) for _ in range(6)]
    urls = {process.stdout.readline() for process in processes if process.stdout}
    pid = postmaster_pid(data_root)
    assert len(urls) == 1
    assert (data_root / "postgres.log").read_text().count("starting PostgreSQL") == 1

    for process in processes:
        assert is_alive(pid)
        process.communicate()  # ends its standard input
    assert [process.returncode for process in processes] == [0] * 6
    assert not is_alive(pid)


def test_handles_that_close_at_once_stop_the_server(used_data_root: Path) -> None:
    handles = [EmbeddedPostgres(used_data_root).start() for _ in range(8)]
    pid = postmaster_pid(used_data_root)
    with ThreadPoolExecutor(len(handles)) as threads:
        list(threads.map(EmbeddedPostgres.close, handles))
    assert not is_alive(pid)


def test_a_handle_closes_itself_when_its_process_ends(used_data_root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL_HOLDER, used_data_root],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert not is_alive(int(done.stdout))


def test_a_holder_that_was_killed_does_not_keep_the_server_alive(used_data_root: Path) -> None:
    with EmbeddedPostgres(used_data_root) as server:
        pid = postmaster_pid(used_data_root)
        with holder(used_data_root) as process:
            process.kill()
        assert query(server, "SELECT 1") == 1
    assert not is_alive(pid)


def test_a_server_whose_only_holder_was_killed_serves_the_next_one(used_data_root: Path) -> None:
    with holder(used_data_root) as process:
        pid = postmaster_pid(used_data_root)
        process.kill()
    with EmbeddedPostgres(used_data_root) as server:
        assert query(server, "SELECT 1") == 1
        assert postmaster_pid(used_data_root) == pid
    assert not is_alive(pid)


def test_programs_started_by_a_holder_do_not_keep_the_server_alive(used_data_root: Path) -> None:
    with EmbeddedPostgres(used_data_root):
        pid = postmaster_pid(used_data_root)
        sleeper = subprocess.Popen(["sleep", "60"], close_fds=False)
    sleeper.kill()
    sleeper.wait()
    assert not is_alive(pid)


def test_a_forked_child_neither_holds_nor_stops_the_server(used_data_root: Path) -> None:
    with EmbeddedPostgres(used_data_root) as server:
        pid = postmaster_pid(used_data_root)
        child = os.fork()
        if child == 0:
            server.close()
            signal.pause()
        try:
            assert query(server, "SELECT 1") == 1
            server.close()
            assert not is_alive(pid)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_a_closed_handle_says_so(data_root: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match=r"call start\(\) first"):
        EmbeddedPostgres(data_root).url("postgres")


# Crashes


def test_a_handle_brings_a_killed_server_back_with_its_data(used_data_root: Path) -> None:
    with EmbeddedPostgres(used_data_root) as server:
        pid = postmaster_pid(used_data_root)
        os.kill(pid, signal.SIGKILL)
        server.start()
        assert postmaster_pid(used_data_root) != pid
        assert query(server, "SELECT answer FROM kept") == 42


@pytest.mark.parametrize(
    "whose_pid", ["a stranger's", "a zombie's", "nobody's: truncated", "nobody's: empty", "garbage"]
)
def test_a_stale_pid_file_does_not_count_as_a_server(used_data_root: Path, whose_pid: str) -> None:
    crash(used_data_root)
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    pid_file = used_data_root / "data" / "postmaster.pid"
    lines = pid_file.read_text().splitlines(keepends=True)
    content = {
        "a stranger's": "".join([f"{os.getpid()}\n", *lines[1:]]),
        "a zombie's": "".join([f"{zombie.pid}\n", *lines[1:]]),
        "nobody's: truncated": lines[0][:1],
        "nobody's: empty": "",
        "garbage": "\0\0\0 garbage",
    }[whose_pid]
    for stale in (pid_file, used_data_root / "run" / ".s.PGSQL.5432.lock"):
        stale.write_text(content)

    with EmbeddedPostgres(used_data_root) as server:
        assert query(server, "SELECT answer FROM kept") == 42
    zombie.wait()


def test_a_damaged_pid_file_of_a_living_server_does_no_harm(used_data_root: Path) -> None:
    with EmbeddedPostgres(used_data_root):
        pid = postmaster_pid(used_data_root)
        (used_data_root / "data" / "postmaster.pid").write_text("")
        with EmbeddedPostgres(used_data_root) as second:
            assert query(second, "SELECT 1") == 1
    assert not is_alive(pid)


def test_a_start_waits_for_what_is_left_of_a_killed_server(
    used_data_root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Progress, "_SECONDS", 0.1)
    with EmbeddedPostgres(used_data_root) as server:
        postmaster = psutil.Process(postmaster_pid(used_data_root))
        orphan = postmaster.children()[0]
        orphan.suspend()  # so that it does not notice
        postmaster.kill()
        starting = Thread(target=server.start)
        starting.start()
        try:
            wait_until(lambda: "Waiting for the embedded Postgres" in caplog.text)
            assert postmaster_pid(used_data_root) == postmaster.pid, "no second server beside the orphan"
        finally:
            orphan.resume()
        starting.join()
        assert query(server, "SELECT answer FROM kept") == 42


def test_a_deleted_data_root_starts_afresh_although_the_old_server_still_lives(data_root: Path) -> None:
    old = EmbeddedPostgres(data_root).start()
    old_postmaster = postmaster_pid(data_root)
    shutil.rmtree(data_root)
    try:
        with EmbeddedPostgres(data_root) as server:
            assert query(server, "SELECT 1") == 1
            old.close()
            assert query(server, "SELECT 1") == 1
    finally:
        os.kill(old_postmaster, signal.SIGQUIT)


# Places and accounts


@pytest.mark.parametrize("name", ["long" * 40, "a,b", 'it\'s $HOME "ü" `x` %20+?&=#'])
def test_any_path_will_do(name: str) -> None:
    with open_folder() as folder, EmbeddedPostgres(folder / name) as server:
        assert query(server, "SELECT 1") == 1
        engine = sa.create_engine(server.url("postgres"))
        with engine.connect() as alchemy:
            assert alchemy.execute(sa.text("SELECT current_database()")).scalar() == "postgres"
        engine.dispose()


def test_a_link_to_the_data_root_leads_to_the_same_server(used_data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(used_data_root)
    with EmbeddedPostgres(used_data_root) as server, EmbeddedPostgres(tmp_path / "link") as linked:
        assert server.url("postgres") == linked.url("postgres")


def test_a_planted_folder_for_the_socket_is_refused() -> None:
    with open_folder() as folder:
        data_root = folder / ("long" * 40)
        data_root.mkdir()
        planted = PostgresHome.of(data_root).socket_folder
        planted.symlink_to(folder)
        try:
            with pytest.raises(EmbeddedPostgresError, match="not a folder of ours"):
                EmbeddedPostgres(data_root).start()
        finally:
            planted.unlink()


def test_the_environment_of_libpq_does_not_lead_astray(used_data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGPORT": "1", "PGDATA": "/nowhere", "PGHOST": "nowhere", "PGUSER": "x"}.items():
        monkeypatch.setenv(name, value)
    with EmbeddedPostgres(used_data_root) as server:
        assert query(server, "SELECT 1") == 1


def test_no_parent_folder_changes(used_data_root: Path) -> None:
    used_data_root.parent.chmod(0o711)
    folders = [*used_data_root.parents, *programs_for(None).parents]

    def permissions() -> list[tuple[int, int, int]]:
        return [(found.st_mode, found.st_uid, found.st_gid) for found in map(Path.stat, folders)]

    before = permissions()
    with EmbeddedPostgres(used_data_root):
        assert permissions() == before
    assert permissions() == before


@only_root
def test_an_ordinary_user_needs_nothing_that_root_left_behind() -> None:
    nobody = Account.nobody()
    if not nobody.reaches(programs_for(None) / "postgres"):
        pytest.skip("the virtual environment is closed to other users")
    # Root's server first: that also loads all modules, which the other user may not be able to read.
    script = """
import os, sys
from pathlib import Path
from cdn_pipeline.catalog.embedded import EmbeddedPostgres, EmbeddedPostgresError
own, roots, uid, gid = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
EmbeddedPostgres(roots / "postgres").start().close()
os.setgroups([]); os.setgid(gid); os.setuid(uid)
with EmbeddedPostgres(own / "postgres") as server:
    server.ensure_database("catalog")
    print(server.url("catalog"))
for refused in (roots / "postgres", roots / "another"):
    try:
        EmbeddedPostgres(refused).start()
    except EmbeddedPostgresError as error:
        print(error)
"""
    with open_folder() as own, open_folder() as roots:
        os.chown(own, nobody.uid, nobody.gid)
        arguments = [str(own), str(roots), str(nobody.uid), str(nobody.gid)]
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            cwd=PROJECT,
            env=os.environ | {"TMPDIR": str(own)},
            check=True,
            capture_output=True,
            text=True,
        )
        assert (own / "postgres" / "data").stat().st_uid == nobody.uid
    served, *errors = done.stdout.splitlines()
    assert served.startswith("postgresql+psycopg://")
    assert len(errors) == 2
    assert all("Permission denied" in error and "CDN_PIPELINE_VAR_DIR" in error for error in errors)


@pytest.fixture
def system_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stands for /var/lib/cdn_pipeline."""
    with open_folder() as folder:
        for module in (embedded_home, embedded_programs):
            monkeypatch.setattr(module, "SYSTEM_FOLDER", folder / "lib")
        yield folder / "lib"


@only_root
def test_data_that_roots_account_cannot_reach_live_elsewhere_for_good(data_root: Path, system_folder: Path) -> None:
    closed = data_root.parent
    closed.chmod(0o700)
    with EmbeddedPostgres(data_root) as server:
        query(server, "CREATE TABLE kept AS SELECT 42 AS answer")
        assert Path(str(query(server, "SHOW data_directory"))).is_relative_to(system_folder)
    assert str(system_folder) in (data_root / "WHERE_THE_DATA_IS.txt").read_text()
    assert closed.stat().st_mode & 0o777 == 0o700

    closed.chmod(0o755)
    with EmbeddedPostgres(data_root) as server:
        assert query(server, "SELECT answer FROM kept") == 42


@only_root
def test_a_data_root_that_was_removed_starts_again_from_nothing(data_root: Path, system_folder: Path) -> None:
    data_root.parent.chmod(0o700)
    with EmbeddedPostgres(data_root) as server:
        query(server, "CREATE TABLE forgotten AS SELECT 42 AS answer")
    shutil.rmtree(data_root)
    with EmbeddedPostgres(data_root) as server:
        assert query(server, "SELECT count(*) FROM pg_tables WHERE tablename = 'forgotten'") == 0


@only_root
def test_data_are_not_replaced_by_an_empty_database_when_their_folder_was_closed(
    data_root: Path, system_folder: Path
) -> None:
    EmbeddedPostgres(data_root).start().close()
    data_root.parent.chmod(0o700)
    with pytest.raises(EmbeddedPostgresError, match="open the way"):
        EmbeddedPostgres(data_root).start()
    assert not system_folder.exists()


@only_root
def test_programs_that_roots_account_cannot_reach_are_copied(
    data_root: Path, system_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = programs_for(None).parents[1]
    with open_folder() as closed:
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, closed / folder.name, ignore=shutil.ignore_patterns("pginstall", "include"))
        closed.chmod(0o700)
        monkeypatch.syspath_prepend(closed)
        assert programs_for(None).is_relative_to(closed)
        with EmbeddedPostgres(data_root) as server:
            executable = psutil.Process(postmaster_pid(data_root)).exe()
            assert Path(executable).is_relative_to(system_folder)
            assert query(server, "SELECT 1") == 1
        assert len(list(system_folder.iterdir())) == 1, "nothing half-copied is left"


@only_root
def test_root_runs_the_data_of_an_ordinary_user_as_that_user(data_root: Path) -> None:
    daemon = Account(1, 1)
    EmbeddedPostgres(data_root).start().close()
    for path in (data_root, *data_root.rglob("*")):
        os.chown(path, daemon.uid, daemon.gid)
    data_root.chmod(0o700)
    with EmbeddedPostgres(data_root) as server:
        assert query(server, "SELECT 1") == 1
        assert (data_root / "data" / "postmaster.pid").stat().st_uid == daemon.uid


# Databases


def test_many_may_ask_for_one_database_at_once(postgres_server: EmbeddedPostgres) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(postgres_server.ensure_database, ["wanted by all"] * 8))
    with connect(postgres_server.url("wanted by all")) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("wanted by all",)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), min_size=1, max_size=15))
def test_any_name_will_do_for_a_database(postgres_server: EmbeddedPostgres, name: str) -> None:
    postgres_server.ensure_database(name)
    postgres_server.ensure_database(name)
    with connect(postgres_server.url(name)) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == (name,)


def test_an_empty_database_has_no_tables(empty_database: str) -> None:
    with connect(empty_database) as connection:
        tables = connection.execute("SELECT FROM pg_class WHERE relnamespace = 'public'::regnamespace").fetchall()
        assert tables == []


# Errors


@contextmanager
def changed(path: Path, content: str) -> Iterator[None]:
    before = path.read_text()
    path.write_text(content)
    yield
    path.write_text(before)


def test_data_of_another_major_version_are_refused(used_data_root: Path) -> None:
    expected = "written by Postgres 16, the embedded one is Postgres 18"
    version_file = used_data_root / "data" / "PG_VERSION"
    with changed(version_file, "16\n"), pytest.raises(EmbeddedPostgresError, match=expected):
        EmbeddedPostgres(used_data_root).start()


def test_a_folder_of_something_else_is_not_touched(data_root: Path) -> None:
    (data_root / "data").mkdir(parents=True)
    (data_root / "data" / "thesis.txt").write_text("the only copy")
    with pytest.raises(EmbeddedPostgresError, match="move it away"):
        EmbeddedPostgres(data_root).start()
    assert [path.name for path in (data_root / "data").iterdir()] == ["thesis.txt"]


def test_a_data_root_that_cannot_be_made_is_explained(data_root: Path) -> None:
    data_root.write_text("a file")
    with pytest.raises(EmbeddedPostgresError, match="set CDN_PIPELINE_VAR_DIR to another folder"):
        EmbeddedPostgres(data_root).start()


def test_a_failed_initdb_is_explained_and_leaves_nothing_in_the_way(data_root: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # a disk that is full early
    try:
        with pytest.raises(EmbeddedPostgresError, match="initdb failed") as refused:
            EmbeddedPostgres(data_root).start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "CATALOG_DATABASE_URL" in str(refused.value)
    assert not (data_root / "data").exists()
    assert str(data_root / "postgres.log") in str(refused.value)
    with EmbeddedPostgres(data_root) as server:
        assert query(server, "SELECT 1") == 1


def test_a_failed_start_shows_the_end_of_the_log(used_data_root: Path) -> None:
    expected = 'unrecognized configuration parameter "no_such_setting"'
    configuration = used_data_root / "data" / "postgresql.conf"
    with changed(configuration, "no_such_setting = on\n"), pytest.raises(EmbeddedPostgresError, match=expected):
        EmbeddedPostgres(used_data_root).start()


def test_a_platform_without_the_wheel_is_told_what_to_set(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_programs, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedPostgresError, match="set CATALOG_DATABASE_URL"):
        EmbeddedPostgres(data_root).start()
