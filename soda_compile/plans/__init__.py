"""The data that pass between measuring, planning and compiling: operators, plans, sensitivities, profiles. No torch.

(The name ``soda_compile.plan`` is the public function.) May import ``errors`` and ``storage``.
"""
