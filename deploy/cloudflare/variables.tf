variable "account_id" {
  type        = string
  description = "CF_ACCOUNT_ID"
}

variable "zone_id" {
  type        = string
  description = "CF_ZONE_ID: the zone of the public domain"
}

variable "zone_name" {
  type        = string
  description = "The zone's domain, such as example.com"
}

variable "subdomain" {
  type        = string
  default     = "cdn"
  description = "CDN_BASE_URL is https://SUBDOMAIN.ZONE_NAME"
}

variable "location" {
  type        = string
  default     = "weur"
  description = "Where buckets lie, as a hint: apac, eeur, enam, oc, weur, wnam. Near the runs."
}

variable "renditions_bucket" {
  type        = string
  default     = "cdn-renditions"
  description = "R2_BUCKET_NAME"
}

variable "originals_bucket" {
  type        = string
  default     = "cdn-originals"
  description = "R2_ORIGINALS_BUCKET_NAME"
}

variable "logs_bucket" {
  type        = string
  default     = "cdn-dagster-logs"
  description = "DAGSTER_LOGS_BUCKET_NAME"
}
