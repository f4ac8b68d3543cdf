"""Calls that a plan does not cover."""


class Miss(Exception):
    """A call that the plan does not cover, and why; never seen by users.

    Attributes:
        kind: A word for the kind, under which such calls are counted and one warning is given.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
