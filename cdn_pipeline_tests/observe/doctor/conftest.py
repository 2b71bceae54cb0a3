from cdn_pipeline_tests.observe.doctor.set_ups import cloudflare, doctor, healthy
from cdn_pipeline_tests.s3 import moto_server, rclone_server

__all__ = ["cloudflare", "doctor", "healthy", "moto_server", "rclone_server"]
