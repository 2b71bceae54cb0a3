# Three tokens, each with what its user needs and no more. Their secrets are in the state: keep it encrypted.

data "cloudflare_account_api_token_permission_groups_list" "all" {
  account_id = var.account_id
}

locals {
  group = { for group in data.cloudflare_account_api_token_permission_groups_list.all.result : group.name => group.id... }
  bucket = { for bucket in [var.renditions_bucket, var.originals_bucket, var.logs_bucket] :
    bucket => "com.cloudflare.edge.r2.bucket.${var.account_id}_default_${bucket}"
  }
}

# R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY: reads and writes objects of the two buckets.
resource "cloudflare_account_token" "stores" {
  account_id = var.account_id
  name       = "cdn_pipeline: renditions and originals"
  policies = [{
    effect            = "allow"
    permission_groups = [{ id = local.group["Workers R2 Storage Bucket Item Write"][0] }]
    resources = jsonencode({
      (local.bucket[var.renditions_bucket]) = "*"
      (local.bucket[var.originals_bucket])  = "*"
    })
  }]
  depends_on = [cloudflare_r2_bucket.renditions, cloudflare_r2_bucket.originals]
}

# AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: Dagster's logs, and no picture.
resource "cloudflare_account_token" "logs" {
  account_id = var.account_id
  name       = "cdn_pipeline: logs of runs"
  policies = [{
    effect            = "allow"
    permission_groups = [{ id = local.group["Workers R2 Storage Bucket Item Write"][0] }]
    resources         = jsonencode({ (local.bucket[var.logs_bucket]) = "*" })
  }]
  depends_on = [cloudflare_r2_bucket.logs]
}

# CF_API_TOKEN: purges what was erased, and reads the figures of zone and account.
resource "cloudflare_account_token" "zone" {
  account_id = var.account_id
  name       = "cdn_pipeline: purge and analytics"
  policies = [
    {
      effect = "allow"
      permission_groups = [
        { id = local.group["Cache Purge"][0] },
        { id = local.group["Analytics Read"][0] },
      ]
      resources = jsonencode({ "com.cloudflare.api.account.zone.${var.zone_id}" = "*" })
    },
    {
      effect            = "allow"
      permission_groups = [{ id = local.group["Account Analytics Read"][0] }]
      resources         = jsonencode({ "com.cloudflare.api.account.${var.account_id}" = "*" })
    },
  ]
}

# R2's S3 keys are made from a token: its id, and the SHA-256 of its value.
output "environment" {
  description = "What /etc/cdn-pipeline/env wants: tofu output -raw environment"
  sensitive   = true
  value       = <<-EOT
    CF_ACCOUNT_ID=${var.account_id}
    CF_ZONE_ID=${var.zone_id}
    CF_API_TOKEN=${cloudflare_account_token.zone.value}
    CDN_BASE_URL=https://${local.host}
    R2_ENDPOINT_URL=https://${var.account_id}.r2.cloudflarestorage.com
    R2_BUCKET_NAME=${cloudflare_r2_bucket.renditions.name}
    R2_ORIGINALS_BUCKET_NAME=${cloudflare_r2_bucket.originals.name}
    R2_ACCESS_KEY_ID=${cloudflare_account_token.stores.id}
    R2_SECRET_ACCESS_KEY=${sha256(cloudflare_account_token.stores.value)}
    DAGSTER_LOGS_BUCKET_NAME=${cloudflare_r2_bucket.logs.name}
    AWS_ACCESS_KEY_ID=${cloudflare_account_token.logs.id}
    AWS_SECRET_ACCESS_KEY=${sha256(cloudflare_account_token.logs.value)}
  EOT
}
