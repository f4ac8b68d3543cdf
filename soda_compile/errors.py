"""The errors this project raises on purpose; anything else that escapes is a bug."""


class SodaError(Exception):
    """Base of every error raised on purpose; the message names the thing, the value and the way out."""


class PlanError(SodaError):
    """A plan is invalid, unreadable, or cannot be made or applied as asked."""


class OptionError(SodaError):
    """An option is unknown or has a value that cannot be used."""


class CaptureError(SodaError):
    """A model's graph cannot be captured or brought into the common form."""


class SensitivityError(SodaError):
    """Sensitivity data is invalid, unreadable, or does not fit what it is used for."""


class ProfileError(SodaError):
    """Measured costs are invalid, unreadable, or do not fit what they are used for."""


class TrajectoryError(SodaError):
    """Denoising calls do not follow the step order that the plan was made for."""


class PackageError(SodaError):
    """A package cannot be made, is damaged, or does not fit where or how it is used."""


class DistributedError(SodaError):
    """Processes that work together disagree, or one of them failed, ended or gave no answer in time."""
