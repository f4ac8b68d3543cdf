"""Where a generation begins that nobody opened: the timestep, which runs one way through it, starts again."""

from dataclasses import dataclass, field

from soda_compile.learning.schedule import Numbers

_SURE = 2  # changes in one direction that make a number one that runs one way


@dataclass(eq=False)
class _Course:
    """How one number among the inputs went in the present generation."""

    last: float
    direction: int = 0
    changes: int = 0

    def turns(self, value: float) -> bool:
        return (value - self.last) * self.direction < 0

    def follow(self, value: float) -> None:
        if value != self.last:
            self.direction, self.changes = (1 if value > self.last else -1), self.changes + 1
            self.last = value


@dataclass(eq=False)
class Beginnings:
    """Tells whether a call begins a generation, from the numbers among the inputs of one caller's calls.

    A class label may change between the branches of guidance, and change back: a number that turns before it has run
    one way for three values is no timestep, and is not looked at again.

    Attributes:
        wavering: The numbers that are no timestep; shared by all callers of a model.
        timestep: The number that ran one way; None as long as none did.
    """

    wavering: set[int]
    timestep: int | None = None
    _courses: dict[int, _Course] = field(default_factory=dict)
    _begun: bool = False

    def begins(self, numbers: Numbers) -> bool:
        """Take the next call, and return whether a generation begins with it."""
        told = {index: value for index, value in enumerate(numbers) if value is not None}
        values = {index: value for index, value in told.items() if index not in self.wavering}
        known = {index: self._courses[index] for index in values if index in self._courses}
        turned = [index for index, course in known.items() if course.turns(values[index])]
        sure = [index for index in turned if known[index].changes >= _SURE]
        self.wavering.update(index for index in turned if index not in sure)
        if sure or not self._begun:
            self._begun = True
            self._courses = {index: _Course(value) for index, value in values.items()}
            return True
        for index, value in values.items():
            course = self._courses.setdefault(index, _Course(value))
            course.follow(value)
            if self.timestep in (None, *self.wavering) and course.changes >= _SURE:
                self.timestep = index
        return False
