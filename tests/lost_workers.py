"""What Ray Train reports of a worker whose process has died."""

from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError


def lost_worker() -> Exception:
    death = ActorDiedError()
    death.error_msg += "\n\tpid: 7\nThe actor is dead because its worker process has died. Exit: 9"
    return WorkerHealthCheckFailedError("A worker health check failed.", death)
