"""The catalog's tables: the truth about every image. Migrations under `migrations/` build exactly these, and the view
`cdn_image_urls`, which gives one row per image with its public URLs.

Times are UTC (`timestamptz`). Columns follow the names of the project's contract; reasons stand beside those that
are not obvious. docs/architecture.md has the diagram generated from this module.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP, TSTZMULTIRANGE, UUID

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_time = TIMESTAMP(timezone=True)
_now = sa.text("now()")

# A UUID of version 7: the milliseconds of the clock, then random bits. What is written together lies together in the
# indexes of ids, however large they are: with random ids a batch of 64 outcomes dirties some 330 pages in a catalog of
# a million images, and takes 1.5 to 4.7 times as long as in one of ten thousand. (Postgres has `uuidv7()` from 18 on.)
_TIME_ORDERED_ID = """
    CREATE OR REPLACE FUNCTION cdn_time_ordered_id() RETURNS uuid VOLATILE PARALLEL SAFE LANGUAGE sql AS $$
        SELECT CAST(encode(set_bit(set_bit(overlay(
            uuid_send(gen_random_uuid())
            PLACING substring(int8send(CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)) FROM 3) FROM 1
        ), 52, 1), 53, 1), 'hex') AS uuid)
    $$
"""
sa.event.listen(metadata, "before_create", sa.DDL(_TIME_ORDERED_ID))  # type: ignore[no-untyped-call]


def _id() -> sa.Column[object]:
    return sa.Column("id", UUID(as_uuid=True), primary_key=True, server_default=sa.text("gen_random_uuid()"))


def _time_ordered_id() -> sa.Column[object]:
    return sa.Column("id", UUID(as_uuid=True), primary_key=True, server_default=sa.text("cdn_time_ordered_id()"))


def _created() -> sa.Column[object]:
    return sa.Column("created_at", _time, nullable=False, server_default=_now)


def _updated() -> sa.Column[object]:
    return sa.Column("updated_at", _time, nullable=False, server_default=_now)


# The host in a source URL, in lower case, without user, port, brackets and trailing dot; empty if there is none.
_HOST = (
    "coalesce(lower(rtrim(btrim(substring(source_url from "
    "'^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#]*@)?([[][^]]*[]]|[^:/?#]*)'), '[]'), '.')), '')"
)

image_assets = sa.Table(
    "cdn_image_assets",
    metadata,
    _time_ordered_id(),
    sa.Column("collection", sa.String(40), nullable=False),
    sa.Column("shard", sa.String(2), nullable=False),
    sa.Column("owner_id", sa.Text, nullable=False),
    sa.Column("source_type", sa.String(20), nullable=False),
    sa.Column("source_id", sa.Text, nullable=False),
    sa.Column("media_id", sa.String(100), nullable=False),
    sa.Column("taken_at", _time),
    # Where the image can be had today: the best-ranked URL, and others of the same sighting, best first.
    sa.Column("source_url", sa.Text, nullable=False),
    sa.Column("fallback_urls", JSONB, nullable=False, server_default=sa.text("'[]'")),
    sa.Column("identity", sa.String(200), nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("url_expires_at", _time),
    sa.Column("observed_at", _time, nullable=False),
    # Whether a URL of this identity was ever seen before its expiry: if not, the image arrived dead and is not ours to
    # answer for.
    sa.Column("seen_alive", sa.Boolean, nullable=False, server_default=sa.text("true")),
    sa.Column("removed_at", _time),  # when its source row was found missing; what is published stays
    sa.Column("source_etag", sa.String(255)),
    sa.Column("source_last_modified", sa.String(64)),  # as sent, so that it can be sent back unchanged
    sa.Column("source_content_type", sa.String(50)),
    # The stored original, and which identity and rank it is of.
    sa.Column("original_sha256", sa.String(64)),
    sa.Column("original_identity", sa.String(200)),
    sa.Column("original_rank", sa.Integer),
    sa.Column("original_width", sa.Integer),
    sa.Column("original_height", sa.Integer),
    sa.Column("original_format", sa.String(10)),
    sa.Column("original_file_size", sa.Integer),
    sa.Column("placeholder", sa.String(60)),  # a BlurHash of the picture that is visible, to show until it has loaded
    sa.Column("processing_status", sa.String(20), nullable=False, server_default="pending"),
    sa.Column("processing_started_at", _time),
    sa.Column("processing_completed_at", _time),
    sa.Column("processing_error", sa.Text),
    sa.Column("failure_kind", sa.String(40)),
    sa.Column("processing_attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("needs_update", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("last_checked", _time, nullable=False, server_default=_now),
    sa.Column("download_time_ms", sa.Integer),
    sa.Column("processing_time_ms", sa.Integer),
    sa.Column("upload_time_ms", sa.Integer),
    sa.Column("total_processing_time_ms", sa.Integer),
    _created(),
    _updated(),
    sa.UniqueConstraint("source_type", "source_id", "media_id"),
    sa.CheckConstraint(
        "processing_status IN ('pending', 'downloading', 'processing', 'uploading', 'completed', 'failed')",
        name="processing_status",
    ),
    sa.Index("ix_cdn_image_assets_owner_id", "owner_id"),
    sa.Index("ix_cdn_image_assets_shard", "shard"),
    sa.Index("ix_cdn_image_assets_original_sha256", "original_sha256"),
    sa.Index(
        "ix_cdn_image_assets_unfinished",
        "processing_status",
        "failure_kind",
        postgresql_where=sa.text("processing_status <> 'completed'"),
    ),
    # A night writes every row, and no column of an index: with room in the row's own page the indexes are left alone.
    # At 100 % all of them are written as well; after four nights they are twice as large, and the table is larger too.
    postgresql_with={"fillfactor": 60},
)

image_jobs = sa.Table(
    "cdn_image_jobs",
    metadata,
    _time_ordered_id(),
    # Null once the image was erased: the job's numbers stay, because statistics are counted from them.
    sa.Column("asset_id", UUID(as_uuid=True), sa.ForeignKey("cdn_image_assets.id", ondelete="SET NULL")),
    sa.Column("collection", sa.String(40), nullable=False),
    sa.Column("shard", sa.String(2), nullable=False),
    sa.Column("job_type", sa.String(20), nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False, server_default="5"),
    # The stage that comes next. A run that selects only some assets leaves the job at the first stage it may not do.
    sa.Column("stage", sa.String(10), nullable=False, server_default="download"),
    sa.Column("force", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("source_url", sa.Text, nullable=False),
    sa.Column("host", sa.Text, sa.Computed(_HOST, persisted=True), nullable=False),  # whom a download asks first
    sa.Column("target_sizes", ARRAY(sa.Integer), nullable=False, server_default=sa.text("'{256,512}'")),
    sa.Column("output_format", sa.String(10), nullable=False, server_default="webp"),
    sa.Column("rollout", sa.String(40)),  # the recipe that is rolled out; null: the collection's own
    # When the source URL dies: a copy of the image's, so that one index serves the due query in order.
    sa.Column("deadline", _time),
    sa.Column("status", sa.String(20), nullable=False, server_default="queued"),
    sa.Column("next_attempt_at", _time, nullable=False, server_default=_now),
    sa.Column("held_at", _time),  # set by "queue clear", restorable
    sa.Column("first_started_at", _time),
    sa.Column("started_at", _time),
    sa.Column("completed_at", _time),
    # When runs had the job in hand, attempt by attempt: statistics of an hour are the same whenever they are made.
    sa.Column("busy", TSTZMULTIRANGE, nullable=False, server_default=sa.text("'{}'")),
    sa.Column("worker_id", sa.String(100)),
    sa.Column("run_id", sa.Text),
    sa.Column("lease_until", _time),
    sa.Column("failure_kind", sa.String(40)),
    sa.Column("error_message", sa.Text),
    sa.Column("error_details", JSONB),
    sa.Column("retry_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("max_retries", sa.Integer, nullable=False, server_default="3"),  # retries inside one run
    sa.Column("processing_duration_ms", sa.Integer),
    sa.Column("download_ms", sa.Integer),
    sa.Column("transcode_ms", sa.Integer),
    sa.Column("upload_ms", sa.Integer),
    sa.Column("bytes_in", sa.BigInteger),
    sa.Column("bytes_out", sa.BigInteger),
    sa.Column("archived_at", _time),  # failed a week ago: kept for the statistics, and told only when asked for
    _created(),
    _updated(),
    sa.CheckConstraint("status IN ('queued', 'processing', 'completed', 'failed', 'cancelled')", name="status"),
    sa.CheckConstraint("job_type IN ('ingest', 'update', 'retry')", name="job_type"),
    sa.CheckConstraint("stage IN ('download', 'encode', 'publish')", name="stage"),
    sa.CheckConstraint("priority BETWEEN 1 AND 10", name="priority"),
    sa.CheckConstraint("asset_id IS NOT NULL OR status NOT IN ('queued', 'processing')", name="open_has_image"),
    sa.Index(
        "uq_cdn_image_jobs_open",
        "asset_id",
        unique=True,
        postgresql_where=sa.text("status IN ('queued', 'processing')"),
    ),
    sa.Index(
        "ix_cdn_image_jobs_due",
        "collection",
        "shard",
        "priority",
        "deadline",
        postgresql_where=sa.text("status = 'queued' AND held_at IS NULL"),
    ),
    sa.Index("ix_cdn_image_jobs_leased", "shard", "run_id", postgresql_where=sa.text("status = 'processing'")),
    sa.Index("ix_cdn_image_jobs_asset_id", "asset_id"),
    sa.Index(
        "ix_cdn_image_jobs_failed",
        "completed_at",
        postgresql_where=sa.text("status = 'failed' AND archived_at IS NULL"),
    ),
    sa.Index("ix_cdn_image_jobs_completed_at", "completed_at", postgresql_where=sa.text("completed_at IS NOT NULL")),
)

image_renditions = sa.Table(
    "cdn_image_renditions",
    metadata,
    _time_ordered_id(),
    sa.Column("asset_id", UUID(as_uuid=True), sa.ForeignKey("cdn_image_assets.id", ondelete="CASCADE"), nullable=False),
    sa.Column("size_name", sa.String(20), nullable=False),
    sa.Column("format", sa.String(10), nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("file_size", sa.Integer, nullable=False),
    sa.Column("content_hash", sa.String(64), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("original_sha256", sa.String(64), nullable=False),
    sa.Column("recipe", sa.String(40), nullable=False),
    sa.Column("recipe_version", sa.Integer, nullable=False),
    sa.Column("encoder", sa.String(100), nullable=False),
    # stored: under its key but not visible yet; current: what the view shows; superseded: kept for the grace period.
    sa.Column("state", sa.String(10), nullable=False),
    _created(),
    sa.Column("published_at", _time),
    sa.Column("superseded_at", _time),
    sa.UniqueConstraint("asset_id", "path"),
    sa.CheckConstraint("state IN ('stored', 'current', 'superseded')", name="state"),
    sa.Index(
        "uq_cdn_image_renditions_current",
        "asset_id",
        "size_name",
        "format",
        unique=True,
        postgresql_where=sa.text("state = 'current'"),
    ),
    sa.Index("ix_cdn_image_renditions_path", "path"),
    sa.Index("ix_cdn_image_renditions_original_sha256", "original_sha256"),
    sa.Index(
        "ix_cdn_image_renditions_superseded_at", "superseded_at", postgresql_where=sa.text("state = 'superseded'")
    ),
)

processing_stats = sa.Table(
    "cdn_processing_stats",
    metadata,
    _id(),
    sa.Column("date", sa.Date, nullable=False),
    sa.Column("hour", sa.Integer, nullable=False),
    sa.Column("jobs_processed", sa.Integer, nullable=False, server_default="0"),
    sa.Column("jobs_failed", sa.Integer, nullable=False, server_default="0"),
    sa.Column("avg_processing_time_ms", sa.Integer, nullable=False, server_default="0"),
    sa.Column("avg_download_time_ms", sa.Integer, nullable=False, server_default="0"),
    sa.Column("avg_upload_time_ms", sa.Integer, nullable=False, server_default="0"),
    sa.Column("total_bytes_processed", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("avg_file_size_bytes", sa.Integer, nullable=False, server_default="0"),
    sa.Column("error_categories", JSONB, nullable=False, server_default=sa.text("'{}'")),
    sa.Column("peak_queue_depth", sa.Integer, nullable=False, server_default="0"),
    sa.Column("worker_utilization_percent", sa.Integer, nullable=False, server_default="0"),
    # What the stores held when the hour was first counted: a reading, which no later count can repeat.
    sa.Column("storage_bytes", sa.BigInteger),
    sa.Column("storage_objects", sa.BigInteger),
    _created(),
    _updated(),
    sa.UniqueConstraint("date", "hour"),
    sa.CheckConstraint("hour BETWEEN 0 AND 23", name="hour"),
)

# A run holds a session advisory lock on `lock_key` while it lives, so Postgres itself tells the living from the dead.
runs = sa.Table(
    "cdn_runs",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("lock_key", sa.BigInteger, nullable=False),
    sa.Column("worker_id", sa.String(100), nullable=False),
    sa.Column("started_at", _time, nullable=False, server_default=_now),
    sa.Column("ended_at", _time),
    sa.Index("ix_cdn_runs_open", "run_id", postgresql_where=sa.text("ended_at IS NULL")),
)

# What discovery has read: of a shard, all source rows updated until `scanned_at` (by the source's clock).
source_watermarks = sa.Table(
    "cdn_source_watermarks",
    metadata,
    sa.Column("collection", sa.String(40), primary_key=True),
    sa.Column("shard", sa.String(2), primary_key=True),
    sa.Column("scanned_at", _time, nullable=False),
    # Rows updated shortly before `scanned_at`, as counted then: more of them later means that some were committed late.
    sa.Column("recent_rows", sa.Integer, nullable=False, server_default="0"),
    sa.Column("fully_scanned_at", _time),  # the last scan that read every row, changed or not
)

# Recipes that are rolled out beside the collection's own, from stored originals.
rollouts = sa.Table(
    "cdn_rollouts",
    metadata,
    sa.Column("collection", sa.String(40), primary_key=True),
    sa.Column("recipe", sa.String(40), primary_key=True),
    sa.Column("recipe_version", sa.Integer, nullable=False),
    sa.Column("started_at", _time, nullable=False, server_default=_now),
    sa.Column("paused_at", _time),
)

# One row: what the view puts before a path. `cdn-pipeline migrate` writes it.
delivery = sa.Table(
    "cdn_delivery",
    metadata,
    sa.Column("only_row", sa.Boolean, primary_key=True, server_default=sa.text("true")),
    sa.Column("base_url", sa.Text, nullable=False),
    sa.CheckConstraint("only_row", name="only_row"),
)

# At most one row: whose pictures frontends are given CDN URLs of. Apart from the base URL, which `migrate` writes anew.
delivery_policy = sa.Table(
    "cdn_delivery_policy",
    metadata,
    sa.Column("only_row", sa.Boolean, primary_key=True, server_default=sa.text("true")),
    sa.Column("percentage", sa.SmallInteger, nullable=False, server_default="100"),  # of owners, while the CDN is on
    # The CDN is off since, and comes back by itself at; null: it is on, and not before somebody switches it on.
    sa.Column("off_since", _time),
    sa.Column("off_until", _time),
    sa.CheckConstraint("only_row", name="only_row"),
    sa.CheckConstraint("percentage BETWEEN 0 AND 100", name="percentage"),
)

# What a provider of fresh URLs was asked on a day (UTC): its budget and its rate, shared by all runs.
provider_usage = sa.Table(
    "cdn_provider_usage",
    metadata,
    sa.Column("provider", sa.String(20), primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("requests", sa.Integer, nullable=False, server_default="0"),  # profiles asked for, each time they were
    sa.Column("answered", sa.Integer, nullable=False, server_default="0"),
    sa.Column("next_request_at", _time, nullable=False, server_default=_now),
    sa.Column("refused", sa.Text),  # why it serves none of our questions, if that was its last word
)

# The last time that an owner's pictures were asked for, and when that may be done again.
provider_owners = sa.Table(
    "cdn_provider_owners",
    metadata,
    sa.Column("collection", sa.String(40), primary_key=True),
    sa.Column("owner_id", sa.Text, primary_key=True),
    sa.Column("asked_at", _time, nullable=False, server_default=_now),
    sa.Column("next_ask_at", _time, nullable=False),
    sa.Column("answer", sa.String(20)),  # answered, or why not; null until the answer is there
    sa.Column("refusals", sa.Integer, nullable=False, server_default="0"),  # private or gone, time after time
)

# Objects that clean-up has taken out of the stores: whoever saw one there before must not publish it.
removed_objects = sa.Table(
    "cdn_removed_objects",
    metadata,
    sa.Column("reference", sa.Text, primary_key=True),  # a rendition's path, or an original's SHA-256
    sa.Column("marked_at", _time, nullable=False, server_default=_now),
    sa.Column("removed_at", _time),  # null: it may vanish at any moment
)

# What stays out of the catalog: an owner with all images, or one image. No foreign key on `erasure_id`: a tombstone
# that was restored from the store outlives the audit row of a lost catalog.
tombstones = sa.Table(
    "cdn_tombstones",
    metadata,
    _id(),
    sa.Column("collection", sa.String(40), nullable=False),
    sa.Column("owner_id", sa.Text, nullable=False),
    sa.Column("source_type", sa.String(20)),  # with the next two: the image; null: the whole owner
    sa.Column("source_id", sa.Text),
    sa.Column("media_id", sa.String(100)),
    sa.Column("identities", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'")),  # of its pictures
    sa.Column("asset_id", UUID(as_uuid=True)),  # what the erased image's id was
    sa.Column("erasure_id", UUID(as_uuid=True), nullable=False),
    sa.Column("stored_at", _time),  # when its copy was put into the store of originals
    _created(),
    sa.UniqueConstraint(
        "collection",
        "owner_id",
        "source_type",
        "source_id",
        "media_id",
        name="uq_cdn_tombstones_subject",
        postgresql_nulls_not_distinct=True,
    ),
    sa.CheckConstraint("num_nulls(source_type, source_id, media_id) IN (0, 3)", name="owner_or_image"),
    sa.Index("ix_cdn_tombstones_image", "source_type", "source_id", "media_id"),
)

# The audit of erasures: who, when and why, without the picture.
erasures = sa.Table(
    "cdn_erasures",
    metadata,
    _id(),
    sa.Column("collection", sa.String(40), nullable=False),
    sa.Column("owner_id", sa.Text, nullable=False),
    sa.Column("scope", sa.String(10), nullable=False),
    sa.Column("requested_by", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    # open: something is left to do; purge_pending: gone from the stores, caches may still have it.
    sa.Column("state", sa.String(20), nullable=False, server_default="open"),
    sa.Column("images", sa.Integer, nullable=False, server_default="0"),
    sa.Column("renditions", sa.Integer, nullable=False, server_default="0"),
    sa.Column("originals", sa.Integer, nullable=False, server_default="0"),
    sa.Column("kept", sa.Integer, nullable=False, server_default="0"),  # objects that other images refer to
    sa.Column("cdn_verified", sa.Boolean),  # whether the CDN was seen to be without it; null: could not be asked
    sa.Column("problem", sa.Text),  # what kept it from being done
    sa.Column("finished_at", _time),
    _created(),
    _updated(),
    sa.CheckConstraint("scope IN ('owner', 'image')", name="scope"),
    sa.CheckConstraint("state IN ('open', 'purge_pending', 'done', 'lifted')", name="state"),
)

# What an erasure that is not done has to delete and to verify; afterwards only the counts are left.
erasure_objects = sa.Table(
    "cdn_erasure_objects",
    metadata,
    sa.Column("erasure_id", UUID(as_uuid=True), sa.ForeignKey("cdn_erasures.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("reference", sa.Text, primary_key=True),  # the path of a rendition, the SHA-256 of an original
    sa.Column("kept", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("deleted_at", _time),
)

# What all runs share about a host that downloads ask. A row per host that is rate-limited or has failed.
hosts = sa.Table(
    "cdn_hosts",
    metadata,
    sa.Column("host", sa.Text, primary_key=True),
    sa.Column("next_turn_at", _time),  # requests up to then are promised to runs
    sa.Column("failures", sa.Integer, nullable=False, server_default="0"),  # in a row
    sa.Column("failure_kind", sa.String(40)),  # of the last one
    # The breaker is open since `opened_at`: nobody asks before `retry_at`, and then one at a time (half-open).
    sa.Column("opened_at", _time),
    sa.Column("retry_at", _time),
    sa.Column("times_opened", sa.Integer, nullable=False, server_default="0"),  # in a row: each time for twice as long
    _updated(),
    sa.CheckConstraint("(opened_at IS NULL) = (retry_at IS NULL)", name="open"),
)

# When something that has to happen all the time last happened: a sensor's tick, so that a dead daemon is noticed.
heartbeats = sa.Table(
    "cdn_heartbeats",
    metadata,
    sa.Column("name", sa.String(60), primary_key=True),
    sa.Column("beat_at", _time, nullable=False, server_default=_now),
)

# A user's requests to have an owner fetched again: open until a run has asked the provider.
refreshes = sa.Table(
    "cdn_refreshes",
    metadata,
    _id(),
    sa.Column("collection", sa.String(40), nullable=False),
    sa.Column("owner_id", sa.Text, nullable=False),
    sa.Column("shard", sa.String(2), nullable=False),
    sa.Column("requested_at", _time, nullable=False, server_default=_now),
    sa.Column("run_id", sa.Text),  # of the run that does it, or that was started for it; null: the sensor starts one
    sa.Column("launched", sa.Boolean, nullable=False, server_default=sa.text("false")),  # that run, by the API
    sa.Column("answer", sa.String(40)),  # what the provider said
    sa.Column("finished_at", _time),
    sa.Index(
        "uq_cdn_refreshes_open",
        "collection",
        "owner_id",
        unique=True,
        postgresql_where=sa.text("finished_at IS NULL"),
    ),
    sa.Index("ix_cdn_refreshes_requested_at", "requested_at"),
    sa.Index("ix_cdn_refreshes_owner_id", "collection", "owner_id", "requested_at"),
    sa.Index("ix_cdn_refreshes_expired", "collection", "finished_at", postgresql_where=sa.text("answer = 'expired'")),
)

# Published URLs as a stranger gets them: a row per URL and probe.
delivery_probes = sa.Table(
    "cdn_delivery_probes",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("probed_at", _time, nullable=False, server_default=_now),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("problem", sa.String(40)),  # null: the bytes and the headers are what they should be
    sa.Column("status", sa.SmallInteger),  # HTTP's; null: no answer
    # Milliseconds to the first byte: on a new connection, and on one that was open; and what the cache said.
    sa.Column("cold_ms", sa.REAL),
    sa.Column("warm_ms", sa.REAL),
    sa.Column("cold_cache", sa.String(20)),
    sa.Column("warm_cache", sa.String(20)),
    sa.Index("ix_cdn_delivery_probes_probed_at", "probed_at"),
)

# Alerts: at most one active row per rule and subject; resolved ones are history.
alerts = sa.Table(
    "cdn_alerts",
    metadata,
    _id(),
    sa.Column("rule", sa.String(60), nullable=False),
    sa.Column("subject", sa.Text, nullable=False, server_default=""),  # which of several: a host, a job, a check
    sa.Column("severity", sa.String(10), nullable=False),  # the gravest since it fires
    sa.Column("words", sa.Text, nullable=False),
    # pending: true, but not for long enough; firing; resolved.
    sa.Column("state", sa.String(10), nullable=False, server_default="pending"),
    sa.Column("since", _time, nullable=False, server_default=_now),
    sa.Column("fired_at", _time),
    sa.Column("clear_since", _time),  # while firing: since when it is no longer true
    sa.Column("resolved_at", _time),
    sa.Column("told_severity", sa.String(10)),  # the gravest that everybody was told; null: not told yet
    sa.Column("told_firing_at", _time),
    sa.Column("told_resolved_at", _time),
    sa.Column("untold", ARRAY(sa.Text)),  # receivers that have not taken the present message; null: none has yet
    sa.Column("tell_after", _time),  # the next attempt to tell: after one that failed, or is being made
    sa.Column("telling_failed", sa.Text),
    # Of rules whose findings differ from machine to machine: who sees it (program@machine), and when it was last seen.
    sa.Column("seen_from", JSONB, nullable=False, server_default=sa.text("'{}'")),
    _updated(),
    sa.CheckConstraint("state IN ('pending', 'firing', 'resolved')", name="state"),
    sa.CheckConstraint("severity IN ('info', 'warning', 'critical')", name="severity"),
    sa.Index(
        "uq_cdn_alerts_active",
        "rule",
        "subject",
        unique=True,
        postgresql_where=sa.text("state <> 'resolved'"),
    ),
    sa.Index("ix_cdn_alerts_resolved_at", "resolved_at", postgresql_where=sa.text("state = 'resolved'")),
)

# What operators did through the API: who, when, what, and how much of it.
audit = sa.Table(
    "cdn_audit",
    metadata,
    _id(),
    sa.Column("at", _time, nullable=False, server_default=_now),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.String(40), nullable=False),
    sa.Column("details", JSONB, nullable=False, server_default=sa.text("'{}'")),
    sa.Column("affected", sa.Integer, nullable=False, server_default="0"),
    sa.Index("ix_cdn_audit_at", "at"),
)
