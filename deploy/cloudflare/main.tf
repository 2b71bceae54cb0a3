# Two buckets for the pipeline and one for Dagster's logs, the public domain, its caching and headers.
# `tofu init && tofu plan` (or terraform) with CLOUDFLARE_API_TOKEN in the environment: see docs/deploy.md.

terraform {
  required_version = ">= 1.6"
  required_providers {
    cloudflare = {
      source  = "cloudflare/cloudflare"
      version = "~> 5.13"
    }
  }
}

locals {
  host = "${var.subdomain}.${var.zone_name}"
  # Only the pictures: the zone may serve other things.
  pictures = "(http.host eq \"${local.host}\" and starts_with(http.request.uri.path, \"/th/\"))"
}

# Public, under the domain below. Keys are the paths of URLs.
resource "cloudflare_r2_bucket" "renditions" {
  account_id = var.account_id
  name       = var.renditions_bucket
  location   = var.location
}

# Private: no domain, no r2.dev.
resource "cloudflare_r2_bucket" "originals" {
  account_id = var.account_id
  name       = var.originals_bucket
  location   = var.location
}

# Private: what runs have written to their logs.
resource "cloudflare_r2_bucket" "logs" {
  account_id = var.account_id
  name       = var.logs_bucket
  location   = var.location
}

resource "cloudflare_r2_bucket_lifecycle" "logs" {
  account_id  = var.account_id
  bucket_name = cloudflare_r2_bucket.logs.name
  rules = [{
    id         = "forget logs with the runs"
    enabled    = true
    conditions = { prefix = "compute-logs/" }
    delete_objects_transition = {
      condition = { type = "Age", max_age = 30 * 86400 }
    }
  }]
}

resource "cloudflare_r2_custom_domain" "renditions" {
  account_id  = var.account_id
  bucket_name = cloudflare_r2_bucket.renditions.name
  domain      = local.host
  zone_id     = var.zone_id
  enabled     = true
  min_tls     = "1.2"
}

# r2.dev is rate limited, is not cached, and would be a second name for every picture, which no purge reaches.
resource "cloudflare_r2_managed_domain" "renditions" {
  account_id  = var.account_id
  bucket_name = cloudflare_r2_bucket.renditions.name
  enabled     = false
}

resource "cloudflare_r2_managed_domain" "originals" {
  account_id  = var.account_id
  bucket_name = cloudflare_r2_bucket.originals.name
  enabled     = false
}

# What a browser asks before a script sends headers of its own, such as a range; R2 answers it.
resource "cloudflare_r2_bucket_cors" "renditions" {
  account_id  = var.account_id
  bucket_name = cloudflare_r2_bucket.renditions.name
  rules = [{
    id = "pictures for every page"
    allowed = {
      origins = ["*"]
      methods = ["GET", "HEAD"]
      headers = ["*"]
    }
    max_age_seconds = 86400
  }]
}

# One upper tier asks R2 for a picture, and the other data centres ask that tier: fewer class B operations.
resource "cloudflare_tiered_cache" "zone" {
  zone_id = var.zone_id
  value   = "on"
}

# A zone has one ruleset for each phase: where yours has one already, put the rule into it.
resource "cloudflare_ruleset" "cache" {
  zone_id = var.zone_id
  name    = "cdn_pipeline: cache"
  kind    = "zone"
  phase   = "http_request_cache_settings"
  rules = [{
    ref         = "cdn_pipeline_pictures"
    description = "Pictures as long as their header says; what is missing, a minute"
    expression  = local.pictures
    action      = "set_cache_settings"
    action_parameters = {
      cache = true
      edge_ttl = {
        mode = "respect_origin"
        # A picture may be published in a minute.
        status_code_ttl = [{ status_code = 404, value = 60 }]
      }
      browser_ttl = { mode = "respect_origin" }
    }
  }]
}

# The same as what the local server sends (cdn_pipeline/api/delivery.py); a test keeps it so.
resource "cloudflare_ruleset" "headers" {
  zone_id = var.zone_id
  name    = "cdn_pipeline: response headers"
  kind    = "zone"
  phase   = "http_response_headers_transform"
  rules = [{
    ref         = "cdn_pipeline_headers"
    description = "A page elsewhere may show the picture, draw it on a canvas and time it"
    expression  = local.pictures
    action      = "rewrite"
    action_parameters = {
      headers = {
        "Access-Control-Allow-Origin"  = { operation = "set", value = "*" }
        "Cross-Origin-Resource-Policy" = { operation = "set", value = "cross-origin" }
        "Timing-Allow-Origin"          = { operation = "set", value = "*" }
        "X-Content-Type-Options"       = { operation = "set", value = "nosniff" }
      }
    }
  }]
}
