"""Clean-up of stores and catalog, and a look at what is left: every day, or by hand."""

import dagster as dg

from cdn_pipeline.observe.thresholds import judge_stores
from cdn_pipeline.orchestration.assets.images import published_images_spec
from cdn_pipeline.orchestration.config import CleanUpConfig
from cdn_pipeline.orchestration.reporting import known
from cdn_pipeline.orchestration.resources import CatalogResource

OBJECTS_READ = 500  # of each store: 50 MB of originals, seconds


@dg.asset(
    # Drawn in the graph, and no more: clean-up needs no shard.
    deps=[dg.AssetDep(published_images_spec, partition_mapping=dg.SpecificPartitionsPartitionMapping([]))],
    group_name="upkeep",
    kinds={"postgres", "s3"},
    owners=["team:images"],
    tags={"domain": "images", "stage": "upkeep"},
    description=(
        "What nobody needs any more leaves stores and catalog: superseded renditions after the grace period, objects "
        "that the catalog does not know, originals that nothing refers to, temporary files, old jobs and runs; failed "
        "jobs are archived after 7 days, dead leases released, interrupted erasures gone on with. "
        "Never an object that a row refers to.\n\n"
        "It goes on where the last run stopped, for an hour at most. With `dry_run` it only tells."
    ),
)
def cleaned_stores(
    context: dg.AssetExecutionContext, config: CleanUpConfig, catalog: CatalogResource
) -> dg.MaterializeResult[None]:
    """Cleans up and tells how many of each kind, and how many bytes.

    Raises:
        Failure: most objects of a store are unknown to this catalog.
    """
    from cdn_pipeline.collections import INSTAGRAM
    from cdn_pipeline.upkeep.clean_up import CleanUp, WrongCatalogError, grace_of
    from cdn_pipeline.upkeep.erase import Eraser

    settings = catalog.settings
    eraser = Eraser.of(settings, catalog.engine)
    clean_up = CleanUp(
        catalog.engine,
        INSTAGRAM,
        eraser.stores,
        grace_of(settings),
        limit=config.limit,
        dry_run=config.dry_run,
        eraser=eraser,
    )
    numbers: dict[str, int | bool] = {"dry run": config.dry_run}
    is_all: dict[str, bool] = {}
    try:
        for cleaned in clean_up.run_for(60 * config.minutes):
            is_all[cleaned.kind] = cleaned.is_all
            numbers[cleaned.kind.value] = cleaned.count
            if cleaned.size is not None:
                numbers[f"{cleaned.kind.value} (bytes)"] = cleaned.size
            if not cleaned.is_all:
                context.log.info(f"{cleaned.kind}: {cleaned.count} so far")
    except WrongCatalogError as error:
        raise dg.Failure(str(error), metadata=numbers) from error
    numbers["more is left"] = not all(is_all.values())
    return dg.MaterializeResult(metadata=numbers)


@dg.asset_check(
    asset=cleaned_stores,
    description=f"Of {OBJECTS_READ} current renditions and as many originals, drawn at random, every object is in its "
    "store, byte for byte.\n\nOtherwise: `cdn-pipeline verify --all --repair`.",
)
def stores_hold_what_the_catalog_says(catalog: CatalogResource) -> dg.AssetCheckResult:
    """Reads a sample of both stores, and repairs nothing."""
    from cdn_pipeline.collections import INSTAGRAM
    from cdn_pipeline.upkeep.stores import open_stores
    from cdn_pipeline.upkeep.verify import Verification

    stores = open_stores(catalog.settings).by_part
    verification = Verification(catalog.engine, INSTAGRAM, stores, sample=OBJECTS_READ, read=True)
    parts = {verified.part: verified for verified in verification.run()}.values()
    wrong = sum(verified.wrong for verified in parts)
    judgement = judge_stores(sum(verified.looked_at for verified in parts), wrong)
    samples = [finding.words for verified in parts for finding in verified.samples]
    return dg.AssetCheckResult(
        passed=judgement.passed,
        severity=dg.AssetCheckSeverity.ERROR if judgement.is_error else dg.AssetCheckSeverity.WARN,
        description=judgement.words,
        metadata=known(
            {f"{verified.part} read": verified.looked_at for verified in parts} | {"wrong": samples or None}
        ),
    )
