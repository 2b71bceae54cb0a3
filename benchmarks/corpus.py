"""What becomes of real files, good and hostile, in a whole run: the table of docs/corpus.md.

    .venv/bin/python -m benchmarks.corpus FOLDER

FOLDER has folders of files. Each file is the avatar of a profile, served by an origin on loopback; everything else is
as in production: the Dagster job in a process of its own, catalog on the embedded Postgres, stores in folders. The job
ends with exit status 1, because hostile files fail its success-rate check.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote
from uuid import NAMESPACE_URL, UUID, uuid5

import psutil
import sqlalchemy as sa
from aiohttp import web

from benchmarks.jobs import Watched, run_job
from cdn_pipeline.catalog.sessions import open_catalog, open_demo_database
from cdn_pipeline.demo.app_database import create_tables, profiles_table
from cdn_pipeline.demo.serving import in_thread, listening
from cdn_pipeline.settings import Settings

PUBLISHED = "published"


def files_in(corpus: Path) -> list[str]:
    """The files of all folders, as `folder/name`."""
    return sorted(path.relative_to(corpus).as_posix() for path in corpus.glob("*/*") if path.is_file())


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serves a folder on loopback, compressed files with their Content-Encoding; gives its URL."""
    app = web.Application()
    app.router.add_static("/corpus/", folder)
    with in_thread(listening(app)) as base_url:
        yield f"{base_url}/corpus/"


def add_profiles(database: sa.Engine, files: Sequence[str], base_url: str) -> None:
    """One profile for each file, whose avatar it is."""
    create_tables(database)
    rows = [
        {
            "id": profile_id(file),
            "username": file,
            "profile_pic_url": base_url + quote(file),
            "updated_at": datetime.now(UTC),
        }
        for file in files
    ]
    with database.begin() as connection:
        connection.execute(sa.insert(profiles_table), rows)


def profile_id(file: str) -> UUID:
    """The id of a file's profile."""
    return uuid5(NAMESPACE_URL, file)


def endings(catalog: sa.Engine, files: Sequence[str]) -> dict[str, str]:
    """How each file ended: `PUBLISHED`, the kind of its failure, or else its state."""
    with catalog.connect() as connection:
        rows = connection.execute(
            sa.text("""
                SELECT a.source_id, COALESCE(a.failure_kind, CASE WHEN u.cdn_url_512 IS NOT NULL THEN :published
                       ELSE a.processing_status END) AS ending
                FROM cdn_image_assets a LEFT JOIN cdn_image_urls u USING (source_type, source_id, media_id)"""),
            {"published": PUBLISHED},
        )
        ended = {row.source_id: row.ending for row in rows}
    return {file: ended[str(profile_id(file))] for file in files}


def table(ended: Mapping[str, str]) -> str:
    """Files by folder, as Markdown."""
    folders: dict[str, Counter[str]] = {}
    for file, ending in ended.items():
        folders.setdefault(file.partition("/")[0], Counter())[ending] += 1
    lines = ["| folder | files | published | failed, by kind |", "|---|---|---|---|"]
    for folder, counts in folders.items():
        failed = ", ".join(f"{kind} {n}" for kind, n in sorted(counts.items()) if kind != PUBLISHED)
        lines.append(f"| {folder} | {counts.total()} | {counts[PUBLISHED]} | {failed} |")
    every = Counter(ended.values())
    lines.append(f"| all | {every.total()} | {every[PUBLISHED]} | {every.total() - every[PUBLISHED]} |")
    return "\n".join(lines)


def run(corpus: Path) -> tuple[dict[str, str], Watched]:
    """One run over all files; how each ended, and what the run cost."""
    files = files_in(corpus)
    with tempfile.TemporaryDirectory(prefix="cdn-pipeline-corpus-") as name, serving(corpus) as base_url:
        var = Path(name)
        var.chmod(0o755)  # the embedded Postgres is another user when root runs this
        settings = Settings(_env_file=None, cdn_pipeline_var_dir=var)  # type: ignore[call-arg]
        with open_demo_database(settings) as database, open_catalog(settings) as catalog:
            add_profiles(database, files, base_url)
            pid_file = next((var / "postgres").rglob("postmaster.pid"))
            watched = run_job(var, postgres=psutil.Process(int(pid_file.read_text().split()[0])))
            return endings(catalog, files), watched


def main() -> None:
    """Prints the table and the peaks."""
    ended, watched = run(Path(sys.argv[1]))
    print(table(ended))
    print()
    peaks = watched.peaks
    print(f"{watched.seconds:.0f} s, exit status {watched.exit_status}; at most {peaks['run']:.0f} MB in the run's")
    print(f"process, {peaks['workers']:.0f} MB in its workers, {peaks['all']:.0f} MB together with Postgres.")


if __name__ == "__main__":
    main()
