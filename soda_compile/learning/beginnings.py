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

    wavering: set[str]
    timestep: str | None = None
    _courses: dict[str, _Course] = field(default_factory=dict)
    _begun: bool = False

    def begins(self, numbers: Numbers) -> bool:
        """Take the next call, and return whether a generation begins with it."""
        values = {name: value for name, value in numbers.items() if name not in self.wavering}
        known = {name: self._courses[name] for name in values if name in self._courses}
        turned = [name for name, course in known.items() if course.turns(values[name])]
        sure = [name for name in turned if known[name].changes >= _SURE]
        self.wavering.update(name for name in turned if name not in sure)
        if sure or not self._begun:
            self._begun = True
            self._courses = {name: _Course(value) for name, value in values.items()}
            self.timestep = sure[0] if sure else self.timestep  # a mere counter never starts again
            return True
        for name, value in values.items():
            course = self._courses.setdefault(name, _Course(value))
            course.follow(value)
            if self.timestep in (None, *self.wavering) and course.changes >= _SURE:
                self.timestep = name
        return False
