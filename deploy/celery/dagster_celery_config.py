"""What a Celery worker is told beyond the environment; dagster-celery reads this module if it is on the path.

Broker and results come from CELERY_BROKER_URL and CELERY_RESULT_BACKEND, which Celery reads of its own accord.
"""

from datetime import timedelta
from multiprocessing.process import AuthenticationString, current_process

from celery.signals import worker_process_init

# A run is taken from the broker when a process is free and not before. Celery's default takes four ahead, which would
# wait behind a long run while other workers idle, and be lost for an hour with a worker that is killed.
worker_disable_prefetch = True
worker_prefetch_multiplier = 1

# Dagster asks how a run's task stands for as long as the run lasts; Celery forgets after a day.
result_expires = timedelta(days=7)

# Dagster captures a run's output itself, from the real streams, and brings its own loggers.
worker_redirect_stdouts = False
worker_hijack_root_logger = False

# A broker that is away at the start, or restarts, is waited for.
broker_connection_retry_on_startup = True


@worker_process_init.connect
def _may_have_children(**_: object) -> None:
    """Lets a run start its transcoding workers as children.

    Celery's pool is made by billiard, a fork of multiprocessing. It leaves its own object as multiprocessing's current
    process: one that is daemonic, which forbids children, and whose key only billiard may hand on to them.
    """
    process = current_process()
    process._config.update(daemon=False, authkey=AuthenticationString(process.authkey))
