"""What can go wrong, as exceptions that carry the service's own words."""

from lejepa_med.client.wire.common import JobDetail, Problem


class ClientError(Exception):
    """Base of all exceptions of the client."""


class UnreachableError(ClientError):
    """No answer: the service cannot be reached, or the connection broke."""


class ServiceError(ClientError):
    """The service answered with a problem.

    `kind` is a stable word ('bad-file'), `detail` the cause, `remedy` what to do, `retry_after` the seconds to wait
    before a new attempt, where the service gives them, `reference` the request's id in its log.
    """

    def __init__(self, problem: Problem, *, retry_after: float | None = None) -> None:
        super().__init__(str(problem) or f"HTTP {problem.status} {problem.title}")
        self.problem = problem
        self.retry_after = retry_after
        self.status, self.kind = problem.status, problem.kind
        self.detail, self.remedy, self.reference = problem.detail, problem.remedy, problem.reference


class DeniedError(ServiceError):
    """401, 403: no key, or one without the right."""


class NotFoundError(ServiceError):
    """404: no such encoder, archive, probe or job."""


class ConflictError(ServiceError):
    """409, 412: not in this state, or changed meanwhile; `problem.more` then has both versions."""


class TooLargeError(ServiceError):
    """413: larger than a limit."""


class InvalidError(ServiceError):
    """400, 406, 408, 415, 421, 422: a bad file, value or request; `problem.index` and `.errors` tell which."""


class BusyError(ServiceError):
    """429, 503: too much at once, or the service is being stopped; also after all retries."""


class ServerFaultError(ServiceError):
    """500 and others: a fault of the service; `reference` finds it in its log."""


class JobFailedError(ClientError):
    """A job that ended without success; `job.error` says why where it failed."""

    def __init__(self, job: JobDetail) -> None:
        super().__init__(f"The job ended as {job.state}. {job.error or ''}".strip())
        self.job = job


BY_STATUS: dict[int, type[ServiceError]] = {
    400: InvalidError,
    401: DeniedError,
    403: DeniedError,
    404: NotFoundError,
    406: InvalidError,
    408: InvalidError,
    409: ConflictError,
    412: ConflictError,
    413: TooLargeError,
    415: InvalidError,
    421: InvalidError,
    422: InvalidError,
    428: InvalidError,
    429: BusyError,
    503: BusyError,
}
