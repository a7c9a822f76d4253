"""Errors that are answers to a client."""


class RequestError(Exception):
    """A request that gets an error.

    Args:
        status: of HTTP.
        text: for the client.
        retry_after: seconds after which it may succeed.
    """

    def __init__(self, status: int, text: str, retry_after: int | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.retry_after = status, text, retry_after
