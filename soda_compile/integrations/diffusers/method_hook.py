"""Replaces a method on one object, for a while."""

from soda_compile.capture.stand_ins import StandIn, keep_in_copies, leave_out_of_copies


class MethodHook(StandIn):
    """Stands in for a method of one object; copies of the object have the method itself."""

    def attach(self) -> "MethodHook":
        """Put it on the object; the class stays as it is."""
        setattr(self.method.__self__, self.method.__name__, self)
        leave_out_of_copies(self.method.__self__)
        return self

    def detach(self) -> None:
        """Take it off, unless somebody has replaced it since."""
        owner, name = self.method.__self__, self.method.__name__
        if owner.__dict__.get(name) is self:
            delattr(owner, name)
        keep_in_copies(owner)
